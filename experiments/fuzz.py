"""Does any damaged or hostile file or body crash a reader, hang it, or make it leave something half written behind?

    python -m experiments.fuzz

Small sound inputs of every reader are mutated (bits, bytes, chunks, lengths, words of the format, values of JSON), and what meets a
refusal not met before is mutated further. Half of the inputs have their checksums put right afterwards (zip, PNG, the digests of
checkpoints and bundles), so that damage is found by more than those. Every input must end in the error that the reader states or in
a finite result, within ``seconds`` and ``memory_mib``, and without a file that was not there before. A reader works in a process of
its own; one that dies counts as a crash. One line per reader in ``experiments/results/fuzz.jsonl``; what was not met well is kept
under ``--keep``.
Expected: no crashes, no hangs, nothing left behind.
"""

import faulthandler
import gzip
import hashlib
import io
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxad.cli import exit_on_user_error
from jaxad.evaluation import current_commit

Files = dict[str, bytes]
"""An input: what lies in a folder, by relative path. A single file or body is a folder of one."""
Read = Callable[[Path], Any]


@dataclass(frozen=True)
class Config:
    share: float = 1.0
    """Of the inputs that each reader gets (``READERS``)."""
    readers: tuple[str, ...] = ()
    """All, if none are named."""
    seconds: float = 5.0
    """For one input."""
    memory_mib: int = 1024
    """By which one reader's process may grow."""
    seed: int = 0
    keep: Path | None = None
    """A folder for the inputs that were not met well."""
    out: Path = Path(__file__).parent / "results" / "fuzz.jsonl"


@dataclass(frozen=True)
class Reader:
    """One reader: ``opened()`` gives its sound inputs and a function that reads a folder; ``refusals`` are the errors it states."""

    inputs: int
    refusals: tuple[str, ...]
    opened: Callable[[], AbstractContextManager[tuple[list[Files], Read]]]
    words: Sequence[bytes] = ()
    seal: Callable[[Files], Files] | None = None


def run(config: Config) -> list[dict]:
    """One record per reader."""
    strange = sorted(set(config.readers) - set(READERS))
    if strange or config.share <= 0 or config.seconds <= 0 or config.memory_mib < 1:
        raise ValueError(
            f"readers are {', '.join(READERS)}, share, seconds and memory positive; got {strange=}, {config}"
        )
    records = []
    for name in config.readers or READERS:
        record = apart(name, config)
        records.append(record)
        config.out.parent.mkdir(parents=True, exist_ok=True)
        with config.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**record, "commit": current_commit()}) + "\n")
    show(records)
    return records


def apart(name: str, config: Config) -> dict:
    """``fuzz`` in a process of its own; one that dies is a crash, and the inputs left are given to another with other mutations."""
    wanted, deaths, tallies = max(1, round(READERS[name].inputs * config.share)), 0, []
    while wanted > 0 and deaths < 20:
        with tempfile.TemporaryDirectory(prefix="jaxad-fuzz-") as folder:
            alone = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            try:
                tallies.append(alone.submit(_child, name, config, wanted, config.seed + deaths, Path(folder)).result())
                break
            except BrokenProcessPool:
                deaths += 1
                with suppress(OSError, ValueError):
                    tallies.append(json.loads((Path(folder) / "progress").read_text()))
                wanted -= tallies[-1]["inputs"] if tallies else wanted
                _keep(config, name, Path(folder) / "work" / "in", "the process died")
            finally:
                alone.shutdown()
    total = {
        key: sum(tally[key] for tally in tallies)
        for key in ("inputs", "seconds", "refused", "accepted", "crashes", "hangs", "left_behind")
    }
    worst = {
        key: max((tally[key] for tally in tallies), default=0)
        for key in ("distinct_refusals", "slowest_seconds", "grown_mib")
    }
    total["crashes"] += deaths
    return {
        "reader": name,
        **total,
        **worst,
        "what": [line for tally in tallies for line in tally["what"]][:20],
        "seed": config.seed,
    }


def _child(name, config, inputs, seed, folder) -> dict:
    faulthandler.dump_traceback_later(600, exit=True)  # code in C that hears no signal
    warnings.simplefilter("ignore")
    import logging

    logging.disable(logging.CRITICAL)
    (folder / "work").mkdir()

    def noted(tally):
        faulthandler.dump_traceback_later(60, exit=True)
        (folder / "progress").write_text(json.dumps(tally))

    try:
        return fuzz(name, READERS[name], config, inputs=inputs, seed=seed, work=folder / "work", noted=noted)
    finally:
        faulthandler.cancel_dump_traceback_later()


class Late(BaseException):
    """An input took too long."""


