"""Nine views of what is normal that need no training: each turns rows into one distance per row, larger = more anomalous.

    nearest      distance to the nearest training row
    whitened     the same after whitening: directions in which normal rows hardly vary count as much as the others
    ranks        the same between empirical distribution values, column by column: the copula, blind to scale and to far tails
    subspaces    the same, averaged over random pairs and triples of columns
    mahalanobis  length after full whitening, with a shrunk covariance
    conditional  mean absolute residual of a column given all others, for Gaussian data, in units of its spread
    columns      how isolated the values are, each in its column alone; the most isolated ones count most
    tails        how far out in the tails of their columns the values lie, by rank
    outside      how far values lie beyond all of training, added up

The first four see empty regions between normal rows, the next two broken dependencies, the last three odd single values.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.spatial import KDTree
from sklearn.covariance import ledoit_wolf

from jaxad.detectors.scorer import Scorer, root, static
from jaxad.detectors.search import Known, known, padded_size, squared_distances

NAMES = ("nearest", "whitened", "ranks", "subspaces", "mahalanobis", "conditional", "columns", "tails", "outside")

FARTHEST = 10.0
"""Standardised values are cut here before a view sees them, all but the last one: one absurd value must not decide alone."""

COLUMN_NEIGHBOURS = 5
MOST_SCALE_ROWS = 2048
"""Reference rows, left out one by one, that the scale of the columns' isolation is taken from."""

SUBSPACES = 48
MOST_SUBSPACE_ROWS = 2048
SUBSPACE_SCALE_ROWS = 256
"""Pairs and triples of columns, the reference rows they see, and those of them that their scale is taken from."""


class Subspaces(NamedTuple):
    """Random pairs and triples of columns; of a pair the third column is one of the two again, and weighs nothing."""

    which: Int[Array | np.ndarray, "..."]
    """[subspaces, 3] columns."""
    weight: Float[Array | np.ndarray, "..."]
    """[subspaces, 3]: 1, or 0 for a column that is there to fill."""
    rows: Float[Array | np.ndarray, "..."]
    """Ranks of reference rows, [features, rows]; far from all for padding."""
    centre: Float[Array | np.ndarray, "..."]
    scale: Float[Array | np.ndarray, "..."]
    """What is usual in each."""

    def distance(self, ranks: Float[Array, "batch features"]) -> Float[Array, " batch"]:
        """Mean over the subspaces of the distance to the nearest row in it, each on its own scale."""

        def nearest(of):
            which, weight, centre, scale = of
            own, others = ranks.T[which], self.rows[which]
            # Rows of the batch along the last axis, so that a processor takes the minimum of many at once: twenty times as fast.
            squares = sum(weight[i] * (others[i][:, None] - own[i][None]) ** 2 for i in range(3))
            return jnp.arcsinh((root(jnp.min(squares, axis=0)) - centre) / scale)

        return jnp.mean(jax.lax.map(nearest, (self.which, self.weight, self.centre, self.scale)), axis=0)


