"""Checks 2, 4 and 6: how fast are training and scoring of networks, and how far from what the device can do?"""

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.on_gpu.flops import forward_flops, peak
from experiments.on_gpu.watch import attempted, failure
from experiments.speed_images import our_tasks, their_tasks, timed
from jaxad import DiffusionDetector, fit_many
from jaxad.denoisers import MLP, DiT, UNet, dit_b, dit_l, dit_s, dit_xl

LEVELS = 8
ROUND_SECONDS = 0.2
"""A round repeats a task until it takes about so long: single calls of milliseconds measure the clock."""

SHARED = {"num_classes": 1, "frequency_shift": 1.0}
"""What makes our DiT the one of diffusers."""

UNET = UNet(
    channels=128,
    multipliers=(1, 2, 2, 2),
    blocks=2,
    attention=(2,),
    head_channels=256,
    scale_shift=False,
    frequency_shift=1.0,
)
"""DDPM's network for CIFAR-10, with attention at 16 pixels: 36 million parameters."""

TINY_UNET = UNet(
    channels=8,
    multipliers=(1,),
    blocks=1,
    attention=(),
    head_channels=8,
    groups=8,
    scale_shift=False,
    frequency_shift=1.0,
)


def against_diffusers(tiny: bool, budget: float) -> Iterator[dict[str, Any]]:
    """A record for each network and task: ours, and diffusers' of the same shape under ``torch.compile``, in turn."""
    tiny_dit = DiT(hidden=32, depth=1, heads=2, patch_size=4, **SHARED)
    networks = (
        {"DiT": tiny_dit, "U-Net": TINY_UNET}
        if tiny
        else {"DiT-B/2": dit_b(2, **SHARED), "U-Net": UNET, "DiT-S/2": dit_s(2, **SHARED)}
    )
    shape, batch = ((8, 8, 1), 4) if tiny else ((32, 32, 3), 128)
    for name, network in networks.items():
        yield from _in_turn(name, network, shape, batch, rounds=2 if tiny else 5)
        _free()


def _in_turn(name: str, network, shape, batch: int, rounds: int) -> Iterator[dict[str, Any]]:
    x = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
    network = network.clone(dtype=jnp.bfloat16)
    flops = batch * forward_flops(network, shape)
    needed = {"train step": 3 * flops, "score": LEVELS * flops}
    tasks, parameters = {}, {}
    tasks["jaxad"], parameters["jaxad"] = our_tasks(network, x, LEVELS)
    theirs, how = _peer(network, x)
    if theirs is not None:
        tasks["diffusers"], parameters["diffusers"] = theirs

    def measured(task):
        seconds, first = _alternating({library: of[task] for library, of in tasks.items()}, rounds)
        numbers = {
            "batch_size": batch,
            "shape": list(shape),
            "levels": LEVELS if task == "score" else None,
            "precision": "bfloat16, parameters in float32",
            "parameters": parameters,
            "peer": how,
            "milliseconds": {library: 1000 * taken for library, taken in seconds.items()},
            "first_call_seconds": first,
            "images_per_second": {library: batch / taken for library, taken in seconds.items()},
            "model_flops": needed[task],
            "share_of_peak": {library: _share(needed[task], taken) for library, taken in seconds.items()},
        }
        if "diffusers" in seconds:
            numbers["times_as_fast"] = seconds["diffusers"] / seconds["jaxad"]
        return numbers

    yield from attempted((f"{name}, {task}", partial(measured, task)) for task in needed)


def _peer(network, x) -> tuple[tuple[dict[str, Callable[[], Any]], int] | None, str]:
    """``((tasks, parameters) or None, what the peer is or why there is none)``."""
    missing = [package for package in ("torch", "diffusers") if find_spec(package) is None]
    if missing:
        return None, f"none: {' and '.join(missing)} not installed; ours is measured alone"
    try:
        import torch

        on_gpu = jax.devices()[0].platform != "cpu" and torch.cuda.is_available()
        torch.set_float32_matmul_precision("high")  # what is left in float32 may use tensor cores, as XLA does
        tasks = their_tasks(network, x, LEVELS, device="cuda" if on_gpu else "cpu", half=True, compiled=on_gpu)
    except Exception as error:  # the peer's troubles are not ours
        return None, f"none: {failure(error)}; ours is measured alone"
    where = "cuda, torch.compile" if on_gpu else "cpu, eager"
    return tasks, f"diffusers on torch {torch.__version__}, {where}"


