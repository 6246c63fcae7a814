"""Would other views, another ensemble or another way to combine them have been chosen on other data sets, and at what gain?

    python -m experiments.views --data-dir ../shared/data

Runtime: about half an hour on 2 cores (fits are kept in OUT and not repeated). Expected: docs/methods.md. Leave-sets-out evidence for
the recommended detector: every subset of its views with at least three members, as mean and as soft maximum, is a candidate; the best
one is chosen on a random half of the data sets and measured on the other half, beside the default, against the kNN variant that is best
*on that other half*.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.progress import track
from scipy.stats import rankdata

from jaxad import ConsensusDetector, data
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.evaluation import clean, current_commit, sweep

BASELINES = ("knn", "knn-mean", "1nn")
RESNET = ("CIFAR10", "MVTec-AD")


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with adbench/<group>/<name>.npz."""
    seed: int = 0
    baselines: tuple[Path, ...] = (
        Path("experiments/results/clean_resnet18.jsonl"),
        Path("experiments/results/clean_classical.jsonl"),
    )
    """Records of the kNN variants under the same protocol and seed."""
    halves: int = 200
    out: Path = Path("runs/views")


def fit(config: Config, name: str) -> tuple[np.ndarray, np.ndarray]:
    """``(labels, z of every view [views, rows])`` of the test rows, from OUT where it is there already."""
    path = config.out / f"{name}-{config.seed}.npz"
    if not path.exists():
        split = clean(data.adbench(name, config.data_dir), config.seed)
        seen = ConsensusDetector(random_state=config.seed).fit(split.train).scores_by_view(split.test)
        config.out.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, labels=split.labels, z=np.array(list(seen.values()), np.float32), names=list(seen))
    with np.load(path, allow_pickle=False) as stored:
        return stored["labels"], stored["z"]


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The fast form of ``metrics.auroc``: the same sum of ranks, without its checks; called tens of thousands of times here."""
    positives = labels.sum()
    ranks = rankdata(scores)[labels == 1].sum() - positives * (positives + 1) / 2
    return 100 * ranks / (positives * (len(labels) - positives))


def candidates(num_views: int = 7) -> list[tuple[tuple[int, ...], bool]]:
    """(views, whether soft maximum): all subsets of at least three views, both ways to combine them."""
    subsets = [s for size in range(3, num_views + 1) for s in itertools.combinations(range(num_views), size)]
    return [(subset, soft) for subset in subsets for soft in (False, True)]


def areas(labels: np.ndarray, z: np.ndarray) -> list[float]:
    """AUROC of every candidate; views that a small data set does not have are left out of it."""
    scores = []
    for subset, soft in candidates():
        chosen = z[[view for view in subset if view < len(z)] or [0]]
        scores.append(auroc(labels, np.exp(chosen.astype(float)).mean(axis=0) if soft else chosen.mean(axis=0)))
    return scores


def group_of(name: str) -> str:
    return "ResNet-18" if name.startswith(RESNET) else "Classical"


def halves(areas_by_set: np.ndarray, baselines: np.ndarray, groups: np.ndarray, count: int) -> list[dict]:
    """Per group: the gain over the best baseline of the candidate chosen elsewhere, and of the default, over random halves."""
    rng = np.random.default_rng(0)
    default = candidates().index((tuple(range(7)), True))
    gains = {(group, who): [] for group in dict.fromkeys(groups) for who in ("chosen", "default")}
    for _ in range(count):
        inside = np.zeros(len(groups), bool)
        for group in dict.fromkeys(groups):
            members = np.flatnonzero(groups == group)
            inside[rng.permutation(members)[: len(members) // 2]] = True
        # Both groups weigh the same in the choice, as in the goal.
        choice = np.mean([areas_by_set[inside & (groups == g)].mean(axis=0) for g in dict.fromkeys(groups)], axis=0)
        for group in dict.fromkeys(groups):
            rest = ~inside & (groups == group)
            best = baselines[rest].mean(axis=0).max()
            for who, index in (("chosen", int(choice.argmax())), ("default", default)):
                gains[group, who].append(areas_by_set[rest, index].mean() - best)
    return [
        {
            "group": group,
            "settings": who,
            "mean_gain": round(float(np.mean(values)), 2),
            "quantile_5": round(float(np.quantile(values, 0.05)), 2),
            "quantile_95": round(float(np.quantile(values, 0.95)), 2),
            "halves": count,
        }
        for (group, who), values in gains.items()
    ]


def run(config: Config) -> list[dict]:
    """The gains, printed and written to ``OUT/halves.jsonl``."""
    records = [
        r
        for path in config.baselines
        for r in sweep.read_results(path)
        if (r.protocol, r.seed) == ("clean", config.seed)
    ]
    table = {(r.dataset, r.detector): 100 * r.auroc for r in records}
    names = [n for n in data.adbench_names(config.data_dir) if all((n, b) in table for b in BASELINES)]
    if not names:
        raise ValueError(
            f"{[*map(str, config.baselines)]} have no clean records of {', '.join(BASELINES)} for seed {config.seed}"
        )
    areas_by_set = np.array([areas(*fit(config, name)) for name in track(names, "data sets")])
    baselines = np.array([[table[name, b] for b in BASELINES] for name in names])
    results = halves(areas_by_set, baselines, np.array([group_of(name) for name in names]), config.halves)
    config.out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({**result, "seed": config.seed, "commit": current_commit()}) for result in results]
    (config.out / "halves.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*lines, sep="\n")
    return results


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        run(tyro.cli(Config, description=__doc__))
