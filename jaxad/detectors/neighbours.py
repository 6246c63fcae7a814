"""Distances to the nearest training rows: the k-nearest-neighbour detector and non-parametric diffusion time
estimation."""

import dataclasses
from dataclasses import field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jaxad.detectors.estimator import Estimator, Learned, in_batches
from jaxad.detectors.scorer import Scorer, root, static
from jaxad.detectors.search import Known, known, squared_distances
from jaxad.standardiser import FAR, Standardiser

# The threshold needs leave-one-out scores of training rows; this many pin a quantile down, and all pairs of a million
# rows take hours.
MOST_THRESHOLD_ROWS = 20_000

_AGGREGATES = {
    "largest": lambda distances: distances[:, -1],
    "mean": lambda distances: jnp.mean(distances, axis=1),
    "median": lambda distances: jnp.median(distances, axis=1),
}


class NeighbourDistance(Scorer):
    """The distance to the k-th nearest known row, or the mean or median of the distances to all k."""

    known: Known
    unit: Float[Array | np.ndarray, ""]
    """Of the distances: rows are divided by it before they come here."""
    neighbours: int = static()
    aggregate: str = static()

    def __call__(self, rows: Float[Array, "batch features"], own=None) -> Float[Array, " batch"]:
        """Distances; ``own [batch]`` leaves that known row out of a row's neighbours."""
        squared = squared_distances(self.known, rows, self.neighbours, own)
        return jnp.asarray(self.unit) * _AGGREGATES[self.aggregate](root(squared))


class MostProbableVariance(Scorer):
    """The noise variance that most probably turned a known row into this one, or with ``bounds`` the step of the authors' code."""

    known: Known
    unit: Float[Array | np.ndarray, ""]
    bounds: Any
    """``step_bounds``, or None."""
    neighbours: int = static()

    def __call__(self, rows: Float[Array, "batch features"], own=None) -> Float[Array, " batch"]:
        """Variances, or steps; ``own [batch]`` leaves that known row out of a row's neighbours."""
        squared = squared_distances(self.known, rows, self.neighbours, own)
        mean = jnp.asarray(self.unit) ** 2 * jnp.mean(squared, axis=1)
        if self.bounds is None:
            return mean / rows.shape[1]
        return jnp.searchsorted(self.bounds, mean, side="left").astype(rows.dtype)


class KNNDetector(Estimator):
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
        false_alarm_rate: share of normal rows that ``predict`` may flag, in ``[0, 0.5]``; see ``calibration.threshold``.

    Raises:
        ValueError: from ``fit``, for settings out of range and for bad data (``check_training_data``).

    >>> detector = KNNDetector(n_neighbors=1).fit([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    >>> detector.score_samples([[0.0, 2.0], [3.0, 1.0]]).tolist()
    [-1.0, -3.0]
    """

    n_neighbors: int = field(default=5, kw_only=False)
    aggregate: str = "largest"
    standardize: bool = False
    false_alarm_rate: float = 0.05

    def _learn(self, X):
        if self.aggregate not in _AGGREGATES:
            raise ValueError(f"aggregate must be one of {sorted(_AGGREGATES)}, got {self.aggregate!r}")
        return _learned(self, X, lambda *found: NeighbourDistance(*found, aggregate=self.aggregate))


class DTENonParametric(Estimator):
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
        false_alarm_rate: share of normal rows that ``predict`` may flag, in ``[0, 0.5]``; see ``calibration.threshold``.

    Raises:
        ValueError: from ``fit``, for settings out of range, bad data, or 2 features and less under ``official_quirks``
            (the shape ``D/2 - 1`` of the inverse gamma distribution would not be positive).

    >>> detector = DTENonParametric(n_neighbors=1, standardize=False).fit([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    >>> detector.score_samples([[0.0, 2.0], [3.0, 1.0]]).tolist()
    [-0.5, -4.5]
    """

    n_neighbors: int = field(default=5, kw_only=False)
    standardize: bool = True
    official_quirks: bool = False
    num_levels: int = 300
    false_alarm_rate: float = 0.05

    def _learn(self, X):
        if self.official_quirks and (X.shape[1] <= 2 or self.num_levels < 2):
            raise ValueError(
                "official_quirks needs at least 3 features and 2 levels, "
                f"got {X.shape[1]} features and num_levels={self.num_levels}; official_quirks=False has no such limit"
            )
        bounds = step_bounds(X.shape[1], self.num_levels) if self.official_quirks else None
        return _learned(self, X, lambda known, unit, count: MostProbableVariance(known, unit, bounds, count))


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


def _learned(detector, X, make) -> Learned:
    """The training rows as a scorer, and their own scores, each row left out of its own neighbours."""
    if not isinstance(detector.n_neighbors, (int, np.integer)) or detector.n_neighbors < 1:
        raise ValueError(f"n_neighbors must be a whole number of at least 1, got {detector.n_neighbors!r}")
    detector.n_neighbors_ = min(int(detector.n_neighbors), len(X) - 1)
    X = X.astype(np.float64)
    standardiser, unit = _scale(X, detector.standardize)
    rows = standardiser(X)
    scorer = make(known(rows), np.float32(unit), detector.n_neighbors_)
    own = np.arange(len(X))
    if len(X) > MOST_THRESHOLD_ROWS:
        own = np.sort(np.random.default_rng(0).choice(len(X), MOST_THRESHOLD_ROWS, replace=False))
    if not detector.standardize:
        return Learned(standardiser, scorer, in_batches(Partial(_left_out, scorer), own[:, None]))
    # A scale that has seen a row makes it look usual, the more the fewer rows and the more columns there are.
    normal, turn = np.empty(len(own)), np.arange(len(own)) % min(25 if len(X) < 2000 else 5, len(own))
    for number in range(turn.max() + 1):
        left_out = own[turn == number]
        without = np.delete(X, left_out, axis=0)
        scaled = Standardiser.fit(without, farthest=FAR)(X)
        of = dataclasses.replace(scorer, known=known(scaled))
        normal[turn == number] = in_batches(Partial(_left_out, of), left_out[:, None])
    return Learned(standardiser, scorer, normal)


def _scale(X, standardize) -> tuple[Standardiser, float]:
    """The scale, and the unit of distances on it."""
    standardiser = Standardiser.fit(X, with_scale=standardize, farthest=FAR)
    if standardize:
        return standardiser, 1.0
    # One unit for all columns keeps the distances what they are, and their squares within float32.
    unit = float(np.sqrt(X.var(axis=0).mean())) or 1.0
    return standardiser._replace(scale=np.full(X.shape[1], unit)), unit


def _left_out(scorer, own):
    own = own[:, 0]
    return scorer(scorer.known.rows[own], own)
