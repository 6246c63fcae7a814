"""A residual network for vectors: tables and feature vectors."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxad.denoisers.embedding import LevelEmbedding


class MLP(nn.Module):
    """Pre-norm residual network ``x [batch, features], log_snr [batch] -> [batch, features]`` of ``depth`` blocks.

    After the network of DTE's DDPM (Livernoche et al. 2024), with LayerNorm in place of BatchNorm, so that a row's
    output depends on that row alone, and with the noise level entering every block as scale and shift (FiLM, Perez et
    al. 2018). Each block's last layer and the output layer start at zero: the untrained network returns exactly 0. The
    last LayerNorm bounds the output however far away ``x`` lies.

    With ``learned_variance`` the output is ``[batch, 2 * features]``: the prediction, then the variance interpolation v
    of Nichol & Dhariwal 2021. With ``train=True`` and ``dropout > 0``, ``apply`` needs ``rngs={"dropout": key}``.

    Raises:
        ValueError: ``x`` is not ``[batch, features]``, or a label is given.

    >>> import jax
    >>> network = MLP(width=8, depth=1)
    >>> x, log_snr = jnp.ones((3, 5)), jnp.zeros(3)
    >>> params = network.init(jax.random.key(0), x, log_snr)["params"]
    >>> network.apply({"params": params}, x, log_snr).shape
    (3, 5)
    """

    width: int = 512
    depth: int = 4
    dropout: float = 0.0
    learned_variance: bool = False
    level_width: int = 128
    """Of the embedding of the noise level."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *sample"],
        log_snr: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch ..."]:
        if x.ndim != 2:
            raise ValueError(
                f"MLP takes vectors [batch, features], got {x.shape=}; use DiT for [batch, height, width, channels]"
            )
        if label is not None:
            raise ValueError("MLP takes no label; use DiT(num_classes=...) for conditioning on a class")
        features = x.shape[-1]
        # One embedding for all blocks, narrow because it only says how noisy the row is;
        # in x's dtype, so that half precision stays half precision.
        condition = nn.silu(LevelEmbedding(self.level_width)(log_snr)).astype(x.dtype)

        stream = nn.Dense(self.width)(x)
        for _ in range(self.depth):
            scale, shift = jnp.split(nn.Dense(2 * self.width)(condition), 2, axis=-1)
            hidden = nn.LayerNorm(use_scale=False, use_bias=False)(stream) * (1 + scale) + shift
            hidden = nn.silu(nn.Dense(2 * self.width)(hidden))
            hidden = nn.Dense(self.width, kernel_init=nn.initializers.zeros)(hidden)
            stream = stream + nn.Dropout(self.dropout)(hidden, deterministic=not train)
        outputs = 2 * features if self.learned_variance else features
        return nn.Dense(outputs, kernel_init=nn.initializers.zeros)(nn.LayerNorm()(stream))
