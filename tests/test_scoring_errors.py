"""Scores against their expectation on Gaussian data, and the two promises: rows stand alone, memory is bounded."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import noise, scoring
from jaxad.closed_form import gaussian_denoiser
from jaxad.denoisers import MLP
from jaxad.denoising import make_denoiser
from jaxad.metrics import auroc
from jaxad.noise import posterior
from jaxad.sampling import fixed_small

FORMULAS = "scores against their formula"
FEATURES = 64
SPREADS = np.tile([0.01, 0.25, 1.0, 4.0], FEATURES // 4)
DRAWS = 256
LEVELS = noise.linear(1000, beta_end=1e-2)[[20, 249, 700]]
PATHS = noise.reverse_paths(noise.linear(1000, beta_end=1e-2), [49, 249, 700], 25)
DENOISE = gaussian_denoiser(np.zeros(FEATURES), np.diag(SPREADS))

SCORES = {
    "reconstruction_error": (scoring.reconstruction_error, LEVELS),
    "denoising_error": (scoring.denoising_error, LEVELS),
    "ddim_reconstruction_error": (scoring.ddim_reconstruction_error, PATHS),
    "ddim_reconstruction_error-eta": (partial(scoring.ddim_reconstruction_error, eta=0.7), PATHS),
    "ancestral_reconstruction_error": (scoring.ancestral_reconstruction_error, PATHS),
    "unnoised_reverse_error": (scoring.unnoised_reverse_error, PATHS),
    "unnoised_reverse_error-noisy": (partial(scoring.unnoised_reverse_error, variance=fixed_small), PATHS),
}
every_score = pytest.mark.parametrize(("score", "levels"), SCORES.values(), ids=SCORES)


def typical_rows(count=32):
    """Rows whose squares are exactly the variances, in pairs x, -x: averages over them have no sampling error."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(count // 2, FEATURES))
    return jnp.asarray(np.concatenate([signs, -signs]) * SPREADS**0.5, jnp.float32)


def gain_of_the_denoiser(level):
    return level.alpha * SPREADS / (level.alpha**2 * SPREADS + level.sigma**2)


def linear_map(path, step):
    """``(gain, variance)`` per feature of a whole reverse chain, from ``step(cleaner, noisier) -> (gain, variance)``."""
    gain, variance = np.ones(FEATURES), np.zeros(FEATURES)
    for index in range(len(path) - 1, 0, -1):
        factor, added = step(path[index - 1], path[index])
        gain, variance = factor * gain, factor**2 * variance + added
    last = gain_of_the_denoiser(path[0])
    return last * gain, last**2 * variance


def ancestral_step(cleaner, noisier):
    q = posterior(cleaner, noisier)
    return q.from_noisy + q.from_clean * gain_of_the_denoiser(noisier), q.variance


def ddim_step(cleaner, noisier, eta=0.0):
    fresh, clean = eta**2 * posterior(cleaner, noisier).variance, gain_of_the_denoiser(noisier)
    kept = np.sqrt(cleaner.sigma**2 - fresh)
    return cleaner.alpha * clean + kept * (1 - noisier.alpha * clean) / noisier.sigma, fresh


def expected_after_noising(level, gain, variance):
    """``E (gain (alpha x + sigma eps) + chain noise - x)^2``, mean over features, for E x^2 = SPREADS."""
    return np.mean((gain * level.alpha - 1) ** 2 * SPREADS + (gain * level.sigma) ** 2 + variance)


def expected(name):
    if name == "denoising_error":
        return [np.mean(level.alpha * gain_of_the_denoiser(level)) for level in LEVELS]
    if name == "reconstruction_error":
        ratio = LEVELS.sigma**2 / LEVELS.alpha**2
        return ratio * [np.mean(level.alpha * gain_of_the_denoiser(level)) for level in LEVELS]
    step = {
        "ddim_reconstruction_error": ddim_step,
        "ddim_reconstruction_error-eta": partial(ddim_step, eta=0.7),
    }.get(name, ancestral_step)
    maps = [linear_map(path, step) for path in PATHS]
    if name == "unnoised_reverse_error":
        return [np.mean((1 - gain) ** 2 * SPREADS) for gain, _ in maps]
    if name == "unnoised_reverse_error-noisy":
        return [np.mean((1 - gain) ** 2 * SPREADS + variance) for gain, variance in maps]
    return [expected_after_noising(path[-1], *one) for path, one in zip(PATHS, maps, strict=True)]


@pytest.mark.parametrize("name", SCORES)
def test_the_mean_score_of_normal_rows_is_its_formula(name, record_property):
    score, levels = SCORES[name]
    run = jax.jit(lambda key, x: score(key, DENOISE, x, levels, draws=DRAWS))
    measured = np.asarray(run(jax.random.key(3), typical_rows()).mean(axis=1))
    ratio = measured / np.asarray(expected(name))
    values = "   ".join(f"{m:.4g} / {e:.4g}" for m, e in zip(measured, expected(name), strict=True))
    record_property(FORMULAS, f"{name:<31} measured / expected per level: {values}")
    # Squares of noise shared by all rows: DRAWS / 2 independent draws of the FEATURES / 4 that matter most.
    relative_error = (2 / (DRAWS / 2 * FEATURES / 4)) ** 0.5
    exact = name == "unnoised_reverse_error"
    np.testing.assert_allclose(ratio, 1, atol=1e-3 if exact else 5 * relative_error)


