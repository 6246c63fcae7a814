"""Are as many fresh normal rows flagged as the rate says, however few rows and many columns there are?

    python -m experiments.false_alarms --detectors knn mahalanobis recommended

Gaussian rows of 20, 60 and 300 x 5, 100 and 1,000, 1,000 fresh ones each, rate 5 %. Runtime: 10 minutes for the closed-form
detectors, hours with the trained ones, 2 cores. Expected: every mean within .02 to .08 (docs/trust.md); 20 rows support 1 in 21 at the
least.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.detectors.catalogue import ROWS, choose
from jaxad.evaluation import current_commit, device_name


@dataclass(frozen=True)
class Config:
    detectors: tuple[str, ...] = (
        *("recommended", "knn", "knn-mean", "1nn", "dte-np", "copod", "ecod", "mahalanobis", "norm"),
        *("ddpm", "dit", "dte-c", "dte-ig"),
    )
    rows: tuple[int, ...] = (20, 60, 300)
    columns: tuple[int, ...] = (5, 100, 1000)
    seeds: int = 20
    rate: float = 0.05
    out: Path = Path("runs/false_alarms/results.jsonl")


def run(config: Config) -> list[dict]:
    """One record for each detector and shape: the share of fresh rows flagged, by seed; written as it comes."""
    about = {"device": device_name(), "commit": current_commit()}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    records = []
    for name, make in choose(config.detectors, ROWS).items():
        for rows in config.rows:
            for columns in config.columns:
                started, shares = time.perf_counter(), []
                for seed in range(config.seeds):
                    rng = np.random.default_rng(seed)
                    detector = make(seed).set_params(false_alarm_rate=config.rate)  # pyright: ignore[reportAttributeAccessIssue]
                    detector.fit(rng.normal(size=(rows, columns)))
                    shares.append(float(np.mean(detector.predict(rng.normal(size=(1000, columns))) == -1)))  # pyright: ignore[reportAttributeAccessIssue]
                record = {"detector": name, "rows": rows, "columns": columns, "flagged": shares, **about}
                records.append(record | {"seconds": round(time.perf_counter() - started, 1)})
                with config.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(records[-1]) + "\n")
    return records


def table(records: list[dict]) -> Table:
    """Mean shares, and twice their standard error."""
    shapes = list(dict.fromkeys((record["rows"], record["columns"]) for record in records))
    shown = Table("detector", *(f"{rows} x {columns}" for rows, columns in shapes))
    for name in dict.fromkeys(record["detector"] for record in records):
        of = {(r["rows"], r["columns"]): np.array(r["flagged"]) for r in records if r["detector"] == name}
        shown.add_row(
            name,
            *(f"{of[s].mean():.3f} ± {2 * of[s].std() / np.sqrt(len(of[s])):.3f}" if s in of else "" for s in shapes),
        )
    return shown


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        Console(width=200).print(table(run(tyro.cli(Config, description=__doc__))))
