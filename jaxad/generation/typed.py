"""Anomalies of a stated type for vectors; ``sdas`` makes the local ones. Columns should be standardised."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxad.denoising import Denoise, Variance
from jaxad.generation.generated import Generated, Kind, check_denoiser, check_strength, generated, walked
from jaxad.noise import NoiseLevel
from jaxad.sampling import fixed_small
from jaxad.scoring.conditional import inpaint


def random_columns(key: Array, rows: int, columns: int, most: int = 3) -> Bool[Array, "rows columns"]:
    """1 to ``most`` columns of each row, as many and those that chance will have; never all of them.

    Raises:
        ValueError: a single column, or ``most`` below 1.

    >>> random_columns(jax.random.key(0), 4, 5).sum(axis=1)
    Array([2, 3, 2, 2], dtype=int32)
    """
    if columns < 2 or most < 1:
        raise ValueError(
            f"changing some columns and keeping others needs 2 columns and most >= 1, got {columns} and {most=}"
        )
    count_key, place_key = jax.random.split(key)
    count = jax.random.randint(count_key, (rows, 1), 1, min(most, columns - 1) + 1)
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(place_key, (rows, columns)), axis=1), axis=1)
    return rank < count


def dependency_anomalies(
    key: Array, denoise: Denoise, x: Float[Array, "batch features"], levels: NoiseLevel, *, most: int = 3
) -> Generated:
    """1 to ``most`` columns redrawn as if the rest of the row were another row's: each column stays normal, the row does not.

    The new values come from in-painting these columns of *another* row of the batch (``scoring.inpaint``), so they follow the columns' own
    joint distribution, are no copies, and know nothing of the row they end in. Where the columns did not depend on the others anyway, what
    comes out is normal.

    Args:
        levels: [steps], cleanest first, ending where the noise drowns the data: ``noise.log_uniform(20, sigma_min=.05, sigma_max=20)``.
        most: columns changed at most; the strength of this generator. Fewer are harder to find.

    Evaluations per row: ``steps``.

    Raises:
        ValueError: a single row or column, ``most`` below 1, levels that are no path, or a denoiser of rows of another shape.

    >>> from jaxad import closed_form, noise
    >>> x = jnp.tile(jax.random.normal(jax.random.key(0), (500, 1)), (1, 2))
    >>> denoise = closed_form.gaussian_denoiser(jnp.zeros(2), jnp.full((2, 2), 1.0))
    >>> levels = noise.log_uniform(20, sigma_min=0.05, sigma_max=20.0)
    >>> made = dependency_anomalies(jax.random.key(1), denoise, x, levels, most=1)
    >>> bool(abs(jnp.corrcoef(made.x.T)[0, 1]) < 0.2), bool((made.x == x)[~made.mask].all())
    (True, True)
    """
    check_denoiser(denoise, x, levels, "dependency breaking")
    if x.shape[0] < 2:
        raise ValueError("dependency breaking takes values from other rows, got a single row; give it two at least")
    column_key, donor_key, fill_key = jax.random.split(key, 3)
    mask = random_columns(column_key, x.shape[0], x.shape[1], most)
    donors = jnp.roll(x, jax.random.randint(donor_key, (), 1, x.shape[0]), axis=0)

    def fill(key, row, mask):
        return inpaint(key, denoise, row[None], mask, levels)[0]

    filled = jax.vmap(fill)(jax.random.split(fill_key, x.shape[0]), donors, mask)
    return generated(jnp.where(mask, filled, x), mask, Kind.DEPENDENCY)


def point_anomalies(
    key: Array, x: Float[Array, "batch features"], *, strength: float = 1.0, most: int = 3
) -> Generated:
    """1 to ``most`` columns beyond the range they have in ``x``, on either side, by ``strength`` spreads of the column on average.

    ``strength`` from 0 to 100; the distance is exponential, so some are near. Raises as ``random_columns``, and for a strength out of
    range.
    """
    check_strength(strength, 0.0, 100.0, "a point anomaly")
    column_key, side_key, far_key = jax.random.split(key, 3)
    mask = random_columns(column_key, x.shape[0], x.shape[1], most)
    far = strength * jnp.std(x, axis=0, keepdims=True) * jax.random.exponential(far_key, x.shape, x.dtype)
    high, low = jnp.max(x, axis=0, keepdims=True) + far, jnp.min(x, axis=0, keepdims=True) - far
    wrong = jnp.where(jax.random.bernoulli(side_key, 0.5, x.shape), high, low)
    return generated(jnp.where(mask, wrong, x), mask, Kind.POINT)


def cluster_anomalies(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch features"],
    levels: NoiseLevel,
    *,
    strength: float = 2.0,
    variance: Variance = fixed_small,
) -> Generated:
    """One tight group in a wrong place: versions of a single normal row, all moved in the same random direction.

    Args:
        levels: a *short* path, ending at a noise that leaves the row recognisable: ``noise.log_uniform(10, sigma_min=.05, sigma_max=.5)``.
        strength: how far, in spreads of every column, root mean square; from 0 to 100.

    Raises:
        ValueError: a strength out of range, levels that are no path, or a denoiser of rows of another shape.
    """
    check_strength(strength, 0.0, 100.0, "a cluster of anomalies")
    check_denoiser(denoise, x, levels, "a cluster of anomalies")
    row_key, way_key, walk_key = jax.random.split(key, 3)
    one = jnp.broadcast_to(x[jax.random.randint(row_key, (), 0, x.shape[0])], x.shape)
    group = walked(walk_key, denoise, one, levels, variance)
    way = jax.random.normal(way_key, (1, x.shape[1]), x.dtype)
    way = way / jnp.sqrt(jnp.mean(way**2))
    return generated(group + strength * jnp.std(x, axis=0, keepdims=True) * way, True, Kind.CLUSTER)


def global_anomalies(key: Array, x: Float[Array, "batch features"], *, strength: float = 0.1) -> Generated:
    """Uniform over the box of the columns' ranges, each widened on both sides by the share ``strength`` of its length, from 0 to 10."""
    check_strength(strength, 0.0, 10.0, "a global anomaly")
    low, high = jnp.min(x, axis=0, keepdims=True), jnp.max(x, axis=0, keepdims=True)
    pad = strength * (high - low)
    share = jax.random.uniform(key, x.shape, x.dtype)
    return generated(low - pad + share * (high - low + 2 * pad), True, Kind.GLOBAL)
