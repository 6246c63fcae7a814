"""Combinations: from a row's scores at many levels to one number, fitted on normal rows that were not trained on.

A ``Combination`` is a pair of pure functions: ``fit`` looks at scores of normal rows, on the host, and returns a record of arrays;
``apply`` turns scores of any rows and that record into one number per row, larger = more anomalous, and composes with JAX's transforms.
All but ``total`` look at z-scores, which make levels of any size comparable without an anomaly in sight.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.covariance import ledoit_wolf
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from jaxad.scoring.draws import safe_sqrt

FARTHEST_Z = 1e12
"""z-scores are cut here before they are squared: float32 can still do that, and no anomaly needs to be farther away."""

MAX_COMPONENTS = 3
NUM_NEIGHBOURS = 5
MAX_KEPT_ROWS = 2000


class Combination(NamedTuple):
    """``fit(normal scores [levels, rows]) -> state`` and ``apply(scores [levels, batch], state) -> [batch]``.

    ``fit`` raises ValueError for scores of another shape, or that are not finite.

    >>> state = z_mean.fit(np.array([[0.0, 2.0, 4.0], [10.0, 30.0, 50.0]]))
    >>> z_mean.apply(jnp.array([[2.0, 4.0], [30.0, 50.0]]), state).round(3)
    Array([0.   , 1.225], dtype=float32)
    """

    fit: Callable[[Float[np.ndarray, "levels rows"]], Any]
    apply: Callable[[Float[Array, "levels batch"], Any], Float[Array, " batch"]]


# ---------------------------------------------------------------------------------------------------------------- z-scores


@flax.struct.dataclass
class LevelStatistics:
    """Mean and spread per level [levels] of a score on held-out normal rows: what makes levels comparable without any anomaly."""

    mean: Float[Array | np.ndarray, "..."]
    std: Float[Array | np.ndarray, "..."]


def level_statistics(scores: Float[np.ndarray, "levels rows"]) -> LevelStatistics:
    """Statistics of ``scores`` of normal rows that were *not* trained on. A level without spread counts with spread 1."""
    scores = _checked(scores)
    mean, std = scores.mean(axis=1), scores.std(axis=1)
    # Rounding gives a constant level a spread of about 1e-16 of its mean.
    return LevelStatistics(mean, np.where(std > 1e-12 * np.abs(mean), std, 1.0))


def standardise(scores: Float[Array, "levels batch"], statistics: Any) -> Float[Array, "levels batch"]:
    """z-scores per level, from any record with ``mean`` and ``std``."""
    mean = jnp.asarray(statistics.mean[:, None], scores.dtype)
    return (scores - mean) / jnp.asarray(statistics.std[:, None], scores.dtype)


def _checked(scores) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not scores.shape[0] or not scores.shape[1]:
        raise ValueError(f"a combination is fitted on scores of shape [levels, rows], got {scores.shape}")
    finite = np.isfinite(scores)
    if not finite.all():
        levels = np.flatnonzero(~finite.all(axis=1)).tolist()
        raise ValueError(
            f"scores of normal rows must be finite, got {(~finite).sum()} that are not, at levels {levels}; "
            "leave those levels out, or check the scale of the data"
        )
    return scores


def _bounded(scores, statistics):
    return jnp.clip(standardise(scores, statistics), -FARTHEST_Z, FARTHEST_Z)


def _fit_nothing(scores):
    _checked(scores)
    return ()


def _fit_halves(scores):
    if len(scores) < 2:
        raise ValueError(f"a ratio of cleaner to noisier levels needs at least 2 levels, got {len(scores)}")
    return level_statistics(scores)


# Functions with names, not lambdas: a fitted detector holds them and must be picklable.
def _sum(scores, state):
    return jnp.sum(scores, axis=0)


def _mean_z(scores, state):
    return jnp.mean(standardise(scores, state), axis=0)


def _largest_z(scores, state):
    return jnp.max(standardise(scores, state), axis=0)


def _mean_absolute_z(scores, state):
    return jnp.mean(jnp.abs(standardise(scores, state)), axis=0)


def _difference_of_halves(scores, state):
    z, half = standardise(scores, state), len(scores) // 2
    return jnp.mean(z[:half], axis=0) - jnp.mean(z[-half:], axis=0)


total = Combination(_fit_nothing, _sum)
"""Plain sum over levels; the normal rows are not used. For terms that add up, such as ``variational_bound``'s."""

z_mean = Combination(level_statistics, _mean_z)
"""Mean z-score over levels (ddpm-ood, Graham et al. 2023)."""

z_max = Combination(level_statistics, _largest_z)
"""Largest z-score over levels: for anomalies that show at one level only."""

typicality = Combination(level_statistics, _mean_absolute_z)
"""Mean absolute z-score: too good is as suspicious as too bad (Nalisnick et al. 2019, for likelihoods)."""

likelihood_ratio = Combination(_fit_halves, _difference_of_halves)
"""Mean z-score of the cleaner half of the levels minus that of the noisier half (of an odd number, the middle one counts in neither).

The complexity correction of Goodier & Campbell 2023 (arXiv 2310.17432), who take a ratio of partial variational bounds: what makes a
row merely complex raises both halves, and cancels."""


# ------------------------------------------------------------------------------------------------- the vector of all levels


