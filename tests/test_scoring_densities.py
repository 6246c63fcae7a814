"""Densities of Gaussian data: golden bounds, exact likelihoods, exact posteriors of the noise level, and measured orders."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import noise, scoring
from jaxad.closed_form import gaussian_denoiser

ORDERS, FORMULAS = "measured orders of convergence", "scores against their formula"
RNG = np.random.default_rng(0)
MIXING = RNG.normal(size=(4, 4))
COVARIANCE = MIXING @ MIXING.T / 4 + 0.1 * np.eye(4)
MEAN = RNG.normal(size=4)
DENOISE = gaussian_denoiser(MEAN, COVARIANCE)
CENTRED = gaussian_denoiser(np.zeros(4), COVARIANCE)
X = RNG.normal(size=(8, 4)) * 1.5


def exact_nll(x, mean, covariance):
    gap = x - mean
    square = np.einsum("bi,ij,bj->b", gap, np.linalg.inv(covariance), gap)
    return 0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1])


def blurred(sigma):
    return COVARIANCE + sigma**2 * np.eye(4)


# --------------------------------------------------------------------------------------------------------------------- bound


@partial(jax.jit, static_argnames=("draws", "spread"))
def bound(key, x, levels, *, draws, spread):
    return scoring.variational_bound(key, gaussian_denoiser(np.zeros(1), np.eye(1) * spread), x, levels, draws=draws)


SLOW_BOUNDS = [pytest.param(*of, marks=pytest.mark.slow) for of in ((0.0, 1.0), (1.0, 0.25))]


@pytest.mark.parametrize(("x", "spread"), [(1.5, 1.0), (3.0, 4.0), *SLOW_BOUNDS])
def test_the_golden_bounds_of_a_thousand_levels(reference_dir, record_property, x, spread):
    golden = json.loads((reference_dir / "golden.json").read_text())["gaussian_oracles"][
        f"vlb_lin1000_x{x}_lam{spread}"
    ]
    terms = bound(jax.random.key(1), jnp.array([[x]]), noise.linear(1000), draws=4096, spread=spread)
    total = float(terms.sum())
    record_property(FORMULAS, f"variational_bound x={x} spread={spread}: {total:.4f} / {golden['vlb_nats']:.4f} nats")
    # The decoder's squared error, about .9 eps^2, has 2,048 independent draws; the other terms add as much again.
    assert total == pytest.approx(golden["vlb_nats"], abs=5 * 1.8 / 2048**0.5)
    assert total > golden["nll_nats"]


@pytest.mark.parametrize(
    "levels",
    [noise.linear(1000)[::100], noise.log_uniform(20, sigma_min=0.02, sigma_max=20.0), noise.rectified_flow(50)],
    ids=["strided", "exploding", "straight"],
)
@pytest.mark.parametrize("x", [0.0, 2.0])
def test_it_bounds_the_likelihood_on_any_levels(levels, x):
    terms = bound(jax.random.key(0), jnp.array([[x]]), levels, draws=256, spread=1.0)
    assert terms.shape == (len(levels), 1)
    assert float(terms.sum()) > 0.5 * (np.log(2 * np.pi) + x**2)
    # All but the decoder's are divergences.
    assert (terms[1:] >= -1e-5).all()


def test_finer_levels_bound_closer():
    def gap(num_levels):
        levels = noise.log_uniform(num_levels, sigma_min=0.02, sigma_max=20.0)
        return float(bound(jax.random.key(0), jnp.zeros((1, 1)), levels, draws=1024, spread=1.0).sum()) - 0.5 * np.log(
            2 * np.pi
        )

    gaps = [gap(num_levels) for num_levels in (10, 20, 50)]
    assert gaps[0] > gaps[1] > gaps[2] > 0


def test_the_prior_counts_at_the_noisiest_level():
    """Two bounds that differ in nothing but where they end: the last entry pays for what is left of the row."""
    schedule, x = noise.linear(1000), jnp.array([[30.0]])
    early = bound(jax.random.key(0), x, schedule[:300:100], draws=1, spread=1.0)[-1]
    level = schedule[200]
    prior = 0.5 * (level.sigma**2 - 1 - np.log(level.sigma**2) + level.alpha**2 * 900)
    assert float(early[0]) > prior > 100


# ---------------------------------------------------------------------------------------------------------------- likelihood


def test_the_likelihood_of_standard_data_is_exact():
    levels = noise.log_uniform(257, sigma_min=0.01, sigma_max=40.0)
    denoise = gaussian_denoiser(np.zeros(4), np.eye(4))
    with jax.enable_x64(True):
        nll = scoring.negative_log_likelihood(jax.random.key(0), denoise, jnp.asarray(X), levels)
    np.testing.assert_allclose(nll[0], exact_nll(X, 0, np.eye(4)), atol=0.02)


def test_the_likelihood_of_any_gaussian_needs_a_noisy_end():
    """N(0, 1 + sigma^2) is not the data's density at the last level, but by less and less as sigma grows."""
    levels = noise.log_uniform(257, sigma_min=0.02, sigma_max=200.0)
    with jax.enable_x64(True):
        nll = scoring.negative_log_likelihood(jax.random.key(0), DENOISE, jnp.asarray(X), levels)
    np.testing.assert_allclose(nll[0], exact_nll(X, MEAN, blurred(0.02)), rtol=0.01)


