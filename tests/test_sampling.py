"""Samplers against Gaussian data, whose denoiser, marginals and probability flow are known exactly."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import noise
from jaxad.closed_form import gaussian_denoiser
from jaxad.denoising import make_denoiser, make_learned_variance
from jaxad.noise import NoiseLevel, posterior, transition_variance
from jaxad.sampling import ancestral, ddim, ddim_inversion, dpmpp_2m, fixed_large, fixed_small, heun, no_variance

ORDERS = "measured orders of convergence"
MEAN = np.array([1.0, -2.0, 0.5])
COVARIANCE = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.25]])
SPREADS = np.array([0.01, 0.25, 1.0, 4.0])  # variances of independent features
NUM_ROWS = 4096

SCHEDULES = {
    "linear": noise.linear(1000)[4::5],
    "dte": noise.linear(1000, beta_end=1e-2)[4::5],
    "cosine": noise.cosine(1000)[4::5],
    # Without its last level, which is clipped to alpha = 3e-5: heun averages two slopes, and that step is a cliff.
    "sigmoid": noise.sigmoid(1000)[4:999:5],
    "rectified-flow": noise.rectified_flow(200),
    "karras": noise.karras(200, sigma_min=0.01),
}


def without_key(sampler):
    return lambda key, denoise, noisy, levels: sampler(denoise, noisy, levels)


SAMPLERS = {
    "ancestral": ancestral,
    "ddim": ddim,
    "ddim-half": partial(ddim, eta=0.5),
    "ddim-one": partial(ddim, eta=1.0),
    "heun": heun,
    "heun-churn": partial(heun, churn=40.0),
    "dpmpp_2m": without_key(dpmpp_2m),
}
DETERMINISTIC = ["ddim", "heun", "dpmpp_2m"]


def marginal_start(seed, level):
    """Rows of q(z) at ``level`` for data from N(MEAN, COVARIANCE)."""
    total = level.alpha**2 * COVARIANCE + level.sigma**2 * np.eye(3)
    white = np.random.default_rng(seed).normal(size=(NUM_ROWS, 3))
    return jnp.asarray(level.alpha * MEAN + white @ np.linalg.cholesky(total).T, jnp.float32)


@pytest.mark.parametrize("levels", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_every_sampler_reproduces_mean_and_covariance_on_every_schedule(sampler, levels):
    denoise = gaussian_denoiser(MEAN, COVARIANCE)
    run = jax.jit(lambda key, start: sampler(key, denoise, start, levels))
    samples = np.asarray(run(jax.random.key(1), marginal_start(0, levels[-1])), np.float64)
    whitening = np.linalg.inv(np.linalg.cholesky(COVARIANCE))
    white = (samples - MEAN) @ whitening.T
    # Standard errors of a mean, a variance and a covariance of NUM_ROWS white rows; 200 steps leave another 2 per cent.
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=5 / NUM_ROWS**0.5)
    np.testing.assert_allclose(white.T @ white / NUM_ROWS, np.eye(3), atol=5 * (2 / NUM_ROWS) ** 0.5 + 0.02)


# The chain of the published DDPM score: 250 levels of DTE's schedule, from an independent float64 implementation.
DTE_PATH = noise.linear(1000, beta_end=1e-2)[:250]
ANCESTRAL_GAINS = [0.02909119091456842, 0.45715395089645655, 0.8463127462356614, 1.075114333861023]
DDIM_GAINS = [0.18279105955351174, 0.7335972067067993, 0.9993326988633678, 1.126879504444268]
STOCHASTIC_VARIANCES = [0.009159013312313, 0.15057624201622583, 0.27929289995066814, 0.35484734194399925]


@pytest.mark.parametrize(
    ("sampler", "gains"),
    [(partial(ancestral, variance=no_variance), ANCESTRAL_GAINS), (ddim, DDIM_GAINS)],
    ids=["ancestral", "ddim"],
)
def test_gain_of_250_deterministic_steps(sampler, gains):
    with jax.enable_x64(True):
        denoise = gaussian_denoiser(np.zeros(4), np.diag(SPREADS))
        restored = sampler(jax.random.key(0), denoise, jnp.ones((1, 4)), DTE_PATH)
    np.testing.assert_allclose(restored[0], gains, rtol=1e-9)


def test_mean_only_ancestral_steps_telescope_to_one_denoiser_call():
    with jax.enable_x64(True):
        denoise = gaussian_denoiser(MEAN, COVARIANCE)
        z = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)))
        for levels in (noise.cosine(100)[:60], noise.karras(30)):
            walked = ancestral(jax.random.key(0), denoise, z, levels, variance=no_variance)
            np.testing.assert_allclose(walked, denoise(z, levels[-1]), rtol=1e-9, atol=1e-9)


def test_gain_and_variance_of_250_stochastic_steps():
    denoise = gaussian_denoiser(np.zeros(4), np.diag(SPREADS))
    run = jax.jit(lambda z: ancestral(jax.random.key(0), denoise, z, DTE_PATH))
    from_zero, from_one = run(jnp.zeros((20_000, 4))), run(jnp.ones((20_000, 4)))
    np.testing.assert_allclose((from_one - from_zero).mean(axis=0), ANCESTRAL_GAINS, rtol=1e-3)
    relative_error = (2 / 20_000) ** 0.5
    np.testing.assert_allclose(from_zero.var(axis=0), STOCHASTIC_VARIANCES, rtol=5 * relative_error)


# ------------------------------------------------------------------------------------------------------ order of convergence

STEPS = np.array([40, 80, 160, 320])


def flow_gain(from_level, to_level):
    """The probability flow of N(0, diag SPREADS) in coordinates z / alpha."""
    return np.sqrt((SPREADS + to_level.sigma**2) / (SPREADS + from_level.sigma**2))


def measured_order(error_of):
    """Slope of log error against log step size."""
    errors = np.array([error_of(int(steps)) for steps in STEPS])
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0], errors


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("ddim_inversion", 1)])
def test_order_of_convergence_to_the_exact_flow(name, order, record_property):
    def error_of(steps):
        levels = noise.karras(steps)
        cleanest, noisiest = levels[0], levels[-1]
        if name == "ddim_inversion":
            result, exact = ddim_inversion(denoise, jnp.ones((1, 4)), levels), flow_gain(cleanest, noisiest)
        else:
            start = noisiest.sigma * jnp.ones((1, 4))
            run = jax.jit(lambda start: SAMPLERS[name](jax.random.key(0), denoise, start, levels))
            result = run(start)
            last_jump = SPREADS / (SPREADS + cleanest.sigma**2)
            exact = noisiest.sigma * flow_gain(noisiest, cleanest) * last_jump
        return float(np.max(np.abs(result[0] / exact - 1)))

    with jax.enable_x64(True):
        denoise = gaussian_denoiser(np.zeros(4), np.diag(SPREADS))
        slope, errors = measured_order(error_of)
    decay = ", ".join(f"{error:.1e}" for error in errors)
    steps = ", ".join(map(str, STEPS))
    record_property(
        ORDERS, f"{name:<15} claimed {order}   measured {slope:.3f}   relative error {decay} at {steps} levels"
    )
    assert abs(slope - order) < 0.15


def test_inverting_and_walking_back_returns_within_a_hundredth():
    spreads = SPREADS[1:]
    denoise = gaussian_denoiser(np.zeros(3), np.diag(spreads))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(500, 3)) * spreads**0.5, jnp.float32)
    levels = noise.cosine(1000)[np.linspace(0, 249, 100).astype(int)]
    latent = ddim_inversion(denoise, x, levels)
    returned = ddim(jax.random.key(0), denoise, latent, levels)
    assert float(jnp.linalg.norm(latent - x) / jnp.linalg.norm(x)) > 0.05
    assert float(jnp.linalg.norm(returned - x) / jnp.linalg.norm(x)) < 1e-2


# -------------------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "heun-churn"])
def test_the_scale_of_the_coordinates_does_not_matter(name):
    exploding = noise.karras(12)
    r = np.sqrt(1 + exploding.sigma**2)
    preserving = NoiseLevel(1 / r, exploding.sigma / r)
    with jax.enable_x64(True):
        denoise = gaussian_denoiser(MEAN, COVARIANCE)
        z = jnp.asarray(np.random.default_rng(3).normal(size=(5, 3)) * 80)
        one = SAMPLERS[name](jax.random.key(0), denoise, z, exploding)
        other = SAMPLERS[name](jax.random.key(0), denoise, z / r[-1], preserving)
    np.testing.assert_allclose(one, other, rtol=1e-8)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "karras"])
def test_ddim_with_eta_one_is_ancestral_sampling(schedule):
    levels = SCHEDULES[schedule][::10]
    with jax.enable_x64(True):
        denoise = gaussian_denoiser(MEAN, COVARIANCE)
        z = jnp.asarray(np.random.default_rng(4).normal(size=(5, 3)))
        one = ddim(jax.random.key(7), denoise, z, levels, eta=1.0)
        other = ancestral(jax.random.key(7), denoise, z, levels)
    np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
def test_only_stochastic_samplers_read_the_key_and_they_draw_per_row(name):
    levels, z = SCHEDULES["cosine"][::20], jnp.ones((3, 3))
    run = jax.jit(lambda key: SAMPLERS[name](key, gaussian_denoiser(MEAN, COVARIANCE), z, levels))
    first, second = run(jax.random.key(0)), run(jax.random.key(1))
    assert bool(jnp.allclose(first, second)) == (name in DETERMINISTIC)
    assert bool(jnp.allclose(first[0], first[1])) == (name in DETERMINISTIC)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_may_have_any_shape(name):
    flat = gaussian_denoiser(np.zeros(8), np.diag(np.linspace(0.1, 2, 8)))

    def denoise(images, level):
        return flat(images.reshape(len(images), 8), level).reshape(images.shape)

    z = jnp.asarray(np.random.default_rng(5).normal(size=(3, 2, 2, 2)), jnp.float32)
    levels = SCHEDULES["linear"][::40]
    restored = SAMPLERS[name](jax.random.key(0), denoise, z, levels)
    assert restored.shape == z.shape
    if name in DETERMINISTIC:
        vectors = SAMPLERS[name](jax.random.key(0), flat, z.reshape(3, 8), levels)
        np.testing.assert_allclose(restored.reshape(3, 8), vectors, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------- few steps, with the right variance


class OptimalGaussian(nn.Module):
    """The best prediction and the best variance for data from N(0, spread I), read off a table over the schedule's levels."""

    spread: float
    learned_variance: bool = True

    @nn.compact
    def __call__(self, x, log_snr):
        table = self.get_variable("params", "table")
        snr = jnp.exp(log_snr)[:, None]
        clean = (jnp.sqrt(1 + snr) * jnp.sqrt(snr) * self.spread / (1 + snr * self.spread)) * x
        interpolation = jnp.interp(-log_snr, -table["log_snr"], table["interpolation"])
        return jnp.concatenate([clean, jnp.broadcast_to(interpolation[:, None], x.shape)], axis=-1)


