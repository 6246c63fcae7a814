"""What do anomalies among the training rows cost, and what does leaving out the worst denoised rows bring back?

    python -m experiments.contamination --data-dir ../shared/data

Half of a set's anomalies are set aside; of them 0, 1, 5 and 10 % are mixed into the normal training rows, the other half is tested, always
the same. Sets: the ten smallest of ADBench's ``Classical`` group with at least 40 anomalies. The denoiser (``DiffusionDetector``, 1,000
steps) learns from all rows, or by ``training.trimmed_loss`` from the best denoised 80 % of every batch, one setting for all;
kNN stands beside. About 15 minutes on 2 cores. Records: ``experiments/results/contamination.jsonl``; none is made twice.
Expected: docs/trust.md.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

from experiments.false_discoveries import append
from experiments.images import read
from jaxad import data, fit_many, training
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.detectors import ConsensusDetector, DiffusionDetector
from jaxad.detectors.catalogue import ROWS, choose
from jaxad.evaluation import clean
from jaxad.metrics import auroc

SHARES = (0.0, 0.01, 0.05, 0.1)
METHODS = (
    *("knn", "1nn", "iforest", "denoiser", "denoiser, trimmed"),
    *("recommended", "recommended, keeps all", "recommended, told"),
)


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with adbench/; default: JAXAD_DATA_DIR, else ~/.cache/jaxad."""
    num_sets: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = METHODS
    num_steps: int = 1000
    keep: float = 0.8
    out: Path = Path(__file__).parent / "results" / "contamination.jsonl"


def run(config: Config) -> list[dict]:
    """Every cell that is not yet in ``config.out``; all records."""
    sets = [
        data.adbench(name, config.data_dir)
        for name in data.adbench_names(config.data_dir)
        if name in data.ADBENCH_GROUPS["Classical"]
    ]
    sets = sorted((each for each in sets if each.y is not None and each.y.sum() >= 40), key=lambda each: each.x.size)
    done = {(row["dataset"], row["seed"]) for row in read(config.out)}
    for dataset in sets[: config.num_sets]:
        for seed in config.seeds:
            if (dataset.name, seed) not in done:
                jax.clear_caches()
                append(config.out, {"dataset": dataset.name, "seed": seed, **cell(config, dataset, seed)})
    records = read(config.out)
    show(records)
    return records


def cell(config: Config, dataset: data.Dataset, seed: int) -> dict:
    """AUROC of every method at every share."""
    split = clean(dataset, seed)
    rng = np.random.default_rng(seed)
    anomalies = rng.permutation(np.flatnonzero(split.labels == 1))
    reserved = anomalies[: len(anomalies) // 2]
    tested = np.setdiff1d(np.arange(len(split.test)), reserved)
    rows, tables = {}, []
    for share in SHARES:
        count = min(round(share / (1 - share) * len(split.train)), len(reserved))
        table = np.concatenate([split.train, split.test[reserved[:count]]])
        tables.append(table[rng.permutation(len(table))])
        rows[f"mixed_in_{share:g}"] = count
    for method in config.methods:
        for share, detector in zip(SHARES, fitted(method, tables, config, seed), strict=True):
            scores = -detector.score_samples(split.test[tested])
            rows[f"{method} {share:g}"] = auroc(split.labels[tested], scores)
            if left_out := getattr(detector, "left_out_", np.zeros(0)).tolist():
                rows[f"{method} {share:g}, left out"] = len(left_out)
    return {"num_train": len(split.train), "keep": config.keep, "num_steps": config.num_steps, **rows}


def fitted(method: str, tables: list[np.ndarray], config: Config, seed: int) -> list:
    """A detector for every share, fitted."""
    if method.startswith("denoiser"):
        loss: Any = {"loss": partial(training.trimmed_loss, keep=config.keep)} if "trimmed" in method else {}
        make = partial(DiffusionDetector, num_steps=config.num_steps, random_state=seed)
        return fit_many([make(**loss) for _ in tables], tables)
    if method.startswith("recommended"):
        told = {"recommended": [None] * 4, "recommended, keeps all": [0.0] * 4, "recommended, told": SHARES}[method]
        detectors: list = [ConsensusDetector(contamination=share, random_state=seed) for share in told]
    else:
        detectors = [choose((method,), ROWS)[method](seed) for _ in tables]
    return [detector.fit(table) for detector, table in zip(detectors, tables, strict=True)]


def show(records: list[dict]) -> None:
    """Means over sets and seeds, in Markdown, with the mean difference of the filter and the share of sets where it helps."""
    console = Console(width=200, highlight=False)
    methods = [method for method in METHODS if f"{method} 0" in records[0]]
    filters = {"denoiser", "denoiser, trimmed"} <= set(methods)
    console.print(
        f"| mixed in | {' | '.join(methods)} |" + " filter, mean difference ± standard error over sets |" * filters
    )
    console.print("|---:|" + "---:|" * (len(methods) + filters))
    for share in SHARES:
        means = {method: 100 * np.array([row[f"{method} {share:g}"] for row in records]) for method in methods}
        if not filters:
            console.print(f"| {share:.0%} | {' | '.join(f'{values.mean():.2f}' for values in means.values())} |")
            continue
        names = np.array([row["dataset"] for row in records])
        difference = means["denoiser, trimmed"] - means["denoiser"]
        per_set = np.array([difference[names == name].mean() for name in dict.fromkeys(names)])
        error = per_set.std(ddof=1) / np.sqrt(len(per_set)) if len(per_set) > 1 else float("nan")
        cells = [f"{values.mean():.2f}" for values in means.values()]
        console.print(f"| {share:.0%} | {' | '.join(cells)} | {per_set.mean():+.2f} ± {error:.2f} |")


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        run(tyro.cli(Config, description=__doc__))
