"""A user's own table, a file of columns with names or of arrays, as rows of numbers, or refused with a reason."""

import csv
import itertools
import os
import re
import reprlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxad.data.arrays import MAX_BYTES, damage_named, npz_pieces, read_npy, read_npy_rows, read_npz, read_record
from jaxad.data.dataset import DataError, Dataset, refuse_non_finite
from jaxad.data.dialect import Dialect, text_of
from jaxad.data.encoder import FrameEncoder
from jaxad.data.frame_files import (
    NAMELESS,
    TEXT,
    check_file,
    column_names,
    dialect_of,
    frame_pieces,
    kind_of,
    named,
    read_frame,
    taken_apart,
    without_row_numbers,
)
from jaxad.data.roles import labels_of, normal_word

if TYPE_CHECKING:
    import pandas as pd


def read_table(
    path: str | os.PathLike,
    *,
    label_column: str | None = None,
    drop: Sequence[str] = (),
    id_column: str | None = None,
    dialect: Dialect | None = None,
    encoder: FrameEncoder | None = None,
    normal: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Dataset:
    """Read one table of finite numbers, ``[rows, features]``, named after the file.

    - ``.npz``: features under ``X`` or ``x``, labels (0 normal, 1 anomalous) under ``y`` if known; other keys are left
    alone.
    - ``.npy``: features only.
    - ``.csv``, ``.tsv``, ``.txt``, ``.tab``, also packed (``.gz``, ``.bz2``, ``.xz``, ``.zip``): separated by commas, semicolons, tabs or
    bars, with decimal points or commas, with or without a line of names, in UTF-8, UTF-16 or Windows-1252: found out from the first lines
    (``dialect.found``), or told by ``dialect``.
    - ``.parquet``, ``.feather``: need pyarrow (``pip install 'jaxad[data]'``).
    - ``.jsonl``: an object a line, packed or not. ``.arff``: Weka's, packed or not.
    - ``.xlsx``: the first sheet; needs openpyxl (``pip install 'jaxad[excel]'``).
    - ``.array_record``: needs array_record, which comes with Grain; each record is one row, the bytes of a ``.npy`` array ``[features]``.

    In a file whose columns have names every column is a feature except the one named by ``label_column``. Nothing is guessed: a
    column that happens to be called ``label``, ``y`` or ``outlier`` is a feature too unless it is named here, and a
    detector fitted with it has seen the answer. Columns named in ``drop`` are left out, if they are there; ``id_column`` is
    kept as ``ids``, and both may hold text. Labels are 0 and 1, or words of which one plainly means normal, or ``normal`` says which one.

    With an ``encoder``, fitted on the rows to learn from, columns may be categories and times, values may be missing (NaN then), and the
    features are what it makes of them; ``frame`` holds the cells.

    float32 arrays stay float32, everything else becomes float64. ``max_bytes`` bounds what one array, or a file, may
    take up in memory; it is judged before anything is read.

    Raises ``DataError`` for everything that is not such a table: text columns, missing or infinite values, labels of which none
    plainly means normal, no rows, damaged or hostile files. The message says where the trouble is and how to mend it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "machines.csv")
    ...     _ = path.write_text("heat,load,broken\\n20.5,1,0\\n21.0,2,0\\n90.0,7,1\\n")
    ...     read_table(path, label_column="broken")
    Dataset 'machines': 3 rows x 2 features, 1 anomalous (machines.csv)
    """
    path = Path(os.path.expanduser(path))
    check_file(path, max_bytes)
    suffix = kind_of(path)
    if suffix in NAMELESS:
        _refuse_names(path, label_column, drop, id_column)
        if suffix == ".array_record":
            x, y = np.concatenate(list(_record_pieces(path, 65_536, 0, max_bytes)) or [np.empty((0, 0))]), None
        elif suffix == ".npy":
            x, y = read_npy(path, max_bytes=max_bytes), None
        else:
            x, y = read_npz(path, max_bytes=max_bytes)
        dataset = Dataset(path.stem, x, y, source=path.name)
    else:
        dialect = (dialect or dialect_of(path)) if suffix in TEXT else None
        frame = read_frame(path, dialect=dialect, max_bytes=max_bytes)
        dataset = _of_frame(frame, path, label_column, drop, id_column, dialect, encoder, normal)
    refuse_non_finite(dataset.x, str(path), columns=dataset.columns, allow_nan=dataset.frame is not None)
    return dataset


def table_blocks(
    path: str | os.PathLike,
    *,
    label_column: str | None = None,
    drop: Sequence[str] = (),
    id_column: str | None = None,
    dialect: Dialect | None = None,
    encoder: FrameEncoder | None = None,
    normal: str | None = None,
    rows: int = 65_536,
    start: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Iterator[Dataset]:
    """``read_table`` in pieces of at most so many rows, from row number ``start`` on, for files of any length.

    Memory is that of one piece. An ``.npz`` and a ``.csv`` cannot be read from the middle: what stands before ``start`` is read and let
    go. ``max_bytes`` bounds one piece. Errors as in ``read_table``, for a piece when it is reached; rows are numbered within it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder, "x.npy"), np.arange(10.0).reshape(5, 2))
    ...     [piece.x[:, 0].tolist() for piece in table_blocks(Path(folder, "x.npy"), rows=2, start=1)]
    [[2.0, 4.0], [6.0, 8.0]]
    """
    path = Path(os.path.expanduser(path))
    if rows < 1 or start < 0:
        raise DataError(f"expected at least one row in a piece and a first row from 0 on, got {rows=}, {start=}")
    suffix = kind_of(path)
    check_file(path, sys.maxsize)
    if suffix in NAMELESS:
        _refuse_names(path, label_column, drop, id_column)
    pieces: Iterator[Dataset]
    if suffix == ".npz":
        found = npz_pieces(path, rows, start, max_bytes=max_bytes)
        pieces = (Dataset(path.stem, x, y, source=path.name) for x, y in found)
    elif suffix in NAMELESS:
        read = _npy_pieces if suffix == ".npy" else _record_pieces
        pieces = (Dataset(path.stem, x, None, source=path.name) for x in read(path, rows, start, max_bytes))
    else:
        dialect = (dialect or dialect_of(path)) if suffix in TEXT else None
        frames = frame_pieces(path, suffix, dialect, rows, start, max_bytes)
        how = (label_column, drop, id_column, dialect, encoder, normal)
        pieces = (_of_frame(without_row_numbers(frame, dialect), path, *how) for frame in frames)
    first = start
    for dataset in pieces:
        where = f"{path}, counted from row {first}" if first else str(path)
        refuse_non_finite(dataset.x, where, columns=dataset.columns, allow_nan=dataset.frame is not None)
        yield dataset
        first += len(dataset.x)


def _npy_pieces(path: Path, rows: int, start: int, max_bytes: int) -> Iterator[np.ndarray]:
    for first in itertools.count(start, rows):
        with damage_named(path, "a NumPy .npy file"):
            piece = read_npy_rows(path, first, rows, max_bytes=max_bytes)
        if not len(piece):
            return
        yield piece


def _record_pieces(path: Path, rows: int, start: int, max_bytes: int) -> Iterator[np.ndarray]:
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise DataError(
            f"{path}: reading records needs array_record; install it with pip install 'jaxad[data]', or save a CSV"
        ) from error
    with damage_named(path, "a file of ArrayRecord"):
        # One record at a time, or a hostile length is inflated by several threads at once.
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
        try:
            num_rows, width = reader.num_records(), None
            for first in range(start, num_rows, rows):
                piece, left = [], max_bytes
                for number in range(first, min(first + rows, num_rows)):
                    row = read_record(reader.read([number])[0], f"{path}, record {number}", max_bytes=left)
                    piece.append(row)
                    width, left = width or len(row), left - row.nbytes
                    if len(row) != width:
                        raise DataError(
                            f"{path}: expected {width} features in every record, got {len(row)} in record {number}"
                        )
                yield np.stack(piece)
        finally:
            reader.close()


def _refuse_names(path: Path, label_column: str | None, drop: Sequence[str], id_column: str | None) -> None:
    """A ``DataError`` if a column is named of a file whose columns have no names."""
    if label_column is not None:
        raise DataError(
            f"{path}: label_column={label_column!r} names a column; give labels to an .npz file under the key 'y'"
        )
    if named := [*drop, *([] if id_column is None else [id_column])]:
        raise DataError(f"{path}: {named[0]!r} names a column, and columns of this file have no names")


def _of_frame(
    frame: "pd.DataFrame",
    path: Path,
    label_column: str | None,
    drop: Sequence[str] = (),
    id_column: str | None = None,
    dialect: Dialect | None = None,
    encoder: FrameEncoder | None = None,
    normal: str | None = None,
) -> Dataset:
    """Features, labels, their names, and what tells rows apart; ``DataError`` for a column of text unless an encoder knows it."""
    frame, labels, ids = taken_apart(frame, path, label_column, drop, id_column)
    with named(path):
        y = None if labels is None else labels_of(labels, normal or normal_word(labels, str(label_column))[0])
    if encoder is not None:
        with named(path):
            x = encoder.transform(frame, dialect)
        columns = tuple(encoder.get_feature_names_out())
        return Dataset(path.stem, x, y, source=path.name, columns=columns, ids=ids, frame=frame)
    columns = tuple(str(name) for name in frame.columns)
    features = [_numbers(frame.iloc[:, position], path, dialect) for position in range(len(columns))]
    if not features:
        raise DataError(f"{path}: expected at least one column of features besides the labels, got none")
    return Dataset(path.stem, np.column_stack(features), y, source=path.name, columns=columns, ids=ids)


def _numbers(column: "pd.Series", path: Path, dialect: Dialect | None) -> np.ndarray:
    """One column as floats, missing values as NaN."""
    import pandas as pd

    if column.dtype.kind in "biuf":
        return column.to_numpy(dtype=np.float32 if column.dtype == np.float32 else np.float64, na_value=np.nan)
    # Not numbers throughout. A missing value is for refuse_non_finite to name; text, dates and nested values end here.
    numbers = np.full(len(column), np.nan)
    for row, value in enumerate(column):
        number = (dialect or Dialect()).number(value)
        if number is not None:
            numbers[row] = number
        elif not (pd.api.types.is_scalar(value) and pd.isna(value)):
            where = f"row {row}" if dialect is None else _line_of(path, dialect, column, value)
            raise DataError(
                f"{path}: expected numbers in column {column.name!r}, found {reprlib.repr(value)} in {where}; {_what_text_is(value)}"
            )
    return numbers


_WRITTEN = (
    (r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", "that looks like thousands separators: save the numbers without"),
    (r"[+-]?[\d.]*\d,\d+", "that looks like a decimal comma: save the file with decimal points"),
    (r"0[xX][0-9a-fA-F]+", "that looks like a hexadecimal number: save it as a decimal one"),
    (
        r"[^\w\s.,+-]\s*[+-]?[\d.,]+|[+-]?[\d.,]+\s*[^\d\s.,]{1,4}",
        "that looks like a number with a unit: save it without",
    ),
    (
        r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*",
        "that looks like a date: leave the column out (--drop), or save it as a number",
    ),
)
"""Numbers as people and programs write them, and how to write them instead."""


def _what_text_is(value) -> str:
    text = value.strip() if isinstance(value, str) else ""
    found = (advice for pattern, advice in _WRITTEN if re.fullmatch(pattern, text))
    return next(found, "encode the column as numbers, or leave it out (--drop)")


def _line_of(path: Path, dialect: Dialect, column: "pd.Series", value: str) -> str:
    """The first line of a text file with ``value`` in a column: rows may span lines, lines may be blank."""
    with text_of(path, dialect.encoding) as lines:
        reader = csv.reader(lines, delimiter=dialect.separator, skipinitialspace=True)
        names = column_names(path, dialect)
        position = names.index(str(column.name))
        matching = (reader.line_num for row in reader if len(row) > position and row[position] == str(value))
        try:
            return f"line {next(matching)}"
        except (StopIteration, csv.Error):  # pandas takes longer cells than csv, and other text for a missing value
            return "a line that cannot be told"
