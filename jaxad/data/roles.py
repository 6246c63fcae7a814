"""What each column of a table is: a number, a category, a time, an identifier ..., by rules that stand in docs/tables.md."""

import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxad.data.dataset import DataError, did_you_mean

if TYPE_CHECKING:
    pd = _pandas()
TOLD = ("number", "category", "time", "leave-out")
"""What a user may say that a column is."""

USED = ("number", "category", "yes/no", "time", "constant")
"""Those from which something is learned; all others are left out: identifier, text, empty, leave-out."""

ASKED_ABOUT = ("label", "unclear")

LABEL_NAMES = re.compile(
    r"(is[_ ]?)?(label|labels|class|target|y|outlier|anomaly|anomalous|attack|fraud|ground[_ ]?truth|gt|malicious|normal)",
    re.IGNORECASE,
)
NORMAL_WORDS = {"normal", "0", "no", "false", "f", "good", "ok", "benign", "inlier", "healthy", "nominal", "negative"}
ANOMALY_WORDS = {"1", "-1", "yes", "true", "t", "bad", "attack", "outlier", "fraud", "positive", "malicious"} | {
    "anomaly",
    "anomalous",
    "abnormal",
}
YES_NO = ({"yes", "no"}, {"y", "n"}, {"true", "false"}, {"t", "f"})

MOST_LEVELS = 50
"""A category keeps so many, the commonest; all others share a place."""

FEWEST_ROWS = 20
"""In fewer, values are all different, or in order, by chance."""

LARGEST_WHOLE = 2**53
"""Whole numbers beyond are not told apart as float64."""

_DATE_LIKE = re.compile(r"\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ].*)?\s*")
_EPOCHS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_EPOCH_RANGE = (631_152_000, 4_102_444_800)
"""Seconds since 1970, of the years 1990 to 2100."""
_TIME_NAMES = re.compile(r"(^|.*[_ ])(time|date|timestamp|ts|epoch|datetime)([_ ].*|$)", re.IGNORECASE)


class Column(NamedTuple):
    """What a column of a table was found to be."""

    name: str
    role: str
    missing: float
    """Share of its cells."""
    example: str
    note: str = ""
    """Why it is left out, or how its times are written."""


def roles_of(frame: "pd.DataFrame", told: Mapping[str, str] | None = None, ask: bool = True) -> list[Column]:
    """The role of every column of a data frame of rows to learn from; ``told`` names those that are said and not found out.

    Without ``ask`` a column that somebody has to say something about has the role ``label`` or ``unclear``, and a note that says what.

    Raises:
        DataError: a column of numbers and words mixed, times written in several ways, a column that looks like labels, an unknown name or
            role in ``told``.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"heat": [20.5, None, 21.5, None] * 10, "pump": ["a", "b"] * 20, "number": range(40)})
    >>> [(column.name, column.role, column.missing) for column in roles_of(frame)]
    [('heat', 'number', 0.5), ('pump', 'category', 0.0), ('number', 'identifier', 0.0)]
    """
    told = dict(told or {})
    names = [str(name) for name in frame.columns]
    for name, role in told.items():
        if name not in names:
            raise DataError(f"expected the name of a column, got {name!r}; {did_you_mean(name, names)}")
        if role not in TOLD:
            raise DataError(f"column {name!r}: expected one of {', '.join(TOLD)}, got {role!r}")
    found = [
        _role_of(frame.iloc[:, position], name, told.get(name), last=position == len(names) - 1)
        for position, name in enumerate(names)
    ]
    if ask and (asked := next((column.note for column in found if column.role in ASKED_ABOUT), None)):
        raise DataError(asked)
    return found


def _pandas() -> Any:
    """Imported when a table is looked at: it takes as long as all the rest."""
    import pandas

    return pandas


def _role_of(column: "pd.Series", name: str, told: str | None, last: bool) -> Column:
    there = column.dropna()
    missing = 1.0 - len(there) / len(column) if len(column) else 0.0
    example = "" if there.empty else str(there.iloc[0])[:24]

    def found(role, note=""):
        return Column(name, role, missing, example, note)

    if told == "leave-out":
        return found("leave-out", "as told")
    if there.empty:
        return found("empty", "no value in it")
    try:
        _pandas().unique(there)
    except TypeError:
        return found(
            "unclear",
            f'column {name!r}: expected one value in a cell, found {example!r}; leave it out (--columns "{name}=leave-out")',
        )
    if told == "time":
        return found("time", _how_written(there, name))
    if told is not None:
        return found(told)
    if _is_label(there, name, last):
        return found(
            "label",
            f"column {name!r} looks like labels ({_counted(there)}), and a detector that has learned them has seen the answer: name it as "
            f'the label column (--label-column "{name}"), or say that it is a category (--columns "{name}=category") or to be left out '
            f'(--columns "{name}=leave-out")',
        )
    try:
        if _is_time(there, name):
            return found("time", _how_written(there, name))
    except DataError as error:
        return found("unclear", str(error))
    if numeric(there):
        return found(*_role_of_numbers(there))
    return found(*_role_of_words(there, name))


