"""Four looks at a picture, each a row of numbers: what a table needs to be compared with.

    appearance    its pixels, slightly blurred, square roots taken: where it is light
    edges         energy of brightness edges by direction in small cells, divided by that of the neighbourhood: its shapes
    coarse edges  the same in larger cells, not divided: where its shapes are, and how strong
    grain         the strength of what the slightest blur removes, in small cells: noise, or a sharpness that is gone

Histograms of oriented gradients (Dalal & Triggs, CVPR 2005) without votes, the first layer of a scattering network in other words. Pixels
that shift by one make another picture to a distance between pixels, and nearly the same one here.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxad.coarse import along_height_and_width, gaussian_blur

NAMES = ("appearance", "edges", "coarse_edges", "grain")

DIRECTIONS = 8
FAINT = 0.02
"""Edges of this strength, in units of the picture's range, count as faint: division by the neighbourhood leaves them small."""

MOST_PIXELS = 1200
"""Values of the appearance, about: larger pictures are sampled more coarsely."""


def looks(images: Float[Array, "rows height width channels"]) -> dict[str, Float[Array, "rows _"]]:
    """The four looks at pictures of range [0, 1]: ``{name: [rows, values]}``.

    >>> {name: look.shape for name, look in looks(jnp.zeros((2, 28, 28, 1))).items()}
    {'appearance': (2, 784), 'edges': (2, 392), 'coarse_edges': (2, 128), 'grain': (2, 49)}
    """
    energy = oriented_energy(images)
    return dict(zip(NAMES, (appearance(images), edges(energy), coarse_edges(energy), grain(images)), strict=True))


def cell_size(height: int, width: int) -> int:
    """Side of a cell in pixels: about twelve of them along the shorter side, none below four pixels."""
    return max(4, min(height, width) // 12)


def appearance(images: Float[Array, "rows height width channels"]) -> Float[Array, "rows _"]:
    """Square roots of blurred pixels, about 1,200 of them at most: roots, because a faint line matters more on black than on gray."""
    _, height, width, channels = images.shape
    stride = max(1, round((height * width * channels / MOST_PIXELS) ** 0.5))
    sampled = _pooled(images, max(1.0, 0.6 * stride), stride)
    return jnp.sqrt(jnp.maximum(sampled, 0)).reshape(len(images), -1)


def oriented_energy(images: Float[Array, "rows height width channels"]) -> Float[Array, "rows height width directions"]:
    """The positive part of the derivative in eight directions, of the channel in which it is strongest at each pixel."""
    down = jnp.zeros_like(images).at[:, 1:-1].set(images[:, 2:] - images[:, :-2])
    across = jnp.zeros_like(images).at[:, :, 1:-1].set(images[:, :, 2:] - images[:, :, :-2])
    strongest = jnp.argmax(down**2 + across**2, axis=-1, keepdims=True)
    down, across = (jnp.take_along_axis(slope, strongest, axis=-1) for slope in (down, across))
    angles = jnp.arange(DIRECTIONS)[None, None, None] * (2 * jnp.pi / DIRECTIONS)
    return jnp.maximum(across * jnp.cos(angles) + down * jnp.sin(angles), 0)


def edges(energy: Float[Array, "rows height width directions"]) -> Float[Array, "rows _"]:
    """Energy by direction in cells, over the root of the energy in the cells around: contrast does not matter, shape does."""
    cell = cell_size(*energy.shape[1:3])
    cells = _pooled(energy, 0.375 * cell, cell)
    around = _pooled(jnp.sum(cells**2, axis=-1, keepdims=True), 1.0, 1)
    return (cells / jnp.sqrt(around + FAINT**2)).reshape(len(energy), -1)


def coarse_edges(energy: Float[Array, "rows height width directions"]) -> Float[Array, "rows _"]:
    """Roots of the energy by direction in cells of almost twice the side."""
    cell = cell_size(*energy.shape[1:3])
    cells = _pooled(energy, 0.75 * cell, 7 * cell // 4)
    return jnp.sqrt(cells + FAINT**2 / 4).reshape(len(energy), -1)


def grain(images: Float[Array, "rows height width channels"]) -> Float[Array, "rows _"]:
    """Root mean square, in cells, of the difference to a blur of 0.7 pixels: the other looks average noise away."""
    cell = cell_size(*images.shape[1:3])
    fine = jnp.mean((images - _pooled(images, 0.7, 1)) ** 2, axis=-1, keepdims=True)
    return jnp.sqrt(_pooled(fine, 0.75 * cell, cell) + FAINT**2 / 4).reshape(len(images), -1)


def _pooled(images, sigma, stride):
    """Blurred by ``sigma`` pixels and sampled at the middle of every square of ``stride`` pixels."""
    height, width = images.shape[1:3]
    down, across = (gaussian_blur(size, sigma)[min(stride, size) // 2 :: stride] for size in (height, width))
    return along_height_and_width(down, across, images)