def _alternating(tasks: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """``(median seconds of a call, seconds of the first call)`` of each, the rounds of one between those of the other."""
    first = {name: timed(task) for name, task in tasks.items()}
    repeats = {name: int(np.clip(ROUND_SECONDS / max(timed(task), 1e-6), 1, 50)) for name, task in tasks.items()}
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            times[name].append(timed(partial(_repeat, task, repeats[name])) / repeats[name])
    return {name: float(np.median(taken)) for name, taken in times.items()}, first


def _repeat(task: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        task()


def _share(flops: float, seconds: float) -> float | None:
    """Model FLOPs utilisation: of the device's peak in bfloat16; None where the peak is not known."""
    most = peak()
    return None if most is None else flops / seconds / most


def _free() -> None:
    """What a network left on the device goes before the next one comes."""
    jax.clear_caches()
    gc.collect()
    if find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            torch._dynamo.reset()
            torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------------------------------------ five seeds


def seeds_together(tiny: bool, budget: float) -> Iterator[dict[str, Any]]:
    """Five seeds trained as one program by ``fit_many``, against one after the other; each twice, the second time nothing is compiled."""
    sizes = [(60, 4)] if tiny else [(2000, 20), (2000, 512)]
    network, steps = (MLP(width=16, depth=1), 20) if tiny else (None, 1000)

    def seeds():
        return [DiffusionDetector(network, num_steps=steps, random_state=seed) for seed in range(5)]

    def measured(rows, columns):
        table = np.random.default_rng(0).normal(size=(rows, columns))
        together, alone, seconds = [], [], {}
        for turn in ("first", "again"):
            started = time.perf_counter()
            together = fit_many(seeds(), [table] * 5)
            middle = time.perf_counter()
            alone = [detector.fit(table) for detector in seeds()]
            seconds[turn] = {"together": middle - started, "one_by_one": time.perf_counter() - middle}
        pairs = [(a.score_samples(table), b.score_samples(table)) for a, b in zip(together, alone, strict=True)]
        return {
            "rows": rows,
            "columns": columns,
            "steps": steps,
            "seconds": seconds,
            "times_as_fast": seconds["again"]["one_by_one"] / seconds["again"]["together"],
            "largest_difference_of_scores_over_their_range": max(np.abs(a - b).max() / np.ptp(b) for a, b in pairs),
        }

    yield from attempted((f"{columns} columns", partial(measured, rows, columns)) for rows, columns in sizes)


# ---------------------------------------------------------------------------------------------------------------- sizes of DiT


def sizes_of_dit(tiny: bool, budget: float) -> Iterator[dict[str, Any]]:
    """Pictures a second of DiT-S to DiT-XL at 32 pixels (256 patches) and 224 (196): a training step, and one denoising of a batch."""
    presets = {"DiT-S": (dit_s, 128), "DiT-B": (dit_b, 128), "DiT-L": (dit_l, 64), "DiT-XL": (dit_xl, 64)}
    cases = [(name, side, make, batch) for name, (make, batch) in presets.items() for side in (32, 224)]

    def small(patch_size, **options):
        return DiT(hidden=32, depth=1, heads=2, patch_size=patch_size, **options)

    for name, side, make, batch in [("DiT, tiny", 32, small, 2)] if tiny else cases:
        yield from attempted([(f"{name}, {side} pixels", partial(_pictures_a_second, make, side, batch, tiny))])
        _free()


def _pictures_a_second(make, side: int, batch: int, tiny: bool) -> dict[str, Any]:
    shape = (side, side, 3)
    network = make(patch_size=8 if tiny else 2 if side == 32 else 16, dtype=jnp.bfloat16)
    x = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
    tasks, parameters = our_tasks(network, x, 1)
    forward = batch * forward_flops(network, shape)
    numbers: dict[str, Any] = {
        "batch_size": batch,
        "parameters": parameters,
        "precision": "bfloat16, parameters in float32",
    }
    for task, name, flops in (("train step", "training", 3 * forward), ("score", "denoising", forward)):
        seconds, first = _alternating({"jaxad": tasks[task]}, rounds=3)
        numbers[name] = {
            "images_per_second": batch / seconds["jaxad"],
            "share_of_peak": _share(flops, seconds["jaxad"]),
            "first_call_seconds": first["jaxad"],
        }
    return numbers
