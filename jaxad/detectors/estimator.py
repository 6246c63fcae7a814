"""What a detector is, how a threshold turns its scores into labels, and the door every array passes on its way in."""

from collections.abc import Callable
from typing import Protocol, Self, runtime_checkable

import numpy as np
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxad.metrics.calibration import benjamini_hochberg, check_rate, p_values


@runtime_checkable
class Detector(Protocol):
    """Anything with ``fit`` and ``score_samples``; scikit-learn's outlier detectors and pipelines of them are
    detectors.

    **The sign**: ``score_samples`` is *larger for more normal rows*, as everywhere in scikit-learn. The functions of
    ``jaxad.metrics`` take *anomaly* scores, larger for more anomalous rows: hand them ``-detector.score_samples(X)``.

    >>> from sklearn.ensemble import IsolationForest
    >>> isinstance(IsolationForest(), Detector)
    True
    """

    def fit(self, X, y=None) -> Self:
        """Learn what is normal from rows ``X [rows, features]``, forgetting any earlier fit; ``y`` is ignored."""
        ...

    def score_samples(self, X) -> np.ndarray:
        """One finite number per row, ``[rows]``: larger = more normal."""
        ...


class ThresholdMixin(OutlierMixin):
    """``decision_function``, ``predict``, ``p_values`` and ``discoveries`` for a detector whose ``fit`` ends with ``_calibrate_on``.

    The threshold asks for a *false alarm rate*, the share of normal rows one is ready to see flagged, and not for a
    contamination: in the one-class setting the training rows are normal, and the share of anomalies to come is what
    nobody knows.
    """

    score_samples: Callable[..., np.ndarray]
    n_features_in_: int
    false_alarm_rate: float
    offset_: float
    calibration_scores_: np.ndarray

    def _calibrate_on(self, normal_scores) -> None:
        """Threshold and p-values from now on by these ``score_samples`` of normal rows that were not fitted on."""
        self.calibration_scores_ = np.asarray(normal_scores, np.float64)
        self.offset_ = threshold_from(self.calibration_scores_, self.false_alarm_rate)

    def decision_function(self, X) -> np.ndarray:
        """``score_samples(X) - offset_``, shape ``[rows]``: negative for the rows that ``predict`` calls anomalous."""
        # Scoring comes first: on an unfitted detector it raises NotFittedError, where `offset_` would be a bare
        # AttributeError.
        scores = self.score_samples(X)
        return scores - self.offset_

    def predict(self, X, alpha: float | None = None) -> np.ndarray:
        """Integers ``[rows]``: ``+1`` normal, ``-1`` anomalous, which is below ``offset_``, or with ``alpha`` where ``p_values <= alpha``.

        ``alpha`` in [0, 1] is a false alarm rate chosen after ``fit``; nothing is fitted again. 0, and whatever the calibration rows are
        too few to support, flags nothing.
        """
        if alpha is None:
            return np.where(self.decision_function(X) >= 0.0, 1, -1)
        check_rate(alpha)
        return np.where(self.p_values(X) <= alpha, -1, 1)

    def p_values(self, X) -> np.ndarray:
        """Conformal p-values ``[rows]`` in (0, 1]: the chance that a normal row scores so low (``calibration.p_values``).

        The calibration rows are those that ``fit`` has held out or left out one by one (``calibration_scores_``); the least value is
        ``1 / (1 + their number)``. They are valid as far as new normal rows resemble the training rows.
        """
        scores = self.score_samples(X)  # first: unfitted, it raises NotFittedError
        return p_values(self.calibration_scores_, scores)

    def discoveries(self, X, alpha: float = 0.1) -> np.ndarray:
        """The rows of this batch to report, bool ``[rows]``, of which on average at most the share ``alpha`` is normal.

        Benjamini & Hochberg's procedure on the p-values (``calibration.benjamini_hochberg``).
        """
        return benjamini_hochberg(self.p_values(X), alpha)