class Views(Scorer):
    """All nine, fitted, of standardised rows; called, it is their mean."""

    known: Known
    """The training rows as nearest, whitened and ranks see them: with a leading axis of three."""
    subspaces: Subspaces
    columns: Float[Array | np.ndarray, "..."]
    """Training values, [features, rows], each column sorted; infinite behind the last one."""
    rows: Float[Array | np.ndarray, ""]
    """Their number."""
    mean: Float[Array | np.ndarray, "..."]
    whitening: Float[Array | np.ndarray, "..."]
    """[features, features]: ``(x - mean) @ whitening`` has about unit covariance."""
    residual: Float[Array | np.ndarray, "..."]
    """[features, features]: ``(x - mean) @ residual`` are the conditional residuals over their spread."""
    precision: Float[Array | np.ndarray, "..."]
    """[features]: one over that spread."""
    column_centre: Float[Array | np.ndarray, "..."]
    column_scale: Float[Array | np.ndarray, "..."]
    low: Float[Array | np.ndarray, "..."]
    high: Float[Array | np.ndarray, "..."]
    """[2, features]: the least and the largest training value, not cut; below, how far the 1 % and 99 % quantiles lie from the median."""
    column_neighbours: int = static()

    def __call__(self, rows: Float[Array, "batch features"]) -> Float[Array, " batch"]:
        """The mean of the nine distances."""
        return jnp.mean(self.distances(rows), axis=0)

    def distances(self, rows: Float[Array, "batch features"]) -> Float[Array, "9 batch"]:
        """The nine distances of rows that are not in the reference (a row that is finds itself)."""
        beyond = jnp.maximum((self.low[:1] - rows) / self.low[1:], (rows - self.high[:1]) / self.high[1:])
        outside = jnp.sum(jnp.log1p(jnp.maximum(beyond, 0.0)), axis=1)
        rows = jnp.clip(rows, -FARTHEST, FARTHEST)
        centred = rows - self.mean[None]
        low, high = (_places(self.columns, rows, side) for side in ("left", "right"))
        ranks = ((low + high) / (2 * self.rows)).T
        seen = jnp.stack([rows, centred @ self.whitening, ranks])
        # One after the other, by one program: three would take three times as long to compile.
        nearest = jax.lax.map(lambda of: root(squared_distances(of[0], of[1], 1)[:, 0]), (self.known, seen))
        residuals = centred @ self.residual
        mahalanobis = root(jnp.maximum(jnp.sum(residuals * centred * self.precision[None], axis=1), 0.0))
        isolation = isolation_in_columns(self.columns, rows, low, self.column_neighbours)
        isolated = jnp.arcsinh((isolation - self.column_centre[:, None]) / self.column_scale[:, None])
        tail = jnp.log(jnp.maximum(2 * jnp.minimum(ranks, 1 - ranks), 1 / self.rows))
        others = (
            *(self.subspaces.distance(ranks), mahalanobis, jnp.mean(jnp.abs(residuals), axis=1)),
            *(_mean_of_the_most(isolated), jnp.mean(tail**2, axis=1), outside),
        )
        return jnp.concatenate([nearest, jnp.stack(others)])


def _mean_of_the_most(values):
    """A soft maximum over the first axis."""
    return 0.5 * (jax.nn.logsumexp(2 * values, axis=0) - jnp.log(len(values)))


def _places(columns, rows, side):
    """Where the values of rows [batch, features] would be inserted in their columns: [features, batch]."""
    return jax.vmap(lambda column, values: jnp.searchsorted(column, values, side=side))(columns, rows.T)


def isolation_in_columns(columns, rows, places, neighbours: int, own: int = 0) -> Any:
    """Mean distance of every value to the nearest few of its sorted column, [features, batch].

    With ``own=1`` one value equal to it is left out. ``places`` is where they would be inserted, from the left. The nearest values
    lie side by side, so their sum is the least over the windows of so many values around that place. Of NumPy's arrays as of JAX's.
    """
    xp, (features, size), count = columns.__array_namespace__(), columns.shape, neighbours + own
    index = places[:, :, None] + xp.arange(-count, count + 1)[None, None]
    starts = xp.arange(features) * size
    values = columns.reshape(-1)[xp.clip(index, 0, size - 1) + starts[:, None, None]]
    gaps = xp.where((index < 0) | (index >= size), xp.inf, xp.abs(values - rows.T[:, :, None]))
    sums = sum(gaps[:, :, i : i + count + 2] for i in range(count))
    return xp.min(sums, axis=-1) / neighbours


