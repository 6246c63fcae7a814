"""Counterfactuals: the nearest normal version of an anomaly, the nearest anomalous version of a normal row, and what changed.

A score here is ``rows -> [batch]``, larger = more anomalous; a limit is that of a p-value, such as the .95 quantile of the scores of normal
rows that were not trained on.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxad.denoising import Denoise
from jaxad.generation.generated import check_denoiser
from jaxad.generation.low_density import RowScore, reach
from jaxad.noise import NoiseLevel, add_noise, expand
from jaxad.scoring.conditional import inpaint


class Counterfactual(NamedTuple):
    """Another version of each row. A row that already is what was asked for comes back as it was, with an empty mask."""

    x: Float[Array, "..."]  # [batch, *sample]
    mask: Bool[Array, "..."]  # [batch, *sample], where it changed
    change: Float[Array, "..."]  # [batch, *sample], x minus the row given; over the column's spread an attribution
    score: Float[Array, "..."]  # [batch], of the new version
    valid: Bool[Array, "..."]  # [batch], whether the score came to the right side of the limit


def element_error(
    key: Array, denoise: Denoise, x: Float[Array, "batch *sample"], levels: NoiseLevel, *, draws: int = 8
) -> Float[Array, "batch *sample"]:
    """How little each element fits its row: squared error of one jump in units of the noise, mean over levels and shared draws.

    Over that of normal rows (z-scores, ``(e - mean) / spread``) it says what is wrong with a row. Levels with little noise, such as
    ``noise.log_uniform(5, sigma_min=.1, sigma_max=1)``, tell which of several columns that depend on each other is off.
    """
    check_denoiser(denoise, x, levels, "the error of elements")

    def of_level(inputs):
        key, level = inputs

        def of_draw(key):
            noise = jax.random.normal(key, (1, *x.shape[1:]), x.dtype)
            estimate = denoise(add_noise(x, jnp.broadcast_to(noise, x.shape), level), level)
            return ((estimate - x) * expand(level.alpha / level.sigma, x)) ** 2

        return jnp.mean(jax.lax.map(of_draw, jax.random.split(key, draws)), axis=0)

    keys = jax.random.split(key, len(levels))
    return jnp.mean(jax.lax.map(of_level, (keys, levels.to(x.dtype))), axis=0)


def repair(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    score: RowScore,
    limit: Float[Array, ""] | float,
    importance: Float[Array, "batch *sample"],
    sizes: Sequence[int] | None = None,
    draws: int = 8,
) -> Counterfactual:
    """The nearest normal version: the fewest elements, those that fit least, filled in anew from the rest of the row.

    For every number of elements in ``sizes`` the most important ones are in-painted ``draws`` times (``scoring.inpaint``); of the
    versions with ``score <= limit`` one with the fewest changed elements is taken, and of those the closest. The noise is shared by all
    rows, so a row's repair depends on that row alone. Where nothing is valid, the version with the lowest score comes back.

    Args:
        levels: of the in-painting: [steps], cleanest first, ending where the noise drowns the data.
        importance: what to change first, larger = sooner: z-scores of ``element_error``, a map of an image detector (smoothed, so that
            masks are patches). For images the channels of a pixel are added and change together.
        sizes: numbers of elements (of pixels) to try; None: six from 1 (a hundredth) to half of them.

    Evaluations per row: ``sizes * draws * steps``.

    Raises:
        ValueError: an importance of another shape, sizes out of range, no draw, levels that are no path, or a denoiser of rows of
            another shape.

    >>> from jaxad import closed_form, noise
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(3), jnp.eye(3) * 0.1 + 0.9)
    >>> made = repair(
    ...     jax.random.key(0), denoise, jnp.array([[1.0, 1.1, -4.0]]), noise.log_uniform(20, sigma_min=0.05, sigma_max=20.0),
    ...     score=lambda rows: jnp.var(rows, axis=1), limit=0.3, importance=jnp.array([[0.1, 0.2, 9.0]]),
    ... )
    >>> made.valid.tolist(), made.mask.tolist(), bool(abs(made.x[0, 2] - 1) < 1)
    ([True], [[False, False, True]], True)
    """
    check_denoiser(denoise, x, levels, "repair")
    if draws < 1:
        raise ValueError(f"repair needs at least one draw for each mask, got {draws=}")
    masks = _most_important(importance, x, sizes, "repair")

    def one(inputs):
        key, mask = inputs
        return inpaint(key, denoise, x, mask, levels)

    keys = jax.random.split(key, len(masks) * draws)
    versions = jax.lax.map(one, (keys, jnp.repeat(masks, draws, axis=0)))
    return _nearest(x, versions, jnp.repeat(jnp.arange(len(masks)), draws), score, limit, sign=1)


def nearest_anomaly(
    x: Float[Array, "batch *sample"],
    *,
    score: RowScore,
    limit: Float[Array, ""] | float,
    sizes: Sequence[int] | None = None,
    furthest: float = 3.0,
    steps: int = 30,
) -> Counterfactual:
    """The nearest anomalous version: the fewest elements, those the score feels most, moved just over ``limit``.

    For every number of elements in ``sizes`` those with the largest gradient move along it (``guided.reach``) until the score is the limit
    and a hundredth more. Of the versions that get there with no element moved by more than ``furthest`` (in units of ``x``) one with the
    fewest elements is taken. Nothing is random. A row at which the score is flat has no such version: ``valid`` is False.

    Raises:
        ValueError: sizes out of range, or a score that is not one number per row.

    >>> made = nearest_anomaly(jnp.array([[1.0, 0.1]]), score=lambda rows: jnp.sum(rows**2, axis=1), limit=4.0, sizes=[1])
    >>> made.mask.tolist(), bool(abs(made.x[0, 0] - 2) < 0.05)
    ([[True, False]], True)
    """
    value, back = jax.vjp(score, x)
    if value.shape != x.shape[:1]:
        raise ValueError(f"a score is one number for each of the {x.shape[0]} rows, got shape {value.shape}")
    masks = _most_important(jnp.abs(back(jnp.ones_like(value))[0]), x, sizes, "the nearest anomaly")
    target = limit + 0.01 * jnp.abs(limit)
    versions = jax.lax.map(lambda mask: reach(score, x, target, steps=steps, mask=mask), masks)
    moved = jnp.max(jnp.abs(versions - x[None]), axis=tuple(range(2, versions.ndim)))
    return _nearest(x, versions, jnp.arange(len(masks)), score, limit, sign=-1, allowed=moved <= furthest)


def _most_important(importance, x, sizes, what) -> Bool[Array, "sizes batch *sample"]:
    """The ``size`` most important elements (pixels) of each row, for every size."""
    if importance.shape != x.shape:
        raise ValueError(f"{what} needs an importance of the shape of the rows, {x.shape}, got {importance.shape}")
    pixels = importance.sum(axis=-1) if x.ndim == 4 else importance
    flat = pixels.reshape(x.shape[0], -1)
    places = flat.shape[1]
    if sizes is None:
        first = 1 if x.ndim == 2 else max(1, places // 100)
        sizes = np.unique(np.geomspace(first, max(first, places // 2), 6).round().astype(int)).tolist()
    if not len(sizes) or not all(1 <= size < places for size in sizes):
        raise ValueError(f"{what} changes from 1 to {places - 1} of the {places} elements of a row, got {list(sizes)}")
    rank = jnp.argsort(jnp.argsort(-flat, axis=1), axis=1).reshape(pixels.shape)
    masks = jnp.stack([rank < size for size in sorted(sizes)])
    return jnp.broadcast_to(masks[..., None], (*masks.shape, x.shape[-1])) if x.ndim == 4 else masks


def _nearest(x, versions, size, score, limit, *, sign, allowed: Any = True) -> Counterfactual:
    """Of ``versions [versions, batch, *sample]`` the valid one of the smallest ``size [versions]`` and distance; else the best score."""
    scores = sign * jax.lax.map(score, versions)  # the lower, the better
    valid = (scores <= sign * limit) & allowed
    distance = jnp.sqrt(jnp.sum((versions - x[None]) ** 2, axis=tuple(range(2, versions.ndim))))
    order = jnp.where(valid, size[:, None] + distance / (1 + distance), jnp.inf)
    found = valid.any(axis=0)
    chosen = jnp.where(found, jnp.argmin(order, axis=0), jnp.argmin(scores, axis=0))
    rows = jnp.arange(x.shape[0])
    own = score(x)
    done = sign * own <= sign * limit
    new = jnp.where(expand(done.astype(x.dtype), x) > 0, x, versions[chosen, rows])
    change = new - x
    return Counterfactual(new, change != 0, change, jnp.where(done, own, sign * scores[chosen, rows]), found | done)