def fuzz(
    name: str,
    reader: Reader,
    config: Config,
    *,
    inputs: int,
    seed: int,
    work: Path,
    noted: Callable[[dict], Any] | None = None,
) -> dict:
    """So many mutated inputs for one reader, in the empty folder ``work``: what came of them.

    Kept are mutants that meet a refusal, or a line of ours, that none has met before.
    """
    rng, seen, what = random.Random(seed), set(), []
    count: Counter = Counter()
    for inner in ("in", "tmp", "cwd"):
        (work / inner).mkdir()
    before = os.getcwd(), tempfile.tempdir, signal.signal(signal.SIGALRM, _too_late)
    os.chdir(work / "cwd")
    tempfile.tempdir = str(work / "tmp")
    started, slowest = time.perf_counter(), 0.0
    try:
        with reader.opened() as (sound, read):
            for files in sound:
                _write(work / "in", files)
                read(work / "in")  # they must be read, or the mutants of them say nothing
            pool = [dict(files) for files in sound]
            there = {name for name in _names(work) if not name.startswith("in/")}
            _forget_peak()
            size = _resident(peak=False)
            for number in range(inputs):
                files = mutated(rng, pool if rng.random() < 0.5 else sound, reader.words)
                if reader.seal is not None and rng.random() < 0.5:
                    files = reader.seal(files)
                _write(work / "in", files)
                if noted is not None and number % 50 == 0:
                    noted(_tally(count, number, started, seen, slowest, size, what))
                at = time.perf_counter()
                outcome, key = _outcome(reader, read, work / "in", config.seconds)
                slowest = max(slowest, time.perf_counter() - at)
                left = sorted(_names(work) - there - {f"in/{file}" for file in files})
                if left:
                    outcome, key = "left_behind", (*key, tuple(left))
                count[outcome] += 1
                if outcome in ("crashes", "hangs", "left_behind"):
                    if key not in seen:
                        what.append(f"{outcome}: {key!s:.400}")
                        _keep(config, name, work / "in", what[-1])
                    for path in left:
                        remove = shutil.rmtree if (work / path).is_dir() else os.unlink
                        remove(work / path)
                if key not in seen and len(pool) < 2000:
                    seen.add(key)
                    pool.append(files)
            if (grown := _resident() - size) > config.memory_mib:
                count["crashes"] += 1
                what.append(f"crashes: the process has grown by {grown:.0f} MiB")
    finally:
        os.chdir(before[0])
        tempfile.tempdir = before[1]
        signal.signal(signal.SIGALRM, before[2])
    return _tally(count, inputs, started, seen, slowest, size, what)


def _tally(count, inputs, started, seen, slowest, size, what) -> dict:
    return {
        "inputs": inputs,
        "seconds": round(time.perf_counter() - started, 2),
        **{key: count[key] for key in ("refused", "accepted", "crashes", "hangs", "left_behind")},
        "distinct_refusals": sum(key[0] == "refused" for key in seen),
        "slowest_seconds": round(slowest, 3),
        "grown_mib": round(_resident() - size),
        "what": what,
    }


def _too_late(number, frame):
    raise Late


