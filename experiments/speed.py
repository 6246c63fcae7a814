"""How much faster are fit and score than the published recipe, and at what AUROC?

    python -m experiments.speed --data-dir ../shared/data

Runtime: about 10 minutes on 2 cores, most of it the peer's. Expected: docs/benchmarks.md.

Two processes live side by side and take turns, one for us and one for the peer, so neither warms the other's caches and a busy moment
of the machine hits both. Ours starts with no compiled program on disk: its first seconds include every compilation, and what a later
data set shares with an earlier one is shared, as in any session. The peer is `experiments/peers/dte_recipe.py`, eager PyTorch.
"""

import json
import multiprocessing
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxad import data, metrics
from jaxad.cli import exit_on_user_error
from jaxad.detectors.catalogue import choose
from jaxad.evaluation import Split, current_commit, device_name, dte, versions

FIT_AND_SCORE = (
    ("ddpm", "CIFAR10_4"),
    *(("dte-c", name) for name in ("CIFAR10_4", "CIFAR10_6", "MVTec-AD_bottle", "MVTec-AD_cable", "MVTec-AD_zipper")),
)
"""(detector, data set); both sides get the same rows: protocol dte, seed 44, as in the paper's table."""


QUICK = {
    "ddpm": {"batch_size": 128, "learning_rate": 3e-3, "num_steps": 1000},
    "dte-c": {"batch_size": 128, "learning_rate": 3e-3, "num_steps": 1000},
}
"""Fewer, larger steps: from the held-out losses of `experiments.recipe`, a quarter of the default's time for a slightly higher loss."""


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with adbench/<group>/<name>.npz."""
    out: Path = Path("runs/speed/results.jsonl")
    peer_device: str = "cpu"
    """cpu, or cuda; ours runs wherever JAX runs."""


def fit_and_score_peer(detector: str, split: Split, device: str) -> dict:
    from experiments.peers.dte_recipe import RECIPES

    fit, score = RECIPES[detector]
    started = time.perf_counter()
    scores = score(fit(split.train, device), split.test, device)
    return {"seconds": time.perf_counter() - started, "auroc": metrics.auroc(split.labels, scores)}


def fit_and_score_ours(detector: str, split: Split, settings: dict) -> dict:
    """First fit and score of this shape in this process with every compilation, then the same once more."""
    record = {}
    for name in ("seconds", "seconds_again"):
        model: Any = choose([detector])[detector](0)
        model.set_params(**settings)
        started = time.perf_counter()
        scores = -model.fit(split.train).score_samples(split.test)
        record |= {name: time.perf_counter() - started, "auroc": metrics.auroc(split.labels, scores)}
    return {**record, "steps": len(model.losses_)}


def steps_peer(device: str, epochs: int = 10) -> dict:
    """Milliseconds per training step at 512 features: what ten more epochs of 40 batches cost."""
    from experiments.peers.dte_recipe import fit_ddpm

    rows = np.random.default_rng(0).normal(size=(2560, 512))
    seconds = []
    for count in (2, 2 + epochs):
        started = time.perf_counter()
        fit_ddpm(rows, device, count)
        seconds.append(time.perf_counter() - started)
    return {"milliseconds_per_step": 1000 * (seconds[1] - seconds[0]) / (40 * epochs)}


def steps_ours(num_steps: int = 400) -> dict:
    """The same for us at the peer's recipe: width 128, 3 blocks, batch 64, noise prediction, Adam; compiled before the clock runs."""
    import jax

    from jaxad import noise, training
    from jaxad.denoisers import MLP

    network: Any = MLP(width=128, depth=3)
    optimizer = training.adam(1e-4, clip_norm=None)
    data_key, init_key = jax.random.split(jax.random.key(0))
    rows = jax.random.normal(data_key, (2560, 512))
    state = training.init_state(init_key, network, optimizer, rows[:1], jax.numpy.zeros(1))
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        state, losses = training.train_chunk(
            state,
            rows,
            np.int32(2560),
            noise.linear(1000, beta_end=1e-2).to(np.float32),
            loss=training.simple_loss(network, noise.NOISE),
            optimizer=optimizer,
            batch_size=64,
            num_steps=num_steps,
        )
        losses.block_until_ready()
        seconds = time.perf_counter() - started
    return {"milliseconds_per_step": 1000 * seconds / num_steps}


