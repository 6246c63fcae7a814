"""Does the image detector find what pixel baselines miss, on four suites with the same rows for all?

    python -m experiments.images --data-dir ../shared/data                      # looks alone: 40 tasks, 2 to 3 minutes each on one core
    python -m experiments.images --data-dir ../shared/data --maps --num-steps 2000   # with the denoiser of pixels; meant for a GPU
    python -m experiments.images --data-dir ../shared/data --suites magnetic_tile --maps --num-steps 1200 --pages runs/images

One class against the rest on MNIST, Fashion-MNIST and CIFAR-10 (up to 5,000 training pictures, 10,000 test pictures), 14 corruptions of
MNIST-C (one fit), and magnetic tiles (`jaxad.data.suites`). Baselines see the same pixels: kNN (5th), the residual of principal
components that hold 95 % of the variance, Mahalanobis on 200 components, isolation forest, one-class SVM. Written to
``experiments/results/images.jsonl``; a task that is there is not run again. Expected: docs/images.md.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.svm import OneClassSVM

from jaxad import data, metrics
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.detectors import ImageDetector, KNNDetector
from jaxad.detectors.image import soft_maximum
from jaxad.metrics import localisation
from jaxad.reports.picture_page import write_image_report

SUITES = ("mnist", "fashion_mnist", "cifar10", "mnist_c", "magnetic_tile")


@dataclass(frozen=True)
class Config:
    data_dir: Path
    """Folder with tfds/ and images/."""
    suites: tuple[str, ...] = SUITES
    """Which suites."""
    classes: tuple[int, ...] = tuple(range(10))
    """Which classes of the one-vs-rest suites."""
    maps: bool = False
    """Train the denoiser of pixels as well: adds its two views, and maps where there are masks."""
    num_steps: int = 2000
    """Most steps of that denoiser."""
    pages: Path | None = None
    """Folder for a page of pictures and maps per test, with --maps."""
    seed: int = 0
    """Of the image detector and the isolation forest."""
    out: Path = Path(__file__).parent / "results" / "images.jsonl"
    """File of records."""


def run(config: Config) -> None:
    """Every task that is not yet in ``config.out``."""
    name = "image detector" if config.maps else "image detector, looks alone"
    done = {(row["task"], row["detector"], row["seed"]) for row in read(config.out)}
    for task, load in tasks(config).items():
        missing = {
            detector
            for detector in (*BASELINES, name)
            if any((test, detector, config.seed) not in done for test in names_of(task))
        }
        if not missing:
            continue
        train, tests = load()
        for key in [key for key in BASELINES if key in missing]:
            score = BASELINES[key](flat(train.x), config.seed)
            for test_name, test in tests.items():
                write(config, test_name, key, train, test, score(flat(test.x)))
        if name not in missing:
            continue
        started = time.perf_counter()
        image = ImageDetector(
            maps=config.maps, num_steps=config.num_steps, random_state=config.seed, verbose=int(config.maps)
        ).fit(train.x)
        fit_seconds = time.perf_counter() - started
        for test_name, test in tests.items():
            started = time.perf_counter()
            by_view = image.scores_by_view(test.x)
            seconds = time.perf_counter() - started
            views = {view: round(metrics.auroc(test.y, z), 5) for view, z in by_view.items()}
            more = {"fit_seconds": fit_seconds, "score_seconds": seconds, "views": views}
            if config.maps:
                more["num_steps"] = config.num_steps
            if config.maps and test.masks is not None:
                maps = image.where(test.x)
                more |= {
                    "pixel_auroc": localisation.pixel_auroc(test.masks, maps),
                    "pixel_ap": localisation.pixel_average_precision(test.masks, maps),
                    "aupro_30": localisation.aupro(test.masks, maps),
                    "aupro_05": localisation.aupro(test.masks, maps, limit=0.05),
                }
            write(
                config,
                test_name,
                name,
                train,
                test,
                np.asarray(soft_maximum(jnp.stack([jnp.asarray(z) for z in by_view.values()]))),
                **more,
            )
            if config.maps and config.pages is not None:
                config.pages.mkdir(parents=True, exist_ok=True)
                write_image_report(image, test, config.pages / f"{test_name}.html", title=test_name)


def tasks(config: Config) -> dict[str, Callable]:
    """``{task: () -> (train, {name of test: test})}``."""

    def alone(name, load):
        train, test = load()
        return train, {name: test}

    def corrupted():
        pairs = {f"mnist_c_{kind}": data.mnist_c(kind, config.data_dir) for kind in data.MNIST_C}
        return next(iter(pairs.values()))[0], {name: test for name, (_, test) in pairs.items()}

    found: dict[str, Callable] = {}
    for suite in config.suites:
        if suite == "mnist_c":
            found[suite] = corrupted
        elif suite == "magnetic_tile":
            found[suite] = partial(alone, suite, partial(data.magnetic_tile, config.data_dir))
        elif suite in SUITES:
            for number in config.classes:
                name = f"{suite}_{number}"
                found[name] = partial(alone, name, partial(data.one_vs_rest, suite, number, config.data_dir))
        else:
            raise ValueError(f"unknown suite {suite!r}; {data.did_you_mean(suite, SUITES)}")
    return found


def names_of(task: str) -> list[str]:
    """The names under which a task's tests are recorded."""
    return [f"mnist_c_{kind}" for kind in data.MNIST_C] if task == "mnist_c" else [task]


