"""Data sets x detectors x seeds, one record per cell on disk, resumed where it stopped.

``OUT/results.jsonl`` holds one JSON object per finished cell and only ever grows; ``OUT/scores/`` holds the test labels and anomaly
scores behind each record. Scores are written first, so a record never lacks them, and a killed run loses at most the cell in flight.
"""

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxad import evaluation
from jaxad.data import DataError, Dataset
from jaxad.data.arrays import read_members
from jaxad.detectors.estimator import Detector
from jaxad.evaluation import Evaluation
from jaxad.runtime.cluster import Elsewhere

RESULTS = "results.jsonl"
_TEXTS = ("dataset", "detector", "protocol", "device")
_COUNTS = ("seed", "num_train", "num_test")
_SHARES = ("auroc", "average_precision", "fpr_at_95_tpr", "f1_at_k", "twin_share")
_SECONDS = ("fit_seconds", "score_seconds")
_KEYS = tuple(field.name for field in fields(Evaluation))
# Every record starts like this, which tells a record cut short by a kill from a line that somebody else wrote.
_RECORD_START = b'{"dataset": "'


def run(
    datasets: Mapping[str, Callable[[], Dataset]],
    detectors: Mapping[str, Callable[[int], Detector]],
    *,
    out: Path | str,
    protocol: str = "clean",
    seeds: Iterable[int] = (0,),
    on_cell: Callable[[Evaluation], None] | None = None,
    progress: bool = True,
    elsewhere: Elsewhere | None = None,
) -> list[Evaluation]:
    """Evaluate every detector on every data set with every seed and return the records in that order, finished ones included.

    Cells already in ``OUT/results.jsonl`` are skipped, and a data set whose cells are all finished is not even loaded. Any error of
    a detector or a data set stops the run; what is done is kept, and the same call goes on from there.

    Args:
        datasets: ``{Dataset.name: loader}``; one data set is in memory at a time.
        detectors: ``{name: factory}``; ``factory(seed)`` returns a fresh, unfitted detector.
        out: folder for the records and scores; made if it does not exist.
        protocol: a key of ``evaluation.PROTOCOLS``.
        seeds: seeds of the splits and of the detectors.
        on_cell: called with each new record once it is on disk.
        progress: a bar on stderr: cells, the one in work, the last AUROC, elapsed and remaining time.
        elsewhere: where the cells are computed, ``cluster.on_ray`` for instance; None: here, one after the other. Only this process
            writes, so records and resuming are the same; cells come in the order in which they are finished.

    Raises:
        ValueError: nothing to do, an unknown protocol, a line in ``results.jsonl`` that is no record, a loader whose data set has
            another name than its key, or whatever ``evaluate`` refuses.
        OSError: ``out`` cannot be written to. Apart from the last two nothing has been computed or written by then.

    >>> from sklearn.ensemble import IsolationForest
    >>> from jaxad import data
    >>> datasets = {"wine_0": data.wine}
    >>> detectors = {"forest": lambda seed: IsolationForest(random_state=seed)}
    >>> with tempfile.TemporaryDirectory() as out:
    ...     [first] = run(datasets, detectors, out=out, progress=False)
    ...     [again] = run(datasets, detectors, out=out, progress=False)
    >>> again == first
    True
    """
    out, seeds = Path(out), tuple(dict.fromkeys(int(seed) for seed in seeds))
    if not (datasets and detectors and seeds):
        raise ValueError(
            f"a sweep needs at least one data set, detector and seed, got {len(datasets)}, {len(detectors)} and {len(seeds)}"
        )
    if protocol not in evaluation.PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose one of {', '.join(evaluation.PROTOCOLS)}")
    cells = [(data, detector, protocol, seed) for data in datasets for seed in seeds for detector in detectors]
    finished = _prepare(out)
    pending = [cell for cell in cells if cell not in finished]
    with _progress(progress) as bar:
        task = bar.add_task("", total=len(cells), completed=len(cells) - len(pending), last="")

        def begin(cell):
            bar.update(task, description=f"{cell[0]} · {cell[1]} · seed {cell[3]}")

        if elsewhere is None or not pending:
            outcomes = _computed_here(pending, datasets, detectors, begin)
        else:
            bar.update(task, description=f"{len(pending)} cells elsewhere")
            work = [(cell, datasets[cell[0]], detectors[cell[1]]) for cell in pending]
            outcomes = (outcome for _, outcome in elsewhere(_compute, work))
        for record, labels, scores in outcomes:
            _write_scores(_scores_path(out, record), labels, scores)
            _append(out / RESULTS, record)
            finished[record.cell] = record
            bar.update(task, advance=1, last=f"AUROC {record.auroc:.2%}")
            if on_cell is not None:
                on_cell(record)
    return [finished[cell] for cell in cells]


def read_results(path: Path | str) -> list[Evaluation]:
    """The records of a ``results.jsonl``, or of the one in a folder, in the order of the file.

    A record cut short by a kill is left out, since its cell was never finished. Where two lines describe the same cell the later
    one counts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is no record, with file and line number.
    """
    path = Path(path)
    path = path / RESULTS if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"there are no results at {path}: give the folder a sweep wrote to, or its {RESULTS}")
    records: dict[tuple, Evaluation] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        record = _parse(line, f"{path}, line {number}")
        if record is not None:
            records.pop(record.cell, None)
            records[record.cell] = record
    return list(records.values())