def seeds_together(split: Split, count: int = 5) -> dict:
    """Seconds of one fit and of five seeds in one ``vmap``ped program, each the second of two runs: nothing is compiled."""
    from jaxad import DiffusionDetector, fit_many

    seconds = {}
    for name, number in (("one", 1), ("together", count)):
        for _ in range(2):
            detectors = [DiffusionDetector(**QUICK["ddpm"], random_state=seed) for seed in range(number)]
            started = time.perf_counter()
            if number == 1:
                detectors[0].fit(split.train)
            else:
                fit_many(detectors, [split.train] * number)
            seconds[name] = time.perf_counter() - started
    return {**seconds, "ratio": seconds["together"] / seconds["one"]}


def second_start(split: Split) -> dict:
    """Milliseconds before a second fit of a shape takes its first step: a fit told to stop there, once more."""
    model: Any = choose(["ddpm"])["ddpm"](0)
    model.fit(split.train)
    starts = []

    from jaxad.detectors import fitting

    original = fitting.training.fit

    def note_the_time(*args, **kwargs):
        starts.append(time.perf_counter())
        return original(*args, **kwargs)

    fitting.training.fit = note_the_time
    started = time.perf_counter()
    model.fit(split.train)
    fitting.training.fit = original
    return {"milliseconds": 1000 * (starts[0] - started)}


def compare(measure_ours, measure_peer, repeats: int = 3) -> tuple[dict, dict]:
    """Alternate the two and keep the median run of each by its first number."""
    turns = [(measure_ours(), measure_peer()) for _ in range(repeats)]
    ours, peer = (sorted(side, key=lambda record: next(iter(record.values()))) for side in zip(*turns, strict=True))
    return ours[repeats // 2], peer[repeats // 2]


def run(config: Config) -> list[dict]:
    """Every case, ours and the peer's in turn; one JSON object per line is appended to ``out``."""
    splits = {name: dte(data.adbench(name, config.data_dir), 44) for _, name in FIT_AND_SCORE}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"commit": current_commit(), "device": device_name(), "machine": platform.machine(), "versions": versions()}
    records = []

    def note(**record):
        records.append(record)
        with config.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record | about) + "\n")
        print(record, flush=True)

    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # inherited by our process: nothing compiled is found on disk
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as ours, ProcessPoolExecutor(1, mp_context=spawn) as peer:

        def turn(side, function, *args):
            return lambda: side.submit(function, *args).result()

        for side in (ours, peer):
            side.submit(int).result()  # both processes are up before any clock runs
        for detector, name in FIT_AND_SCORE:
            split = splits[name]
            theirs = turn(peer, fit_and_score_peer, detector, split, config.peer_device)()
            for recipe, settings in (("quick", QUICK[detector]), ("default", {})):
                our = turn(ours, fit_and_score_ours, detector, split, settings)()
                about_it = {"case": "fit and score", "detector": detector, "dataset": name, "recipe": recipe}
                note(**about_it, ours=our, peer=theirs, times_faster=theirs["seconds"] / our["seconds"])
        our, theirs = compare(turn(ours, steps_ours), turn(peer, steps_peer, config.peer_device))
        ratio = theirs["milliseconds_per_step"] / our["milliseconds_per_step"]
        note(case="one training step, equal recipe", ours=our, peer=theirs, times_faster=ratio)
        note(case="five seeds against one", ours=turn(ours, seeds_together, splits["MVTec-AD_bottle"])())
        note(case="start of a second fit", ours=turn(ours, second_start, splits["MVTec-AD_bottle"])())
    return records


if __name__ == "__main__":
    with exit_on_user_error():
        run(tyro.cli(Config, description=__doc__))
