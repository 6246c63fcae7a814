"""Two detectors of one formula: the Mahalanobis distance, and the control every table needs, the squared norm of the
row."""

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.covariance import ledoit_wolf
from sklearn.preprocessing import StandardScaler

from jaxad.detectors.estimator import ThresholdMixin, check_scoring_data, check_training_data

# Held-out scores for the threshold come from this many folds: in-sample distances are far too small once features rival
# rows.
FOLDS = 5


class MahalanobisDetector(ThresholdMixin, BaseEstimator):
    """Distance from the mean in units of the training covariance, shrunk after Ledoit & Wolf (2004).

    ``score_samples`` is *minus* the squared Mahalanobis distance: in ``(-inf, 0]``, larger = more normal; about minus
    the number of features for a normal row. For Gaussian data it is the log density up to constants, so the best any
    detector can do there. Works with fewer rows than features and with constant columns: a row that leaves the plane of
    the training rows is far away, never invisible as under a pseudo-inverse.

    Args:
        standardize: divide each column by its standard deviation first; the shrinkage pulls all columns towards one
            variance, so it should not depend on their units.
        false_alarm_rate: share of normal rows that ``predict`` may flag, in ``[0, 0.5]``; the threshold comes from
            5-fold held-out scores.

    Raises:
        ValueError: from ``fit``, for bad data or a rate out of range.

    >>> rows = np.random.default_rng(0).normal(size=(500, 2)) * [1.0, 10.0]
    >>> scores = MahalanobisDetector().fit(rows).score_samples([[0.0, 10.0], [10.0, 0.0]])
    >>> bool(scores[0] > -2.0), bool(scores[1] < -90.0)
    (True, True)
    """

    def __init__(self, *, standardize=True, false_alarm_rate=0.05):
        self.standardize = standardize
        self.false_alarm_rate = false_alarm_rate

    def fit(self, X, y=None):
        """Estimate mean and covariance of ``X [rows, features]``; ``y`` is ignored."""
        X = check_training_data(self, X).astype(np.float64)
        # Every FOLDS-th row, not blocks: files are often sorted, and a block would be scored by rows unlike it.
        fold = np.arange(len(X)) % min(FOLDS, len(X))
        held_out = np.empty(len(X))
        for number in range(fold.max() + 1):
            held_out[fold == number] = -_squared_length(
                *_whitening(X[fold != number], self.standardize), X[fold == number]
            )
        self._calibrate_on(held_out)
        self.location_, self.whitening_ = _whitening(X, self.standardize)
        return self

    def score_samples(self, X) -> np.ndarray:
        """Minus the squared Mahalanobis distance, shape ``[rows]``."""
        X = check_scoring_data(self, X)
        return -_squared_length(self.location_, self.whitening_, X)


class SquaredNorm(ThresholdMixin, BaseEstimator):
    """The control: minus the squared norm of the row as it is given. Nothing is learnt but the threshold.

    It stands in every table because a diffusion detector that has learnt nothing *is* this detector. A network whose
    last layer starts at zero predicts no noise, its reconstruction is the input times a constant, and its error is
    proportional to ``|x|^2``; on standardised columns that already is a fair anomaly score. Published diffusion columns
    have been this number to two decimals: what a detector gains over it is what it learnt.

    Args:
        false_alarm_rate: share of normal rows that ``predict`` may flag, in ``[0, 0.5]``; see ``threshold_from``.

    >>> SquaredNorm().fit([[0.0, 1.0], [1.0, 0.0]]).score_samples([[3.0, 4.0]]).tolist()
    [-25.0]
    """

    def __init__(self, *, false_alarm_rate=0.05):
        self.false_alarm_rate = false_alarm_rate

    def fit(self, X, y=None):
        """Set the threshold by the rows ``X [rows, features]``; ``y`` is ignored."""
        self._calibrate_on(_minus_squared_norm(check_training_data(self, X)))
        return self

    def score_samples(self, X) -> np.ndarray:
        """Minus the squared norm of each row, shape ``[rows]``."""
        return _minus_squared_norm(check_scoring_data(self, X))


def _minus_squared_norm(X):
    return -np.einsum("rd,rd->r", X, X, dtype=np.float64)


def _whitening(X, standardize):
    """Mean ``[features]`` and the matrix ``[features, features]`` that gives the training rows unit covariance."""
    scaler = StandardScaler(with_std=standardize).fit(X)
    # A fold of a two-row table trains on one row, which has no covariance to estimate.
    covariance = ledoit_wolf(scaler.transform(X), assume_centered=True)[0] if len(X) > 1 else np.zeros([X.shape[1]] * 2)
    variances, directions = np.linalg.eigh(covariance)
    # Shrinkage leaves a variance of zero only for a single feature or identical rows: the floor is for them.
    average = variances.mean()
    variances = np.maximum(variances, 1e-9 * average if average > 0.0 else 1.0)
    scale = np.ones(X.shape[1]) if scaler.scale_ is None else np.asarray(scaler.scale_)
    return scaler.mean_, directions / np.sqrt(variances) / scale[:, None]


def _squared_length(location, whitening, X):
    whitened = (X - location) @ whitening
    return np.einsum("rd,rd->r", whitened, whitened)
