"""How long does a fit on many rows or many columns take, how much memory, and does scoring's memory stay flat?

    python -m experiments.large --data-dir ../shared/data

Runtime: about 15 minutes on 2 cores, most of it scoring 619,326 rows. Expected: the fit on 619,326 rows (donors)
takes about as long as one on 5,000, since steps are
bounded; peak memory of scoring grows by the rows themselves and nothing else.
Each case runs in a process of its own, so that its peak memory is its own.
"""

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxad import data
from jaxad.cli import exit_on_user_error
from jaxad.detectors.catalogue import choose
from jaxad.evaluation import current_commit, device_name, versions

CASES = (
    *(("donors", detector, 0) for detector in ("ddpm", "dte-c")),
    *(("InternetAds", detector, 0) for detector in ("ddpm", "dit", "dte-c")),
    *(("donors", "ddpm", rows) for rows in (10_000, 100_000, 619_326)),
)
"""(data set, detector, rows scored; 0 = the fit is measured and the first 10,000 rows are scored)."""


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with adbench/<group>/<name>.npz."""
    out: Path = Path("runs/large/results.jsonl")


def peak_mib() -> float:
    """The largest resident memory of this process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 2**20


def measure(name: str, detector: str, rows_scored: int, data_dir: str | None) -> dict:
    """Fit on *all* rows (this measures cost, not accuracy), score some, and return times and memory."""
    dataset = data.adbench(name, data_dir or None)
    x = np.asarray(dataset.x, np.float64)
    before = peak_mib()
    model: Any = choose([detector])[detector](0)
    if rows_scored:
        model.set_params(num_steps=200)  # scoring is what this case measures
    started = time.perf_counter()
    model.fit(x)
    fit_seconds, fit_peak = time.perf_counter() - started, peak_mib()
    scored = np.resize(x, (rows_scored or 10_000, x.shape[1]))
    started = time.perf_counter()
    scores = model.score_samples(scored)
    return {
        "dataset": dataset.name,
        "detector": detector,
        "rows": len(x),
        "features": x.shape[1],
        "steps": len(model.losses_),
        "fit_seconds": round(fit_seconds, 2),
        "peak_mib_before_fit": round(before),
        "peak_mib_after_fit": round(fit_peak),
        "rows_scored": len(scores),
        "score_seconds": round(time.perf_counter() - started, 2),
        "peak_mib_after_scoring": round(peak_mib()),
    }


def run(config: Config) -> list[dict]:
    """Every case in its own process; one JSON object per line is appended to ``out``."""
    config.out.parent.mkdir(parents=True, exist_ok=True)
    records = []
    for name, detector, rows in CASES:
        command = [
            sys.executable,
            "-m",
            "experiments.large",
            "--case",
            name,
            detector,
            str(rows),
            str(config.data_dir or ""),
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout
        record = json.loads(output.splitlines()[-1])
        record |= {"commit": current_commit(), "device": device_name(), "versions": versions()}
        records.append(record)
        with config.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print({key: value for key, value in record.items() if key != "versions"}, flush=True)
    return records


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        case, which, scored, folder = sys.argv[2:]
        print(json.dumps(measure(case, which, int(scored), folder)))
    else:
        with exit_on_user_error():
            run(tyro.cli(Config, description=__doc__))