@flax.struct.dataclass
class Whitening:
    """z-scores and the matrix [levels, levels] that makes them white."""

    mean: Float[Array | np.ndarray, "..."]
    std: Float[Array | np.ndarray, "..."]
    whitener: Float[Array | np.ndarray, "..."]


def _fit_whitening(scores):
    statistics = level_statistics(scores)
    z = _z_rows(scores, statistics)
    covariance = np.eye(z.shape[1]) if len(z) < 2 else ledoit_wolf(z, assume_centered=True)[0]
    # A level without spread counts with spread 1 here as well.
    flat = np.flatnonzero(~z.any(axis=0))
    covariance[flat, flat] = 1.0
    eigenvalues, vectors = np.linalg.eigh(covariance)
    whitener = vectors / np.sqrt(np.maximum(eigenvalues, 1e-6))
    return Whitening(statistics.mean, statistics.std, whitener)


def _mahalanobis(scores, state):
    return safe_sqrt(jnp.sum((jnp.asarray(state.whitener.T, scores.dtype) @ _bounded(scores, state)) ** 2, axis=0))


mahalanobis = Combination(_fit_whitening, _mahalanobis)
"""Mahalanobis distance of the vector of z-scores from that of normal rows, covariance shrunk after Ledoit & Wolf 2004: sees levels that
disagree where they should agree, in either direction."""


@flax.struct.dataclass
class Mixture:
    """z-scores and a Gaussian mixture over them: log weights [components], means, and per component the factor of its precision."""

    mean: Float[Array | np.ndarray, "..."]
    std: Float[Array | np.ndarray, "..."]
    log_weights: Float[Array | np.ndarray, "..."]
    centres: Float[Array | np.ndarray, "..."]
    factors: Float[Array | np.ndarray, "..."]


def _fit_mixture(scores):
    statistics = level_statistics(scores)
    z = _z_rows(scores, statistics)
    rows, levels = z.shape
    # A full covariance has levels / 2 parameters per level: few rows must do with the diagonal, and one row with itself twice.
    kind = "diag" if rows < 10 * levels else "full"
    z = np.resize(z, (max(2, rows), levels))
    most = max(1, min(MAX_COMPONENTS, rows // 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixtures = [
            GaussianMixture(components, covariance_type=kind, reg_covar=1e-3, random_state=0).fit(z)
            for components in range(1, most + 1)
        ]
    best: Any = min(mixtures, key=lambda mixture: mixture.bic(z))
    factors = best.precisions_cholesky_
    if kind == "diag":
        factors = factors[:, :, None] * np.eye(levels)
    return Mixture(statistics.mean, statistics.std, np.log(best.weights_), best.means_, factors)


def _mixture_surprise(scores, state):
    z = _bounded(scores, state)
    log_weights, centres, factors = (
        jnp.asarray(part, scores.dtype) for part in (state.log_weights, state.centres, state.factors)
    )

    def log_density(log_weight, centre, factor):
        white = factor.T @ (z - centre[:, None])
        log_volume = jnp.sum(jnp.log(jnp.diagonal(factor)))
        return log_weight + log_volume - 0.5 * (jnp.sum(white**2, axis=0) + len(z) * jnp.log(2 * jnp.pi))

    return -jax.nn.logsumexp(jax.vmap(log_density)(log_weights, centres, factors), axis=0)


gmm = Combination(_fit_mixture, _mixture_surprise)
"""Minus the log-density (nats) of the vector of z-scores under a Gaussian mixture (MSMA, Mahmood et al. 2021): one to three components,
chosen by BIC, with diagonal covariances where there are fewer than 10 rows per level, full ones elsewhere."""


@flax.struct.dataclass
class Neighbours:
    """z-scores, and those of at most 2,000 normal rows [rows, levels] to be near to."""

    mean: Float[Array | np.ndarray, "..."]
    std: Float[Array | np.ndarray, "..."]
    kept: Float[Array | np.ndarray, "..."]


def _fit_neighbours(scores):
    statistics = level_statistics(scores)
    z = _z_rows(scores, statistics)
    kept = np.linspace(0, len(z) - 1, min(len(z), MAX_KEPT_ROWS)).astype(np.int64)
    return Neighbours(statistics.mean, statistics.std, z[kept].astype(np.float32))


def _mean_distance_to_neighbours(scores, state):
    kept = jnp.asarray(state.kept, scores.dtype)
    nearest = min(NUM_NEIGHBOURS, kept.shape[0])

    def one(z):
        # Distances by difference, not by the matrix product that loses the digits of small ones.
        square = jnp.sum((kept - z[None]) ** 2, axis=1)
        return jnp.mean(safe_sqrt(-jax.lax.top_k(-square, nearest)[0]))

    together = max(1, 2**22 // kept.size)
    return jax.lax.map(one, _bounded(scores, state).T, batch_size=together)


knn = Combination(_fit_neighbours, _mean_distance_to_neighbours)
"""Mean distance of the vector of z-scores to its 5 nearest among held-out normal rows, of which at most 2,000 are kept."""


def _z_rows(scores, statistics):
    """z-scores of the normal rows on the host, [rows, levels] as scikit-learn likes them."""
    return ((np.asarray(scores, np.float64) - statistics.mean[:, None]) / statistics.std[:, None]).T
