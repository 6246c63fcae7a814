"""A detector behind PyOD's attributes and signs, for code that was written against them."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import KFold
from sklearn.utils.validation import check_is_fitted


class PyODDetector(BaseEstimator):
    """Any detector with ``score_samples``, as PyOD shows its own: larger scores are more anomalous, labels are 0 (normal) and 1.

    Unlike PyOD's, ``contamination`` may be 0, and ``threshold_`` and ``labels_`` follow it when it is changed after ``fit``.
    ``decision_scores_`` are those of the training rows by detectors that have not seen them (``cv`` folds), because a training row
    scored again finds itself.

    Args:
        detector: unfitted; it is cloned.
        contamination: share of the training rows to label 1, between 0 and 0.5.
        cv: folds for the training scores.

    Attributes:
        detector_: fitted on all rows.
        decision_scores_: ``[rows]``, out of fold.
        threshold_, labels_: the ``1 - contamination`` quantile of ``decision_scores_``, and which of them lie above.

    Raises:
        ValueError: from ``fit``: contamination out of range, fewer rows than folds, and whatever the detector refuses.

    >>> from jaxad import KNNDetector
    >>> rows = np.random.default_rng(0).normal(size=(50, 2))
    >>> face = PyODDetector(KNNDetector(), contamination=0.1).fit(rows)
    >>> int(face.labels_.sum()), face.predict([[0.0, 0.0], [9.0, 9.0]]).tolist()
    (5, [0, 1])
    >>> int(face.set_params(contamination=0.0).labels_.sum())
    0
    """

    def __init__(self, detector: Any, *, contamination=0.05, cv=5):
        self.detector = detector
        self.contamination = contamination
        self.cv = cv

    def fit(self, X, y=None):
        """Learn from rows ``X [rows, features]``; ``y`` is ignored."""
        if not 0.0 <= self.contamination <= 0.5:
            raise ValueError(
                f"contamination is a share of the training rows between 0 and 0.5, got {self.contamination}"
            )
        self.detector_ = self._unfitted().fit(X)
        X = np.asarray(X)
        self.decision_scores_ = np.empty(len(X))
        for learned, left_out in KFold(self.cv, shuffle=True, random_state=0).split(X):
            self.decision_scores_[left_out] = -self._unfitted().fit(X[learned]).score_samples(X[left_out])
        return self

    def _unfitted(self) -> Any:
        return clone(self.detector)

    @property
    def threshold_(self) -> float:
        check_is_fitted(self, "decision_scores_")
        return float(np.quantile(self.decision_scores_, 1.0 - self.contamination))

    @property
    def labels_(self) -> np.ndarray:
        return (self.decision_scores_ > self.threshold_).astype(int)

    def decision_function(self, X) -> np.ndarray:
        """Anomaly scores ``[rows]``, larger = more anomalous."""
        check_is_fitted(self, "decision_scores_")
        return -np.asarray(self.detector_.score_samples(X), np.float64)

    def predict(self, X) -> np.ndarray:
        """``[rows]``: 1 above ``threshold_``, else 0."""
        return (self.decision_function(X) > self.threshold_).astype(int)

    def predict_proba(self, X) -> np.ndarray:
        """``[rows, 2]``: chance of normal and of anomalous, by scaling scores linearly from the least to the largest training score."""
        scores, known = self.decision_function(X), self.decision_scores_
        anomalous = np.clip((scores - known.min()) / max(np.ptp(known), np.finfo(float).tiny), 0.0, 1.0)
        return np.stack([1.0 - anomalous, anomalous], axis=1)
