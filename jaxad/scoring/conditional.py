"""Conditional scores: can a part of a row be told from the rest of it?"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxad.denoising import Denoise
from jaxad.noise import NoiseLevel, add_noise, expand
from jaxad.scoring.draws import MEMORY_BUDGET, check_schedule, over_levels_and_draws, sample_axes


def inpaint(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    mask: Bool[Array, "..."],
    levels: NoiseLevel,
) -> Float[Array, "batch *sample"]:
    """Fill in the masked elements of ``x`` given the others, by replacement (RePaint, Lugmayr et al., CVPR 2022, without resampling).

    The masked elements start as pure noise at ``levels[-1]``. At every level the row is denoised, the known elements of the estimate are
    replaced by their true values, and the whole is noised afresh to the next cleaner level. (With deterministic DDIM steps instead, a
    masked element hardly forgets the noise it began with: for two columns of correlation .9 and 20 levels the filling then misses the
    conditional mean by 1.14 instead of .45.) What comes back has the known elements of ``x`` to the bit. The noise is shared by all
    rows, so that a row's filling is a function of that row alone; for several fillings, ``vmap`` over keys.

    Args:
        mask: True where to fill in; of the shape of ``x`` or of one sample.
        levels: [steps], cleanest first; at the last one the noise should drown the data.

    Evaluations per row: ``steps``.

    Raises:
        ValueError: a mask of another shape, or levels that are no path.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import closed_form, noise
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(2), jnp.array([[1.0, 0.99], [0.99, 1.0]]))
    >>> levels = noise.log_uniform(20, sigma_min=0.02, sigma_max=20)
    >>> filled = inpaint(jax.random.key(0), denoise, jnp.array([[2.0, -7.0]]), jnp.array([False, True]), levels)
    >>> float(filled[0, 0]), bool(abs(filled[0, 1] - 2) < 0.5)  # what stood under the mask was not used
    (2.0, True)
    """
    check_schedule(levels, "in-painting")
    mask = jnp.asarray(mask, bool)
    if mask.shape not in (x.shape, x.shape[1:]):
        raise ValueError(
            f"the mask must have the shape of the rows, {x.shape}, or of one, {x.shape[1:]}, got {mask.shape}"
        )
    noise = jax.random.normal(key, (len(levels), *x.shape[1:]), x.dtype)
    return _fill(denoise, x, jnp.broadcast_to(mask, x.shape), levels.to(x.dtype), noise)


def _fill(denoise, x, mask, levels: NoiseLevel, noise):
    """``inpaint`` with given noise [steps, *sample] and a mask of the shape of ``x``."""

    def step(z, inputs):
        noise, cleaner, noisier = inputs
        return add_noise(jnp.where(mask, denoise(z, noisier), x), noise[None], cleaner), None

    last = levels[-1]
    # Pure noise with the spread that unit-variance data has at this level.
    start = expand((last.alpha**2 + last.sigma**2) ** 0.5, x) * jnp.broadcast_to(noise[-1], x.shape)
    z = jnp.where(mask, start, add_noise(x, noise[-1:], last))
    z, _ = jax.lax.scan(step, z, (noise[:-1], levels[:-1], levels[1:]), reverse=True)
    return jnp.where(mask, denoise(z, levels[0]), x)


def conditional_error(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    num_groups: int | None = None,
    draws: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "groups batch"]:
    """Groups of elements masked in turn and filled in given the rest (``inpaint``): mean squared error over what was masked.

    A row whose every column is ordinary by itself, but not beside the others, is given away by the column that the others contradict;
    and no row can pass by being copied, since what is compared was never shown. The partition into groups is random, drawn from the
    key, the same for all rows; every element is masked exactly once. In the units of ``x`` squared.

    Args:
        levels: [steps], cleanest first, ending where the noise drowns the data: ``noise.log_uniform(20, sigma_min=.05, sigma_max=20)``.
        num_groups: from 2 to the number of elements; None: 5, or one per element where there are fewer.

    Evaluations per row: ``groups * steps * draws``.

    Raises:
        ValueError: fewer than 2 groups, or more groups than elements.
    """
    check_schedule(levels, "the conditional error")
    elements = math.prod(x.shape[1:])
    num_groups = max(2, min(5, elements)) if num_groups is None else num_groups
    if not 2 <= num_groups <= elements:
        raise ValueError(
            f"the conditional error needs between 2 groups and one per element (here {elements}), got {num_groups=}; "
            "a row of a single element has no rest to be told from"
        )
    levels = levels.to(x.dtype)
    partition_key, noise_key = jax.random.split(key)
    group = jax.random.permutation(partition_key, jnp.arange(elements) % num_groups).reshape(x.shape[1:])
    masks = jnp.stack([group == index for index in range(num_groups)])

    def one(_, noise, mask):
        mask = jnp.broadcast_to(mask, x.shape)
        gap = _fill(denoise, x, mask, levels, noise) - x
        # The known elements are exact and add nothing.
        return jnp.sum(gap**2, axis=sample_axes(x)) / jnp.sum(mask, axis=sample_axes(x))

    return over_levels_and_draws(one, noise_key, x, masks, draws, memory_budget, copies=len(levels))
