"""Errors: how far from a row does the denoiser end, in one jump from its noisy copy or along a reverse path?"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxad.denoising import Denoise, Variance
from jaxad.noise import NoiseLevel, add_noise, expand, noise_from_clean
from jaxad.sampling import ancestral, ddim, fixed_small, no_variance
from jaxad.scoring.draws import MEMORY_BUDGET, Draw, mean_square, over_levels_and_draws


def reconstruction_error(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    draw: Draw = jax.random.normal,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch"]:
    """Reconstruction in one jump: noise ``x`` to each level, denoise once, mean squared error per element.

    ``draw`` is the noise's distribution, that of training: ``coarse.pyramid_noise`` if the network has learned on it. In the units of
    ``x`` squared. Evaluations per row: ``levels * draws``.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import closed_form, noise
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(2), jnp.eye(2))
    >>> x = jnp.array([[0.0, 0.0], [6.0, 6.0]])
    >>> error = reconstruction_error(jax.random.key(0), denoise, x, noise.cosine(10)[4:6], draws=4)
    >>> error.shape, bool((error[:, 1] > error[:, 0]).all())
    ((2, 2), True)
    """

    def one(_, noise, level):
        return mean_square(denoise(add_noise(x, noise, level), level) - x)

    return over_levels_and_draws(one, key, x, levels, draws, memory_budget, draw=draw)


def denoising_error(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    draw: Draw = jax.random.normal,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch"]:
    """The training loss per row and level: mean squared error of the predicted noise, ``SNR`` times the one-jump reconstruction error.

    For data from N(0, S) and the exact denoiser, normal rows average ``mean_k alpha^2 l_k / (alpha^2 l_k + sigma^2)`` over the
    eigenvalues ``l_k`` of S. ``draw`` is the noise's distribution, that of training. Evaluations per row: ``levels * draws``.
    """

    def one(_, noise, level):
        noisy = add_noise(x, noise, level)
        return mean_square(noise_from_clean(denoise(noisy, level), noisy, level) - noise)

    return over_levels_and_draws(one, key, x, levels, draws, memory_budget, draw=draw)


def flow_residual(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    draws: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch"]:
    """Flow matching's own loss per row: mean square of the velocity residual ``v_hat - (noise - x)``.

    The straight path from data to noise has the velocity ``noise - x`` (Liu et al. 2022, rectified flow); the denoiser's estimate of it
    at any level is ``noise_hat - clean_hat``, so the residual is ``-(1 + alpha / sigma)`` times the error of the one-jump
    reconstruction: the denoising error where there is little noise, the reconstruction error where there is much. Any levels will
    do; ``noise.rectified_flow(10)[3::2]`` are the straight path's own. Evaluations per row: ``levels * draws``.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import closed_form, noise
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(2), jnp.eye(2))
    >>> x = jnp.array([[0.0, 0.0], [6.0, 6.0]])
    >>> residual = flow_residual(jax.random.key(0), denoise, x, noise.rectified_flow(10)[3::2], draws=4)
    >>> residual.shape, bool((residual[:, 1] > residual[:, 0]).all())
    ((4, 2), True)
    """

    def one(_, noise, level):
        error = denoise(add_noise(x, noise, level), level) - x
        return mean_square(expand(1 + level.alpha / level.sigma, x) * error)

    return over_levels_and_draws(one, key, x, levels, draws, memory_budget)


def projection_regret(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    pairs: NoiseLevel,
    *,
    draws: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "pairs batch"]:
    """How much more a row is moved by projection than its own projection is (Choi et al., NeurIPS 2023, arXiv 2312.02615).

    Projection noises a row to a level and denoises it in one jump. With a cleaner level a and a noisier level b the regret is
    ``E d(x, P_a(x)) - E d(y, P_a(y))`` at ``y = P_b(x)``: a background that is as hard to restore in x as in y cancels. The paper's d is
    LPIPS; here it is the mean squared error, the projection to a using the same noise for both. In the units of ``x`` squared; it can
    be negative.

    Args:
        pairs: levels of shape ``[pairs, 2]``: (a, b), the cleaner first. ``schedule[np.array([[10, 50], [20, 60]])]`` makes two.

    Evaluations per row: ``3 * pairs * draws``.

    Raises:
        ValueError: ``pairs`` of another shape.
    """
    shape = jnp.shape(pairs.alpha)
    if len(shape) != 2 or shape[1] != 2:
        raise ValueError(
            f"projection regret needs levels of shape [pairs, 2], the cleaner of each pair first, got {shape}; "
            "index a schedule with an array of pairs: schedule[np.array([[10, 50], [20, 60]])]"
        )

    def one(_, noise, pair):
        def moved(rows):
            return mean_square(denoise(add_noise(rows, noise[:1], pair[0]), pair[0]) - rows)

        projected = denoise(add_noise(x, noise[1:], pair[1]), pair[1])
        return moved(x) - moved(projected)

    return over_levels_and_draws(one, key, x, pairs, draws, memory_budget, copies=2)


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
        return mean_square(restored - x)

    return over_levels_and_draws(one, key, x, paths, draws, memory_budget)


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