def fit_views(reference: np.ndarray, size: int | None = None) -> Views:
    """Learn the views from standardised rows [rows, features], padded to ``size`` (``search.padded_size``)."""
    whole = np.asarray(reference, np.float32)
    reference = np.clip(whole, -FARTHEST, FARTHEST)
    count, features = reference.shape
    size = padded_size(count) if size is None else size
    mean = reference.mean(axis=0, dtype=np.float64)
    # One row (two training rows, one held out) has no covariance to estimate.
    few = count < 2
    covariance = np.eye(features) if few else ledoit_wolf(reference.astype(np.float64))[0]
    eigenvalues, vectors = np.linalg.eigh(covariance)
    average = max(float(eigenvalues.mean()), 1e-12)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    # A ridge of the mean eigenvalue for distances, a hundredth of it for residuals, which live in the small directions.
    whitening = (vectors / np.sqrt(eigenvalues + average)).astype(np.float32)
    inverse = (vectors / (eigenvalues + 0.01 * average)) @ vectors.T
    precision = np.sqrt(np.diag(inverse))
    columns = np.sort(reference.T, axis=1)
    ranks = np.stack(
        [
            np.searchsorted(column, x, "left") + np.searchsorted(column, x, "right")
            for column, x in zip(columns, reference.T, strict=True)
        ]
    ).T / (2 * count)
    mean = mean.astype(np.float32)
    padded = np.concatenate([columns, np.full((features, size - count), np.inf, np.float32)], axis=1)
    neighbours = min(COLUMN_NEIGHBOURS, count)
    centre, scale = np.zeros(features), np.ones(features)
    if not few:
        sample = np.arange(count)
        if count > MOST_SCALE_ROWS:
            sample = np.random.default_rng(0).choice(count, MOST_SCALE_ROWS, replace=False)
        rows = reference[sample]
        places = np.stack([np.searchsorted(column, x) for column, x in zip(columns, rows.T, strict=True)])
        alone = isolation_in_columns(columns, rows, places, min(COLUMN_NEIGHBOURS, count - 1), own=1)
        centre, scale = centre_and_scale(alone.T, 0.9)
    spaces = [known(space, size) for space in (reference, (reference - mean) @ whitening, ranks)]
    # Not cut: what lies beyond the cut is to be told apart as well.
    ends = np.quantile(whole, [0.0, 0.01, 0.5, 0.99, 1.0], axis=0)
    return Views(
        jax.tree.map(lambda *of: np.stack(of), *spaces),
        _subspaces(ranks, min(size, MOST_SUBSPACE_ROWS)),
        padded,
        np.array(count, np.float32),
        mean,
        whitening,
        (inverse / precision).astype(np.float32),
        precision.astype(np.float32),
        centre.astype(np.float32),
        scale.astype(np.float32),
        np.stack([ends[0], np.maximum(ends[2] - ends[1], 1e-3)]).astype(np.float32),
        np.stack([ends[4], np.maximum(ends[3] - ends[2], 1e-3)]).astype(np.float32),
        neighbours,
    )


def _subspaces(ranks: np.ndarray, size: int) -> Subspaces:
    """Of ranks [rows, features], which are in no order; the first ``size`` of them, padded to ``size``."""
    rng, features = np.random.default_rng(0), ranks.shape[1]
    ranks = ranks[:size]
    which, weight = np.zeros((SUBSPACES, 3), np.int32), np.zeros((SUBSPACES, 3), np.float32)
    alone = np.zeros((min(len(ranks), SUBSPACE_SCALE_ROWS), SUBSPACES))
    for number in range(SUBSPACES):
        chosen = rng.choice(features, min(features, 2 + number % 2), replace=False)
        which[number] = np.resize(chosen, 3)
        weight[number, : len(chosen)] = 1.0
        if len(ranks) > 1:
            own = ranks[:, chosen]
            alone[:, number] = KDTree(own).query(own[:SUBSPACE_SCALE_ROWS], 2)[0][:, 1]
    centre, scale = centre_and_scale(alone, 0.9)
    rows = np.full((features, size), 1e3, np.float32)
    rows[:, : len(ranks)] = ranks.T
    return Subspaces(which, weight, rows, centre.astype(np.float32), scale.astype(np.float32))


def rows_of_distances(views: Views, rows) -> Float[Array, "batch 5"]:
    """``views.distances`` with rows first, as ``in_batches`` wants it."""
    return views.distances(rows).T


def centre_and_scale(normal: np.ndarray, quantile: float) -> tuple[np.ndarray, np.ndarray]:
    """Median and distance from there to ``quantile`` along the first axis: what is usual, and how far normal rows stray upwards.

    Where that distance is nothing (most rows alike) the standard deviation stands in, and 1 where that is nothing too.
    """
    centre, upper = np.quantile(normal, [0.5, quantile], axis=0)
    spread, std = upper - centre, np.std(normal, axis=0)
    tiny = 1e-9 * np.maximum(np.abs(centre), 1.0)
    return centre, np.where(spread > tiny, spread, np.where(std > tiny, std, 1.0))
