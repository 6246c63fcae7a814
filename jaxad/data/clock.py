"""A table of readings as a time series: which column is the clock, is it in order, and where are its gaps?"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxad.data.dataset import DataError
from jaxad.data.roles import Column, times_of

if TYPE_CHECKING:
    import pandas as pd

USUAL = 1.5
"""A step so many times as long as the usual one is a gap."""


class Clock(NamedTuple):
    """The column that says when."""

    name: str
    written: str
    """How (``roles.times_of``)."""


def clock_of(roles: list[Column]) -> Clock | None:
    """The first column of times; None: points follow one another, nobody knows when."""
    return next((Clock(column.name, column.note) for column in roles if column.role == "time"), None)


def ticks(frame: "pd.DataFrame", clock: Clock) -> np.ndarray:
    """When every row was, in seconds from the first, ``[rows]``.

    Raises:
        DataError: a time that is missing, or earlier than the one before.
    """
    if clock.name not in frame.columns:
        raise DataError(f"expected the clock of training, column {clock.name!r}, but there is none")
    times = times_of(frame[clock.name], clock.written)
    if (missing := np.flatnonzero(times.isna())).size:
        raise DataError(
            f"column {clock.name!r}: no time in row {missing[0]} (counting from 0); a clock has no gaps, leave such rows out"
        )
    seconds = (times - times.iloc[0]).dt.total_seconds().to_numpy(np.float64)
    if (back := np.flatnonzero(np.diff(seconds) < 0)).size:
        row = back[0] + 1
        raise DataError(
            f"column {clock.name!r} runs backwards in row {row} (counting from 0): {frame[clock.name].iloc[row]} after "
            f"{frame[clock.name].iloc[row - 1]}; a series has to be in order of time, sort it"
        )
    return seconds


def about(seconds: np.ndarray) -> list[str]:
    """What is to be said of a clock: the usual step, steps that are longer, times that occur twice."""
    steps = np.diff(seconds)
    if not len(steps):
        return []
    usual = float(np.median(steps))
    said = [f"a point every {_words(usual)}"]
    if (twice := int(np.sum(steps == 0))) and usual > 0:
        said.append(f"{twice} points at the time of the one before: they are taken as points of their own")
    if (longer := steps > USUAL * usual).any() and usual > 0:
        said.append(
            f"{int(longer.sum())} gaps in the clock, the longest {_words(float(steps.max()))}: points on both sides are "
            "taken as neighbours, fill in empty rows if that is wrong"
        )
    return said


def _words(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
