"""How good are the anomalies of each generator, and at what cost?

    python -m experiments.generation_quality --data-dir ../shared/data

Runtime: about 12 minutes on 2 cores. Expected: docs/generation.md. *A table* (cardio): normal rows are cut into training, calibration and
held-out rows, a denoiser is trained briefly, and every generator makes as many rows as are held out. *Pictures* (ankle boots of
Fashion-MNIST, 28 pixels): the same with a small DiT. For each generator: severity (median conformal p-value by kNN on rows that nobody
trained on), variety, how well a classifier tells the rows from normal ones, copies of training rows, background and mask, and what the
anomalies do for a detector of the *real* anomalies, which nothing else has seen. Time per row is that of a compiled call.
Written to ``experiments/results/generation_quality.jsonl``; ``--pictures`` names a folder for a sheet of examples.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier

from experiments.images import read
from jaxad import DiffusionDetector, data, noise, scoring
from jaxad import generation as g
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.denoisers import DiT
from jaxad.detectors import KNNDetector
from jaxad.evaluation import current_commit
from jaxad.generation import quality, synthesis
from jaxad.metrics import auroc
from jaxad.metrics.calibration import p_values

PATH = noise.linear(1000)[np.round(np.linspace(0, 999, 40)).astype(int)]
FILL = noise.log_uniform(20, sigma_min=0.05, sigma_max=20.0)
SCORED = noise.log_uniform(4, sigma_min=0.1, sigma_max=1.0)


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with adbench/ and tfds/; default: JAXAD_DATA_DIR, else ~/.cache/jaxad."""
    table: str = "cardio"
    """An ADBench set; empty: none."""
    pictures_of: str = "fashion_mnist"
    """A tensorflow-datasets set of pictures; empty: none."""
    normal_class: int = 9
    table_steps: int = 2000
    picture_steps: int = 700
    """Training steps of the two denoisers."""
    rows: int = 256
    """Anomalies of each generator, at most."""
    pictures: Path | None = None
    """Folder for a sheet with eight examples of each generator."""
    out: Path = Path(__file__).parent / "results" / "generation_quality.jsonl"


