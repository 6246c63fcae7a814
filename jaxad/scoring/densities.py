"""Densities: the variational bound and the likelihood of a row, and the noise level at which it would be most at home.

The last two follow the score, ``grad log p_sigma(x) = (D(x, sigma) - x) / sigma^2`` in the coordinates ``z / alpha``, and need its
divergence: the trace of the denoiser's Jacobian, taken from Jacobian-vector products. All three are in nats.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxad.denoising import Denoise
from jaxad.noise import NoiseLevel, add_noise
from jaxad.scoring.draws import (
    MEMORY_BUDGET,
    check_draws,
    check_schedule,
    map_in_groups,
    mean_square,
    over_levels_and_draws,
    sample_axes,
)
from jaxad.training import vlb_terms

EXACT_TRACE = 32
"""Up to this many elements per row the trace is computed column by column instead of estimated."""


def variational_bound(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch"]:
    """The terms of the variational bound on the negative log-likelihood (Ho et al. 2020, eq. 5), nats per element, by level.

    Entry 0 is the decoder, ``-log N(x; estimate, beta tilde_1)`` of continuous data; entry i is the KL divergence of the reverse step from
    level i to i - 1, its variance the fixed small one; the last entry also holds the prior's, KL to N(0, alpha^2 + sigma^2). The sum
    over levels bounds the negative log-likelihood from above, in expectation over the noise and for every choice of levels; few levels
    make a coarser bound. Spread them evenly in log-SNR: of 50 levels of ``noise.linear(1000)[::20]`` the first step alone costs 20
    nats per element, of ``noise.log_uniform(50, sigma_min=.02, sigma_max=20)`` all of them together lose 1.2. The noise is shared by
    all rows. Evaluations per row: ``levels * draws``.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import closed_form, noise
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(1), jnp.eye(1))
    >>> levels = noise.log_uniform(50, sigma_min=0.02, sigma_max=20)
    >>> terms = variational_bound(jax.random.key(0), denoise, jnp.zeros((1, 1)), levels, draws=8)
    >>> terms.shape, bool(terms.sum() > 0.5 * jnp.log(2 * jnp.pi))
    ((50, 1), True)
    """
    check_schedule(levels, "the variational bound")
    levels = levels.to(x.dtype)

    def one(_, noise, index):
        level = levels[index]
        clean = denoise(add_noise(x, noise, level), level)
        return vlb_terms(clean, None, x, jnp.broadcast_to(index, x.shape[:1]), levels)

    terms = over_levels_and_draws(one, key, x, jnp.arange(len(levels)), draws, memory_budget)
    last = levels[-1]
    variance = last.alpha**2 + last.sigma**2
    noise_share = last.sigma**2 / variance
    prior = 0.5 * (noise_share - 1 - jnp.log(noise_share) + last.alpha**2 / variance * mean_square(x))
    return terms.at[-1].add(prior)


def negative_log_likelihood(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    exact: bool | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "1 batch"]:
    """``-log p(x)`` in nats (per row, not per element) by the probability-flow ODE (Song et al., ICLR 2021, eq. 39).

    The row is carried along ``dx / d log sigma = x - D(x, sigma)`` from the cleanest level to the noisiest by Heun's method, one step
    per pair of levels, and the divergence is integrated with it: second order in the step of log sigma. What comes out is the density of
    the data blurred by the cleanest level, which must be small beside the data's detail; at the noisiest level the density is taken to
    be N(0, 1 + sigma^2), so that sigma must be large beside the data's spread: ``noise.log_uniform(33, sigma_min=.02, sigma_max=40)``
    for standardised tables ranks rows; it is about 4% off for a row of 11 nats from N(0, I), four times as many levels .3%.

    Args:
        draws: Rademacher probes of Hutchinson's trace estimate, each fixed along the whole trajectory and shared by all rows.
        exact: take the whole trace instead (``draws`` then changes nothing); None: for at most 32 elements.

    Evaluations per row: ``2 (levels - 1)``, each with ``draws`` (exact: one per element) Jacobian-vector products.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import closed_form, noise
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(1), jnp.eye(1))
    >>> levels = noise.log_uniform(33, sigma_min=0.02, sigma_max=40)
    >>> nll = negative_log_likelihood(jax.random.key(0), denoise, jnp.zeros((1, 1)), levels)
    >>> nll.shape, bool(abs(nll[0, 0] - 0.5 * jnp.log(2 * jnp.pi)) < 0.01)
    ((1, 1), True)
    """
    check_schedule(levels, "the likelihood")
    probes = _probes(key, x, draws, exact)
    log_sigma = _log_sigma(levels, x.dtype)
    elements = math.prod(x.shape[1:])

    def slope(z, log_sigma):
        clean, trace = _estimate_and_trace(denoise, z, jnp.exp(log_sigma), probes, memory_budget)
        return z - clean, elements - trace

    def step(carry, pair):
        z, growth = carry
        here, there = pair
        first, first_divergence = slope(z, here)
        second, second_divergence = slope(z + (there - here) * first, there)
        half = 0.5 * (there - here)
        return (z + half * (first + second), growth + half * (first_divergence + second_divergence)), None

    start = (x, jnp.zeros(x.shape[0], x.dtype))
    (z, growth), _ = jax.lax.scan(step, start, (log_sigma[:-1], log_sigma[1:]))
    variance = 1 + jnp.exp(2 * log_sigma[-1])
    square = jnp.sum(z**2, axis=sample_axes(z))
    return (0.5 * (square / variance + elements * jnp.log(2 * jnp.pi * variance)) - growth)[None]


def time_posterior(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    exact: bool | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "2 batch"]:
    """Which noise level made this row? Mean of log sigma under the posterior over the levels, and that posterior's entropy in nats.

    Diffusion time estimation (Livernoche et al., ICLR 2024) asks a network of its own; here the answer comes from the denoiser. At
    fixed x the density obeys the heat equation, ``d log p_sigma(x) / d log sigma = sigma^2 (div s + |s|^2)`` with s the score,
    integrated over the levels by the trapezoid rule. The prior is uniform in log sigma between the cleanest and the noisiest
    level (each level stands for its share of that interval). The mean lies in [log sigma_min, log sigma_max] and grows with the
    distance from the data; the entropy lies in [0, log levels] and is 0 where one level explains the row alone.

    Args:
        draws: Rademacher probes of the divergence, shared by all rows and levels.
        exact: take the whole trace instead (``draws`` then changes nothing); None: for at most 32 elements.

    Evaluations per row: ``levels``, each with ``draws`` (exact: one per element) Jacobian-vector products.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import closed_form, noise
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(3), jnp.eye(3))
    >>> x = jnp.array([[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]])
    >>> near, far = time_posterior(jax.random.key(0), denoise, x, noise.log_uniform(33, sigma_min=0.05, sigma_max=20))[0]
    >>> bool(near < far)
    True
    """
    check_schedule(levels, "the posterior of the noise level")
    probes = _probes(key, x, draws, exact)
    log_sigma = _log_sigma(levels, x.dtype)
    elements = math.prod(x.shape[1:])

    def growth(log_sigma):
        sigma = jnp.exp(log_sigma)
        clean, trace = _estimate_and_trace(denoise, x, sigma, probes, memory_budget)
        return trace - elements + jnp.sum(((clean - x) / sigma) ** 2, axis=sample_axes(x))

    rates = map_in_groups(growth, log_sigma, x, memory_budget // max(1, len(probes)))
    widths = jnp.diff(log_sigma)
    # Summed from the noisy end, where rates are small: a far row's rates at clean levels would swallow the digits of all others.
    increments = 0.5 * widths[:, None] * (rates[1:] + rates[:-1])
    log_density = -jnp.cumsum(increments[::-1], axis=0)[::-1]
    log_density = jnp.concatenate([log_density, jnp.zeros_like(log_density[:1])])
    shares = 0.5 * (jnp.pad(widths, (0, 1)) + jnp.pad(widths, (1, 0)))
    log_posterior = jax.nn.log_softmax(log_density + jnp.log(shares)[:, None], axis=0)
    posterior = jnp.exp(log_posterior)
    mean = jnp.sum(posterior * log_sigma[:, None], axis=0)
    entropy = -jnp.sum(posterior * log_posterior, axis=0)
    return jnp.stack([mean, entropy])


def _log_sigma(levels: NoiseLevel, dtype):
    """log(sigma / alpha), formula (2) of ``noise``."""
    return jnp.asarray(-0.5 * levels.log_snr, dtype)


def _probes(key, x, draws, exact):
    """Directions v [probes, 1, *sample] with ``sum_v v' J v``, or its expectation, equal to the trace of J."""
    check_draws(draws)
    elements = math.prod(x.shape[1:])
    if exact or (exact is None and elements <= EXACT_TRACE):
        return jnp.eye(elements, dtype=x.dtype).reshape(elements, 1, *x.shape[1:])
    return jax.random.rademacher(key, (draws, 1, *x.shape[1:]), x.dtype) / math.sqrt(draws)


def _estimate_and_trace(denoise, x, sigma, probes, memory_budget):
    """``(D(x, sigma), trace of dD/dx per row)`` in the coordinates ``z / alpha``."""
    level = NoiseLevel(jnp.ones_like(sigma), sigma)
    clean, push = jax.linearize(lambda z: denoise(z, level), x)

    def one(probe):
        # One direction for all rows at once: each row of the result is that row's own Jacobian times the probe.
        direction = jnp.broadcast_to(probe, x.shape)
        return jnp.sum(direction * push(direction), axis=sample_axes(x))

    return clean, map_in_groups(one, probes, x, memory_budget).sum(axis=0)
