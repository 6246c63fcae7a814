"""Combinations by hand, against scikit-learn, and on the data each of them is for."""

import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from jaxad import scoring
from jaxad.metrics import auroc

NORMAL = np.array([[1.0, 3.0, 2.0, 2.0], [10.0, 30.0, 20.0, 20.0], [5.0, 5.0, 5.0, 5.0]])
TESTED = jnp.array([[2.0, 4.0], [20.0, 20.0], [5.0, 6.0]])
COMBINATIONS = {
    name: getattr(scoring, name)
    for name in ("total", "z_mean", "z_max", "typicality", "likelihood_ratio", "mahalanobis", "gmm", "knn")
}
every_combination = pytest.mark.parametrize("combination", COMBINATIONS.values(), ids=COMBINATIONS)


def correlated(rows=500, levels=4, seed=0):
    """Scores of normal rows whose levels agree, each on its own scale: [levels, rows]."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=rows)
    return (shared + 0.3 * rng.normal(size=(levels, rows))) * 10.0 ** np.arange(levels)[:, None] + 5


def z_rows(scores, statistics):
    return ((scores - statistics.mean[:, None]) / statistics.std[:, None]).T


# ------------------------------------------------------------------------------------------------------------------ z-scores


def test_level_statistics_give_a_level_without_spread_the_spread_one():
    statistics = scoring.level_statistics(NORMAL)
    np.testing.assert_allclose(statistics.mean, [2, 20, 5])
    np.testing.assert_allclose(statistics.std, [0.5**0.5, 10 * 0.5**0.5, 1.0], rtol=1e-6)
    # Also where rounding makes a spread of a constant.
    assert scoring.level_statistics(np.full((1, 1000), 0.1)).std[0] == 1


def test_standardised_normal_scores_have_mean_zero_and_spread_one():
    z = scoring.standardise(jnp.asarray(NORMAL[:2]), scoring.level_statistics(NORMAL[:2]))
    np.testing.assert_allclose(z.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(z.std(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("total", [27, 30]),
        ("z_mean", [0, (2 / 0.5**0.5 + 0 + 1) / 3]),
        ("z_max", [0, 2 / 0.5**0.5]),
        ("typicality", [0, (2 / 0.5**0.5 + 0 + 1) / 3]),
        ("likelihood_ratio", [0, 2 / 0.5**0.5 - 1]),
    ],
)
def test_combinations_are_what_one_computes_by_hand(name, by_hand):
    combination = COMBINATIONS[name]
    np.testing.assert_allclose(combination.apply(TESTED, combination.fit(NORMAL)), by_hand, rtol=1e-5, atol=1e-6)


def test_typicality_reads_both_tails_and_the_mean_only_one():
    scores = correlated()
    odd = jnp.asarray(scores.mean(axis=1) - 5 * scores.std(axis=1), jnp.float32)[:, None]
    usual = jnp.asarray(scores, jnp.float32)
    for name, beyond in (("typicality", True), ("z_mean", False)):
        combination = COMBINATIONS[name]
        state = combination.fit(scores)
        assert (combination.apply(odd, state) > combination.apply(usual, state).max()).all() == beyond


def test_the_likelihood_ratio_cancels_what_raises_every_level():
    scores = correlated()
    state = scoring.likelihood_ratio.fit(scores)
    raised = scores.mean(axis=1, keepdims=True) + scores.std(axis=1, keepdims=True) * np.array([[0.0, 3.0]])
    first, second = scoring.likelihood_ratio.apply(jnp.asarray(raised, jnp.float32), state)
    assert float(first) == pytest.approx(float(second), abs=1e-4)
    with pytest.raises(ValueError, match="at least 2 levels, got 1"):
        scoring.likelihood_ratio.fit(scores[:1])


# ------------------------------------------------------------------------------------------------- the vector of all levels


def test_mahalanobis_is_that_of_the_shrunk_covariance():
    scores = correlated()
    state = scoring.mahalanobis.fit(scores)
    z = z_rows(scores, state)
    expected = LedoitWolf(assume_centered=True).fit(z).mahalanobis(z) ** 0.5
    np.testing.assert_allclose(scoring.mahalanobis.apply(jnp.asarray(scores, jnp.float32), state), expected, rtol=1e-3)


def test_mahalanobis_of_many_normal_rows_is_that_of_the_truth():
    rng, covariance = np.random.default_rng(0), np.array([[1.0, 0.9], [0.9, 1.0]])
    state = scoring.mahalanobis.fit(rng.multivariate_normal(np.zeros(2), covariance, size=100_000).T)
    distance = scoring.mahalanobis.apply(jnp.array([[1.0, 1.0], [1.0, -1.0]]), state)
    np.testing.assert_allclose(distance, [(2 / 1.9) ** 0.5, (2 / 0.1) ** 0.5], rtol=0.02)


def test_the_mixture_of_one_gaussian_is_its_density():
    scores = np.random.default_rng(0).normal(size=(2, 2000))
    state = scoring.gmm.fit(scores)
    assert len(state.log_weights) == 1
    z = z_rows(scores, state)
    expected = -multivariate_normal(z.mean(axis=0), np.cov(z.T, bias=True) + 1e-3 * np.eye(2)).logpdf(z)
    np.testing.assert_allclose(
        scoring.gmm.apply(jnp.asarray(scores, jnp.float32), state), expected, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("rows", [15, 2000], ids=["diagonal", "full"])
def test_the_mixture_is_scikit_learns(rows):
    rng = np.random.default_rng(0)
    scores = (rng.normal(size=(rows, 2)) + 8 * rng.integers(0, 2, size=(rows, 1))).T
    state = scoring.gmm.fit(scores)
    z = z_rows(scores, state)
    components = len(state.log_weights)
    assert components == (1 if rows < 20 else 2)
    theirs = GaussianMixture(
        components, covariance_type="diag" if rows < 20 else "full", reg_covar=1e-3, random_state=0
    )
    expected = -theirs.fit(z).score_samples(z)
    np.testing.assert_allclose(
        scoring.gmm.apply(jnp.asarray(scores, jnp.float32), state), expected, rtol=1e-3, atol=1e-3
    )


def test_neighbours_are_scikit_learns():
    scores, other = correlated(), correlated(50, seed=1)
    state = scoring.knn.fit(scores)
    index = NearestNeighbors(n_neighbors=5).fit(z_rows(scores, state))
    expected = index.kneighbors(z_rows(other, state))[0].mean(axis=1)
    np.testing.assert_allclose(
        scoring.knn.apply(jnp.asarray(other, jnp.float32), state), expected, rtol=1e-3, atol=1e-5
    )


def test_neighbours_keep_two_thousand_rows_from_end_to_end():
    scores = np.arange(5000.0)[None]
    kept = scoring.knn.fit(scores).kept
    assert kept.shape == (2000, 1)
    assert np.unique(kept).size == 2000
    np.testing.assert_allclose([kept.min(), kept.max()], z_rows(scores, scoring.level_statistics(scores))[[0, -1], 0])


@pytest.mark.parametrize("name", ["mahalanobis", "gmm", "knn"])
def test_levels_that_disagree_are_seen_by_the_vector_and_not_by_the_mean(name):
    scores, normal = correlated(), correlated(300, seed=1)
    odd = correlated(300, seed=2)
    odd[1] = 2 * odd[1].mean() - odd[1]
    both, labels = jnp.asarray(np.concatenate([normal, odd], axis=1), jnp.float32), np.arange(600) >= 300
    combination = COMBINATIONS[name]
    assert auroc(labels, combination.apply(both, combination.fit(scores))) > 0.8
    assert auroc(labels, scoring.z_mean.apply(both, scoring.z_mean.fit(scores))) < 0.6


# ------------------------------------------------------------------------------------------------------------- all of them


@every_combination
def test_every_combination_composes_with_jit_vmap_and_grad_and_leaves_rows_alone(combination):
    state = combination.fit(correlated())
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))
    scores = jnp.asarray(correlated(20, seed=1), jnp.float32)
    eager = combination.apply(scores, state)
    assert eager.shape == (20,)
    assert pickle.loads(pickle.dumps(combination)) == combination
    run = jax.jit(combination.apply)
    np.testing.assert_allclose(run(scores, state), eager, rtol=1e-4, atol=1e-5)
    mapped = jax.vmap(run, in_axes=(0, None))(jnp.stack([scores, 2 * scores]), state)
    np.testing.assert_allclose(mapped[0], eager, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda scores: run(scores, state).sum())(scores)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0
    np.testing.assert_allclose(run(scores[:, 3:4], state), eager[3:4], rtol=1e-4, atol=1e-5)


@every_combination
@pytest.mark.parametrize("rows", [1, 2, 3, 12])
def test_few_constant_or_repeated_rows_still_fit_and_the_farthest_row_scores_highest(combination, rows):
    for scores in (correlated(rows), np.ones((4, rows)), np.resize(correlated(2), (4, rows))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            state = combination.fit(scores)
        tested = jnp.asarray(scores[:, :1] + np.array([[0.0, 1e4, 1e30]]) * [[3], [2], [1], [1]], jnp.float32)
        result = combination.apply(tested, state)
        assert np.isfinite(result).all()
        assert float(result[0]) < float(result[1]) <= float(result[2])


@every_combination
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros(5), r"shape \[levels, rows\], got \(5,\)"),
        (np.zeros((3, 0)), r"shape \[levels, rows\], got \(3, 0\)"),
        (np.array([[1.0, 2.0], [np.nan, np.inf], [0.0, 1.0]]), r"finite, got 2 that are not, at levels \[1\]"),
    ],
)
def test_scores_that_no_combination_can_learn_from_are_refused(combination, scores, message):
    with pytest.raises(ValueError, match=message):
        combination.fit(scores)
