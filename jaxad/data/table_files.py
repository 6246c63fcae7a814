"""A user's own table, text in whatever dialect, Parquet, Feather, JSON lines or arrays, read or refused with a reason."""

import csv
import itertools
import os
import re
import reprlib
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxad.data.arff import read_head
from jaxad.data.arrays import MAX_BYTES, damage_named, npz_pieces, read_npy, read_npy_rows, read_npz, read_record
from jaxad.data.dataset import DataError, Dataset, did_you_mean, refuse_non_finite
from jaxad.data.dialect import PACKED, SEPARATORS, Dialect, found, opened, text_of
from jaxad.data.encoder import FrameEncoder
from jaxad.data.roles import labels_of, normal_word

if TYPE_CHECKING:
    import pandas as pd

TEXT = (".csv", ".tsv", ".txt", ".tab")
"""Rows of text, packed or not (``dialect.PACKED``)."""

SUFFIXES = (*TEXT, ".parquet", ".feather", ".jsonl", ".arff", ".xlsx", ".npy", ".npz", ".array_record")
PACKABLE = (*TEXT, ".jsonl", ".arff")
PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth")
NAMELESS = (".array_record", ".npy", ".npz")
"""Those whose columns have no names."""


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
    _check_file(path, max_bytes)
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


def read_frame(
    path: str | os.PathLike, *, dialect: Dialect | None = None, rows: int | None = None, max_bytes: int = MAX_BYTES
) -> "pd.DataFrame":
    """A file whose columns have names as a data frame, cells as they are; all of it, or the first so many ``rows``.

    Raises:
        DataError: as ``read_table``, but for what cells hold.
    """
    path = Path(os.path.expanduser(path))
    _check_file(path, max_bytes if rows is None else sys.maxsize)
    suffix = kind_of(path)
    if suffix in NAMELESS:
        raise DataError(
            f"{path}: expected a file whose columns have names, got a file of numbers; read it with read_table"
        )
    dialect = (dialect or dialect_of(path)) if suffix in TEXT else None
    if rows is not None:
        frame = next(_pieces_of(path, suffix, dialect, rows, max_bytes), None)
    else:
        if suffix in PACKABLE:
            _check_unpacked(path, max_bytes)
        frame = _whole(path, suffix, dialect, max_bytes)
    if frame is None or not len(frame):
        raise DataError(f"{path}: expected at least one row, got none")
    return without_row_numbers(frame, dialect)


def read_column(path: str | os.PathLike, name: str, dialect: Dialect | None = None) -> "pd.Series":
    """One column of a file of any length, read in pieces."""
    import pandas as pd

    path = Path(os.path.expanduser(path))
    _check_file(path, sys.maxsize)
    suffix = kind_of(path)
    dialect = (dialect or dialect_of(path)) if suffix in TEXT else None
    pieces: list[Any] = [
        taken_apart(frame, path, name)[1] for frame in _pieces_of(path, suffix, dialect, 65_536, sys.maxsize)
    ]
    if not pieces:
        raise DataError(f"{path}: expected at least one row, got none")
    return pd.concat(pieces, ignore_index=True)  # pyright: ignore[reportCallIssue, reportArgumentType]


def without_row_numbers(frame: "pd.DataFrame", dialect: Dialect | None) -> "pd.DataFrame":
    """The columns that have names."""
    numbered = dialect is not None and dialect.numbered and len(frame.columns) and not frame.columns[0]
    return frame.iloc[:, 1:].copy() if numbered else frame


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
    _check_file(path, sys.maxsize)
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
        frames = _frame_pieces(path, suffix, dialect, rows, start, max_bytes)
        how = (label_column, drop, id_column, dialect, encoder, normal)
        pieces = (_of_frame(without_row_numbers(frame, dialect), path, *how) for frame in frames)
    first = start
    for dataset in pieces:
        where = f"{path}, counted from row {first}" if first else str(path)
        refuse_non_finite(dataset.x, where, columns=dataset.columns, allow_nan=dataset.frame is not None)
        yield dataset
        first += len(dataset.x)


def kind_of(path: Path) -> str:
    """The ending that says what a file is: of ``rows.csv.gz`` it is ``.csv``."""
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    return inner if suffix in PACKED and inner in PACKABLE else suffix


def dialect_of(path: str | os.PathLike) -> Dialect | None:
    """How a text file of rows is written, found out from its first lines; None for a file of another kind."""
    path = Path(os.path.expanduser(path))
    _check_file(path, sys.maxsize)
    if kind_of(path) not in TEXT:
        return None
    with damage_named(path, "text"):
        return found(path)


