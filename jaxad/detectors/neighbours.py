"""Distances to the nearest training rows: the k-nearest-neighbour detector and non-parametric diffusion time
estimation."""

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches

from jaxad.detectors.estimator import ThresholdMixin, check_scoring_data, check_training_data

# The threshold needs leave-one-out scores of training rows; this many pin a quantile down, and all pairs of a million
# rows take hours.
MOST_THRESHOLD_ROWS = 20_000
# Elements of the [rows, neighbours, features] block of differences held at once: 64 MiB, however many rows are scored.
BLOCK_ELEMENTS = 2**23

_AGGREGATES = {
    "largest": lambda distances: distances[:, -1],
    "mean": lambda distances: distances.mean(axis=1),
    "median": lambda distances: np.median(distances, axis=1),
}


class KNNDetector(ThresholdMixin, BaseEstimator):
    """Distance to the nearest training rows (Ramaswamy et al. 2000; Angiulli & Pizzuti 2002), the baseline hardest to
    beat.

    ``score_samples`` is *minus* the Euclidean distance to the ``n_neighbors``-th nearest training row
    (``aggregate="largest"``, the default of PyOD and of the ADBench tables), or minus the ``"mean"`` or ``"median"`` of
    the distances to all of them: in ``(-inf, 0]``, larger = more normal. A training row handed to ``score_samples``
    finds itself at distance 0, since a row's score depends on its values alone; the threshold ``offset_`` is set by
    leave-one-out scores (of a seeded sample of 20,000 rows where there are more).

    Args:
        n_neighbors: neighbours asked for; with fewer training rows all but one are used (``n_neighbors_``).
        aggregate: ``"largest"``, ``"mean"`` or ``"median"``.
        standardize: divide each column by its standard deviation in the training rows (a constant column is left as it
            is).
        false_alarm_rate: share of normal rows that ``predict`` may flag, in ``[0, 0.5]``; see ``threshold_from``.

    Raises:
        ValueError: from ``fit``, for settings out of range and for bad data (``check_training_data``).

    >>> detector = KNNDetector(n_neighbors=1).fit([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    >>> detector.score_samples([[0.0, 2.0], [3.0, 1.0]]).tolist()
    [-1.0, -3.0]
    """

    def __init__(self, n_neighbors=5, *, aggregate="largest", standardize=False, false_alarm_rate=0.05):
        self.n_neighbors = n_neighbors
        self.aggregate = aggregate
        self.standardize = standardize
        self.false_alarm_rate = false_alarm_rate

    def fit(self, X, y=None):
        """Keep the training rows ``X [rows, features]``; ``y`` is ignored."""
        if self.aggregate not in _AGGREGATES:
            raise ValueError(f"aggregate must be one of {sorted(_AGGREGATES)}, got {self.aggregate!r}")
        X = check_training_data(self, X)
        left_out = _fit_index(self, X)
        self._calibrate_on(self._score(left_out))
        return self

    def score_samples(self, X) -> np.ndarray:
        """Minus the distance to the training rows, shape ``[rows]``."""
        return self._score(_squared_distances(self, check_scoring_data(self, X)))

    def _score(self, squared_distances):
        return -_AGGREGATES[self.aggregate](np.sqrt(squared_distances))


class DTENonParametric(ThresholdMixin, BaseEstimator):
    """Non-parametric diffusion time estimation (DTE-NP; Livernoche et al., ICLR 2024): how much noise would explain
    this row?

    If a row ``x`` of ``D`` features is a training row plus Gaussian noise of variance v, then v given ``x`` follows an
    inverse gamma distribution with shape ``D/2 - 1`` and scale ``m/2``, where m is the mean of the ``n_neighbors``
    smallest squared distances to the training rows. Its mode is ``m / D``, and ``score_samples = -m / D``: minus the
    most probable noise variance, in squared units of the (standardised) data; in ``(-inf, 0]``, larger = more normal.
    There is nothing to train: it is kNN in the language of diffusion.

    ``official_quirks=True`` follows the authors' code: minus the *step* t in ``0..num_levels-1`` at which the density
    of ``1 - abar_t`` peaks, with ``beta`` rising linearly from 1e-4 to 1e-2. That score is an integer, and every row
    with ``m / D`` beyond the last level's variance (0.78 for 300 levels) ties at ``1 - num_levels``.

    Args:
        n_neighbors: neighbours averaged over; with fewer training rows all but one are used (``n_neighbors_``).
        standardize: divide each column by its standard deviation in the training rows (a constant column is left as it
            is).
        official_quirks: the saturating integer score of the authors' code; needs more than 2 features.
        num_levels: diffusion steps of the quirky score; not used otherwise.
        false_alarm_rate: share of normal rows that ``predict`` may flag, in ``[0, 0.5]``; see ``threshold_from``.

    Raises:
        ValueError: from ``fit``, for settings out of range, bad data, or 2 features and less under ``official_quirks``
            (the shape ``D/2 - 1`` of the inverse gamma distribution would not be positive).

    >>> detector = DTENonParametric(n_neighbors=1, standardize=False).fit([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    >>> detector.score_samples([[0.0, 2.0], [3.0, 1.0]]).tolist()
    [-0.5, -4.5]
    """

    def __init__(
        self, n_neighbors=5, *, standardize=True, official_quirks=False, num_levels=300, false_alarm_rate=0.05
    ):
        self.n_neighbors = n_neighbors
        self.standardize = standardize
        self.official_quirks = official_quirks
        self.num_levels = num_levels
        self.false_alarm_rate = false_alarm_rate

    def fit(self, X, y=None):
        """Keep the training rows ``X [rows, features]``; ``y`` is ignored."""
        X = check_training_data(self, X)
        if self.official_quirks and (X.shape[1] <= 2 or self.num_levels < 2):
            raise ValueError(
                "official_quirks needs at least 3 features and 2 levels, "
                f"got {X.shape[1]} features and num_levels={self.num_levels}; official_quirks=False has no such limit"
            )
        left_out = _fit_index(self, X)
        self._calibrate_on(self._score(left_out))
        return self

    def score_samples(self, X) -> np.ndarray:
        """Minus the most probable noise variance (or step, under ``official_quirks``), shape ``[rows]``."""
        return self._score(_squared_distances(self, check_scoring_data(self, X)))

    def _score(self, squared_distances):
        mean = squared_distances.mean(axis=1)
        if self.official_quirks:
            return -most_probable_step(mean, self.n_features_in_, self.num_levels).astype(np.float64)
        return -mean / self.n_features_in_


