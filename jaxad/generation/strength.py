"""Strength-controlled sampling: normal rows, drawn more widely than they lie."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxad.denoising import Denoise, Variance
from jaxad.generation.generated import Generated, Kind, check_denoiser, check_strength, generated, walked
from jaxad.noise import NoiseLevel, add_noise, expand, posterior


def measured_variance(
    key: Array, denoise: Denoise, x: Float[Array, "batch *sample"], levels: NoiseLevel, *, draws: int = 4
) -> Variance:
    """The reverse variance of each element that fits the denoiser at hand, measured on normal rows it was not trained on.

    ``beta~ + c_x^2 E (x - D(z))^2`` in the letters of formula (7): what the denoiser leaves open about a row is the spread that a reverse
    step has to add. Bao et al. (ICML 2022, arXiv 2206.07309) show it to be optimal also where the mean is imperfect; here it is averaged
    over ``z`` but kept apart for every element. Exact for Gaussian rows of independent columns. Works for any denoiser, no network of
    variances needed; ``denoising.make_learned_variance`` is the alternative for one trained with ``hybrid_loss``.

    Args:
        levels: those that will be sampled on; another level takes the variance of the nearest.
        draws: noise draws for each row. ``levels * draws`` evaluations per row, once.

    Raises:
        ValueError: levels that are no path, or a denoiser of rows of another shape.

    >>> from jaxad import closed_form, noise
    >>> levels, x = noise.linear(1000)[::100], jax.random.normal(jax.random.key(0), (2000, 1))
    >>> variance = measured_variance(jax.random.key(1), closed_form.gaussian_denoiser([0.0], [[1.0]]), x, levels)
    >>> cleaner, noisier = levels[3].to(jnp.float32), levels[4].to(jnp.float32)
    >>> bool(abs(variance(x[:1], cleaner, noisier)[0, 0] / (1 - (noisier.alpha / cleaner.alpha) ** 2) - 1) < 0.1)  # fixed_large
    True
    """
    check_denoiser(denoise, x, levels, "the measured variance")

    def of_level(inputs):
        key, level = inputs

        def of_draw(key):
            noise = jax.random.normal(key, x.shape, x.dtype)
            return jnp.mean((x - denoise(add_noise(x, noise, level), level)) ** 2, axis=0)

        return jnp.mean(jax.lax.map(of_draw, jax.random.split(key, draws)), axis=0)

    table = jax.lax.map(of_level, (jax.random.split(key, len(levels)), levels.to(x.dtype)))
    log_snr = jnp.asarray(levels.log_snr, x.dtype)

    def variance(noisy, cleaner, noisier):
        left_open = table[jnp.argmin(jnp.abs(log_snr - noisier.log_snr))][None]
        step = posterior(cleaner, noisier)
        return expand(step.variance, noisy) + expand(step.from_clean**2, noisy) * left_open

    return variance


def strengthened(variance: Variance, strength) -> Variance:
    """``(1 + strength) variance``; ``strength`` is one number or one per row ``[batch]``."""
    return lambda noisy, cleaner, noisier: (1 + expand(strength, noisy)) * variance(noisy, cleaner, noisier)


def sdas(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    variance: Variance,
    strength: Float[Array | np.ndarray, " batch"] | float = 0.15,
) -> Generated:
    """Ancestral sampling whose every reverse variance is ``1 + strength`` times as large (SDAS; RealNet, Zhang et al., CVPR 2024).

    For rows from N(0, S) and the exact reverse variance the anomalies are N(0, (1 + strength) S), whatever the number of steps; 0 gives
    normal rows. Published: 20 steps, strengths drawn from U(.1, .2), which is mild: masks and blending (``blended``) do the rest there.

    Args:
        x: where rows begin: noised to ``levels[-1]``. Where that drowns the data only its shape matters, else the anomalies lie near ``x``.
        levels: [steps], cleanest first, such as ``noise.linear(1000)[::50]``.
        variance: of the reverse steps: ``measured_variance``, or that of a network with learned variance. ``sampling.fixed_small`` is too
            small for few steps (a spread of .70 where 1 is right, for 20).
        strength: from 0 to 10, one for all rows or one for each.

    Evaluations per row: ``steps``.

    Raises:
        ValueError: a strength out of range, levels that are no path, or a denoiser of rows of another shape.

    >>> from jaxad import closed_form, noise
    >>> levels, x = noise.linear(1000)[::100], jax.random.normal(jax.random.key(0), (4000, 1))
    >>> denoise = closed_form.gaussian_denoiser([0.0], [[1.0]])
    >>> variance = measured_variance(jax.random.key(1), denoise, x, levels)
    >>> anomalies = sdas(jax.random.key(2), denoise, x, levels, variance=variance, strength=1.0)
    >>> bool(abs(anomalies.x.var() - 2) < 0.2), bool(anomalies.mask.all())
    (True, True)
    """
    check_strength(strength, 0.0, 10.0, "strength-controlled sampling")
    check_denoiser(denoise, x, levels, "strength-controlled sampling")
    return generated(walked(key, denoise, x, levels, strengthened(variance, strength)), True, Kind.LOCAL)