def _outcome(reader: Reader, read: Read, folder: Path, seconds: float) -> tuple[str, tuple]:
    """``(what came of it, what tells it from other ends)``."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        result = read(folder)
    except Late:
        return "hangs", ("hangs",)
    except Exception as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        stated = any(kind.__name__ in reader.refusals for kind in type(error).__mro__[:2]) and str(error).strip()
        return "refused" if stated else "crashes", ("refused" if stated else "crashes", *_place(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    wrong = _not_finite(result)
    return (
        ("crashes", ("crashes", f"a result that is not finite: {wrong}"))
        if wrong
        else ("accepted", ("accepted", _looks(result)))
    )


def _place(error: BaseException | None) -> Iterator[str]:
    """Kind, place and gist of an error and of its cause."""
    while error is not None:
        lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
        lines = [f"{Path(file).stem}:{line}" for file, line in lines if "/jaxad/" in file][-2:]
        gist = re.sub(r"\d+|'[^']*'|\"[^\"]*\"|\[.*\]|/\S+", "_", str(error))[:80]
        yield f"{type(error).__name__} at {','.join(lines)}: {gist}"
        error = error.__cause__


def _not_finite(result) -> str:
    """What in a result is no finite number; nothing, for a sound one."""
    match result:
        case np.ndarray() if result.dtype.kind in "fiub":
            return "" if np.isfinite(result).all() else f"{result.dtype} {result.shape}"
        case list() | tuple():
            return next(filter(None, map(_not_finite, result)), "")
        case dict():
            return next(filter(None, map(_not_finite, result.values())), "")
        case float():
            return "" if math.isfinite(result) else str(result)
        case None | str() | int() | bytes():
            return ""
    return type(result).__name__


def _looks(result) -> str:
    if isinstance(result, np.ndarray):
        return f"{result.dtype}{result.ndim}{min(result.size, 64).bit_length()}"
    if isinstance(result, list | tuple):
        return f"{min(len(result), 8)}{[_looks(each) for each in result[:2]]}"
    return type(result).__name__


def _names(folder: Path, prefix: str = "") -> set[str]:
    names = set()
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            inside = _names(Path(entry.path), f"{prefix}{entry.name}/")
            names |= inside or ({f"{prefix}{entry.name}"} if prefix else set())
        else:
            names.add(prefix + entry.name)
    return names


def _write(folder: Path, files: Files) -> None:
    for name in _names(folder) - files.keys():
        path = folder / name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        for above in path.relative_to(folder).parents[:-1]:
            with suppress(OSError):  # not empty
                (folder / above).rmdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _resident(peak: bool = True) -> float:
    """MiB this process holds, or has held at most since ``_forget_peak``; Linux only, elsewhere 0."""
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:" if peak else "VmRSS:")[2].split()[0]) / 1024
    return 0.0


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _keep(config: Config, name: str, folder: Path, why: str) -> None:
    if config.keep is None or not folder.exists():
        return
    place = config.keep / f"{name}_{hashlib.sha256(repr(why).encode()).hexdigest()[:8]}"
    if not place.exists():
        shutil.copytree(folder, place)
        (place / "why.txt").write_text(why, encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------- mutations

EDGES = tuple(
    struct.pack(form, value)
    for order in "<>"
    for form, bits in ((order + "B", 8), (order + "H", 16), (order + "I", 32), (order + "Q", 64))
    for value in (
        0,
        1,
        2 ** (bits - 1) - 1,
        2 ** (bits - 1),
        2**bits - 1,
        min(2**bits - 1, 2**31 + 7),
        min(2**bits - 1, 10**12),
    )
)
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        10**30,
        0.5,
        -0.0,
        1e308,
        math.inf,
        math.nan,
        "",
        "x",
        "../../etc/passwd",
        "/dev/zero",
    ),
    *(
        "\x00",
        "a" * 5000,
        [],
        {},
        [[]],
        [1, 2, 3],
        {"x": 1},
        [2**40, 2**40],
        "float64",
        "object",
        "<f4",
        "|O",
        -(2**63),
    ),
)


def mutated(rng: random.Random, pool: Sequence[Files], words: Sequence[bytes]) -> Files:
    """A copy of one of the pool with some of one file (now and then of several, or all of one) changed."""
    files = dict(rng.choice(pool))
    if len(files) > 1 and rng.random() < 0.05:
        del files[rng.choice(sorted(files))]
    for _ in range(1 if rng.random() < 0.9 else 2):
        name = rng.choice(sorted(files))
        other = rng.choice(pool).get(name, b"")
        for _ in range(min(1 + int(rng.expovariate(0.7)), 8)):
            files[name] = _change(rng, files[name], other, words)
    return files


def _change(rng: random.Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    at, length = rng.randrange(len(data) + 1), 1 + int(rng.expovariate(1 / 8))
    head = min(len(data), 1 + int(rng.expovariate(1 / 64)))  # lengths and kinds stand in front
    where = rng.choice((at, rng.randrange(head + 1), max(0, len(data) - head)))
    kind = rng.randrange(10)
    if kind == 0 and data:
        bit = rng.randrange(8 * len(data))
        return data[: bit // 8] + bytes([data[bit // 8] ^ (1 << bit % 8)]) + data[bit // 8 + 1 :]
    if kind == 1:
        return data[:where] + rng.randbytes(length) + data[where + length :]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:where] + data[where + length :]
    if kind == 4:
        return (data[:where] + data[where : where + length] * rng.choice((2, 3, 50)) + data[where + length :])[: 2**17]
    if kind == 5:
        edge = rng.choice(EDGES)
        return data[:where] + edge + data[where + len(edge) :]
    if kind == 6 and words:
        word = rng.choice(words)
        return data[:where] + word + data[where + rng.choice((0, len(word), length)) :]
    if kind == 7 and other:
        start = rng.randrange(len(other))
        return (data[:where] + other[start : start + rng.choice((length, 64, len(other)))] + data[at:])[: 2**17]
    if kind == 8:
        numbers = list(re.finditer(rb"\d+", data[:4096]))
        if numbers:
            match = rng.choice(numbers)
            odd = rng.choice(
                (
                    b"0",
                    b"-1",
                    b"1e999",
                    b"nan",
                    b"99999999999",
                    b"9" * 400,
                    b"1",
                    b"2",
                    str(rng.randrange(100)).encode(),
                )
            )
            return data[: match.start()] + odd + data[match.end() :]
    return (
        _change_json(rng, data)
        if data[:1] in (b"{", b"[")
        else data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    )


def _change_json(rng: random.Random, data: bytes) -> bytes:
    """One value of a JSON text replaced, taken away, doubled or put into itself."""
    lines = data.split(b"\n") if data.count(b"\n{") > 0 and not data.startswith(b"{\n") else [data]
    number = rng.randrange(len(lines))
    try:
        content = json.loads(lines[number])
    except (ValueError, RecursionError):
        return data
    node, places = content, []
    while isinstance(node, dict | list) and node and (not places or rng.random() < 0.75):
        key: Any = rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node))
        places.append((node, key))
        node = node[key]
    if places:
        holder, key = places[-1]
        match rng.randrange(4):
            case 0 if isinstance(holder, dict):
                holder[rng.choice((*holder, "x", "a.b", "../x"))] = holder.pop(key)
            case 1:
                del holder[key]
            case 2:
                deep = rng.choice((1, 2, 900, 3000))
                inner = json.dumps(holder[key])
                holder[key] = "\ue000"
                text = json.dumps(content).replace('"\\ue000"', "[" * deep + inner + "]" * deep)
                lines[number] = text.encode()
                return b"\n".join(lines)
            case _:
                holder[key] = rng.choice(
                    (*ODD, holder.get(rng.choice(sorted(holder))) if isinstance(holder, dict) else rng.choice(holder))
                )
    lines[number] = json.dumps(content).encode()
    return b"\n".join(lines)


def seal_zip(data: bytes) -> bytes:
    """The checksums of stored members as their bytes now are."""
    fixed = bytearray(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members, place = archive.infolist(), archive.start_dir
        for member in members:
            name, extra = struct.unpack_from("<HH", data, member.header_offset + 26)
            first = member.header_offset + 30 + name + extra
            crc = struct.pack("<I", zlib.crc32(data[first : first + member.compress_size]))
            if member.compress_type == zipfile.ZIP_STORED:
                fixed[place + 16 : place + 20] = crc
            place += 46 + sum(struct.unpack_from("<HHH", data, place + 28))
    except (zipfile.BadZipFile, struct.error, ValueError, OSError, NotImplementedError, UnicodeDecodeError):
        return data
    return bytes(fixed)


def seal_png(data: bytes) -> bytes:
    """The checksums of a PNG's chunks as their bytes now are."""
    fixed, at = bytearray(data), 8
    while data[:4] == b"\x89PNG" and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def seal_files(files: Files) -> Files:
    """Archives and pictures among them with right checksums."""
    by_suffix = {".npz": seal_zip, ".png": seal_png}
    return {name: by_suffix.get(Path(name).suffix, bytes)(data) for name, data in files.items()}