def read_scores(out: Path | str, record: Evaluation) -> tuple[np.ndarray, np.ndarray] | None:
    """Test labels ``[num_test]`` (uint8, 1 = anomalous) and anomaly scores ``[num_test]`` (float32, larger = more anomalous).

    None if the folder ``out`` holds no scores of that cell.

    Raises:
        ValueError: the file is damaged or holds another number of rows than the record says.
    """
    path = _scores_path(Path(out), record)
    if not path.exists():
        return None
    try:
        labels, scores = read_members(path, ("labels", "scores"))
    except DataError as error:
        raise ValueError(f"{path} holds no labels and scores ({error}): delete it, or repeat the cell") from error
    if labels.shape != (record.num_test,) or scores.shape != (record.num_test,):
        raise ValueError(
            f"{path} holds {labels.shape} labels and {scores.shape} scores, its record says {record.num_test} rows"
        )
    return labels, scores


def _prepare(out: Path) -> dict[tuple, Evaluation]:
    """The finished cells, after making sure that everything a sweep writes can be written."""
    results = out / RESULTS
    try:
        finished = {record.cell: record for record in read_results(results)} if results.exists() else {}
        (out / "scores").mkdir(parents=True, exist_ok=True)
        for folder in (out, out / "scores"):
            with tempfile.TemporaryFile(dir=folder):
                pass
        if results.exists():
            os.close(os.open(results, os.O_WRONLY | os.O_APPEND))
    except OSError as error:
        raise OSError(f"cannot write results to {out}: {error.strerror or error}") from error
    return finished


def _computed_here(pending, datasets, detectors, begin) -> Iterator[tuple[Evaluation, np.ndarray, np.ndarray]]:
    """``(record, test labels, anomaly scores)`` of every cell."""
    dataset = None
    for cell in pending:
        begin(cell)
        if dataset is None or dataset.name != cell[0]:
            dataset = None  # let go of the last one before the next is loaded
            dataset = _load(datasets[cell[0]], cell[0])
        yield _evaluate(cell, dataset, detectors[cell[1]])


def _compute(cell, load, make):
    return _evaluate(cell, _load(load, cell[0]), make)


def _evaluate(cell, dataset, make):
    _, detector, protocol, seed = cell
    record, split, scores = evaluation.evaluate(make(seed), dataset, protocol=protocol, seed=seed, name=detector)
    return record, split.labels, scores


def _load(load: Callable[[], Dataset], name: str) -> Dataset:
    dataset = load()
    if dataset.name != name:
        raise ValueError(f"the loader of {name!r} returned a data set named {dataset.name!r}: the key must be its name")
    return dataset


def _progress(enabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[last]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=24 * 3600,  # cells take from milliseconds to minutes: only a long average says anything
        disable=not enabled,
    )


def _scores_path(out: Path, record: Evaluation) -> Path:
    return out / "scores" / ("--".join(_file_name(part) for part in record.cell) + ".npz")


def _file_name(part: str | int) -> str:
    """Names come from strangers: percent-encoded, no dash touches another, long ones end in a digest; no two cells share a file."""
    encoded = re.sub(r"(?<![^-])-|-(?![^-])", "%2D", quote(str(part), safe="", errors="surrogatepass"))
    if len(encoded) <= 64:
        return encoded
    return f"{encoded[:47]}={hashlib.sha256(encoded.encode()).hexdigest()[:16]}"  # file systems take 255 bytes


def _write_scores(path: Path, labels: np.ndarray, scores: np.ndarray) -> None:
    largest = np.finfo(np.float32).max
    scores = np.clip(scores, -largest, largest).astype(np.float32)  # a finite float64 must not become infinite
    temporary = path.with_name(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, labels=labels.astype(np.uint8), scores=scores)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _append(path: Path, record: Evaluation) -> None:
    """One write of one line, on a line of its own even if the last run was killed halfway through its line."""
    line = json.dumps(asdict(record), allow_nan=False).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(descriptor, line) != len(line):
            raise OSError(f"the disk took only part of a record: free some space for {path}, then run again")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(line: bytes, where: str) -> Evaluation | None:
    """The record on a line, None for a blank or a cut line, or a ValueError."""
    line = line.strip()
    if not line:
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        if line.startswith(_RECORD_START) or _RECORD_START.startswith(line):
            return None
        raise ValueError(f"{where}: expected the JSON record of a sweep, got {line[:40]!r}") from error
    if not isinstance(record, dict) or set(record) != set(_KEYS):
        raise ValueError(f"{where}: expected a record with exactly the keys {', '.join(_KEYS)}, got {line[:40]!r}")
    wrong = [key for key in _KEYS if not _acceptable(key, record[key])]
    if wrong:
        raise ValueError(f"{where}: {wrong[0]} cannot be {record[wrong[0]]!r} (metrics are fractions in [0, 1])")
    return Evaluation(**record)


def _acceptable(key: str, value: Any) -> bool:
    if key in _TEXTS:
        return isinstance(value, str)
    if key in _COUNTS:
        return type(value) is int  # a bool is an int too
    if key in _SHARES + _SECONDS:
        limit = 1.0 if key in _SHARES else math.inf
        return type(value) in (int, float) and 0.0 <= value <= limit and math.isfinite(value)
    return value is None or isinstance(value, str) if key == "commit" else isinstance(value, dict)
