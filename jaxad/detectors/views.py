"""Five views of what is normal that need no training: each turns rows into one distance per row, larger = more anomalous.

    nearest      distance to the nearest training row
    whitened     the same after whitening: directions in which normal rows hardly vary count as much as the others
    ranks        the same between empirical distribution values, column by column: the copula, blind to scale and to far tails
    conditional  mean absolute residual of a column given all others, for Gaussian data, in units of its spread
    columns      mean over columns of how isolated the value is in its column alone

The first three see empty regions between normal rows, the fourth broken dependencies, the fifth odd single values.
"""

from typing import NamedTuple

import numpy as np
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors

from jaxad.detectors.neighbours import squared_distances

NAMES = ("nearest", "whitened", "ranks", "conditional", "columns")

COLUMN_NEIGHBOURS = 5
MOST_SCALE_ROWS = 2048
"""Reference rows, left out one by one, that the scale of the columns' isolation is taken from."""


class Views(NamedTuple):
    """All five, fitted: arrays only. Rows are standardised ones."""

    reference: np.ndarray
    """Training rows, [rows, features], float32."""
    mean: np.ndarray
    whitening: np.ndarray
    """[features, features]: ``(x - mean) @ whitening`` has about unit covariance."""
    residual: np.ndarray
    """[features, features]: ``(x - mean) @ residual`` are the conditional residuals over their spread."""
    column_centre: np.ndarray
    column_scale: np.ndarray


class Index(NamedTuple):
    """Search structures that follow from ``Views`` and are not worth storing."""

    columns: np.ndarray
    """The reference's columns, each sorted, [features, rows]."""
    searches: tuple
    """(rows as the view sees them, fitted search) for nearest, whitened and ranks."""


def fit_views(reference: np.ndarray) -> Views:
    """Learn the five views from standardised rows [rows, features]."""
    reference = np.asarray(reference, np.float32)
    mean = reference.mean(axis=0, dtype=np.float64)
    # One row (two training rows, one held out) has no covariance to estimate.
    few = len(reference) < 2
    covariance = np.eye(reference.shape[1]) if few else ledoit_wolf(reference.astype(np.float64))[0]
    eigenvalues, vectors = np.linalg.eigh(covariance)
    average = max(float(eigenvalues.mean()), 1e-12)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    # A ridge of the mean eigenvalue for distances, a hundredth of it for residuals, which live in the small directions.
    whitening = vectors / np.sqrt(eigenvalues + average)
    precision = (vectors / (eigenvalues + 0.01 * average)) @ vectors.T
    residual = precision / np.sqrt(np.diag(precision))
    views = Views(
        reference,
        mean.astype(np.float32),
        whitening.astype(np.float32),
        residual.astype(np.float32),
        np.zeros(reference.shape[1], np.float32),
        np.ones(reference.shape[1], np.float32),
    )
    if few:
        return views
    columns = np.sort(reference.T, axis=1)
    sample = np.arange(len(reference))
    if len(sample) > MOST_SCALE_ROWS:
        sample = np.random.default_rng(0).choice(len(reference), MOST_SCALE_ROWS, replace=False)
    isolation = _column_isolation(columns, reference[sample], own=True)
    centre, scale = centre_and_scale(isolation, 0.9)
    return views._replace(column_centre=centre.astype(np.float32), column_scale=scale.astype(np.float32))


def index_views(views: Views) -> Index:
    """Sort the columns and build the searches: a function of the arrays alone."""
    columns = np.sort(views.reference.T, axis=1)
    spaces = _spaces(views, columns, views.reference)
    return Index(columns, tuple((space, NearestNeighbors(n_neighbors=1).fit(space)) for space in spaces))


def _spaces(views: Views, columns: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """The rows as nearest, whitened and ranks see them."""
    return x, (x - views.mean) @ views.whitening, _ranks(columns, x)


def distances(views: Views, index: Index, rows: np.ndarray) -> np.ndarray:
    """The five distances, [5, rows], of rows that are not in the reference (a row that is finds itself)."""
    x = np.asarray(rows, np.float32)
    spaces = _spaces(views, index.columns, x)
    isolation = _column_isolation(index.columns, x, own=False)
    return np.stack(
        [
            *(
                np.sqrt(squared_distances(known, search, space, 1)[:, 0])
                for (known, search), space in zip(index.searches, spaces, strict=True)
            ),
            np.abs((x - views.mean) @ views.residual).mean(axis=1),
            np.arcsinh((isolation - views.column_centre) / views.column_scale).mean(axis=1),
        ]
    ).astype(np.float64)


def _ranks(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mid-ranks in [0, 1] within the reference's columns, [rows, features]."""
    ranks = np.empty(rows.shape, np.float32)
    for j, column in enumerate(columns):
        ranks[:, j] = np.searchsorted(column, rows[:, j], "left") + np.searchsorted(column, rows[:, j], "right")
    return ranks / (2 * columns.shape[1])


def _column_isolation(columns: np.ndarray, rows: np.ndarray, *, own: bool) -> np.ndarray:
    """Mean distance to the nearest few values of the same column, [rows, features]; with ``own`` one value equal to it is left out."""
    count = columns.shape[1]
    k = min(COLUMN_NEIGHBOURS, count - own)
    # The k + 1 nearest values lie within k + 1 places of where the value would be inserted.
    window = np.arange(-k - 1, k + 1)
    isolation = np.empty(rows.shape, np.float32)
    for j, column in enumerate(columns):
        places = np.searchsorted(column, rows[:, j])[:, None] + window
        gaps = np.abs(column[np.clip(places, 0, count - 1)] - rows[:, j, None])
        gaps[(places < 0) | (places >= count)] = np.inf
        isolation[:, j] = np.sort(gaps, axis=1)[:, int(own) : k + int(own)].mean(axis=1)
    return isolation


def centre_and_scale(normal: np.ndarray, quantile: float) -> tuple[np.ndarray, np.ndarray]:
    """Median and distance from there to ``quantile`` along the first axis: what is usual, and how far normal rows stray upwards.

    Where that distance is nothing (most rows alike) the standard deviation stands in, and 1 where that is nothing too.
    """
    centre, upper = np.quantile(normal, [0.5, quantile], axis=0)
    spread, std = upper - centre, np.std(normal, axis=0)
    tiny = 1e-9 * np.maximum(np.abs(centre), 1.0)
    return centre, np.where(spread > tiny, spread, np.where(std > tiny, std, 1.0))
