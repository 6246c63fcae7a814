"""How a text file of rows is written: encoding, separator, decimal commas, thousands, a header or none; found out once, then remembered."""

import bz2
import csv
import gzip
import io
import lzma
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from jaxad.data.dataset import DataError

LOOKED_AT = 2**20
"""Bytes at the beginning of a file from which it is found out."""

LINES_LOOKED_AT = 200

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

GAP_WORDS = ("", "?", "na", "n/a", "nan", "null", "none")

PACKED = (".gz", ".bz2", ".xz", ".zip")

_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?")
_DECIMAL_POINT = re.compile(r"[+-]?\d+\.\d+([eE][+-]?\d+)?")


class Dialect(NamedTuple):
    """How a text file is to be read. The defaults are what a program writes: commas, decimal points, a line of names, UTF-8."""

    separator: str = ","
    decimal: str = "."
    thousands: str | None = None
    encoding: str = "utf-8-sig"
    header: bool = True
    skipped: int = 0
    """Lines before the table: comments, and Excel's ``sep=``."""
    numbered: bool = False
    """The first column has no name and counts the rows, as pandas writes its index."""
    missing: tuple[str, ...] = ()
    """Words that mean that nothing is known, besides an empty cell, NA, NaN, null, None and ``?``."""

    def words(self) -> str:
        """What is unusual about it, in words; empty for what a program writes."""
        found = [] if self.separator == "," else [f"separated by {SEPARATORS[self.separator]}"]
        found += ["decimal commas"] if self.decimal == "," else []
        found += [f"thousands separated by {self.thousands!r}"] if self.thousands else []
        plain = self.encoding in ("utf-8-sig", "utf-8")
        found += [] if plain else [{"cp1252": "Windows-1252 (or Latin-1)"}.get(self.encoding, self.encoding.upper())]
        found += [] if self.header else ["no line of names: columns are called column_1, column_2, ..."]
        found += [f"{self.skipped} lines before the table passed over"] if self.skipped else []
        found += ["an unnamed first column of row numbers left out"] if self.numbered else []
        found += [f"{', '.join(map(repr, self.missing))} as gaps"] if self.missing else []
        return ", ".join(found)

    def pandas(self) -> dict[str, Any]:
        """The same for ``pandas.read_csv``."""
        return {
            "sep": self.separator,
            "decimal": self.decimal,
            "thousands": self.thousands,
            "encoding": self.encoding,
            "header": 0 if self.header else None,
            "skiprows": self.skipped,
            "na_values": ["?", *self.missing],
        }

    def number(self, value: Any) -> float | None:
        """What a cell says, if it is a number written so."""
        if isinstance(value, str):
            value = value.strip()
            if self.thousands:
                value = value.replace(self.thousands, "")
            if self.decimal == ",":
                value = value.replace(",", ".")
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            return None

    def rows(self, text: IO[str]) -> Iterator[list[str]]:
        """The cells of every line that holds any, the header first; of an open text file (``text_of``)."""
        for _ in range(self.skipped):
            text.readline()
        return (row for row in csv.reader(text, delimiter=self.separator, skipinitialspace=True) if row)