def seal_checkpoint(files: Files) -> Files:
    """The digests in ``detector.json`` as the files now are."""
    try:
        description = json.loads(files["detector.json"])
        if not isinstance(description, dict):
            return files
    except (KeyError, ValueError, RecursionError):
        return files
    below = {
        name.removeprefix("arrays/"): hashlib.sha256(data).hexdigest()
        for name, data in files.items()
        if name.startswith("arrays/")
    }
    return {**files, "detector.json": json.dumps({**description, "files": below}).encode()}


def seal_bundle(files: Files) -> Files:
    """The digests in ``card.json`` as the files now are, but of the program: one that was tampered with is a stranger's program."""
    files = {**files, **{name: seal_zip(data) for name, data in files.items() if name.endswith(".npz")}}
    try:
        card = json.loads(files["card.json"])
        for name in ("parameters.npz", "host.npz"):
            card["files"][name] = {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
    except (KeyError, ValueError, TypeError, RecursionError):
        return files
    return {**files, "card.json": json.dumps(card).encode()}


# ------------------------------------------------------------------------------------------------------------------------ readers

ROWS = np.random.default_rng(0).normal(size=(24, 3)).round(2)


def _array(array: np.ndarray, **settings) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, **settings)
    return out.getvalue()


def _archive(compressed: bool = False, **arrays) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)
    return out.getvalue()


def _folder(path: Path) -> Files:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def _tables(suffix: str) -> list[bytes]:
    labels = np.arange(len(ROWS)) % 2
    if suffix == ".npy":
        return [
            _array(ROWS),
            _array(np.asfortranarray(ROWS, np.float32)),
            _array(ROWS.astype(">f8"), version=(2, 0)),
            _array(labels[:, None]),
        ]
    if suffix == ".npz":
        return [_archive(X=ROWS, y=labels), _archive(x=ROWS.astype(np.float32)), _archive(True, X=ROWS, y=labels)]
    if suffix == ".csv":
        rows = "\n".join(",".join(map(str, row)) for row in ROWS)
        return [f"a,b,y\n{rows}\n".encode(), '\ufeff"a b", "c,d",y\r\n1,2,0\r\n\r\n"3",4e2,1\r\n'.encode()]
    if suffix == ".array_record":
        from array_record.python.array_record_module import ArrayRecordWriter

        with tempfile.TemporaryDirectory() as folder:
            writer = ArrayRecordWriter(f"{folder}/rows", "group_size:1")
            for row in ROWS:
                writer.write(_array(row))
            writer.close()
            return [Path(folder, "rows").read_bytes()]
    import pandas as pd

    out = []
    for compression in (None, "snappy"):
        with io.BytesIO() as buffer:
            pd.DataFrame({"a": ROWS[:, 0], "b": ROWS[:, 1].astype(np.float32), "y": labels}).to_parquet(
                buffer, compression=compression
            )
            out.append(buffer.getvalue())
    return out


@contextmanager
def _table(suffix: str, pieces: bool = False) -> Iterator[tuple[list[Files], Read]]:
    """``data.read_table``, or in pieces (``data.table_blocks``)."""
    from jaxad import data

    file = f"table{suffix}"

    def read(folder):
        if pieces:
            return [(piece.x, piece.y) for piece in data.table_blocks(folder / file, rows=7, start=3, max_bytes=2**26)]
        table = data.read_table(folder / file, max_bytes=2**26)
        return table.x, table.y

    yield [{file: content} for content in _tables(suffix)], read