def ode_nll(x, sigma_min, sigma_max):
    """What the ODE gives if solved exactly for centred data: each principal axis is scaled by a known factor."""
    spreads, vectors = np.linalg.eigh(COVARIANCE)
    growth = (spreads + sigma_max**2) / (spreads + sigma_min**2)
    end, variance = (x @ vectors) * growth**0.5, 1 + sigma_max**2
    return 0.5 * (np.sum(end**2, axis=1) / variance + 4 * np.log(2 * np.pi * variance) - np.sum(np.log(growth)))


def measured_order(errors):
    return np.log2(errors[:-1] / errors[1:])


def test_the_likelihood_converges_at_second_order(record_property):
    errors = []
    with jax.enable_x64(True):
        for num_levels in (33, 65, 129, 257):
            levels = noise.log_uniform(num_levels, sigma_min=0.05, sigma_max=20.0)
            nll = scoring.negative_log_likelihood(jax.random.key(0), CENTRED, jnp.asarray(X), levels)
            errors.append(np.abs(np.asarray(nll[0]) - ode_nll(X, 0.05, 20.0)).max())
    order = measured_order(np.array(errors))
    record_property(
        ORDERS, f"negative_log_likelihood: errors {np.array(errors).round(4)} nats, orders {order.round(2)}"
    )
    assert (order[1:] > 1.85).all()
    assert (order < 2.2).all()


LEVELS = noise.log_uniform(33, sigma_min=0.05, sigma_max=20.0)
FOLLOWED = {"likelihood": scoring.negative_log_likelihood, "time": scoring.time_posterior}


@pytest.mark.parametrize("score", FOLLOWED.values(), ids=FOLLOWED)
def test_estimated_traces_average_to_the_exact_one(score):
    x = jnp.asarray(X, jnp.float32)
    exact = score(jax.random.key(0), DENOISE, x, LEVELS)
    errors = [
        float(jnp.abs(score(jax.random.key(1), DENOISE, x, LEVELS, draws=draws, exact=False) - exact).max())
        for draws in (1, 4096)
    ]
    assert errors[1] < 0.1 * errors[0]
    assert errors[1] < 0.05


def test_the_trace_of_uncoupled_columns_needs_no_estimate():
    """Rademacher probes have squares of 1: for a diagonal Jacobian a single one is exact."""
    denoise, x = gaussian_denoiser(np.zeros(4), np.diag([0.1, 1.0, 2.0, 9.0])), jnp.asarray(X, jnp.float32)
    estimated, exact = (
        scoring.negative_log_likelihood(jax.random.key(1), denoise, x, LEVELS, exact=exact) for exact in (False, True)
    )
    np.testing.assert_allclose(estimated, exact, rtol=1e-4)


