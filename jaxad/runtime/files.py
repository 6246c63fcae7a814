"""Files that are written: whole or not at all, and never in place of a pipe, a device or a link."""

import os
import shutil
import stat
import tempfile
from importlib.util import find_spec
from pathlib import Path

FORMATS = {"": "csv", ".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl"}
"""In which scores are written, by the ending of the file's name."""


def check_format(out: Path) -> None:
    """Raise a ValueError unless scores can be written into a file of this name."""
    if not is_stream(out) and out.suffix.lower() not in FORMATS:
        raise ValueError(f"{out}: scores are written as .csv, .parquet or .jsonl, got {out.suffix!r}")
    if out.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError(f"{out}: writing Parquet needs pyarrow; pip install 'jaxad[data]', or name a .csv file")


def is_stream(out: Path) -> bool:
    """Is ``out`` a pipe, a device, or what a process has open (``/dev/stdout``)? Such a thing is written into, never replaced.

    >>> is_stream(Path("/dev/null")), is_stream(Path("scores.csv"))
    (True, False)
    """
    if out.absolute().is_relative_to("/dev") or out.absolute().is_relative_to("/proc"):
        return True
    return out.exists() and not (stat.S_ISREG(out.stat().st_mode) or out.is_dir())


def unfinished(out: Path, ending: str = ".partial") -> Path:
    """Where ``out`` lies until it is whole: beside it, or beside what it links to; of a stream in the folder of temporary files."""
    if is_stream(out):
        return Path(tempfile.gettempdir()) / f"jaxad-{os.getpid()}-{out.name}{ending}"
    target = Path(os.path.realpath(out))
    return target.with_name(target.name + ending)


def put(whole: Path, out: Path) -> Path:
    """``whole``, a finished file, becomes ``out``: a stream gets its content; of a link the file it points to is replaced."""
    if is_stream(out):
        with whole.open("rb") as source, out.open("wb") as stream:
            shutil.copyfileobj(source, stream)
        whole.unlink()
    else:
        whole.replace(os.path.realpath(out))
    return out
