"""How well are the rows of one table ranked when nobody knows which are normal?

    python -m experiments.unsupervised --data-dir ../shared/data

All rows of an ADBench set, labels unseen, at most 10,000 (drawn at random). The recommended detector gives every row a score by small
samples of the others (``training_scores_``); isolation forest, ECOD, kNN (mean of 5, a row's own place left out) and the residual of a PCA
are fitted on all rows and score them. About 15 minutes on 1 core. Records: ``experiments/results/unsupervised.jsonl``; none is made twice.
Expected: docs/trust.md.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from experiments.false_discoveries import append
from experiments.images import read
from jaxad import ConsensusDetector, data
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.detectors.catalogue import ROWS, choose
from jaxad.metrics import auroc, average_precision

METHODS = ("recommended", "iforest", "ecod", "knn-mean", "pca")


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with adbench/; default: JAXAD_DATA_DIR, else ~/.cache/jaxad."""
    seeds: tuple[int, ...] = (0,)
    most_rows: int = 10_000
    out: Path = Path(__file__).parent / "results" / "unsupervised.jsonl"


def run(config: Config) -> list[dict]:
    """Every cell that is not yet in ``config.out``; all records."""
    done = {(row["dataset"], row["seed"]) for row in read(config.out)}
    for name in data.adbench_names(config.data_dir):
        for seed in config.seeds:
            if (name, seed) not in done:
                jax.clear_caches()
                dataset = data.adbench(name, config.data_dir)
                rows = np.random.default_rng(seed).permutation(len(dataset.x))[: config.most_rows]
                found = cell(dataset.x[rows].astype(float), np.asarray(dataset.y)[rows], seed)
                append(config.out, {"dataset": name, "seed": seed, **found})
    records = read(config.out)
    show(records)
    return records


def cell(x: np.ndarray, y: np.ndarray, seed: int) -> dict:
    """AUROC and average precision of every method."""
    standard = StandardScaler().fit_transform(x)
    known = NearestNeighbors(n_neighbors=5).fit(standard)
    kept = PCA(0.9, svd_solver="full").fit(standard)
    scores = {
        "recommended": -np.asarray(ConsensusDetector(num_networks=0, random_state=seed).fit(x).training_scores_),
        **{name: -choose((name,), ROWS)[name](seed).fit(x).score_samples(x) for name in ("iforest", "ecod")},
        "knn-mean": known.kneighbors()[0].mean(axis=1),
        "pca": np.square(standard - kept.inverse_transform(kept.transform(standard))).sum(axis=1),
    }
    return {
        "rows": len(x),
        "anomalies": int(y.sum()),
        "auroc": {name: round(100 * auroc(y, of), 2) for name, of in scores.items()},
        "average_precision": {name: round(100 * average_precision(y, of), 2) for name, of in scores.items()},
    }


def show(records: list[dict]) -> None:
    """Means over sets and seeds by group, in Markdown."""
    console = Console(width=160, highlight=False)
    console.print("| sets | " + " | ".join(METHODS) + " |")
    console.print("|---|" + "---:|" * len(METHODS))
    for group in ("Classical", "CV_by_ResNet18"):
        of = [row for row in records if row["dataset"] in data.ADBENCH_GROUPS[group]]
        if of:
            cells = [
                f"{np.mean([row['auroc'][name] for row in of]):.1f} / {np.mean([row['average_precision'][name] for row in of]):.1f}"
                for name in METHODS
            ]
            console.print(f"| {len({row['dataset'] for row in of})} {group} | {' | '.join(cells)} |")


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        run(tyro.cli(Config, description=__doc__))
