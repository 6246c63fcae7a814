"""Classical recipes that need no denoiser: what a generator has to beat."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.stats import gaussian_kde, norm, rankdata
from sklearn.mixture import GaussianMixture
from sklearn.utils import check_random_state

from jaxad.generation.generated import Generated, Kind, check_examples, concrete, generated

ADBENCH_KINDS = ("local", "cluster", "global", "dependency")

MOST_DEPENDENT_COLUMNS = 50
"""ADBench draws so many columns where there are more, for ``dependency`` alone."""

QUANTILE_DRAWS = 20_000
"""Draws from a column's density, of which the quantiles are taken."""


def adbench_synthetic(
    kind: str,
    rows: Float[np.ndarray, "rows features"],
    anomalies: int,
    *,
    alpha: float = 5.0,
    percentage: float = 0.1,
    range_pad: str = "adbench",
    random_state=None,
) -> tuple[np.ndarray, np.ndarray]:
    """ADBench's "realistic synthetic" data (Han et al., NeurIPS 2022, section 3.2 and its code): ``(normals, anomalies)``.

    Normal rows are drawn anew, as many as there are, from a Gaussian mixture of 1 to 9 full components (the number by BIC); anomalies are

    - ``"local"``: the same mixture with ``alpha`` times the covariances;
    - ``"cluster"``: with ``alpha`` times the means;
    - ``"global"``: uniform in every column from ``(1 + percentage) min`` to ``(1 + percentage) max`` of the new normal rows. For a positive
      minimum that shuts the low end out; ``range_pad="additive"`` widens the range on both sides instead;
    - ``"dependency"``: every column by itself from its Gaussian kernel density. Normal rows then come from a copula over the same
      densities, at most 50 columns. ADBench's is a vine; **here it is a Gaussian copula**, which has the rank correlations of the data
      but no other dependence.

    Draws are of the distributions published, not of ADBench's random numbers.

    Raises:
        ValueError: an unknown kind or padding, rows that are not a table of finite numbers with more than 9 rows, or no anomaly asked for.

    >>> normals, wrong = adbench_synthetic("local", np.random.default_rng(0).normal(size=(500, 2)), 200, random_state=0)
    >>> normals.shape, wrong.shape, bool(abs(wrong.var() / normals.var() - 5) < 1)
    ((500, 2), (200, 2), True)
    """
    rows = np.asarray(rows, np.float64)
    if kind not in ADBENCH_KINDS or range_pad not in ("adbench", "additive"):
        raise ValueError(
            f"need a kind of {ADBENCH_KINDS} and range_pad 'adbench' or 'additive', got {kind!r}, {range_pad!r}"
        )
    if rows.ndim != 2 or len(rows) < 10 or not np.isfinite(rows).all() or anomalies < 1:
        raise ValueError(
            f"need at least 10 rows [rows, features] of finite numbers and 1 anomaly, got shape {rows.shape}, {anomalies=}"
        )
    rng = check_random_state(random_state)
    if kind == "dependency":
        if rows.shape[1] > MOST_DEPENDENT_COLUMNS:
            rows = rows[:, rng.choice(rows.shape[1], MOST_DEPENDENT_COLUMNS, replace=False)]
        return _gaussian_copula(rows, rng), np.stack([_one_by_one(column, anomalies, rng) for column in rows.T], axis=1)
    mixtures = [GaussianMixture(n, random_state=rng.randint(2**31 - 1)).fit(rows) for n in range(1, 10)]
    mixture: Any = min(mixtures, key=lambda mixture: mixture.bic(rows))
    normals = mixture.sample(len(rows))[0]
    if kind == "global":
        low, high = normals.min(axis=0), normals.max(axis=0)
        if range_pad == "adbench":
            low, high = (1 + percentage) * low, (1 + percentage) * high
        else:
            low, high = low - percentage * (high - low), high + percentage * (high - low)
        return normals, rng.uniform(np.minimum(low, high), np.maximum(low, high), (anomalies, rows.shape[1]))
    if kind == "local":
        mixture.covariances_ = alpha * mixture.covariances_
    else:
        mixture.means_ = alpha * mixture.means_
    mixture.random_state = rng.randint(2**31 - 1)
    return normals, mixture.sample(anomalies)[0]