def remembered(kept: Any) -> Dialect | None:
    """A dialect from what ``_asdict`` has put into JSON; None for anything else, which may come from a stranger's model."""
    match kept:
        case {
            "separator": "," | ";" | "\t" | "|" as separator,
            "decimal": "." | "," as decimal,
            "thousands": None | "," | "." as thousands,
            "encoding": "utf-8-sig" | "utf-16" | "utf-16-le" | "utf-16-be" | "cp1252" as encoding,
            "header": bool(header),
            "skipped": int(skipped),
            "numbered": bool(numbered),
            "missing": list(missing) | tuple(missing),
        } if 0 <= skipped <= LINES_LOOKED_AT and all(isinstance(word, str) for word in missing):
            return Dialect(separator, decimal, thousands, encoding, header, skipped, numbered, tuple(missing))
    return None


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if its name says that it is packed. A zip archive holds one file.

    Raises:
        DataError: a zip archive of none or several.
    """
    suffix = path.suffix.lower()
    if suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if not name.endswith("/")]
            if len(members) != 1:
                raise DataError(
                    f"{path}: expected a zip archive of one file, got {len(members)}; unpack it and name one"
                )
            with archive.open(members[0]) as file:
                yield file
        return
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(suffix, open)
    with opener(path, "rb") as file:  # pyright: ignore[reportCallIssue, reportArgumentType]
        yield file


@contextmanager
def text_of(path: Path, encoding: str) -> Iterator[IO[str]]:
    """The same as text, line ends as they are, for the csv module."""
    with opened(path) as file, io.TextIOWrapper(file, encoding=encoding, newline="") as text:
        yield text


def found(path: Path) -> Dialect:
    """How this file is written, by its first lines.

    Raises:
        DataError: a first line without an end.
    """
    with opened(path) as file:
        start = file.read(LOOKED_AT)
    if len(start) == LOOKED_AT and b"\n" not in start and b"\r" not in start:
        raise DataError(
            f"{path}: expected rows of text, got a first line of more than {LOOKED_AT} bytes; check the file"
        )
    encoding = _encoding(start)
    text = start.decode(encoding, "ignore" if len(start) == LOOKED_AT else "replace")
    if len(start) == LOOKED_AT:
        text = text[: text.rfind("\n") + 1] or text
    lines = [line for line in text.splitlines() if line.strip()][:LINES_LOOKED_AT]
    skipped, told = 0, None
    while len(lines) > 1:
        told_here = re.fullmatch(r'"?sep=(.)"?', lines[0].strip(), re.IGNORECASE)
        if told_here:
            told = told_here[1]
        elif not (lines[0].lstrip().startswith("#") and not _alike(lines[0], lines[1])):
            break
        lines, skipped = lines[1:], skipped + 1
    separator = told if told in SEPARATORS and told in lines[0] else _separator(lines)
    cells = [
        [cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator, skipinitialspace=True) if row
    ]
    if not cells:
        return Dialect(encoding=encoding)
    decimal, thousands = _numbers(cells[1:] or cells, separator)
    plain = Dialect(separator, decimal, thousands)
    header = _has_names(cells, plain)
    numbered = header and len(cells[0]) > 1 and not cells[0][0] and _counts_up([row[0] for row in cells[1:]])
    return Dialect(separator, decimal, thousands, encoding, header, skipped, numbered)


def _has_names(cells: list[list[str]], plain: Dialect) -> bool:
    """Is the first row one of names? Not where it holds numbers in all columns of numbers, unless they count the columns."""
    first, below = cells[0], [row for row in cells[1:] if len(row) == len(cells[0])]

    def is_number(cell):
        return plain.number(cell) is not None

    columns = list(zip(*below, strict=True)) or [(cell,) for cell in first]
    of_numbers = [
        cell
        for cell, column in zip(first, columns, strict=True)
        if cell.lower() not in GAP_WORDS and sum(map(is_number, column)) > 0.5 * len(column)
    ]
    if not of_numbers or not all(map(is_number, of_numbers)):
        return any(not is_number(cell) for cell in first)
    # pandas names the columns of an array 0, 1, 2, ...
    return len(of_numbers) > 1 and _counts_up(of_numbers) and int(of_numbers[0]) in (0, 1)


def _counts_up(cells: list[str]) -> bool:
    if not cells or not re.fullmatch(r"\d{1,15}", cells[0]):
        return False
    return cells == [str(number) for number in range(int(cells[0]), int(cells[0]) + len(cells))]


def _encoding(start: bytes) -> str:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    # Text in a Western language as UTF-16 has a zero in every other place.
    if len(start) > 4 and b"\0" in start:
        for encoding, zeros, letters in (
            ("utf-16-le", start[1::2], start[::2]),
            ("utf-16-be", start[::2], start[1::2]),
        ):
            if not zeros.strip(b"\0") and b"\0" not in letters:
                return encoding
    try:
        start[: max(start.rfind(b"\n"), 0) or len(start)].decode("utf-8-sig")
        return "utf-8-sig"
    except UnicodeDecodeError:
        # No control characters: text in one byte a letter. What is none is refused by what reads it as UTF-8.
        return "cp1252" if min(start) >= 9 and not set(start) & {0x81, 0x8D, 0x8F, 0x90, 0x9D} else "utf-8-sig"


def _alike(first: str, second: str) -> bool:
    return any(first.count(separator) == second.count(separator) > 0 for separator in SEPARATORS)


def _separator(lines: list[str]) -> str:
    """The one that cuts most lines into one number of cells, and that number as large as can be."""
    best, score = ",", (0.0, 0)
    for separator in SEPARATORS:
        widths = [len(row) for row in csv.reader(lines, delimiter=separator, skipinitialspace=True) if row]
        if not widths:
            continue
        width, count = Counter(widths).most_common(1)[0]
        agreement = count / len(widths)
        # The second line like the first: then others are damaged, and are named for it.
        if width > 1 and (agreement >= 0.8 or widths[:2] == [width] * 2) and (round(agreement, 2), width) > score:
            best, score = separator, (round(agreement, 2), width)
    return best


def _numbers(rows: list[list[str]], separator: str) -> tuple[str, str | None]:
    """``(decimal, thousands)``. Only cells that hold a comma tell."""
    cells = [cell for row in rows for cell in row]
    points = sum(bool(_DECIMAL_POINT.fullmatch(cell)) for cell in cells)
    commas = [cell for cell in cells if _DECIMAL_COMMA.fullmatch(cell) or _GROUPED.fullmatch(cell)]
    grouped = [cell for cell in commas if _GROUPED.fullmatch(cell)]
    if not commas:
        return ".", None
    if len(grouped) == len(commas) and (separator == "," or points):
        return ".", ","
    pointed = any("." in cell for cell in commas if cell not in grouped)
    if points and not pointed:
        return ".", None  # both in one file: what is not understood is refused where it stands
    return ",", "." if pointed else None
