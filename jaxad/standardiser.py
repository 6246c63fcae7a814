"""From the units of the data to what a scorer sees: NumPy alone, for a bundle scores without the rest of the library."""

from typing import Any, NamedTuple

import numpy as np

FARTHEST = 1e5
"""Beyond so many spreads a value counts by its logarithm before a network sees it: farther out goes on to be farther out, slowly."""

FAR = 1e12
"""The same before a distance sees it: float32 can still square it, whitened too, and add up thousands. Beyond, float32 has no digits
left for the logarithm, and all values are equally far."""


class Standardiser(NamedTuple):
    """Column means and spreads, float64; for images one pair per channel.

    On the host, before float32: of a column of time stamps, or of large offsets, its seven digits would lose all that matter.

    >>> Standardiser(np.zeros(1), np.ones(1), 10.0)(np.array([[3.0], [-11.0], [1e8]])).round(2).tolist()
    [[3.0], [-10.69], [28.42]]
    """

    mean: np.ndarray
    scale: np.ndarray
    farthest: float = FARTHEST
    """So many spreads out the logarithm begins (``nearer``)."""

    @classmethod
    def fit(cls, X: np.ndarray, *, with_scale: bool = True, farthest: float = FARTHEST) -> "Standardiser":
        """A constant column keeps scale 1, so that a test value off the constant stays visible instead of dividing by zero."""
        axes = tuple(range(X.ndim - 1))
        mean, std = X.mean(axis=axes, dtype=np.float64), X.std(axis=axes, dtype=np.float64)
        # Rounding gives a constant column a spread of about eps * |mean|; real columns are far above that.
        varies = std > 1e-12 * np.maximum(np.abs(mean), 1.0)
        return cls(mean, np.where(varies & with_scale, std, 1.0), farthest)

    @classmethod
    def nothing(cls, X: np.ndarray) -> "Standardiser":
        """Rows as they are."""
        return cls(np.zeros(X.shape[-1]), np.ones(X.shape[-1]), 1e17)

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Standardised float32 rows."""
        with np.errstate(over="ignore"):  # cut in the next step
            return nearer((X - self.mean) / self.scale, self.farthest).astype(np.float32)

    def undo(self, rows: Any) -> np.ndarray:
        """Standardised rows in the units of the data, float64."""
        return np.asarray(rows, np.float64) * self.scale + self.mean


def nearer(z: Any, farthest: Any) -> Any:
    """Values beyond ``farthest`` spreads brought nearer: ``farthest + log(1 + |z| - farthest)``, in the order that they have.

    Of NumPy's arrays as of JAX's.
    """
    xp = z.__array_namespace__()
    size = xp.minimum(xp.abs(z), xp.finfo(z.dtype).max)
    return xp.where(size > farthest, xp.sign(z) * (farthest + xp.log1p(xp.maximum(size - farthest, 0.0))), z)


def too_far(X: np.ndarray) -> ValueError:
    """The error for the value of ``X`` that is largest, by row and column."""
    flat = np.abs(X.reshape(len(X), -1))
    row, column = np.unravel_index(int(np.argmax(flat)), flat.shape)
    return ValueError(
        f"row {row} (counting from 0) holds {X.reshape(len(X), -1)[row, column]:.6g} in column {column}: so far from the other values that "
        "the column's spread is no number; leave the row out or mend the value"
    )
