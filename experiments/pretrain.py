"""Can a denoiser that has never seen a table denoise its rows, told its normal rows as context?

    python -m experiments.pretrain --minutes 30

Runtime: the minutes asked for, on any device, stopped and resumed at will (``--run-dir``). Expected: docs/methods.md, "A denoiser that is
not trained on the user's rows".

Every step draws new synthetic tables (``in_context.prior``) on the device and denoises rows of them by the rest of their rows
(``in_context.network``). Held-out tables of the same prior give the curve: the squared error of the clean estimate, in units of the error
of the best linear guess without context, over noise levels from .05 to 3. Beside it the bars: the empirical denoiser of the context (its
attention with a fixed kernel), the same with kernels of the best one width, and the Gaussian denoiser of the context.
"""

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array
from rich.console import Console

from experiments.in_context.network import InContextDenoiser
from experiments.in_context.prior import split
from jaxad import training
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.evaluation import current_commit
from jaxad.runtime.runs import named_leaves, open_run, tree_from_leaves

WIDTHS = (3, 6, 12)
"""Columns of the tables: a program is compiled for each."""
SIGMAS = (0.05, 3.0)
LEVELS_SHOWN = (0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Config:
    minutes: float = 30.0
    """Of training in all, those before a stop counted."""
    context: int = 128
    queries: int = 32
    tables: int = 8
    """In a step."""
    width: int = 48
    depth: int = 3
    learning_rate: float = 1e-3
    held_out: int = 32
    """Tables of every width that measure."""
    between: int = 200
    """Steps between two looks at them."""
    seed: int = 0
    run_dir: Path = Path("runs/pretrain")
    out: Path = Path("runs/pretrain.jsonl")


def spoilt(key: Array, clean: Array) -> tuple[Array, Array]:
    """``(noisy rows, sigma of each)``, levels log-uniform and evenly spread over the rows."""
    place, noise = jax.random.split(key)
    even = (jnp.arange(len(clean)) + jax.random.uniform(place)) / len(clean)
    sigma = SIGMAS[0] * (SIGMAS[1] / SIGMAS[0]) ** even
    return clean + sigma[:, None] * jax.random.normal(noise, clean.shape), sigma


def error(estimate: Array, clean: Array, sigma: Array) -> Array:
    """``[rows]``: mean square over what a linear guess leaves of a column of spread 1."""
    return jnp.mean((estimate - clean) ** 2, axis=1) * (1 + sigma**2) / sigma**2


def loss(key: Array, params: Any, network: InContextDenoiser, config: Config, columns: int) -> Array:
    """Of new tables."""

    def of_table(key):
        context, clean = split(key, config.context, config.queries, columns)
        noisy, sigma = spoilt(jax.random.fold_in(key, 1), clean)
        estimate: Any = network.apply({"params": params}, noisy, -2 * jnp.log(sigma), context)
        # Cut, so that a table of heavy tails does not decide a step alone.
        return jnp.mean(jnp.minimum(error(estimate, clean, sigma), 20.0))

    return jnp.mean(jax.vmap(of_table)(jax.random.split(key, config.tables)))


@partial(jax.jit, static_argnames=("network", "config", "columns", "optimizer"), donate_argnames="state")
def step(state: training.TrainState, network, config, columns, optimizer):
    """One update: ``(state, loss)``."""
    key = jax.random.fold_in(state.key, state.step)
    value, slope = jax.value_and_grad(lambda params: loss(key, params, network, config, columns))(state.params)
    updates, opt_state = optimizer.update(slope, state.opt_state, state.params)
    params = jax.tree.map(jnp.add, state.params, updates)
    keep = jnp.minimum(0.999, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, state.ema, params)
    return training.TrainState(state.step + 1, params, ema, opt_state, state.key), value


# ----------------------------------------------------------------------------------------------------------------- the bars


def by_kernels(noisy: Array, sigma: Array, context: Array, width: float) -> Array:
    """The exact denoiser of a density of Gaussian kernels on the context; of width 0 the empirical denoiser."""
    spread = (sigma**2 + width**2)[:, None]
    squares = jnp.sum((noisy[:, None] - context[None]) ** 2, axis=-1)
    mean = jax.nn.softmax(-squares / (2 * spread), axis=1) @ context
    return (width**2 * noisy + sigma[:, None] ** 2 * mean) / spread


def by_gaussian(noisy: Array, sigma: Array, context: Array) -> Array:
    """The exact denoiser of a Gaussian with the context's mean and covariance, a tenth of it shrunk to the diagonal."""
    mean = context.mean(axis=0, keepdims=True)
    covariance = jnp.cov(context.T).reshape(context.shape[1], -1)
    covariance = 0.9 * covariance + 0.1 * jnp.diag(jnp.diag(covariance))
    values, vectors = jnp.linalg.eigh(covariance)
    seen = (noisy - mean) @ vectors
    return mean + (seen * values[None] / (values[None] + sigma[:, None] ** 2)) @ vectors.T


BARS = {
    "empirical": partial(by_kernels, width=0.0),
    **{f"kernels of {width:g}": partial(by_kernels, width=width) for width in (0.1, 0.2, 0.4)},
    "gaussian": by_gaussian,
}


@partial(jax.jit, static_argnames=("network", "config", "columns"))
def measure(params, network, config, columns) -> dict[str, Array]:
    """Errors on the held-out tables, always the same: ``{denoiser: [tables, 1 + levels]}``, over all levels and at a few."""

    def of_table(key):
        context, clean = split(key, config.context, 64, columns)
        noisy, sigma = spoilt(jax.random.fold_in(key, 1), clean)
        denoisers = BARS | {
            "in context": lambda noisy, sigma, context: network.apply(
                {"params": params}, noisy, -2 * jnp.log(sigma), context
            )
        }
        found = {}
        for name, denoise in denoisers.items():
            each = [jnp.mean(error(denoise(noisy, sigma, context), clean, sigma))]
            for number, level in enumerate(LEVELS_SHOWN):
                alike = jnp.full(len(clean), level)
                noise = jax.random.normal(jax.random.fold_in(key, 2 + number), clean.shape)
                each.append(jnp.mean(error(denoise(clean + level * noise, alike, context), clean, alike)))
            found[name] = jnp.stack(each)
        return found

    # Keys that no step draws from: the steps' are folded from another seed.
    return jax.lax.map(of_table, jax.random.split(jax.random.key(2**31 - 1), config.held_out))


def looked(params: Any, network: InContextDenoiser, config: Config) -> dict[str, dict[str, float]]:
    """Medians over all held-out tables: a table of heavy tails has errors of any size."""
    found = [jax.device_get(measure(params, network, config, columns)) for columns in WIDTHS]
    names = ("all", *(f"sigma {level:g}" for level in LEVELS_SHOWN))
    return {
        denoiser: dict(
            zip(names, np.median(np.concatenate([of[denoiser] for of in found]), axis=0).round(4).tolist(), strict=True)
        )
        for denoiser in found[0]
    }


def run(config: Config) -> list[dict]:
    """The records of the curve, also those of before a stop."""
    if config.minutes <= 0 or min(config.context, config.queries, config.tables, config.between) < 1:
        raise ValueError(f"minutes and sizes are above 0, got {config}")
    network, console = InContextDenoiser(config.width, config.depth), Console(width=160, highlight=False)
    optimizer = training.adam(config.learning_rate, warmup_steps=200)
    shape = jnp.zeros((1, WIDTHS[0]))
    params = network.init(jax.random.key(config.seed), shape, jnp.zeros(1), shape)["params"]
    state = training.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        key=jax.random.key(config.seed),
    )
    asked = {
        name: str(getattr(config, name))
        for name in ("context", "queries", "tables", "width", "depth", "learning_rate", "seed")
    }
    records: list[dict] = []
    with open_run(config.run_dir) as kept:
        assert kept is not None
        seconds = 0.0
        if (found := kept.restore(asked)) is not None:
            arrays, content = found
            state = tree_from_leaves("state", state, arrays)
            seconds, records = content["seconds"], content["records"]
        while seconds < 60 * config.minutes:
            started, losses = time.perf_counter(), []
            for _ in range(config.between):
                columns = WIDTHS[int(state.step) % len(WIDTHS)]
                state, value = step(state, network, config, columns, optimizer)
                losses.append(value)
            if not np.isfinite(float(losses[-1])):
                raise FloatingPointError(f"the loss is {losses[-1]} at step {int(state.step)}: lower --learning-rate")
            seconds += time.perf_counter() - started
            record = {
                "step": int(state.step),
                "seconds": round(seconds, 1),
                "loss": round(float(jnp.mean(jnp.stack(losses))), 4),
            }
            record |= {"held out": looked(state.ema, network, config)}
            records.append(record)
            ours, bar = record["held out"]["in context"]["all"], record["held out"]["empirical"]["all"]
            console.print(
                f"step {record['step']}, {seconds / 60:.1f} of {config.minutes:g} minutes: {ours:.4f}, empirical denoiser {bar:.4f}"
            )
            due, stop = kept.due()
            if due or stop or seconds >= 60 * config.minutes:
                content = {"fingerprint": asked, "seconds": seconds, "records": records}
                kept.save(int(state.step), named_leaves("state", state), content)
            if stop:
                kept.stop(int(state.step))
    about = {"device": jax.devices()[0].device_kind, "commit": current_commit(), **asked}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text("".join(json.dumps(about | record) + "\n" for record in records), encoding="utf-8")
    return records


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        run(tyro.cli(Config, description=__doc__))
