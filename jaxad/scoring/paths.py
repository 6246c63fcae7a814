"""Statistics of the path that DDIM inversion takes from a row to its noise."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxad.denoising import Denoise
from jaxad.noise import NoiseLevel, expand, noise_from_clean
from jaxad.scoring.draws import MEMORY_BUDGET, check_draws, check_schedule, safe_sqrt, sample_axes


def path_statistics(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "6 batch"]:
    """The six numbers of DiffPath (Heng et al., NeurIPS 2024, arXiv 2405.11881) along DDIM inversion over ``levels`` [steps].

    With ``eps_i`` the noise predicted at step i of n and ``delta_i = n (eps_{i+1} - eps_i)``, they are the sums over steps and
    elements of eps, eps^2, eps^3, delta, delta^2, delta^3: moments of the path's speed and of its curvature. ``x`` is read as lying at
    ``levels[0]``, as in ``sampling.ddim_inversion``. The odd ones have no sign of their own: combine with ``scoring.gmm`` (the
    paper's choice), ``knn`` or ``mahalanobis``, or with ``typicality``, which reads both tails.

    Deterministic: ``key`` and ``draws`` change nothing, and memory is a handful of copies of ``x`` whatever the budget. The paper takes
    10 steps, here ``noise.linear(1000)[::100]``, and needs no network trained on the data at hand. Evaluations per row: ``steps``.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import closed_form, noise
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(2), jnp.eye(2))
    >>> path_statistics(jax.random.key(0), denoise, jnp.ones((3, 2)), noise.linear(1000)[::100]).shape
    (6, 3)
    """
    check_draws(draws)
    check_schedule(levels, "a path")
    levels = levels.to(x.dtype)

    def estimate(z, level):
        clean = denoise(z, level)
        return clean, noise_from_clean(clean, z, level)

    def step(carry, level):
        clean, eps, sums = carry
        clean, next_eps = estimate(expand(level.alpha, x) * clean + expand(level.sigma, x) * eps, level)
        delta = (next_eps - eps) * len(levels)
        return (clean, next_eps, sums + jnp.concatenate([_moments(next_eps), _moments(delta)])), None

    clean, eps = estimate(x, levels[0])
    first = jnp.concatenate([_moments(eps), jnp.zeros((3, x.shape[0]), x.dtype)])
    (_, _, sums), _ = jax.lax.scan(step, (clean, eps, first), levels[1:])
    return sums


def path_curvature(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "1 batch"]:
    """DiffPath's single number: the root of the sum of ``delta^2`` in ``path_statistics``. Evaluations per row: ``steps``.

    How much the predicted noise changes along the path, 0 for a straight one. Normal rows have their own typical value, and anomalies
    may lie on either side of it: ``scoring.typicality`` reads both.
    """
    sums = path_statistics(key, denoise, x, levels, draws=draws, memory_budget=memory_budget)
    return safe_sqrt(sums[4:5])


def _moments(values):
    return jnp.stack([jnp.sum(values**power, axis=sample_axes(values)) for power in (1, 2, 3)])