def first_cells(path: Path, dialect: Dialect) -> list[str]:
    """Those of the first line of a text file; whatever they are."""
    with damage_named(path, "text"), text_of(path, dialect.encoding) as lines:
        return [cell.strip() for cell in next(dialect.rows(lines), [])]


def table_columns(path: str | os.PathLike, dialect: Dialect | None = None) -> tuple[str, ...] | None:
    """The names of all columns, unless it is a file whose columns have none."""
    path = Path(os.path.expanduser(path))
    _check_file(path, sys.maxsize)
    suffix = kind_of(path)
    if suffix in NAMELESS:
        return None
    if suffix in TEXT:
        dialect = dialect or dialect_of(path) or Dialect()
        with damage_named(path, "text"):
            return tuple(name for name in _column_names(path, dialect) if name)
    frame = next(_pieces_of(path, suffix, None, 1, sys.maxsize), None)
    return () if frame is None else tuple(map(str, frame.columns))


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


def _frame_pieces(
    path: Path, suffix: str, dialect: Dialect | None, rows: int, start: int, max_bytes: int
) -> "Iterator[pd.DataFrame]":
    passed = 0  # lines cannot be skipped unread: a row may span several, and lines may be blank
    for frame in _pieces_of(path, suffix, dialect, rows, max_bytes):
        skip, passed = max(start - passed, 0), passed + len(frame)
        if skip < len(frame):
            yield frame.iloc[skip:]


def _pieces_of(path: Path, suffix: str, dialect: Dialect | None, rows: int, max_bytes: int) -> "Iterator[pd.DataFrame]":
    if suffix == ".parquet":
        yield from _parquet_pieces(path, rows, max_bytes)
    elif suffix == ".feather":
        yield from _feather_pieces(path, rows, max_bytes)
    elif suffix == ".jsonl":
        yield from _jsonl_pieces(path, rows)
    elif suffix == ".arff":
        yield from _arff_pieces(path, rows)
    elif suffix == ".xlsx":
        yield from _sheet_pieces(path, rows, max_bytes)
    else:
        dialect = dialect or Dialect()
        with damage_named(path, "text"):
            names = _column_names(path, dialect)
            for frame in _parsed(path, dialect, chunksize=rows):
                yield frame.set_axis(names, axis="columns")


def _whole(path: Path, suffix: str, dialect: Dialect | None, max_bytes: int) -> "pd.DataFrame":
    if suffix == ".parquet":
        return _read_parquet(path, max_bytes)
    if suffix in TEXT:
        dialect = dialect or Dialect()
        with damage_named(path, "text"):
            names = _column_names(path, dialect)
            return next(_parsed(path, dialect)).set_axis(names, axis="columns")
    import pandas as pd

    pieces = list(_pieces_of(path, suffix, dialect, 2**20, max_bytes))
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame()


def _jsonl_pieces(path: Path, rows: int) -> "Iterator[pd.DataFrame]":
    import pandas as pd

    with damage_named(path, "JSON, an object a line"), opened(path) as file:
        as_written: Any = {"dtype": False, "precise_float": True}
        reader: Any = pd.read_json(file, lines=True, chunksize=rows, **as_written)
        columns: list[str] | None = None
        for frame in reader:
            names = [str(name) for name in frame.columns]
            if columns is not None and set(names) - set(columns):
                raise DataError(
                    f"{path}: expected the fields {', '.join(columns)} in every line, got {sorted(set(names) - set(columns))[0]!r} too"
                )
            columns = columns or names
            yield frame.reindex(columns=columns)


def _arff_pieces(path: Path, rows: int) -> "Iterator[pd.DataFrame]":
    import pandas as pd

    with damage_named(path, "ARFF"), text_of(path, "utf-8-sig") as file:
        attributes = read_head(file, path)
        names = [name for name, _ in attributes]
        if len(set(names)) < len(names):
            raise DataError(f"{path}: expected every attribute once; rename those of one name")
        of_words: Any = {name: str for name, is_number in attributes if not is_number}
        settings: dict[str, Any] = {"quotechar": "'", "escapechar": "\\", "comment": "%", "skipinitialspace": True}
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            try:
                reader: Any = pd.read_csv(
                    file,
                    header=None,
                    names=names,
                    na_values=["?"],
                    keep_default_na=False,
                    dtype=of_words,
                    index_col=False,
                    chunksize=rows,
                    **settings,
                )
                yield from reader
            except (pd.errors.ParserWarning, pd.errors.ParserError) as error:
                raise DataError(f"{path}: expected {len(names)} values in every row of @data, but {error}") from error


