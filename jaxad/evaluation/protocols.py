"""From a data set and a detector to one honest record: splits, protocols, metrics.

Splits come before statistics: whatever is learnt from rows (scaling, constant columns, imputation) is learnt from the training rows.
"""

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sklearn.preprocessing import StandardScaler

from jaxad import metrics
from jaxad.data import Dataset
from jaxad.detectors.estimator import Detector


@dataclass(frozen=True)
class Split:
    """Training rows (normal only) and labelled test rows, scaled by the training rows' statistics."""

    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray


Protocol = Callable[[Dataset, int], Split]
"""``(dataset, seed) -> Split``."""


def clean(dataset: Dataset, seed: int, *, max_rows: int = 50_000) -> Split:
    """The default protocol: nothing about a test row reaches training.

    At most ``max_rows`` rows are drawn, exact duplicates are grouped and every group lies on one side of the split, the groups are
    shuffled with the seed, and half of the normal rows train. A group that holds an anomaly is test. Columns constant in training are
    dropped; the rest is centred and scaled by the training rows; missing values become the training mean of their column.

    Raises:
        ValueError: no labels, only one class, or fewer than two distinct normal rows.
    """
    x, y = _labelled(dataset)
    rng = np.random.default_rng(seed)
    if len(x) > max_rows:
        chosen = rng.choice(len(x), max_rows, replace=False)
        x, y = x[chosen], y[chosen]
    group = _duplicate_groups(x)
    num_groups = group.max() + 1
    tainted = np.zeros(num_groups, bool)
    tainted[group[y == 1]] = True
    sizes = np.bincount(group[y == 0], minlength=num_groups)
    order = rng.permutation(num_groups)
    order = order[~tainted[order]]
    before = np.cumsum(sizes[order]) - sizes[order]
    training_groups = np.zeros(num_groups, bool)
    training_groups[order[before < np.sum(y == 0) // 2]] = True
    if training_groups.sum() < 2 or not (~training_groups[group] & (y == 0)).any():
        raise ValueError(f"data set {dataset.name!r} has too few distinct normal rows to split into training and test")
    in_training = training_groups[group]
    train, test = x[in_training], x[~in_training]
    varying = np.nanmax(train, axis=0) > np.nanmin(train, axis=0)
    if not varying.any():
        raise ValueError(
            f"every column of data set {dataset.name!r} is constant over the training rows: nothing to learn from"
        )
    return _scaled(train[rng.permutation(len(train))][:, varying], test[:, varying], y[~in_training])


def dte(dataset: Dataset, seed: int) -> Split:
    """Bit-compatible with the published harness of DTE (Livernoche et al. 2024) and with the seed paper's Table 1 at seed 44.

    Sets under 1,000 rows are drawn *with replacement* up to 1,000 before the split, which puts copies of test rows into training;
    larger ones are not shuffled. Kept for comparison with published tables: read its numbers beside those of ``clean``.
    """
    x, y = _labelled(dataset)
    x = np.where(np.isnan(x), np.nanmean(x, axis=0), x) if np.isnan(x).any() else x
    rng = np.random.RandomState(seed)  # the generator behind np.random.seed
    if len(x) < 1000:
        chosen = rng.choice(len(x), 1000, replace=True)
        x, y = x[chosen], y[chosen]
    elif len(x) > 50_000:
        chosen = rng.choice(len(x), 50_000, replace=False)
        x, y = x[chosen], y[chosen]
    normal, anomalous = np.flatnonzero(y == 0), np.flatnonzero(y == 1)
    half = round(len(normal) * 0.5)
    test = np.concatenate([normal[half:], anomalous])
    return _scaled(x[normal[:half]], x[test], y[test])


PROTOCOLS: dict[str, Protocol] = {"clean": clean, "dte": dte}


def _labelled(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    if dataset.y is None:
        raise ValueError(
            f"evaluating needs labels, data set {dataset.name!r} has none: name the label column, or only fit and score"
        )
    counts = np.bincount(dataset.y, minlength=2)
    if counts.min() == 0:
        raise ValueError(
            f"evaluating needs both classes, data set {dataset.name!r} has {counts[0]} normal and {counts[1]} anomalous rows"
        )
    return np.asarray(dataset.x, np.float64), dataset.y


def _duplicate_groups(x: np.ndarray) -> np.ndarray:
    """An id per row, equal for bitwise equal rows (-0.0 counts as 0.0)."""
    rows = np.ascontiguousarray(x + 0.0)
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    return np.unique(keys, return_inverse=True)[1].ravel()


def _scaled(train: np.ndarray, test: np.ndarray, labels: np.ndarray) -> Split:
    scaler = StandardScaler().fit(
        train
    )  # ignores missing values; a column that varies by rounding only keeps its scale
    train, test = (np.nan_to_num(scaler.transform(rows), nan=0.0) for rows in (train, test))
    return Split(train, test, labels)


def twin_share(split: Split) -> float:
    """The leak check: the share of test rows that have a bitwise equal twin among the training rows, in [0, 1]."""
    group = _duplicate_groups(np.concatenate([split.train, split.test]))
    return float(np.isin(group[len(split.train) :], group[: len(split.train)]).mean())


# --------------------------------------------------------------------------------------------------------------------- record


@dataclass(frozen=True)
class Evaluation:
    """One cell of a table: a detector on a data set under a protocol with a seed. Metrics are fractions in [0, 1]."""

    dataset: str
    detector: str
    protocol: str
    seed: int
    auroc: float
    average_precision: float
    fpr_at_95_tpr: float
    f1_at_k: float
    num_train: int
    num_test: int
    twin_share: float
    fit_seconds: float
    score_seconds: float
    commit: str | None = None
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def cell(self) -> tuple[str, str, str, int]:
        """What identifies a cell when a run is resumed."""
        return self.dataset, self.detector, self.protocol, self.seed


def evaluate(
    detector: Detector, dataset: Dataset, *, protocol: str = "clean", seed: int = 0, name: str | None = None
) -> tuple[Evaluation, Split, np.ndarray]:
    """Fit on the protocol's training rows, score its test rows, measure: ``(record, split, anomaly scores [num_test])``.

    The anomaly scores are ``-score_samples``: larger = more anomalous.

    Raises:
        ValueError: unknown protocol, unusable labels, or a detector whose scores are not finite (they are never replaced).

    >>> from sklearn.ensemble import IsolationForest
    >>> from jaxad import data
    >>> record, _, _ = evaluate(IsolationForest(random_state=0), data.builtin("breast_cancer"))
    >>> record.auroc > 0.8
    True
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    split = PROTOCOLS[protocol](dataset, seed)
    started = time.perf_counter()
    detector.fit(split.train)
    fitted = time.perf_counter()
    scores = -np.asarray(detector.score_samples(split.test), np.float64)
    scored = time.perf_counter()
    label = name or type(detector).__name__
    if scores.shape != split.labels.shape or not np.isfinite(scores).all():
        raise ValueError(
            f"detector {label!r} on {dataset.name!r} returned scores of shape {scores.shape} with "
            f"{np.size(scores) - np.isfinite(scores).sum()} non-finite values, expected {split.labels.shape} finite ones"
        )
    record = Evaluation(
        dataset=dataset.name,
        detector=label,
        protocol=protocol,
        seed=seed,
        auroc=metrics.auroc(split.labels, scores),
        average_precision=metrics.average_precision(split.labels, scores),
        fpr_at_95_tpr=metrics.fpr_at_tpr(split.labels, scores),
        f1_at_k=metrics.f1_at_k(split.labels, scores),
        num_train=len(split.train),
        num_test=len(split.test),
        twin_share=twin_share(split),
        fit_seconds=fitted - started,
        score_seconds=scored - fitted,
        commit=current_commit(),
        device=device_name(),
        versions=versions(),
    )
    return record, split, scores


@cache
def current_commit() -> str | None:
    """The commit of the checkout this package runs from, with ``+`` if it has changes; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def device_name() -> str:
    """The accelerator's name, or the processor with the number of cores this process may use."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"cpu, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    return f"{device.device_kind} x{jax.device_count()}"


@cache
def versions() -> dict[str, str]:
    """Versions of everything that could move a number."""
    return {
        package: version(package) for package in ("jaxad", "jax", "flax", "optax", "numpy", "scikit-learn", "scipy")
    }
