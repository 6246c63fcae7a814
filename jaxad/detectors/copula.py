"""COPOD and ECOD: how far out in its tails does each column of a row lie? Empirical distribution functions, nothing to
tune."""

from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator

from jaxad.detectors.estimator import ThresholdMixin, check_scoring_data, check_training_data

# A column whose range is below this, relative to its values, is constant: the rest is rounding.
CONSTANT = 1e-12


class COPOD(ThresholdMixin, BaseEstimator):
    """Copula-based outlier detection (Li et al., ICDM 2020): how improbable is each value in its column's tails?

    With ``L = -log F(x)`` and ``R = -log F'(x)``, F the empirical distribution of a column of the training rows and F'
    that of its negative, a row's anomaly is the sum over columns of ``max(A, (L + R) / 2)``; A is L for a column skewed
    to the left, R for one skewed to the right and L + R for a symmetric one. ``score_samples`` is *minus* that sum, in
    nats: in ``(-inf, 0]``, larger = more normal.

    **Inductive by default**: ``F(x) = (#{training values <= x} + 1/2) / (n + 1)`` comes from the training rows alone,
    so a row's score does not depend on the rows scored with it. A column that was constant in training counts 0 for a
    row that keeps the constant and ``log(n + 1)`` for one that does not.

    Args:
        transductive: PyOD's ``decision_function``: distribution and skewness are taken anew from the training rows
            *and* the rows scored, as ``#{values <= x} / n``. Only to reproduce published numbers: a row's score then
            depends on its batch.
        nan_quirk: with ``transductive``, all scores are 0 as soon as one column is constant over training and scored
            rows. This is how COPOD came to an AUROC of exactly 50.00 in published tables: the skewness of a constant
            column was NaN, so every score was NaN, and the evaluation replaced NaN by 0.
        false_alarm_rate: share of normal rows that ``predict`` may flag, in ``[0, 0.5]``; the threshold comes from
            leave-one-out scores (under ``transductive`` from the training rows scored as one batch).

    Raises:
        ValueError: from ``fit``, for settings out of range and for bad data (``check_training_data``).

    >>> detector = COPOD().fit(np.arange(9.0).reshape(-1, 1))
    >>> detector.score_samples([[4.0], [8.0], [99.0]]).round(3).tolist()
    [-1.196, -1.948, -3.047]
    """

    def __init__(self, *, transductive=False, nan_quirk=False, false_alarm_rate=0.05):
        self.transductive = transductive
        self.nan_quirk = nan_quirk
        self.false_alarm_rate = false_alarm_rate

    def fit(self, X, y=None):
        """Sort the columns of ``X [rows, features]``; ``y`` is ignored."""
        return _fit(self, X, _copod)

    def score_samples(self, X) -> np.ndarray:
        """Minus the sum over columns of the tail surprise, shape ``[rows]``."""
        return _score(self, X, _copod)


class ECOD(ThresholdMixin, BaseEstimator):
    """Empirical-cumulative-distribution outlier detection (Li et al., TKDE 2022): COPOD's successor.

    As ``COPOD``, with ``max(L, R, A)`` per column in place of ``max(A, (L + R) / 2)``; the settings, the sign and the
    range are COPOD's.

    >>> detector = ECOD().fit(np.arange(9.0).reshape(-1, 1))
    >>> detector.score_samples([[4.0], [8.0], [99.0]]).round(3).tolist()
    [-1.196, -1.948, -3.047]
    """

    def __init__(self, *, transductive=False, nan_quirk=False, false_alarm_rate=0.05):
        self.transductive = transductive
        self.nan_quirk = nan_quirk
        self.false_alarm_rate = false_alarm_rate

    def fit(self, X, y=None):
        """Sort the columns of ``X [rows, features]``; ``y`` is ignored."""
        return _fit(self, X, _ecod)

    def score_samples(self, X) -> np.ndarray:
        """Minus the sum over columns of the tail surprise, shape ``[rows]``."""
        return _score(self, X, _ecod)


def _copod(left, right, skewed):
    return np.maximum(skewed, (left + right) / 2)


def _ecod(left, right, skewed):
    return np.maximum(np.maximum(left, right), skewed)


@dataclass(frozen=True)
class _Columns:
    """The rows' columns: sorted values ``[rows, features]``, signs of the skewness, and which are constant."""

    ordered: np.ndarray
    skew_sign: np.ndarray
    constant: np.ndarray


def _columns(X) -> _Columns:
    ordered = np.sort(X, axis=0)
    constant = ordered[-1] - ordered[0] <= CONSTANT * np.maximum(1.0, np.abs(ordered).max(axis=0))
    deviation = X - X.mean(axis=0)
    deviation /= np.where(constant, 1.0, np.abs(deviation).max(axis=0))
    third_moment = np.mean(deviation**3, axis=0)
    # Scaled to 1, a third moment below 1e-12 is rounding in a symmetric column, and its sign a coin toss.
    symmetric = constant | (np.abs(third_moment) < CONSTANT)
    return _Columns(ordered, np.where(symmetric, 0.0, np.sign(third_moment)), constant)


def _anomaly(columns: _Columns, X, combine, *, smoothing: float, own: int = 0) -> np.ndarray:
    """Sum over columns of ``combine(L, R, A)``, ``[rows]``; ``own=1`` leaves each training row out of the distribution
    it is held to."""
    rows = len(columns.ordered) - own
    total = np.zeros(len(X))
    for ordered, skew_sign, constant, values in zip(
        columns.ordered.T, columns.skew_sign, columns.constant, X.T, strict=True
    ):
        if constant:
            moved = np.abs(values - ordered[0]) > CONSTANT * max(1.0, abs(ordered[0]))
            total += moved * np.log(rows + 1)
            continue
        at_most = np.searchsorted(ordered, values, side="right")
        at_least = len(ordered) - np.searchsorted(ordered, values, side="left")
        left, right = (-np.log((n - own + smoothing) / (rows + 2 * smoothing)) for n in (at_most, at_least))
        skewed = left * (skew_sign <= 0) + right * (skew_sign >= 0)
        total += combine(left, right, skewed)
    return total


def _fit(detector, X, combine):
    if detector.nan_quirk and not detector.transductive:
        raise ValueError("nan_quirk reproduces a fault of the transductive form: it needs transductive=True")
    X = check_training_data(detector, X).astype(np.float64)
    if detector.transductive:
        detector.train_ = X
        normal_scores = -_transductive_anomaly(X, combine, detector.nan_quirk)
    else:
        detector.columns_ = _columns(X)
        normal_scores = -_anomaly(detector.columns_, X, combine, smoothing=0.5, own=1)
    detector._calibrate_on(normal_scores)
    return detector


def _score(detector, X, combine):
    X = check_scoring_data(detector, X).astype(np.float64)
    if not detector.transductive:
        return -_anomaly(detector.columns_, X, combine, smoothing=0.5)
    together = np.concatenate([detector.train_, X])
    return -_transductive_anomaly(together, combine, detector.nan_quirk)[len(detector.train_) :]


def _transductive_anomaly(X, combine, nan_quirk):
    """Every row held to the distribution of all of them, itself included."""
    columns = _columns(X)
    if nan_quirk and columns.constant.any():
        return np.zeros(len(X))
    return _anomaly(columns, X, combine, smoothing=0.0)
