"""Two detectors of one formula: the Mahalanobis distance, and the control every table needs, the squared norm of the
row."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.covariance import ledoit_wolf

from jaxad.detectors.estimator import Estimator, Learned, in_batches
from jaxad.detectors.scorer import Scorer
from jaxad.standardiser import FAR, Standardiser

# Held-out scores for the threshold come from this many folds: in-sample distances are far too small once features rival
# rows.
FOLDS = 5


class SquaredLength(Scorer):
    """``|rows @ whitening|^2``; with a number in place of the matrix ``|whitening rows|^2``."""

    whitening: Float[Array | np.ndarray, "..."]

    def __call__(self, rows: Float[Array, "batch features"]) -> Float[Array, " batch"]:
        """Squared lengths."""
        return jnp.sum((rows * self.whitening if self.whitening.ndim == 0 else rows @ self.whitening) ** 2, axis=1)


class MahalanobisDetector(Estimator):
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

    standardize: bool = True
    false_alarm_rate: float = 0.05

    def _learn(self, X):
        X = X.astype(np.float64)
        # Every FOLDS-th row, not blocks: files are often sorted, and a block would be scored by rows unlike it.
        fold = np.arange(len(X)) % min(FOLDS, len(X))
        held_out = np.empty(len(X))
        for number in range(fold.max() + 1):
            without = _whitened(X[fold != number], self.standardize)
            held_out[fold == number] = in_batches(without.scorer, X[fold == number], prepare=without.standardiser)
        return _whitened(X, self.standardize)._replace(normal=held_out)


class SquaredNorm(Estimator):
    """The control: minus the squared norm of the row as it is given. Nothing is learnt but the threshold.

    It stands in every table because a diffusion detector that has learnt nothing *is* this detector. A network whose
    last layer starts at zero predicts no noise, its reconstruction is the input times a constant, and its error is
    proportional to ``|x|^2``; on standardised columns that already is a fair anomaly score. Published diffusion columns
    have been this number to two decimals: what a detector gains over it is what it learnt.

    Args:
        false_alarm_rate: share of normal rows that ``predict`` may flag, in ``[0, 0.5]``; see ``calibration.threshold``.

    >>> SquaredNorm().fit([[0.0, 1.0], [1.0, 0.0]]).score_samples([[3.0, 4.0]]).tolist()
    [-25.0]
    """

    false_alarm_rate: float = 0.05

    def _learn(self, X):
        standardiser, scorer = Standardiser.nothing(X), SquaredLength(np.ones((), np.float32))
        return Learned(standardiser, scorer, in_batches(scorer, X, prepare=standardiser))


def _whitened(X, standardize) -> Learned:
    """Mean, spread, and the matrix ``[features, features]`` that gives the training rows unit covariance."""
    standardiser = Standardiser.fit(X, with_scale=standardize, farthest=FAR)
    rows = (X - standardiser.mean) / standardiser.scale
    # A fold of a two-row table trains on one row, which has no covariance to estimate.
    covariance = ledoit_wolf(rows, assume_centered=True)[0] if len(X) > 1 else np.zeros([X.shape[1]] * 2)
    variances, directions = np.linalg.eigh(covariance)
    # Shrinkage leaves a variance of zero only for a single feature or identical rows: the floor is for them.
    average = variances.mean()
    variances = np.maximum(variances, 1e-9 * average if average > 0.0 else 1.0)
    # Without standardize a column may have any unit; taken out of the matrix, what is left is of order one.
    scale = np.sqrt(np.diag(covariance)) if not standardize else np.ones(X.shape[1])
    scale = np.where(scale > 0, scale, 1.0)
    whitening = scale[:, None] * directions / np.sqrt(variances)
    standardiser = standardiser._replace(scale=standardiser.scale * scale)
    return Learned(standardiser, SquaredLength(whitening.astype(np.float32)), np.zeros(0))