def flat(pictures: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1], ``[rows, pixels]`` float32."""
    return pictures.reshape(len(pictures), -1).astype(np.float32) / 255


def knn(x, seed):
    """The distance to the fifth neighbour."""
    detector = KNNDetector(n_neighbors=5).fit(x)
    return lambda rows: -detector.score_samples(rows)


def residual(x, seed):
    """What the principal components that hold 95 % of the variance leave over."""
    pca = PCA(0.95, svd_solver="full").fit(x)
    return lambda rows: ((rows - pca.inverse_transform(pca.transform(rows))) ** 2).mean(axis=1)


def mahalanobis(x, seed):
    """Mahalanobis on 200 principal components."""
    pca = PCA(min(200, *x.shape), svd_solver="full", whiten=True).fit(x)
    return lambda rows: (pca.transform(rows) ** 2).sum(axis=1)


def forest(x, seed):
    """Isolation forest."""
    model = IsolationForest(n_estimators=100, random_state=seed).fit(x)
    return lambda rows: -model.score_samples(rows)


def ocsvm(x, seed):
    """One-class SVM with scikit-learn's own choice of the kernel's width."""
    model = OneClassSVM(gamma="scale", nu=0.5).fit(x)
    return lambda rows: -model.score_samples(rows)


BASELINES: dict[str, Callable] = {
    "knn": knn,
    "pca residual": residual,
    "mahalanobis 200": mahalanobis,
    "iforest": forest,
    "ocsvm": ocsvm,
}
"""``{name: (training pixels [rows, pixels], seed) -> (pixels -> anomaly scores)}``."""


def read(path: Path) -> list[dict]:
    """The records of ``path``, none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def write(config: Config, task, detector, train, test, scores, **more) -> None:
    """Append one record and print it."""
    row = {
        "task": task,
        "detector": detector,
        "seed": config.seed,
        "auroc": metrics.auroc(test.y, scores),
        "average_precision": metrics.average_precision(test.y, scores),
        "num_train": len(train.x),
        "num_test": len(test.x),
        **more,
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with config.out.open("a", encoding="utf-8") as file:
        file.write(
            json.dumps({key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()})
            + "\n"
        )
    seconds = f", fit {row['fit_seconds']:.0f} s, score {row['score_seconds']:.0f} s" if "fit_seconds" in row else ""
    Console().print(f"{task}: {detector} AUROC {100 * row['auroc']:.2f}{seconds}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        run(tyro.cli(Config, description=__doc__))
