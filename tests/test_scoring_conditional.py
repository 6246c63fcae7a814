"""In-painting and the conditional error on correlated Gaussian data, where the conditional mean is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import noise, scoring
from jaxad.closed_form import gaussian_denoiser
from jaxad.metrics import auroc

FORMULAS = "scores against their formula"
LEVELS = noise.log_uniform(20, sigma_min=0.05, sigma_max=20.0)


def pair(correlation):
    return gaussian_denoiser(np.zeros(2), np.array([[1, correlation], [correlation, 1]]))


@pytest.mark.parametrize(("correlation", "tolerance"), [(0.0, 0.1), (0.9, 0.35), (0.99, 0.15)])
def test_fillings_average_near_the_conditional_mean(correlation, tolerance, record_property):
    x, mask = jnp.array([[2.0, -7.0]]), jnp.array([False, True])
    fill = jax.jit(jax.vmap(lambda key: scoring.inpaint(key, pair(correlation), x, mask, LEVELS)[0, 1]))
    filled = fill(jax.random.split(jax.random.key(0), 2000))
    line = (
        f"inpaint, correlation {correlation}: mean {filled.mean():.3f} / {2 * correlation}, spread {filled.std():.3f}"
    )
    record_property(FORMULAS, line)
    assert float(filled.mean()) == pytest.approx(2 * correlation, abs=tolerance)


def rows(count=6, features=5):
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, features)), jnp.float32)


def test_known_elements_come_back_to_the_bit_and_masked_ones_are_not_looked_at():
    denoise = gaussian_denoiser(np.zeros(5), 0.5 * np.eye(5) + 0.5)
    x, mask = rows(), jnp.array([True, False, True, False, False])
    filled = scoring.inpaint(jax.random.key(0), denoise, x, mask, LEVELS)
    np.testing.assert_array_equal(filled[:, ~mask], x[:, ~mask])
    other = scoring.inpaint(jax.random.key(0), denoise, jnp.where(mask, 100.0, x), mask, LEVELS)
    np.testing.assert_array_equal(filled, other)


def test_a_mask_may_differ_by_row_and_a_row_stands_alone():
    denoise = gaussian_denoiser(np.zeros(5), 0.5 * np.eye(5) + 0.5)
    x = rows()
    mask = jnp.asarray(np.random.default_rng(1).random(x.shape) < 0.5)
    filled = scoring.inpaint(jax.random.key(0), denoise, x, mask, LEVELS)
    np.testing.assert_array_equal(filled[~mask], x[~mask])
    alone = scoring.inpaint(jax.random.key(0), denoise, x[3:4], mask[3], LEVELS)
    np.testing.assert_allclose(alone, filled[3:4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (6, 1), (5, 6)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"the shape of the rows, \(6, 5\), or of one, \(5,\), got"):
        scoring.inpaint(jax.random.key(0), pair(0.0), rows(), np.zeros(shape, bool), LEVELS)


def test_a_broken_dependency_shows_though_every_column_is_ordinary():
    """The sign of one column flipped: the same marginals, exactly."""
    signs, rng = np.array([1.0, 1.0, 1.0, -1.0]), np.random.default_rng(0)
    covariance = 0.95 * np.ones((4, 4)) + 0.05 * np.eye(4)
    normal = rng.multivariate_normal(np.zeros(4), covariance, size=200)
    x = jnp.asarray(np.concatenate([normal, normal * signs]), jnp.float32)
    denoise = gaussian_denoiser(np.zeros(4), covariance)
    error = scoring.conditional_error(jax.random.key(0), denoise, x, LEVELS, num_groups=4, draws=16)
    assert error.shape == (4, 400)
    labels = np.arange(400) >= 200
    # What each column is off from its mean given the others, in closed form: 0.907 on these rows.
    precision = np.linalg.inv(covariance)
    exact = auroc(labels, np.max((np.asarray(x) @ precision / np.diag(precision)) ** 2, axis=1))
    assert auroc(labels, error.max(axis=0)) > exact - 0.01 > 0.89
    # The control: the columns one by one say nothing.
    assert auroc(labels, (x**2).sum(axis=1)) == pytest.approx(0.5)


@pytest.mark.slow
def test_every_element_is_masked_exactly_once():
    """A denoiser that always says 0 makes the errors of the groups those of x itself, each element in one group."""
    x = jnp.asarray(2.0 ** np.arange(7)[None] ** 0.5, jnp.float32)

    def nothing(noisy, level):
        return jnp.zeros_like(noisy)

    for num_groups in (2, 3, 7):
        error = scoring.conditional_error(jax.random.key(0), nothing, x, LEVELS, num_groups=num_groups)
        sizes = np.bincount(np.arange(7) % num_groups)
        assert error.shape == (num_groups, 1)
        assert float(error[:, 0] @ sizes) == pytest.approx(float(jnp.sum(x**2)), rel=1e-5)


def test_the_partition_is_drawn_from_the_key():
    def nothing(noisy, level):
        return jnp.zeros_like(noisy)

    errors = [scoring.conditional_error(jax.random.key(seed), nothing, rows(2, 12), LEVELS) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(errors[0], errors[1])
    assert not np.allclose(errors[0], errors[2])
    assert errors[0].shape == (5, 2)


def test_images_are_masked_pixel_by_pixel():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 1)), jnp.float32)
    error = scoring.conditional_error(
        jax.random.key(0), lambda noisy, level: 0.5 * noisy / level.alpha, x, LEVELS, num_groups=3
    )
    assert error.shape == (3, 3)


@pytest.mark.parametrize(("features", "num_groups"), [(5, 6), (5, 1), (1, None)])
def test_groups_that_leave_nothing_known_or_nothing_masked_are_refused(features, num_groups):
    with pytest.raises(ValueError, match=f"between 2 groups and one per element .here {features}"):
        scoring.conditional_error(jax.random.key(0), pair(0.0), rows(2, features), LEVELS, num_groups=num_groups)
