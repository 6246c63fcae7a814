"""Score norms against the Gaussian's own score, on every kind of level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import noise, scoring
from jaxad.closed_form import gaussian_denoiser

MEAN = np.array([0.5, -1.0, 2.0])
MIXING = np.random.default_rng(0).normal(size=(3, 3))
COVARIANCE = MIXING @ MIXING.T
DENOISE = gaussian_denoiser(MEAN, COVARIANCE)
X = np.random.default_rng(1).normal(size=(7, 3)) * 2
LEVELS = {
    "exploding": noise.log_uniform(5),
    "preserving": noise.cosine(100)[[5, 30, 70]],
    "straight": noise.rectified_flow(10)[1::3],
}
every_schedule = pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)


def exact(levels):
    """``sigma |C^-1 (x - mean)|`` with ``C = covariance + sigma^2``."""
    norms = []
    for sigma in levels.sigma / levels.alpha:
        score = np.linalg.solve(COVARIANCE + sigma**2 * np.eye(3), (X - MEAN).T)
        norms.append(sigma * np.linalg.norm(score, axis=0))
    return np.stack(norms)


@every_schedule
def test_the_score_norm_of_a_gaussian(levels):
    norm = scoring.score_norm(jax.random.key(0), DENOISE, jnp.asarray(X, jnp.float32), levels)
    np.testing.assert_allclose(norm, exact(levels), rtol=2e-4)


@every_schedule
def test_its_logarithm(levels):
    norm = scoring.log_score_norm(jax.random.key(0), DENOISE, jnp.asarray(X, jnp.float32), levels)
    np.testing.assert_allclose(norm, np.log(exact(levels)), atol=2e-4)


def test_a_norm_of_zero_has_a_finite_logarithm_and_gradient():
    def identity(noisy, level):
        return noisy / level.alpha

    x = jnp.zeros((2, 3))
    assert np.isfinite(scoring.log_score_norm(jax.random.key(0), identity, x, LEVELS["exploding"])).all()
    for score in (scoring.score_norm, scoring.log_score_norm):
        gradient = jax.grad(lambda x, score=score: score(jax.random.key(0), identity, x, LEVELS["exploding"]).sum())(x)
        assert np.isfinite(gradient).all()


def test_no_noise_is_drawn():
    x = jnp.asarray(X, jnp.float32)
    first = scoring.score_norm(jax.random.key(0), DENOISE, x, LEVELS["exploding"], draws=5)
    np.testing.assert_array_equal(first, scoring.score_norm(jax.random.key(1), DENOISE, x, LEVELS["exploding"]))
