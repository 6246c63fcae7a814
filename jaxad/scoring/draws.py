"""Noise draws that all rows share, averaged in bounded memory: what every score is made of."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxad.denoising import Denoise
from jaxad.noise import NoiseLevel

MEMORY_BUDGET = 256 * 2**20
"""Bytes that the noisy copies of ``x`` may take at once unless the caller says otherwise: 256 MiB."""

Score = Callable[[Array, Denoise, Array, NoiseLevel], Array]


def over_levels_and_draws(
    score_one: Callable[[Array, Array, Any], Array],
    key: Array,
    x: Float[Array, "batch *sample"],
    entries: Any,
    draws: int,
    memory_budget: int,
    *,
    copies: int = 1,
) -> Float[Array, "levels batch"]:
    """Average ``score_one(key, noise [copies, *sample], entry) -> [batch]`` over shared noise draws, for each entry.

    ``entries`` is a pytree whose leaves share their leading axis: levels, paths, masks. Draws come in antithetic pairs (noise and its
    negative), which cancels the odd part of the error.
    """
    check_draws(draws)
    entries = jax.tree.map(lambda leaf: _as_data(leaf, x.dtype), entries)
    num_entries = len(jax.tree.leaves(entries)[0])

    def one(index):
        entry, draw = index // draws, index % draws
        draw_key = jax.random.fold_in(jax.random.fold_in(key, entry), draw // 2)
        noise_key, path_key = jax.random.split(draw_key)
        noise = jnp.where(draw % 2 == 0, 1.0, -1.0).astype(x.dtype) * jax.random.normal(
            noise_key, (copies, *x.shape[1:]), x.dtype
        )
        return score_one(path_key, noise, jax.tree.map(lambda leaf: leaf[entry], entries))

    scores = map_in_groups(one, jnp.arange(num_entries * draws), x, memory_budget)
    return scores.reshape(num_entries, draws, x.shape[0]).mean(axis=1)


def map_in_groups(function: Callable[[Array], Array], inputs: Array, x: Array, memory_budget: int) -> Array:
    """``vmap`` over as many inputs at once as copies of ``x`` fit in the budget, a loop over the rest."""
    together = max(1, int(memory_budget) // max(1, x.size * x.dtype.itemsize))
    if together >= len(inputs):
        return jax.vmap(function)(inputs)
    return jax.lax.map(function, inputs, batch_size=together)


def _as_data(leaf, dtype):
    leaf = jnp.asarray(leaf)
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def mean_square(difference: Float[Array, "batch *sample"]) -> Float[Array, " batch"]:
    return jnp.mean(difference**2, axis=sample_axes(difference))


def sample_axes(x: Array) -> tuple[int, ...]:
    """Every axis but the batch."""
    return tuple(range(1, x.ndim))


def safe_sqrt(square: Array) -> Array:
    """The root with a gradient of 0, not of nan, where the square is 0."""
    return jnp.sqrt(jnp.maximum(square, jnp.finfo(square.dtype).tiny))


def check_draws(draws: int) -> None:
    if draws < 1:
        raise ValueError(f"a score needs at least one noise draw, got {draws=}")


def check_schedule(levels: NoiseLevel, score: str) -> None:
    """A score that integrates along the levels needs one axis of at least two."""
    shape = jnp.shape(levels.alpha)
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(
            f"{score} needs at least 2 levels of shape [levels], cleanest first, got shape {shape}; "
            "pass a schedule such as noise.log_uniform(10), or every 50th level of one"
        )
