"""Rows with categories and gaps as numbers without."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.detectors.layout import Layout, complete, covariance_of


def test_completed_rows_hold_what_is_expected_given_the_rest():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(30, 30))
    covariance = mix @ mix.T + 0.1 * np.eye(30)
    rows = rng.multivariate_normal(np.zeros(30), covariance, 20)
    gap = rng.uniform(size=rows.shape) < np.linspace(0, 0.9, 20)[:, None]
    inverse = np.linalg.inv(covariance)
    found = np.asarray(
        complete(jnp.asarray(np.where(gap, np.nan, rows), jnp.float32), jnp.asarray(inverse, jnp.float32))
    )
    for row, missing, got in zip(rows, gap, found, strict=True):
        there = ~missing
        expected = covariance[np.ix_(missing, there)] @ np.linalg.solve(covariance[np.ix_(there, there)], row[there])
        np.testing.assert_array_equal(got[there], row[there].astype(np.float32))
        np.testing.assert_allclose(got[missing], expected, atol=0.15)
        # Its length is the Mahalanobis length of what is there.
        known = row[there] @ np.linalg.solve(covariance[np.ix_(there, there)], row[there])
        assert got @ inverse @ got == pytest.approx(known, rel=0.02)


def test_the_covariance_of_rows_with_gaps_comes_near_that_of_whole_ones():
    rng = np.random.default_rng(0)
    covariance = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    rows = rng.multivariate_normal(np.zeros(3), covariance, 5000)
    rows[rng.uniform(size=rows.shape) < 0.4] = np.nan
    np.testing.assert_allclose(covariance_of(rows), covariance, atol=0.06)
    few = rng.normal(size=(4, 10))
    few[rng.uniform(size=few.shape) < 0.5] = np.nan
    assert np.linalg.eigvalsh(covariance_of(few)).min() >= 0


def test_wide_and_back():
    layout = Layout((0, 3, 0, 2), gaps=False)
    rows = np.array([[1.0, 2.0, -1.0, 0.0], [0.5, 0.0, 3.0, 1.0]])
    wide = layout.wide(rows)
    assert wide.shape == (2, 2 + 4 + 3)
    np.testing.assert_array_equal(layout.narrow(wide), rows)
    assert layout.of_wide.tolist() == [0, 2, 1, 1, 1, 1, 3, 3, 3]
    # Never seen, or no code at all: the last place.
    assert layout.codes(np.array([[0.0, 77.0, 0.0, -1.0]])).tolist() == [[3.0, 2.0]]


def test_numbers_without_gaps_need_no_layout():
    X = np.array([[1.0, 2.0], [3.0, 0.0]])
    assert Layout.of(X, np.zeros(0, int), False) is None
    assert Layout.of(X, np.array([1]), False) == Layout((0, 3), False)
