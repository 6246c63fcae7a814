"""Does the recommended detector keep its lead on data sets that nobody looked at while it was made?

    python -m experiments.holdout --data-dir ../shared/data

Runtime: about 20 minutes on 2 cores. Expected: docs/methods.md. None of these sets comes from ADBench: five feature views of
handwritten digits (each class normal in turn), three UCI tables as WEKA stores them (rare class or bad credit anomalous), NSL-KDD
(attacks anomalous) and SKAB (a water circuit's sensors; labelled faults against the fault-free run). They were first scored when the
detector's settings had been fixed.
"""

import lzma
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.data import Dataset
from jaxad.detectors.catalogue import choose
from jaxad.evaluation import Evaluation, sweep
from jaxad.reports.tables import comparison_table, markdown_table

DIGIT_VIEWS = {0: "pixel averages", 1: "Fourier", 2: "profile correlations", 3: "Zernike", 4: "Karhunen-Loeve"}
DETECTORS = ("recommended", "knn", "knn-mean", "1nn", "mahalanobis", "iforest", "ecod", "copod", "lof", "norm")


@dataclass(frozen=True)
class Config:
    data_dir: Path = Path("../shared/data")
    """Folder with multimodal/, tables/ and series/."""
    seeds: tuple[int, ...] = (0,)
    detectors: tuple[str, ...] = DETECTORS
    datasets: tuple[str, ...] = ()
    """Names; default: all that are there."""
    out: Path = Path("runs/holdout")


def digits(folder: Path, view: int, digit: int) -> Dataset:
    """One feature view of 2,000 handwritten digits; ``digit`` is normal."""
    with np.load(folder / "multimodal" / "mv_handwritten.npz", allow_pickle=False) as stored:
        x, y = stored[f"view{view}"].astype(np.float64), stored["y"]
    return Dataset(
        x=x,
        y=(y != sorted(set(y.tolist()))[digit]).astype(int),
        name=f"digits-view{view}_{digit}",
        source=DIGIT_VIEWS[view],
    )


def skab(folder: Path) -> Dataset:
    """Sensor readings of the fault-free run and of the labelled runs, each row by itself."""
    with np.load(folder / "series" / "skab.npz", allow_pickle=False) as stored:
        labelled = [key.removesuffix("|anomaly") for key in stored if key.endswith("|anomaly")]
        x = [stored["anomaly-free/anomaly-free|x"], *(stored[f"{key}|x"] for key in labelled)]
        y = [np.zeros(len(x[0]), int), *(stored[f"{key}|anomaly"].astype(int) for key in labelled)]
    return Dataset(x=np.concatenate(x).astype(np.float64), y=np.concatenate(y), name="skab", source="SKAB")


def one_hot(columns: list[list[str]]) -> np.ndarray:
    """Numbers as they are ('?' missing), other columns as indicators of their values."""
    parts = []
    for column in columns:
        try:
            parts.append(np.array([float("nan") if value in ("?", "") else float(value) for value in column])[:, None])
        except ValueError:
            values = sorted(set(column))
            parts.append(np.array([[value == other for other in values] for value in column], float))
    return np.concatenate(parts, axis=1)


def comma_separated(
    path: Path, name: str, *, label: int, normal: Callable[[str], bool], drop: tuple[int, ...] = ()
) -> Dataset:
    """An xz-compressed csv or arff file; a data set of mixed columns, ``normal`` of the label column."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    if ".arff" in path.name:
        start = next(i for i, line in enumerate(lines) if line.strip().lower() == "@data") + 1
        lines = lines[start:]
    rows = [
        [value.strip().strip("'\"") for value in line.split(",")] for line in lines if line.strip() and line[0] != "%"
    ]
    label = label % len(rows[0])
    kept = [j for j in range(len(rows[0])) if j != label and j not in {d % len(rows[0]) for d in drop}]
    x = one_hot([[row[j] for row in rows] for j in kept])
    return Dataset(x=x, y=np.array([not normal(row[label]) for row in rows]).astype(int), name=name, source=path.name)


def loaders(folder: Path) -> dict[str, Callable[[], Dataset]]:
    """Every set whose file is there."""
    sets: dict[str, Callable[[], Dataset]] = {}
    if (folder / "multimodal" / "mv_handwritten.npz").is_file():
        sets |= {f"digits-view{v}_{d}": partial(digits, folder, v, d) for v in DIGIT_VIEWS for d in range(10)}
    weka, kdd = folder / "tables" / "weka_uci", folder / "tables" / "nsl_kdd"
    files = {
        "hypothyroid": (weka / "hypothyroid.arff.xz", {"label": -1, "normal": lambda value: value == "negative"}),
        "credit-g": (weka / "credit-g.arff.xz", {"label": -1, "normal": lambda value: value == "good"}),
        "oil-spill": (weka / "oil-spill.csv.xz", {"label": -1, "normal": lambda value: value == "0"}),
        # the last column of NSL-KDD is a difficulty, made with the label in sight
        "nsl-kdd": (kdd / "KDDTest+.txt.xz", {"label": -2, "normal": lambda value: value == "normal", "drop": (-1,)}),
    }
    sets |= {name: partial(comma_separated, path, name, **how) for name, (path, how) in files.items() if path.is_file()}
    if (folder / "series" / "skab.npz").is_file():
        sets["skab"] = partial(skab, folder)
    return sets


def run(config: Config) -> list[Evaluation]:
    """All cells under ``clean``; ``table.md`` beside the records."""
    sets = loaders(config.data_dir)
    unknown = [name for name in config.datasets if name not in sets]
    if unknown or not sets:
        raise ValueError(f"not found in {config.data_dir}: {', '.join(unknown) or 'any of the sets'}")
    chosen = {name: sets[name] for name in (config.datasets or sets)}
    records = sweep.run(chosen, choose(config.detectors), out=config.out, protocol="clean", seeds=config.seeds)
    tables = [
        markdown_table(records),
        comparison_table(records, "knn-mean" if "knn-mean" in config.detectors else next(iter(config.detectors))),
    ]
    (config.out / "table.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    return records


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        settings = tyro.cli(Config, description=__doc__)
        run(settings)
        Console(width=200).print((settings.out / "table.md").read_text(encoding="utf-8"), highlight=False)
