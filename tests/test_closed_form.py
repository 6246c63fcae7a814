"""Denoisers known in closed form, held against their formulas, against sampling, and against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import noise
from jaxad.closed_form import empirical_denoiser, gaussian_denoiser
from jaxad.denoisers import MLP
from jaxad.denoising import make_denoiser
from jaxad.noise import NoiseLevel

MEAN = np.array([0.5, -1.0, 2.0])
COVARIANCE = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.25]])
LEVELS = [(0.9, 0.43), (0.1, 0.99), (1.0, 3.0), (0.999, 0.02)]
ROWS = np.random.default_rng(3).normal(size=(40, 3))

every_level = pytest.mark.parametrize(("alpha", "sigma"), LEVELS)


def level_of(alpha, sigma) -> NoiseLevel:
    return NoiseLevel(np.asarray(alpha, np.float64), np.asarray(sigma, np.float64))


def rows(seed, count=6):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, 3)), jnp.float32)


def random_mlp():
    network = MLP(width=8, depth=1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 3)), jnp.zeros(1))["params"]
    rng = np.random.default_rng(4)
    return network, jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


@every_level
def test_gaussian_denoiser_is_its_formula(alpha, sigma):
    z = np.asarray(rows(0))
    total = alpha**2 * COVARIANCE + sigma**2 * np.eye(3)
    expected = MEAN + alpha * (z - alpha * MEAN) @ np.linalg.solve(total, COVARIANCE)
    estimate = gaussian_denoiser(MEAN, COVARIANCE)(jnp.asarray(z), level_of(alpha, sigma))
    np.testing.assert_allclose(estimate, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS[:3])
def test_gaussian_denoiser_is_the_mean_of_weighted_samples(alpha, sigma):
    rng = np.random.default_rng(5)
    x = rng.multivariate_normal(MEAN, COVARIANCE, size=200_000)
    z = alpha * x[0] + sigma * rng.normal(size=3)
    log_weight = -np.sum((z - alpha * x) ** 2, axis=1) / (2 * sigma**2)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    sampled = weight @ x
    standard_error = np.sqrt(weight**2 @ (x - sampled) ** 2)
    estimate = gaussian_denoiser(MEAN, COVARIANCE)(jnp.asarray(z, jnp.float32)[None], level_of(alpha, sigma))[0]
    assert (standard_error < 0.05).all()
    assert (abs(estimate - sampled) < 5 * standard_error).all()


@every_level
def test_a_singular_covariance_keeps_estimates_on_its_line(alpha, sigma):
    direction = np.array([3.0, 0.0, 4.0]) / 5
    denoise = gaussian_denoiser(MEAN, 2.0 * np.outer(direction, direction))
    offset = np.asarray(denoise(rows(1), level_of(alpha, sigma))) - MEAN
    along = offset @ direction
    np.testing.assert_allclose(offset, along[:, None] * direction, atol=2e-6)
    expected = alpha * 2 / (alpha**2 * 2 + sigma**2) * ((np.asarray(rows(1)) - alpha * MEAN) @ direction)
    np.testing.assert_allclose(along, expected, rtol=1e-4, atol=1e-5)


def test_data_in_a_single_point_is_denoised_to_that_point():
    estimate = gaussian_denoiser(MEAN, np.zeros((3, 3)))(rows(1), level_of(0.5, 0.5))
    np.testing.assert_allclose(estimate, np.broadcast_to(MEAN, (6, 3)), rtol=1e-6)


@every_level
def test_empirical_denoiser_is_the_brute_force_softmax(alpha, sigma):
    z = np.asarray(rows(2), np.float64)
    log_weight = -np.sum((z[:, None] - alpha * ROWS[None]) ** 2, axis=-1) / (2 * sigma**2)
    weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    expected = weight @ ROWS / weight.sum(axis=1, keepdims=True)
    with jax.enable_x64(True):
        estimate = empirical_denoiser(ROWS)(jnp.asarray(z), level_of(alpha, sigma))
    np.testing.assert_allclose(estimate, expected, rtol=1e-9, atol=1e-9)
    in_float32 = empirical_denoiser(ROWS)(rows(2), level_of(alpha, sigma))
    np.testing.assert_allclose(in_float32, expected, rtol=1e-3, atol=1e-3)


def test_empirical_denoiser_returns_the_nearest_row_as_sigma_falls_and_the_mean_as_it_grows():
    z, denoise = rows(2), empirical_denoiser(ROWS)
    nearest = ROWS[np.argmin(np.sum((np.asarray(z)[:, None] - ROWS[None]) ** 2, axis=-1), axis=1)]
    np.testing.assert_allclose(denoise(z, level_of(1.0, 1e-3)), nearest, rtol=1e-6)
    np.testing.assert_allclose(denoise(z, level_of(1.0, 1e4)), np.tile(ROWS.mean(axis=0), (6, 1)), atol=1e-5)


def test_empirical_denoiser_approaches_the_gaussian_one_with_many_rows():
    x = np.random.default_rng(6).multivariate_normal(MEAN, COVARIANCE, size=20_000)
    level, z = level_of(0.8, 0.6), jnp.asarray(x[:5], jnp.float32)
    expected = gaussian_denoiser(MEAN, COVARIANCE)(z, level)
    np.testing.assert_allclose(empirical_denoiser(x)(z, level), expected, atol=0.1)


@pytest.mark.parametrize(
    "denoise",
    [gaussian_denoiser(MEAN, COVARIANCE), empirical_denoiser(ROWS), make_denoiser(*random_mlp())],
    ids=["gaussian", "empirical", "network"],
)
def test_each_row_may_have_its_own_level(denoise):
    z, levels = rows(7, len(LEVELS)), level_of(*np.array(LEVELS).T)
    together = denoise(z, levels)
    for row in range(len(LEVELS)):
        np.testing.assert_allclose(together[row], denoise(z[row : row + 1], levels[row])[0], rtol=1e-4, atol=1e-5)


# What samplers such as heun rely on: only z / alpha and sigma / alpha matter.
@every_level
@pytest.mark.parametrize("kind", ["gaussian", "empirical", "CLEAN", "NOISE", "VELOCITY", "SCORE"])
def test_every_denoiser_is_free_of_the_scale_of_its_coordinates(kind, alpha, sigma):
    closed_forms = {
        "gaussian": lambda: gaussian_denoiser(MEAN, COVARIANCE),
        "empirical": lambda: empirical_denoiser(ROWS),
    }
    prediction = getattr(noise, kind, None)
    denoise = closed_forms[kind]() if kind in closed_forms else make_denoiser(*random_mlp(), prediction)
    z = rows(8)
    scaled = denoise(z / alpha, level_of(1.0, sigma / alpha))
    np.testing.assert_allclose(denoise(z, level_of(alpha, sigma)), scaled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_a_velocity_network_is_run_as_edm_runs_its_own(sigma):
    """``D(z) = c_skip z + c_out F(c_in z)`` with F the network's output, negated."""
    network, params = random_mlp()
    z = rows(9)
    c_skip, c_out, c_in = 1 / (1 + sigma**2), sigma / np.sqrt(1 + sigma**2), 1 / np.sqrt(1 + sigma**2)
    output = network.apply({"params": params}, c_in * z, jnp.full(6, -2 * np.log(sigma)))
    estimate = make_denoiser(network, params, noise.VELOCITY)(z, level_of(1.0, sigma))
    np.testing.assert_allclose(estimate, c_skip * z - c_out * output, rtol=1e-4, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"mean of 3 features needs a covariance of shape \(3, 3\), got \(2, 2\)"):
        gaussian_denoiser(np.zeros(3), np.eye(2))
    with pytest.raises(ValueError, match=r"at least one row of features, got shape \(0, 3\)"):
        empirical_denoiser(np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        empirical_denoiser(np.zeros(3))