def _role_of_numbers(there) -> tuple[str, str]:
    values = there.to_numpy()
    if values.dtype.kind == "f" and np.isinf(values).any():
        return "number", ""  # for the reader to refuse by row and column
    if len(np.unique(values)) == 1:
        return "constant", ""
    whole = values.dtype.kind in "iu"
    if whole and max(abs(int(values.min())), abs(int(values.max()))) > LARGEST_WHOLE:
        return "identifier", "whole numbers beyond 2**53, which float64 does not tell apart"
    if whole and len(values) >= FEWEST_ROWS and (np.diff(values.astype(np.int64)) == 1).all():
        return "identifier", "counts the rows"
    return "number", ""


def _role_of_words(there, name) -> tuple[str, str]:
    pd = _pandas()
    words = np.asarray(pd.unique(there), dtype=object)
    try:
        as_numbers = pd.to_numeric(pd.Series(words, dtype=object), errors="coerce").notna().to_numpy()
    except OverflowError:
        return "identifier", "whole numbers that no number of a machine holds"
    told = isinstance(there.dtype, pd.CategoricalDtype) or _booleans(words)
    if as_numbers.all() and not told:
        return ("number" if len(words) > 1 else "constant"), ""
    if as_numbers.any() and not told:
        # By cells, not by kinds of cells: one word for a gap may stand in many.
        share = float(there.isin(words[as_numbers]).mean())
        if share > 0.05:
            word = str(words[~as_numbers][0])[:40]
            return "unclear", (
                f"column {name!r}: expected numbers or words, found both ({share:.0%} of the cells are numbers, others hold {word!r}); if "
                f'that means that nothing is known, say so (--missing "{word}"), or say what the column is (--columns "{name}=category")'
            )
    if len(words) == 1:
        return "constant", ""
    if len(words) == 2 and {str(word).strip().lower() for word in words} in YES_NO:
        return "yes/no", ""
    if len(there) >= FEWEST_ROWS and len(words) > 0.5 * len(there):
        long = np.mean([str(word).strip().count(" ") for word in words[:1000]]) >= 2
        return ("text", "sentences, hardly one twice") if long else ("identifier", "hardly a value twice")
    return "category", f"{len(words):,} levels, the {MOST_LEVELS} commonest are told apart" * (len(words) > MOST_LEVELS)


def numeric(column: "pd.Series") -> bool:
    """Numbers throughout, as pandas sees them; not yes and no."""
    pd = _pandas()
    return pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)


def _booleans(words) -> bool:
    return all(isinstance(word, bool | np.bool_) for word in words)


# ------------------------------------------------------------------------------------------------------------------- labels


def _counted(there) -> str:
    counts = there.map(word).value_counts()
    more = f", and {len(counts) - 4} more" if len(counts) > 4 else ""
    return ", ".join(f"{label} {count:,}" for label, count in counts.head(4).items()) + more


def _is_label(there, name, last) -> bool:
    pd = _pandas()
    if not LABEL_NAMES.fullmatch(name.strip()):
        return False
    words = {word(value).lower() for value in pd.unique(there)[:1000]}
    if len(words) <= 2:
        return True
    return not numeric(there) and (bool(words & NORMAL_WORDS) or (last and len(words) <= 20))


