"""The network of diffusion time estimation: from a row to what it says about its own noise."""

import flax.linen as nn
from jaxtyping import Array, Float


class TimeMLP(nn.Module):
    """``x [batch, features] -> [batch, outputs]``, the network of DTE (Livernoche et al. 2024): 256-512-256, ReLU.

    Dropout follows the second and third hidden layer only, as in the published code; there is no level input, since the level is
    what the network guesses. The last layer gives logits (the published one ends in a softmax that its loss applies again).

    >>> import jax, jax.numpy as jnp
    >>> network = TimeMLP(outputs=7)
    >>> params = network.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    >>> network.apply({"params": params}, jnp.ones((3, 4))).shape
    (3, 7)
    """

    outputs: int
    widths: tuple[int, ...] = (256, 512, 256)
    dropout: float = 0.5

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool = False) -> Float[Array, "batch ..."]:
        for layer, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width)(x))
            if layer > 0:
                x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(self.outputs)(x)
