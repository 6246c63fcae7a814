"""The nearest of many known rows, exactly, as a JAX program.

Squared distances by a product of matrices are fast and lose the digits of small ones. So the product only *proposes*: block by block of
known rows, the closest ``MARGIN`` more than were asked for, since rounding may swap rows that are almost equally near. Their distances are
computed anew from differences: exactly 0 for a copy.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxad.detectors.scorer import root

MARGIN = 8
BLOCK = 4096
"""Known rows whose products with a batch lie in memory at once: 16 MiB for a batch of 1,024, about what a processor's caches hold."""


class Known(NamedTuple):
    """Rows to search among. Their number is padded, so that fits of similar size share a compiled program; padding is never found."""

    rows: Float[Array | np.ndarray, "..."]
    half_norms: Float[Array | np.ndarray, "..."]
    """Half the squared length of each row; infinite for padding."""


def padded_size(num_rows: int) -> int:
    """Sizes of which there are four per doubling and none more than 4,096 apart: at most a quarter is padding, of many rows little."""
    step = min(max(16, 2 ** (num_rows.bit_length() - 3)), 4096)
    return -(-num_rows // step) * step


def known(rows: np.ndarray, size: int | None = None) -> Known:
    """``rows [rows, features]``, standardised, made ready; padded to ``size``, by default ``padded_size``."""
    rows = np.asarray(rows, np.float32)
    padding = (padded_size(len(rows)) if size is None else size) - len(rows)
    half_norms = 0.5 * np.einsum("rd,rd->r", rows, rows, dtype=np.float64)
    return Known(
        np.concatenate([rows, np.zeros((padding, rows.shape[1]), np.float32)]),
        np.concatenate([half_norms, np.full(padding, np.inf)]).astype(np.float32),
    )


def squared_distances(
    among: Known, queries: Float[Array, "batch features"], count: int, own: Int[Array, " batch"] | None = None
) -> Float[Array, "batch count"]:
    """Squared distances from every query to its ``count`` nearest known rows, increasing; infinite where there are fewer.

    ``own`` names the known row that each query *is*, to be left out; a negative number names none. Holds ``batch x BLOCK`` numbers, and
    ``[batch, count, features]`` differences. Differentiable with respect to the queries.

    >>> among = known(np.array([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]]))
    >>> squared_distances(among, jnp.array([[0.0, 2.0]]), 2).tolist()
    [[1.0, 4.0]]
    >>> squared_distances(among, jnp.array([[0.0, 1.0]]), 1, own=jnp.array([1])).tolist()
    [[1.0]]
    """
    squared = _nearest(among, queries, count, own)[1]
    return -jax.lax.top_k(-squared, min(count, squared.shape[1]))[0]


def _nearest(among, queries, count, own):
    """``(indices, squared distances)``, both [batch, count + MARGIN], of rows among which the nearest are."""
    rows, half_norms = jnp.asarray(among.rows, queries.dtype), jnp.asarray(among.half_norms, queries.dtype)
    found = _candidates(rows, half_norms, jax.lax.stop_gradient(queries), count + MARGIN, own)
    squared = jnp.sum((rows[found] - queries[:, None]) ** 2, axis=2)
    left_out = jnp.isinf(half_norms)[found]
    if own is not None:
        left_out |= found == own[:, None]
    return found, jnp.where(left_out, jnp.inf, squared)


def nearest_index(among: Known, queries: Float[Array, "batch features"]) -> Int[Array, " batch"]:
    """Which known row is nearest to each query?

    >>> nearest_index(known(np.array([[0.0], [5.0]])), jnp.array([[4.0], [1.0]])).tolist()
    [1, 0]
    """
    found, squared = _nearest(among, queries, 1, None)
    return jnp.take_along_axis(found, jnp.argmin(squared, axis=1, keepdims=True), axis=1)[:, 0]


def mean_distance(among: Known, queries: Float[Array, "batch features"], count: int) -> Float[Array, " batch"]:
    """Mean distance to the ``count`` nearest known rows."""
    return jnp.mean(root(squared_distances(among, queries, count)), axis=1)


def _candidates(rows, half_norms, queries, count, own):
    """Indices of known rows, [batch, count] or all of fewer, that are nearest by the product."""
    size = len(rows)
    own = None if own is None else own[:, None]
    if size <= BLOCK:
        return _best_of_block(rows, half_norms, 0, queries, count, own)[1]
    whole, rest = divmod(size, BLOCK)
    cut = whole * BLOCK
    blocks = rows[:cut].reshape(whole, BLOCK, -1), half_norms[:cut].reshape(whole, BLOCK), jnp.arange(whole) * BLOCK

    def step(best, block):
        rows, half_norms, start = block
        return _better(best, _best_of_block(rows, half_norms, start, queries, count, own)), None

    # Derived from the queries, so that under shard_map it lies where they do.
    nothing = jnp.zeros((queries.shape[0], count), queries.dtype) * queries[:, :1]
    best, _ = jax.lax.scan(step, (nothing - jnp.inf, nothing.astype(jnp.int32)), blocks)
    if rest:
        best = _better(best, _best_of_block(rows[cut:], half_norms[cut:], cut, queries, count, own))
    return best[1]


def _best_of_block(rows, half_norms, start, queries, count, own):
    """``(closeness, index)`` of the closest rows of a block, [batch, count] or all of fewer."""
    closeness = jnp.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST) - half_norms[None]
    if own is not None:
        closeness = jnp.where(jnp.arange(len(rows))[None] + start == own, -jnp.inf, closeness)
    values, index = jax.lax.top_k(closeness, min(count, len(rows)))
    return values, index + start


def _better(first, second):
    """The closest of two sets of candidates, as many as the first has."""
    values, index = (jnp.concatenate(pair, axis=-1) for pair in zip(first, second, strict=True))
    values, chosen = jax.lax.top_k(values, first[0].shape[-1])
    return values, jnp.take_along_axis(index, chosen, axis=-1)
