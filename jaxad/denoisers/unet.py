"""The U-Net of ADM (Dhariwal & Nichol 2021, arXiv 2105.05233), channels last."""

from math import gcd
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxad.denoisers.dit import embed_label
from jaxad.denoisers.embedding import noise_angle, sinusoid

_zeros = nn.initializers.zeros


def _norm(x, groups, epsilon, dtype, name):
    """GroupNorm, in float32 when a compute dtype is set: the convolution that follows rounds to it."""
    groups = gcd(groups, x.shape[-1])
    return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype and jnp.float32, name=name)(x)


def _conv(channels, dtype, name, **options):
    """3x3, one pixel of zeros on every side also where the stride is 2, as torch pads (linen's "SAME" would not)."""
    return nn.Conv(channels, (3, 3), padding=((1, 1), (1, 1)), dtype=dtype, name=name, **options)


def _doubled(x):
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _halved(x):
    return nn.avg_pool(x, (2, 2), strides=(2, 2))


class ResBlock(nn.Module):
    """Two convolutions around a modulation by the noise level, plus the input; the identity until it is trained.

    ``[batch, height, width, in] -> [batch, height, width, channels]``, with ``resample`` "up" or "down" at twice or
    half the height and width.
    """

    channels: int
    groups: int
    epsilon: float
    dropout: float
    scale_shift: bool
    resample: str | None = None
    deterministic: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width _"], condition: Float[Array, "batch width"]
    ) -> Float[Array, "batch _ _ channels"]:
        resample = {"up": _doubled, "down": _halved, None: lambda picture: picture}[self.resample]
        norm = (self.groups, self.epsilon, self.dtype)
        hidden = nn.silu(_norm(x, *norm, "norm_1"))
        hidden = _conv(self.channels, self.dtype, "conv_1")(resample(hidden))

        outputs = 2 * self.channels if self.scale_shift else self.channels
        modulation = nn.Dense(outputs, dtype=self.dtype, name="modulation")(condition)[:, None, None]
        if self.scale_shift:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            hidden = _norm(hidden, *norm, "norm_2") * (1 + scale) + shift
        else:
            hidden = _norm(hidden + modulation, *norm, "norm_2")
        hidden = nn.Dropout(self.dropout)(nn.silu(hidden), deterministic=self.deterministic)
        hidden = _conv(self.channels, self.dtype, "conv_2", kernel_init=_zeros)(hidden)

        x = resample(x)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, name="shortcut")(x)  # a 1x1 convolution
        return x + hidden


class SelfAttention(nn.Module):
    """Every pixel looks at all others; the identity until it is trained."""

    heads: int
    groups: int
    epsilon: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        batch, height, width, channels = x.shape
        pixels = _norm(x, self.groups, self.epsilon, self.dtype, "norm").reshape(batch, height * width, channels)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(pixels)
        query, key, value = jnp.moveaxis(
            qkv.reshape(batch, height * width, 3, self.heads, channels // self.heads), 2, 0
        )
        # The softmax inside is float32 whatever the dtype of its input.
        mixed = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=_zeros, name="out")(mixed)


