"""Which training recipe reaches the lowest held-out denoising loss, and in how many seconds?

    python -m experiments.recipe --data-dir ../shared/data

Runtime: about 15 minutes on 2 cores. Expected: docs/benchmarks.md. No anomaly takes part: data sets give their normal training rows,
and what is compared is the denoising loss on rows held out of them, always with the same noise. Each recipe is fitted with two seeds; the
second fit finds everything compiled, and its seconds are the ones reported.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from jaxad import DiffusionDetector, data
from jaxad.cli import exit_on_user_error
from jaxad.denoisers import MLP
from jaxad.evaluation import clean, current_commit, device_name

DATASETS = ("MVTec-AD_bottle", "Cardiotocography", "Wilt", "landsat", "CIFAR10_4")


@dataclass(frozen=True)
class Recipe:
    width: int
    batch_size: int
    learning_rate: float
    num_steps: int


RECIPES = (
    Recipe(256, 64, 1e-3, 4000),
    Recipe(256, 64, 1e-3, 2000),
    Recipe(256, 64, 3e-3, 1000),
    Recipe(256, 128, 3e-3, 1000),
    Recipe(128, 64, 1e-3, 4000),
    Recipe(128, 64, 3e-3, 2000),
    Recipe(128, 64, 3e-3, 1000),
    Recipe(128, 128, 3e-3, 1000),
    Recipe(128, 128, 3e-3, 2000),
    Recipe(128, 256, 5e-3, 500),
)


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with adbench/<group>/<name>.npz."""
    datasets: tuple[str, ...] = DATASETS
    out: Path = Path("runs/recipe/results.jsonl")


def run(config: Config) -> list[dict]:
    """Every recipe on every data set; one JSON object per line is appended to ``out``."""
    config.out.parent.mkdir(parents=True, exist_ok=True)
    records = []
    for name in config.datasets:
        rows = clean(data.adbench(name, config.data_dir), 0, max_rows=8000).train
        for recipe in RECIPES:
            losses, seconds = [], 0.0
            steps = 0
            for seed in (0, 1):
                model = DiffusionDetector(
                    MLP(width=recipe.width, depth=3),
                    num_steps=recipe.num_steps,
                    batch_size=recipe.batch_size,
                    learning_rate=recipe.learning_rate,
                    random_state=seed,
                )
                started = time.perf_counter()
                model.fit(rows)
                seconds = time.perf_counter() - started
                steps = len(model.losses_)
                losses.append(float(model.validation_losses_.min()))
            record = {"dataset": name, "rows": len(rows), "features": rows.shape[1], **vars(recipe)}
            record |= {"held_out_loss": [round(loss, 4) for loss in losses], "seconds": round(seconds, 2)}
            record |= {"steps_taken": steps, "commit": current_commit(), "device": device_name()}
            records.append(record)
            with config.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print({key: record[key] for key in record if key not in ("commit", "device")}, flush=True)
    return records


if __name__ == "__main__":
    with exit_on_user_error():
        run(tyro.cli(Config, description=__doc__))
