"""Scores: ``(key, denoise, x, levels, ...) -> [levels, batch]``, larger = more anomalous, all from one trained denoiser.

Two promises hold for every score here. *A row's score is a function of that row alone*: the noise is drawn once, with the shape of
one sample, and shared by all rows, so batch, order and device count do not matter and differences between rows are not blurred by
different noise. *Memory is bounded*: levels and draws are ``vmap``ped in groups whose noisy copies of ``x`` fit in ``memory_budget``
bytes, the rest is looped with ``lax.map`` (the network's activations come on top, about ``width / features`` times as much).

Scores of one jump take ``levels`` of shape ``[levels]``; scores that walk back step by step take paths of shape
``[levels, steps]`` (``noise.reverse_paths``), one row per starting level.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxad.denoising import Denoise, Variance
from jaxad.noise import NoiseLevel, add_noise, noise_from_clean
from jaxad.sampling import ancestral, ddim, fixed_small, no_variance

MEMORY_BUDGET = 256 * 2**20
"""Bytes that the noisy copies of ``x`` may take at once unless the caller says otherwise: 256 MiB."""

Score = Callable[[Array, Denoise, Array, NoiseLevel], Array]


def _over_levels_and_draws(score_one, key, x, levels: NoiseLevel, draws: int, memory_budget: int):
    """Average ``score_one(key, noise, level) -> [batch]`` over shared noise draws, for each entry of the leading axis of levels.

    Draws come in antithetic pairs (noise and its negative), which cancels the odd part of the error.
    """
    if draws < 1:
        raise ValueError(f"a score needs at least one noise draw, got {draws=}")
    num_levels = len(levels)
    levels = levels.to(x.dtype)

    def one(index):
        level_index, draw = index // draws, index % draws
        draw_key = jax.random.fold_in(jax.random.fold_in(key, level_index), draw // 2)
        noise_key, path_key = jax.random.split(draw_key)
        noise = jnp.where(draw % 2 == 0, 1.0, -1.0).astype(x.dtype) * jax.random.normal(
            noise_key, (1, *x.shape[1:]), x.dtype
        )
        return score_one(path_key, noise, levels[level_index])

    together = max(1, int(memory_budget) // max(1, x.size * x.dtype.itemsize))
    indices = jnp.arange(num_levels * draws)
    scores = jax.vmap(one)(indices) if together >= len(indices) else jax.lax.map(one, indices, batch_size=together)
    return scores.reshape(num_levels, draws, x.shape[0]).mean(axis=1)


def _mean_square(difference):
    return jnp.mean(difference**2, axis=tuple(range(1, difference.ndim)))


def reconstruction_error(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch"]:
    """Reconstruction in one jump: noise ``x`` to each level, denoise once, mean squared error per element.

    Evaluations per row: ``levels * draws``. In the units of ``x`` squared.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import closed_form, noise
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(2), jnp.eye(2))
    >>> x = jnp.array([[0.0, 0.0], [6.0, 6.0]])
    >>> error = reconstruction_error(jax.random.key(0), denoise, x, noise.cosine(10)[4:6], draws=4)
    >>> error.shape, bool((error[:, 1] > error[:, 0]).all())
    ((2, 2), True)
    """

    def one(_, noise, level):
        return _mean_square(denoise(add_noise(x, noise, level), level) - x)

    return _over_levels_and_draws(one, key, x, levels, draws, memory_budget)


def denoising_error(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch"]:
    """The training loss per row and level: mean squared error of the predicted noise, ``SNR`` times the one-jump reconstruction error.

    For data from N(0, S) and the exact denoiser, normal rows average ``mean_k alpha^2 l_k / (alpha^2 l_k + sigma^2)`` over the
    eigenvalues ``l_k`` of S. Evaluations per row: ``levels * draws``.
    """

    def one(_, noise, level):
        noisy = add_noise(x, noise, level)
        return _mean_square(noise_from_clean(denoise(noisy, level), noisy, level) - noise)

    return _over_levels_and_draws(one, key, x, levels, draws, memory_budget)


def _along_paths(reverse, key, x, paths: NoiseLevel, draws, memory_budget, *, noised=True):
    """Mean squared difference between ``x`` and ``reverse(key, start, path)``, the path's own noise shared by all rows."""
    if jnp.ndim(paths.alpha) != 2:
        raise ValueError(
            f"scores along a reverse path need levels of shape [levels, steps], got {jnp.shape(paths.alpha)}; "
            "build them with noise.reverse_paths(schedule, starts, num_steps)"
        )

    def one(path_key, noise, path):
        start = add_noise(x, noise, path[-1]) if noised else x
        # vmapped over rows with the key left alone: what the sampler draws, it draws once and shares.
        restored = jax.vmap(lambda row: reverse(path_key, row[None], path)[0])(start)
        return _mean_square(restored - x)

    return _over_levels_and_draws(one, key, x, paths, draws, memory_budget)


