"""Synthetic local defects for images, and what they say about noise levels before any real anomaly has been seen.

A defect is a pure function ``(key, x, ...) -> (spoilt images, mask)``: every image gets one rectangle of its own place and size, in which
something is wrong, and keeps every other pixel to the bit.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxad.coarse import along_height_and_width, gaussian_blur, pyramid_noise

Defect = Callable[[Array, Array], Array]
"""``(key, x [batch, height, width, channels]) -> images wrong everywhere``, of which ``corrupt`` shows a rectangle."""


def pasted(key: Array, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """Another image of the batch, shifted: right texture, wrong place (CutPaste, Li et al., CVPR 2021, and FPI). A lone image is its own.

    Rows are displaced in a ring by one random number, the content by another one for each image, by a quarter of the side at least.
    """
    donor_key, shift_key = jax.random.split(key)
    batch, height, width = x.shape[:3]
    donors = jnp.roll(x, jax.random.randint(donor_key, (), 1, max(2, batch)), axis=0)
    share = jax.random.uniform(shift_key, (batch, 2), minval=0.25, maxval=0.75)
    shifts = jnp.round(share * jnp.array([[height, width]])).astype(jnp.int32)
    return jax.vmap(lambda donor, shift: jnp.roll(donor, (shift[0], shift[1]), axis=(0, 1)))(donors, shifts)


def blurred(key: Array, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """The image out of focus, by a Gaussian of a twelfth of its shorter side: detail is missing, nothing is added. ``key`` is not used."""
    height, width = x.shape[1:3]
    sigma = min(height, width) / 12
    return along_height_and_width(gaussian_blur(height, sigma), gaussian_blur(width, sigma), x)


def stained(key: Array, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """Coarse noise of the image's own spread on top of it: a stain of the wrong texture."""
    spread = jnp.std(x, axis=(1, 2, 3), keepdims=True)
    coarsest = max(1, min(x.shape[1:3]) // 4)
    return x + spread * pyramid_noise(key, x.shape, x.dtype, coarsest=coarsest, octaves=3)


DEFECTS: tuple[Defect, ...] = (pasted, blurred, stained)


def corrupt(
    key: Array,
    x: Float[Array, "batch height width channels"],
    *,
    defects: Sequence[Defect] = DEFECTS,
    smallest: float = 0.15,
    largest: float = 0.5,
) -> tuple[Float[Array, "batch height width channels"], Bool[Array, "batch height width"]]:
    """One local defect per image, of a random kind: ``(spoilt images, mask of the rectangle)``.

    Every image has its own kind, place and size; outside the rectangle it stays itself to the bit. Inside, the defect may be invisible,
    as background pasted on background is.

    Args:
        defects: functions to choose from; one of them alone: ``defects=[stained]``.
        smallest, largest: shares of height and width that the rectangle's sides are drawn from.

    Raises:
        ValueError: rows that are no images, no defect, or shares that are not ``0 < smallest <= largest <= 1``.

    >>> import jax
    >>> x = jax.random.normal(jax.random.key(0), (5, 16, 16, 1))
    >>> spoilt, mask = corrupt(jax.random.key(1), x)
    >>> spoilt.shape, mask.shape, bool((spoilt == x)[~mask].all()), bool(mask.any(axis=(1, 2)).all())
    ((5, 16, 16, 1), (5, 16, 16), True, True)
    """
    if x.ndim != 4:
        raise ValueError(f"defects need images of shape [batch, height, width, channels], got shape {x.shape}")
    if not defects or not 0 < smallest <= largest <= 1:
        raise ValueError(
            f"corruption needs at least one defect and 0 < smallest <= largest <= 1, got {len(defects)} defects, "
            f"{smallest=}, {largest=}"
        )
    kind_key, place_key, *defect_keys = jax.random.split(key, 2 + len(defects))
    mask = _rectangles(place_key, x.shape, smallest, largest)
    kind = jax.random.randint(kind_key, (x.shape[0], 1, 1, 1), 0, len(defects))
    wrong = x
    for index, (defect, defect_key) in enumerate(zip(defects, defect_keys, strict=True)):
        wrong = jnp.where(kind == index, defect(defect_key, x), wrong)
    return jnp.where(mask[..., None], wrong, x), mask


def _rectangles(key, shape, smallest, largest):
    """One rectangle inside each image, sides and place uniform: [batch, height, width]."""
    batch, *sides = shape[:3]
    size_key, place_key = jax.random.split(key)
    sides = jnp.array([sides])
    share = jax.random.uniform(size_key, (batch, 2), minval=smallest, maxval=largest)
    size = jnp.clip(jnp.round(share * sides), 1, sides).astype(jnp.int32)
    start = jnp.floor(jax.random.uniform(place_key, (batch, 2)) * (sides - size + 1)).astype(jnp.int32)

    def inside(axis, length):
        position = jnp.arange(length)[None]
        return (position >= start[:, axis, None]) & (position < (start + size)[:, axis, None])

    return inside(0, shape[1])[:, :, None] & inside(1, shape[2])[:, None, :]


# --------------------------------------------------------------------------------------------------------- choice of levels


def separability(normal: Float[Array, "levels rows"], spoilt: Float[Array, "levels spoilt"]) -> Float[Array, " levels"]:
    """How well does each level tell spoilt images from good ones? The AUROC of its scores, from 0 to 1, .5 for a coin.

    Scores of held-out normal images and of the same ones with synthetic defects (``corrupt``) rank levels without a real anomaly. A
    level at .5 copies the defect (the identity shortcut): more noise, coarser noise or masks mend that.

    Raises:
        ValueError: other than two arrays of scores at the same levels.

    >>> import jax.numpy as jnp
    >>> separability(jnp.array([[1.0, 2.0], [1.0, 2.0]]), jnp.array([[3.0, 4.0], [1.0, 2.0]]))
    Array([1. , 0.5], dtype=float32)
    """
    if jnp.ndim(normal) != 2 or jnp.ndim(spoilt) != 2 or len(normal) != len(spoilt) or not normal.size * spoilt.size:
        raise ValueError(
            "separability compares scores [levels, rows] of normal and of spoilt rows at the same levels, "
            f"got shapes {jnp.shape(normal)} and {jnp.shape(spoilt)}"
        )

    def auroc(normal, spoilt):
        order = jnp.sort(normal)
        below, up_to = (jnp.searchsorted(order, spoilt, side=side) for side in ("left", "right"))
        return jnp.mean(0.5 * (below + up_to)) / normal.size  # a tie counts half

    return jax.vmap(auroc)(jnp.asarray(normal), jnp.asarray(spoilt))


def level_weights(separabilities: Float[Array, " levels"]) -> Float[Array, " levels"]:
    """Weights of levels for a mean of z-scores, adding up to one: what each separates beyond a coin, ``max(2 AUROC - 1, 0)``.

    If no level separates anything, all weigh the same.

    >>> import jax.numpy as jnp
    >>> level_weights(jnp.array([1.0, 0.75, 0.5, 0.4])) * 3
    Array([2., 1., 0., 0.], dtype=float32)
    """
    gain = jnp.maximum(2 * jnp.asarray(separabilities) - 1, 0)
    total = jnp.sum(gain)
    return jnp.where(total > 0, gain / jnp.where(total > 0, total, 1), 1 / gain.size)
