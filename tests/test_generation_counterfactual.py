"""The nearest normal version of an anomaly, and the nearest anomalous one of a normal row."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import closed_form, noise
from jaxad import generation as g
from jaxad.generation import counterfactual
from jaxad.metrics import auroc

COVARIANCE = np.full((6, 6), 0.9) + 0.1 * np.eye(6)
PRECISION = jnp.asarray(np.linalg.inv(COVARIANCE), jnp.float32)
DENOISE = closed_form.gaussian_denoiser(np.zeros(6), COVARIANCE)
LEVELS = noise.log_uniform(20, sigma_min=0.05, sigma_max=20.0)
FINE = noise.log_uniform(3, sigma_min=0.1, sigma_max=0.5)
RNG = np.random.default_rng(0)
NORMAL = jnp.asarray(RNG.multivariate_normal(np.zeros(6), COVARIANCE, 500), jnp.float32)


def score(rows):
    """The squared Mahalanobis distance."""
    return jnp.einsum("bi,ij,bj->b", rows, PRECISION, rows)


LIMIT = float(jnp.quantile(score(NORMAL), 0.95))
WRONG = np.stack([RNG.permutation(6) < 2 for _ in range(40)])  # two columns of each of 40 rows
SPOILT = jnp.where(WRONG, NORMAL[:40] + 3 * RNG.choice([-1, 1], (40, 6)), NORMAL[:40])


@pytest.fixture(scope="module")
def repaired():
    errors = [g.element_error(jax.random.key(0), DENOISE, rows, FINE) for rows in (NORMAL, SPOILT)]
    importance = (errors[1] - errors[0].mean(axis=0)[None]) / errors[0].std(axis=0)[None]
    make = jax.jit(
        lambda x, importance: g.repair(
            jax.random.key(1), DENOISE, x, LEVELS, score=score, limit=LIMIT, importance=importance
        )
    )
    return importance, make, make(SPOILT, importance)


def test_examples():
    result = doctest.testmod(counterfactual)
    assert result.attempted
    assert not result.failed


def test_repaired_rows_are_normal_near_and_changed_in_few_places(repaired):
    _, _, made = repaired
    assert made.valid.mean() > 0.9
    valid = np.asarray(made.valid)
    assert (score(made.x)[valid] <= LIMIT * 1.001).all()
    np.testing.assert_allclose(score(made.x), made.score, rtol=1e-3)
    np.testing.assert_allclose(made.x, SPOILT + made.change, atol=1e-6)
    np.testing.assert_array_equal(made.mask, made.change != 0)
    assert made.mask.sum(axis=1).max() <= 3
    # Back where they came from, not anywhere normal.
    undone = jnp.linalg.norm(made.x - NORMAL[:40], axis=1)
    assert jnp.median(undone) < 0.5 * jnp.median(jnp.linalg.norm(SPOILT - NORMAL[:40], axis=1))
    assert auroc(WRONG.ravel().astype(int), np.abs(made.change).ravel()) > 0.85


def test_a_normal_row_is_its_own_repair_and_rows_do_not_mix(repaired):
    importance, make, made = repaired
    rows = SPOILT.at[0].set(jnp.zeros(6))
    again = make(rows, importance)
    np.testing.assert_array_equal(again.x[0], np.zeros(6))
    assert not again.mask[0].any()
    np.testing.assert_allclose(again.x[1:], made.x[1:], atol=1e-4)


def test_what_cannot_be_repaired_says_so():
    made = g.repair(
        jax.random.key(1),
        DENOISE,
        SPOILT[:2],
        LEVELS,
        score=score,
        limit=-1.0,
        importance=jnp.abs(SPOILT[:2]),
        sizes=[1],
        draws=2,
    )
    assert not made.valid.any()
    assert (made.score <= score(SPOILT[:2])).all()


def test_an_image_is_repaired_in_a_patch():
    denoise = closed_form.gaussian_denoiser(np.zeros(64), np.full((64, 64), 0.95) + 0.05 * np.eye(64))
    x = jnp.full((1, 8, 8, 1), 0.5).at[0, 2:4, 5:7, 0].set(4.0)
    made = g.repair(
        jax.random.key(0),
        lambda noisy, level: denoise(noisy.reshape(-1, 64), level).reshape(noisy.shape),
        x,
        LEVELS,
        score=lambda rows: jnp.max(jnp.abs(rows - 0.5), axis=(1, 2, 3)),
        limit=1.5,
        importance=jnp.abs(x - 0.5),
        sizes=[1, 4, 16],
    )
    assert made.valid.all()
    np.testing.assert_array_equal(made.mask[0, ..., 0], np.asarray(x[0, ..., 0]) > 1)


def test_the_nearest_anomaly_is_just_over_the_limit():
    inside = NORMAL[np.asarray(score(NORMAL)) < LIMIT][:50]
    made = g.nearest_anomaly(inside, score=score, limit=LIMIT)
    assert made.valid.all()
    assert (made.score >= LIMIT).all()
    assert made.score.max() < 1.1 * LIMIT
    assert made.mask.sum(axis=1).max() < 6
    assert jnp.abs(made.change).max() <= 3.0
    # One column out of line with five that agree: a shorter way to an anomaly than to a large row.
    assert jnp.median(jnp.linalg.norm(made.change, axis=1)) < 2
    flat = g.nearest_anomaly(inside, score=lambda rows: 0 * rows[:, 0], limit=1.0)
    assert not flat.valid.any()
    np.testing.assert_array_equal(flat.x, inside)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"importance": jnp.zeros((2, 5))}, r"importance of the shape of the rows, \(2, 6\), got \(2, 5\)"),
        ({"sizes": [6]}, "from 1 to 5 of the 6 elements"),
        ({"sizes": []}, "from 1 to 5 of the 6 elements"),
        ({"draws": 0}, "at least one draw"),
        ({"denoise": closed_form.gaussian_denoiser(np.zeros(4), np.eye(4))}, "does not take rows of shape"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(changes, message):
    options = {"denoise": DENOISE, "importance": jnp.zeros((2, 6)), "score": score, "limit": 1.0} | changes
    with pytest.raises(ValueError, match=message):
        g.repair(jax.random.key(0), options.pop("denoise"), NORMAL[:2], LEVELS, **options)
    with pytest.raises(ValueError, match="one number for each of the 2 rows"):
        g.nearest_anomaly(NORMAL[:2], score=lambda rows: rows, limit=1.0)
