"""How networks see numbers: noise levels as sinusoids, positions of tokens as fixed sine-cosine vectors."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def noise_angle(log_snr: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The noise level as an angle, ``(2 / pi) arctan(sigma / alpha)``, in [0, 1]: 0 is clean, 1 is pure noise.

    On a cosine schedule without offset this is the step fraction t / T, so a network conditioned on
    ``1000 * noise_angle`` meets the range of numbers DiT was published with, whatever schedule it is trained on.
    Infinite ``log_snr`` is allowed.

    >>> noise_angle(jnp.array([jnp.inf, 0.0, -jnp.inf])).round(4)
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    return jnp.arctan(jnp.exp(-0.5 * log_snr)) / (np.pi / 2)


def sinusoid(
    position: Float[Array, "*batch"], width: int, *, frequency_shift: float = 0.0, max_period: float = 1e4
) -> Float[Array, "*batch channels"]:
    """``[cos(position w_k), sin(position w_k)]`` with ``w_k = max_period^(-k / (width / 2 - frequency_shift))``.

    ``frequency_shift=0`` is the convention of DiT and guided-diffusion, 1 that of DDPM (Ho et al. 2020) and of
    diffusers.

    Raises:
        ValueError: ``width`` is odd, or not larger than ``2 * frequency_shift``.

    >>> sinusoid(jnp.array([0.0, jnp.pi]), 2).round(3)
    Array([[ 1.,  0.],
           [-1., -0.]], dtype=float32)
    """
    half = width // 2
    if width % 2 or half <= frequency_shift:
        raise ValueError(f"a sinusoid needs an even width above 2 * frequency_shift, got {width=}, {frequency_shift=}")
    frequencies = np.exp(-np.log(max_period) * np.arange(half) / (half - frequency_shift))
    angle = position[..., None] * jnp.expand_dims(jnp.asarray(frequencies, position.dtype), tuple(range(position.ndim)))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class LevelEmbedding(nn.Module):
    """``log_snr [batch] -> [batch, width]``: angle, sinusoid of width 256, Dense, SiLU, Dense.

    After DiT (Peebles & Xie 2023, section 3.2), which draws both kernels from N(0, .02^2); elsewhere linen's default
    lets a network tell levels apart from the first step.
    """

    width: int
    frequency_shift: float = 0.0
    kernel_init: Callable = nn.linear.default_kernel_init

    @nn.compact
    def __call__(self, log_snr: Float[Array, " batch"]) -> Float[Array, "batch channels"]:
        waves = sinusoid(1000 * noise_angle(log_snr), 256, frequency_shift=self.frequency_shift)
        hidden = nn.silu(nn.Dense(self.width, kernel_init=self.kernel_init)(waves))
        return nn.Dense(self.width, kernel_init=self.kernel_init)(hidden)


def positions_1d(length: int, width: int) -> np.ndarray:
    """Fixed position vectors ``[length, width]``: ``[sin, cos]`` of the index (Vaswani et al. 2017).

    They depend on shapes alone, so they are numpy constants (float32) of a traced function.

    Raises:
        ValueError: ``width`` is odd.

    >>> positions_1d(2, 4).round(3)
    array([[0.   , 0.   , 1.   , 1.   ],
           [0.841, 0.01 , 0.54 , 1.   ]], dtype=float32)
    """
    if width % 2:
        raise ValueError(f"position vectors need an even width, got {width=}")
    frequencies = 1e4 ** (-np.arange(width // 2) / (width / 2))
    angle = np.outer(np.arange(length), frequencies)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


def positions_2d(height: int, width: int, channels: int) -> np.ndarray:
    """Fixed position vectors ``[height * width, channels]`` of a row-major grid: the column's half, then the row's.

    Column first is what DiT's code does (``meshgrid(w, h)``), though it names the halves the other way round.

    Raises:
        ValueError: ``channels`` is not a multiple of 4.

    >>> positions_2d(2, 2, 4).round(2)
    array([[0.  , 1.  , 0.  , 1.  ],
           [0.84, 0.54, 0.  , 1.  ],
           [0.  , 1.  , 0.84, 0.54],
           [0.84, 0.54, 0.84, 0.54]], dtype=float32)
    """
    if channels % 4:
        raise ValueError(f"two-dimensional position vectors need a multiple of 4 channels, got {channels=}")
    columns = np.tile(positions_1d(width, channels // 2), (height, 1))
    rows = np.repeat(positions_1d(height, channels // 2), width, axis=0)
    return np.concatenate([columns, rows], axis=-1)
