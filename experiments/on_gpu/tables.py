"""Checks 3 and 5: detectors of tables on ADBench, and distances to very many rows."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.on_gpu.watch import attempted
from jaxad import ConsensusDetector, DiffusionDetector, DTECategorical, KNNDetector, data, evaluate
from jaxad.denoisers import MLP, DiT
from jaxad.detectors.catalogue import choose

TEN = ("Pima", "breastw", "WDBC", "Ionosphere", "yeast", "Stamps", "cardio", "thyroid", "MVTec-AD_bottle", "satimage-2")
"""From 150 to 5,800 rows and from 8 to 512 columns: small enough to be carried, large enough for networks."""

SWEEP = ("ddpm", "dit", "dte-c")


def found(data_dir: Path | None) -> dict[str, Path]:
    """The files of the ADBench sets in the data directory by their names, the smallest first."""
    folder = Path(data_dir or os.environ.get("JAXAD_DATA_DIR") or "~/.cache/jaxad").expanduser()
    files = {path.stem: path for path in folder.glob("adbench/*/*.npz")}
    names = [name for name in data.adbench_names(data_dir) if name in files]
    return {name: files[name] for name in sorted(names, key=lambda name: files[name].stat().st_size)}


def carry(data_dir: Path | None, target: Path, most_bytes: int = 40 * 2**20) -> list[Path]:
    """Copy the sets that the checks read to ``target``: the ten first, then the others, smallest first, as many as may travel."""
    files = found(data_dir)
    ten = [name for name in map(data.adbench_name, TEN) if name in files]
    copied, total = [], 0
    for name in (*ten, *(name for name in files if name not in ten)):
        path = files[name]
        total += path.stat().st_size
        if total > most_bytes:
            break
        copy = target / "adbench" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        copied.append(copy)
    return copied


def _loaders(names, data_dir: Path | None) -> dict[str, Callable[[], data.Dataset]]:
    return {name: partial(data.adbench, name, data_dir) for name in names}


def _builtin() -> dict[str, Callable[[], data.Dataset]]:
    """Where no set of ADBench is found: what comes with scikit-learn."""
    return {f"{name} (no ADBench set found)": partial(data.builtin, name) for name in ("wine_0", "breast_cancer")}


def evaluated(make, load) -> dict[str, Any]:
    """One detector on one set under the clean protocol, seed 0."""
    record, _, _ = evaluate(make(0), load(), protocol="clean", seed=0)
    kept = ("auroc", "average_precision", "num_train", "num_test", "fit_seconds", "score_seconds")
    return {name: getattr(record, name) for name in kept}


def recommended_and_neighbours(tiny: bool, budget: float, *, data_dir: Path | None = None) -> Iterator[dict[str, Any]]:
    """kNN among 20,000 rows, the recommended detector on ten sets, kNN among a million rows."""
    small, large = ((500, 5, 50), (2000, 5, 50)) if tiny else ((20_000, 32, 1000), (1_000_000, 32, 1000))
    make = choose(["recommended"])["recommended"]
    loaders = _loaders([name for name in map(data.adbench_name, TEN) if name in found(data_dir)], data_dir)
    loaders = loaders or _builtin()
    if tiny:
        make, loaders = _tiny_recommended, {"wine_0": partial(data.builtin, "wine_0")}
    yield from attempted([(f"kNN among {small[0]:,} rows", partial(neighbours, *small))])
    yield from attempted((f"recommended on {name}", partial(evaluated, make, load)) for name, load in loaders.items())
    yield from attempted([(f"kNN among {large[0]:,} rows", partial(neighbours, *large))])


def trained_detectors(tiny: bool, budget: float, *, data_dir: Path | None = None) -> Iterator[dict[str, Any]]:
    """DDPM, DiT and DTE-C at their default settings on every set found, the smallest first."""
    detectors = choose(SWEEP)
    loaders = _loaders(found(data_dir), data_dir) or _builtin()
    if tiny:
        detectors, loaders = TINY_SWEEP, {"wine_0": partial(data.builtin, "wine_0")}
    yield from attempted(
        (f"{detector} on {name}", partial(evaluated, make, load))
        for name, load in loaders.items()
        for detector, make in detectors.items()
    )


def _tiny_recommended(seed: int) -> ConsensusDetector:
    return ConsensusDetector(num_networks=1, num_steps=10, random_state=seed)


TINY_SWEEP: dict[str, Callable[[int], Any]] = {
    "ddpm": lambda seed: DiffusionDetector(MLP(width=16, depth=1), num_steps=10, random_state=seed),
    "dit": lambda seed: DiffusionDetector(
        DiT(hidden=16, depth=1, heads=2, patch_size=None), num_steps=10, random_state=seed
    ),
    "dte-c": lambda seed: DTECategorical(num_steps=10, random_state=seed),
}


# -------------------------------------------------------------------------------------------------------------------- distances

QUERIES_AT_ONCE = 256


def neighbours(rows: int, columns: int, queries: int) -> dict[str, Any]:
    """``KNNDetector`` fitted on so many rows and asked for the scores of others; beside it every distance computed on the device.

    The second is what a search on the device would take: a product of matrices and a selection, nothing else.
    """
    rng = np.random.default_rng(0)
    known, asked = (rng.normal(size=(count, columns)) for count in (rows, queries))
    started = time.perf_counter()
    detector = KNNDetector().fit(known)
    fitted = time.perf_counter()
    scores = detector.score_samples(asked)
    scored = time.perf_counter()
    on_device, at_once = jnp.asarray(known, jnp.float32), jnp.asarray(asked, jnp.float32)
    seconds = []
    found_there = np.zeros(0)
    for _ in range(2):
        begun = time.perf_counter()
        found_there = np.asarray(_fifth_distance(on_device, at_once))
        seconds.append(time.perf_counter() - begun)
    return {
        "rows": rows,
        "columns": columns,
        "queries": queries,
        "fit_seconds": fitted - started,
        "score_seconds": scored - fitted,
        "rows_per_second": queries / (scored - fitted),
        "every_distance_on_the_device": {
            "first_call_seconds": seconds[0],
            "rows_per_second": queries / seconds[1],
            "largest_relative_difference": float(np.max(np.abs(found_there + scores) / -scores)),
        },
    }


@jax.jit
def _fifth_distance(known, asked):
    """Euclidean distance from each row of ``asked`` to its fifth nearest row of ``known``, in blocks of queries."""

    def one(query):
        products = jnp.matmul(known, query, precision="highest")
        squared = (known**2).sum(axis=1) - 2 * products + (query**2).sum()
        return jnp.sqrt(-jax.lax.top_k(-squared, 5)[0][-1])

    return jax.lax.map(one, asked, batch_size=min(QUERIES_AT_ONCE, len(asked)))
