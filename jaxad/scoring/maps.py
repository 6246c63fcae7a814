"""Maps: where in an image is the error? One number per pixel, from the same pass and the same noise as the score."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxad.coarse import along_height_and_width, gaussian_blur
from jaxad.denoising import Denoise
from jaxad.noise import NoiseLevel, add_noise, noise_from_clean
from jaxad.scoring.draws import MEMORY_BUDGET, Draw, check_images, over_levels_and_draws


def reconstruction_error_map(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch height width channels"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    draw: Draw = jax.random.normal,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch height width"]:
    """Squared error of the one-jump reconstruction at every pixel, mean over channels: what ``reconstruction_error`` is the mean of.

    The same key gives the same noise, so ``map.mean(axis=(2, 3))`` is that score and need not be computed again. ``draw`` is the
    noise's distribution: that of training. In the units of ``x`` squared. Evaluations per row: ``levels * draws``.

    Raises:
        ValueError: rows that are no images.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import noise, scoring
    >>> def denoise(noisy, level):  # all normal images are black
    ...     return jnp.zeros_like(noisy)
    >>> x = jnp.zeros((1, 4, 4, 3)).at[0, 1, 2].set(2.0)
    >>> error = reconstruction_error_map(jax.random.key(0), denoise, x, noise.cosine(10)[4:6])
    >>> error.shape, float(error[0, 0, 1, 2]), float(error[0].sum())
    ((2, 1, 4, 4), 4.0, 4.0)
    """
    check_images(x, "a reconstruction error map")

    def one(_, noise, level):
        return jnp.mean((denoise(add_noise(x, noise, level), level) - x) ** 2, axis=-1)

    return over_levels_and_draws(one, key, x, levels, draws, memory_budget, draw=draw, per_row=x.shape[1:3])


def denoising_error_map(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch height width channels"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    draw: Draw = jax.random.normal,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch height width"]:
    """Squared error of the predicted noise at every pixel, mean over channels: what ``denoising_error`` is the mean of.

    At each level it is ``SNR`` times the ``reconstruction_error_map``. Evaluations per row: ``levels * draws``.

    Raises:
        ValueError: rows that are no images.
    """
    check_images(x, "a denoising error map")

    def one(_, noise, level):
        noisy = add_noise(x, noise, level)
        return jnp.mean((noise_from_clean(denoise(noisy, level), noisy, level) - noise) ** 2, axis=-1)

    return over_levels_and_draws(one, key, x, levels, draws, memory_budget, draw=draw, per_row=x.shape[1:3])


def smooth(maps: Float[Array, "*batch height width"], sigma: float) -> Float[Array, "*batch height width"]:
    """Blur maps with a Gaussian of ``sigma`` pixels, the edges mirrored: constants and the mean of a map stay what they are.

    Published maps are smoothed with sigma = 4 at 224 to 256 pixels (Roth et al. 2022; Mousakhan et al. 2023).

    Raises:
        ValueError: a negative sigma, or maps without height and width.

    >>> import jax.numpy as jnp
    >>> spot = jnp.zeros((5, 5)).at[0, 0].set(1.0)
    >>> blurred = smooth(spot, 1.0)
    >>> bool(blurred[0, 0] < 0.5), round(float(blurred.sum()), 5)
    (True, 1.0)
    """
    maps = jnp.asarray(maps)
    if maps.ndim < 2:
        raise ValueError(f"smoothing needs maps of shape [..., height, width], got {maps.shape}")
    height, width = maps.shape[-2:]
    blurred = along_height_and_width(gaussian_blur(height, sigma), gaussian_blur(width, sigma), maps[..., None])
    return blurred[..., 0]
