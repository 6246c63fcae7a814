"""Noise levels: published schedules, the posterior's algebra, and what a network may predict."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import noise
from jaxad.noise import NoiseLevel, posterior

SCHEDULES = {
    "linear": noise.linear(),
    "linear-50": noise.linear(50),
    "dte": noise.linear(beta_end=1e-2),
    "dte-time": noise.linear(400, beta_end=1e-2, rescale=False),
    "scaled-linear": noise.scaled_linear(),
    "cosine": noise.cosine(),
    "sigmoid": noise.sigmoid(),
    "karras": noise.karras(),
    "log-uniform": noise.log_uniform(),
    "rectified-flow": noise.rectified_flow(),
    "shifted-cosine": noise.shift_for_resolution(noise.cosine(), 256),
}
PREDICTIONS = {"clean": noise.CLEAN, "noise": noise.NOISE, "velocity": noise.VELOCITY, "score": noise.SCORE}

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)


def spread_indices(schedule, count=9):
    return np.unique(np.linspace(0, len(schedule) - 1, count).astype(int))


# Values of alpha^2 computed by an independent implementation from the papers' formulas.
@pytest.mark.parametrize(
    ("name", "index", "abar"),
    [
        ("linear", 0, 0.9999),
        ("linear", 99, 0.89701814567496),
        ("linear", 249, 0.5240853738253606),
        ("linear", 499, 0.07858724288177824),
        ("linear", 999, 4.035829765375676e-05),
        ("cosine", 0, 0.999958715775178),
        ("cosine", 99, 0.9720927371139696),
        ("cosine", 249, 0.847012161326905),
        ("cosine", 499, 0.4938435904406382),
        ("cosine", 998, 2.4287669070348544e-06),
        ("cosine", 999, 2.4287669070348567e-09),
        ("dte", 0, 0.9999),
        ("dte", 249, 0.7162452644409447),
        ("dte", 999, 0.006301749772207036),
        ("dte-time", 399, 1 - 0.9318**2),
    ],
)
def test_variance_preserving_schedules_have_their_published_values(name, index, abar):
    published_digits = 1e-3 if name == "dte-time" else 1e-11
    np.testing.assert_allclose(SCHEDULES[name].alpha[index] ** 2, abar, rtol=published_digits)


def test_karras_levels_are_edms_eighteen():
    noisiest_first = [80.0, 57.58598472124816, 40.78557379650796, 28.374584604156844, 19.352452980325225]
    cleanest_first = [0.002000000000000003, 0.007528019962784078, 0.022934518372333384, 0.05994731123547159]
    np.testing.assert_allclose(noise.karras(18).sigma[::-1][:5], noisiest_first, rtol=1e-12)
    np.testing.assert_allclose(noise.karras(18).sigma[9], 3.256821519765537, rtol=1e-12)
    np.testing.assert_allclose(noise.karras(18).sigma[:4], cleanest_first, rtol=1e-12)


def test_fewer_linear_levels_end_about_as_noisy():
    np.testing.assert_allclose(SCHEDULES["linear-50"].sigma[-1], SCHEDULES["linear"].sigma[-1], rtol=1e-4)


def test_log_uniform_levels_grow_by_one_factor():
    ratios = noise.log_uniform(7).sigma[1:] / noise.log_uniform(7).sigma[:-1]
    np.testing.assert_allclose(ratios, (3.0 / 0.05) ** (1 / 6))


def test_sigmoid_is_half_signal_half_noise_in_the_middle():
    np.testing.assert_allclose(noise.sigmoid(1000).alpha[499] ** 2, 0.5)


@every_schedule
def test_log_snr_falls_strictly_in_both_precisions(schedule):
    for levels in (schedule, schedule.to(jnp.float32)):
        assert np.isfinite(levels.log_snr).all()
        assert (np.diff(levels.log_snr) < 0).all()


@every_schedule
def test_schedules_are_float64_tables_on_the_host(schedule):
    for table in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule[3].alpha):
        assert isinstance(table, np.ndarray | np.float64)
        assert table.dtype == np.float64
    assert schedule.to(jnp.float32).alpha.dtype == jnp.float32


@every_schedule
@every_prediction
def test_to_clean_undoes_target_at_every_level(prediction, schedule):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, eps = jnp.asarray(rng.normal(size=(2, len(schedule), 3)))
        z = noise.add_noise(x, eps, schedule)
        recovered = prediction.to_clean(prediction.target(x, eps, schedule), z, schedule)
        # The noise of the noisiest cosine level hides x behind alpha = 5e-5.
        np.testing.assert_allclose(recovered, x, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(noise.noise_from_clean(x, z, schedule), eps, rtol=1e-9, atol=1e-9)
        expected = -eps / noise.expand(schedule.sigma, x)
        np.testing.assert_allclose(noise.score_from_clean(x, z, schedule), expected, rtol=1e-9, atol=1e-9)


def test_the_score_target_is_the_gradient_of_the_log_density():
    """With respect to what the network sees: z itself when the variance is preserved."""
    level, x, eps = noise.cosine()[400], jnp.array([[0.3, -1.2]]), jnp.array([[0.5, 2.0]])

    def log_density(z):
        return -jnp.sum((z - float(level.alpha) * x) ** 2) / (2 * float(level.sigma) ** 2)

    gradient = jax.grad(log_density)(noise.add_noise(x, eps, level))
    np.testing.assert_allclose(noise.SCORE.target(x, eps, level), gradient, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 1.0, 80.0])
def test_velocity_is_edms_preconditioning_at_unit_data_variance(sigma):
    c_skip, c_out = 1 / (sigma**2 + 1), sigma / np.sqrt(sigma**2 + 1)
    level = NoiseLevel(np.float64(1.0), np.float64(sigma))
    with jax.enable_x64(True):
        x, eps, output = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 2)))
        z = x + sigma * eps
        np.testing.assert_allclose(noise.VELOCITY.to_clean(-output, z, level), c_skip * z + c_out * output, rtol=1e-9)
        np.testing.assert_allclose(-noise.VELOCITY.target(x, eps, level), (x - c_skip * z) / c_out, rtol=1e-7)


@pytest.mark.parametrize("name", ["linear", "cosine", "dte", "scaled-linear"])
def test_posterior_between_neighbours_is_ddpms(name):
    abar = SCHEDULES[name].alpha ** 2
    now, before = abar[1:], abar[:-1]
    beta = 1 - now / before
    q = posterior(SCHEDULES[name][:-1], SCHEDULES[name][1:])
    np.testing.assert_allclose(noise.transition_variance(SCHEDULES[name][:-1], SCHEDULES[name][1:]), beta, rtol=1e-8)
    np.testing.assert_allclose(q.variance, (1 - before) / (1 - now) * beta, rtol=1e-8)
    np.testing.assert_allclose(q.from_clean, np.sqrt(before) * beta / (1 - now), rtol=1e-8)
    np.testing.assert_allclose(q.from_noisy, np.sqrt(1 - beta) * (1 - before) / (1 - now), rtol=1e-8)


@every_schedule
def test_posterior_averaged_over_the_noisier_marginal_is_the_cleaner_one(schedule):
    for s, t in itertools.combinations(spread_indices(schedule), 2):
        q, cleaner, noisier = posterior(schedule[s], schedule[t]), schedule[s], schedule[t]
        np.testing.assert_allclose(q.from_noisy * noisier.alpha + q.from_clean, cleaner.alpha, rtol=1e-10)
        np.testing.assert_allclose(q.from_noisy**2 * noisier.sigma**2 + q.variance, cleaner.sigma**2, rtol=1e-10)
        assert q.variance > 0


@every_schedule
def test_two_posterior_steps_make_one_long_step(schedule):
    for r, s, t in itertools.combinations(spread_indices(schedule, 6), 3):
        first, second = posterior(schedule[s], schedule[t]), posterior(schedule[r], schedule[s])
        direct = posterior(schedule[r], schedule[t])
        np.testing.assert_allclose(second.from_noisy * first.from_noisy, direct.from_noisy, rtol=1e-9)
        np.testing.assert_allclose(
            second.from_noisy * first.from_clean + second.from_clean, direct.from_clean, rtol=1e-9
        )
        np.testing.assert_allclose(second.variance + second.from_noisy**2 * first.variance, direct.variance, rtol=1e-9)


@every_schedule
def test_posterior_keeps_its_digits_in_float32(schedule):
    exact = posterior(schedule[:-1], schedule[1:])
    rounded = posterior(schedule.to(jnp.float32)[:-1], schedule.to(jnp.float32)[1:])
    for coefficient, expected in zip(rounded, exact, strict=True):
        np.testing.assert_allclose(coefficient, expected, rtol=1e-3)


@pytest.mark.parametrize("shift", [-2.0, 0.0, 3.0])
@every_schedule
def test_shifting_adds_to_log_snr_and_keeps_the_total_variance(schedule, shift):
    shifted = noise.shift_log_snr(schedule, shift)
    np.testing.assert_allclose(shifted.log_snr, schedule.log_snr + shift, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(shifted.alpha**2 + shifted.sigma**2, schedule.alpha**2 + schedule.sigma**2)


def test_four_times_as_many_pixels_shift_by_log_four():
    schedule = noise.cosine(100)
    np.testing.assert_allclose(noise.shift_for_resolution(schedule, 128).log_snr, schedule.log_snr - np.log(4))
    np.testing.assert_allclose(noise.shift_for_resolution(schedule, 64).log_snr, schedule.log_snr)


def test_add_noise_takes_one_level_or_one_per_row():
    x, eps = np.random.default_rng(2).normal(size=(2, 3, 2, 2)).astype(np.float32)
    levels = noise.cosine(3)
    together = noise.add_noise(jnp.asarray(x), jnp.asarray(eps), levels)
    for row in range(3):
        expected = levels.alpha[row] * x[row] + levels.sigma[row] * eps[row]
        np.testing.assert_allclose(together[row], expected, rtol=1e-6, atol=1e-6)
        alone = noise.add_noise(jnp.asarray(x), jnp.asarray(eps), levels[row])
        np.testing.assert_allclose(together[row], alone[row], rtol=1e-6)


def test_a_level_is_a_pytree_that_maps_and_scans():
    schedule = noise.cosine(5).to(jnp.float32)
    mapped = jax.vmap(lambda level: level.log_snr)(schedule)
    _, scanned = jax.lax.scan(lambda carry, level: (carry, level.log_snr), None, schedule)
    np.testing.assert_allclose(mapped, schedule.log_snr, rtol=1e-6)
    np.testing.assert_allclose(scanned, schedule.log_snr, rtol=1e-6)
    assert len(jax.tree.leaves(schedule)) == 2
    assert len(schedule) == 5


def test_reverse_paths_walk_evenly_from_the_cleanest_level_to_their_start():
    schedule = noise.linear(1000)
    paths = noise.reverse_paths(schedule, starts=[9, 99, 999], num_steps=10)
    assert paths.alpha.shape == (3, 10)
    for path, start in zip(range(3), [9, 99, 999], strict=True):
        indices = np.round(np.arange(10) * start / 9).astype(int)
        np.testing.assert_array_equal(paths[path].sigma, schedule.sigma[indices])
    np.testing.assert_array_equal(noise.reverse_paths(schedule, 249, 250).alpha[0], schedule.alpha[:250])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise.linear(1), "at least 2 noise levels, got num_levels=1"),
        (lambda: noise.cosine(2.5), "at least 2 noise levels, got num_levels=2.5"),
        (lambda: noise.karras(0), "at least 2 noise levels"),
        (lambda: noise.linear(10), "use more levels, or a smaller beta_end"),
        (lambda: noise.from_betas([0.1]), r"betas of shape \(1,\)"),
        (lambda: noise.from_betas([[0.1, 0.2]]), r"betas of shape \(1, 2\)"),
        (lambda: noise.from_betas([0.0, 0.5]), "strictly between 0 and 1, got values from 0 to 0.5"),
        (lambda: noise.from_betas([0.1, np.nan]), "strictly between 0 and 1"),
        (lambda: noise.karras(5, sigma_min=2.0, sigma_max=1.0), "0 < sigma_min < sigma_max, got sigma_min=2.0"),
        (lambda: noise.log_uniform(5, sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: noise.reverse_paths(noise.linear(), [1000], 10), "between index 9 and 999"),
        (lambda: noise.reverse_paths(noise.linear(), [500, 5], 10), "got starts from 5 to 500"),
        (lambda: noise.reverse_paths(noise.linear(), [500], 1), "at least 2 steps.*got num_steps=1"),
    ],
)
def test_impossible_schedules_are_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