class UNet(nn.Module):
    """Convolutional network on pictures ``[batch, height, width, channels]``: down, across, and up again with skips.

    Level ``i`` works at ``1 / (stem * 2^i)`` of the picture's height and width with ``channels * multipliers[i]``
    channels and ``blocks`` residual blocks (one more on the way up). Where that downsample factor is in ``attention``,
    self-attention follows every block; the deepest level always has one. Factors count from the picture, so the network
    does not depend on the picture's size: guided-diffusion, which asks for ``image_size // resolution`` instead,
    silently builds no attention for ``attention_resolutions="16"`` at 224 pixels. Here a factor that no level has
    is an error.

    The untrained network returns exactly 0. A height or width that the largest factor does not divide is filled up at
    the bottom and right by repeating the last row and column, and cut again at the end.

    Fields:
        channels: base width, and width of the sinusoid of the noise level.
        multipliers: one for each level, finest first.
        blocks: residual blocks of one level.
        attention: downsample factors with self-attention, counted from the picture.
        head_channels: width of one attention head; None: there are ``heads`` at every level.
        heads: number of attention heads, where ``head_channels`` is None.
        dropout: inside residual blocks; with ``train=True``, ``apply`` needs ``rngs={"dropout": key}``.
        learned_variance: the last axis doubles: first the prediction, then the variance interpolation v of Nichol &
            Dhariwal 2021.
        num_classes, label_dropout: labels and the null class of classifier-free guidance, as in ``DiT``.
        resblock_updown: residual blocks change the resolution (ADM), not plain convolutions (DDPM, diffusers).
        scale_shift: the level scales and shifts the normalised features (ADM); False: it is added to them before the
            normalisation (DDPM, and the default of diffusers).
        groups: of GroupNorm; where they do not divide the channels, the greatest common divisor of both.
        epsilon: of GroupNorm.
        stem: squares of ``stem x stem`` pixels become channels before the first convolution and pixels again after the
            last; 2 makes the network about four times cheaper.
        frequency_shift: 1 is the level embedding of DDPM, see ``jaxad.denoisers.embedding.sinusoid``.
        dtype: compute in this precision (``jnp.bfloat16`` or ``"bfloat16"``); parameters, normalisations, softmax and
            output stay float32. None: that of ``x`` and the parameters.
        remat: recompute the blocks' activations in the backward pass: about a third more time; far less memory on accelerators,
            none less on CPUs (jax 0.10).

    Raises:
        ValueError: at construction: a size below 1, an attention factor that no level has, or ``head_channels`` (or
            ``heads``) that do not divide an attended width. At call: ``x`` of rank other than 4, or a label without ``num_classes``.

    >>> network = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=8)
    >>> x, log_snr = jnp.ones((2, 9, 12, 3)), jnp.zeros(2)
    >>> params = network.init(jax.random.key(0), x, log_snr)["params"]
    >>> network.apply({"params": params}, x, log_snr).shape
    (2, 9, 12, 3)
    >>> UNet(multipliers=(1, 2, 2), attention=(14,))
    Traceback (most recent call last):
    ...
    ValueError: no level has the attention factors [14]; with stem=1 and 3 multipliers there are [1, 2, 4]
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (4,)
    head_channels: int | None = 64
    heads: int = 1
    dropout: float = 0.0
    learned_variance: bool = False
    num_classes: int | None = None
    label_dropout: float = 0.1
    resblock_updown: bool = False
    scale_shift: bool = True
    groups: int = 32
    epsilon: float = 1e-5
    stem: int = 1
    frequency_shift: float = 0.0
    dtype: Any = None
    remat: bool = False

    def __post_init__(self):
        sizes = {
            name: getattr(self, name) for name in ("channels", "blocks", "head_channels", "heads", "groups", "stem")
        }
        if min((size for size in sizes.values() if size is not None), default=1) < 1:
            raise ValueError(f"every size of a UNet must be at least 1, got {sizes}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"a UNet needs one multiplier of at least 1 for each level, got {self.multipliers=}")
        factors = self.factors
        missing = sorted(set(self.attention) - set(factors))
        if missing:
            raise ValueError(
                f"no level has the attention factors {missing}; with stem={self.stem} and {len(factors)} multipliers "
                f"there are {list(factors)}"
            )
        attended = {
            factor: self.channels * multiplier
            for factor, multiplier in zip(factors, self.multipliers, strict=True)
            if factor in self.attention or factor == factors[-1]
        }
        divisor = self.head_channels or self.heads
        if any(width % divisor for width in attended.values()):
            raise ValueError(
                f"head_channels={self.head_channels} (or {self.heads=}, where that is None) must divide the width of "
                f"every attended level, got the widths {attended} by downsample factor; the deepest always has attention"
            )
        super().__post_init__()

    @property
    def factors(self) -> tuple[int, ...]:
        """The downsample factor of each level, finest first.

        >>> UNet(stem=2, multipliers=(1, 2), attention=()).factors
        (2, 4)
        """
        return tuple(self.stem * 2**level for level in range(len(self.multipliers)))

    def heads_of(self, width: int) -> int:
        """The number of attention heads at a level of ``width`` channels.

        >>> UNet(head_channels=64).heads_of(256)
        4
        """
        return width // self.head_channels if self.head_channels else self.heads

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        log_snr: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch height width _"]:
        if x.ndim != 4:
            raise ValueError(
                f"UNet takes images [batch, height, width, channels], got {x.shape=}; use MLP or DiT for vectors"
            )
        compute = jnp.dtype(self.dtype or x.dtype)
        condition = sinusoid(1000 * noise_angle(log_snr), self.channels, frequency_shift=self.frequency_shift)
        condition = nn.silu(nn.Dense(4 * self.channels, name="level_in")(condition))
        condition = nn.Dense(4 * self.channels, name="level_out")(condition)
        embedded = embed_label(self, 4 * self.channels, label, len(x), train)
        if embedded is not None:
            condition = condition + embedded
        # Every use of the condition begins with this SiLU; in compute's dtype, so that half precision stays half.
        condition = nn.silu(condition).astype(compute)

        res_block = nn.remat(ResBlock) if self.remat else ResBlock
        self_attention = nn.remat(SelfAttention) if self.remat else SelfAttention
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        norm = {"groups": self.groups, "epsilon": self.epsilon, "dtype": self.dtype}

        def block(width, name, resample=None):
            return res_block(
                width,
                dropout=self.dropout,
                scale_shift=self.scale_shift,
                resample=resample,
                deterministic=not train,
                name=name,
                **norm,
            )

        def attend(hidden, name):
            return self_attention(self.heads_of(hidden.shape[-1]), name=name, **norm)(hidden)

        hidden = _conv(widths[0], self.dtype, "conv_in")(self._cut(x))
        skips = [hidden]
        for level, width in enumerate(widths):
            for index in range(self.blocks):
                hidden = block(width, f"down_{level}_block_{index}")(hidden, condition)
                if self.factors[level] in self.attention:
                    hidden = attend(hidden, f"down_{level}_attention_{index}")
                skips.append(hidden)
            if level < len(widths) - 1:
                if self.resblock_updown:
                    hidden = block(width, f"down_{level}_resample", "down")(hidden, condition)
                else:
                    hidden = _conv(width, self.dtype, f"down_{level}_resample", strides=2)(hidden)
                skips.append(hidden)

        hidden = block(widths[-1], "mid_block_0")(hidden, condition)
        hidden = attend(hidden, "mid_attention")
        hidden = block(widths[-1], "mid_block_1")(hidden, condition)

        for level, width in reversed(list(enumerate(widths))):
            for index in range(self.blocks + 1):
                hidden = jnp.concatenate([hidden, skips.pop()], axis=-1)
                hidden = block(width, f"up_{level}_block_{index}")(hidden, condition)
                if self.factors[level] in self.attention:
                    hidden = attend(hidden, f"up_{level}_attention_{index}")
            if level > 0:
                if self.resblock_updown:
                    hidden = block(width, f"up_{level}_resample", "up")(hidden, condition)
                else:
                    hidden = _conv(width, self.dtype, f"up_{level}_resample")(_doubled(hidden))

        hidden = nn.silu(_norm(hidden, self.groups, self.epsilon, self.dtype, "norm_out"))
        outputs = x.shape[-1] * self.stem**2 * (2 if self.learned_variance else 1)
        exact = self.dtype and jnp.float32
        return self._join(_conv(outputs, exact, "conv_out", kernel_init=_zeros)(hidden), x.shape)

    def _cut(self, x):
        """Pad to a multiple of the largest factor, and ``stem x stem`` pixels to channels."""
        batch, height, width, channels = x.shape
        factor, stem = self.factors[-1], self.stem
        bottom, right = -height % factor, -width % factor
        if bottom or right:
            x = jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")
        if stem == 1:
            return x
        height, width = (height + bottom) // stem, (width + right) // stem
        squares = x.reshape(batch, height, stem, width, stem, channels).transpose(0, 1, 3, 2, 4, 5)
        return squares.reshape(batch, height, width, stem * stem * channels)

    def _join(self, hidden, shape):
        """The inverse of ``_cut``; twice the channels become twice the last axis."""
        batch, rows, columns, _ = hidden.shape
        stem = self.stem
        if stem > 1:
            squares = hidden.reshape(batch, rows, columns, stem, stem, -1).transpose(0, 1, 3, 2, 4, 5)
            hidden = squares.reshape(batch, rows * stem, columns * stem, -1)
        return hidden[:, : shape[1], : shape[2]]


# Presets; `options` are UNet's other fields and override the preset's.


def unet_small_28(**options) -> UNet:
    """For 28 to 32 pixels on a CPU: 0.76 million parameters.

    >>> unet_small_28().factors
    (2, 4)
    """
    preset: dict[str, Any] = dict(channels=32, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=32, stem=2)
    return UNet(**preset | options)


def unet_28(**options) -> UNet:
    """For 28 to 32 pixels, after the small model of DDPM-OOD (Graham et al. 2023): 19 million parameters."""
    preset: dict[str, Any] = dict(channels=128, multipliers=(1, 2, 2), blocks=1, attention=(4,), head_channels=256)
    return UNet(**preset | options)


def unet_64(**options) -> UNet:
    """For 64 pixels, ADM's ImageNet-64 model without its classes: 295 million parameters."""
    preset: dict[str, Any] = dict(
        channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(2, 4, 8), dropout=0.1, resblock_updown=True
    )
    return UNet(**preset | options)


def unet_128(**options) -> UNet:
    """For 128 pixels, ADM's ImageNet-128 model: 421 million parameters."""
    preset: dict[str, Any] = dict(
        channels=256, multipliers=(1, 1, 2, 3, 4), blocks=2, attention=(4, 8, 16), resblock_updown=True
    )
    return UNet(**preset | options)


def unet_224(**options) -> UNet:
    """For 224 and 256 pixels, ADM's ImageNet-256 model at half its width: 138 million parameters."""
    preset: dict[str, Any] = dict(
        channels=128, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(8, 16, 32), resblock_updown=True
    )
    return UNet(**preset | options)
