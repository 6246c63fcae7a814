"""Masked anomalies: something is wrong inside a mask, and every other element stays itself to the bit.

Made for images, and right for any rows. Masks are True where the row changes: for each row or one for all, with or without channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxad.denoising import Denoise
from jaxad.generation.generated import Generated, Kind, check_denoiser, check_mask, check_strength, generated
from jaxad.generation.synthesis import DEFECTS, Defect, corrupt
from jaxad.noise import NoiseLevel, add_noise, expand
from jaxad.scoring.draws import check_images


def redrawn(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    mask,
    levels: NoiseLevel,
    *,
    strength: Float[Array | np.ndarray, " batch"] | float = 0.5,
) -> Generated:
    """Forget what is under the mask as far as ``strength`` says, and make it again to fit the rest.

    The masked part begins at the noise level that lies the share ``strength`` up the path: 1 keeps nothing of it. A plain denoiser makes
    something *normal* of it; ``guided.tempered`` or ``guided.minority_guided`` around the denoiser make it rare.

    Args:
        levels: [steps], cleanest first; at the last one the noise should drown the data.
        strength: from 0 to 1, one for all rows or one for each.

    Evaluations per row: ``steps``.

    Raises:
        ValueError: a strength out of range, a mask of another shape, an empty or a full one, levels that are no path, or a denoiser of rows
            of another shape.

    >>> from jaxad import closed_form, noise
    >>> from jaxad.generation import tempered
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(2), jnp.eye(2))
    >>> x, mask = jnp.ones((3, 2)), jnp.array([True, False])
    >>> made = redrawn(jax.random.key(0), tempered(denoise, 0.3), x, mask, noise.cosine(100)[:99:7], strength=1.0)
    >>> made.x[:, 1].tolist(), bool((made.x[:, 0] != 1).all())
    ([1.0, 1.0, 1.0], True)
    """
    check_strength(strength, 0.0, 1.0, "redrawing")
    mask = check_mask(mask, x, "redrawing")
    check_denoiser(denoise, x, levels, "redrawing")
    return generated(_fill_from(key, denoise, x, mask, levels, x, jnp.asarray(strength)), mask, Kind.REDRAWN)


def harmonised(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    mask,
    levels: NoiseLevel,
    *,
    content: Float[Array, "batch *sample"],
    strength: Float[Array | np.ndarray, " batch"] | float = 0.6,
) -> Generated:
    """Something else under the mask, fitted in by the denoiser: ``content`` is noised in part and brought back with its surroundings.

    ``strength`` is the share of the content that survives: 1 pastes it, 0 leaves nothing but a normal filling, and in between the seam
    heals and the content bends towards what the denoiser knows (SDEdit, Meng et al., ICLR 2022, inside a mask). Content can be another
    picture (``synthesis.pasted``), a texture (``synthesis.stained``), a real defect.

    Args, cost and errors as for ``redrawn``; and a ValueError for content of another shape.

    >>> from jaxad import closed_form, noise
    >>> denoise, x = closed_form.gaussian_denoiser(jnp.zeros(2), jnp.eye(2)), jnp.zeros((1000, 2))
    >>> def mean_inside(strength):
    ...     levels = noise.cosine(100)[:99:7]
    ...     made = harmonised(
    ...         jax.random.key(0), denoise, x, jnp.array([True, False]), levels, content=x + 8, strength=strength
    ...     )
    ...     return float(made.x[:, 0].mean())
    >>> 7.9 < mean_inside(1.0) < 8, 0.5 < mean_inside(0.5) < 7.5, abs(mean_inside(0.0)) < 0.1
    (True, True, True)
    """
    check_strength(strength, 0.0, 1.0, "harmonised content")
    mask = check_mask(mask, x, "harmonised content")
    check_denoiser(denoise, x, levels, "harmonised content")
    _check_content(content, x)
    rows = _fill_from(key, denoise, x, mask, levels, content, 1 - jnp.asarray(strength))
    return generated(rows, mask, Kind.HARMONISED)


def blended(
    key: Array,
    x: Float[Array, "batch *sample"],
    mask,
    *,
    content: Float[Array, "batch *sample"],
    strength: tuple[float, float] = (0.5, 1.0),
) -> Generated:
    """``content`` laid over the row under the mask, with an opacity drawn for each row from ``strength`` (DRAEM, RealNet); no denoiser.

    Classic controls: ``content=synthesis.stained(key, x)`` under ``perlin_masks`` (texture), ``synthesis.blurred(key, x)`` (a patch out of
    focus), ``synthesis.pasted(key, x)`` (CutPaste under any mask). RealNet: ``content=sdas(...).x``, opacities from .5 to 1.

    Raises:
        ValueError: opacities that are not ``0 < low <= high <= 1``, content or a mask of another shape, an empty mask or a full one.

    >>> made = blended(jax.random.key(0), jnp.zeros((2, 2)), jnp.array([True, False]), content=jnp.ones((2, 2)), strength=(0.5, 0.5))
    >>> made.x.tolist()
    [[0.5, 0.0], [0.5, 0.0]]
    """
    low, high = strength
    if not 0 < low <= high <= 1:
        raise ValueError(f"blending takes a strength (low, high) with 0 < low <= high <= 1, got {strength}")
    mask = check_mask(mask, x, "blending")
    _check_content(content, x)
    opacity = expand(jax.random.uniform(key, x.shape[:1], x.dtype, low, high), x)
    return generated(jnp.where(mask, opacity * content + (1 - opacity) * x, x), mask, Kind.BLENDED)


def cut_paste(
    key: Array,
    x: Float[Array, "batch height width channels"],
    *,
    defects: tuple[Defect, ...] = DEFECTS,
    smallest: float = 0.15,
    largest: float = 0.5,
) -> Generated:
    """A rectangle of each image spoilt: ``synthesis.corrupt`` as a generator; ``defects=(synthesis.pasted,)`` is CutPaste alone.

    >>> x = jax.random.normal(jax.random.key(0), (5, 16, 16, 1))
    >>> made = cut_paste(jax.random.key(1), x)
    >>> bool((made.x == x)[~made.mask].all())
    True
    """
    check_images(x, "a pasted rectangle")
    spoilt, mask = corrupt(key, x, defects=defects, smallest=smallest, largest=largest)
    return generated(spoilt, mask[..., None], Kind.BLENDED)


def _check_content(content, x):
    if content.shape != x.shape:
        raise ValueError(f"content must have the shape of the rows, {x.shape}, got {content.shape}")


def _fill_from(key, denoise, x, mask, levels, content, share):
    """In-painting that begins with ``content`` at the share ``share`` [] or [batch] of the path; known elements of ``x`` to the bit.

    As in ``scoring.inpaint`` each step denoises, puts the known elements back and noises afresh; a row whose turn has not come takes its
    content for the estimate. Every row draws noise of its own.
    """
    start = jnp.broadcast_to(jnp.round(share * (len(levels) - 1)).astype(jnp.int32), x.shape[:1])
    levels = levels.to(x.dtype)
    start_key, path_key = jax.random.split(key)

    def noised(key, estimate, level):
        return add_noise(jnp.where(mask, estimate, x), jax.random.normal(key, x.shape, x.dtype), level)

    def step(z, inputs):
        index, cleaner, noisier = inputs
        begun = expand((start > index).astype(x.dtype), x) > 0  # z lives at levels[index + 1]
        key = jax.random.fold_in(path_key, index)
        return noised(key, jnp.where(begun, denoise(z, noisier), content), cleaner), None

    z = noised(start_key, content, levels[-1])
    inputs = (jnp.arange(len(levels) - 1), levels[:-1], levels[1:])
    z, _ = jax.lax.scan(step, z, inputs, reverse=True)
    return jnp.where(mask, denoise(z, levels[0]), x)