MIXED = """heat,pump,at,note
20.5,a,2024-01-01 10:00,"first, one"
21,b,2024-01-03 11:30,
?,a,2024-02-05 12:00,NA
19.5,c,2024-01-09 13:00,x
"""


def _frames(suffix: str) -> list[bytes]:
    """Files of mixed columns."""
    import pandas as pd

    frame = pd.read_csv(io.StringIO(MIXED), na_values=["?"])
    euro = MIXED.replace(",", ";").replace(".", ",")
    with io.BytesIO() as buffer:
        if suffix == ".csv":
            return [MIXED.encode(), euro.encode("utf-16"), ("sep=;\r\n" + euro.replace("\n", "\r\n")).encode("cp1252")]
        if suffix == ".csv.gz":
            return [gzip.compress(MIXED.encode(), mtime=0), gzip.compress(euro.encode(), mtime=0)]
        if suffix == ".jsonl":
            frame.to_json(buffer, orient="records", lines=True)
        elif suffix == ".feather":
            frame.to_feather(buffer)
        elif suffix == ".xlsx":
            frame.to_excel(buffer, index=False)
        elif suffix == ".parquet":
            frame.assign(at=pd.to_datetime(frame["at"]), pump=frame["pump"].astype("category")).to_parquet(buffer)
        else:
            head = "@relation r\n@attribute 'heat of it' numeric\n@attribute pump {a,'b c'}\n@data\n"
            return [f"{head}20.5,a\n?,'b c'\n21,a\n% end\n".encode()]
        return [buffer.getvalue()]


@contextmanager
def _frame(suffix: str) -> Iterator[tuple[list[Files], Read]]:
    """``data.read_frame``, then roles and codes of its columns."""
    from jaxad import data

    file = f"table{suffix}"

    def read(folder):
        frame = data.read_frame(folder / file, max_bytes=2**26)
        data.roles_of(frame, ask=False)
        dialect = data.dialect_of(folder / file)
        encoder = data.FrameEncoder(categories="codes").fit(frame)
        rows = encoder.transform(frame, dialect)
        data.refuse_non_finite(rows, file, allow_nan=True)
        again = data.FrameEncoder.from_json(json.loads(json.dumps(encoder.to_json()))).transform(frame, dialect)
        if not np.array_equal(rows, again, equal_nan=True):
            raise RuntimeError("what JSON brings back encodes otherwise")
        pieces = [data.read_frame(folder / file, rows=2, max_bytes=2**26)]
        return np.nan_to_num(rows), len(pieces)

    yield [{file: content} for content in _frames(suffix)], read


@contextmanager
def _encoder() -> Iterator[tuple[list[Files], Read]]:
    """``FrameEncoder.from_json`` of what a model of a stranger holds, and rows encoded by it."""
    import pandas as pd

    from jaxad.data import FrameEncoder

    frame = pd.read_csv(io.StringIO(MIXED), na_values=["?"])
    ways: list[dict[str, Any]] = [{}, {"gaps": "fill"}, {"categories": "codes"}]
    kept = [FrameEncoder(**how).fit(frame).to_json() for how in ways]

    def read(folder):
        try:
            of = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            return None
        return np.nan_to_num(FrameEncoder.from_json(of).transform(frame), posinf=0, neginf=0)

    yield [{"encoder.json": json.dumps(each).encode()} for each in kept], read


def _pictures() -> list[bytes]:
    from PIL import Image

    out, gray = [], Image.fromarray((np.arange(96).reshape(8, 12) * 2).astype(np.uint8))
    wide = Image.fromarray((np.arange(96).reshape(8, 12) * 600).astype(np.uint16))
    for picture, form, settings in (
        *((gray, form, {}) for form in ("PNG", "JPEG", "BMP", "TIFF")),
        *((gray.convert(mode), "PNG", {}) for mode in ("RGB", "RGBA", "P", "1", "LA")),
        (wide, "PNG", {}),
        *(
            (wide, "TIFF", {}),
            (gray.convert("RGB"), "TIFF", {"compression": "tiff_lzw"}),
            (gray, "TIFF", {"compression": "tiff_deflate"}),
        ),
        *((gray.convert("RGB"), "JPEG", {"progressive": True}), (gray.convert("CMYK"), "JPEG", {})),
    ):
        with io.BytesIO() as buffer:
            picture.save(buffer, form, **settings)
            out.append(buffer.getvalue())
    return out


@contextmanager
def _picture() -> Iterator[tuple[list[Files], Read]]:
    from jaxad import data

    yield (
        [{"picture.png": content} for content in _pictures()],
        lambda folder: data.read_image(folder / "picture.png", most_pixels=10**6),
    )


@contextmanager
def _picture_folder() -> Iterator[tuple[list[Files], Read]]:
    from jaxad import data

    pictures = _pictures()
    inputs = [
        {f"{number}.png": content for number, content in enumerate(pictures[first : first + 3])} for first in (0, 4, 7)
    ]
    yield inputs, lambda folder: data.read_folder(folder, size=8, channels=1, most_pixels=10**6).x


