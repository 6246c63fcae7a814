"""Tables of mixed columns as rows of numbers: learned from the rows to learn from, applied to all others, kept as JSON."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from jaxad.data.dataset import DataError, did_you_mean
from jaxad.data.roles import MOST_LEVELS, USED, Column, numeric, roles_of, times_of, word

if TYPE_CHECKING:
    import pandas as pd

HEIGHT = math.sqrt(0.5)
"""Of the one in a one-hot code: rows of different levels lie 1 apart."""

OTHER = "(other)"

GAPS = ("keep", "fill")
CATEGORIES = ("one-hot", "codes")

PERIODS = {"time of day": 86_400.0, "day of week": 7 * 86_400.0}


@dataclass(frozen=True)
class Part:
    """How one column of a table becomes columns of numbers."""

    name: str
    kind: str
    """number, category or time."""
    levels: tuple[str, ...] = ()
    """Of a category: those with a place of their own."""
    written: str = ""
    """Of a time (``roles.times_of``)."""
    periods: tuple[str, ...] = ()
    """Of a time: the clocks that are looked at."""

    def names(self, codes: bool = False) -> list[str]:
        """Of the columns of numbers."""
        if self.kind == "category" and not codes:
            return [f"{self.name}={level}" for level in (*self.levels, OTHER)]
        if self.kind == "time":
            return [f"{self.name} ({period}, {axis})" for period in self.periods for axis in ("sine", "cosine")]
        return [self.name]

    def encode(self, column: "pd.Series", dialect: Any = None, codes: bool = False) -> np.ndarray:
        """``[rows, names]``, NaN for gaps."""
        if self.kind == "category":
            code = self._codes(column)
            if codes:
                return code[:, None]
            hot = HEIGHT * (code[:, None] == np.arange(len(self.levels) + 1))
            return np.where(np.isnan(code)[:, None], np.nan, hot)
        if self.kind == "time":
            return self._clocks(column)
        return self._numbers(column, dialect)[:, None]

    def _codes(self, column) -> np.ndarray:
        import pandas as pd

        try:
            codes, words = pd.factorize(column)
        except TypeError:  # lists and the like
            codes, words = pd.factorize(column.map(str))
        places = {level: place for place, level in enumerate(self.levels)}
        # The last one is that of a gap, whose code is -1.
        place = np.array([*(float(places.get(word(value), len(self.levels))) for value in words), np.nan])
        return place[codes]

    def _clocks(self, column) -> np.ndarray:
        times = times_of(column, self.written)
        # Since a Monday, in seconds.
        seconds = (times - np.datetime64("2001-01-01")).dt.total_seconds().to_numpy(np.float64)
        angles = [2 * np.pi * seconds / PERIODS[period] for period in self.periods]
        return np.stack([turn(angle) for angle in angles for turn in (np.sin, np.cos)], axis=1)

    def _numbers(self, column, dialect) -> np.ndarray:
        import pandas as pd

        if numeric(column) or pd.api.types.is_bool_dtype(column.dtype):
            return column.to_numpy(dtype=np.float64, na_value=np.nan)
        read = float if dialect is None else dialect.number
        numbers = np.full(len(column), np.nan)
        for row, value in enumerate(column):
            if pd.isna(value):
                continue
            try:
                number = read(value)
            except (TypeError, ValueError):
                number = None
            if number is None:
                raise DataError(
                    f"column {self.name!r}: expected a number, found {str(value)[:40]!r} in row {row} (counting from 0); mend it, or say "
                    f'what means that nothing is known (--missing "{str(value)[:40]}")'
                )
            numbers[row] = number
        return numbers


class FrameEncoder(TransformerMixin, BaseEstimator):
    """Data frames of numbers, categories, times and gaps as rows of float64 numbers ``[rows, encoded columns]``, NaN for gaps.

    Every column has a role, found out by ``roles.roles_of`` unless told. Numbers stay as they are; a category becomes a one-hot code of
    height 1/sqrt(2) with a place of its own for levels that are rare or were never seen; a time becomes sine and cosine of the time of
    day and of the day of the week, as far as they vary, and nothing that only runs on. Identifiers, free text and empty columns are left
    out. What a frame to transform has beyond the columns learned from is left alone; their order does not matter. Frames of polars and
    tables of Arrow are taken as well.

    Args:
        columns: ``{name: role}`` of columns whose role is told: number, category, time or leave-out.
        gaps: ``keep`` them as NaN, or ``fill`` them with the median of a number and the shares of a category's levels.
        categories: ``one-hot``, or with gaps kept ``codes``: one column each, 0, 1, ... for detectors that know categories
            (``ConsensusDetector(categorical_features=encoder.categorical_features_)``).

    Attributes:
        roles_: a ``roles.Column`` for every column of the frame.
        parts_: a ``Part`` for every one that is used.
        groups_: for every encoded column, which of ``names_`` it is of, ``[encoded columns]``.
        names_: those that are used.
        categorical_features_: places of the encoded columns that hold codes.
        middle_: what fills gaps, ``[encoded columns]``.

    Raises:
        DataError: no column that can be used, a column that looks like labels, is half numbers and half words, or is missing at
            ``transform``, a word where numbers are expected.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"heat": [20.5, 21.0, None] * 10, "pump": ["a", "a", "b"] * 10})
    >>> encoder = FrameEncoder().fit(frame)
    >>> encoder.get_feature_names_out().tolist()
    ['heat', 'pump=a', 'pump=b', 'pump=(other)']
    >>> encoder.transform(pd.DataFrame({"pump": ["a", "z"], "heat": [None, 3]})).round(2).tolist()
    [[nan, 0.71, 0.0, 0.0], [3.0, 0.0, 0.0, 0.71]]
    """

    def __init__(self, columns: Mapping[str, str] | None = None, gaps: str = "keep", categories: str = "one-hot"):
        self.columns = columns
        self.gaps = gaps
        self.categories = categories

    def fit(self, frame: "pd.DataFrame", y=None) -> Self:
        """Learn roles and levels from a frame of normal rows; ``y`` is ignored."""
        if (
            self.gaps not in GAPS
            or self.categories not in CATEGORIES
            or (self.gaps, self.categories) == ("fill", "codes")
        ):
            raise ValueError(
                f"gaps are 'keep' or 'fill', categories 'one-hot' or, with gaps kept, 'codes', got {self.gaps=}, {self.categories=}"
            )
        frame = _of_pandas(frame)
        self.roles_ = roles_of(frame, self.columns)
        parts = [
            _part(frame.iloc[:, position], column) for position, column in enumerate(self.roles_) if column.role in USED
        ]
        self.parts_ = [part for part in parts if part.names(self._codes)]
        if not self.parts_:
            found = ", ".join(f"{column.name} ({column.role})" for column in self.roles_[:8])
            raise DataError(
                f'expected a column to learn from, found none: {found}; say what a column is with --columns "NAME=number" or category'
            )
        self._index()
        self.middle_ = np.zeros(len(self.groups_))
        encoded = self._encoded(frame)
        for column in range(encoded.shape[1]):
            there = encoded[:, column][~np.isnan(encoded[:, column])]
            is_number = self.parts_[self.groups_[column]].kind == "number"
            self.middle_[column] = (np.median(there) if is_number else there.mean()) if len(there) else 0.0
        return self

    def transform(self, frame: "pd.DataFrame", dialect: Any = None) -> np.ndarray:
        """``[rows, encoded columns]``; ``dialect`` says how numbers are written where a cell is text."""
        check_is_fitted(self, "parts_")
        encoded = self._encoded(_of_pandas(frame), dialect)
        return np.where(np.isnan(encoded), self.middle_, encoded) if self.gaps == "fill" else encoded

    def _encoded(self, frame, dialect=None) -> np.ndarray:
        columns = {str(name): position for position, name in enumerate(frame.columns)}
        if missing := [part.name for part in self.parts_ if part.name not in columns]:
            raise DataError(
                f"expected the column {missing[0]!r}, which was learned from, but there is none; {did_you_mean(missing[0], columns)}"
            )
        encoded = [part.encode(frame.iloc[:, columns[part.name]], dialect, self._codes) for part in self.parts_]
        return np.concatenate(encoded, axis=1)

    @property
    def _codes(self) -> bool:
        return self.categories == "codes"

    def _index(self) -> None:
        self.names_ = tuple(part.name for part in self.parts_)
        widths = [len(part.names(self._codes)) for part in self.parts_]
        self.groups_ = np.repeat(np.arange(len(self.parts_)), widths)
        is_category = np.array([part.kind == "category" for part in self.parts_])
        self.categorical_features_ = np.flatnonzero(is_category[self.groups_]) if self._codes else np.zeros(0, int)
        self.n_features_in_ = len(self.roles_)

    def get_feature_names_out(self, input_features=None) -> np.ndarray:
        """Names of the encoded columns: ``heat``, ``pump=a``, ..."""
        check_is_fitted(self, "parts_")
        return np.array([name for part in self.parts_ for name in part.names(self._codes)], dtype=object)

    def to_json(self) -> dict[str, Any]:
        """What ``from_json`` makes the encoder of, fitted, as JSON has it."""
        check_is_fitted(self, "parts_")
        return {
            "gaps": self.gaps,
            "categories": self.categories,
            "roles": [list(column) for column in self.roles_],
            "parts": [{key: _listed(value) for key, value in asdict(part).items()} for part in self.parts_],
            "middle": self.middle_.tolist(),
        }

    @classmethod
    def from_json(cls, kept: Any) -> "FrameEncoder":
        """The encoder of ``to_json``.

        Raises:
            DataError: anything else, which may come from a stranger's model.
        """
        try:
            encoder = cls(
                gaps=GAPS[GAPS.index(kept["gaps"])], categories=CATEGORIES[CATEGORIES.index(kept["categories"])]
            )
            encoder.roles_ = [
                Column(str(name), str(role), float(missing), str(example), str(note))
                for name, role, missing, example, note in kept["roles"]
            ]
            encoder.parts_ = [_part_of_json(part) for part in kept["parts"]]
            encoder.middle_ = np.array(kept["middle"], np.float64)
            encoder._index()
            if not encoder.parts_ or encoder.middle_.shape != encoder.groups_.shape:
                raise ValueError("of another width")
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(
                f"expected what a table's encoder has saved, got something else ({error}); fit and save the model again"
            ) from error
        return encoder


def _of_pandas(frame: Any) -> "pd.DataFrame":
    """A frame of polars, or a table of Arrow, as pandas has it."""
    if not hasattr(frame, "iloc") and hasattr(frame, "to_pandas"):
        frame = frame.to_pandas()
    if not hasattr(frame, "iloc"):
        raise DataError(
            f"expected a data frame, got {type(frame).__name__}; columns have to have names: pandas.DataFrame(rows)"
        )
    return frame


def _listed(value):
    return list(value) if isinstance(value, tuple) else value


def _part_of_json(kept) -> Part:
    part = Part(
        name=str(kept["name"]),
        kind=str(kept["kind"]),
        levels=tuple(map(str, kept["levels"])),
        written=str(kept["written"]),
        periods=tuple(map(str, kept["periods"])),
    )
    if part.kind not in ("number", "category", "time") or set(part.periods) - set(PERIODS):
        raise ValueError(f"no kind of column: {part.kind!r}")
    if part.kind == "time":
        import pandas as pd

        try:
            times_of(pd.Series(["2024-05-31"]), part.written)
        except re.error as error:  # pandas makes a pattern of it; other faults are ValueErrors
            raise ValueError(f"no way to write a time: {part.written!r}") from error
    return part


def _part(column, about: Column) -> Part:
    if about.role == "time":
        return _time_part(column, about)
    if about.role == "number" or (about.role == "constant" and numeric(column)):
        return Part(about.name, "number")
    counts = column.dropna().map(word).value_counts()
    # By count, then by name: the same file in another order gives the same model.
    known = sorted(counts.index, key=lambda level: (-counts[level], level))
    kept = [level for level in known if counts[level] > 1][:MOST_LEVELS] or known[:1]
    return Part(about.name, "category", levels=tuple(sorted(kept)))


def _time_part(column, about: Column) -> Part:
    times = times_of(column, about.note).dropna()
    # What has not been seen twice would be odd for that alone.
    days = (times.max() - times.min()).days if len(times) else 0
    varies = {
        "time of day": days >= 2 and (times.dt.hour * 60 + times.dt.minute).nunique() > 1,
        "day of week": days >= 14 and times.dt.day_of_week.nunique() > 1,
    }
    return Part(about.name, "time", written=about.note, periods=tuple(period for period in PERIODS if varies[period]))
