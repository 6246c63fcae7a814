"""Weka's ARFF: a head of attributes, then rows. A small strict reader; what it does not know it refuses."""

import re
from pathlib import Path
from typing import IO

from jaxad.data.dataset import DataError

MOST_LINES = 100_000
"""In a head."""

_ATTRIBUTE = re.compile(
    r"""@attribute\s+(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^\s{]+))\s*(\{.*\}|\S+)""", re.IGNORECASE
)


def read_head(file: IO[str], path: Path) -> list[tuple[str, bool]]:
    """``(name, is it numeric?)`` of every attribute; the file stands before the first row then.

    Raises:
        DataError: no head, or one with an attribute of text, a date or a relation.

    >>> import io
    >>> head = "@relation r\\n@attribute 'a b' numeric\\n@attribute c {x,y}\\n@data\\n"
    >>> read_head(io.StringIO(head), Path("r.arff"))
    [('a b', True), ('c', False)]
    """
    attributes: list[tuple[str, bool]] = []
    for number in range(1, MOST_LINES):
        line = file.readline(2**20)
        if not line:
            break
        line = line.strip()
        if not line or line.startswith("%") or line.lower().startswith("@relation"):
            continue
        if line.lower().startswith("@data"):
            if not attributes:
                break
            return attributes
        found = _ATTRIBUTE.match(line)
        if found is None:
            raise DataError(
                f"{path}: expected @attribute NAME KIND in line {number}, got {line[:60]!r}; check the file"
            )
        name, kind = next(name for name in found.groups()[:3] if name is not None), found[4].lower()
        if kind == "relational":
            raise DataError(f"{path}: attribute {name!r} is a table of its own, which is not read; save it flat")
        attributes.append((re.sub(r"\\(.)", r"\1", name), kind in ("numeric", "real", "integer")))
    raise DataError(f"{path}: expected ARFF, @attribute lines and then @data, got none; check the file")
