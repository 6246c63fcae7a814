"""The in-context denoiser: ``D(noisy row, level | normal rows)``, one network for tables of any width."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxad.denoisers.embedding import LevelEmbedding
from jaxad.denoising import Denoise


class InContextDenoiser(nn.Module):
    """``noisy [queries, features], log_snr [queries], context [rows, features] -> clean estimates [queries, features]``.

    Every cell of context and queries is a token. A block lets a cell attend to the cells of its row (which columns depend on each other),
    then to the context's cells of its column (what is usual there), then passes an MLP; weights are shared by all columns, so any width
    fits and no order of rows or columns matters. Noise is of alpha 1, the rows are standardised by the context.

    What comes out begins as a kernel density's posterior mean (``closed_form.empirical_denoiser`` with kernels of width h): the average
    of ``(h^2 noisy + sigma^2 x_i) / (h^2 + sigma^2)`` by ``softmax(-|noisy - x_i|^2 / 2 (sigma^2 + h^2))``. The network learns the width h
    for each query, a better kernel (query times key), and a correction.
    """

    width: int = 48
    depth: int = 3
    heads: int = 4

    @nn.compact
    def __call__(
        self,
        noisy: Float[Array, "queries features"],
        log_snr: Float[Array, " queries"],
        context: Float[Array, "rows features"],
    ) -> Float[Array, "queries features"]:
        queries = len(noisy)
        sigma = jnp.exp(-0.5 * log_snr)[:, None]
        # The noisy value twice: as it is, and shrunk as if columns were normal and alone, which is of one scale at every level.
        of_query = jnp.stack([noisy, noisy / (1 + sigma**2), jnp.broadcast_to(sigma, noisy.shape)], axis=-1)
        of_context = jnp.stack([context, context, jnp.zeros_like(context)], axis=-1)
        cells = jnp.concatenate([of_query, of_context])
        level = LevelEmbedding(self.width)(jnp.concatenate([log_snr, jnp.full(len(context), 20.0)]))
        waves = jnp.concatenate([jnp.sin(cells * 2.0**k) for k in (0, 1, 2)] + [cells / 3], axis=-1)
        stream = nn.Dense(self.width)(waves) + level[:, None]
        for _ in range(self.depth):
            # Within a row, every column sees every other: [rows, columns, width].
            hidden = nn.LayerNorm()(stream)
            stream = stream + self._attend(hidden, hidden)
            # Within a column, every cell sees the context: [columns, rows, width].
            hidden = nn.LayerNorm()(stream).swapaxes(0, 1)
            stream = stream + self._attend(hidden, hidden[:, queries:]).swapaxes(0, 1)
            hidden = nn.Dense(2 * self.width)(nn.LayerNorm()(stream))
            stream = stream + nn.Dense(self.width, kernel_init=nn.initializers.zeros)(nn.gelu(hidden))
        stream = nn.LayerNorm()(stream)
        zeros = nn.initializers.zeros
        rows = jnp.mean(stream, axis=1)
        width = nn.softplus(nn.Dense(1, kernel_init=zeros, bias_init=nn.initializers.constant(-1.0))(rows[:queries]))
        query = nn.Dense(self.width, kernel_init=zeros, use_bias=False)(rows[:queries])
        kernel = query @ nn.Dense(self.width, use_bias=False)(rows[queries:]).T
        squares = jnp.sum((noisy[:, None] - context[None]) ** 2, axis=-1)
        spread = sigma**2 + width**2
        weight = jax.nn.softmax(-squares / (2 * spread) + kernel, axis=1)
        mean = (width**2 * noisy + sigma**2 * (weight @ context)) / spread
        correction = nn.Dense(1, kernel_init=zeros)(stream[:queries])[..., 0]
        return mean + correction * sigma / jnp.sqrt(1 + sigma**2)

    def _attend(self, to: Any, among: Any) -> Any:
        attention = nn.MultiHeadDotProductAttention(self.heads, out_kernel_init=nn.initializers.zeros)
        return attention(to, among)


def in_context_denoiser(network: InContextDenoiser, params: Any, context: Float[Array, "rows features"]) -> Denoise:
    """The network told these standardised rows, as every score takes it: fitting is no more than that."""

    def denoise(noisy, level) -> Any:
        sigma = jnp.broadcast_to(jnp.asarray(level.sigma / level.alpha, noisy.dtype), (len(noisy),))
        rows = jnp.asarray(context, noisy.dtype)
        return network.apply(
            {"params": params}, noisy / jnp.asarray(level.alpha).reshape(-1, 1), -2 * jnp.log(sigma), rows
        )

    return denoise