def _one_by_one(column, count, rng):
    """Draws from the column's Gaussian kernel density; of a constant column, the constant."""
    return gaussian_kde(column).resample(count, seed=rng)[0] if np.ptp(column) > 0 else np.full(count, column[0])


def _gaussian_copula(rows, rng):
    """As many new rows, with the columns' kernel densities and the correlations of their normal scores."""
    count = len(rows)
    scores = norm.ppf((rankdata(rows, axis=0) - 0.5) / count)
    spread = scores.std(axis=0)
    z = (scores - scores.mean(axis=0)) / np.where(spread > 0, spread, 1)  # a constant column depends on nothing
    variances, ways = np.linalg.eigh(z.T @ z / count)
    shares = norm.cdf(rng.normal(size=rows.shape) @ (ways * np.sqrt(np.maximum(variances, 0))).T)
    # The quantiles of a kernel density are those of many draws from it.
    columns = (_one_by_one(column, QUANTILE_DRAWS, rng) for column in rows.T)
    return np.stack([np.quantile(column, share) for column, share in zip(columns, shares.T, strict=True)], axis=1)


def nng_mix(
    key: Array,
    anomalies: Float[Array, "few features"],
    x: Float[Array, "batch features"],
    count: int,
    *,
    neighbours: int = 10,
    concentration: float = 0.2,
    spread: float = 0.01,
) -> Generated:
    """Between a known anomaly and one of its nearest rows, normal or anomalous with equal chances (NNG-Mix, Dong et al. 2023).

    ``l a + (1 - l) b`` with ``l ~ Beta(concentration, concentration)``, both with noise of ``spread`` added first; published: 10
    neighbours, .2, and .01 for tables (.3 for features of pictures and texts). A lone anomaly mixes with rows of ``x`` alone. The mask is
    True everywhere.

    Args:
        anomalies: the few that are known, of the scale of ``x`` (standardise).
        x: normal rows, or unlabelled ones.

    Raises:
        ValueError: no anomaly, rows of another width, an anomaly that is identical to a row of ``x``, or a setting that is not positive.

    >>> x = jax.random.normal(jax.random.key(0), (50, 3))
    >>> nng_mix(jax.random.key(1), x[:2] + 5, x, 20).x.shape
    (20, 3)
    """
    if concrete(anomalies) and concrete(x):
        check_examples(anomalies, x)
    if count < 1 or neighbours < 1 or concentration <= 0 or spread < 0:
        raise ValueError(
            f"mixing needs count, neighbours >= 1, concentration > 0 and spread >= 0, got {count=}, {neighbours=}, "
            f"{concentration=}, {spread=}"
        )
    keys = jax.random.split(key, 7)
    few = anomalies.shape[0]

    def a_neighbour(key, rows, skip):
        near = min(neighbours, rows.shape[0] - skip)
        square = jnp.sum((anomalies[:, None] - rows[None]) ** 2, axis=-1)
        order = jnp.argsort(square, axis=1)[:, skip : skip + near]
        return rows[order[first, jax.random.randint(key, (count,), 0, near)]]

    first = jax.random.randint(keys[0], (count,), 0, few)
    partner = a_neighbour(keys[1], x, 0)
    if few > 1:
        other = a_neighbour(keys[2], anomalies, 1)  # the nearest anomaly to each is itself
        partner = jnp.where(jax.random.bernoulli(keys[3], 0.5, (count, 1)), partner, other)
    share = jax.random.beta(keys[4], concentration, concentration, (count, 1), x.dtype)
    shape = (count, x.shape[1])
    left = anomalies[first] + spread * jax.random.normal(keys[5], shape, x.dtype)
    right = partner + spread * jax.random.normal(keys[6], shape, x.dtype)
    return generated(share * left + (1 - share) * right, True, Kind.MIXED)
