"""Files whose columns have names as data frames: text in whatever dialect, Parquet, Feather, JSON lines, ARFF, workbooks."""

import csv
import itertools
import os
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
from jaxad.data.arrays import MAX_BYTES, damage_named
from jaxad.data.dataset import DataError, did_you_mean
from jaxad.data.dialect import PACKED, SEPARATORS, Dialect, found, opened, text_of

if TYPE_CHECKING:
    import pandas as pd

TEXT = (".csv", ".tsv", ".txt", ".tab")
"""Rows of text, packed or not (``dialect.PACKED``)."""

SUFFIXES = (*TEXT, ".parquet", ".feather", ".jsonl", ".arff", ".xlsx", ".npy", ".npz", ".array_record")
PACKABLE = (*TEXT, ".jsonl", ".arff")
PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth")
NAMELESS = (".array_record", ".npy", ".npz")
"""Those whose columns have no names."""


def read_frame(
    path: str | os.PathLike, *, dialect: Dialect | None = None, rows: int | None = None, max_bytes: int = MAX_BYTES
) -> "pd.DataFrame":
    """A file whose columns have names as a data frame, cells as they are; all of it, or the first so many ``rows``.

    Raises:
        DataError: as ``read_table``, but for what cells hold.
    """
    path = Path(os.path.expanduser(path))
    check_file(path, max_bytes if rows is None else sys.maxsize)
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
    check_file(path, sys.maxsize)
    suffix = kind_of(path)
    dialect = (dialect or dialect_of(path)) if suffix in TEXT else None
    pieces: list[Any] = [
        taken_apart(frame, path, name)[1] for frame in _pieces_of(path, suffix, dialect, 65_536, sys.maxsize)
    ]
    if not pieces:
        raise DataError(f"{path}: expected at least one row, got none")
    whole: Any = pd.concat(pieces, ignore_index=True)
    return whole


def kind_of(path: Path) -> str:
    """The ending that says what a file is: of ``rows.csv.gz`` it is ``.csv``."""
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    return inner if suffix in PACKED and inner in PACKABLE else suffix


def dialect_of(path: str | os.PathLike) -> Dialect | None:
    """How a text file of rows is written, found out from its first lines; None for a file of another kind."""
    path = Path(os.path.expanduser(path))
    check_file(path, sys.maxsize)
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
    check_file(path, sys.maxsize)
    suffix = kind_of(path)
    if suffix in NAMELESS:
        return None
    if suffix in TEXT:
        dialect = dialect or dialect_of(path) or Dialect()
        with damage_named(path, "text"):
            return tuple(name for name in column_names(path, dialect) if name)
    frame = next(_pieces_of(path, suffix, None, 1, sys.maxsize), None)
    return () if frame is None else tuple(map(str, frame.columns))


def without_row_numbers(frame: "pd.DataFrame", dialect: Dialect | None) -> "pd.DataFrame":
    """The columns that have names."""
    numbered = dialect is not None and dialect.numbered and len(frame.columns) and not frame.columns[0]
    return frame.iloc[:, 1:].copy() if numbered else frame


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


def frame_pieces(
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
            names = column_names(path, dialect)
            for frame in _parsed(path, dialect, chunksize=rows):
                yield frame.set_axis(names, axis="columns")


def _whole(path: Path, suffix: str, dialect: Dialect | None, max_bytes: int) -> "pd.DataFrame":
    if suffix == ".parquet":
        return _read_parquet(path, max_bytes)
    if suffix in TEXT:
        dialect = dialect or Dialect()
        with damage_named(path, "text"):
            names = column_names(path, dialect)
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
        settings |= {"na_values": ["?"], "keep_default_na": False, "index_col": False}
        reader: Any = None
        try:
            while True:
                with warnings.catch_warnings():  # entered anew for every piece: what happens between two is not ours
                    warnings.simplefilter("error", pd.errors.ParserWarning)
                    if reader is None:
                        reader = pd.read_csv(file, header=None, names=names, dtype=of_words, chunksize=rows, **settings)
                    frame = next(reader, None)
                if frame is None:
                    return
                # Said to be categories, whatever they look like.
                yield frame.astype(dict.fromkeys(of_words, "category"))
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
            batch.validate(full=True)  # text that is none would be found out much later
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


def check_file(path: Path, max_bytes: int) -> None:
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


def column_names(path: Path, dialect: Dialect) -> list[str]:
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