def test_many_elements_are_estimated_unless_told_otherwise():
    x, mixing = jnp.ones((1, 40)), np.random.default_rng(0).normal(size=(40, 40)) / 6
    denoise = gaussian_denoiser(np.zeros(40), mixing @ mixing.T)
    run = partial(scoring.negative_log_likelihood, denoise=denoise, x=x, levels=LEVELS)
    values = [float(run(jax.random.key(seed), **options)[0, 0]) for seed in (0, 1) for options in ({}, {"exact": True})]
    assert values[0] != values[2]
    assert values[1] == values[3]


# --------------------------------------------------------------------------------------------------------------- noise level


def exact_posterior(levels):
    """Mean of log sigma and entropy, from the density of every row at every level."""
    log_sigma = np.log(levels.sigma / levels.alpha)
    log_density = np.stack([-exact_nll(X, MEAN, blurred(sigma)) for sigma in np.exp(log_sigma)])
    edges = np.concatenate([log_sigma[:1], (log_sigma[1:] + log_sigma[:-1]) / 2, log_sigma[-1:]])
    posterior = np.exp(log_density - log_density.max(axis=0)) * np.diff(edges)[:, None]
    posterior /= posterior.sum(axis=0)
    return np.stack([(posterior * log_sigma[:, None]).sum(axis=0), -(posterior * np.log(posterior)).sum(axis=0)])


@pytest.mark.parametrize(
    "levels", [noise.log_uniform(129, sigma_min=0.1, sigma_max=10.0), noise.karras(400, sigma_min=0.05)]
)
def test_the_posterior_of_the_noise_level(levels):
    posterior = scoring.time_posterior(jax.random.key(0), DENOISE, jnp.asarray(X, jnp.float32), levels)
    np.testing.assert_allclose(posterior, exact_posterior(levels), atol=2e-2)


def test_the_posterior_converges_at_second_order(record_property):
    errors = []
    with jax.enable_x64(True):
        for num_levels in (17, 33, 65):
            levels = noise.log_uniform(num_levels, sigma_min=0.1, sigma_max=10.0)
            posterior = scoring.time_posterior(jax.random.key(0), DENOISE, jnp.asarray(X), levels)
            errors.append(np.abs(posterior - exact_posterior(levels)).max())
    order = measured_order(np.array(errors))
    record_property(ORDERS, f"time_posterior: errors {np.array(errors).round(5)}, orders {order.round(2)}")
    assert (np.abs(order - 2) < 0.15).all()


def test_a_far_row_comes_from_a_noisy_level_and_every_answer_is_in_range():
    levels = noise.log_uniform(33, sigma_min=0.05, sigma_max=20.0)
    x = jnp.asarray(MEAN, jnp.float32)[None] + jnp.array([[0.0], [3.0], [10.0], [1e5]])
    mean, entropy = scoring.time_posterior(jax.random.key(0), DENOISE, x, levels)
    assert (jnp.diff(mean) > 0).all()
    # A far row's mode is at its distance by the root of the elements (METHODS 6).
    assert float(mean[2]) == pytest.approx(np.log(10), abs=0.3)
    assert (mean >= np.log(0.05)).all()
    assert (mean <= np.log(20) + 1e-5).all()
    assert (entropy >= -1e-6).all()
    assert (entropy <= np.log(33)).all()


@pytest.mark.parametrize(
    "score",
    [scoring.variational_bound, scoring.negative_log_likelihood, scoring.time_posterior],
    ids=lambda s: s.__name__,
)
def test_paths_are_refused(score):
    with pytest.raises(ValueError, match=r"at least 2 levels of shape \[levels\], cleanest first, got shape \(2, 4\)"):
        score(jax.random.key(0), DENOISE, jnp.asarray(X), noise.reverse_paths(noise.linear(100), [20, 50], 4))
