"""Noise draws that all rows share, averaged in bounded memory: what every score is made of."""

import math
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

Draw = Callable[[Array, tuple[int, ...], Any], Array]
"""``(key, shape, dtype) -> noise`` of unit variance: ``jax.random.normal``, or ``coarse.pyramid_noise`` if that was trained on."""


def over_levels_and_draws(
    score_one: Callable[[Array, Array, Any], Array],
    key: Array,
    x: Float[Array, "batch *sample"],
    entries: Any,
    draws: int,
    memory_budget: int,
    *,
    copies: int = 1,
    draw: Draw = jax.random.normal,
    per_row: tuple[int, ...] = (),
) -> Float[Array, "levels batch *map"]:
    """Average ``score_one(key, noise [copies, *sample], entry) -> [batch, *per_row]`` over shared noise draws, for each entry.

    ``entries`` is a pytree whose leaves share their leading axis: levels, paths, masks. Draws come in antithetic pairs (noise and its
    negative), which cancels the odd part of the error. ``per_row`` is ``()`` for a score and ``(height, width)`` for a map; maps count
    in the budget beside the copies of ``x``, and only their running sum over the draws is kept.
    """
    check_draws(draws)
    entries = jax.tree.map(lambda leaf: _as_data(leaf, x.dtype), entries)
    num_entries = len(jax.tree.leaves(entries)[0])

    def one(index):
        entry, number = index // draws, index % draws
        draw_key = jax.random.fold_in(jax.random.fold_in(key, entry), number // 2)
        noise_key, path_key = jax.random.split(draw_key)
        sign = jnp.where(number % 2 == 0, 1.0, -1.0).astype(x.dtype)
        noise = sign * draw(noise_key, (copies, *x.shape[1:]), x.dtype)
        return score_one(path_key, noise, jax.tree.map(lambda leaf: leaf[entry], entries))

    map_elements = x.shape[0] * math.prod(per_row) if per_row else 0
    together = _copies_that_fit(x.size + map_elements, x.dtype, memory_budget)
    if per_row and together < num_entries * draws:
        return _running_mean(one, num_entries, draws, together, (x.shape[0], *per_row), x.dtype)
    scores = _in_groups(one, jnp.arange(num_entries * draws), together)
    return scores.reshape(num_entries, draws, x.shape[0], *per_row).mean(axis=1)


def _running_mean(one, num_entries, draws, together, shape, dtype):
    """The mean of ``one(entry * draws + number)`` over ``number``, never holding more than ``together`` of them."""
    group = max(size for size in range(1, draws + 1) if draws % size == 0 and size <= together)

    def of_entry(entry):
        def add(total, numbers):
            return total + jax.vmap(one)(entry * draws + numbers).sum(axis=0), None

        total, _ = jax.lax.scan(add, jnp.zeros(shape, dtype), jnp.arange(draws).reshape(-1, group))
        return total / draws

    return _in_groups(of_entry, jnp.arange(num_entries), max(1, together // draws))


def map_in_groups(function: Callable[[Array], Array], inputs: Array, x: Array, memory_budget: int) -> Array:
    """``vmap`` over as many inputs at once as copies of ``x`` fit in the budget, a loop over the rest."""
    return _in_groups(function, inputs, _copies_that_fit(x.size, x.dtype, memory_budget))


def _copies_that_fit(elements: int, dtype, memory_budget: int) -> int:
    return max(1, int(memory_budget) // max(1, elements * dtype.itemsize))


def _in_groups(function, inputs, together: int):
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


def check_images(x: Array, score: str) -> None:
    """A map has one number per pixel, so rows must have height, width and channels."""
    if x.ndim != 4:
        raise ValueError(
            f"{score} needs images of shape [batch, height, width, channels], got shape {x.shape}; "
            "give grey images a last axis of one channel, x[..., None]"
        )