def test_the_formula_of_the_denoising_error_is_its_textbook_form():
    level = LEVELS[1]
    textbook = np.mean(level.alpha**2 * SPREADS / (level.alpha**2 * SPREADS + level.sigma**2))
    np.testing.assert_allclose(expected("denoising_error")[1], textbook)


def test_denoising_error_is_snr_times_reconstruction_error_row_by_row():
    x = typical_rows()
    one = scoring.denoising_error(jax.random.key(0), DENOISE, x, LEVELS, draws=3)
    other = scoring.reconstruction_error(jax.random.key(0), DENOISE, x, LEVELS, draws=3)
    np.testing.assert_allclose(one, np.exp(LEVELS.log_snr)[:, None] * other, rtol=2e-3)


def test_the_published_score_has_its_closed_form():
    """250 levels of DTE's schedule, the gains from an independent implementation."""
    gains = np.array([0.02909119091456842, 0.45715395089645655, 0.8463127462356614, 1.075114333861023])
    denoise = gaussian_denoiser(np.zeros(4), np.diag([0.01, 0.25, 1.0, 4.0]))
    x = np.random.default_rng(1).normal(size=(20, 4))
    paths = noise.linear(1000, beta_end=1e-2)[:250][None]
    score = scoring.unnoised_reverse_error(jax.random.key(0), denoise, jnp.asarray(x, jnp.float32), paths)
    np.testing.assert_allclose(score[0], np.mean((1 - gains) ** 2 * x**2, axis=1), rtol=1e-3)


MIXING = jnp.asarray(np.random.default_rng(5).normal(size=(5, 5)), jnp.float32)
ROWS = jnp.asarray(np.random.default_rng(6).normal(size=(12, 5)), jnp.float32)


def curved_denoiser(noisy, level):
    """Any smooth function of the row: its parts odd and even in the noise both show in the score."""
    return jnp.tanh(noisy @ MIXING + 0.3) / jnp.asarray(1 + level.sigma, noisy.dtype)


@partial(jax.jit, static_argnames=("name", "memory_budget"))
def scores_of(key, x, *, name, memory_budget=scoring.MEMORY_BUDGET):
    score, levels = SCORES[name]
    return score(key, curved_denoiser, x, levels, draws=4, memory_budget=memory_budget)


@pytest.mark.parametrize("name", SCORES)
def test_a_rows_score_depends_on_no_other_row(name):
    together = np.asarray(scores_of(jax.random.key(0), ROWS, name=name))
    order = np.random.default_rng(2).permutation(len(ROWS))
    shuffled = scores_of(jax.random.key(0), ROWS[order], name=name)
    np.testing.assert_allclose(shuffled, together[:, order], rtol=1e-5)
    subset = np.array([7, 2, 5])
    alone = scores_of(jax.random.key(0), ROWS[subset], name=name)
    np.testing.assert_allclose(alone, together[:, subset], rtol=1e-5)


@pytest.mark.parametrize("name", SCORES)
def test_little_memory_changes_the_loop_and_not_the_score(name):
    roomy = scores_of(jax.random.key(0), ROWS, name=name)
    # Room for 5 of the 12 copies at once (and a remainder of 2); for one score also room for none.
    for copies in (5, 0) if name == "denoising_error" else (5,):
        tight = scores_of(jax.random.key(0), ROWS, name=name, memory_budget=copies * ROWS.nbytes)
        np.testing.assert_allclose(tight, roomy, rtol=1e-5)


@every_score
def test_another_key_draws_other_noise(score, levels):
    x = typical_rows(4)
    draw = jax.jit(lambda key: score(key, DENOISE, x, levels))
    same = bool(jnp.allclose(draw(jax.random.key(0)), draw(jax.random.key(1))))
    assert same == (score is scoring.unnoised_reverse_error)


@pytest.mark.parametrize("name", ["reconstruction_error", "denoising_error", "ddim_reconstruction_error"])
def test_draws_come_in_antithetic_pairs(name):
    """For a linear denoiser the part of the score that is odd in the noise cancels, so x and -x score alike."""
    score, levels = SCORES[name]
    x = typical_rows(8)

    def asymmetry(draws):
        error = jax.jit(lambda key: score(key, DENOISE, x, levels, draws=draws))(jax.random.key(0))
        return float(jnp.max(jnp.abs(error[:, :4] / error[:, 4:] - 1)))

    assert asymmetry(2) < 1e-4
    assert asymmetry(1) > 1e-2


