"""Is this checkout slower than another one?

Fit and score, cold and warm, alternating, each in a process of its own.

.venv/bin/python -m experiments.side_by_side --other ../old

Cold is the first fit and score in a process, compilation included; warm is the second, with another seed and other rows of the same shape.
``--other`` is a checkout of the version to compare with (``git worktree add ../old COMMIT``). About 40 minutes on 2 cores.
"""

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

RECOMMENDED = (
    *((30, 3), (99, 10), (300, 8), (1000, 20), (2000, 100)),
    *((5000, 50), (10_000, 10), (20_000, 3), (20_000, 64), (3000, 512)),
)
"""Rows and columns of the ten tables."""
NEIGHBOURS = ((20_000, 20), (100_000, 20))
MOST_SCORED = 5000


@dataclass(frozen=True)
class Config:
    """What is compared."""

    other: Path
    """A checkout of the other version."""
    repeats: int = 1
    """Pairs of each cell; the least time counts."""
    only: int | None = None
    """The first so many tables alone."""
    out: Path = Path("runs/side_by_side/results.jsonl")


def measure(detector: str, rows: int, columns: int) -> dict:
    """Cold and warm seconds of this process, and its peak of memory."""
    from jaxad import ConsensusDetector, KNNDetector

    make = {"recommended": lambda seed: ConsensusDetector(random_state=seed), "knn": lambda seed: KNNDetector()}[
        detector
    ]
    seconds = {}
    for seed, name in enumerate(("cold", "warm")):
        rng = np.random.default_rng(seed)
        mix = rng.normal(size=(columns, columns)) / np.sqrt(columns)
        train, new = (rng.normal(size=(n, columns)) @ mix for n in (rows, min(rows, MOST_SCORED)))
        started = time.perf_counter()
        fitted = make(seed).fit(train)
        middle = time.perf_counter()
        total = float(np.sum(fitted.score_samples(new)))
        seconds |= {
            f"{name}_fit": middle - started,
            f"{name}_score": time.perf_counter() - middle,
            f"{name}_sum": total,
        }
    return {**seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def run(config: Config) -> list[dict]:
    """One record for each cell and side, written as it comes."""
    cells = [("recommended", *shape) for shape in RECOMMENDED] + [("knn", *shape) for shape in NEIGHBOURS]
    records, here = [], Path(__file__).resolve().parents[1]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    for repeat in range(config.repeats):
        for cell in cells[: config.only]:
            sides = [("this", here), ("other", config.other.resolve())]
            for side, folder in sides if (repeat + len(records) // 2) % 2 else sides[::-1]:
                environment = {**os.environ, "PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
                command = [sys.executable, str(Path(__file__).resolve()), "--measure", *map(str, cell)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=folder)
                record = {"detector": cell[0], "rows": cell[1], "columns": cell[2], "side": side, "repeat": repeat}
                records.append({**record, **json.loads(done.stdout)})
                with config.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(records[-1]) + "\n")
    return records


def table(records: list[dict]) -> Table:
    """Seconds of both sides, fit and score together, and this one's as a multiple of the other's."""
    shown = Table(
        "detector",
        "rows x columns",
        "cold, other",
        "this",
        "ratio",
        "warm, other",
        "this",
        "ratio",
        "MiB, other",
        "this",
    )
    for cell in dict.fromkeys((r["detector"], r["rows"], r["columns"]) for r in records):
        words = []
        for what in ("cold", "warm"):
            times = {
                side: min(
                    r[f"{what}_fit"] + r[f"{what}_score"]
                    for r in records
                    if r["side"] == side and (r["detector"], r["rows"], r["columns"]) == cell
                )
                for side in ("other", "this")
            }
            words += [f"{times['other']:.2f}", f"{times['this']:.2f}", f"{times['this'] / times['other']:.2f}"]
        peaks = {r["side"]: r["peak_mib"] for r in records if (r["detector"], r["rows"], r["columns"]) == cell}
        shown.add_row(cell[0], f"{cell[1]:,} x {cell[2]}", *words, f"{peaks['other']:.0f}", f"{peaks['this']:.0f}")
    return shown


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        detector, rows, columns = sys.argv[2:]
        print(json.dumps(measure(detector, int(rows), int(columns))))
    else:
        Console(width=160).print(table(run(tyro.cli(Config, description=__doc__))))
