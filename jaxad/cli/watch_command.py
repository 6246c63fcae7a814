"""``jaxad watch``."""

import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxad.cli.terminal import check_model, check_rates

POLL = 0.5
SAVE = 5.0
"""Seconds between two looks at a file, and between two saves of the state."""

MOST_LINE = 2**20


def watch(
    model: Annotated[Path, tyro.conf.Positional],
    data: Annotated[Path, tyro.conf.Positional],
    state: Path | None = None,
    alpha: float | None = None,
    once: bool = False,
) -> None:
    """Follow a growing file of points, or standard input: a JSON line on standard output when an alarm begins, and when it is over.

    {"alarm": "begins", "at": "2026-01-27 05:00:00", "point": 2513, "score": 22.7, "p_value": 0.0007, "channels": ["heat"]}

    Args:
        model: folder written by jaxad fit FILE --kind series --causal.
        data: text such as csv, with a line of names, written as the file learned from; - for standard input.
        state: .npz file to keep what has been seen in: started again with it, the watch goes on where it was.
        alpha: share of normal points that may be flagged. Default: the false alarm rate of fit.
        once: stop at the end of the file instead of waiting for more.
    """
    check_rates(alpha, None)
    check_model(model)
    if str(data) != "-" and not data.is_file():
        raise ValueError(
            f"{data}: expected a text file of points, found {'a folder' if data.is_dir() else 'nothing'}; check the path"
        )
    if state is not None and not state.absolute().parent.is_dir():
        raise ValueError(f"--state {state}: the folder {state.parent} does not exist")
    from jaxad.data import FrameEncoder
    from jaxad.data.dialect import Dialect, remembered
    from jaxad.shipping.bulk import load
    from jaxad.shipping.watching import Watcher

    loaded = load(model)
    if "clock" not in loaded.extra:
        raise ValueError(f"{model} was not fitted on a time series: jaxad fit FILE --kind series --causal --out MODEL")
    watcher = Watcher(loaded.detector, alpha)
    encoder = FrameEncoder.from_json(loaded.extra["encoder"])
    dialect = remembered(loaded.extra.get("dialect")) or Dialect()
    if dialect.encoding.lower().startswith("utf-16"):
        raise ValueError(f"{model} was fitted on UTF-16, which a growing file is not read in: write UTF-8")
    clock, behind = loaded.extra["clock"], 0
    if state is not None and state.is_file():
        (behind,) = watcher.load(state, "offset")
    saved, kept = time.monotonic(), (watcher.state, watcher.peak, watcher.quiet, behind)
    pieces = _standard_input() if str(data) == "-" else _growing(data, behind, once, dialect)
    try:
        for header, lines, offset in pieces:
            frame, first = _read(header, lines, dialect), watcher.seen
            for alarm in watcher.see(encoder.transform(frame, dialect)):
                said: dict[str, Any] = {"alarm": "begins" if alarm.begins else "is over"}
                if clock is not None and clock[0] in frame.columns:
                    said["at"] = str(frame[clock[0]].iloc[alarm.point - first])
                said |= {"point": alarm.point, "score": round(alarm.score, 4), "p_value": round(alarm.p_value, 6)}
                if alarm.begins:
                    said["channels"] = list(dict.fromkeys(encoder.names_[encoder.groups_[of]] for of in alarm.channels))
                sys.stdout.write(json.dumps(said) + "\n")
                sys.stdout.flush()
            kept = watcher.state, watcher.peak, watcher.quiet, offset
            if state is not None and time.monotonic() - saved > SAVE:
                watcher.save(state, offset=offset)
                saved = time.monotonic()
    finally:
        if state is not None:
            # Of a piece that was stopped half way nothing counts: it comes again.
            watcher.state, watcher.peak, watcher.quiet, behind = kept
            watcher.save(state, offset=behind)


def _read(header: str, lines: list[str], dialect: Any):
    import pandas as pd

    settings = dialect.pandas() | {"skiprows": 0, "index_col": False, "skipinitialspace": True}
    settings.pop("encoding")
    return pd.read_csv(io.StringIO(header + "".join(lines)), **settings)


def _standard_input() -> Iterator[tuple[str, list[str], int]]:
    """``(line of names, whole lines, 0)``, line by line."""
    header = ""
    for line in sys.stdin:
        if not header:
            header = line
        elif line.strip():
            yield header, [line], 0


def _growing(path: Path, offset: int, once: bool, dialect: Any) -> Iterator[tuple[str, list[str], int]]:
    """``(line of names, whole lines, where they end in the file)``, as the file grows; one that has shrunk is read from its beginning."""
    with path.open("rb") as file:
        for _ in range(dialect.skipped):
            file.readline(MOST_LINE)
        header = file.readline(MOST_LINE).decode(dialect.encoding) if dialect.header else ""
        begin = file.tell()
        file.seek(max(offset, begin) if offset <= path.stat().st_size else begin)
        rest = b""
        while True:
            read = file.read(2**20)
            whole, newline, rest = (rest + read).rpartition(b"\n")
            if len(rest) > MOST_LINE:
                raise ValueError(f"{path}: a line of more than {MOST_LINE} bytes is no point of a series")
            lines = [line + "\n" for line in whole.decode(dialect.encoding).splitlines() if line.strip()]
            if newline and lines:
                yield header, lines, file.tell() - len(rest)
            if not read:
                if once:
                    return
                time.sleep(POLL)
                if path.stat().st_size < file.tell():
                    file.seek(begin)
                    rest = b""