def threshold_from(normal_scores, false_alarm_rate: float) -> float:
    """The score below which a row is called anomalous, from scores of normal rows that the detector was *not* fitted
    on.

    ``normal_scores [rows]`` are leave-one-out or held-out scores (larger = more normal). The threshold is the k-th
    smallest of them with ``k = max(1, floor(false_alarm_rate * (rows + 1)))``, so a new normal row, exchangeable with
    these, falls strictly below it with probability ``k / (rows + 1)``: at most ``false_alarm_rate``, or ``1 / (rows +
    1)`` where the rows are too few to support that rate. A rate of 0 gives the smallest score (split conformal
    prediction, Vovk et al. 2005).

    Raises:
        ValueError: the rate is outside ``[0, 0.5]``, or there is no score, or one is not finite.

    >>> threshold_from([-5.0, -1.0, -2.0, -3.0], 0.0), threshold_from([-5.0, -1.0, -2.0, -3.0], 0.4)
    (-5.0, -3.0)
    """
    scores = np.asarray(normal_scores, np.float64)
    _check_rate(false_alarm_rate)
    if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
        raise ValueError(
            f"a threshold needs a vector of finite scores, got shape {scores.shape} "
            f"with {np.count_nonzero(~np.isfinite(scores))} non-finite values"
        )
    smallest = max(int(false_alarm_rate * (len(scores) + 1)), 1) - 1
    return float(np.partition(scores, smallest)[smallest])


def check_training_data(detector, X, *, allow_images: bool = False) -> np.ndarray:
    """The rows as a finite float32 or float64 array with at least 2 rows; records their width on ``detector``.

    Sets ``n_features_in_`` (and ``feature_names_in_`` for data frames), as every scikit-learn estimator does. With
    ``allow_images=True`` rows of any rank pass, ``[rows, ...]``, and their shape is kept as ``sample_shape_``. Tables
    of integers become float64, images of integers float32 (which holds every 8- and 16-bit value exactly).

    Raises:
        ValueError: a false alarm rate outside ``[0, 0.5]``; a single row, no column, NaN, infinity, text, sparse or wrongly ranked input.
    """
    _check_rate(
        getattr(detector, "false_alarm_rate", 0.0)
    )  # the threshold comes last, after a training: too late to say this
    X = _as_float(validate_data(detector, X, ensure_min_samples=2, allow_nd=allow_images, dtype="numeric", reset=True))
    if allow_images:
        detector.sample_shape_ = X.shape[1:]
    return X


def check_scoring_data(detector, X) -> np.ndarray:
    """The rows to score as a finite float array, of the width (or ``sample_shape_``) the detector was fitted on.

    Raises:
        NotFittedError: the detector has not been fitted.
        ValueError: rows of another shape, NaN, infinity, text, sparse or no rows.
    """
    check_is_fitted(detector)
    expected = getattr(detector, "sample_shape_", ())
    # validate_data compares axis 1 alone: without this, images of another width pass as long as their height is right.
    if len(expected) > 1 and (shape := np.asarray(X).shape[1:]) != expected:
        raise ValueError(
            f"{type(detector).__name__} was fitted on rows of shape {expected}, got rows of shape {shape}; "
            "resize the rows or fit again"
        )
    return _as_float(validate_data(detector, X, allow_nd=len(expected) > 1, dtype="numeric", reset=False))


def _check_rate(false_alarm_rate):
    # Written so that NaN fails too.
    if not 0.0 <= false_alarm_rate <= 0.5:
        raise ValueError(f"false_alarm_rate is a share of normal rows between 0 and 0.5, got {false_alarm_rate=}")


def _as_float(X) -> np.ndarray:
    """float32 and float64 pass unchanged; other numbers become float64, in images (bytes, and many) float32."""
    X = np.asarray(X)
    if X.dtype in (np.float32, np.float64):
        return X
    return X.astype(np.float32 if X.ndim > 2 else np.float64)
