"""In-painting of images: what was hidden from the denoiser cannot be copied, so an anomaly has no shortcut into the reconstruction.

Masks are True where an image is hidden and filled in, as in ``scoring.inpaint``; the rest is known and comes back to the bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxad.denoising import Denoise
from jaxad.noise import NoiseLevel
from jaxad.scoring.conditional import _fill
from jaxad.scoring.draws import MEMORY_BUDGET, check_images, over_levels_and_draws


def checkerboard(height: int, width: int, block: int = 8, parity: int = 0) -> Bool[np.ndarray, "height width"]:
    """Squares of ``block`` pixels, hidden (True) and known in turn; the other ``parity`` hides exactly what this one shows.

    Published: blocks of 8 at 32 pixels (LMD, Liu et al., ICML 2023, arXiv 2302.10326). Every image size will do; blocks at the far edges
    are cut.

    Raises:
        ValueError: a block that is not between 1 and the longer side, or a parity other than 0 and 1.

    >>> checkerboard(2, 4, block=1).astype(int)
    array([[1, 0, 1, 0],
           [0, 1, 0, 1]])
    """
    if not 1 <= block < max(height, width):
        raise ValueError(
            f"a checkerboard of {height} x {width} pixels needs blocks of 1 to {max(height, width) - 1} pixels, got {block=}; "
            "larger ones would hide the whole image"
        )
    if parity not in (0, 1):
        raise ValueError(f"a checkerboard has parity 0 or 1, got {parity=}")
    rows, columns = np.arange(height)[:, None] // block, np.arange(width)[None] // block
    return (rows + columns) % 2 == parity


def random_masks(
    key: Array, count: int, height: int, width: int, *, patch: int = 4, kept: float = 0.5
) -> Bool[Array, "count height width"]:
    """``count`` masks that hide random patches (True) and keep the share ``kept`` of them, all patches hidden equally often.

    The patches are shuffled once and each mask hides the next stretch of that order, beginning anew at its end. So ``1 / (1 - kept)``
    masks hide every pixel once, the double twice, and no pixel waits for its luck. LMD's are ``patch=4, kept=.5``.

    Raises:
        ValueError: no mask, an empty patch, or a share that keeps all or nothing.

    >>> import jax
    >>> masks = random_masks(jax.random.key(0), 2, 8, 8)
    >>> masks.shape, bool((masks[0] ^ masks[1]).all())
    ((2, 8, 8), True)
    """
    down, across = -(-height // max(1, patch)), -(-width // max(1, patch))
    patches = down * across
    hidden = round((1 - kept) * patches)
    if count < 1 or patch < 1 or not 0 < hidden < patches:
        raise ValueError(
            f"random masks need count >= 1, patch >= 1 and a share `kept` that leaves some of the {patches} patches hidden and some "
            f"known, got {count=}, {patch=}, {kept=}"
        )
    place = jax.random.permutation(key, patches)
    masks = (place[None] - hidden * jnp.arange(count)[:, None]) % patches < hidden
    masks = masks.reshape(count, down, across)
    return jnp.repeat(jnp.repeat(masks, patch, axis=1), patch, axis=2)[:, :height, :width]


def inpainting_error_map(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch height width channels"],
    paths: NoiseLevel,
    *,
    masks: Bool[Array | np.ndarray, "masks height width"] | None = None,
    block: int = 8,
    draws: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch height width"]:
    """Squared error of every pixel when it is hidden and filled in from the others (LMD, Liu et al., ICML 2023), mean over channels.

    Both parities of a checkerboard hide every pixel exactly once, in two passes; other ``masks`` are averaged over those that hide the
    pixel, which counts 0 where none does. Filling is ``scoring.inpaint``'s: replacement with fresh noise at each step of a path, begun
    from pure noise, so paths should end where the noise drowns the image: ``noise.cosine(1000)[::40][None]`` is one of 25 steps. LMD
    compares with LPIPS and takes the median of 10 repetitions; ``draws`` are averaged. In the units of ``x`` squared.

    Args:
        paths: [levels, steps], see ``noise.reverse_paths``.
        masks: True where to hide, one pass for each; None: both parities of ``checkerboard(height, width, block)``.
        block: pixels; an anomaly much smaller than that is hidden as a whole in one of the two passes.

    Evaluations per row: ``masks * levels * steps * draws``.

    Raises:
        ValueError: rows that are no images, levels that are no paths, or masks of another shape.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import noise
    >>> def denoise(noisy, level):  # all normal images are black
    ...     return jnp.zeros_like(noisy)
    >>> x = 2 * jnp.ones((1, 4, 4, 1))
    >>> inpainting_error_map(jax.random.key(0), denoise, x, noise.cosine(100)[::10][None], block=2)[0, 0, :2]
    Array([[4., 4., 4., 4.],
           [4., 4., 4., 4.]], dtype=float32)
    """
    return _over_masks(key, denoise, x, paths, masks, block, draws, memory_budget, (-1,), x.shape[1:3])


def inpainting_error(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch height width channels"],
    paths: NoiseLevel,
    *,
    masks: Bool[Array | np.ndarray, "masks height width"] | None = None,
    block: int = 8,
    draws: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Array, "levels batch"]:
    """The mean of ``inpainting_error_map`` over pixels: can each half of the image be told from the other? Same noise, same cost."""
    return _over_masks(key, denoise, x, paths, masks, block, draws, memory_budget, (1, 2, 3), ())


def _over_masks(key, denoise, x, paths, masks, block, draws, memory_budget, axes, per_row):
    check_images(x, "an in-painting error")
    shape = jnp.shape(paths.alpha)
    if len(shape) != 2 or shape[1] < 2:
        raise ValueError(
            f"in-painting needs paths of shape [levels, steps] with at least 2 steps, got {shape}; "
            "build them with noise.reverse_paths(schedule, starts, num_steps)"
        )
    height, width = x.shape[1:3]
    if masks is None:
        masks = np.stack([checkerboard(height, width, block, parity) for parity in (0, 1)])
    if masks.ndim != 3 or masks.shape[1:] != (height, width):
        raise ValueError(f"masks for these images need the shape [masks, {height}, {width}], got {masks.shape}")
    masks = jnp.asarray(masks, bool)[..., None]
    times_hidden = jnp.maximum(jnp.sum(masks, axis=0), 1).astype(x.dtype)
    num_levels, num_masks = shape[0], masks.shape[0]
    entries = {
        "path": jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf, x.dtype), num_masks, axis=0), paths),
        "mask": jnp.tile(masks, (num_levels, 1, 1, 1)),
    }

    def one(_, noise, entry):
        filled = _fill(denoise, x, jnp.broadcast_to(entry["mask"], x.shape), entry["path"], noise)
        # Known pixels are exact and add nothing.
        return jnp.mean((filled - x) ** 2 / times_hidden[None], axis=axes)

    errors = over_levels_and_draws(one, key, x, entries, draws, memory_budget, copies=shape[1], per_row=per_row)
    return errors.reshape(num_levels, num_masks, x.shape[0], *per_row).sum(axis=1)
