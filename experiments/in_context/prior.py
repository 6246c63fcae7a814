"""Synthetic tables: mixtures, structural causal models and copulas, with heavy tails, discrete columns and categories.

After the priors of FoMo-0D (Shen et al. 2025: Gaussian mixtures) and of tabular foundation models (structural causal models). Every table
is a pure function of a key, of fixed shape, made on the device.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

COMPONENTS = 5


def mixture(key: Array, rows: int, columns: int) -> Float[Array, "rows columns"]:
    """A Gaussian mixture of at most five components, means in [-5, 5], covariances of random rank."""
    keys = jax.random.split(key, 5)
    means = jax.random.uniform(keys[0], (COMPONENTS, columns), minval=-5.0, maxval=5.0)
    number = jax.random.randint(keys[1], (), 1, COMPONENTS + 1)
    share = jnp.where(jnp.arange(COMPONENTS) < number, 0.0, -jnp.inf)
    which = jax.random.categorical(keys[2], share, shape=(rows,))
    factors = jax.random.normal(keys[3], (COMPONENTS, columns, columns)) / jnp.sqrt(columns)
    # The weight of the directions falls off at random: from round clouds to thin ones.
    falloff = jnp.exp(-jnp.arange(columns)[None] * jax.random.uniform(keys[4], (COMPONENTS, 1), maxval=1.5))
    noise = jax.random.normal(jax.random.fold_in(key, 1), (rows, columns))
    return means[which] + jnp.einsum("rk,rjk->rj", noise * falloff[which], factors[which])


def causal(key: Array, rows: int, columns: int) -> Float[Array, "rows columns"]:
    """A structural causal model: every column is a random function of those before it, and noise."""
    keys = jax.random.split(key, 4)
    noise = jax.random.normal(keys[0], (rows, columns))
    # On average two parents, whatever the width.
    parents = jax.random.uniform(keys[1], (columns, columns)) < 2 / jnp.maximum(jnp.arange(columns), 2)[:, None]
    weights = jnp.where(parents, jax.random.normal(keys[2], (columns, columns)), 0.0)
    kind, scale, own = jax.random.uniform(keys[3], (3, columns))

    def column(table, number):
        from_parents = table @ weights[number]
        shapes = jnp.stack(
            [
                from_parents,
                jnp.tanh(2 * from_parents),
                jnp.sin(3 * from_parents),
                jnp.abs(from_parents),
                from_parents**2 / 2,
            ]
        )
        shaped = shapes[(kind[number] * 5).astype(int)]
        made = shaped * (0.5 + 2 * scale[number]) + noise[:, number] * (0.05 + own[number])
        return table.at[:, number].set(made), None

    return jax.lax.scan(column, jnp.zeros((rows, columns)), jnp.arange(columns))[0]


def copula(key: Array, rows: int, columns: int) -> Float[Array, "rows columns"]:
    """Gaussian dependence between columns of other shapes: normal, exponential, heavy-tailed, uniform."""
    keys = jax.random.split(key, 3)
    factors = jax.random.normal(keys[0], (columns, columns)) * jnp.exp(-jnp.arange(columns) * 0.3)[None]
    z = jax.random.normal(keys[1], (rows, columns)) @ factors.T
    z = z / jnp.sqrt(jnp.sum(factors**2, axis=1))[None]
    uniform = jax.scipy.stats.norm.cdf(z)
    shapes = jnp.stack([z, jnp.exp(z), jnp.sinh(1.5 * z), 3 * uniform])
    return jnp.take_along_axis(shapes, jax.random.randint(keys[2], (columns,), 0, 4)[None, None], axis=0)[0]


def table(key: Array, rows: int, columns: int) -> Float[Array, "rows columns"]:
    """One of the three; a fifth of the columns is rounded to a few values, as counts and categories are."""
    kinds = (mixture, causal, copula)
    keys = jax.random.split(key, 3 + len(kinds))
    # All of them, and one is taken: under vmap a switch would come to the same.
    every = jnp.stack([kind(own, rows, columns) for kind, own in zip(kinds, keys[3:], strict=True)])
    made = every[jax.random.randint(keys[0], (), 0, len(kinds))]
    made = (made - made.mean(axis=0, keepdims=True)) / (made.std(axis=0, keepdims=True) + 1e-6)
    values = jax.random.randint(keys[1], (1, columns), 1, 6)
    rounded = jnp.round(made * values) / values
    return jnp.where(jax.random.uniform(keys[2], (1, columns)) < 0.2, rounded, made)


def split(key: Array, context: int, queries: int, columns: int) -> tuple[Array, Array]:
    """``(context rows, clean queries)`` of one table, standardised by the context and cut at ten spreads, as the detectors do."""
    rows = table(key, context + queries, columns)
    known, asked = rows[:context], rows[context:]
    mean, std = known.mean(axis=0, keepdims=True), known.std(axis=0, keepdims=True)
    std = jnp.where(std > 1e-3, std, 1.0)
    return jnp.clip((known - mean) / std, -10.0, 10.0), jnp.clip((asked - mean) / std, -10.0, 10.0)
