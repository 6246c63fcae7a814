"""The diffusion transformer DiT (Peebles & Xie 2023, arXiv 2212.09748), for images and for vectors."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxad.denoisers.embedding import LevelEmbedding, positions_1d, positions_2d

# The published initialisation: Xavier for ordinary layers, zero wherever a branch must start as the identity.
_Dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform())
_ZeroDense = partial(nn.Dense, kernel_init=nn.initializers.zeros)
_small = nn.initializers.normal(0.02)


def _modulated_norm(tokens, scale, shift, dtype):
    """LayerNorm whose scale and shift ``[batch, channels]`` come from the condition, equal for all tokens of a row.

    Float32 when a compute ``dtype`` is set: the layer that follows rounds to it.
    """
    normalised = nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False, dtype=dtype and jnp.float32)(tokens)
    return normalised * (1 + scale[:, None]) + shift[:, None]


def embed_label(network, width, label, batch, train):
    """Class vectors ``[batch, width]`` of a network with ``num_classes`` and ``label_dropout``, None without classes.

    To be called inside the network's compact method; see ``DiT`` for what labels mean.
    """
    if network.num_classes is None:
        if label is not None:
            raise ValueError(
                f"a label was given to a {type(network).__name__} without classes; construct it with num_classes"
            )
        return None
    null = network.num_classes
    if label is None:
        label = jnp.full(batch, null)
    elif train and network.label_dropout > 0:
        dropped = jax.random.bernoulli(network.make_rng("dropout"), network.label_dropout, label.shape)
        label = jnp.where(dropped, null, label)
    return nn.Embed(null + 1, width, embedding_init=_small, name="label")(label)


class Block(nn.Module):
    """One adaLN-Zero block on tokens ``[batch, window, channels]``; the identity until its modulation is trained."""

    heads: int
    mlp_ratio: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch window channels"], condition: Float[Array, "batch channels"]
    ) -> Float[Array, "batch window channels"]:
        batch, window, channels = tokens.shape
        modulation = _ZeroDense(6 * channels, dtype=self.dtype, name="modulation")(condition)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation, 6, axis=-1)

        qkv = _Dense(3 * channels, dtype=self.dtype, name="qkv")(_modulated_norm(tokens, scale_1, shift_1, self.dtype))
        query, key, value = jnp.moveaxis(qkv.reshape(batch, window, 3, self.heads, channels // self.heads), 2, 0)
        mixed = jax.nn.dot_product_attention(query, key, value).reshape(batch, window, channels)
        tokens = tokens + gate_1[:, None] * _Dense(channels, dtype=self.dtype, name="attention_out")(mixed)

        hidden = _Dense(self.mlp_ratio * channels, dtype=self.dtype, name="mlp_in")(
            _modulated_norm(tokens, scale_2, shift_2, self.dtype)
        )
        return tokens + gate_2[:, None] * _Dense(channels, dtype=self.dtype, name="mlp_out")(
            nn.gelu(hidden, approximate=True)
        )


class DiT(nn.Module):
    """Transformer over patches; the rank of ``x`` decides what a patch is.

    ``[batch, height, width, channels]``: ``patch_size x patch_size`` pixels per token, 2-D positions, as published.
    ``[batch, features]``: ``patch_size`` consecutive features per token (zeros fill the last one), 1-D positions;
    ``patch_size=None`` cuts any vector into at most four tokens.

    The untrained network returns exactly 0. With ``learned_variance`` the last axis doubles: first the prediction, then
    the variance interpolation v of Nichol & Dhariwal 2021.

    With ``num_classes``, ``label [batch]`` holds integers in [0, num_classes); ``num_classes`` itself or ``label=None``
    is the null class of classifier-free guidance (Ho & Salimans 2022); larger ones give NaN. With ``train=True`` each
    label becomes the null class with probability ``label_dropout``; ``apply`` then needs ``rngs={"dropout": key}``.

    ``frequency_shift=1`` is the level embedding of diffusers, see ``jaxad.denoisers.embedding.sinusoid``.

    A parameter ``hint [batch, window, hidden]``, which ``init`` never makes, is added to the tokens of the patches: what else there is to
    know about this very batch (``generation.few_shot``).

    ``dtype`` (``jnp.bfloat16`` or ``"bfloat16"``) is the precision to compute in: parameters, normalisations, softmax
    and output stay float32; None computes in that of ``x`` and the parameters. ``remat`` recomputes the blocks'
    activations in the backward pass: about a third more time; far less memory on accelerators, none less on CPUs (jax 0.10).

    Raises:
        ValueError: at construction: ``hidden`` not divisible by ``heads`` and by 4, or a size below 1. At call: ``x``
            of rank other than 2 or 4, height or width not divisible by ``patch_size``, a label without ``num_classes``.

    >>> network = DiT(hidden=16, depth=1, heads=2, patch_size=4)
    >>> x, log_snr = jnp.ones((2, 8, 12, 3)), jnp.zeros(2)
    >>> params = network.init(jax.random.key(0), x, log_snr)["params"]
    >>> network.apply({"params": params}, x, log_snr).shape
    (2, 8, 12, 3)
    """

    hidden: int = 384
    depth: int = 12
    heads: int = 6
    patch_size: int | None = 2
    mlp_ratio: int = 4
    num_classes: int | None = None
    label_dropout: float = 0.1
    learned_variance: bool = False
    frequency_shift: float = 0.0
    dtype: Any = None
    remat: bool = False

    def __post_init__(self):
        sizes = {name: getattr(self, name) for name in ("hidden", "depth", "heads", "patch_size", "mlp_ratio")}
        if min(size for size in sizes.values() if size is not None) < 1:
            raise ValueError(f"every size of a DiT must be at least 1, got {sizes}")
        if self.hidden % self.heads or self.hidden % 4:
            raise ValueError(
                f"hidden must be divisible by heads and by 4 (positions), got {self.hidden=}, {self.heads=}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *sample"],
        log_snr: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch ..."]:
        patches, positions = self._patchify(x)
        compute = jnp.dtype(self.dtype or x.dtype)
        tokens = _Dense(self.hidden, dtype=self.dtype, name="patch")(patches) + jnp.asarray(positions, compute)[None]
        if self.has_variable("params", "hint"):
            tokens = tokens + jnp.asarray(self.get_variable("params", "hint"), compute)

        condition = LevelEmbedding(self.hidden, self.frequency_shift, _small, name="level")(log_snr)
        embedded = embed_label(self, self.hidden, label, len(x), train)
        if embedded is not None:
            condition = condition + embedded
        # Every use of the condition begins with this SiLU; rounded here, so that half precision stays half precision.
        condition = nn.silu(condition).astype(compute)

        block = nn.remat(Block) if self.remat else Block
        for index in range(self.depth):
            tokens = block(self.heads, self.mlp_ratio, self.dtype, name=f"block_{index}")(tokens, condition)

        modulation = _ZeroDense(2 * self.hidden, dtype=self.dtype, name="final_modulation")(condition)
        shift, scale = jnp.split(modulation, 2, axis=-1)
        outputs = patches.shape[-1] * (2 if self.learned_variance else 1)
        final = _ZeroDense(outputs, dtype=self.dtype and jnp.float32, name="final")
        tokens = final(_modulated_norm(tokens, scale, shift, self.dtype))
        return self._unpatchify(tokens, x.shape)

    def _features_per_token(self, features):
        return -(-features // 4) if self.patch_size is None else self.patch_size

    def _patchify(self, x):
        """Patches ``[batch, window, values of one patch]`` and their positions ``[window, hidden]``."""
        if x.ndim == 2:
            p = self._features_per_token(x.shape[1])
            padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % p)))
            patches = padded.reshape(len(x), -1, p)
            return patches, positions_1d(patches.shape[1], self.hidden)
        if x.ndim != 4:
            raise ValueError(
                f"DiT takes vectors [batch, features] or images [batch, height, width, channels], got {x.shape=}"
            )
        batch, height, width, channels = x.shape
        p = self.patch_size
        if p is None:
            raise ValueError("a DiT on images needs a patch_size in pixels; None is for vectors")
        if height % p or width % p:
            raise ValueError(
                f"height and width must be divisible by patch_size, got {x.shape=}, patch_size={p}; pad the images"
            )
        patches = x.reshape(batch, height // p, p, width // p, p, channels).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(batch, -1, p * p * channels)
        return patches, positions_2d(height // p, width // p, self.hidden)

    def _unpatchify(self, tokens, shape):
        """Tokens ``[batch, window, outputs]`` to the sample's shape; twice the outputs become twice the last axis."""
        if len(shape) == 2:
            # A vector is a row of one-channel pixels: the doubled channel axis moves in front of the features.
            batch, features = shape
            channels = tokens.shape[-1] // self._features_per_token(features)
            rows = tokens.reshape(batch, -1, channels)[:, :features]
            return jnp.moveaxis(rows, -1, 1).reshape(batch, channels * features)
        batch, height, width, _ = shape
        p = self.patch_size
        pixels = tokens.reshape(batch, height // p, width // p, p, p, -1).transpose(0, 1, 3, 2, 4, 5)
        return pixels.reshape(batch, height, width, -1)


# The sizes of the paper's table 1; `options` are DiT's other fields. A patch size that gives 196 to 256 tokens is a good
# start: 2 for 28 and 32 pixels (with hidden 192 to 384 and depth 6 to 12), 4 for 64, 16 for 224.


def dit_s(patch_size: int, **options) -> DiT:
    """DiT-S: 33 million parameters at patch size 2 and 4 channels.

    >>> dit_s(4).hidden
    384
    """
    return DiT(hidden=384, depth=12, heads=6, patch_size=patch_size, **options)


def dit_b(patch_size: int, **options) -> DiT:
    """DiT-B: 130 million parameters."""
    return DiT(hidden=768, depth=12, heads=12, patch_size=patch_size, **options)


def dit_l(patch_size: int, **options) -> DiT:
    """DiT-L: 458 million parameters."""
    return DiT(hidden=1024, depth=24, heads=16, patch_size=patch_size, **options)


def dit_xl(patch_size: int, **options) -> DiT:
    """DiT-XL: 675 million parameters."""
    return DiT(hidden=1152, depth=28, heads=16, patch_size=patch_size, **options)


def dit_small_28(**options) -> DiT:
    """For 28 or 32 pixels on a CPU: 1.3 million parameters, 49 or 64 tokens; `options` override the preset's fields.

    >>> dit_small_28(learned_variance=True).patch_size
    4
    """
    preset: dict[str, Any] = dict(hidden=128, depth=4, heads=4, patch_size=4)
    return DiT(**preset | options)