@contextmanager
def _json_body() -> Iterator[tuple[list[Files], Read]]:
    from jaxad.shipping.bodies import read_json

    bodies = [{"rows": [[1, 2.5, -3e2]]}, {"rows": [[0.0, 1, 2], [3, 4, 5]], "alpha": 0.1}]

    def read(folder):
        rows, alpha = read_json((folder / "body").read_bytes(), (3,), 10)
        return np.nan_to_num(rows), alpha if alpha is None else str(alpha)  # infinite ones are for the scorer to refuse

    yield [{"body": json.dumps(body).encode()} for body in bodies], read


def _arrow_bodies() -> list[bytes]:
    from jaxad.shipping.bodies import write_arrow

    columns = {"a": ROWS[:4, 0], "b": np.arange(4), "c": ROWS[:4, 2].astype(np.float32)}
    return [write_arrow(columns), write_arrow({**columns, "b": columns["b"] > 1})]


@contextmanager
def _arrow_body() -> Iterator[tuple[list[Files], Read]]:
    from jaxad.shipping.bodies import read_arrow

    card = {"sample_shape": [3], "columns": ["a", "b", "c"]}
    yield (
        [{"body": body} for body in _arrow_bodies()],
        lambda folder: np.nan_to_num(read_arrow((folder / "body").read_bytes(), card, 10)),
    )


def _bundle_files(folder: Path) -> Path:
    from jaxad import KNNDetector, export_detector

    export_detector(KNNDetector(n_neighbors=2).fit(ROWS), folder)
    return folder


@contextmanager
def _service() -> Iterator[tuple[list[Files], Read]]:
    """Bodies sent to the application in this process: what is answered with 5xx is a crash, all else an answer."""
    from starlette.testclient import TestClient

    from jaxad import load_scorer
    from jaxad.shipping.bodies import ARROW, JSON, Limits, Refusal
    from jaxad.shipping.serve import application

    with tempfile.TemporaryDirectory() as folder:
        scorer = load_scorer(_bundle_files(Path(folder) / "bundle"))
        with TestClient(
            application(scorer, Limits(rows=100, body_bytes=2**16)), raise_server_exceptions=False
        ) as client:

            def read(where):
                body = (where / "body").read_bytes()
                kind = JSON if body[:1] in (b"{", b"[") else ARROW
                answer = client.post("/score", content=body, headers={"content-type": kind, "accept": JSON})
                if 400 <= answer.status_code < 500:
                    raise Refusal(answer.status_code, answer.json()["error"])
                if answer.status_code != 200:
                    raise AssertionError(f"status {answer.status_code}: {answer.text:.200}")
                return np.array(answer.json()["score"])

            yield (
                [{"body": b'{"rows": [[1, 2, 3]], "alpha": 0.1}'}, *({"body": body} for body in _arrow_bodies())],
                read,
            )


@contextmanager
def _weights(suffix: str) -> Iterator[tuple[list[Files], Read]]:
    from jaxad.denoisers.weights import read_state

    arrays = {"a.weight": ROWS.astype(np.float32), "a.bias": np.ones(3, np.float16)}
    if suffix == ".safetensors":
        from safetensors.numpy import save

        contents = [save(arrays), save({"x": arrays["a.weight"]}, metadata={"of": "fuzz"})]
    else:
        from flax.serialization import msgpack_serialize

        contents = [msgpack_serialize({"a": {"kernel": arrays["a.weight"], "bias": arrays["a.bias"]}})]
    yield [{f"w{suffix}": content} for content in contents], lambda folder: read_state(folder / f"w{suffix}")


@contextmanager
def _score_file() -> Iterator[tuple[list[Files], Read]]:
    from jaxad.shipping.bulk import read_scores

    content = b"row,anomaly_score,p_value,flagged\r\n0,1.5,0.25,0\r\n1,-2.5e-3,0.5,1\r\n"
    yield [{"scores.csv": content}], lambda folder: read_scores(folder / "scores.csv")


def _record() -> dict:
    from jaxad import data
    from jaxad.detectors import KNNDetector
    from jaxad.evaluation import evaluate

    return asdict(evaluate(KNNDetector(), data.builtin("wine_0"), protocol="clean", seed=0, name="knn")[0])


@contextmanager
def _records() -> Iterator[tuple[list[Files], Read]]:
    from jaxad.evaluation.sweep import read_results

    line = json.dumps(_record())
    yield (
        [{"results.jsonl": f"{line}\n{line.replace('wine_0', 'wine_1')}\n".encode()}],
        lambda folder: [[record.auroc, record.average_precision] for record in read_results(folder)],
    )


@contextmanager
def _record_scores() -> Iterator[tuple[list[Files], Read]]:
    from jaxad.evaluation import Evaluation, sweep

    record = Evaluation(**_record())
    labels, scores = np.zeros(record.num_test, np.uint8), np.ones(record.num_test, np.float32)
    name = str(sweep._scores_path(Path(), record))
    yield (
        [{name: _archive(compressed, labels=labels, scores=scores)} for compressed in (True, False)],
        lambda folder: sweep.read_scores(folder, record),
    )


