"""How well do scores rank anomalies first, how sure is that number, and is one detector really better than another?

**The sign, once and for all: every function here takes ANOMALY scores, larger = more anomalous, and labels with 1 =
anomalous.** The ``score_samples`` of a detector has the opposite sign (scikit-learn's: larger = more normal). Write
``auroc(labels, -detector.score_samples(X))``.

Scores must be finite and both classes must be present: a NaN replaced by 0 has put an AUROC of exactly 50.00 into
published tables.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve


def auroc(labels, scores) -> float:
    """Area under the ROC curve, in [0, 1]: the chance that an anomaly scores above a normal row, ties counting half;
    0.5 is a coin.

    ``labels [rows]``: 1 = anomalous, 0 = normal. ``scores [rows]``: ANOMALY scores, larger = more anomalous.

    Raises:
        ValueError: lengths differ, a score is not finite, a label is not 0 or 1, or one class is missing (as all
            functions here do).

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    return float(roc_auc_score(*_checked(labels, scores)))


def average_precision(labels, scores) -> float:
    """Average precision, in [0, 1]: the step-wise area under the precision-recall curve; a coin gets the share of
    anomalies.

    ``labels [rows]``: 1 = anomalous. ``scores [rows]``: ANOMALY scores, larger = more anomalous. Raises as ``auroc``.

    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    return float(average_precision_score(*_checked(labels, scores)))


def fpr_at_tpr(labels, scores, tpr: float = 0.95) -> float:
    """Share of normal rows flagged when at least the share ``tpr`` of the anomalies is, in [0, 1]; smaller is better.

    ``labels [rows]``: 1 = anomalous. ``scores [rows]``: ANOMALY scores, larger = more anomalous. Raises as ``auroc``,
    and for a ``tpr`` outside (0, 1].

    >>> fpr_at_tpr([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.5
    """
    if not 0.0 < tpr <= 1.0:
        raise ValueError(f"tpr is a share of the anomalies in (0, 1], got {tpr=}")
    false_positive, true_positive, _ = roc_curve(*_checked(labels, scores), drop_intermediate=False)
    return float(false_positive[true_positive >= tpr].min())


def f1_at_k(labels, scores) -> float:
    """F1 of calling the k highest scores anomalous, k the number of anomalies, in [0, 1]; precision and recall are
    equal there.

    ``labels [rows]``: 1 = anomalous. ``scores [rows]``: ANOMALY scores, larger = more anomalous. Equal scores are taken
    in the order of the rows, so the number is reproducible, but with many ties it depends on that order. Raises as
    ``auroc``.

    >>> f1_at_k([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.5
    """
    labels, scores = _checked(labels, scores)
    return float(labels[np.argsort(-scores, kind="stable")[: labels.sum()]].mean())


def bootstrap_interval(
    metric: Callable, labels, scores, *, seed: int, num_resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval ``(low, high)`` of ``metric(labels, scores)`` over rows.

    Anomalies and normal rows are resampled separately, so both classes stay present and the share of anomalies is kept.
    The interval speaks of other test rows from the same source, not of other training runs. ``scores [rows]``: ANOMALY
    scores, larger = more anomalous.

    Raises:
        ValueError: as ``auroc``, or ``level`` is outside (0, 1) or ``num_resamples < 1``.

    >>> labels, scores = np.repeat([0, 1], 50), np.r_[np.arange(50), np.arange(25, 75)]
    >>> low, high = bootstrap_interval(auroc, labels, scores, seed=0)
    >>> bool(low < auroc(labels, scores) < high)
    True
    """
    labels, scores = _checked(labels, scores)
    resampled = [metric(labels[rows], scores[rows]) for rows in _resamples(labels, seed, num_resamples)]
    return _percentiles(resampled, level)


def paired_bootstrap_interval(
    metric: Callable, labels, scores_a, scores_b, *, seed: int, num_resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of ``metric(labels, scores_a) - metric(labels, scores_b)``, both on the same
    resampled rows.

    Far narrower than two separate intervals, because hard rows are hard for both detectors: if it excludes 0, a is
    better (or worse) than b on rows like these. Resampling, sign and errors as in ``bootstrap_interval``.

    >>> labels, scores = np.repeat([0, 1], 50), np.r_[np.arange(50), np.arange(25, 75)]
    >>> paired_bootstrap_interval(auroc, labels, scores, 2 * scores, seed=0, num_resamples=20)
    (0.0, 0.0)
    """
    labels, scores_a = _checked(labels, scores_a)
    labels, scores_b = _checked(labels, scores_b)
    resampled = [
        metric(labels[rows], scores_a[rows]) - metric(labels[rows], scores_b[rows])
        for rows in _resamples(labels, seed, num_resamples)
    ]
    return _percentiles(resampled, level)


@dataclass(frozen=True)
class WilcoxonResult:
    """``other`` against ``reference`` over data sets; a positive ``mean_difference`` and more wins mean ``other`` is
    larger."""

    mean_difference: float
    wins: int
    ties: int
    losses: int
    p_value: float


def wilcoxon_against(reference, other) -> WilcoxonResult:
    """Two-sided Wilcoxon signed-rank test of a metric over data sets (Demsar 2006), ``other - reference``.

    ``reference, other [datasets]`` hold one metric value per data set in the same order. Equal values count as ties and
    are left out of the test; if all are equal the p value is 1.

    Raises:
        ValueError: the shapes differ, there is no data set, or a value is not finite.

    >>> wilcoxon_against([0.7, 0.8, 0.9, 0.6], [0.7, 0.9, 0.95, 0.7]).wins
    3
    """
    reference, other = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    if reference.ndim != 1 or reference.shape != other.shape or reference.size == 0:
        raise ValueError(
            f"expected two vectors with one value per data set, got shapes {reference.shape} and {other.shape}"
        )
    difference = other - reference
    if not np.isfinite(difference).all():
        raise ValueError(f"values must be finite; look at data sets {np.flatnonzero(~np.isfinite(difference))[:5]}")
    unequal = difference[difference != 0.0]
    return WilcoxonResult(
        mean_difference=float(difference.mean()),
        wins=int((difference > 0.0).sum()),
        ties=int((difference == 0.0).sum()),
        losses=int((difference < 0.0).sum()),
        p_value=float(np.asarray(scipy.stats.wilcoxon(unequal))[1]) if unequal.size else 1.0,
    )


@dataclass(frozen=True)
class CriticalDifference:
    """Mean rank of each method over data sets (1 = best), ``[methods]``, and the difference two of them must exceed."""

    average_ranks: np.ndarray
    critical_difference: float


def critical_difference(values, *, level: float = 0.95, larger_is_better: bool = True) -> CriticalDifference:
    """Average ranks and Nemenyi's critical difference (Demsar 2006): the numbers behind a critical-difference diagram.

    ``values [datasets, methods]`` holds a metric. Methods are ranked within each data set, 1 = best, ties sharing the
    mean rank. Two methods differ at this ``level`` of confidence if their average ranks differ by more than ``q sqrt(m
    (m + 1) / (6 n))``, for m methods on n data sets, with q the studentised range at infinite degrees of freedom over
    the root of 2.

    Raises:
        ValueError: not a matrix of at least one data set and two methods, a value is not finite, or ``level`` is
            outside (0, 1).

    >>> result = critical_difference([[0.9, 0.8, 0.7], [0.9, 0.7, 0.8], [0.8, 0.8, 0.6]])
    >>> result.average_ranks.round(2).tolist(), round(result.critical_difference, 3)
    ([1.17, 2.17, 2.67], 1.914)
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2 or not np.isfinite(values).all():
        raise ValueError(
            f"expected finite values [datasets, methods] of at least two methods, got shape {values.shape}"
        )
    _check_level(level)
    num_datasets, num_methods = values.shape
    ranks = scipy.stats.rankdata(-values if larger_is_better else values, axis=1)
    studentized = scipy.stats.studentized_range.ppf(level, num_methods, np.inf) / np.sqrt(2.0)
    spread = np.sqrt(num_methods * (num_methods + 1) / (6.0 * num_datasets))
    return CriticalDifference(ranks.mean(axis=0), float(studentized * spread))


def _checked(labels, scores) -> tuple[np.ndarray, np.ndarray]:
    """Labels as integers and scores as float64, or a ValueError that says what is wrong and where."""
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(
            f"labels and scores must be vectors of one length, got shapes {labels.shape} and {scores.shape}"
        )
    broken = np.flatnonzero(~np.isfinite(scores))
    if broken.size:
        raise ValueError(
            f"{broken.size} of {scores.size} scores are not finite, first at rows {broken[:5].tolist()}; "
            "find out why the detector gave them, no metric is meaningful until then"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 (normal) or 1 (anomalous), got {np.unique(labels)[:5].tolist()}")
    labels = labels.astype(np.int64)
    if not 0 < labels.sum() < labels.size:
        raise ValueError(f"both classes must be present, got {labels.sum()} anomalies among {labels.size} rows")
    return labels, scores


def _resamples(labels, seed, num_resamples):
    """Row indices of each resample, in increasing order: a metric that breaks ties by index must not see the classes
    sorted."""
    if num_resamples < 1:
        raise ValueError(f"a bootstrap needs at least one resample, got {num_resamples=}")
    generator = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == value) for value in (0, 1)]
    for _ in range(num_resamples):
        yield np.sort(np.concatenate([generator.choice(rows, rows.size) for rows in classes]))


def _percentiles(values, level) -> tuple[float, float]:
    _check_level(level)
    low, high = np.quantile(values, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def _check_level(level):
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is a probability between 0 and 1, got {level=}")
