"""What do the score families find, all asked of one trained denoiser, and what does each cost?

    python -m experiments.families --data-dir ../shared/data

Runtime: about 20 minutes on 2 cores. Expected: docs/methods.md. One ``DiffusionDetector`` is fitted per set and seed; every family scores
the same test rows with the same network, calibrated on the same held-out normal rows. ``fit_seconds`` of a record is calibration and
compilation (and training, for the first family), ``score_seconds`` free of compilation where more than 256 rows are tested.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from sklearn.base import BaseEstimator

from jaxad import DiffusionDetector, data, scoring
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.detectors import Detector
from jaxad.detectors.fitting import hold_out
from jaxad.evaluation import Evaluation, sweep
from jaxad.reports.tables import comparison_table, markdown_table

DATASETS = ("breastw", "Cardiotocography", "vertebral", "Wilt", "yeast", "landsat", "MVTec-AD_grid", "MVTec-AD_pill")

FAMILIES: dict[str, tuple[Callable, scoring.Combination, int]] = {
    "denoising error, z-mean": (scoring.denoising_error, scoring.z_mean, 2),
    "denoising error, z-max": (scoring.denoising_error, scoring.z_max, 2),
    "denoising error, mahalanobis": (scoring.denoising_error, scoring.mahalanobis, 2),
    "denoising error, gmm": (scoring.denoising_error, scoring.gmm, 2),
    "denoising error, knn": (scoring.denoising_error, scoring.knn, 2),
    "one-jump reconstruction, z-mean": (scoring.reconstruction_error, scoring.z_mean, 2),
    "DDIM reconstruction, z-mean": (scoring.ddim_reconstruction_error, scoring.z_mean, 1),
    "score norm, z-mean": (scoring.score_norm, scoring.z_mean, 1),
    "log score norm, gmm (MSMA)": (scoring.log_score_norm, scoring.gmm, 1),
    "log score norm, knn": (scoring.log_score_norm, scoring.knn, 1),
    "path statistics, gmm (DiffPath-6D)": (scoring.path_statistics, scoring.gmm, 1),
    "path curvature, typicality (DiffPath-1D)": (scoring.path_curvature, scoring.typicality, 1),
    "variational bound, total": (scoring.variational_bound, scoring.total, 2),
    "variational bound, likelihood ratio": (scoring.variational_bound, scoring.likelihood_ratio, 2),
    "likelihood, total": (scoring.negative_log_likelihood, scoring.total, 1),
    "likelihood, typicality": (scoring.negative_log_likelihood, scoring.typicality, 1),
    "time posterior, knn": (scoring.time_posterior, scoring.knn, 1),
    "conditional error, z-mean": (scoring.conditional_error, scoring.z_mean, 1),
    "projection regret, z-mean": (scoring.projection_regret, scoring.z_mean, 2),
    "flow residual, z-mean": (scoring.flow_residual, scoring.z_mean, 2),
}
"""name -> (score, combination, noise draws)."""


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with adbench/<group>/<name>.npz."""
    datasets: tuple[str, ...] = DATASETS
    seeds: tuple[int, ...] = (0,)
    out: Path = Path("runs/families")


class Rescored(BaseEstimator):
    """A family's face on a network fitted once: ``fit`` on the same rows and seed trains only the first time."""

    fitted: tuple | None = None
    """Shared by all instances: (what it was fitted on, the detector)."""

    def __init__(self, family, seed):
        self.family, self.seed = family, seed

    def fit(self, X, y=None):
        key = self.seed, hashlib.sha256(X.tobytes()).hexdigest()
        if Rescored.fitted is None or Rescored.fitted[0] != key:
            Rescored.fitted = key, DiffusionDetector(random_state=self.seed).fit(X)
        self.model_ = Rescored.fitted[1]
        # The rows that fit held out: the same generator, asked in the same order.
        rng = np.random.RandomState(self.seed)
        rng.randint(2**31 - 1)
        score, aggregate, draws = self.family
        self.model_.set_params(scorer=score, aggregate=aggregate, draws=draws)
        self.model_.calibrate(hold_out(X, rng)[1])
        self.model_.score_samples(np.resize(X, (1024, X.shape[1])))  # the clock of `evaluate` meets a compiled program
        return self

    def score_samples(self, X):
        return self.model_.score_samples(X)


def run(config: Config) -> list[Evaluation]:
    """Every family on every data set; ``table.md`` beside the records."""
    names = [data.adbench_name(name) for name in config.datasets]
    loaders = {name: (lambda name=name: data.adbench(name, config.data_dir)) for name in names}
    families: dict[str, Callable[[int], Detector]] = {
        name: (lambda seed, family=family: Rescored(family, seed)) for name, family in FAMILIES.items()
    }
    records = []
    for seed in config.seeds:
        records += sweep.run(loaders, families, out=config.out, protocol="clean", seeds=(seed,))
    tables = [markdown_table(records), comparison_table(records, next(iter(FAMILIES)))]
    (config.out / "table.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    return records


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        settings = tyro.cli(Config, description=__doc__)
        run(settings)
        Console(width=200).print((settings.out / "table.md").read_text(encoding="utf-8"), highlight=False)
