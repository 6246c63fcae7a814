"""How do a DiT and classical detectors scale with the size of pictures and the number of rows (the paper's Figure 1)?

    python -m experiments.figure1 --data-dir ../shared/data                                        # 2 cores, about half an hour
    python -m experiments.figure1 --folder MVTEC_LAYOUT --sizes 56 112 224 --num-steps 2000        # pictures of one's own; for a GPU

AUROC of the DiT (reconstruction error, `DiffusionDetector`), OCSVM, isolation forest and COPOD on pixels, with kNN and the looks of the
image detector beside them: once against the side of the pictures, once against the number of training rows. Classes of Fashion-MNIST
against the rest, resized, 1,000 test rows drawn with a seed; the published figure used Mini-ImageNet at 224. Written
to ``experiments/results/figure1.jsonl`` (a cell that is there is not run again) and ``OUT`` with the ending png. Expected: docs/images.md.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

from experiments.images import read
from jaxad import data, metrics
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.data.images import fit_picture
from jaxad.detectors import DiffusionDetector, ImageDetector
from jaxad.detectors.catalogue import choose
from jaxad.detectors.image import default_network
from jaxad.evaluation import current_commit, device_name
from jaxad.reports import figures

CLASSICAL = ("ocsvm", "iforest", "copod", "knn")


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with tfds/."""
    folder: Path | None = None
    """Pictures in the layout of MVTec AD instead."""
    suite: str = "fashion_mnist"
    classes: tuple[int, ...] = (0,)
    """Classes that are normal, each against the rest."""
    sizes: tuple[int, ...] = (16, 32, 64)
    """Sides in pixels, at ``base_rows`` rows."""
    rows: tuple[int, ...] = (250, 1000, 4000)
    """Training rows, at ``base_size`` pixels."""
    base_size: int = 32
    base_rows: int = 1000
    most_test: int = 1000
    """Test rows, drawn with the seed."""
    num_steps: int = 400
    """Most steps of the DiT."""
    seed: int = 0
    out: Path = Path(__file__).parent / "results" / "figure1.jsonl"


def run(config: Config) -> list[dict]:
    """Every cell that is not yet in ``config.out``, and the picture; all records."""
    if config.data_dir is None and config.folder is None:
        raise ValueError("no pictures: set --data-dir, or --folder to pictures in the layout of MVTec AD")
    detectors = makers(config)
    cells = dict.fromkeys(
        [(size, config.base_rows) for size in config.sizes] + [(config.base_size, rows) for rows in config.rows]
    )
    settings = {"num_steps": config.num_steps, "seed": config.seed, "most_test": config.most_test}
    done = {key_of(row) for row in read(config.out)}
    tasks = [str(config.folder)] if config.folder else [f"{config.suite}_{number}" for number in config.classes]
    for task in tasks:
        loaded = {}
        for size, rows in cells:
            for name, make in detectors.items():
                row = {"task": Path(task).name, "detector": name, "size": size, "rows": rows, **settings}
                if key_of(row) in done:
                    continue
                train, test, y = loaded[size] if size in loaded else loaded.setdefault(size, load(config, task, size))
                started = time.perf_counter()
                scores = make(train[:rows])(test)
                row |= {
                    "rows_found": min(rows, len(train)),
                    "auroc": round(metrics.auroc(y, scores), 5),
                    "seconds": round(time.perf_counter() - started, 2),
                    "commit": current_commit(),
                    "device": device_name(),
                }
                config.out.parent.mkdir(parents=True, exist_ok=True)
                with config.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                Console().print(
                    f"{row['task']}, {size} px, {rows} rows: {name} {100 * row['auroc']:.2f} in {row['seconds']:.0f} s",
                    highlight=False,
                )
    wanted = {(size, rows) for size, rows in cells}
    names = {Path(task).name for task in tasks}
    records = [row for row in read(config.out) if row["task"] in names and (row["size"], row["rows"]) in wanted]
    records = [row for row in records if all(row[key] == value for key, value in settings.items())]
    config.out.with_suffix(".png").write_bytes(picture(config, records))
    return records


def key_of(row: dict) -> tuple:
    """What makes a cell the same cell."""
    return tuple(row[key] for key in ("task", "detector", "size", "rows", "num_steps", "seed", "most_test"))


def load(config: Config, task: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(training pictures, test pictures, labels)``, uint8, the training rows in an order drawn with the seed."""
    rng = np.random.default_rng(config.seed)
    if config.folder:
        train, test = data.read_mvtec(config.folder, size=size)
    else:
        train, test = data.one_vs_rest(config.suite, int(task.rsplit("_", 1)[1]), config.data_dir)
    chosen = rng.permutation(len(test.x))[: config.most_test]
    train_rows = rng.permutation(len(train.x))[: max(*config.rows, config.base_rows)]

    def fitted(pictures):
        return np.stack([fit_picture(one, size, "resize") for one in pictures])

    return fitted(train.x[train_rows]), fitted(test.x[chosen]), np.asarray(test.y)[chosen]


def makers(config: Config) -> dict[str, Callable]:
    """``{name: training pictures -> (test pictures -> anomaly scores)}``."""

    def dit(train):
        network = default_network(*train.shape[1:])
        detector = DiffusionDetector(network, num_steps=config.num_steps, batch_size=64, random_state=config.seed)
        detector.fit(train)
        return lambda test: -detector.score_samples(test)

    def looks(train):
        detector = ImageDetector(maps=False, random_state=config.seed).fit(train)
        return lambda test: -detector.score_samples(test)

    def on_pixels(make):
        def fit(train):
            flat = train.reshape(len(train), -1).astype(np.float32) / 255
            detector = make(config.seed).fit(flat)
            return lambda test: -detector.score_samples(test.reshape(len(test), -1).astype(np.float32) / 255)

        return fit

    return {
        **{name: on_pixels(make) for name, make in choose(CLASSICAL).items()},
        "image detector, looks alone": looks,
        "dit": dit,
    }


def picture(config: Config, records: list[dict]) -> bytes:
    """Mean AUROC over the tasks, one panel against size and one against rows."""
    panels = {}
    for axis, values, fixed in (
        ("side in pixels", config.sizes, ("rows", config.base_rows)),
        ("training rows", config.rows, ("size", config.base_size)),
    ):
        key = "size" if fixed[0] == "rows" else "rows"
        lines: dict[str, list] = {}
        for name in dict.fromkeys(row["detector"] for row in records):
            for value in values:
                found = [
                    row["auroc"]
                    for row in records
                    if row["detector"] == name and row[key] == value and row[fixed[0]] == fixed[1]
                ]
                lines.setdefault(name, []).append(float(np.mean(found)))
        panels[f"{axis} ({fixed[1]} {'rows' if fixed[0] == 'rows' else 'pixels'})"] = (values, lines)
    return figures.lines(panels, label="AUROC in %", picture="png")


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        run(tyro.cli(Config, description=__doc__))
