"""How well are anomalies found in 180 public time series of eight collections, beside the baselines that everybody should have?

    python -m experiments.series --data-dir ../shared/data
    python -m experiments.series --folder TSB-AD-M --out runs/tsb.jsonl      # any folder in TSB-AD's layout

VUS-PR, VUS-ROC (TSB-AD's window: the period of the first channel of the test part), average precision, affiliation F (the best of 100
thresholds; a random score beside it), for every series and method, one setting for all. Every method's scores are the mean over 32 points
(the recommended detector smooths itself). *Dev* are the even series of each collection: on them the views and their weights were chosen;
*confirm* are the odd ones. Macro: mean of the collections; micro: of the series. About 40 minutes on one core. Records:
``experiments/results/series.jsonl``; none is made twice. Expected: docs/series.md.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from sklearn.ensemble import IsolationForest

from experiments.false_discoveries import append
from experiments.images import read
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.data.series_suites import LabelledSeries, series_collections, tsb_ad
from jaxad.detectors.series import SeriesDetector
from jaxad.metrics import average_precision
from jaxad.metrics.events import affiliation, period_of, vus

SMOOTHING = 32


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with series/; default: JAXAD_DATA_DIR, else ~/.cache/jaxad."""
    folder: Path | None = None
    """A folder in TSB-AD's layout instead."""
    methods: tuple[str, ...] = ()
    """Default: all."""
    collections: tuple[str, ...] = ()
    """Default: all."""
    affiliations: bool = False
    """Also affiliation F, which takes longer than all else."""
    seed: int = 0
    out: Path = Path(__file__).parent / "results" / "series.jsonl"


def view(name: str) -> Callable:
    """A detector of one view."""
    return lambda train, seed: SeriesDetector(views=(name,), random_state=seed).fit(train)


class Moving:
    """How far a point lies from the mean of the 100 before it, in their spread."""

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        scores = np.zeros(len(X))
        sums, squares = (
            np.concatenate([np.zeros((1, X.shape[1])), np.cumsum(of, axis=0)]) for of in (X, X.astype(float) ** 2)
        )
        for at in range(2, len(X)):
            begin = max(at - 100, 0)
            mean = (sums[at] - sums[begin]) / (at - begin)
            spread = np.sqrt(np.maximum((squares[at] - squares[begin]) / (at - begin) - mean**2, 1e-12)) + 1e-3
            scores[at] = np.mean(np.minimum(np.abs(X[at] - mean) / spread, 1e3))
        return -scores


class Norm:
    """Mean squared distance from the mean of training, spreads with a floor."""

    def __init__(self, train: np.ndarray):
        extent = train.max(axis=0) - train.min(axis=0)
        self.mean, scale = train.mean(axis=0), np.maximum(train.std(axis=0), 0.15 * extent)
        self.scale = np.where(scale > 0, scale, 1.0)

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        return -np.mean(np.clip((X - self.mean) / self.scale, -10, 10) ** 2, axis=1)


