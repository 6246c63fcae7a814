"""Does a report that promises a share of false alarms keep it, on simulated rows and on real data sets?

    python -m experiments.false_discoveries --data-dir ../shared/data

*Simulated*: 1,000 calibration scores, 1,000 rows of which a tenth are shifted by 3, 200 repetitions. *Real*: the sets of ADBench's
``Classical`` group, protocol ``clean``; each detector is fitted on the normal training rows, Benjamini-Hochberg on its p-values
reports rows of the test part, and the labels say how many of them are normal. Per level: mean share of false discoveries, mean
share of anomalies found, the type-I error of single rows, and how many pairs of set and seed stay within the level. Written to
``experiments/results/false_discoveries.jsonl``; a cell that is there is not run again. Expected: docs/trust.md.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

from experiments.images import read
from jaxad import data
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.detectors import ConformalDetector
from jaxad.detectors.catalogue import choose
from jaxad.evaluation import clean, current_commit
from jaxad.metrics import calibration


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with adbench/; default: JAXAD_DATA_DIR, else ~/.cache/jaxad."""
    datasets: tuple[str, ...] = ()
    """Names; default: every set of the Classical group that is found."""
    detectors: tuple[str, ...] = ("knn", "knn-mean", "mahalanobis", "ecod", "iforest")
    """jaxad's calibrate themselves; scikit-learn's are wrapped in ``ConformalDetector``."""
    alphas: tuple[float, ...] = (0.05, 0.1, 0.2)
    seeds: tuple[int, ...] = (0, 1, 2)
    repetitions: int = 200
    """Of the simulation."""
    most_rows: int = 20_000
    """Rows of a set, drawn with the seed."""
    out: Path = Path(__file__).parent / "results" / "false_discoveries.jsonl"


def run(config: Config) -> list[dict]:
    """Every cell that is not yet in ``config.out``; all records asked for."""
    makers = {name: calibrated(make) for name, make in choose(config.detectors).items()}
    done = {(row["dataset"], row["detector"], row["seed"]) for row in read(config.out)}
    if ("simulated", "gaussian", config.repetitions) not in done:
        append(config.out, simulated(config))
    names = [data.adbench_name(name) for name in config.datasets] or [
        name for name in data.adbench_names(config.data_dir) if name in data.ADBENCH_GROUPS["Classical"]
    ]
    for name in names:
        if all((name, detector, seed) in done for detector in makers for seed in config.seeds):
            continue
        dataset = data.adbench(name, config.data_dir)
        for seed in config.seeds:
            split = clean(dataset, seed, max_rows=config.most_rows)
            for detector, make in makers.items():
                if (name, detector, seed) not in done:
                    p = make(seed).fit(split.train).p_values(split.test)
                    size = {"num_train": len(split.train), "num_test": len(split.test)}
                    append(
                        config.out,
                        {
                            "dataset": name,
                            "detector": detector,
                            "seed": seed,
                            **size,
                            **judged(config, p, split.labels),
                        },
                    )
    records = read(config.out)
    show(config, records)
    return records


def calibrated(make: Callable) -> Callable:
    """``make`` itself where its detectors have p-values, else wrapped."""
    return make if hasattr(make(0), "p_values") else lambda seed: ConformalDetector(make(seed), random_state=seed)


def judged(config: Config, p, y) -> dict:
    """False discoveries, power and type-I error at every level, for p-values ``[rows]`` and labels ``[rows]``."""
    row = {}
    for alpha in config.alphas:
        found = calibration.benjamini_hochberg(p, alpha)
        row |= {
            f"fdp_{alpha:g}": float(np.mean(y[found] == 0)) if found.any() else 0.0,
            f"power_{alpha:g}": float(found[y == 1].mean()),
            f"type1_{alpha:g}": float(np.mean(p[y == 0] <= alpha)),
        }
    return row


def simulated(config: Config) -> dict:
    """Means over the repetitions."""
    rows = []
    for repetition in range(config.repetitions):
        rng = np.random.default_rng(repetition)
        y = (np.arange(1000) < 100).astype(int)
        scores = -(rng.normal(size=1000) + 3 * y)
        rows.append(judged(config, calibration.p_values(-rng.normal(size=1000), scores), y))
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return {"dataset": "simulated", "detector": "gaussian", "seed": config.repetitions, **means}


def append(out: Path, row: dict) -> None:
    """One record."""
    out.parent.mkdir(parents=True, exist_ok=True)
    rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**rounded, "commit": current_commit()}) + "\n")


def show(config: Config, records: list[dict]) -> None:
    """The table of docs/methods.md, in Markdown."""
    console = Console(width=200, highlight=False)
    console.print(
        "| detector | level | false discoveries, mean | cells within the level | anomalies found | type-I error |"
    )
    console.print("|---|---:|---:|---:|---:|---:|")
    for detector in dict.fromkeys(row["detector"] for row in records):
        chosen = [row for row in records if row["detector"] == detector]
        for alpha in config.alphas:
            fdp, power, type1 = (
                np.array([row[f"{key}_{alpha:g}"] for row in chosen]) for key in ("fdp", "power", "type1")
            )
            console.print(
                f"| {detector} | {alpha:g} | {fdp.mean():.3f} | {np.count_nonzero(fdp <= alpha)} of {len(fdp)} | {power.mean():.3f} | "
                f"{type1.mean():.3f} |"
            )


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        run(tyro.cli(Config, description=__doc__))