def run(config: Config) -> list[dict]:
    """A record for every generator, appended to ``config.out``; the records of this run."""
    records = []
    for make in [of_table] * bool(config.table) + [of_pictures] * bool(config.pictures_of):
        records += make(config)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with config.out.open("a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record | {"commit": current_commit()}) + "\n")
    return records


def of_table(config: Config) -> list[dict]:
    """The generators for vectors."""
    table = data.adbench(config.table, config.data_dir)
    rng = np.random.default_rng(0)
    normal, real = (rng.permutation(table.x[table.y == label]) for label in (0, 1))
    train, calibration, held_out = np.split(normal, [len(normal) // 2, 3 * len(normal) // 4])
    detector = DiffusionDetector(num_steps=config.table_steps).fit(train)
    denoise = detector.denoiser()
    train, calibration, held_out, real = map(detector.standardiser_, (train, calibration, held_out, real))
    few, real = real[:5], real[5:]
    x = jnp.asarray(held_out[: config.rows])
    variance = g.measured_variance(jax.random.key(0), denoise, jnp.asarray(calibration), PATH)

    def score(rows):
        return scoring.denoising_error(jax.random.key(1), denoise, rows, SCORED).mean(axis=0)

    ours = jax.jit(score)(jnp.asarray(calibration))
    band = (max(0.001, 2 / (len(calibration) + 1)), 0.05)
    walk = {"levels": PATH, "variance": variance}
    generators: dict[str, Callable] = {
        "sampled, strength 0": partial(g.sdas, denoise=denoise, strength=0.0, **walk),
        "sdas .15": partial(g.sdas, denoise=denoise, strength=0.15, **walk),
        "sdas 1": partial(g.sdas, denoise=denoise, strength=1.0, **walk),
        "low density .2": partial(g.low_density, denoise=denoise, strength=0.2, **walk),
        "detector-guided": partial(
            g.detector_guided, denoise=denoise, score=score, calibration_scores=ours, band=band, **walk
        ),
        "dependency 1-3": partial(g.dependency_anomalies, denoise=denoise, levels=FILL),
        "point": g.point_anomalies,
        "cluster": partial(
            g.cluster_anomalies, denoise=denoise, levels=noise.log_uniform(10, sigma_min=0.05, sigma_max=0.5)
        ),
        "global": g.global_anomalies,
        "NNG-Mix of 5 (control)": lambda key, x: g.nng_mix(key, jnp.asarray(few), x, len(x)),
    }
    records = []
    for name, make in generators.items():
        made, seconds, compiling = timed(make, x)
        rows = np.asarray(made.x, np.float64)
        records.append(
            {"data": config.table, "generator": name, "rows": len(rows)}
            | costs(len(rows), seconds, compiling)
            | measured(train, calibration, held_out, real, rows)
        )
        show(records[-1])
    return records


def of_pictures(config: Config) -> list[dict]:
    """The generators for pictures. Real anomalies are the other classes."""
    train_set, test_set = data.one_vs_rest(config.pictures_of, config.normal_class, config.data_dir, most_train=3000)
    pictures = np.float32(train_set.x).reshape(len(train_set.x), *train_set.x.shape[1:3], -1)
    train, calibration, held_out = np.split(pictures, [2 * len(pictures) // 3, 5 * len(pictures) // 6])
    others = np.flatnonzero(test_set.y == 1)
    others = np.random.default_rng(0).permutation(others)[:1000]
    real = np.float32(test_set.x[others]).reshape(len(others), *pictures.shape[1:])
    network = DiT(hidden=96, depth=3, heads=3, patch_size=4)
    detector = DiffusionDetector(network, num_steps=config.picture_steps, batch_size=64, random_state=0).fit(train)
    denoise = detector.denoiser()
    train, calibration, held_out, real = map(detector.standardiser_, (train, calibration, held_out, real))
    x = jnp.asarray(held_out[: config.rows])
    count, height, width = x.shape[:3]
    variance = g.measured_variance(jax.random.key(0), denoise, jnp.asarray(calibration[:128]), PATH, draws=1)
    walk = {"levels": PATH, "variance": variance}
    object_ = g.foreground(x)
    scratches = np.zeros((2, height, width), bool)
    scratches[0, height // 2 : height // 2 + 2, 4 : width - 4] = True
    scratches[1, 6:12, 8:14] = True

    def masks(key):
        return g.perlin_masks(key, count, height, width, foreground=object_, smallest=0.1)

    def masked(make, content=None, like_few=False):
        def generate(key, x):
            mask_key, content_key, key = jax.random.split(key, 3)
            made = {} if content is None else {"content": content(content_key, x)}
            mask = (
                g.masks_from_examples(mask_key, scratches, count, foreground=object_) if like_few else masks(mask_key)
            )
            return make(key, x=x, mask=mask, **made)

        return generate

    inside = {"denoise": denoise, "levels": noise.cosine(1000)[:960:40]}
    harmonised = partial(g.harmonised, **inside, strength=0.6)
    generators: dict[str, Callable] = {
        "sampled, strength 0": partial(g.sdas, denoise=denoise, strength=0.0, **walk),
        "sdas .15": partial(g.sdas, denoise=denoise, strength=0.15, **walk),
        "sdas 1": partial(g.sdas, denoise=denoise, strength=1.0, **walk),
        "low density .1": partial(g.low_density, denoise=denoise, strength=0.1, **walk),
        "minority 1": partial(g.minority, denoise=denoise, strength=1.0, **walk),
        "redrawn, tempered .3": masked(
            partial(g.redrawn, denoise=g.tempered(denoise, 0.3), levels=inside["levels"], strength=0.8)
        ),
        "harmonised, pasted": masked(harmonised, synthesis.pasted),
        "harmonised, stained": masked(harmonised, synthesis.stained),
        "harmonised, stained, few-shot masks": masked(harmonised, synthesis.stained, like_few=True),
        "Perlin texture (control)": masked(g.blended, synthesis.stained),
        "Perlin blur (control)": masked(g.blended, synthesis.blurred),
        "CutPaste (control)": partial(g.cut_paste, defects=(synthesis.pasted,)),
    }
    encode = PCA(32, random_state=0).fit(flat(train))
    train_f, calibration_f, held_out_f, real_f = map(encode.transform, map(flat, (train, calibration, held_out, real)))
    records, sheet = [], [np.asarray(x[:8])]
    for name, make in generators.items():
        made, seconds, compiling = timed(make, x)
        sheet.append(np.asarray(made.x[:8]))
        rows = encode.transform(flat(made.x))
        whole = bool(np.all(made.mask))
        records.append(
            {"data": config.pictures_of, "generator": name, "rows": len(rows)}
            | costs(len(rows), seconds, compiling)
            | measured(train_f, calibration_f, held_out_f, real_f, rows)
            | {"fid_pca": quality.fid(flat(held_out), flat(made.x), encode.transform)}
            | (
                {}
                if whole
                else {
                    "background": quality.background_error(x, made.x, made.mask),
                    "alignment": quality.mask_alignment(x, made.x, made.mask),
                }
            )
        )
        show(records[-1])
    if config.pictures is not None:
        config.pictures.mkdir(parents=True, exist_ok=True)
        write_sheet(sheet, config.pictures / "generators.png")
    return records


def flat(pictures) -> np.ndarray:
    return np.asarray(pictures, np.float64).reshape(len(pictures), -1)


def in_band(p):
    return (p >= 0.001) & (p <= 0.05)


def timed(make: Callable, x) -> tuple[g.Generated, float, float]:
    """``(anomalies, seconds of a compiled call, seconds of the first)``."""
    compiled = jax.jit(lambda key, x: make(key, x=x))
    seconds = []
    for seed in (0, 1):
        started = time.perf_counter()
        made = jax.block_until_ready(compiled(jax.random.key(seed), x))
        seconds.append(time.perf_counter() - started)
    return made, seconds[1], seconds[0]


def measured(train, calibration, held_out, real, rows) -> dict:
    """Everything that rows of numbers can be asked; kNN, fitted on the training rows, is the judge of how unusual they are."""
    knn = KNNDetector().fit(train)
    base, scores = knn.score_samples(calibration), knn.score_samples(rows)
    return (
        {"in_band": float(np.mean(in_band(p_values(base, scores)))), "severity": quality.severity(base, scores)}
        | against(held_out, rows)
        | copies(train, calibration, rows)
        | gained(knn, train, calibration, held_out, real, rows)
    )


def costs(rows: int, seconds: float, compiling: float) -> dict:
    return {"ms_per_row": 1000 * seconds / rows, "first_call_seconds": compiling}


def against(real, rows) -> dict:
    """Generated rows beside normal ones that nobody trained on."""
    real = np.asarray(real, np.float64)
    return {
        "diversity": quality.diversity(real, rows),
        "c2st": quality.c2st(real, rows).accuracy,
        "mmd": quality.mmd(real, rows),
        "energy": quality.energy_distance(real, rows),
    } | {name: value for name, value in quality.prdc(real, rows)._asdict().items() if name != "density"}


def copies(train, held_out, rows) -> dict:
    found = quality.closest_record(train, held_out, rows)
    return {
        "closest_ratio": found.ratio,
        "closer_to_train": found.closer_to_train,
        "authenticity": quality.alpha_beta(train, rows).authenticity,
    }


def gained(knn, train, calibration, held_out, real, rows) -> dict:
    """Mean of two z-scores, kNN's and that of a forest that tells training rows from generated ones, less kNN alone: AUROC."""
    forest = RandomForestClassifier(200, min_samples_leaf=3, random_state=0, class_weight="balanced")
    forest.fit(np.concatenate([train, rows]), np.repeat([0, 1], [len(train), len(rows)]))
    test, labels = np.concatenate([held_out, real]), np.repeat([0, 1], [len(held_out), len(real)])

    def z(score):
        normal = score(calibration)
        return (score(test) - normal.mean()) / max(normal.std(), 1e-9)

    first, second = (
        z(lambda rows: -knn.score_samples(rows)),
        z(lambda rows: np.asarray(forest.predict_proba(rows))[:, 1]),
    )
    found = quality.utility(labels, first, (first + second) / 2, seed=0)
    return {"auroc_without": auroc(labels, first), **{f"utility_{k}": v for k, v in found._asdict().items()}}


def write_sheet(rows: list[np.ndarray], path: Path) -> None:
    """One line of eight pictures for each entry, at threefold size."""
    low, high = rows[0].min(), rows[0].max()
    grid = np.concatenate([np.concatenate(list(line[..., 0]), axis=1) for line in rows], axis=0)
    grey = np.uint8(255 * np.clip((grid - low) / (high - low), 0, 1))
    Image.fromarray(np.kron(grey, np.ones((3, 3), np.uint8))).save(path)


COLUMNS = {
    "severity": "median p",
    "in_band": "in band",
    "diversity": "variety",
    "c2st": "C2ST",
    "precision": "precision",
    "recall": "recall",
    "fid_pca": "FID (PCA)",
    "closest_ratio": "closest record",
    "closer_to_train": "closer to train",
    "background": "background",
    "alignment": "mask",
    "utility_gain": "gain, AUROC",
    "ms_per_row": "ms per row",
}


def show(record: dict) -> None:
    Console(width=200, highlight=False).print(
        f"{record['generator']}: "
        + ", ".join(f"{name} {record[key]:.3g}" for key, name in COLUMNS.items() if key in record)
    )


def markdown(records: list[dict]) -> str:
    """A table for each data set, as in docs/generation.md."""
    text = []
    for name in dict.fromkeys(record["data"] for record in records):
        own = [record for record in records if record["data"] == name]
        keys = [key for key in COLUMNS if any(key in record for record in own)]
        text += [f"**{name}**, kNN alone {own[0]['auroc_without']:.3f} AUROC\n"]
        text += [f"| generator | {' | '.join(COLUMNS[key] for key in keys)} |", "|---|" + "---:|" * len(keys)]
        for record in own:
            cells = [cell(record, key) for key in keys]
            text.append(f"| {record['generator']} | {' | '.join(cells)} |")
        text.append("")
    return "\n".join(text)


def cell(record: dict, key: str) -> str:
    if key not in record:
        return ""
    if key == "utility_gain":
        return f"{record[key]:+.3f} [{record['utility_low']:+.3f}, {record['utility_high']:+.3f}]"
    return f"{record[key]:.3g}"


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        settings = tyro.cli(Config, description=__doc__)
        run(settings)
        Console(width=220, highlight=False).print(markdown(read(settings.out)))
