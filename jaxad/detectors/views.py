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

Rows may have categories and gaps (``layout.Layout``). Distances are between completed wide rows, in which a gap holds what is expected
given the rest; what is said of single columns is a mean over those that are there. A category counts by how rare its level is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.spatial import KDTree
from sklearn.covariance import ledoit_wolf

from jaxad.detectors.layout import HEIGHT, Layout, complete, covariance_of
from jaxad.detectors.scorer import Scorer, root, static
from jaxad.detectors.search import Known, known, padded_size, squared_distances

NAMES = ("nearest", "whitened", "ranks", "subspaces", "mahalanobis", "conditional", "columns", "tails", "outside")

FARTHEST = 10.0
"""Standardised values are cut here before a view sees them, all but the last one: one absurd value must not decide alone."""

UNSEEN = 2.0
"""A level that was never seen lies so many spreads outside."""

UNLIKE = 1 / 3
RANK_HEIGHT = (UNLIKE / 2) ** 0.5
"""The squared distance between levels among ranks, and the height of a one-hot code that gives it: two ranks at random lie a sixth apart,
squared, and so do levels of which half are unlike."""

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
    """[subspaces, 3]: 1, less for a category, or 0 for a column that is there to fill."""
    rows: Float[Array | np.ndarray, "..."]
    """Ranks of reference rows, [features, rows]; far from all for padding."""
    centre: Float[Array | np.ndarray, "..."]
    scale: Float[Array | np.ndarray, "..."]
    """What is usual in each."""

    @staticmethod
    def apart(difference):
        """Squared, at most 1: of ranks it is no more, and all levels of a category lie equally far apart."""
        return jnp.minimum(difference * difference, 1.0)

    def distance(self, ranks: Float[Array, "batch features"]) -> Float[Array, " batch"]:
        """Mean over the subspaces of the distance to the nearest row in it, each on its own scale."""

        def nearest(of):
            which, weight, centre, scale = of
            own, others = ranks.T[which], self.rows[which]
            # Rows of the batch along the last axis, so that a processor takes the minimum of many at once: twenty times as fast.
            squares = sum(weight[i] * self.apart(others[i][:, None] - own[i][None]) for i in range(3))
            return jnp.arcsinh((root(jnp.min(squares, axis=0)) - centre) / scale)

        return jnp.mean(jax.lax.map(nearest, (self.which, self.weight, self.centre, self.scale)), axis=0)