@contextmanager
def _checkpoint() -> Iterator[tuple[list[Files], Read]]:
    from jaxad.runtime.checkpoint import load_checkpoint, save_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(
            f"{folder}/one", {"a": ROWS, "b.c": np.arange(3), "empty": np.zeros((0, 2))}, {"note": [1, "x"]}
        )
        yield (
            [_folder(Path(folder, "one"))],
            lambda where: [
                np.nan_to_num(array) if array.dtype.kind == "f" else array
                for array in load_checkpoint(where)[0].values()
            ],
        )


@contextmanager
def _detector() -> Iterator[tuple[list[Files], Read]]:
    from jaxad import KNNDetector
    from jaxad.detectors import ECOD
    from jaxad.detectors.persistence import load_detector, save_detector

    with tempfile.TemporaryDirectory() as folder:
        for name, detector in (("knn", KNNDetector(n_neighbors=2)), ("ecod", ECOD())):
            save_detector(detector.fit(ROWS), f"{folder}/{name}")
        inputs = [_folder(Path(folder, name)) for name in ("knn", "ecod")]

        def read(where):
            load_detector(where)

        yield inputs, read


@contextmanager
def _run_directory() -> Iterator[tuple[list[Files], Read]]:
    """The newest checkpoint of two is damaged: what is restored is one of the two, as it was saved."""
    from jaxad.runtime.runs import RunDirectory, open_run

    saved = {1: ROWS, 2: ROWS + 1}
    with tempfile.TemporaryDirectory() as folder:
        with open_run(RunDirectory(f"{folder}/run")) as run:
            assert run is not None
            run.restore({"rows": "a"})
            for step, array in saved.items():
                run.save(step, {"table": array}, {})
            run.wait()
        whole = _folder(Path(folder, "run"))
        older = {name: data for name, data in whole.items() if not name.startswith("step_00000002")}

        def read(where):
            for name, data in older.items():  # only the newest is damaged
                (where / name).parent.mkdir(parents=True, exist_ok=True)
                (where / name).write_bytes(data)
            try:
                with open_run(RunDirectory(where)) as run:
                    assert run is not None
                    found = run.restore({"rows": "a"})
            finally:
                shutil.rmtree(where / "step_00000001")
                (where / "lock").unlink()
            if found is None or not any(np.array_equal(found[0]["table"], array) for array in saved.values()):
                raise AssertionError(f"restored {found!r:.200}, which nobody has saved")
            return found[0]

        yield [{name: data for name, data in whole.items() if name not in older}], read


@contextmanager
def _bundle(card_alone: bool = False) -> Iterator[tuple[list[Files], Read]]:
    from jaxad.shipping.bundle import load_scorer, read_card

    with tempfile.TemporaryDirectory() as folder:
        files = _folder(_bundle_files(Path(folder) / "bundle"))

        def read(where):
            if card_alone:
                read_card(where)
                return None
            return load_scorer(where).score_samples(ROWS[:2])

        yield [{"card.json": files["card.json"]} if card_alone else files], read


NUMPY = [
    *rb"{'descr': '<f8', 'fortran_order': False, 'shape': (24, 3), }~(99999999999, 3)~(9223372036854775807,)~(-1, 3)~(0, 3)".split(
        b"~"
    ),
    *rb"(1,) * 10**9~'|O'~'<U99999999'~[('a', '<f8')]~'V8'~()~'>f2'".split(b"~"),
    *(b"\x93NUMPY\x01\x00", b"\x93NUMPY\x03\x00"),
]
ZIP = NUMPY + b"PK\x03\x04~PK\x01\x02~PK\x05\x06~PK\x06\x06~\x01\x00~\x08\x00~\x0c\x00~\x0e\x00~X.npy~../X.npy".split(
    b"~"
)
TEXT = b'inf~nan~1e999~,~\n~"~\r~\x00~NA~True~0x1F~1_0~\xff\xfe~\xef\xbb\xbf~1e-400~2020-01-01'.split(b"~")
JSON_WORDS = [*rb'{~}~[~]~NaN~Infinity~1e999~null~true~"\ud800"~"rows":~"alpha":'.split(b"~"), b"[" * 900, b"9" * 5000]
PNG = b"IHDR~IDAT~IEND~PLTE~tRNS~zTXt~iCCP~eXIf~acTL~II*\x00~MM\x00*~\xff\xd8\xff~\xff\xc4~\xff\xda~BM".split(b"~")
ARROW_WORDS = b"\xff\xff\xff\xff~ARROW1~PAR1~\0\0\0\0\0\0\0\0~\xff\xff\xff\xff\xff\xff\xff\xff~\x15\x00~\x19\x1c".split(
    b"~"
)
MSGPACK = b"\xdf\xff\xff\xff\xff~\xc9\xff\xff\xff\xff\x01~\xd4\x01~\x93~float32~object~__msgpack_chunked_array__".split(
    b"~"
)
CHECKPOINT = JSON_WORDS + b'<f4~zarr~../~"float32"~"shape": [99999999999]'.split(b"~")