def most_probable_step(mean_squared_distance, num_features: int, num_levels: int) -> np.ndarray:
    """The step t in ``0..num_levels-1`` that maximises the inverse gamma density of ``1 - abar_t``; integers
    ``[rows]``.

    The log density of a variance v, up to a constant, is ``-(D/2) log v - (m/2) / v``: it rises up to v = m/D and then
    falls. So step t+1 beats step t exactly if m exceeds a bound that grows with t, and the maximum is the number of
    bounds m exceeds.

    >>> most_probable_step([0.0, 1.0, 1e6], num_features=8, num_levels=300).tolist()
    [0, 86, 299]
    """
    return np.searchsorted(step_bounds(num_features, num_levels), mean_squared_distance, side="left")


def step_bounds(num_features: int, num_levels: int) -> np.ndarray:
    """Mean squared distances, increasing, at which ``most_probable_step`` goes one step up; ``[num_levels - 1]``."""
    variances = 1.0 - np.cumprod(1.0 - np.linspace(1e-4, 1e-2, num_levels))
    return num_features * np.diff(np.log(variances)) / -np.diff(1.0 / variances)


def _fit_index(detector, X) -> np.ndarray:
    """Index the training rows on ``detector``; returns their own squared distances, each row left out of its own
    neighbours."""
    if not isinstance(detector.n_neighbors, (int, np.integer)) or detector.n_neighbors < 1:
        raise ValueError(f"n_neighbors must be a whole number of at least 1, got {detector.n_neighbors!r}")
    detector.n_neighbors_ = min(int(detector.n_neighbors), len(X) - 1)
    # Centring changes no distance and saves digits in |x|^2 - 2xy + |y|^2, by which the index finds the neighbours.
    X = X.astype(np.float64)
    detector.scaler_ = StandardScaler(with_std=detector.standardize).fit(X)
    detector.train_ = detector.scaler_.transform(X)
    detector.index_ = NearestNeighbors().fit(detector.train_)
    own = np.arange(len(X))
    if len(X) > MOST_THRESHOLD_ROWS:
        own = np.sort(np.random.default_rng(0).choice(len(X), MOST_THRESHOLD_ROWS, replace=False))
    return _squared_distances(detector, X[own], own)


def _squared_distances(detector, X, own=None) -> np.ndarray:
    """Squared distances to the nearest training rows, ``[rows, n_neighbors_]``, increasing.

    ``own [rows]`` names the training row that each row *is*, to be left out of its neighbours.
    """
    neighbours, width = detector.n_neighbors_, X.shape[1]
    distances = np.empty((len(X), neighbours))
    for rows in gen_batches(len(X), max(BLOCK_ELEMENTS // (neighbours * width), 1)):
        queries = detector.scaler_.transform(X[rows].astype(np.float64))
        left_out = None if own is None else own[rows]
        distances[rows] = squared_distances(detector.train_, detector.index_, queries, neighbours, left_out)
    return distances


def squared_distances(
    known: np.ndarray, index: NearestNeighbors, queries: np.ndarray, neighbours: int, own: np.ndarray | None = None
) -> np.ndarray:
    """Squared distances from ``queries [rows, features]`` to the nearest rows of ``known``, which ``index`` was fitted on:
    ``[rows, neighbours]``, increasing.

    Taken from differences, not from the index: exact for near-copies, and the same number whatever rows share the batch.
    Holds ``[rows, neighbours, features]`` at once. ``own [rows]`` names the known row that each query *is*, to be left out.
    """
    found = index.kneighbors(queries, neighbours + (own is not None), return_distance=False)
    if own is not None:
        others = np.not_equal(found, own[:, None])
        # A row with many exact copies may not find itself among them: then any one of the copies stands for it.
        others[others.all(axis=1), -1] = False
        found = found[others].reshape(-1, neighbours)
    differences = known[found] - queries[:, None]
    return np.sort(np.einsum("rkd,rkd->rk", differences, differences), axis=1)
