"""Samplers, one function each: ``(key, denoise, noisy, levels, ...) -> clean``.

``levels`` is cleanest first; ``noisy`` lives at the last one. Every sampler walks down to ``levels[0]`` and returns the denoiser's
estimate there, so all of them spend ``len(levels)`` evaluations (Heun: ``2 len(levels) - 1``). To keep 50 of 1,000 steps, index the
schedule: the coefficients follow from whatever levels are kept. Formula numbers refer to ``jaxad.noise``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxad.denoising import Denoise, Variance
from jaxad.noise import NoiseLevel, expand, noise_from_clean, posterior, transition_variance


def fixed_small(noisy, cleaner: NoiseLevel, noisier: NoiseLevel):
    """The variance of ``q(z_s | z_t, x)`` itself, formula (7): right for data concentrated in a point (DDPM's beta tilde)."""
    return expand(posterior(cleaner, noisier).variance, noisy)


def fixed_large(noisy, cleaner: NoiseLevel, noisier: NoiseLevel):
    """The variance that the forward step added, formula (6): right for unit-variance white data (DDPM's beta)."""
    return expand(transition_variance(cleaner, noisier), noisy)


def no_variance(noisy, cleaner: NoiseLevel, noisier: NoiseLevel):
    """Mean-only reverse steps. For Gaussian data the whole chain then telescopes to one posterior mean."""
    return jnp.zeros((), noisy.dtype)


def _pairs(levels: NoiseLevel, dtype):
    """(cleaner, noisier) for every step from the noisiest level down to ``levels[0]``."""
    return levels[:-1][::-1].to(dtype), levels[1:][::-1].to(dtype)


def ancestral(
    key: Array,
    denoise: Denoise,
    noisy: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    variance: Variance = fixed_small,
) -> Float[Array, "batch *sample"]:
    """DDPM's ancestral sampling (Ho et al. 2020, algorithm 2) between the given levels, formula (7).

    ``variance`` is ``fixed_small``, ``fixed_large``, ``no_variance`` or ``denoising.make_learned_variance(network, params)``.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import closed_form, noise
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(2), jnp.eye(2))
    >>> key, start_key = jax.random.split(jax.random.key(0))
    >>> ancestral(key, denoise, jax.random.normal(start_key, (4, 2)), noise.linear(1000)[::20]).shape
    (4, 2)
    """
    q = posterior(levels[:-1], levels[1:])  # float64 when the levels are a host table
    q = jax.tree.map(lambda coefficient: jnp.asarray(coefficient, noisy.dtype)[::-1], q)

    def step(z, inputs):
        index, (cleaner, noisier), (from_noisy, from_clean, _) = inputs
        mean = from_noisy * z + from_clean * denoise(z, noisier)
        spread = jnp.sqrt(variance(z, cleaner, noisier))
        return mean + spread * jax.random.normal(jax.random.fold_in(key, index), z.shape, z.dtype), None

    z, _ = jax.lax.scan(step, noisy, (jnp.arange(len(levels) - 1), _pairs(levels, noisy.dtype), tuple(q)))
    return denoise(z, levels[0].to(z.dtype))


def ddim(
    key: Array, denoise: Denoise, noisy: Float[Array, "batch *sample"], levels: NoiseLevel, *, eta: float = 0.0
) -> Float[Array, "batch *sample"]:
    """DDIM (Song et al. 2021, eq. 12). ``eta=0`` is deterministic and first order; ``eta=1`` is ancestral sampling.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import closed_form, noise
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(1), 4 * jnp.eye(1))
    >>> ddim(jax.random.key(0), denoise, jnp.ones((1, 1)), noise.cosine(1000)[::10]).round(1)  # nearly 2, the data's spread
    Array([[2.]], dtype=float32)
    """

    def step(z, inputs):
        index, (cleaner, noisier) = inputs
        clean = denoise(z, noisier)
        eps = noise_from_clean(clean, z, noisier)
        if not eta:
            return cleaner.alpha * clean + cleaner.sigma * eps, None
        fresh = eta**2 * posterior(cleaner, noisier).variance
        kept = jnp.sqrt(jnp.maximum(cleaner.sigma**2 - fresh, 0.0))
        draw = jax.random.normal(jax.random.fold_in(key, index), z.shape, z.dtype)
        return cleaner.alpha * clean + kept * eps + jnp.sqrt(fresh) * draw, None

    z, _ = jax.lax.scan(step, noisy, (jnp.arange(len(levels) - 1), _pairs(levels, noisy.dtype)))
    return denoise(z, levels[0].to(z.dtype))


def ddim_inversion(
    denoise: Denoise, clean: Float[Array, "batch *sample"], levels: NoiseLevel
) -> Float[Array, "batch *sample"]:
    """Run DDIM backwards: from a clean sample, read as lying at ``levels[0]``, to its latent at ``levels[-1]`` (first order)."""

    def step(z, inputs):
        cleaner, noisier = inputs
        estimate = denoise(z, cleaner)
        return noisier.alpha * estimate + noisier.sigma * noise_from_clean(estimate, z, cleaner), None

    z, _ = jax.lax.scan(step, clean, (levels[:-1].to(clean.dtype), levels[1:].to(clean.dtype)))
    return z


def heun(
    key: Array, denoise: Denoise, noisy: Float[Array, "batch *sample"], levels: NoiseLevel, *, churn: float = 0.0
) -> Float[Array, "batch *sample"]:
    """EDM's second-order sampler (Karras et al. 2022, algorithm 2), in coordinates ``z / alpha`` where every schedule explodes.

    ``churn`` is their S_churn: the share of fresh noise per step, at most ``sqrt(2) - 1`` of the present one; 0 is deterministic.
    The final step to sigma = 0 is an Euler step, which is the denoiser's estimate. Two slopes cannot bridge a cliff: leave out the
    clipped last level of ``noise.sigmoid``, whose ``sigma / alpha`` is hundreds of times its neighbour's.
    """
    num_steps = len(levels)
    gamma = min(churn / num_steps, 2**0.5 - 1)

    def slope(z, sigma):
        return (z - denoise(z, NoiseLevel(jnp.ones_like(sigma), sigma))) / sigma

    def step(z, inputs):
        index, sigma, next_sigma = inputs
        if gamma:
            raised = sigma * (1 + gamma)
            draw = jax.random.normal(jax.random.fold_in(key, index), z.shape, z.dtype)
            z, sigma = z + jnp.sqrt(raised**2 - sigma**2) * draw, raised
        first = slope(z, sigma)
        euler = z + (next_sigma - sigma) * first
        return z + (next_sigma - sigma) * 0.5 * (first + slope(euler, next_sigma)), None

    sigmas = jnp.asarray((levels.sigma / levels.alpha)[::-1], noisy.dtype)
    z = noisy / jnp.asarray(levels.alpha[-1], noisy.dtype)
    z, _ = jax.lax.scan(step, z, (jnp.arange(num_steps - 1), sigmas[:-1], sigmas[1:]))
    return denoise(z, NoiseLevel(jnp.ones_like(sigmas[-1]), sigmas[-1]))


def dpmpp_2m(
    denoise: Denoise, noisy: Float[Array, "batch *sample"], levels: NoiseLevel
) -> Float[Array, "batch *sample"]:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): second order with one evaluation per step, deterministic.

    The first step and the last (to clean) are first order.
    """
    half_log_snr = 0.5 * levels.log_snr[::-1]
    h = jnp.asarray(half_log_snr[1:] - half_log_snr[:-1], noisy.dtype)
    previous_h = jnp.concatenate([h[:1], h[:-1]])

    def step(carry, inputs):
        z, previous = carry
        index, h, previous_h, (cleaner, noisier) = inputs
        clean = denoise(z, noisier)
        slope = jnp.where(index > 0, 0.5 * h / previous_h, 0.0)
        extrapolated = clean + slope * (clean - previous)
        z = cleaner.sigma / noisier.sigma * z - cleaner.alpha * jnp.expm1(-h) * extrapolated
        return (z, clean), None

    inputs = (jnp.arange(len(levels) - 1), h, previous_h, _pairs(levels, noisy.dtype))
    (z, _), _ = jax.lax.scan(step, (noisy, jnp.zeros_like(noisy)), inputs)
    return denoise(z, levels[0].to(z.dtype))
