"""Does the cycle help: the recommended detector before and after it, without labels and with five known anomalies?

    python -m experiments.cycle

Runtime: about two minutes per data set and seed on 2 cores. Protocol ``clean`` (half of the normal rows train, no anomaly does); five
anomalies are drawn from the test rows by the seed, left out of the test of *every* method, and given to those that take labels. Logistic
regression and a random forest get the same five, and kNN stands beside. Settings are the defaults everywhere. Written to
``experiments/results/cycle.jsonl``, one line per data set and seed; a run goes on where the last one stopped. Expected:
docs/generation.md.
"""

import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxad import data
from jaxad.cli import exit_on_user_error
from jaxad.detectors import ConsensusDetector, CycleDetector, KNNDetector
from jaxad.evaluation import clean, current_commit, device_name
from jaxad.metrics import auroc, average_precision

KNOWN = 5


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with adbench/<group>/<name>.npz."""
    datasets: tuple[str, ...] = ()
    """None: all that are in ``data_dir``."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    out: Path = Path(__file__).parent / "results" / "cycle.jsonl"


class Remembered(ConsensusDetector):
    """The recommended detector, which is fitted once on the same rows: both cycles of a cell begin with the same two."""

    fits: dict[bytes, dict] = {}  # noqa: RUF012

    def fit(self, X, y=None):
        rows = np.ascontiguousarray(X).tobytes()
        if rows not in self.fits:
            self.fits[rows] = vars(super().fit(X)).copy()
        vars(self).update(self.fits[rows])
        return self


def run(config: Config) -> list[dict]:
    """One record per data set and seed that is not on file."""
    names = [data.adbench_name(name) for name in config.datasets] or data.adbench_names(config.data_dir)
    done = set()
    if config.out.exists():
        lines = [json.loads(line) for line in config.out.read_text().splitlines()]
        done = {(line["dataset"], line["seed"]) for line in lines}
    records = []
    for seed in config.seeds:
        for name in names:
            if (name, seed) in done:
                continue
            record = cell(data.adbench(name, config.data_dir), seed)
            with config.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            shown = {key: record["auroc"][key] for key in record["auroc"]}
            Console(width=160, highlight=False).print(name, seed, shown, record["seconds"])
            records.append(record)
    return records


def cell(dataset, seed: int) -> dict:
    """AUROC and average precision of every method, and what the cycles did."""
    started = time.perf_counter()
    parts = clean(dataset, seed)
    train, test, labels = parts.train, parts.test, parts.labels
    rng = np.random.default_rng(seed)
    known = rng.permutation(np.flatnonzero(labels == 1))[:KNOWN]
    # Copies of a training row among the anomalies teach nothing; the cycle refuses them.
    fresh = ~(test[known][:, None] == train[None]).all(axis=2).any(axis=1)
    few = test[known][fresh]
    rest = np.delete(np.arange(len(labels)), known)
    x, y = test[rest], labels[rest]
    scores: dict[str, Any] = {"knn": -KNNDetector().fit(train).score_samples(x)}
    Remembered.fits.clear()
    cycles = {"cycle": CycleDetector(Remembered()).fit(train)}
    scores["recommended"] = -cycles["cycle"].first_.score_samples(x)
    scores["cycle"] = -cycles["cycle"].score_samples(x)
    if len(few):
        cycles["cycle-5"] = CycleDetector(Remembered()).fit(train, anomalies=few)
        scores["cycle-5"] = -cycles["cycle-5"].score_samples(x)
        both, target = np.concatenate([train, few]), np.repeat([0, 1], [len(train), len(few)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for what, model in (
                ("logistic-5", LogisticRegression(class_weight="balanced", max_iter=2000)),
                ("forest-5", RandomForestClassifier(300, class_weight="balanced", random_state=seed)),
            ):
                scores[what] = make_pipeline(StandardScaler(), model).fit(both, target).predict_proba(x)[:, 1]
    return {
        "dataset": dataset.name,
        "seed": seed,
        "num_train": len(train),
        "known": len(few),
        "auroc": {what: round(100 * auroc(y, score), 2) for what, score in scores.items()},
        "average_precision": {what: round(100 * average_precision(y, score), 2) for what, score in scores.items()},
        "cycles": {
            what: {"accepted": each.accepted_, "reason": each.reason_, "rounds": each.rounds_}
            for what, each in cycles.items()
        },
        "seconds": round(time.perf_counter() - started, 1),
        "device": device_name(),
        "commit": current_commit(),
    }


if __name__ == "__main__":
    with exit_on_user_error():
        run(tyro.cli(Config, description=__doc__))
