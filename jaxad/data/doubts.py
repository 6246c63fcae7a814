"""What looks wrong with a table to learn from, in sentences: columns that cannot mean what a number means."""

from collections.abc import Iterator, Sequence

import numpy as np

FEWEST_ROWS = 20
"""In fewer, columns are in order by chance."""

FAR = 1e3
"""A value so many times as far from the middle as nearly all others is a fill value, or a slip."""


def doubts(x: np.ndarray, columns: Sequence[str] | None = None) -> Iterator[str]:
    """A sentence for every column of ``x [rows, features]`` that counts up row by row, or whose spread is made by a few absurd values.

    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> x[:, 0], x[7, 1] = np.arange(100), 1e20
    >>> for sentence in doubts(x, ("Id", "heat")): print(sentence)
    column 'Id' counts up row by row: new rows lie outside of its range and would be flagged for that alone; leave it out
    column 'heat' holds 1e+20 in row 7 (counting from 0), over 1,000 times as far out as nearly all others: a fill value hides what \
the others say; leave the row out or mend the value
    """
    steps = np.diff(x, axis=0) if len(x) >= FEWEST_ROWS else np.zeros((1, x.shape[1]))
    for column in np.flatnonzero((steps > 0).all(axis=0) | (steps < 0).all(axis=0)):
        way = "up" if steps[0, column] > 0 else "down"
        yield (
            f"column {_name(columns, column)} counts {way} row by row: new rows lie outside of its range and would be flagged for that "
            "alone; leave it out"
        )
    yield from fill_values(x, columns)


def fill_values(x: np.ndarray, columns: Sequence[str] | None = None, far: float = FAR) -> Iterator[str]:
    """The second half of ``doubts``, of values ``far`` times as far from the middle as nearly all others."""
    if len(x) < FEWEST_ROWS:
        return
    low, middle, high = np.quantile(x, [0.02, 0.5, 0.98], axis=0)
    away, usual = np.abs(x - middle), np.maximum(high - middle, middle - low)
    farthest = away.max(axis=0)
    varies = usual > 1e-6 * np.abs(
        middle
    )  # a column that is constant but for one value, and for rounding, is another matter
    for column in np.flatnonzero(varies & (farthest > far * usual) & (farthest < np.inf)):
        row = int(away[:, column].argmax())
        yield (
            f"column {_name(columns, column)} holds {x[row, column]:g} in row {row} (counting from 0), over {far:,.0f} times as far out as "
            "nearly all others: a fill value hides what the others say; leave the row out or mend the value"
        )


def _name(columns, column) -> str:
    return str(column) if columns is None else repr(str(columns[column]))
