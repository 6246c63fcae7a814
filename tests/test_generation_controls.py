"""ADBench's recipes and NNG-Mix, against what their definitions say."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ks_2samp, spearmanr

from jaxad import generation as g
from jaxad.generation import controls

ROWS = np.random.default_rng(0).multivariate_normal([4.0, -2.0], [[1.0, 0.8], [0.8, 1.0]], 400)


def test_examples():
    result = doctest.testmod(controls)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("kind", g.ADBENCH_KINDS)
def test_adbench_recipes_do_what_they_are_defined_to_do(kind):
    normals, wrong = g.adbench_synthetic(kind, ROWS, 800, random_state=0)
    assert normals.shape == (400, 2)
    assert wrong.shape == (800, 2)
    np.testing.assert_allclose(normals.mean(axis=0), [4, -2], atol=0.25)
    assert 0.7 < np.corrcoef(normals.T)[0, 1] < 0.9
    if kind == "local":
        np.testing.assert_allclose(np.cov(wrong.T) / np.cov(normals.T), 5, rtol=0.3)
    elif kind == "cluster":
        np.testing.assert_allclose(wrong.mean(axis=0), 5 * ROWS.mean(axis=0), atol=0.2)
        np.testing.assert_allclose(wrong.std(axis=0), 1, rtol=0.2)
    elif kind == "global":
        # Multiplied ends: with a positive minimum the low end is out of reach.
        assert wrong[:, 0].min() >= 1.1 * normals[:, 0].min()
        assert wrong[:, 0].max() > normals[:, 0].max()
        additive = g.adbench_synthetic(kind, ROWS, 800, range_pad="additive", random_state=0)[1]
        assert additive[:, 0].min() < normals[:, 0].min()
    else:
        assert abs(spearmanr(wrong[:, 0], wrong[:, 1])[0]) < 0.1
        np.testing.assert_array_equal(wrong, g.adbench_synthetic(kind, ROWS, 800, random_state=0)[1])
        assert min(ks_2samp(ROWS[:, j], wrong[:, j])[1] for j in (0, 1)) > 0.01
        assert min(ks_2samp(ROWS[:, j], normals[:, j])[1] for j in (0, 1)) > 0.01


def test_dependency_takes_fifty_columns_and_keeps_constant_ones():
    rows = np.concatenate([np.random.default_rng(0).normal(size=(50, 59)), np.ones((50, 1))], axis=1)
    normals, wrong = g.adbench_synthetic("dependency", rows, 10, random_state=0)
    assert normals.shape == (50, 50)
    assert np.isfinite(wrong).all()
    assert np.isfinite(normals).all()
    constant = g.adbench_synthetic("dependency", rows[:, -2:], 10, random_state=0)
    assert all((part[:, 1] == 1).all() for part in constant)


def test_nng_mix_lies_between_an_anomaly_and_a_neighbour():
    x = jax.random.normal(jax.random.key(0), (300, 2))
    few = jnp.array([[6.0, 6.0], [6.0, 8.0], [-9.0, 0.0]])
    made = jax.jit(lambda key: g.nng_mix(key, few, x, 1000))(jax.random.key(1))
    assert (made.kind == int(g.Kind.MIXED)).all()
    distance = jnp.linalg.norm(made.x[:, None] - few[None], axis=-1).min(axis=1)
    assert (distance < 0.1).mean() > 0.3  # Beta(.2, .2): most mixtures are nearly one of the two
    assert jnp.abs(made.x).max() < 9.2
    alone = g.nng_mix(jax.random.key(1), few[:1], x, 200, spread=0.0)
    away = few[:1] - alone.x
    # On segments to the ten nearest normal rows, which lie in its direction.
    assert (away.min(axis=1) > -1e-5).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: g.adbench_synthetic("locale", ROWS, 5), "need a kind of .*'locale'"),
        (lambda: g.adbench_synthetic("global", ROWS, 5, range_pad="none"), "range_pad"),
        (lambda: g.adbench_synthetic("local", ROWS[:5], 5), "at least 10 rows"),
        (lambda: g.adbench_synthetic("local", np.full((20, 2), np.nan), 5), "finite"),
        (lambda: g.adbench_synthetic("local", ROWS, 0), "1 anomaly"),
        (
            lambda: g.nng_mix(jax.random.key(0), jnp.asarray(ROWS[:2]), jnp.asarray(ROWS), 5),
            "2 of 2 anomalies are identical to a normal",
        ),
        (lambda: g.nng_mix(jax.random.key(0), jnp.ones((2, 3)), jnp.asarray(ROWS), 5), "one row shape"),
        (lambda: g.nng_mix(jax.random.key(0), jnp.ones((0, 2)), jnp.asarray(ROWS), 5), "0 anomalies for 1 kinds"),
        (
            lambda: g.nng_mix(jax.random.key(0), jnp.ones((1, 2)), jnp.asarray(ROWS), 5, concentration=0.0),
            "concentration > 0",
        ),
        (lambda: g.check_examples(np.ones((2, 2)), ROWS, kinds=3), "2 anomalies for 3 kinds"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
