"""Rows of a table with categories and gaps, as numbers without: one-hot codes, and a completed row for every incomplete one.

A row is ``[columns]``: a number, or the code of a category (0, 1, ...), or NaN where nothing is known. *Wide* it is ``[wide]``: numbers
first, then for every category as many places as it has levels and one more for levels that were never seen.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.covariance import ledoit_wolf_shrinkage

HEIGHT = 0.5**0.5
"""Of the one in a one-hot code: rows of different levels lie 1 apart, as numbers do that differ by their spread."""

COMPLETING_STEPS = 24
"""Of conjugate gradients; hundreds of columns with half of them missing are met to three digits."""


class Layout(NamedTuple):
    """Which columns are categories, and may anything be missing? Hashable: part of a compiled program.

    >>> layout = Layout((0, 2), gaps=True)
    >>> layout.wide(np.array([[5.0, 1.0], [6.0, 9.0], [7.0, np.nan]])).round(1).tolist()
    [[5.0, 0.0, 0.7, 0.0], [6.0, 0.0, 0.0, 0.7], [7.0, nan, nan, nan]]
    """

    levels: tuple[int, ...]
    """Of every column, in training; 0 for numbers."""
    gaps: bool

    @classmethod
    def of(cls, X: np.ndarray, categorical: np.ndarray, gaps: bool) -> "Layout | None":
        """Of training rows, with the places of the categories; None for numbers without gaps."""
        levels = np.zeros(X.shape[1], int)
        for column in categorical:
            levels[column] = 1 + int(np.nanmax(X[:, column], initial=-1.0))
        return cls(tuple(levels.tolist()), gaps) if gaps or len(categorical) else None

    @property
    def numbers(self) -> np.ndarray:
        """Places of the numbers in a row."""
        return np.flatnonzero(np.array(self.levels) == 0)

    @property
    def categories(self) -> np.ndarray:
        """Places of the categories."""
        return np.flatnonzero(np.array(self.levels))

    @property
    def order(self) -> np.ndarray:
        """Numbers first, then the categories."""
        return np.concatenate([self.numbers, self.categories])

    @property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """``(which category, which level)`` of every one-hot place, both ``[places]``; categories are counted from 0."""
        each = [self.levels[column] + 1 for column in self.categories]
        return np.repeat(np.arange(len(each)), each), np.concatenate([*map(np.arange, each), np.zeros(0, int)])

    @property
    def of_wide(self) -> np.ndarray:
        """Which column of the table every wide one belongs to."""
        return np.concatenate([self.numbers, self.categories[self.places[0]]])

    def codes(self, rows: Any) -> Any:
        """Those of the categories, ``[batch, categories]``; what was never seen is one beyond the last level."""
        xp, last = rows.__array_namespace__(), np.array(self.levels, np.float32)[self.categories]
        codes = rows[:, self.categories]
        return xp.where((codes < 0) | (codes > last[None]), last[None], codes)

    def hot(self, rows: Any) -> Any:
        """1 where a row has that level, ``[batch, places]``; 0 throughout where there is a gap."""
        category, level = self.places
        return (self.codes(rows)[:, category] == level[None]).astype(rows.dtype)

    def wide(self, rows: Any) -> Any:
        """``[batch, wide]``, NaN for gaps."""
        xp, codes = rows.__array_namespace__(), self.codes(rows)
        gap = xp.isnan(codes)[:, self.places[0]]
        hot = xp.where(gap, xp.nan, HEIGHT * self.hot(rows))
        return xp.concatenate([rows[:, self.numbers], hot], axis=1)

    def narrow(self, wide: np.ndarray) -> np.ndarray:
        """Rows of completed wide ones: of every category the level that stands out."""
        rows = np.zeros((len(wide), len(self.levels)), wide.dtype)
        rows[:, self.numbers] = wide[:, : len(self.numbers)]
        category, _ = self.places
        for number, column in enumerate(self.categories):
            rows[:, column] = wide[:, len(self.numbers) :][:, category == number].argmax(axis=1)
        return rows


def covariance_of(centred: np.ndarray) -> np.ndarray:
    """The shrunk covariance of rows with gaps ``[rows, wide]``: every entry from the rows that have both values (Ledoit & Wolf 2004)."""
    there = ~np.isnan(centred)
    values, both = np.where(there, centred, 0.0), there.astype(np.float64).T @ there
    covariance = (values.T @ values) / np.maximum(both, 1.0)
    # Entries from different rows make no covariance by themselves: negative variances are taken away.
    eigenvalues, vectors = np.linalg.eigh(covariance)
    covariance = (vectors * np.maximum(eigenvalues, 0.0)) @ vectors.T
    shrinkage = ledoit_wolf_shrinkage(values, assume_centered=True)
    return (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


def complete(
    centred: Float[Array, "batch wide"], inverse: Float[Array | np.ndarray, "wide wide"]
) -> Float[Array, "batch wide"]:
    """Gaps filled with what is expected given the rest, for Gaussian data with this inverse covariance; rows are centred.

    The missing values minimise ``x inverse x``, so the length of the completed row is the Mahalanobis length of what is there. By
    conjugate gradients, on all rows at once.

    >>> inverse = jnp.linalg.inv(jnp.array([[1.0, 0.8], [0.8, 1.0]]))
    >>> complete(jnp.array([[1.0, jnp.nan]]), inverse).round(3).tolist()
    [[1.0, 0.800000011920929]]
    """
    gap = jnp.isnan(centred)
    start = jnp.where(gap, 0.0, centred)
    scale = (1.0 / jnp.diagonal(inverse))[None]
    wrong = jnp.where(gap, -(start @ inverse), 0.0)
    along = wrong * scale

    def step(_, of):
        x, wrong, along, size = of
        moved = jnp.where(gap, along @ inverse, 0.0)
        length = size / jnp.maximum(jnp.sum(along * moved, axis=1), 1e-30)
        x, wrong = x + length[:, None] * along, wrong - length[:, None] * moved
        better = jnp.sum(wrong * wrong * scale, axis=1)
        return x, wrong, wrong * scale + (better / jnp.maximum(size, 1e-30))[:, None] * along, better

    return jax.lax.fori_loop(0, COMPLETING_STEPS, step, (start, wrong, along, jnp.sum(wrong * along, axis=1)))[0]
