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
    if len(x) < FEWEST_ROWS:
        return
    for column in range(x.shape[1]):
        name, values = repr(columns[column]) if columns else str(column), x[:, column].astype(np.float64)
        steps = np.diff(values)
        if (steps > 0).all() or (steps < 0).all():
            way = "up" if steps[0] > 0 else "down"
            yield (
                f"column {name} counts {way} row by row: new rows lie outside of its range and would be flagged for that alone; "
                "leave it out"
            )
            continue
        low, middle, high = np.quantile(values, [0.02, 0.5, 0.98])
        away, usual = np.abs(values - middle), max(high - middle, middle - low)
        if usual > 0 and away.max() > FAR * usual:
            row = int(away.argmax())
            yield (
                f"column {name} holds {values[row]:g} in row {row} (counting from 0), over {FAR:,.0f} times as far out as nearly all "
                "others: a fill value hides what the others say; leave the row out or mend the value"
            )