def ddim_reconstruction_error(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    paths: NoiseLevel,
    *,
    draws: int = 1,
    eta: float = 0.0,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch"]:
    """Noise ``x`` to the end of each path, walk back with DDIM, mean squared error. Evaluations per row: ``levels * steps * draws``."""
    return _along_paths(lambda k, z, path: ddim(k, denoise, z, path, eta=eta), key, x, paths, draws, memory_budget)


def ancestral_reconstruction_error(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    paths: NoiseLevel,
    *,
    draws: int = 1,
    variance: Variance = fixed_small,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch"]:
    """As ``ddim_reconstruction_error`` with ancestral steps (AnoDDPM, Wyatt et al. 2022)."""
    return _along_paths(
        lambda k, z, path: ancestral(k, denoise, z, path, variance=variance), key, x, paths, draws, memory_budget
    )


def unnoised_reverse_error(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    paths: NoiseLevel,
    *,
    draws: int = 1,
    variance: Variance = no_variance,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch"]:
    """The published code's DDPM score (Livernoche et al. 2024, repository DTE): ``x`` itself, *without noise*, enters the reverse chain.

    Kept to reproduce published numbers. With ``no_variance`` it telescopes, for Gaussian data, to one denoiser call; with
    ``fixed_small`` (the repository's newest commit) noise independent of ``x`` comes on top. Theirs is
    ``paths = noise.linear(1000, beta_end=1e-2)[:250][None]``. An untrained network whose predicted noise is zero gives
    ``(1/alpha - 1)^2 mean(x^2)``.
    """
    return _along_paths(
        lambda k, z, path: ancestral(k, denoise, z, path, variance=variance),
        key,
        x,
        paths,
        draws,
        memory_budget,
        noised=False,
    )


# ------------------------------------------------------------------------------------------------------- one number per row


@flax.struct.dataclass
class LevelStatistics:
    """Mean and spread per level of a score on held-out normal rows: what makes levels comparable without any anomaly."""

    mean: Float[Array, "..."]
    std: Float[Array, "..."]


def level_statistics(scores: Float[Array, "levels batch"]) -> LevelStatistics:
    """Statistics of ``scores`` of normal rows that were *not* trained on. A level without spread counts with spread 1."""
    std = jnp.std(scores, axis=1)
    return LevelStatistics(jnp.mean(scores, axis=1), jnp.where(std > 0, std, 1.0))


def standardise(scores: Float[Array, "levels batch"], statistics: LevelStatistics) -> Float[Array, "levels batch"]:
    """z-scores per level."""
    return (scores - statistics.mean[:, None]) / statistics.std[:, None]


def total(scores: Float[Array, "levels batch"], statistics: LevelStatistics) -> Float[Array, " batch"]:
    """Plain sum over levels; the statistics are not used."""
    return jnp.sum(scores, axis=0)


def z_mean(scores: Float[Array, "levels batch"], statistics: LevelStatistics) -> Float[Array, " batch"]:
    """Mean z-score over levels (ddpm-ood, Graham et al. 2023)."""
    return jnp.mean(standardise(scores, statistics), axis=0)


def z_max(scores: Float[Array, "levels batch"], statistics: LevelStatistics) -> Float[Array, " batch"]:
    """Largest z-score over levels: for anomalies that show at one level only."""
    return jnp.max(standardise(scores, statistics), axis=0)
