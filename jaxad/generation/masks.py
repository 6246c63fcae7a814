"""Masks of where an image is to be wrong, bool ``[count, height, width]``: drawn from noise, or from a few real ones.

None is empty and none leaves its foreground.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float

from jaxad.coarse import pyramid_noise
from jaxad.generation.generated import concrete
from jaxad.scoring.draws import check_images


def perlin_noise(key: Array, count: int, height: int, width: int) -> Float[Array, "count height width"]:
    """Perlin's gradient noise (1985, with the quintic fade of 2002) about 0, within +-1, of random grain and direction.

    As in DRAEM and RealNet, each axis of each image has 2^k cells, k uniform from 0 to 6 at 256 pixels (a cell has 4 pixels or more, so
    fewer at smaller sizes), turned by up to 90 degrees either way. The lattice is turned, not the finished picture: no corner is empty,
    and any height and width will do.
    """
    finest = max(0, min(6, int(np.log2(max(1, min(height, width) / 4)))))
    grain_key, turn_key, slope_key = jax.random.split(key, 3)
    cells = 2.0 ** jax.random.randint(grain_key, (count, 1, 1, 2), 0, finest + 1)
    turn = jax.random.uniform(turn_key, (count, 1, 1), minval=-jnp.pi / 2, maxval=jnp.pi / 2)
    nodes = 2 ** (finest + 1)  # a turned square is at most sqrt(2) as wide: no lattice repeats
    slope = jax.random.uniform(slope_key, (count, nodes, nodes), maxval=2 * jnp.pi)

    y, x = ((jnp.arange(size) + 0.5) / size - 0.5 for size in (height, width))
    y, x = y[None, :, None], x[None, None, :]
    turned = jnp.stack([jnp.cos(turn) * y - jnp.sin(turn) * x, jnp.sin(turn) * y + jnp.cos(turn) * x], axis=-1)
    position = (turned + 0.5) * cells
    corner = jnp.floor(position)
    inside = position - corner
    corner = corner.astype(jnp.int32)

    def ramp(down, across):
        angle = jax.vmap(lambda slope, at: slope[(at[..., 0] + down) % nodes, (at[..., 1] + across) % nodes])(
            slope, corner
        )
        return jnp.cos(angle) * (inside[..., 0] - down) + jnp.sin(angle) * (inside[..., 1] - across)

    fade = inside**3 * (inside * (inside * 6 - 15) + 10)
    top = ramp(0, 0) + fade[..., 1] * (ramp(0, 1) - ramp(0, 0))
    bottom = ramp(1, 0) + fade[..., 1] * (ramp(1, 1) - ramp(1, 0))
    return jnp.sqrt(2.0) * (top + fade[..., 0] * (bottom - top))


def perlin_masks(
    key: Array,
    count: int,
    height: int,
    width: int,
    *,
    foreground: Bool[Array | np.ndarray, "..."] | None = None,
    threshold: float = 0.5,
    smallest: float = 0.02,
    largest: float = 0.4,
) -> Bool[Array, "count height width"]:
    """Where Perlin noise exceeds ``threshold``, inside the foreground (DRAEM, Zavrtanik et al., ICCV 2021; RealNet).

    Where that would be less than the share ``smallest`` of the foreground, or more than ``largest``, the threshold gives way: published
    code leaves such images without an anomaly.

    Args:
        foreground: True where masks may be, ``[height, width]`` or one for each; None: everywhere. See ``foreground``.

    Raises:
        ValueError: shares that are not ``0 < smallest <= largest < 1``, or a foreground of another shape or an empty one.

    >>> masks = perlin_masks(jax.random.key(0), 10, 32, 32)
    >>> masks.shape, bool((masks.mean(axis=(1, 2)) <= 0.4).all()), bool(masks.any(axis=(1, 2)).all())
    ((10, 32, 32), True, True)
    """
    if not 0 < smallest <= largest < 1:
        raise ValueError(
            f"masks cover shares 0 < smallest <= largest < 1 of the foreground, got {smallest=}, {largest=}"
        )
    foreground = _as_foreground(foreground, count, height, width).reshape(count, -1)
    noise = perlin_noise(key, count, height, width).reshape(count, -1)
    noise = jnp.where(foreground, noise, -jnp.inf)
    room = jnp.sum(foreground, axis=1)
    fewest = jnp.maximum(1, jnp.ceil(smallest * room))
    covered = jnp.clip(jnp.sum(noise > threshold, axis=1), fewest, jnp.maximum(fewest, jnp.floor(largest * room)))
    rank = jnp.argsort(jnp.argsort(-noise, axis=1), axis=1)
    return ((rank < covered[:, None]) & foreground).reshape(count, height, width)


def masks_from_examples(
    key: Array,
    examples: Bool[Array | np.ndarray, "few height width"],
    count: int,
    *,
    foreground: Bool[Array | np.ndarray, "..."] | None = None,
    scale: tuple[float, float] = (0.7, 1.4),
    rotation: float = 180.0,
    elastic: float | None = None,
) -> Bool[Array, "count height width"]:
    """New masks like a few real ones: one of them turned, scaled, mirrored, bent and moved, and cut to the foreground.

    A pixel of the example is laid on a pixel of the foreground, both random, so none comes out empty.

    Args:
        foreground: True where masks may be, ``[height, width]`` or one for each; None: everywhere.
        scale: least and largest magnification.
        rotation: degrees, either way.
        elastic: spread of the bending in pixels, smooth over a quarter of the image; None: a 30th of the shorter side.

    Raises:
        ValueError: no example, an empty or a full one, a scale that is not positive, or a foreground of another shape or an empty one.

    >>> example = np.zeros((1, 16, 16), bool)
    >>> example[0, 4:7, 5:12] = True
    >>> masks = masks_from_examples(jax.random.key(0), example, 8)
    >>> masks.shape, bool(masks.any(axis=(1, 2)).all())
    ((8, 16, 16), True)
    """
    shape = jnp.shape(examples)
    if len(shape) != 3 or not shape[0]:
        raise ValueError(f"masks are made like examples [few, height, width], at least one, got shape {shape}")
    if concrete(examples):
        share = np.asarray(examples, bool).mean(axis=(1, 2))
        if share.min() == 0 or share.max() == 1:
            raise ValueError("an example must mark a part of its image, got one that is empty or full; leave it out")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"a scale is 0 < least <= largest, got {scale}")
    _, height, width = shape
    elastic = min(height, width) / 30 if elastic is None else elastic
    foreground = _as_foreground(foreground, count, height, width)
    keys = jax.random.split(key, 7)
    example = jnp.asarray(examples, bool)[jax.random.randint(keys[0], (count,), 0, shape[0])]

    def a_pixel_of(key, masks):
        place = jax.random.categorical(key, jnp.where(masks.reshape(count, -1), 0.0, -jnp.inf))
        return jnp.stack([place // width, place % width], axis=-1).astype(jnp.float32)[:, None, None, :]

    source, target = a_pixel_of(keys[1], example), a_pixel_of(keys[2], foreground)
    turn = jnp.deg2rad(jax.random.uniform(keys[3], (count, 1, 1), minval=-rotation, maxval=rotation))
    size = jnp.exp(jax.random.uniform(keys[4], (count, 1, 1), minval=jnp.log(scale[0]), maxval=jnp.log(scale[1])))
    mirror = jnp.where(jax.random.bernoulli(keys[5], 0.5, (count, 1, 1)), 1.0, -1.0)
    bend = elastic * pyramid_noise(
        keys[6], (count, height, width, 2), coarsest=max(1, max(height, width) // 4), octaves=1
    )
    # From a pixel of the new mask back to one of the example; the bending is measured from the target pixel, which so stays put.
    bend = (
        bend - jax.vmap(lambda field, at: field[at[0], at[1]])(bend, target[:, 0, 0].astype(jnp.int32))[:, None, None]
    )
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), axis=-1)[None] - target
    y, x = grid[..., 0] / size, mirror * grid[..., 1] / size
    back = jnp.stack([jnp.cos(turn) * y - jnp.sin(turn) * x, jnp.sin(turn) * y + jnp.cos(turn) * x], axis=-1)
    back = source + back + bend
    values = jax.vmap(lambda mask, at: map_coordinates(mask, [at[..., 0], at[..., 1]], order=1))(
        example.astype(jnp.float32), back
    )
    return (values > 0.5) & foreground


def foreground(
    x: Float[Array, "batch height width channels"], *, tolerance: float = 0.1
) -> Bool[Array, "batch height width"]:
    """Where the object is, for pictures on a plain background: pixels off the border's median by a share of the picture's range.

    Nothing for pictures that the object fills: give those no foreground.

    >>> x = jnp.zeros((1, 4, 4, 1)).at[0, 1:3, 1:3].set(1.0)
    >>> foreground(x)[0].sum()
    Array(4, dtype=int32)
    """
    check_images(x, "a foreground")
    border = jnp.concatenate([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], axis=1)
    background = jnp.median(border, axis=1)[:, None, None]
    reach = tolerance * (jnp.max(x, axis=(1, 2), keepdims=True) - jnp.min(x, axis=(1, 2), keepdims=True))
    return jnp.any(jnp.abs(x - background) > reach, axis=-1)


def _as_foreground(foreground, count, height, width) -> Bool[Array, "count height width"]:
    if foreground is None:
        return jnp.ones((count, height, width), bool)
    foreground = jnp.asarray(foreground, bool)
    if foreground.shape not in ((height, width), (count, height, width)):
        raise ValueError(
            f"a foreground must have the shape {(height, width)} or {(count, height, width)}, got {foreground.shape}"
        )
    if concrete(foreground) and not np.asarray(foreground).any(axis=(-2, -1)).all():
        raise ValueError("a foreground must mark where a mask may be, got an empty one; None allows every pixel")
    return jnp.broadcast_to(foreground, (count, height, width))