class Views(Scorer):
    """All nine, fitted, of standardised rows; called, it is their mean."""

    known: Known
    """The training rows, wide, as nearest, whitened and ranks see them: with a leading axis of three."""
    subspaces: Subspaces
    columns: Float[Array | np.ndarray, "..."]
    """Training values of the numbers, [numbers, rows], each column sorted; infinite behind the last one."""
    rows: Float[Array | np.ndarray, "..."]
    """Their number; with gaps, of each column, [numbers, 1]."""
    mean: Float[Array | np.ndarray, "..."]
    whitening: Float[Array | np.ndarray, "..."]
    """[wide, wide]: ``(x - mean) @ whitening`` has about unit covariance."""
    residual: Float[Array | np.ndarray, "..."]
    """[wide, wide]: ``(x - mean) @ residual`` are the conditional residuals over their spread."""
    precision: Float[Array | np.ndarray, "..."]
    """[wide]: one over that spread."""
    column_centre: Float[Array | np.ndarray, "..."]
    column_scale: Float[Array | np.ndarray, "..."]
    low: Float[Array | np.ndarray, "..."]
    high: Float[Array | np.ndarray, "..."]
    """[2, numbers]: the least and the largest training value, not cut; below, how far the 1 % and 99 % quantiles lie from the median."""
    column_neighbours: int = static()
    layout: Layout | None = static(default=None)
    """None: numbers without gaps."""
    levels: Float[Array | np.ndarray, "..."] | None = None
    """[3, categories, places]: how isolated, in what tail and how far outside a level is; 0 for those of other categories."""

    def __call__(self, rows: Float[Array, "batch features"]) -> Float[Array, " batch"]:
        """The mean of the nine distances."""
        return jnp.mean(self.distances(rows), axis=0)

    def distances(self, rows: Float[Array, "batch features"]) -> Float[Array, "9 batch"]:
        """The nine distances of rows that are not in the reference (a row that is finds itself)."""
        layout = self.layout
        numbers = rows if layout is None else rows[:, layout.numbers]
        beyond = jnp.maximum((self.low[:1] - numbers) / self.low[1:], (numbers - self.high[:1]) / self.high[1:])
        wide, centred, there = self.completed(rows)
        numbers = wide[:, : numbers.shape[1]]
        low, high = (_places(self.columns, numbers, side) for side in ("left", "right"))
        ranks = (low + high) / (2 * self.rows)
        hot = wide[:, numbers.shape[1] :]
        seen = jnp.stack(
            [wide, centred @ self.whitening, jnp.concatenate([ranks.T, hot * (RANK_HEIGHT / HEIGHT)], axis=1)]
        )
        # One after the other, by one program: three would take three times as long to compile.
        nearest = jax.lax.map(lambda of: root(squared_distances(of[0], of[1], 1)[:, 0]), (self.known, seen))
        residuals = centred @ self.residual
        mahalanobis = root(jnp.maximum(jnp.sum(residuals * centred * self.precision[None], axis=1), 0.0))
        isolation = isolation_in_columns(self.columns, numbers, low, self.column_neighbours)
        isolated = jnp.arcsinh((isolation - self.column_centre[:, None]) / self.column_scale[:, None])
        tail = jnp.log(jnp.maximum(2 * jnp.minimum(ranks, 1 - ranks), 1 / self.rows))
        # Of each column, [columns, batch].
        single = jnp.stack([isolated, tail**2, jnp.log1p(jnp.maximum(beyond, 0.0)).T])
        places = ranks.T
        if layout is not None:
            single = jnp.where(jnp.isfinite(single), single, 0.0)
            single = jnp.concatenate([single, jnp.einsum("scp,bp->scb", self.levels, layout.hot(rows))], axis=1)
            codes = layout.codes(rows)
            places = jnp.concatenate([places, jnp.where(jnp.isnan(codes), 0.0, codes)], axis=1)
        in_columns = None if layout is None or there is None else ~jnp.isnan(rows[:, layout.order]).T
        isolated, tail, outside = single
        others = (
            *(self.subspaces.distance(places), mahalanobis),
            _mean_of(jnp.abs(residuals).T, there),
            _mean_of_the_most(isolated, in_columns),
            _mean_of(tail, in_columns),
            jnp.sum(outside if in_columns is None else jnp.where(in_columns, outside, 0.0), axis=0),
        )
        return jnp.concatenate([nearest, jnp.stack(others)])

    def completed(self, rows: Float[Array, "batch features"]) -> Any:
        """``(wide rows, the same less their mean, what is there of them)``: cut, gaps filled; the last is [wide, batch], or None."""
        layout = self.layout
        if layout is None:
            wide = jnp.clip(rows, -FARTHEST, FARTHEST)
            return wide, wide - self.mean[None], None
        # Codes are small: only numbers are cut.
        wide = jnp.clip(layout.wide(rows), -FARTHEST, FARTHEST)
        centred = wide - self.mean[None]
        if not layout.gaps:
            return wide, centred, None
        whole = complete(centred, self.residual * self.precision[None])
        return whole + self.mean[None], whole, ~jnp.isnan(centred).T


def _mean_of(values, there=None):
    """Over the first axis, of those that are there."""
    if there is None:
        return jnp.mean(values, axis=0)
    return jnp.sum(jnp.where(there, values, 0.0), axis=0) / jnp.maximum(jnp.sum(there, axis=0), 1)


