"""Score norms: how far, in units of the noise, does the denoiser pull a row that was not made noisy?"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxad.denoising import Denoise
from jaxad.noise import NoiseLevel, expand
from jaxad.scoring.draws import MEMORY_BUDGET, check_draws, over_levels_and_draws, safe_sqrt, sample_axes


def score_norm(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch"]:
    """``sigma |grad log p_sigma(x)|`` at the clean row itself, the features of MSMA (Mahmood et al., ICLR 2021, arXiv 2010.13132).

    By Tweedie it is ``|D(x) - x| / sigma`` in the coordinates ``z / alpha``, where sigma is ``sigma / alpha``: the Euclidean length, in
    noise standard deviations, of what the denoiser corrects. Normal rows lie near ``sqrt(elements)`` where sigma exceeds the data's
    spread in no direction, below it elsewhere. No noise is drawn: ``key`` and ``draws`` change nothing. MSMA combines the levels with
    ``scoring.gmm`` or ``scoring.knn``. Evaluations per row: ``levels``.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import closed_form, noise
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(2), jnp.eye(2))
    >>> score_norm(jax.random.key(0), denoise, jnp.array([[3.0, 4.0]]), noise.NoiseLevel(jnp.ones(1), jnp.ones(1)))  # 5 * 1 / (1 + 1)
    Array([[2.5]], dtype=float32)
    """
    return safe_sqrt(_square_norm(key, denoise, x, levels, draws, memory_budget))


def log_score_norm(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch"]:
    """The natural logarithm of ``score_norm``, for combinations that expect something like a Gaussian.

    Where the norm is 0 the logarithm is about -44 in float32, not ``-inf``. Evaluations per row: ``levels``.
    """
    return jnp.log(score_norm(key, denoise, x, levels, draws=draws, memory_budget=memory_budget))


def _square_norm(key, denoise, x, levels, draws, memory_budget):
    check_draws(draws)

    def one(_key, _noise, level):
        correction = denoise(expand(level.alpha, x) * x, level) - x
        return jnp.sum(correction**2, axis=sample_axes(x)) * (level.alpha / level.sigma) ** 2

    return over_levels_and_draws(one, key, x, levels, 1, memory_budget)