def _sheet_pieces(path: Path, rows: int, max_bytes: int) -> "Iterator[pd.DataFrame]":
    """The first sheet: names in its first row."""
    import pandas as pd

    try:
        import openpyxl
    except ImportError as error:
        raise DataError(
            f"{path}: reading a workbook needs openpyxl; install it with pip install 'jaxad[excel]', or save a CSV"
        ) from error
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"\xd0\xcf\x11\xe0":
        raise DataError(
            f"{path}: expected an .xlsx workbook, got one with a password, or an old .xls; save it without, or as a CSV"
        )
    with damage_named(path, "an .xlsx workbook"):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > max_bytes:
            raise DataError(f"{path}: expected at most {max_bytes} bytes unpacked, got {size}")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            cells = book.worksheets[0].iter_rows(values_only=True)
            names = ["" if name is None else str(name).strip() for name in next(cells, ())]
            while names and not names[-1]:
                names.pop()
            if not names:
                raise DataError(f"{path}: expected names in the first row of the first sheet, got an empty sheet")
            if len(set(names)) < len(names) or not all(names):
                raise DataError(
                    f"{path}: expected a name of its own for every column in the first row, got {', '.join(names)[:200]}"
                )
            while piece := [
                row[: len(names)] for row in itertools.islice(cells, rows) if any(cell is not None for cell in row)
            ]:
                yield pd.DataFrame(piece, columns=names).replace("?", np.nan).infer_objects()
        finally:
            book.close()


def _feather_pieces(path: Path, rows: int, max_bytes: int) -> "Iterator[pd.DataFrame]":
    _parquet(path)  # says what is missing
    import pyarrow as pa

    with damage_named(path, "a Feather file"), pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            if batch.nbytes > max_bytes:
                raise DataError(f"{path}: expected at most {max_bytes} bytes in a piece, got {batch.nbytes}")
            for first in range(0, batch.num_rows, rows):
                yield batch.slice(first, rows).to_pandas()


def _parquet_pieces(path: Path, rows: int, max_bytes: int) -> "Iterator[pd.DataFrame]":
    parquet = _parquet(path)
    with damage_named(path, "a Parquet file"), parquet.ParquetFile(path) as file:
        if rows * file.metadata.num_columns * 8 > max_bytes:
            raise DataError(
                f"{path}: expected a piece of at most {max_bytes} bytes, got {rows} rows x {file.metadata.num_columns} columns"
            )
        for batch in file.iter_batches(batch_size=rows):
            yield batch.to_pandas()


def _check_unpacked(path: Path, max_bytes: int) -> None:
    """Raise a DataError if a packed file is larger than that once unpacked."""
    if path.suffix.lower() not in PACKED:
        return
    with damage_named(path, f"a {path.suffix.lower()} file"), opened(path) as file:
        size = 0
        while piece := file.read(2**20):
            size += len(piece)
            if size > max_bytes:
                raise DataError(
                    f"{path}: expected at most {max_bytes} bytes unpacked, got more; raise max_bytes if the file is to be trusted"
                )


def _check_file(path: Path, max_bytes: int) -> None:
    if path.suffix.lower() in PICKLES:
        raise DataError(
            f"{path}: a pickle is not opened, since it can run any code; save the table as .csv, .parquet (DataFrame.to_parquet) or .npy"
        )
    if kind_of(path) not in SUFFIXES:
        raise DataError(
            f"{path}: expected a file ending in {', '.join(SUFFIXES)}, got {path.suffix or 'no suffix'!r}; "
            "convert it first"
        )
    if path.is_dir():
        raise DataError(f"{path}: expected a file, got a directory; name one file in it")
    if not path.is_file():
        what = (
            "something that is not a regular file" if path.exists() else f"nothing (looked in {path.parent.resolve()})"
        )
        raise DataError(f"{path}: expected a file, found {what}; check the path")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: expected a table, got an empty file; save it again")
    if path.stat().st_size > max_bytes:
        raise DataError(
            f"{path}: expected at most {max_bytes} bytes, got {path.stat().st_size}; "
            "raise max_bytes if the file is to be trusted"
        )


def _parsed(path: Path, dialect: Dialect, chunksize: int | None = None) -> "Iterator[pd.DataFrame]":
    import pandas as pd

    settings: dict[str, Any] = dialect.pandas() | {
        "index_col": False,  # or a longer first row turns its first value into an index
        "skipinitialspace": True,
        "low_memory": False,
    }
    reader: Any = None
    with opened(path) as file:
        try:
            while True:
                with warnings.catch_warnings():  # entered anew for every piece: what happens between two is not ours
                    # Rows longer than the header: pandas would cut them and merely warn.
                    warnings.simplefilter("error", pd.errors.ParserWarning)
                    if chunksize is None:
                        frame = pd.read_csv(file, **settings)
                    else:
                        reader = pd.read_csv(file, chunksize=chunksize, **settings) if reader is None else reader
                        frame = next(reader, None)
                if frame is None:
                    return
                yield frame
                if chunksize is None:
                    return
        except (pd.errors.ParserWarning, pd.errors.ParserError) as error:
            why = _row_of_other_length(path, dialect)
            raise DataError(why or f"{path}: expected text in rows, but {error}") from error
        finally:
            if reader is not None:
                reader.close()


