"""Denoisers known in closed form: oracles for every sampler and score, and detectors that need no training.

For Gaussian data the posterior mean is linear (``gaussian_denoiser``); for a finite set of training rows it is a kernel average of
them (``empirical_denoiser``), which no network can beat on those rows: a training loss below the population's means memorising.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxad.denoising import Denoise


def gaussian_denoiser(
    mean: Float[ArrayLike, " features"], covariance: Float[ArrayLike, "features features"]
) -> Denoise:
    """The exact denoiser of data from N(mean, covariance): ``mean + alpha S C^-1 (z - alpha mean)``, ``C = alpha^2 S + sigma^2 I``.

    The eigendecomposition is done once, on the host, in float64. A singular covariance is fine.

    >>> import jax.numpy as jnp
    >>> from jaxad.noise import NoiseLevel
    >>> denoise = gaussian_denoiser(jnp.zeros(1), 4 * jnp.eye(1))
    >>> float(denoise(jnp.array([[1.0]]), NoiseLevel(jnp.array(1.0), jnp.array(1.0)))[0, 0])  # 4 / (4 + 1)
    0.800000011920929
    """
    mean = np.asarray(mean, np.float64)
    covariance = np.asarray(covariance, np.float64)
    if covariance.shape != (mean.size, mean.size):
        raise ValueError(
            f"a mean of {mean.size} features needs a covariance of shape {(mean.size,) * 2}, got {covariance.shape}"
        )
    eigenvalues, vectors = np.linalg.eigh(covariance)
    eigenvalues = np.maximum(eigenvalues, 0)

    def denoise(noisy, level):
        centre = jnp.asarray(mean, noisy.dtype)[None]
        basis = jnp.asarray(vectors, noisy.dtype)
        spread = jnp.asarray(eigenvalues, noisy.dtype)[None]
        alpha = _column(level.alpha, noisy)
        sigma = _column(level.sigma, noisy)
        gain = alpha * spread / (alpha**2 * spread + sigma**2)
        return centre + (gain * ((noisy - alpha * centre) @ basis)) @ basis.T

    return denoise


def empirical_denoiser(rows: Float[Array, "rows features"]) -> Denoise:
    """The exact denoiser of the empirical distribution of ``rows``: ``sum_i w_i x_i``, ``w = softmax(-|z - alpha x_i|^2 / 2 sigma^2)``.

    Costs ``O(rows * features)`` per evaluated row and, like a kernel density, needs no training. As sigma grows it returns the mean
    of the rows, as sigma falls the nearest one.

    >>> import jax.numpy as jnp
    >>> from jaxad.noise import NoiseLevel
    >>> denoise = empirical_denoiser(jnp.array([[0.0], [10.0]]))
    >>> float(denoise(jnp.array([[9.0]]), NoiseLevel(jnp.array(1.0), jnp.array(0.5)))[0, 0])
    10.0
    """
    rows = jnp.asarray(rows)
    if rows.ndim != 2 or not rows.shape[0]:
        raise ValueError(f"the empirical denoiser needs at least one row of features, got shape {rows.shape}")
    half_square = 0.5 * jnp.sum(rows**2, axis=1)

    def denoise(noisy, level):
        data = jnp.asarray(rows, noisy.dtype)
        alpha = _column(level.alpha, noisy)
        sigma = _column(level.sigma, noisy)
        # -|z - a x|^2 / 2 s^2 without the |z|^2 that softmax cancels; divided last, so that small sigma does not overflow the sum.
        logits = alpha * (noisy @ data.T - alpha * jnp.asarray(half_square, noisy.dtype)[None]) / sigma**2
        return jax.nn.softmax(logits, axis=1) @ data

    return denoise


def _column(values, noisy):
    """Per-row or scalar level values as ``[batch or 1, 1]``."""
    return jnp.asarray(values, noisy.dtype).reshape(-1, 1)
