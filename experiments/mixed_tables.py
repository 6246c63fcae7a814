"""How well are tables scored as people have them, with categories, times and gaps, and what does a missing value cost?

    python -m experiments.mixed_tables --data-dir ../shared/data

Four files as they lie in ``data/tables`` (ARFF, csv, text, compressed), read by ``read_frame``, no line of preprocessing. Half of the
normal rows trains, all else is tested; where values are to be missing they are hidden at random in all rows alike. The
recommended detector has its default settings and knows categories and gaps; isotree's isolation forest knows both as well
(``pip install isotree``; left out without it); IForest, ECOD and kNN (mean distance to 5) get one-hot codes of height 1/sqrt(2) and gaps
filled with medians. With ``--declines`` the ten smallest ``Classical`` sets of ADBench instead, with 0, 10, 30 and 50 % of the values
hidden: what is left of the AUROC of kNN and of the recommended detector. About 20 minutes each on one core. Records:
``experiments/results/mixed_tables.jsonl``; none is made twice. Expected: docs/tables.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors

from experiments.false_discoveries import append
from experiments.images import read
from jaxad import data
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.data import FrameEncoder
from jaxad.data.roles import labels_of
from jaxad.detectors import ECOD, ConsensusDetector
from jaxad.evaluation import clean
from jaxad.metrics import auroc, average_precision

MISSING = {"hypothyroid": (0.0, 0.1, 0.3), "credit-g": (0.0, 0.3), "adult": (0.0, 0.3), "nsl-kdd": (0.0, 0.3)}
SHARES = (0.0, 0.1, 0.3, 0.5)


@dataclass(frozen=True)
class Config:
    data_dir: Path
    """Folder with tables/ and adbench/."""
    sets: tuple[str, ...] = tuple(MISSING)
    seeds: tuple[int, ...] = (0, 1, 2)
    declines: bool = False
    num_sets: int = 10
    out: Path = Path(__file__).parent / "results" / "mixed_tables.jsonl"


def load(name: str, folder: Path) -> tuple[Any, np.ndarray]:
    """``(frame without labels, labels)``; of large files the rows that the reference was measured on."""
    files = {
        "hypothyroid": ("weka_uci/hypothyroid.arff.xz", "Class", "negative", None, []),
        "credit-g": ("weka_uci/credit-g.arff.xz", "class", "good", None, []),
        "adult": ("weka_uci/adult-train.csv.xz", "column_15", "<=50K", 6000, []),
        # The last column says how many classifiers were right about the row.
        "nsl-kdd": ("nsl_kdd/KDDTest+.txt.xz", "column_42", "normal", 8000, ["column_43"]),
    }
    path, label, normal, rows, drop = files[name]
    frame: Any = data.read_frame(folder / "tables" / path)
    if rows is not None:
        frame = frame.sample(rows, random_state=0).reset_index(drop=True)
    return frame.drop(columns=[label, *drop]), labels_of(frame[label], normal)


def split(frame: Any, y: np.ndarray, seed: int, missing: float) -> tuple[Any, Any, np.ndarray]:
    """``(training rows, tested rows, their labels)``."""
    rng = np.random.default_rng(seed)
    if missing:
        frame = frame.mask(rng.random(frame.shape) < missing)
    normal = rng.permutation(np.flatnonzero(y == 0))
    tested = np.setdiff1d(np.arange(len(y)), normal[: len(normal) // 2])
    train, test = (frame.iloc[which].reset_index(drop=True) for which in (normal[: len(normal) // 2], tested))
    return train, test, y[tested]


def recommended(train: Any, test: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``(anomaly scores, p-values)``."""
    encoder = FrameEncoder(categories="codes").fit(train)
    rows, new = encoder.transform(train), encoder.transform(test)
    gaps = bool(np.isnan(rows).any() or np.isnan(new).any())
    codes = encoder.categorical_features_.tolist()
    detector = ConsensusDetector(categorical_features=codes or None, allow_gaps=gaps, random_state=seed).fit(rows)
    scores = detector.score_samples(new)
    return -scores, detector.p_values(new)