def _row_of_other_length(path: Path, dialect: Dialect) -> str | None:
    """Which row has more values than there are names, in words."""
    try:
        with text_of(path, dialect.encoding) as lines:
            for _ in range(dialect.skipped):
                lines.readline()
            reader = csv.reader(lines, delimiter=dialect.separator, skipinitialspace=True)
            names = next(row for row in reader if row)
            for row in reader:
                if len(row) > len(names):
                    holds = "a comma" if dialect.separator == "," else f"the separator {dialect.separator!r}"
                    return (
                        f"{path}: expected {len(names)} values in every line, as in the first one, got {len(row)} in line "
                        f"{reader.line_num + dialect.skipped}; mend it (a value that holds {holds} stands in quotes)"
                    )
    except (csv.Error, StopIteration, UnicodeDecodeError):
        pass
    return None


def _column_names(path: Path, dialect: Dialect) -> list[str]:
    """The names in the first line of a text file, each there and unlike the others; ``DataError`` if they are none."""
    names = first_cells(path, dialect)
    if not names:
        raise DataError(f"{path}: expected a line of column names, got an empty file; save it again")
    other = next((mark for mark in SEPARATORS if mark != dialect.separator and mark in names[0]), None)
    if len(names) == 1 and other and dialect.separator != ",":
        raise DataError(
            f"{path}: expected columns separated by {SEPARATORS[dialect.separator]}, as in the file that was learned from, got the first "
            f"line {names[0]!r}; save it with them"
        )
    if not dialect.header:
        return [f"column_{number}" for number in range(1, len(names) + 1)]
    if not all(names[1:] if dialect.numbered else names):
        nameless = next(index for index, name in enumerate(names) if not name and not (dialect.numbered and index == 0))
        why = {
            0: "name or remove it (pandas writes its row numbers like that: save with index=False)",
            len(names) - 1: "the line ends with a separator: take it away there, and in the lines below",
        }
        raise DataError(
            f"{path}: expected a name for every column, but column {nameless} (counting from 0) has none; "
            + why.get(nameless, "name or remove it")
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: expected every column name once, but {twice[0]!r} occurs {names.count(twice[0])} times; "
            "rename one"
        )
    return names


def _read_parquet(path: Path, max_bytes: int) -> "pd.DataFrame":
    parquet = _parquet(path)
    with damage_named(path, "a Parquet file"), parquet.ParquetFile(path) as file:
        num_bytes = file.metadata.num_rows * file.metadata.num_columns * 8
        if num_bytes > max_bytes:
            raise DataError(
                f"{path}: expected at most {max_bytes} bytes, but it declares {file.metadata.num_rows} rows x "
                f"{file.metadata.num_columns} columns; raise max_bytes if the file is to be trusted"
            )
        return file.read().to_pandas()


def _parquet(path: Path):
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow; install it with pip install 'jaxad[data]', or save a CSV"
        ) from error
    return parquet


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


def taken_apart(
    frame: Any, path: Path, label_column: str | None, drop: Sequence[str] = (), id_column: str | None = None
) -> tuple[Any, Any, np.ndarray | None]:
    """``(all other columns, labels, what tells rows apart)``.

    Raises:
        DataError: there is no such column.
    """
    for name, what in ((label_column, "a label"), (id_column, "an id")):
        if name is not None and name not in frame.columns:
            hint = did_you_mean(name, [str(other) for other in frame.columns])
            raise DataError(f"{path}: expected {what} column {name!r}, but there is none; {hint}")
    labels = None if label_column is None else frame[label_column]
    ids = None if id_column is None else frame[id_column].to_numpy()
    gone = {label_column, id_column, *drop}
    return frame[[name for name in frame.columns if name not in gone]], labels, ids


@contextmanager
def named(path: Path) -> Iterator[None]:
    """The file's name before what is said of a column."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


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
        names = _column_names(path, dialect)
        position = names.index(str(column.name))
        matching = (reader.line_num for row in reader if len(row) > position and row[position] == str(value))
        try:
            return f"line {next(matching)}"
        except (StopIteration, csv.Error):  # pandas takes longer cells than csv, and other text for a missing value
            return "a line that cannot be told"