def _mean_of_the_most(values, there=None):
    """A soft maximum over the first axis, of those that are there; 0 where none is."""
    if there is None:
        return 0.5 * (jax.nn.logsumexp(2 * values, axis=0) - jnp.log(len(values)))
    count = jnp.sum(there, axis=0)
    values = jnp.where(there | (count == 0)[None], values, -1e9)  # its gradient is a number, that of infinity is none
    most = 0.5 * (jax.nn.logsumexp(2 * values, axis=0) - jnp.log(jnp.maximum(count, 1)))
    return jnp.where(count > 0, most, 0.0)


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


def fit_views(reference: np.ndarray, size: int | None = None, layout: Layout | None = None) -> Views:
    """Learn the views from standardised rows [rows, features], padded to ``size`` (``search.padded_size``)."""
    reference = np.asarray(reference, np.float32)
    count = len(reference)
    size = padded_size(count) if size is None else size
    whole = reference if layout is None else reference[:, layout.numbers]
    wide = np.clip(reference if layout is None else layout.wide(reference), -FARTHEST, FARTHEST)
    gaps, features = layout is not None and layout.gaps, whole.shape[1]
    mean, covariance = _moments(wide, gaps)
    eigenvalues, vectors = np.linalg.eigh(covariance)
    average = max(float(eigenvalues.mean()), 1e-12)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    # A ridge of the mean eigenvalue for distances, a hundredth of it for residuals, which live in the small directions.
    whitening = (vectors / np.sqrt(eigenvalues + average)).astype(np.float32)
    inverse = (vectors / (eigenvalues + 0.01 * average)) @ vectors.T
    precision = np.sqrt(np.diag(inverse))
    there = ~np.isnan(wide[:, :features])
    columns = np.sort(np.where(there, wide[:, :features], np.inf).T, axis=1)
    known_values = there.sum(axis=0)
    rows = np.maximum(known_values, 1)[:, None].astype(np.float32) if gaps else np.array(count, np.float32)
    mean = mean.astype(np.float32)
    if gaps:
        wide = _completed(wide, mean, inverse.astype(np.float32))
    ranks = (
        np.stack(
            [
                np.searchsorted(column, x, "left") + np.searchsorted(column, x, "right")
                for column, x in zip(columns, wide[:, :features].T, strict=True)
            ]
        )
        / (2 * rows)
        if features
        else np.zeros((0, count))
    ).T
    padded = np.concatenate([columns, np.full((features, size - count), np.inf, np.float32)], axis=1)
    neighbours = min(COLUMN_NEIGHBOURS, count)
    centre, scale = _usual_isolation(columns, wide[:, :features], there, neighbours)
    spaces = [
        wide,
        (wide - mean) @ whitening,
        np.concatenate([ranks, wide[:, features:] * (RANK_HEIGHT / HEIGHT)], axis=1),
    ]
    places = ranks if layout is None else np.concatenate([ranks, np.nan_to_num(layout.codes(reference))], axis=1)
    return Views(
        jax.tree.map(lambda *of: np.stack(of), *(known(space, size) for space in spaces)),
        _subspaces(places, features, min(size, MOST_SUBSPACE_ROWS)),
        padded,
        rows,
        mean,
        whitening,
        (inverse / precision).astype(np.float32),
        precision.astype(np.float32),
        centre.astype(np.float32),
        scale.astype(np.float32),
        *_ends(whole),
        neighbours,
        layout,
        None if layout is None else _levels(layout, reference),
    )


