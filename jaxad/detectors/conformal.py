"""Any detector, calibrated on rows it was not fitted on: what its scores mean, held out once or in turns."""

from collections.abc import Callable
from dataclasses import field
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from jaxad.detectors.estimator import (
    Detector,
    Estimator,
    check_scoring_data,
    check_training_data,
    rescaled,
)
from jaxad.detectors.scorer import Average
from jaxad.metrics.calibration import benjamini_hochberg, check_rate, cross_p_values, finite, threshold


class CrossFit(NamedTuple):
    """Detector k was fitted without fold k; the ``fold`` of each row, and its ``scores`` by that detector: both ``[rows]``."""

    detectors: list
    fold: np.ndarray
    scores: np.ndarray


def cross_conformal(make_detector: Callable[[], Detector], X, *, folds: int = 5, random_state=0) -> CrossFit:
    """Fit without each fold in turn, so that every row trains and every row calibrates (Vovk 2015): where rows are too few to set aside.

    ``make_detector()`` gives a new unfitted detector, ``X [rows, ...]`` are normal rows. Equal rows are in one fold, or their copies would
    let the detector recognise them; with fewer distinct rows than ``folds`` there are fewer folds. ``cross_p_values`` judges new rows.
    Raises ValueError for ``folds < 2``, fewer than two distinct rows, and scores that are not finite.

    >>> from sklearn.mixture import GaussianMixture
    >>> fit = cross_conformal(GaussianMixture, np.random.default_rng(0).normal(size=(40, 2)))
    >>> scores = [detector.score_samples([[0.0, 0.0], [4.0, 4.0]]) for detector in fit.detectors]
    >>> cross_p_values([fit.scores[fit.fold == k] for k in range(5)], scores).round(3).tolist()
    [0.976, 0.024]
    """
    X = np.asarray(X)
    if folds < 2:
        raise ValueError(f"every row is left out once, which takes at least 2 folds, got {folds=}")
    group = _equal_rows(X)
    fold = (check_random_state(random_state).permutation(group.max() + 1) % min(folds, group.max() + 1))[group]
    detectors, scores = [], np.empty(len(X))
    for k in range(fold.max() + 1):
        detectors.append(make_detector().fit(X[fold != k]))
        scores[fold == k] = detectors[k].score_samples(X[fold == k])
    return CrossFit(detectors, fold, finite(scores, "score_samples"))


