"""Coarse noise and blur: what is done to images along their height and their width, one matrix for each.

Pixel noise leaves a large smooth anomaly in plain sight at every level that keeps the image recognisable: neighbouring pixels average the
noise away. Noise whose grain is as large as the anomaly hides it (AnoDDPM, Wyatt et al., CVPRW 2022).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.ndimage import gaussian_filter1d


def pyramid_noise(
    key: Array,
    shape: tuple[int, ...],
    dtype=jnp.float32,
    *,
    coarsest: int = 64,
    octaves: int = 6,
    decay: float = 0.8,
) -> Float[Array, "*batch height width channels"]:
    """Noise of several grains: ``sum_k decay^k upsample_k(N(0, 1))`` on grids of ``coarsest / 2^k`` pixels, at unit variance.

    Stands in for the simplex octaves of AnoDDPM (Wyatt et al., CVPRW 2022; 64 pixels, 6 octaves, decay .8 are theirs), jit-friendly.
    Theirs has about half the spread of the Gaussian noise it replaces and a spatial mean of its own; here every pixel is N(0, 1)
    exactly, whatever its place, because the rows of each interpolation matrix are scaled to unit length. Grids of a pixel or less are
    white noise. Images and channels are independent; called like ``jax.random.normal``, whose place it takes in training (the
    ``draw`` of a loss) and in scoring (the ``draw`` of an error or a map), of which both should agree.

    Args:
        coarsest: cell of the coarsest grid, in pixels: the size of the largest anomaly to hide.
        octaves: number of grids, each half as coarse as the one before.
        decay: weight of a grid relative to the one before: below 1 the coarse ones dominate.

    Raises:
        ValueError: a shape without height, width and channels, or a setting that is not positive.

    >>> noise = pyramid_noise(jax.random.key(0), (500, 16, 16, 1), coarsest=8, octaves=3)
    >>> white = jax.random.normal(jax.random.key(1), noise.shape)
    >>> [bool(abs(sample.std() - 1) < 0.02) for sample in (noise, white)]
    [True, True]
    >>> [bool((sample[:, 1:] * sample[:, :-1]).mean() > 0.5) for sample in (noise, white)]  # neighbours
    [True, False]
    """
    if len(shape) < 3:
        raise ValueError(
            f"coarse noise needs a shape [..., height, width, channels], got {tuple(shape)}; for tables use jax.random.normal"
        )
    if octaves < 1 or coarsest <= 0 or decay <= 0:
        raise ValueError(
            f"coarse noise needs at least one octave, a positive cell and a positive decay, got {octaves=}, {coarsest=}, {decay=}"
        )
    *batch, height, width, channels = shape
    weights = decay ** np.arange(octaves, dtype=np.float64)
    weights /= np.sqrt(np.sum(weights**2))
    total = jnp.zeros(shape, dtype)
    for octave_key, octave, weight in zip(jax.random.split(key, octaves), range(octaves), weights, strict=True):
        down, across = (interpolation(size, coarsest / 2**octave) for size in (height, width))
        grid = jax.random.normal(octave_key, (*batch, down.shape[1], across.shape[1], channels), dtype)
        total = total + jnp.asarray(weight, dtype) * along_height_and_width(down, across, grid)
    return total


def interpolation(size: int, cell: float) -> Float[np.ndarray, "size nodes"]:
    """Linear interpolation from nodes ``cell`` pixels apart to ``size`` pixels, each row scaled to unit Euclidean length.

    So scaled it turns independent unit-variance nodes into unit-variance pixels, exactly. A cell of at most one pixel is the identity.

    >>> interpolation(3, 2.0).round(3)
    array([[1.   , 0.   ],
           [0.707, 0.707],
           [0.   , 1.   ]])
    """
    if cell <= 1:
        return np.eye(size)
    positions = np.arange(size) / cell
    nodes = np.arange(int(np.ceil(positions[-1])) + 1)
    weights = np.maximum(1 - np.abs(positions[:, None] - nodes), 0)
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def gaussian_blur(size: int, sigma: float) -> Float[np.ndarray, "size size"]:
    """The matrix of a Gaussian blur of ``sigma`` pixels, cut at 4 sigma, the edges mirrored (scipy's ``reflect``).

    Mirrored edges make rows and columns sum to one: a constant stays itself, and a mean stays the same. A sigma of 0 is the identity.

    Raises:
        ValueError: a negative sigma.

    >>> gaussian_blur(4, 1.0).sum(axis=0).round(6)
    array([1., 1., 1., 1.])
    """
    if sigma < 0:
        raise ValueError(f"a blur's sigma is a number of pixels from 0 on, got {sigma=}")
    return gaussian_filter1d(np.eye(size), sigma, axis=0, mode="reflect", truncate=4.0) if sigma else np.eye(size)


def along_height_and_width(
    down: Float[np.ndarray, "height rows"],
    across: Float[np.ndarray, "width columns"],
    images: Float[Array, "*batch rows columns channels"],
) -> Float[Array, "*batch height width channels"]:
    """``down @ image @ across.T`` for every image and channel, in full precision also where matrix units would round."""
    return jnp.einsum(
        "yi,...ijc,xj->...yxc",
        jnp.asarray(down, images.dtype),
        images,
        jnp.asarray(across, images.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )
