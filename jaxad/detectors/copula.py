"""COPOD and ECOD: how far out in its tails does each column of a row lie? Empirical distribution functions, nothing to
tune."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.utils.validation import check_is_fitted

from jaxad.detectors.estimator import Estimator, Learned, check_scoring_data, in_batches, on_device
from jaxad.detectors.scorer import Scorer, static
from jaxad.detectors.search import padded_size
from jaxad.standardiser import FAR, Standardiser

# A column whose range is below this, relative to its values, is constant: the rest is rounding.
CONSTANT = 1e-12


class Tails(Scorer):
    """The sum over columns of how improbable a value is in its column's tails, in nats."""

    ordered: Float[Array | np.ndarray, "..."]
    """Training values, standardised, [features, rows], each column sorted; infinite behind the last one."""
    skew_sign: Float[Array | np.ndarray, "..."]
    constant: Float[Array | np.ndarray, "..."]
    """1 for a column that was constant in training, else 0."""
    rows: Float[Array | np.ndarray, ""]
    left_out: Float[Array | np.ndarray, ""]
    """1 while training rows are scored, each left out of the distribution that it is held to."""
    smoothing: Float[Array | np.ndarray, ""]
    larger_tail: bool = static()
    """ECOD's: the larger of both tails counts, not their mean."""

    def __call__(self, rows: Float[Array, "batch features"]) -> Float[Array, " batch"]:
        """Sums of surprise."""
        low, high = (
            jax.vmap(lambda column, values, side=side: jnp.searchsorted(column, values, side=side))(
                self.ordered, rows.T
            )
            for side in ("left", "right")
        )
        count = self.rows - self.left_out
        left, right = (
            -jnp.log((n - self.left_out + self.smoothing) / (count + 2 * self.smoothing))
            for n in (high, self.rows - low)
        )
        sign = self.skew_sign[:, None]
        skewed = left * (sign <= 0) + right * (sign >= 0)
        tail = jnp.maximum(left, right) if self.larger_tail else (left + right) / 2
        moved = (jnp.abs(rows.T - self.ordered[:, :1]) > CONSTANT) * jnp.log(count + 1)
        return jnp.sum(jnp.where(self.constant[:, None] > 0, moved, jnp.maximum(tail, skewed)), axis=0)


class COPOD(Estimator):
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

    transductive: bool = False
    nan_quirk: bool = False
    false_alarm_rate: float = 0.05

    _larger_tail = False

    def _learn(self, X):
        if self.nan_quirk and not self.transductive:
            raise ValueError("nan_quirk reproduces a fault of the transductive form: it needs transductive=True")
        X = X.astype(np.float64)
        standardiser, scorer = _tails(X, self._larger_tail)
        if self.transductive:
            self.train_ = X
            # A row's score depends on the rows scored with it: there is no scorer of single rows.
            return Learned(standardiser, None, -_together(X, self._larger_tail, self.nan_quirk))
        left_out = dataclasses.replace(scorer, left_out=np.float32(1))
        return Learned(standardiser, scorer, in_batches(left_out, X, prepare=standardiser))

    def score_samples(self, X) -> np.ndarray:
        """Minus the sum over columns of the tail surprise, shape ``[rows]``."""
        if not self.transductive:
            return super().score_samples(X)
        check_is_fitted(self)
        both = np.concatenate([self.train_, check_scoring_data(self, X).astype(np.float64)])
        return _together(both, self._larger_tail, self.nan_quirk)[len(self.train_) :]


class ECOD(COPOD):
    """Empirical-cumulative-distribution outlier detection (Li et al., TKDE 2022): COPOD's successor.

    As ``COPOD``, with ``max(L, R, A)`` per column in place of ``max(A, (L + R) / 2)``; the settings, the sign and the
    range are COPOD's.

    >>> detector = ECOD().fit(np.arange(9.0).reshape(-1, 1))
    >>> detector.score_samples([[4.0], [8.0], [99.0]]).round(3).tolist()
    [-1.196, -1.948, -3.047]
    """

    _larger_tail = True


def _tails(X, larger_tail, *, smoothing=0.5) -> tuple[Standardiser, Tails]:
    """The columns' distributions. Ranks are the same in any unit, and equal values stay equal as they go through the same arithmetic."""
    ordered = np.sort(X, axis=0)
    constant = ordered[-1] - ordered[0] <= CONSTANT * np.maximum(1.0, np.abs(ordered).max(axis=0))
    deviation = X - X.mean(axis=0)
    deviation /= np.where(constant, 1.0, np.abs(deviation).max(axis=0))
    third_moment = np.mean(deviation**3, axis=0)
    # Scaled to 1, a third moment below 1e-12 is rounding in a symmetric column, and its sign a coin toss.
    symmetric = constant | (np.abs(third_moment) < CONSTANT)
    # A constant column in units of itself: what leaves it by a share of 1e-12 has moved.
    standardiser = Standardiser(
        np.where(constant, ordered[0], X.mean(axis=0)),
        np.where(constant, np.maximum(1.0, np.abs(ordered[0])), np.where(constant, 1.0, X.std(axis=0))),
        FAR,
    )
    columns = standardiser(ordered).T
    columns = np.concatenate(
        [columns, np.full((len(columns), padded_size(len(X)) - len(X)), np.inf, np.float32)], axis=1
    )
    numbers = (np.array(number, np.float32) for number in (len(X), 0, smoothing))
    sign = np.where(symmetric, 0.0, np.sign(third_moment)).astype(np.float32)
    return standardiser, Tails(columns, sign, constant.astype(np.float32), *numbers, larger_tail=larger_tail)


def _together(X, larger_tail, nan_quirk) -> np.ndarray:
    """Minus the anomaly of every row held to the distribution of all of them, itself included."""
    standardiser, scorer = _tails(X, larger_tail, smoothing=0.0)
    if nan_quirk and np.any(scorer.constant):
        return np.zeros(len(X))
    return -in_batches(on_device(scorer), X, prepare=standardiser).astype(np.float64)