def optimal_interpolation(levels, spread):
    """v of Nichol & Dhariwal such that the reverse variance is that of q(z_s | z_t) with x integrated out."""
    q, large = posterior(levels[:-1], levels[1:]), transition_variance(levels[:-1], levels[1:])
    noisier = levels[1:]
    of_clean = spread * noisier.sigma**2 / (noisier.alpha**2 * spread + noisier.sigma**2)
    best = q.variance + q.from_clean**2 * of_clean
    return 2 * (np.log(best) - np.log(q.variance)) / (np.log(large) - np.log(q.variance)) - 1


@pytest.mark.parametrize("spread", [0.25, 1.0])
def test_ten_ancestral_steps_are_exact_with_the_optimal_learned_variance(spread):
    levels = noise.linear(1000)[[0, 30, 100, 200, 320, 450, 570, 700, 850, 999]]
    table = {"log_snr": levels.log_snr[1:], "interpolation": optimal_interpolation(levels, spread)}
    assert ((table["interpolation"] > -1) & (table["interpolation"] < 1 + 1e-9)).all()
    params = {"table": jax.tree.map(lambda values: jnp.asarray(values, jnp.float32), table)}
    network = OptimalGaussian(spread)
    denoise = make_denoiser(network, params, noise.CLEAN)
    width = np.sqrt(levels.alpha[-1] ** 2 * spread + levels.sigma[-1] ** 2)
    z = jnp.asarray(width * np.random.default_rng(6).normal(size=(NUM_ROWS, 4)), jnp.float32)

    def variance_with(variance):
        return float(ancestral(jax.random.key(2), denoise, z, levels, variance=variance).var()) / spread

    relative_error = (2 / (4 * NUM_ROWS)) ** 0.5
    # The last jump returns a posterior mean, which is narrower than the data by sigma^2 / (alpha^2 spread + sigma^2).
    shrink = levels.alpha[0] ** 2 * spread / (levels.alpha[0] ** 2 * spread + levels.sigma[0] ** 2)
    assert abs(variance_with(make_learned_variance(network, params)) / shrink - 1) < 5 * relative_error
    assert variance_with(fixed_small) / shrink < 1 - 10 * relative_error
    if spread == 1.0:
        assert abs(variance_with(fixed_large) / shrink - 1) < 5 * relative_error


def test_a_learned_variance_needs_a_network_that_has_one():
    with pytest.raises(ValueError, match="needs a network built with learned_variance=True"):
        make_learned_variance(OptimalGaussian(1.0, learned_variance=False), {})