def test_every_level_has_its_own_draws():
    twice = noise.NoiseLevel(LEVELS.alpha[[1, 1]], LEVELS.sigma[[1, 1]])
    first, second = scoring.reconstruction_error(jax.random.key(0), DENOISE, typical_rows(4), twice)
    assert not jnp.allclose(first, second)


@pytest.mark.parametrize("name", [name for name, (_, levels) in SCORES.items() if levels is PATHS])
def test_a_score_along_paths_refuses_single_levels(name):
    score, _ = SCORES[name]
    with pytest.raises(ValueError, match=r"shape \[levels, steps\], got \(3,\); build them with noise.reverse_paths"):
        score(jax.random.key(0), DENOISE, typical_rows(4), LEVELS)


@every_score
def test_a_score_needs_a_draw(score, levels):
    with pytest.raises(ValueError, match="at least one noise draw, got draws=0"):
        score(jax.random.key(0), DENOISE, typical_rows(4), levels, draws=0)


@pytest.mark.parametrize("prediction", [noise.NOISE, noise.VELOCITY], ids=["noise", "velocity"])
def test_an_untrained_network_ranks_rows_by_their_norm(prediction):
    """The trap behind published numbers: with zero output the score is a multiple of the squared norm."""
    network = MLP(width=8, depth=1)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 5)), jnp.zeros(1))["params"]
    x = jnp.asarray(np.random.default_rng(3).standard_t(3, size=(60, 5)), jnp.float32)
    labels = np.arange(60) % 3 == 0
    path = noise.linear(1000, beta_end=1e-2)[:250:5]
    denoise = make_denoiser(network, params, prediction)
    score = jax.jit(lambda key: scoring.unnoised_reverse_error(key, denoise, x, path[None]))(jax.random.key(0))
    square = np.mean(np.asarray(x) ** 2, axis=1)
    if prediction is noise.NOISE:
        np.testing.assert_allclose(score[0], (1 / path.alpha[-1] - 1) ** 2 * square, rtol=1e-3)
    np.testing.assert_allclose(score[0] / square, score[0, 0] / square[0], rtol=1e-3)
    assert auroc(labels, score[0]) == auroc(labels, square)


# ------------------------------------------------------------------------------------------- the straight path, and projections


def test_the_flow_residual_is_a_multiple_of_the_reconstruction_error_row_by_row():
    key, x = jax.random.key(0), typical_rows()
    residual = scoring.flow_residual(key, DENOISE, x, LEVELS, draws=3)
    error = scoring.reconstruction_error(key, DENOISE, x, LEVELS, draws=3)
    factor = (1 + LEVELS.alpha / LEVELS.sigma)[:, None] ** 2
    np.testing.assert_allclose(residual, factor * error, rtol=1e-4)


def test_the_flow_residual_is_that_of_the_velocity():
    """By hand, from the estimate of the clean row and the noise it implies."""
    level, x = noise.rectified_flow(10)[3:4], typical_rows(4)
    residual = scoring.flow_residual(jax.random.key(0), DENOISE, x, level)
    # The same draw as the score's own.
    draw_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    drawn = jax.random.normal(jax.random.split(draw_key)[0], (1, FEATURES))
    noisy = noise.add_noise(x, drawn, level[0])
    clean = DENOISE(noisy, level[0])
    velocity = noise.noise_from_clean(clean, noisy, level[0]) - clean
    np.testing.assert_allclose(residual[0], jnp.mean((velocity - (drawn - x)) ** 2, axis=1), rtol=1e-4)


PAIRS = noise.log_uniform(6, sigma_min=0.1, sigma_max=3.0)[np.array([[0, 3], [2, 5]])]


def test_projection_regret_of_normal_rows_is_its_formula():
    """Projections are linear maps, so both distances are quadratic forms of the row and of independent noise."""
    expected = []
    for pair in PAIRS:
        cleaner, noisier = pair[0], pair[1]
        gain, projection = gain_of_the_denoiser(cleaner), gain_of_the_denoiser(noisier)
        projected = projection**2 * (noisier.alpha**2 * SPREADS + noisier.sigma**2)
        expected.append(np.mean((1 - gain) ** 2 * (SPREADS - projected)))
    run = jax.jit(lambda key: scoring.projection_regret(key, DENOISE, typical_rows(), PAIRS, draws=2048))
    measured = np.asarray(run(jax.random.key(1)).mean(axis=1))
    np.testing.assert_allclose(measured, expected, rtol=0.02, atol=2e-4)


def test_a_row_off_the_data_regrets_its_projection():
    x = typical_rows(8).at[0].multiply(6.0)
    regret = scoring.projection_regret(jax.random.key(0), DENOISE, x, PAIRS, draws=4)
    assert (regret[:, :1] > regret[:, 1:]).all()


@pytest.mark.parametrize("levels", [LEVELS, PATHS], ids=["single levels", "paths"])
def test_projection_regret_refuses_what_is_no_pair(levels):
    with pytest.raises(ValueError, match=r"levels of shape \[pairs, 2\], the cleaner of each pair first, got"):
        scoring.projection_regret(jax.random.key(0), DENOISE, typical_rows(4), levels)
