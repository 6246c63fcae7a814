"""Names a user types, and the detectors they stand for: one default setting each, the same for every data set.

The command line and the experiments read this table; the library never does.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

from jaxad import noise, scoring
from jaxad.data import did_you_mean
from jaxad.denoisers import DiT
from jaxad.detectors import (
    COPOD,
    ECOD,
    ConsensusDetector,
    CycleDetector,
    Detector,
    DiffusionDetector,
    DTECategorical,
    DTEInverseGamma,
    DTENonParametric,
    Estimator,
    ImageDetector,
    KNNDetector,
    MahalanobisDetector,
    SeriesDetector,
    SquaredNorm,
)
from jaxad.detectors.estimator import listed_elsewhere

Factory = Callable[[int], Detector]
"""From a seed to a detector that is not yet fitted."""

DIT = DiT(hidden=128, depth=2, heads=4, patch_size=None)
"""The transformer for tables: a row is cut into at most four tokens."""


def untrained_dit(seed: int) -> DiffusionDetector:
    """A DiT that never took a step, scored the published way: the control that Table 1's DiT column equals.

    Its output is exactly zero, so the score is proportional to the squared norm of the row (METHODS 0.1).
    """
    return DiffusionDetector(
        DIT,
        num_steps=0,
        scorer=scoring.unnoised_reverse_error,
        levels=noise.reverse_paths(noise.linear(1000, beta_end=1e-2), 249, 5),
        prediction=noise.NOISE,
        aggregate=scoring.total,
        draws=1,
        random_state=seed,
    )


def _of_one_view(view: str, seed: int) -> SeriesDetector:
    return SeriesDetector(views=(view,), random_state=seed)


ROWS: dict[str, Factory] = {
    # scikit-learn's own objects, with the settings of DTE's and PyOD's tables
    "iforest": lambda seed: IsolationForest(n_estimators=100, random_state=np.random.RandomState(seed)),
    "ocsvm": lambda seed: OneClassSVM(kernel="rbf", gamma="auto", nu=0.5),
    "lof": lambda seed: LocalOutlierFactor(n_neighbors=20, novelty=True),  # pyright: ignore[reportAssignmentType]
    "copod": lambda seed: COPOD(),
    "copod-nan": lambda seed: COPOD(transductive=True, nan_quirk=True),
    "ecod": lambda seed: ECOD(),
    "knn": lambda seed: KNNDetector(n_neighbors=5, standardize=True),
    "knn-mean": lambda seed: KNNDetector(n_neighbors=5, aggregate="mean", standardize=True),
    "1nn": lambda seed: KNNDetector(n_neighbors=1, standardize=True),
    "mahalanobis": lambda seed: MahalanobisDetector(),
    "norm": lambda seed: SquaredNorm(),
    "recommended": lambda seed: ConsensusDetector(random_state=seed),
    "ddpm": lambda seed: DiffusionDetector(random_state=seed),
    "dit": lambda seed: DiffusionDetector(DIT, random_state=seed),
    "dit-untrained": untrained_dit,
    "dte-c": lambda seed: DTECategorical(random_state=seed),
    "dte-ig": lambda seed: DTEInverseGamma(random_state=seed),
    "dte-np": lambda seed: DTENonParametric(),
}

"""What is fitted on rows of numbers and nothing else."""

PICTURES: dict[str, Factory] = {"image": lambda seed: ImageDetector(random_state=seed)}

SERIES: dict[str, Factory] = {
    "recommended": lambda seed: SeriesDetector(random_state=seed),
    **{f"series-{view}": partial(_of_one_view, view) for view in ("patterns", "nearest", "forecast", "clusters")},
}
"""What is fitted on time series: PCA, kNN, k-means on windows and a ridge forecast stand beside."""

DETECTORS: dict[str, Factory] = ROWS | PICTURES | {"cycle": lambda seed: CycleDetector(random_state=seed)}


def elsewhere() -> dict[str, Factory]:
    """Detectors that other installed packages list (``estimator.listed_elsewhere``): functions of the seed, or classes.

    A class is given the seed as ``random_state`` if it has that setting. A name that is taken here stays ours.
    """
    return {name: partial(_made, make) for name, make in listed_elsewhere().items() if name not in DETECTORS}


def _made(factory: Any, seed: int) -> Detector:
    if not isinstance(factory, type):
        return factory(seed)
    return factory(random_state=seed) if "random_state" in inspect.signature(factory).parameters else factory()


def everything() -> dict[str, Factory]:
    """All names there are: ours, then those of other packages."""
    return DETECTORS | elsewhere()


def saveable(table: Mapping[str, Factory]) -> dict[str, Factory]:
    """Those that make an ``Estimator``, which can be saved, exported and scored from the command line.

    >>> sorted(saveable({"knn": DETECTORS["knn"], "iforest": DETECTORS["iforest"]}))
    ['knn']
    """
    return {name: make for name, make in table.items() if isinstance(make(0), Estimator)}


def choose(names: Iterable[str], table: Mapping[str, Factory] | None = None) -> dict[str, Factory]:
    """The named entries of ``table`` (default: ``everything()``), in the order given.

    Raises:
        ValueError: an unknown name, with the nearest known one.

    >>> list(choose(["knn", "ddpm"]))
    ['knn', 'ddpm']
    """
    table = everything() if table is None else table
    for name in names:
        if name not in table:
            raise ValueError(f"unknown detector {name!r}: {did_you_mean(name, table)}")
    return {name: table[name] for name in names}