def word(value: Any) -> str:
    """A cell as a level of a category: 3, 3.0 and " 3" are one."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return str(value).strip()


def normal_word(labels: "pd.Series", name: str, told: str | None = None) -> tuple[str | None, str]:
    """``(the label of normal rows, all of them counted in words)``; None if there is no normal row among them.

    Raises:
        DataError: a gap, or none or several of the labels plainly mean normal and ``told`` does not say.

    >>> import pandas as pd
    >>> normal_word(pd.Series(["Normal", "Normal", "Anomaly"]), "label")
    ('Normal', 'Normal 2 (normal), Anomaly 1')
    >>> normal_word(pd.Series([1, 1, -1]), "label")[0]
    '1'
    """
    if len(gaps := np.flatnonzero(labels.isna())):
        raise DataError(
            f"column {name!r}: expected a label in every row, found none in row {gaps[0]} (counting from 0); mend it or leave the row out"
        )
    counts: Any = labels.map(word).value_counts()
    words: dict[str, str] = {label.lower(): label for label in counts.index}
    if told is not None:
        # At scoring, a file may hold no normal row.
        found = words.get(told.strip().lower(), told)
    elif set(words) <= {"-1", "1"} and "-1" in words:
        found = words.get("1")  # as scikit-learn has it
    else:
        normal = [label for lower, label in words.items() if lower in NORMAL_WORDS]
        # Other numbers may be classes, of which 0 is one like the others.
        classes = numeric(labels) and not set(words) <= {"0", "1"}
        if len(normal) > 1 or classes or (not normal and not set(words) <= ANOMALY_WORDS):
            raise DataError(
                f'column {name!r} holds {_counted(labels)}: which of them is normal? Say so (--normal "{counts.index[0]}"); all others '
                "are anomalies then"
            )
        found = normal[0] if normal else None
    said = [f"{label} {count:,}" + " (normal)" * (label == found) for label, count in counts.head(6).items()]
    more = f", and {len(counts) - 6} more" if len(counts) > 6 else ""
    return found, ", ".join(said) + more


def labels_of(labels: "pd.Series", normal: str | None) -> np.ndarray:
    """0 where a label means normal, 1 elsewhere."""
    return (labels.map(word) != normal).to_numpy().astype(np.int64)


# -------------------------------------------------------------------------------------------------------------------- times


def _is_time(there, name) -> bool:
    pd = _pandas()
    if pd.api.types.is_datetime64_any_dtype(there.dtype):
        return True
    if numeric(there):
        return _epoch(there, name) is not None
    sample = there.iloc[:1000]
    return not pd.api.types.is_bool_dtype(there.dtype) and bool(
        np.mean([isinstance(value, str) and _DATE_LIKE.fullmatch(value) is not None for value in sample]) > 0.9
    )


def _epoch(there, name) -> str | None:
    """The unit, of whole numbers that count time since 1970: called a time, or never falling."""
    values = there.to_numpy()
    if values.dtype.kind not in "iu":
        return None
    for unit, per_second in _EPOCHS.items():
        if values.min() >= _EPOCH_RANGE[0] * per_second and values.max() < _EPOCH_RANGE[1] * per_second:
            rising = len(values) >= FEWEST_ROWS and bool((values[1:] >= values[:-1]).all()) and values[0] < values[-1]
            return unit if rising or _TIME_NAMES.fullmatch(name) else None
    return None


def _how_written(there, name) -> str:
    """A format for ``times_of``: the unit of an epoch, ``datetime``, or what ``strptime`` takes.

    Raises:
        DataError: no time, or written in several ways.
    """
    pd = _pandas()
    if pd.api.types.is_datetime64_any_dtype(there.dtype):
        return "datetime"
    if numeric(there):
        unit = _epoch(there, name if _TIME_NAMES.fullmatch(name) else "time")
        if unit is None:
            raise DataError(
                f"column {name!r}: expected seconds, or parts of them, since 1970, or text such as 2024-05-31 10:00, got {there.iloc[0]}"
            )
        return unit
    text = there.astype(str).str.strip()
    best: tuple[int, Any] = (-1, "")
    for day_first in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            guessed = pd.tseries.api.guess_datetime_format(text.iloc[0], dayfirst=day_first)
        if guessed is None:
            continue
        for written in dict.fromkeys([guessed, *(["ISO8601"] if guessed.startswith("%Y-") else [])]):
            read = int(pd.to_datetime(text, format=written, errors="coerce", utc=True).notna().sum())
            best = max(best, (read, written), key=lambda each: each[0])
    if best[0] < len(text):
        if best[0] <= 0:
            raise DataError(
                f"column {name!r}: expected a time such as 2024-05-31 10:00, got {text.iloc[0]!r}; leave it out "
                f'(--columns "{name}=leave-out")'
            )
        other = text[pd.to_datetime(text, format=best[1], errors="coerce", utc=True).isna()].iloc[0]
        raise DataError(
            f"column {name!r}: expected times written in one way, got {text.iloc[0]!r} and {other!r}; write them alike, or leave it out "
            f'(--columns "{name}=leave-out")'
        )
    return best[1]


def times_of(column: "pd.Series", written: str) -> "pd.Series":
    """Cells as times, without a zone; what cannot be read as ``written`` is a gap."""
    pd = _pandas()
    if written == "datetime":
        times = pd.to_datetime(column, errors="coerce")
        return times.dt.tz_localize(None) if getattr(times.dtype, "tz", None) is not None else times
    if written in _EPOCHS:
        return pd.to_datetime(pd.to_numeric(column, errors="coerce"), unit=written, errors="coerce")
    text = column.astype(str).str.strip().where(column.notna())
    return pd.to_datetime(text, format=written, errors="coerce", utc=True).dt.tz_localize(None)
