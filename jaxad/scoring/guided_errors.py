"""Guided reconstruction: the way back is drawn towards the image itself, so that what is normal in it returns as it was."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxad.denoising import Denoise, guided_towards
from jaxad.noise import NoiseLevel, add_noise
from jaxad.sampling import ddim
from jaxad.scoring.draws import MEMORY_BUDGET, Draw, check_images, over_levels_and_draws, sample_axes


def guided_reconstruction_map(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch height width channels"],
    paths: NoiseLevel,
    *,
    weight: float = 3.0,
    eta: float = 1.0,
    draws: int = 1,
    draw: Draw = jax.random.normal,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch height width"]:
    """Squared error per pixel of DDAD's reconstruction (Mousakhan et al. 2023, arXiv 2305.15956), mean over channels.

    ``x`` is noised to the end of each path and walks back by DDIM, every estimate drawn towards ``x`` (their eq. 6, see
    ``denoising.guided_towards``). Theirs is one path of 10 steps up to step 250 of ``noise.linear(1000)``, eta 1, ``weight`` 0 to 11 by
    category; as ``weight sigma^2`` beyond 2 overshoots the image, a large weight wants clean levels. They rescale the map by
    its maximum over the batch: here a pixel's error is a function of its own image, and ``scoring.level_statistics`` of normal
    images make maps comparable. The noise along the path is shared by all rows as well. In the units of ``x`` squared.

    Args:
        paths: [levels, steps], see ``noise.reverse_paths``.
        weight: how strongly ``x`` guides; 0 is the plain DDIM reconstruction.
        eta: 1 for fresh noise at every step (theirs), 0 for none.

    Evaluations per row: ``levels * steps * draws``.

    Raises:
        ValueError: rows that are no images, or levels that are no paths.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import noise
    >>> def denoise(noisy, level):  # all normal images are black
    ...     return jnp.zeros_like(noisy)
    >>> x, paths = jnp.ones((1, 2, 2, 1)), noise.reverse_paths(noise.linear(1000), [249], 10)
    >>> float(guided_reconstruction_map(jax.random.key(0), denoise, x, paths, weight=0.0).mean())
    1.0
    """
    check_images(x, "a guided reconstruction map")
    return _along_guided_paths(key, denoise, x, paths, weight, eta, draws, draw, memory_budget, (-1,), x.shape[1:3])


def guided_reconstruction_error(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    paths: NoiseLevel,
    *,
    weight: float = 3.0,
    eta: float = 1.0,
    draws: int = 1,
    draw: Draw = jax.random.normal,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch"]:
    """The mean of ``guided_reconstruction_map`` over pixels, as a score of rows of any shape. Same noise, same evaluations.

    Raises:
        ValueError: levels that are no paths.
    """
    return _along_guided_paths(key, denoise, x, paths, weight, eta, draws, draw, memory_budget, sample_axes(x), ())


def _along_guided_paths(key, denoise, x, paths, weight, eta, draws, draw, memory_budget, axes, per_row):
    if jnp.ndim(paths.alpha) != 2:
        raise ValueError(
            f"guided reconstruction needs paths of shape [levels, steps], got {jnp.shape(paths.alpha)}; "
            "build them with noise.reverse_paths(schedule, starts, num_steps)"
        )

    def one(path_key, noise, path):
        def restore(row):
            guided = guided_towards(denoise, row[None], weight)
            return ddim(path_key, guided, add_noise(row[None], noise, path[-1]), path, eta=eta)[0]

        # vmapped over rows with the key left alone: what the sampler draws, it draws once and shares.
        return jnp.mean((jax.vmap(restore)(x) - x) ** 2, axis=axes)

    return over_levels_and_draws(one, key, x, paths, draws, memory_budget, draw=draw, per_row=per_row)


def norm_guided_error_map(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch height width channels"],
    pairs: NoiseLevel,
    *,
    weight: float = 1.0,
    draws: int = 1,
    draw: Draw = jax.random.normal,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "pairs batch height width"]:
    """Squared error per pixel of DiffusionAD's one-step reconstruction (Zhang et al. 2023, arXiv 2303.08730), mean over channels.

    A noisy level hides large anomalies and loses detail, a clean one keeps both. So the image is restored once from the noisier level
    b, and that restoration guides the one from the cleaner level a: ``eps = eps_a - sigma_a weight (x_a^b - x_a)`` with
    ``x_a^b = alpha_a D(z_b) + sigma_a eps_a``, in clean estimates ``D_a + weight sigma_a^2 (D_b - D_a)``. Each level has its own
    noise, shared by all rows. In the units of ``x`` squared.

    Args:
        pairs: levels of shape ``[pairs, 2]``, the cleaner first; theirs are steps 200 and 400 of ``noise.linear(1000)``.
        weight: 0 is the one-jump reconstruction from the cleaner level.

    Evaluations per row: ``2 * pairs * draws``.

    Raises:
        ValueError: rows that are no images, or ``pairs`` of another shape.

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> from jaxad import noise
    >>> pairs = noise.linear(1000)[np.array([[199, 399]])]
    >>> norm_guided_error_map(jax.random.key(0), lambda z, level: 0 * z, jnp.ones((3, 4, 4, 1)), pairs).shape
    (1, 3, 4, 4)
    """
    check_images(x, "a norm-guided error map")
    shape = jnp.shape(pairs.alpha)
    if len(shape) != 2 or shape[1] != 2:
        raise ValueError(
            f"norm guidance needs levels of shape [pairs, 2], the cleaner of each pair first, got {shape}; "
            "index a schedule with an array of pairs: schedule[np.array([[199, 399]])]"
        )

    def one(_, noise, pair):
        norm = denoise(add_noise(x, noise[1:], pair[1]), pair[1])
        restored = guided_towards(denoise, norm, weight)(add_noise(x, noise[:1], pair[0]), pair[0])
        return jnp.mean((restored - x) ** 2, axis=-1)

    return over_levels_and_draws(one, key, x, pairs, draws, memory_budget, copies=2, draw=draw, per_row=x.shape[1:3])