class ForestOfWindows:
    """scikit-learn's isolation forest on windows of 64 points, every fourth."""

    def __init__(self, train: np.ndarray, seed: int):
        self.window = min(64, len(train) // 4)
        self.forest = IsolationForest(random_state=seed).fit(self._windows(train)[::4])

    def _windows(self, X):
        windows = np.lib.stride_tricks.sliding_window_view(X, self.window, axis=0)
        return windows.reshape(len(windows), -1)

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        windows = self._windows(X)
        of = np.concatenate(
            [self.forest.score_samples(windows[start : start + 4096]) for start in range(0, len(windows), 4096)]
        )
        sums = np.concatenate([[0.0], np.cumsum(of)])
        points = np.arange(len(X))
        low, high = np.maximum(points - self.window + 1, 0), np.minimum(points + 1, len(of))
        return (sums[high] - sums[low]) / (high - low)


class Random:
    def __init__(self, seed: int):
        self.seed = seed

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        return np.random.default_rng(self.seed).random(len(X))


METHODS: dict[str, Callable[[np.ndarray, int], Any]] = {
    "random": lambda train, seed: Random(seed),
    "moving z": lambda train, seed: Moving(),
    "norm": lambda train, seed: Norm(train),
    "IForest, windows": ForestOfWindows,
    "ridge forecast": view("forecast"),
    "PCA, windows": view("patterns"),
    "kNN, windows": view("nearest"),
    "k-means, windows": view("clusters"),
    "recommended": lambda train, seed: SeriesDetector(random_state=seed).fit(train),
}


def run(config: Config) -> list[dict]:
    """Every cell that is not yet in ``config.out``; all records."""
    found = series_collections(config.data_dir) if config.folder is None else list(tsb_ad(config.folder))
    halves = half_of(found)
    methods = config.methods or tuple(METHODS)
    done = {(row["collection"], row["series"], row["method"], row["seed"]) for row in read(config.out)}
    wanted = [each for each in found if not config.collections or each.collection in config.collections]
    # Those of one size after the other, so that they share compiled programs.
    for each in track(sorted(wanted, key=lambda each: (each.train.shape[1], len(each.train))), "series"):
        jax.clear_caches()
        for method in methods:
            if (each.collection, each.name, method, config.seed) in done:
                continue
            started = time.perf_counter()
            scores = -METHODS[method](each.train, config.seed).score_samples(each.test)
            seconds = time.perf_counter() - started
            if method != "recommended":
                scores = smoothed(scores)
            row = {"collection": each.collection, "series": each.name, "method": method, "seed": config.seed}
            row |= {"half": halves[each.collection, each.name], **judged(each, scores, config.affiliations)}
            append(config.out, row | {"seconds": seconds})
    records = read(config.out)
    show(records)
    return records


def half_of(found: list[LabelledSeries]) -> dict[tuple[str, str], str]:
    """Even series of each collection choose, odd ones confirm."""
    halves: dict[tuple[str, str], str] = {}
    for each in found:
        earlier = sum(collection == each.collection for collection, _ in halves)
        halves[each.collection, each.name] = ("dev", "confirm")[earlier % 2]
    return halves


def smoothed(scores: np.ndarray) -> np.ndarray:
    """The mean over 32 points around each."""
    sums, points = np.concatenate([[0.0], np.cumsum(scores)]), np.arange(len(scores))
    low, high = np.maximum(points - SMOOTHING // 2, 0), np.minimum(points + SMOOTHING // 2, len(scores))
    return (sums[high] - sums[low]) / (high - low)


def judged(each: LabelledSeries, scores: np.ndarray, affiliations: bool) -> dict[str, float]:
    """All measures of one series."""
    window = period_of(each.test[:, 0])
    roc, precision = vus(each.labels, scores, window)
    row = {"window": window, "VUS-PR": precision, "VUS-ROC": roc, "AP": average_precision(each.labels, scores)}
    if affiliations:
        row["affiliation F"] = max(
            2 * p * r / (p + r) if p + r else 0.0
            for p, r in (
                affiliation(each.labels, (scores >= threshold).astype(int))
                for threshold in np.quantile(scores, np.linspace(0.5, 0.999, 100))
            )
        )
    return row


def table(records: list[dict], half: str = "all") -> str:
    """VUS-PR by collection, then the means, in Markdown; the best of a column in bold."""
    chosen = [row for row in records if half in ("all", row["half"])]
    collections, methods = (list(dict.fromkeys(row[key] for row in chosen)) for key in ("collection", "method"))
    values = np.empty((len(methods), len(collections) + 4))
    for number, method in enumerate(methods):
        rows = [row for row in chosen if row["method"] == method]
        means = [_mean([row["VUS-PR"] for row in rows if row["collection"] == name]) for name in collections]
        more = [_mean([row[key] for row in rows]) for key in ("VUS-PR", "VUS-ROC", "AP")]
        values[number] = (*means, np.nanmean(means), *more)
    best = np.nanmax(values, axis=0)
    lines = [
        f"| method | {' | '.join(collections)} | macro | micro | VUS-ROC | AP |",
        "|---|" + "---:|" * values.shape[1],
    ]
    for method, row in zip(methods, values, strict=True):
        cells = [f"**{value:.3f}**" if value == top else f"{value:.3f}" for value, top in zip(row, best, strict=True)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def show(records: list[dict]) -> None:
    """All series, then the halves."""
    console = Console(width=220, highlight=False, markup=False)
    for half in ("all", *dict.fromkeys(row["half"] for row in records)):
        console.print(f"\n{half}\n\n{table(records, half)}")


def _mean(values) -> float:
    return float(np.mean(values)) if values else float("nan")


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        run(tyro.cli(Config, description=__doc__))
