"""Does scoring ten million rows from disk stay in the memory of one piece, and does a killed run lose nothing?

    python -m experiments.stream

Runtime: about 10 minutes on 2 cores. A detector is saved, tables of random rows are written, and ``jaxad score`` (a process
of its own) scores each; the longest is scored once more, killed by SIGKILL half-way and started again, and the two files compared.
Written to ``experiments/results/stream.jsonl``. Expected: peak memory that does not grow with the table, files equal to the byte.
"""

import hashlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console

from jaxad.cli import exit_on_user_error
from jaxad.denoisers import MLP
from jaxad.detectors import DiffusionDetector, MahalanobisDetector
from jaxad.detectors.persistence import save_detector
from jaxad.evaluation import current_commit, device_name


@dataclass(frozen=True)
class Config:
    rows: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    features: int = 20
    detector: Literal["mahalanobis", "diffusion"] = "mahalanobis"
    """One that costs next to nothing, so that the reading and writing is measured; or a small diffusion detector (MLP 64 x 2)."""
    out: Path = Path(__file__).parent / "results" / "stream.jsonl"


def run(config: Config) -> list[dict]:
    """One record per length of the table, and one of the run that is killed."""
    rng = np.random.default_rng(0)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        normal = rng.normal(size=(1000, config.features))
        small = DiffusionDetector(MLP(width=64, depth=2), num_steps=500)
        detector = {"mahalanobis": MahalanobisDetector(), "diffusion": small}[config.detector].fit(normal)
        save_detector(detector, work / "model")
        for rows in config.rows:
            table = np.lib.format.open_memmap(work / "rows.npy", "w+", np.float32, (rows, config.features))
            for start in range(0, rows, 1_000_000):
                table[start : start + 1_000_000] = rng.normal(size=table[start : start + 1_000_000].shape)
            table.flush()
            del table
            records.append(append(config, {"rows": rows, **scored(work, "whole.csv", None)}))
        half = work / "killed.csv.partial.json"
        cut = scored(
            work, "killed.csv", lambda: half.exists() and json.loads(half.read_text() or "[0,0]")[1] > rows / 2
        )
        resumed = scored(work, "killed.csv", None)
        equal = digest(work / "killed.csv") == digest(work / "whole.csv")
        records.append(append(config, {"rows": rows, "killed": cut, "resumed": resumed, "equal": equal}))
    return records


def scored(work: Path, name: str, kill_when) -> dict:
    """One ``jaxad score``, killed as soon as ``kill_when()``: what it took, peak memory in MiB, and rows a second."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "jaxad.cli", "score", "model", "rows.npy", "--out", name]
    process = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak, killed = 0, False
    while process.poll() is None:
        # Not ru_maxrss: Linux hands a child the peak of the process that started it, which has written the table.
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            continue
        peak = max(peak, int((re.search(r"VmHWM:\s+(\d+)", status) or [0, peak])[1]))
        if not killed and kill_when is not None and kill_when():
            process.send_signal(signal.SIGKILL)
            killed = True
        time.sleep(0.1)
    assert process.stdout is not None
    said = process.stdout.read()
    seconds = time.perf_counter() - started
    found = re.search(r"(\d+) rows scored in", said.replace("\n", " "))
    return {
        "seconds": round(seconds, 1),
        "status": process.returncode,
        "peak_mib": round(peak / 1024),
        "rows_per_second": found and round(int(found[1]) / seconds),
        "said": said.strip()[-200:],
    }


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append(config: Config, row: dict) -> dict:
    """One record, shown and kept."""
    row |= {
        "features": config.features,
        "detector": config.detector,
        "device": device_name(),
        "commit": current_commit(),
    }
    Console(width=160, highlight=False).print(row)
    with config.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return row


if __name__ == "__main__":
    with exit_on_user_error():
        run(tyro.cli(Config, description=__doc__))