def _moments(wide: np.ndarray, gaps: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and shrunk covariance of wide rows."""
    if not gaps:
        mean = wide.mean(axis=0, dtype=np.float64)
        # One row (two training rows, one held out) has no covariance to estimate.
        return mean, np.eye(wide.shape[1]) if len(wide) < 2 else ledoit_wolf(wide.astype(np.float64))[0]
    there = ~np.isnan(wide)
    mean = np.where(there, wide, 0.0).sum(axis=0, dtype=np.float64) / np.maximum(there.sum(axis=0), 1)
    return mean, np.eye(wide.shape[1]) if len(wide) < 2 else covariance_of(wide - mean)


def _completed(wide, mean, inverse) -> np.ndarray:
    pieces = [wide[start : start + 4096] for start in range(0, len(wide), 4096)]
    return np.concatenate([np.asarray(complete(jnp.asarray(piece - mean), inverse)) + mean for piece in pieces])


def _usual_isolation(columns, values, there, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale of what training values are apart from the others of their column, each left out."""
    count, features = values.shape
    centre, scale = np.zeros(features), np.ones(features)
    if count < 2 or not features:
        return centre, scale
    sample = np.arange(count)
    if count > MOST_SCALE_ROWS:
        sample = np.random.default_rng(0).choice(count, MOST_SCALE_ROWS, replace=False)
    rows = values[sample]
    places = np.stack([np.searchsorted(column, x) for column, x in zip(columns, rows.T, strict=True)])
    alone = isolation_in_columns(columns, rows, places, min(COLUMN_NEIGHBOURS, count - 1), own=1)
    if there.all():
        return centre_and_scale(alone.T, 0.9)
    for column, of in enumerate(alone):
        if len(of := of[there[sample, column] & np.isfinite(of)]):
            centre[column], scale[column] = centre_and_scale(of, 0.9)
    return centre, scale


def _ends(whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(low, high)``; not cut: what lies beyond the cut is to be told apart as well."""
    if np.isnan(whole).any():
        whole = np.where(np.isnan(whole).all(axis=0), 0.0, whole)
        ends = np.nanquantile(whole, [0.0, 0.01, 0.5, 0.99, 1.0], axis=0)
    else:
        ends = np.quantile(whole, [0.0, 0.01, 0.5, 0.99, 1.0], axis=0)
    low, high = np.maximum(ends[2] - ends[1], 1e-3), np.maximum(ends[3] - ends[2], 1e-3)
    return np.stack([ends[0], low]).astype(np.float32), np.stack([ends[4], high]).astype(np.float32)


def _levels(layout: Layout, reference: np.ndarray) -> np.ndarray:
    """``Views.levels``: of a level that is rare among the rows, by how many share it or a rarer one."""
    category, _ = layout.places
    hot = layout.hot(reference)
    tables = np.zeros((3, len(layout.categories), len(category)), np.float32)
    for number, column in enumerate(layout.categories):
        places = np.flatnonzero(category == number)
        counts, rows = hot[:, places].sum(axis=0), int((~np.isnan(reference[:, column])).sum())
        own = counts[hot[:, places].argmax(axis=1)][hot[:, places].any(axis=1)]
        centre, scale = centre_and_scale(-np.log((own - 0.5) / (rows + 1)), 0.9) if rows else (0.0, 1.0)
        as_rare = np.array([counts[counts <= count].sum() for count in counts])
        tables[0, number, places] = np.arcsinh((-np.log((counts + 0.5) / (rows + 1)) - centre) / scale)
        tables[1, number, places] = np.log(np.maximum(as_rare, 1.0) / max(rows, 1)) ** 2
        tables[2, number, places] = np.where(counts == 0, np.log1p(UNSEEN), 0.0)
    return tables


def _subspaces(ranks: np.ndarray, numbers: int, size: int) -> Subspaces:
    """Of ranks [rows, features], which are in no order; the first ``size`` of them, padded to ``size``. Behind the numbers come codes."""
    rng, features = np.random.default_rng(0), ranks.shape[1]
    ranks = ranks[:size]
    which, weight = np.zeros((SUBSPACES, 3), np.int32), np.zeros((SUBSPACES, 3), np.float32)
    alone = np.zeros((min(len(ranks), SUBSPACE_SCALE_ROWS), SUBSPACES))
    for number in range(SUBSPACES):
        chosen = rng.choice(features, min(features, 2 + number % 2), replace=False)
        which[number] = np.resize(chosen, 3)
        weight[number, : len(chosen)] = np.where(chosen < numbers, 1.0, UNLIKE)
        if len(ranks) > 1:
            own = ranks[:, chosen] * np.sqrt(weight[number, : len(chosen)])
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