class ConformalDetector(Estimator):
    """Any detector, and what its scores mean: p-values, a rate of false alarms to be chosen afterwards, discoveries in a batch.

    No anomaly is needed. The promises are for *new* rows: those that trained look more normal than they are, ``fit_predict`` flags few.

    Args:
        detector: jaxad's or scikit-learn's (``LocalOutlierFactor(novelty=True)``, pipelines): what has ``fit`` and ``score_samples``. A
            clone is fitted; nested settings are ``detector__...``.
        method: ``"split"`` fits once, without the rows held out: a normal row is flagged with probability at most ``alpha``, exactly.
            ``"cross"`` fits ``folds`` times and calibrates by all rows, for some hundred rows and less; its guarantee is that of
            ``cross_p_values``, its ``score_samples`` the mean over the detectors.
        alpha: share of normal rows that ``predict`` may flag, in [0, 1]. It may change after ``fit``, which does not depend on it.
        holdout: share of the rows that ``"split"`` calibrates by, in (0, 1). Equal rows stay on one side.
        folds: detectors that ``"cross"`` fits.
        random_state: seed of the split or the folds; the detector has its own.

    Attributes:
        detectors_, calibration_scores_: the fitted detectors, by ``"split"`` one, and for each its scores of the rows it has not seen.
        scorer_: of detectors that have one, by ``"cross"`` their ``Average``; else None.

    Raises:
        ValueError: from ``fit``: settings out of range, no ``score_samples``, bad data, fewer than two distinct rows.

    >>> from sklearn.ensemble import IsolationForest
    >>> model = ConformalDetector(IsolationForest(random_state=0)).fit(np.random.default_rng(0).normal(size=(500, 2)))
    >>> rows = [[0.0, 0.0], [5.0, 5.0]]
    >>> model.predict(rows).tolist(), model.predict(rows, alpha=0.001).tolist(), model.discoveries(rows).tolist()
    ([1, -1], [1, 1], [False, True])
    >>> model.p_values(rows)[1] == 1 / 101  # 100 rows calibrate: the least p-value
    np.True_
    """

    detector: Any = field(kw_only=False)
    method: str = "split"
    alpha: float = 0.05
    holdout: float = 0.2
    folds: int = 5
    random_state: Any = 0

    def fit(self, X, y=None):
        """Fit on normal rows ``X [rows, ...]`` and keep the scores of those left out; ``y`` is ignored."""
        # Not isinstance(..., Detector): that asks the class, and LocalOutlierFactor's has what its object may lack.
        if not all(hasattr(self.detector, method) for method in ("fit", "score_samples")):
            raise ValueError(f"need fit and score_samples (scikit-learn's LOF: novelty=True), got {self.detector!r}")
        if self.method not in ("split", "cross") or not 0.0 < self.holdout < 1.0:
            raise ValueError(f"need method 'split' or 'cross', 0 < holdout < 1, got {self.method!r}, {self.holdout=}")
        check_rate(self.alpha)
        X = check_training_data(self, X, allow_images=True)
        if self.method == "cross":
            fit = cross_conformal(self._unfitted, X, folds=self.folds, random_state=self.random_state)
            self.detectors_ = fit.detectors
            self.calibration_scores_ = [fit.scores[fit.fold == k] for k in range(len(fit.detectors))]
        else:
            held_out = _held_out(X, self.holdout, self.random_state)
            self.detectors_ = [self._unfitted().fit(X[~held_out])]
            self.calibration_scores_ = self._scores(X[held_out])[0]
        self.standardiser_, self.scorer_ = _one_scorer(self.detectors_)
        pooled = np.concatenate(
            np.atleast_2d(self.calibration_scores_) if self.method == "split" else self.calibration_scores_
        )
        # At a rate of 1 everything is flagged: by a number that can be saved.
        self.offset_ = min(threshold(pooled, self.alpha), np.finfo(np.float64).max)
        return self

    def score_samples(self, X) -> np.ndarray:
        """The wrapped detector's scores ``[rows]``, larger = more normal; by ``"cross"`` their mean over the detectors."""
        return np.mean(self._scores_of_new(X), axis=0)

    def p_values(self, X) -> np.ndarray:
        """Conformal p-values ``[rows]`` in ``(0, 1]``, small for anomalies: those of the functions ``p_values`` and ``cross_p_values``."""
        scores = self._scores_of_new(X)  # first: unfitted, it raises NotFittedError
        known = self.calibration_scores_
        return cross_p_values([known] if isinstance(known, np.ndarray) else known, scores)

    def predict(self, X, alpha: float | None = None) -> np.ndarray:
        """Integers ``[rows]``: ``-1`` where ``p <= alpha``, else ``+1``; None takes the setting. Nothing is fitted again."""
        alpha = self.alpha if alpha is None else alpha
        check_rate(alpha)
        return np.where(self.p_values(X) <= alpha, -1, 1)

    def discoveries(self, X, alpha: float = 0.1) -> np.ndarray:
        """The rows of this batch to report, bool ``[rows]``: ``benjamini_hochberg`` of their p-values, by ``"cross"`` without its proof."""
        return benjamini_hochberg(self.p_values(X), alpha)

    def _unfitted(self) -> Any:
        return clone(self.detector)

    def _scores_of_new(self, X):
        check_is_fitted(self)
        return self._scores(check_scoring_data(self, X))

    def _scores(self, X):
        return [finite(detector.score_samples(X), "score_samples") for detector in self.detectors_]


def _one_scorer(detectors) -> tuple[Any, Any]:
    """``(scale, scorer)`` of all of them together; ``(None, None)`` where one has none."""
    if any(getattr(detector, "scorer_", None) is None for detector in detectors):
        return None, None
    scale = detectors[0].standardiser_
    if len(detectors) == 1:
        return scale, detectors[0].scorer_
    return scale, Average(tuple(rescaled(each.scorer_, each.standardiser_, scale) for each in detectors))


def _held_out(X, share, random_state) -> np.ndarray:
    """Bool ``[rows]``: about this share of them, equal rows together, at least one group on either side."""
    group = _equal_rows(X)
    order = check_random_state(random_state).permutation(group.max() + 1)
    sizes = np.bincount(group)[order]
    chosen = np.cumsum(sizes) - sizes < share * len(X)
    chosen[-1] = False
    return np.isin(group, order[chosen])


def _equal_rows(X) -> np.ndarray:
    """A number per row ``[rows]``, from 0, the same for equal rows."""
    group = np.unique(X.reshape(len(X), -1), axis=0, return_inverse=True)[1].ravel()
    if not group.any():
        raise ValueError(f"some rows train and others calibrate: need 2 distinct rows, got {len(X)} equal ones")
    return group
