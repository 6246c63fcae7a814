"""The record every reader returns: rows, labels and where they came from."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class DataError(ValueError):
    """The data cannot be used as they are; the message says what was expected, what came and how to mend it."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A table of numbers and, where they are known, its labels.

    ``x`` is ``[rows, features]``: float32 stays float32, every other real number becomes float64. ``y`` is ``[rows]``
    int64, 0 for normal and 1 for anomalous, or None when nothing is known. ``x`` may hold NaN for missing values:
    benchmark sets are handed over as they are and the protocol decides how to impute, while ``read_table`` refuses
    them. ``source`` is for the report.

    Raises ``DataError`` for anything but a table of real numbers with at least one row and one feature, labels of
    another length or with other values than 0 and 1, and a number of column names that is not the number of features.

    >>> Dataset("toy", np.array([[1, 2], [3, 4], [5, 60]]), np.array([0, 0, 1]), source="by hand")
    Dataset 'toy': 3 rows x 2 features, 1 anomalous (by hand)
    """

    name: str
    x: np.ndarray
    y: np.ndarray | None
    source: str
    columns: tuple[str, ...] | None = None
    ids: np.ndarray | None = None
    """What tells rows apart, ``[rows]`` of any kind, and is no feature."""
    frame: Any = None
    """The cells that the features were encoded from, a data frame; missing values may be among the features then."""

    def __post_init__(self):
        x = _as_features(self.x, self.name)
        object.__setattr__(self, "x", x)
        if self.y is not None:
            y = _as_labels(self.y, self.name)
            if len(y) != len(x):
                raise DataError(f"{self.name}: expected one label per row, got {len(y)} labels for {len(x)} rows")
            object.__setattr__(self, "y", y)
        if self.columns is not None:
            columns = tuple(str(column) for column in self.columns)
            if len(columns) != x.shape[1]:
                raise DataError(
                    f"{self.name}: expected one column name per feature, "
                    f"got {len(columns)} names for {x.shape[1]} features"
                )
            object.__setattr__(self, "columns", columns)

    def __repr__(self):
        labels = "unlabelled" if self.y is None else f"{int(self.y.sum())} anomalous"
        return f"Dataset {self.name!r}: {self.x.shape[0]} rows x {self.x.shape[1]} features, {labels} ({self.source})"


def refuse_non_finite(
    x: np.ndarray, where: str, *, columns: Sequence[str] | None = None, allow_nan: bool = False
) -> None:
    """Raise a ``DataError`` naming the first infinite value of ``x`` ``[rows, features]``, or NaN unless ``allow_nan``.

    >>> refuse_non_finite(np.array([[0.0, np.inf]]), "toy.csv", columns=("heat", "load"))
    Traceback (most recent call last):
    jaxad.data.dataset.DataError: toy.csv: expected finite numbers, found inf in row 0 (counting from 0), \
column 'load' (1 of 2 values); drop the rows or impute them (for example by the column mean)
    """
    bad = np.isinf(x) if allow_nan else ~np.isfinite(x)
    if not bad.any():
        return
    row, column = divmod(int(np.argmax(bad)), x.shape[1])
    column_name = repr(columns[column]) if columns is not None else str(column)
    what = "NaN (a missing value)" if np.isnan(x[row, column]) else str(x[row, column])
    raise DataError(
        f"{where}: expected finite numbers, found {what} in row {row} (counting from 0), column {column_name} "
        f"({np.count_nonzero(bad)} of {x.size} values); drop the rows or impute them (for example by the column mean)"
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known words, or else the first few.

    >>> did_you_mean("cardo", ["thyroid", "cardio"])
    "did you mean 'cardio'?"
    """
    by_lower_case = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower_case, n=3)
    if close:
        return f"did you mean {' or '.join(repr(by_lower_case[name]) for name in close)}?"
    names = list(by_lower_case.values())
    return f"known: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _as_features(x, name: str) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype.kind not in "biuf":
        raise DataError(
            f"{name}: expected features that are real numbers, got an array of {x.dtype}; encode them as numbers first"
        )
    if x.ndim != 2:
        raise DataError(
            f"{name}: expected features of shape [rows, features], got shape {x.shape}; "
            "reshape them, x.reshape(len(x), -1) for one row per sample"
        )
    if 0 in x.shape:
        raise DataError(f"{name}: expected at least one row and one feature, got shape {x.shape}")
    # In native byte order and row by row: JAX takes no other, and some files hold big-endian or column-major arrays.
    return np.ascontiguousarray(x, dtype=np.float32 if x.dtype.kind == "f" and x.dtype.itemsize == 4 else np.float64)


def _as_labels(y, name: str) -> np.ndarray:
    y = np.asarray(y)
    if y.ndim != 1:
        raise DataError(f"{name}: expected labels of shape [rows], got shape {y.shape}; flatten them with y.ravel()")
    other = y[(y != 0) & (y != 1)] if y.dtype.kind in "biuf" else y
    if len(other):
        found = ", ".join(repr(value) for value in list(dict.fromkeys(other.tolist()))[:3])
        raise DataError(
            f"{name}: expected labels 0 (normal) and 1 (anomalous), found {found}; "
            "write 0 for every normal row and 1 for every anomalous one"
        )
    return y.astype(np.int64)
