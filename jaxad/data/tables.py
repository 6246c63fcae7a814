"""A user's own table, ``.npz``, ``.npy``, ``.csv`` or ``.parquet``, read or refused with a reason."""

import csv
import os
import reprlib
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxad.data.arrays import MAX_BYTES, damage_named, read_npy, read_npz
from jaxad.data.dataset import DataError, Dataset, did_you_mean, refuse_non_finite

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".npy", ".npz", ".parquet")


def read_table(path: str | os.PathLike, *, label_column: str | None = None, max_bytes: int = MAX_BYTES) -> Dataset:
    """Read one table of finite numbers, ``[rows, features]``, named after the file.

    - ``.npz``: features under ``X`` or ``x``, labels (0 normal, 1 anomalous) under ``y`` if known; other keys are left
    alone.
    - ``.npy``: features only.
    - ``.csv``: comma separated, the first line names the columns.
    - ``.parquet``: needs pyarrow (``pip install 'jaxad[data]'``).

    In a CSV or Parquet file every column is a feature except the one named by ``label_column``. Nothing is guessed: a
    column that happens to be called ``label``, ``y`` or ``outlier`` is a feature too unless it is named here, and a
    detector fitted with it has seen the answer.

    float32 arrays stay float32, everything else becomes float64. ``max_bytes`` bounds what one array, or a file, may
    take up in memory; it is judged before anything is read.

    Raises ``DataError`` for everything that is not such a table: text columns, missing or infinite values, other labels
    than 0 and 1, no rows, damaged or hostile files. The message says where the trouble is and how to mend it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "machines.csv")
    ...     _ = path.write_text("heat,load,broken\\n20.5,1,0\\n21.0,2,0\\n90.0,7,1\\n")
    ...     read_table(path, label_column="broken")
    Dataset 'machines': 3 rows x 2 features, 1 anomalous (machines.csv)
    """
    path = Path(os.path.expanduser(path))
    _check_file(path, max_bytes)
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        if label_column is not None:
            raise DataError(
                f"{path}: label_column={label_column!r} names a CSV or Parquet column; "
                "give labels to an .npz file under the key 'y'"
            )
        x, y = (read_npy(path, max_bytes=max_bytes), None) if suffix == ".npy" else read_npz(path, max_bytes=max_bytes)
        columns = None
    else:
        frame = _read_csv(path) if suffix == ".csv" else _read_parquet(path, max_bytes)
        x, y, columns = _split_frame(frame, path, label_column)
    dataset = Dataset(path.stem, x, y, source=path.name, columns=columns)
    refuse_non_finite(dataset.x, str(path), columns=columns)
    return dataset


def _check_file(path: Path, max_bytes: int) -> None:
    if path.suffix.lower() not in SUFFIXES:
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


def _read_csv(path: Path) -> "pd.DataFrame":
    import pandas as pd

    with damage_named(path, "comma-separated text in UTF-8"):
        names = _column_names(path)
        try:
            with warnings.catch_warnings():
                # Rows longer than the header: pandas would cut them and merely warn.
                warnings.simplefilter("error", pd.errors.ParserWarning)
                frame = pd.read_csv(
                    path,
                    encoding="utf-8-sig",
                    index_col=False,  # or a longer first row turns its first value into an index
                    skipinitialspace=True,
                    low_memory=False,
                )
                return frame.set_axis(names, axis="columns")
        except pd.errors.ParserWarning as error:
            raise DataError(
                f"{path}: expected rows as long as the line of column names, but {error}; mend the file"
            ) from error


def _column_names(path: Path) -> list[str]:
    """The names in the first line of a CSV file, each there and unlike the others; ``DataError`` if they are none."""
    with path.open(newline="", encoding="utf-8-sig") as lines:
        names = [name.strip() for name in next((row for row in csv.reader(lines, skipinitialspace=True) if row), [])]
    if not names:
        raise DataError(f"{path}: expected a line of column names, got an empty file; save it again")
    if all(_is_number(name) for name in names):
        raise DataError(
            f"{path}: expected column names in the first line, got the numbers {','.join(names[:4])}; "
            "put a line of names first, or they would be lost as data"
        )
    if not all(names):
        nameless = next(index for index, name in enumerate(names) if not name)
        raise DataError(
            f"{path}: expected a name for every column, but column {nameless} (counting from 0) has none; "
            "name or remove it (pandas writes its row numbers like that: save with index=False)"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: expected every column name once, but {twice[0]!r} occurs {names.count(twice[0])} times; "
            "rename one"
        )
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise DataError(
            f"{path}: expected columns separated by commas, got the first line {names[0]!r}; save it with commas"
        )
    return names


def _read_parquet(path: Path, max_bytes: int) -> "pd.DataFrame":
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow; install it with pip install 'jaxad[data]', or save a CSV"
        ) from error

    with damage_named(path, "a Parquet file"), parquet.ParquetFile(path) as file:
        num_bytes = file.metadata.num_rows * file.metadata.num_columns * 8
        if num_bytes > max_bytes:
            raise DataError(
                f"{path}: expected at most {max_bytes} bytes, but it declares {file.metadata.num_rows} rows x "
                f"{file.metadata.num_columns} columns; raise max_bytes if the file is to be trusted"
            )
        return file.read().to_pandas()


def _split_frame(
    frame: "pd.DataFrame", path: Path, label_column: str | None
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Features, labels and the names of the features; ``DataError`` for a column of text."""
    y = None
    if label_column is not None:
        if label_column not in frame.columns:
            hint = did_you_mean(label_column, [str(name) for name in frame.columns])
            raise DataError(f"{path}: expected a label column {label_column!r}, but there is none; {hint}")
        y = frame.pop(label_column).to_numpy()
    columns = tuple(str(name) for name in frame.columns)
    features = [_numbers(frame.iloc[:, position], path) for position in range(len(columns))]
    if not features:
        raise DataError(f"{path}: expected at least one column of features besides the labels, got none")
    return np.column_stack(features), y, columns


def _numbers(column: "pd.Series", path: Path) -> np.ndarray:
    """One column as floats, missing values as NaN."""
    import pandas as pd

    if column.dtype.kind in "biuf":
        return column.to_numpy(dtype=np.float32 if column.dtype == np.float32 else np.float64, na_value=np.nan)
    # Not numbers throughout. A missing value is for refuse_non_finite to name; text, dates and nested values end here.
    numbers = np.full(len(column), np.nan)
    for row, value in enumerate(column):
        if _is_number(value):
            numbers[row] = float(value)
        elif not (pd.api.types.is_scalar(value) and pd.isna(value)):
            where = _line_of(path, str(column.name), value) if path.suffix.lower() == ".csv" else f"row {row}"
            raise DataError(
                f"{path}: expected numbers in column {column.name!r}, found {reprlib.repr(value)} in {where}; "
                "encode the column as numbers or remove it"
            )
    return numbers


def _is_number(value) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _line_of(path: Path, column: str, value: str) -> str:
    """The first line of a CSV file with ``value`` in ``column``: rows may span lines, lines may be blank."""
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.reader(lines, skipinitialspace=True)
        position = [name.strip() for name in next(row for row in reader if row)].index(column)
        matching = (reader.line_num for row in reader if len(row) > position and row[position] == str(value))
        try:
            return f"line {next(matching)}"
        except (StopIteration, csv.Error):  # pandas takes longer cells than csv, and other text for a missing value
            return "a line that cannot be told"
