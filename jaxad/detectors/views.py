"""Five views of what is normal that need no training: each turns rows into one distance per row, larger = more anomalous.

    nearest      distance to the nearest training row
    whitened     the same after whitening: directions in which normal rows hardly vary count as much as the others
    ranks        the same between empirical distribution values, column by column: the copula, blind to scale and to far tails
    conditional  mean absolute residual of a column given all others, for Gaussian data, in units of its spread
    columns      mean over columns of how isolated the value is in its column alone

The first three see empty regions between normal rows, the fourth broken dependencies, the fifth odd single values.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.covariance import ledoit_wolf

from jaxad.detectors.scorer import Scorer, root, static
from jaxad.detectors.search import Known, known, padded_size, squared_distances

NAMES = ("nearest", "whitened", "ranks", "conditional", "columns")

COLUMN_NEIGHBOURS = 5
MOST_SCALE_ROWS = 2048
"""Reference rows, left out one by one, that the scale of the columns' isolation is taken from."""


class Views(Scorer):
    """All five, fitted, of standardised rows; called, it is their mean."""

    known: Known
    """The training rows as nearest, whitened and ranks see them: with a leading axis of three."""
    columns: Float[Array | np.ndarray, "..."]
    """Training values, [features, rows], each column sorted; infinite behind the last one."""
    rows: Float[Array | np.ndarray, ""]
    """Their number."""
    mean: Float[Array | np.ndarray, "..."]
    whitening: Float[Array | np.ndarray, "..."]
    """[features, features]: ``(x - mean) @ whitening`` has about unit covariance."""
    residual: Float[Array | np.ndarray, "..."]
    """[features, features]: ``(x - mean) @ residual`` are the conditional residuals over their spread."""
    column_centre: Float[Array | np.ndarray, "..."]
    column_scale: Float[Array | np.ndarray, "..."]
    column_neighbours: int = static()

    def __call__(self, rows: Float[Array, "batch features"]) -> Float[Array, " batch"]:
        """The mean of the five distances."""
        return jnp.mean(self.distances(rows), axis=0)

    def distances(self, rows: Float[Array, "batch features"]) -> Float[Array, "5 batch"]:
        """The five distances of rows that are not in the reference (a row that is finds itself)."""
        centred = rows - self.mean[None]
        low, high = (_places(self.columns, rows, side) for side in ("left", "right"))
        seen = jnp.stack([rows, centred @ self.whitening, ((low + high) / (2 * self.rows)).T])
        # One after the other, by one program: three would take three times as long to compile.
        nearest = jax.lax.map(lambda of: root(squared_distances(of[0], of[1], 1)[:, 0]), (self.known, seen))
        conditional = jnp.mean(jnp.abs(centred @ self.residual), axis=1)
        isolation = isolation_in_columns(self.columns, rows, low, self.column_neighbours)
        isolated = jnp.arcsinh((isolation - self.column_centre[:, None]) / self.column_scale[:, None])
        return jnp.concatenate([nearest, jnp.stack([conditional, jnp.mean(isolated, axis=0)])])


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
    """Learn the five views from standardised rows [rows, features], padded to ``size`` (``search.padded_size``)."""
    reference = np.asarray(reference, np.float32)
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
    precision = (vectors / (eigenvalues + 0.01 * average)) @ vectors.T
    residual = precision / np.sqrt(np.diag(precision))
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
    return Views(
        jax.tree.map(lambda *of: np.stack(of), *spaces),
        padded,
        np.array(count, np.float32),
        mean,
        whitening,
        residual.astype(np.float32),
        centre.astype(np.float32),
        scale.astype(np.float32),
        neighbours,
    )


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
