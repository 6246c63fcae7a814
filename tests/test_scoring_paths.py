"""DiffPath's statistics against the path written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import noise, scoring
from jaxad.closed_form import gaussian_denoiser
from jaxad.sampling import ddim_inversion

SPREADS = np.array([0.25, 1.0, 4.0])
DENOISE = gaussian_denoiser(np.zeros(3), np.diag(SPREADS))
X = np.random.default_rng(1).normal(size=(9, 3)) * SPREADS**0.5
PATHS = {"linear": noise.linear(1000)[::100], "exploding": noise.log_uniform(8), "two": noise.cosine(100)[[3, 60]]}
every_path = pytest.mark.parametrize("levels", PATHS.values(), ids=PATHS)


def by_hand(levels):
    """The noises along DDIM inversion of a Gaussian: ``eps = sigma C^-1 z``, with C diagonal."""
    z, noises = X, []
    for index, level in enumerate(levels):
        variance = level.alpha**2 * SPREADS + level.sigma**2
        noises.append(level.sigma * z / variance)
        clean = level.alpha * SPREADS * z / variance
        if index + 1 < len(levels):
            z = levels[index + 1].alpha * clean + levels[index + 1].sigma * noises[-1]
    noises = np.stack(noises)
    deltas = np.diff(noises, axis=0) * len(levels)
    return np.stack([(values**power).sum(axis=(0, 2)) for values in (noises, deltas) for power in (1, 2, 3)]), z


@every_path
def test_the_six_statistics_of_a_gaussian(levels):
    statistics = scoring.path_statistics(jax.random.key(0), DENOISE, jnp.asarray(X, jnp.float32), levels)
    expected, _ = by_hand(levels)
    assert statistics.shape == (6, len(X))
    np.testing.assert_allclose(statistics, expected, rtol=1e-3, atol=1e-3)


@every_path
def test_the_path_is_that_of_ddim_inversion(levels):
    _, end = by_hand(levels)
    np.testing.assert_allclose(ddim_inversion(DENOISE, jnp.asarray(X, jnp.float32), levels), end, rtol=1e-3, atol=1e-4)


@every_path
def test_curvature_is_the_root_of_the_fifth(levels):
    curvature = scoring.path_curvature(jax.random.key(0), DENOISE, jnp.asarray(X, jnp.float32), levels)
    np.testing.assert_allclose(curvature[0], by_hand(levels)[0][4] ** 0.5, rtol=1e-3)


def test_a_straight_path_has_no_curvature():
    """Data concentrated in the origin: the noise of a row is the same everywhere along its path."""
    denoise = gaussian_denoiser(np.zeros(3), np.zeros((3, 3)))
    levels, x = PATHS["exploding"], jnp.asarray(X, jnp.float32)
    statistics = scoring.path_statistics(jax.random.key(0), denoise, x, levels)
    np.testing.assert_allclose(statistics[3:], 0, atol=1e-3 * float(jnp.abs(statistics[2]).max()))
    assert np.isfinite(jax.grad(lambda x: scoring.path_curvature(jax.random.key(0), denoise, x, levels).sum())(x)).all()


@pytest.mark.parametrize("score", [scoring.path_statistics, scoring.path_curvature])
def test_several_paths_or_a_single_level_are_refused(score):
    for levels in (noise.reverse_paths(noise.linear(100), [20, 50], 4), noise.linear(100)[:1]):
        with pytest.raises(
            ValueError, match=r"a path needs at least 2 levels of shape \[levels\], cleanest first, got"
        ):
            score(jax.random.key(0), DENOISE, jnp.asarray(X, jnp.float32), levels)