def baselines(train: Any, test: Any, seed: int) -> dict[str, np.ndarray]:
    """Anomaly scores on one-hot codes, gaps filled; and isotree's on what there is."""
    encoder = FrameEncoder(gaps="fill").fit(train)
    rows, new = encoder.transform(train), encoder.transform(test)
    is_number = np.array([encoder.parts_[group].kind == "number" for group in encoder.groups_])
    std = rows.std(axis=0)
    scale = np.where(is_number & (std > 0), std, 1.0)
    rows, new = ((each - rows.mean(axis=0)) / scale for each in (rows, new))
    near = NearestNeighbors(n_neighbors=5).fit(rows)
    found = {
        "IForest": -IsolationForest(random_state=seed).fit(rows).score_samples(new),
        "ECOD": -ECOD().fit(rows).score_samples(new),
        "kNN, mean of 5": near.kneighbors(new)[0].mean(axis=1),
    }
    try:
        import isotree
    except ImportError:
        return found
    codes = FrameEncoder(categories="codes").fit(train)
    places = codes.categorical_features_.tolist()
    forest = isotree.IsolationForest(ntrees=300, random_seed=seed, nthreads=1)
    forest.fit(codes.transform(train), categ_cols=places)
    return found | {"isotree": forest.predict(codes.transform(test))}


def measured(y: np.ndarray, scores: dict[str, np.ndarray]) -> dict[str, float]:
    """AUROC and average precision of each."""
    rows = {}
    for name, of in scores.items():
        rows |= {f"{name} auroc": auroc(y, of), f"{name} ap": average_precision(y, of)}
    return rows


def run(config: Config) -> list[dict]:
    """Every cell that is not yet in ``config.out``; all records."""
    done = {(row["dataset"], row["missing"], row["seed"]) for row in read(config.out)}
    for name, missing, seed in _cells(config):
        if (name, missing, seed) in done:
            continue
        jax.clear_caches()
        train, test, y = _rows(config, name, missing, seed)
        scores, p = recommended(train, test, seed)
        rows = measured(y, baselines(train, test, seed) | {"recommended": scores})
        error = float(np.mean(p[y == 0] <= 0.05))
        kind = "decline" if config.declines else "mixed"
        append(
            config.out,
            {"kind": kind, "dataset": name, "missing": missing, "seed": seed, **rows, "type I at .05": error},
        )
    records = read(config.out)
    show(records)
    return records


def _cells(config: Config):
    if config.declines:
        sets = [
            data.adbench(name, config.data_dir)
            for name in data.adbench_names(config.data_dir)
            if name in data.ADBENCH_GROUPS["Classical"]
        ]
        names = [each.name for each in sorted(sets, key=lambda each: each.x.size)[: config.num_sets]]
        return [(name, share, seed) for name in names for seed in config.seeds for share in SHARES]
    return [(name, missing, seed) for name in config.sets for missing in MISSING[name] for seed in config.seeds]


def _rows(config: Config, name: str, missing: float, seed: int) -> tuple[Any, Any, np.ndarray]:
    if not config.declines:
        return split(*load(name, config.data_dir), seed, missing)
    import pandas as pd

    of = clean(data.adbench(name, config.data_dir), seed)
    rng = np.random.default_rng(seed)
    train, test = (pd.DataFrame(each, columns=[f"c{i}" for i in range(each.shape[1])]) for each in (of.train, of.test))
    hidden = [each.mask(rng.random(each.shape) < missing) if missing else each for each in (train, test)]
    return hidden[0], hidden[1], of.labels


def show(records: list[dict]) -> None:
    """Means over seeds, in Markdown: AUROC / average precision; of the declines, means over sets."""
    console = Console(width=200, highlight=False)
    names = ("IForest", "ECOD", "isotree", "kNN, mean of 5", "recommended")
    for kind in ("mixed", "decline"):
        of_kind = [row for row in records if row["kind"] == kind]
        if not of_kind:
            continue
        console.print(f"| {'set' if kind == 'mixed' else 'sets'} | missing | {' | '.join(names)} | type I at .05 |")
        console.print("|---|---:|" + "---:|" * (len(names) + 1))
        groups = dict.fromkeys((row["dataset"] if kind == "mixed" else "all", row["missing"]) for row in of_kind)
        for name, missing in sorted(groups, key=lambda each: each[1]) if kind == "decline" else groups:
            rows = [row for row in of_kind if row["missing"] == missing and name in (row["dataset"], "all")]
            cells = [
                " / ".join(f"{100 * np.mean([row[f'{each} {what}'] for row in rows]):.1f}" for what in ("auroc", "ap"))
                if f"{each} auroc" in rows[0]
                else "-"
                for each in names
            ]
            error = np.mean([row["type I at .05"] for row in rows])
            console.print(f"| {name} | {missing:.0%} | {' | '.join(cells)} | {error:.3f} |")


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        run(tyro.cli(Config, description=__doc__))