def _of(make: Callable, *arguments, **settings) -> Callable[[], Any]:
    return lambda: make(*arguments, **settings)


DATA, CHECKED, BUNDLE, REFUSED, WEIGHTS = (
    ("DataError",),
    ("CheckpointError",),
    ("BundleError",),
    ("Refusal",),
    ("WeightsError",),
)
READERS: dict[str, Reader] = {
    "npy": Reader(15_000, DATA, _of(_table, ".npy"), NUMPY),
    "npz": Reader(15_000, DATA, _of(_table, ".npz"), ZIP, seal_files),
    "csv": Reader(10_000, DATA, _of(_table, ".csv"), TEXT),
    "parquet": Reader(8_000, DATA, _of(_table, ".parquet"), ARROW_WORDS),
    "npy in pieces": Reader(5_000, DATA, _of(_table, ".npy", pieces=True), NUMPY),
    "records of rows": Reader(3_000, DATA, _of(_table, ".array_record", pieces=True), ARROW_WORDS),
    "npz in pieces": Reader(5_000, DATA, _of(_table, ".npz", pieces=True), ZIP, seal_files),
    "csv in pieces": Reader(3_000, DATA, _of(_table, ".csv", pieces=True), TEXT),
    "parquet in pieces": Reader(3_000, DATA, _of(_table, ".parquet", pieces=True), ARROW_WORDS),
    "csv of mixed columns": Reader(25_000, DATA, _of(_frame, ".csv"), TEXT),
    "packed csv": Reader(10_000, DATA, _of(_frame, ".csv.gz"), TEXT),
    "JSON lines": Reader(12_000, DATA, _of(_frame, ".jsonl"), JSON_WORDS),
    "ARFF": Reader(15_000, DATA, _of(_frame, ".arff"), (*TEXT, b"@attribute", b"@data", b"{a,b}", b"numeric")),
    "Feather": Reader(10_000, DATA, _of(_frame, ".feather"), ARROW_WORDS),
    "Parquet of mixed columns": Reader(8_000, DATA, _of(_frame, ".parquet"), ARROW_WORDS),
    "workbook": Reader(5_000, DATA, _of(_frame, ".xlsx"), ZIP, seal_files),
    "encoder of a table": Reader(15_000, DATA, _encoder, (*JSON_WORDS, b"category", b"time", b"keep", b"codes")),
    "picture": Reader(20_000, DATA, _picture, PNG, seal_files),
    "folder of pictures": Reader(3_000, DATA, _picture_folder, PNG, seal_files),
    "JSON body": Reader(15_000, REFUSED, _json_body, JSON_WORDS),
    "Arrow body": Reader(10_000, REFUSED, _arrow_body, ARROW_WORDS),
    "service": Reader(3_000, REFUSED, _service, (*JSON_WORDS, *ARROW_WORDS)),
    "safetensors": Reader(
        8_000, WEIGHTS, _of(_weights, ".safetensors"), (*JSON_WORDS, b"F32", b"BF16", b"I64", b"data_offsets")
    ),
    "msgpack": Reader(8_000, WEIGHTS, _of(_weights, ".msgpack"), MSGPACK),
    "file of scores": Reader(6_000, DATA, _score_file, TEXT),
    "records": Reader(6_000, ("ValueError",), _records, JSON_WORDS),
    "scores of a record": Reader(5_000, ("ValueError",), _record_scores, ZIP, seal_files),
    "checkpoint": Reader(1_500, CHECKED, _checkpoint, CHECKPOINT, seal_checkpoint),
    "detector": Reader(1_000, CHECKED, _detector, CHECKPOINT, seal_checkpoint),
    "run directory": Reader(500, CHECKED, _run_directory, CHECKPOINT),
    "card": Reader(5_000, BUNDLE, _of(_bundle, card_alone=True), JSON_WORDS),
    "bundle": Reader(1_500, BUNDLE, _bundle, (*JSON_WORDS, *NUMPY), seal_bundle),
}
"""Slow ones get few: a checkpoint is read in milliseconds, a bundle compiles."""


def show(records: list[dict]) -> None:
    """Counts."""
    console, table = (
        Console(width=160, highlight=False),
        Table(
            "reader",
            "inputs",
            "per second",
            "refused",
            "in ways",
            "accepted",
            "crashes",
            "hangs",
            "left behind",
            "slowest, s",
        ),
    )
    for row in records:
        rate = row["inputs"] / max(row["seconds"], 0.01)
        cells = (
            row["inputs"],
            round(rate),
            row["refused"],
            row["distinct_refusals"],
            row["accepted"],
            row["crashes"],
            row["hangs"],
            row["left_behind"],
            row["slowest_seconds"],
        )
        table.add_row(row["reader"], *map(str, cells))
    console.print(table)
    for row in records:
        for line in row["what"]:
            console.print(f"{row['reader']}: {line}", markup=False)
    console.print(f"{sum(row['inputs'] for row in records):,} inputs in {sum(row['seconds'] for row in records):.0f} s")


if __name__ == "__main__":
    with exit_on_user_error():
        run(tyro.cli(Config, description=__doc__))
