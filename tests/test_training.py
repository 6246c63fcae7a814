"""Losses against their formulas, steps against optimisation by hand, and what training must reach on Gaussian data."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxad import noise, training
from jaxad.denoisers import MLP
from jaxad.denoising import make_learned_variance, network_output
from jaxad.noise import posterior, transition_variance

PLAIN = MLP(width=8, depth=1)
TWO_HEADED = MLP(width=8, depth=1, learned_variance=True)
ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(32, 3)), jnp.float32)
SCHEDULES = {"cosine": noise.cosine(50).to(jnp.float32), "karras": noise.karras(50).to(jnp.float32)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def random_params(network):
    shapes = jax.eval_shape(network.init, jax.random.key(0), ROWS[:1], jnp.zeros(1))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def what_the_loss_sees(key, network, params, schedule):
    """``(level, noise, noisy, output, interpolation)`` drawn as the losses draw them."""
    draw_key, _ = jax.random.split(key)
    index, eps = training.draw_levels_and_noise(draw_key, ROWS, schedule)
    level = schedule[index]
    noisy = noise.add_noise(ROWS, eps, level)
    return level, eps, noisy, *network_output(network, params, noisy, level)


# ------------------------------------------------------------------------------------------------------------------- losses


@every_schedule
@pytest.mark.parametrize("prediction", [noise.NOISE, noise.VELOCITY], ids=["noise", "velocity"])
def test_the_simple_loss_is_the_squared_error_of_the_prediction(prediction, schedule):
    params = random_params(PLAIN)
    loss = training.simple_loss(PLAIN, prediction)(jax.random.key(3), params, ROWS, schedule)
    level, eps, _, output, _ = what_the_loss_sees(jax.random.key(3), PLAIN, params, schedule)
    alpha, sigma = np.asarray(level.alpha)[:, None], np.asarray(level.sigma)[:, None]
    velocity = (alpha * np.asarray(eps) - sigma * np.asarray(ROWS)) / np.sqrt(alpha**2 + sigma**2)
    target = velocity if prediction is noise.VELOCITY else np.asarray(eps)
    np.testing.assert_allclose(loss, np.mean((np.asarray(output) - target) ** 2), rtol=1e-5)


@pytest.mark.parametrize("prediction", [noise.NOISE, noise.VELOCITY], ids=["noise", "velocity"])
def test_min_snr_is_the_published_weight_of_each_prediction(prediction):
    schedule, params, gamma = SCHEDULES["cosine"], random_params(PLAIN), 5.0
    loss = training.simple_loss(PLAIN, prediction, training.min_snr(gamma))
    value = loss(jax.random.key(3), params, ROWS, schedule)
    level, eps, _, output, _ = what_the_loss_sees(jax.random.key(3), PLAIN, params, schedule)
    snr = np.exp(np.asarray(level.log_snr))
    weight = np.minimum(snr, gamma) / (snr if prediction is noise.NOISE else snr + 1)
    error = np.mean((np.asarray(output) - np.asarray(prediction.target(ROWS, eps, level))) ** 2, axis=1)
    np.testing.assert_allclose(value, np.mean(weight * error), rtol=2e-3)


# x, variance of the data, the bound and -log p(x), in nats, from an independent float64 implementation.
@pytest.mark.parametrize(
    ("x", "spread", "bound", "exact"),
    [
        (1.5, 1.0, 2.6283563738554734, 2.0439385332046727),
        (0.0, 1.0, 1.4928749821653255, 0.9189385332046727),
        (1.0, 0.25, 2.8208355683774733, 2.2257913526447273),
        (3.0, 4.0, 3.324982503950604, 2.737085713764618),
    ],
)
@pytest.mark.parametrize("interpolation", [None, -1.0], ids=["fixed small", "learned to be small"])
def test_the_variational_bound_of_gaussian_data_has_its_known_value(interpolation, x, spread, bound, exact):
    schedule = noise.linear(1000)
    alpha, sigma = schedule.alpha, schedule.sigma
    gain = alpha * spread / (alpha**2 * spread + sigma**2)
    expected_gap = (gain * alpha - 1) ** 2 * x**2 + (
        gain * sigma
    ) ** 2  # E (clean estimate - x)^2, which the terms are linear in
    with jax.enable_x64(True):
        clean = jnp.asarray(x + np.sqrt(expected_gap))[:, None]
        outputs = None if interpolation is None else jnp.full((1000, 1), interpolation)
        terms = training.vlb_terms(clean, outputs, jnp.full((1000, 1), x), jnp.arange(1000), schedule)
        prior = 0.5 * (alpha[-1] ** 2 * x**2 + sigma[-1] ** 2 - 1 - np.log(sigma[-1] ** 2))
        total = float(terms.sum()) + prior
    np.testing.assert_allclose(total, bound, rtol=1e-6)
    assert total > exact


def test_the_bound_trains_only_the_variance():
    params, schedule = random_params(TWO_HEADED), SCHEDULES["cosine"]

    def last_layer_gradient(weight):
        loss = training.hybrid_loss(TWO_HEADED, vlb_weight=weight)
        gradient = jax.jit(jax.grad(lambda p, key: loss(key, p, ROWS, schedule)))(params, jax.random.key(2))
        (kernel,) = [leaf for leaf in jax.tree.leaves(gradient) if leaf.shape == (8, 6)]
        return np.split(np.asarray(kernel), 2, axis=1)

    (mean_with, variance_with), (mean_without, variance_without) = map(last_layer_gradient, (1.0, 0.0))
    np.testing.assert_allclose(mean_with, mean_without, rtol=1e-5, atol=1e-7)
    assert np.abs(mean_with).max() > 1e-3
    assert np.abs(variance_without).max() == 0
    assert np.abs(variance_with).max() > 1e-5


@pytest.mark.parametrize("keep", [0.5, 0.9, 1.0])
def test_the_trimmed_loss_learns_from_the_best_denoised_rows_alone(keep):
    """By the gradient in the rows: nothing comes through those that are left out."""
    params, schedule = random_params(PLAIN), noise.cosine(20).to(jnp.float32)
    rows = ROWS.at[1].multiply(50.0)
    loss = training.trimmed_loss(PLAIN, keep=keep)
    gradient = jax.grad(loss, argnums=2)(jax.random.key(0), params, rows, schedule)
    learned = np.asarray(jnp.any(gradient != 0, axis=1))
    assert learned.sum() == round(keep * len(rows))
    assert learned[1] == (keep == 1.0)


def test_keeping_every_row_is_the_simple_loss():
    params, schedule = random_params(PLAIN), noise.cosine(20).to(jnp.float32)
    rows = jnp.tile(ROWS, (500, 1))
    losses = [
        make(PLAIN)(jax.random.key(0), params, rows, schedule)
        for make in (partial(training.trimmed_loss, keep=1.0), training.simple_loss)
    ]
    assert losses[0] == pytest.approx(float(losses[1]), rel=0.02)


@pytest.mark.parametrize("keep", [0.0, 1.5, float("nan")])
def test_a_share_to_keep_out_of_range_is_refused(keep):
    with pytest.raises(ValueError, match=r"in \(0, 1\], got"):
        training.trimmed_loss(PLAIN, keep=keep)


def test_the_hybrid_loss_is_the_simple_one_plus_the_weighted_bound():
    params, schedule = random_params(TWO_HEADED), SCHEDULES["cosine"]
    whole = training.hybrid_loss(TWO_HEADED, noise.VELOCITY, vlb_weight=0.7)(jax.random.key(4), params, ROWS, schedule)
    level, eps, noisy, output, interpolation = what_the_loss_sees(jax.random.key(4), TWO_HEADED, params, schedule)
    index = jnp.searchsorted(-schedule.log_snr, -level.log_snr)
    clean = noise.VELOCITY.to_clean(output, noisy, level)
    bound = training.vlb_terms(clean, interpolation, ROWS, index, schedule).mean()
    simple = jnp.mean((output - noise.VELOCITY.target(ROWS, eps, level)) ** 2)
    np.testing.assert_allclose(whole, simple + 0.7 * bound, rtol=1e-4)


def test_a_variance_loss_needs_a_variance_output():
    with pytest.raises(ValueError, match="build the network with learned_variance=True"):
        training.hybrid_loss(PLAIN)


def test_levels_are_spread_evenly_and_noise_is_standard():
    schedule, x = noise.cosine(64), jnp.zeros((64, 500))
    index, eps = training.draw_levels_and_noise(jax.random.key(0), x, schedule)
    np.testing.assert_array_equal(np.sort(index), np.arange(64))
    np.testing.assert_allclose(eps.mean(), 0, atol=5 / eps.size**0.5)
    np.testing.assert_allclose(eps.var(), 1, atol=5 * (2 / eps.size) ** 0.5)
    few = jax.jit(jax.vmap(lambda key: training.draw_levels_and_noise(key, x[:4, :1], schedule)[0]))
    counts = np.bincount(np.ravel(few(jax.random.split(jax.random.key(1), 4096))), minlength=64)
    np.testing.assert_allclose(counts, 256, atol=5 * 256**0.5)


# -------------------------------------------------------------------------------------------------------------------- steps


def slope_loss(key, params, x, schedule, *, train=True, axis_name=None):
    """Gradient 1 for the only parameter, and no longer finite once that falls below zero."""
    return jnp.where(params["a"] > 0, params["a"], jnp.nan)


def slope_state(optimizer, start=4.5, step=0):
    params = {"a": jnp.float32(start)}
    return training.TrainState(jnp.int32(step), params, params, optimizer.init(params), jax.random.key(0))


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (8, 0.5), (10**6, 0.99)])
def test_the_averages_decay_warms_up(step, decay):
    optimizer = optax.sgd(1.0)
    state = slope_state(optimizer, 4.5, step)
    after, value = training.train_step(
        state, ROWS, SCHEDULES["cosine"], loss=slope_loss, optimizer=optimizer, ema_decay=0.99
    )
    assert float(value) == 4.5
    assert float(after.params["a"]) == 3.5
    np.testing.assert_allclose(after.ema["a"], decay * 4.5 + (1 - decay) * 3.5, rtol=1e-6)
    assert int(after.step) == step + 1


def updates_of(optimizer, gradient, steps):
    params = {"a": jnp.zeros(4)}
    state, rates = optimizer.init(params), []
    for _ in range(steps):
        update, state = optimizer.update({"a": gradient}, state, params)
        rates.append(-float(update["a"][0]))
    return np.array(rates), state


def test_the_rate_warms_up_and_falls_along_a_cosine():
    rates, _ = updates_of(training.adam(0.1, num_steps=12, warmup_steps=4), jnp.full(4, 0.1), 12)
    step = np.arange(12)
    expected = np.where(step < 4, 0.1 * step / 4, 0.1 * 0.5 * (1 + np.cos(np.pi * (step - 4) / 8)))
    np.testing.assert_allclose(rates, expected, rtol=1e-4, atol=1e-7)
    constant, _ = updates_of(training.adam(0.1), jnp.full(4, 0.1), 3)
    np.testing.assert_allclose(constant, 0.1, rtol=1e-4)


@pytest.mark.parametrize(("size", "clipped"), [(0.1, 0.1), (50.0, 0.5)])
def test_gradients_are_clipped_by_their_global_norm(size, clipped):
    _, state = updates_of(training.adam(0.1, clip_norm=1.0), jnp.full(4, size), 1)
    np.testing.assert_allclose(optax.tree.get(state, "mu")["a"], 0.1 * clipped, rtol=1e-5)
    _, state = updates_of(training.adam(0.1, clip_norm=None), jnp.full(4, size), 1)
    np.testing.assert_allclose(optax.tree.get(state, "mu")["a"], 0.1 * size, rtol=1e-5)


def test_equal_settings_are_the_same_object_and_compile_once():
    assert training.adam(1e-3) is training.adam(1e-3)
    assert training.simple_loss(MLP(width=8, depth=1)) is training.simple_loss(PLAIN)
    assert training.min_snr(3.0) is training.min_snr(3.0)

    chex.clear_trace_counter()
    traced_once = chex.assert_max_traces(training.train_step, n=1)
    step = jax.jit(partial(traced_once, loss=training.simple_loss(PLAIN), optimizer=training.adam()))
    state = training.init_state(jax.random.key(0), PLAIN, training.adam(), ROWS[:1], jnp.zeros(1))
    for _ in range(3):
        state, _ = step(state, ROWS, SCHEDULES["cosine"])


SETTINGS = dict(loss=training.simple_loss(PLAIN), optimizer=training.adam(), batch_size=16, chunk=20)


def fresh_state():
    return training.init_state(jax.random.key(5), PLAIN, SETTINGS["optimizer"], ROWS[:1], jnp.zeros(1))


def test_sixty_and_forty_steps_are_the_hundred_bit_by_bit():
    schedule = SCHEDULES["cosine"]
    whole, losses = training.fit(fresh_state(), ROWS, schedule, num_steps=100, **SETTINGS)
    halfway, first = training.fit(fresh_state(), ROWS, schedule, num_steps=60, **SETTINGS)
    resumed, second = training.fit(halfway, ROWS, schedule, num_steps=100, **SETTINGS)
    np.testing.assert_array_equal(np.concatenate([first, second]), losses)
    for name in ("params", "ema"):
        leaves = zip(jax.tree.leaves(getattr(whole, name)), jax.tree.leaves(getattr(resumed, name)), strict=True)
        for one, other in leaves:
            np.testing.assert_array_equal(one, other)
    _, nothing = training.fit(resumed, ROWS, schedule, num_steps=100, **SETTINGS)
    assert nothing.shape == (0,)


def test_a_second_fit_of_another_size_finds_the_compiled_program():
    schedule, padded = SCHEDULES["cosine"], jnp.concatenate([ROWS, ROWS])
    training.fit(fresh_state(), padded, schedule, num_steps=20, num_rows=40, **SETTINGS)
    before = training.train_chunk._cache_size()
    training.fit(fresh_state(), padded, schedule, num_steps=20, num_rows=50, **SETTINGS)
    assert training.train_chunk._cache_size() == before


def test_padding_rows_are_never_drawn():
    padded = jnp.concatenate([ROWS, jnp.full((32, 3), jnp.nan)])
    _, losses = training.fit(fresh_state(), padded, SCHEDULES["cosine"], num_steps=20, num_rows=32, **SETTINGS)
    assert np.isfinite(losses).all()


def test_a_chunk_may_stop_the_training():
    seen = []

    def look(state, losses):
        seen.append((int(state.step), len(losses)))
        return len(seen) == 2

    state, losses = training.fit(fresh_state(), ROWS, SCHEDULES["cosine"], num_steps=100, on_chunk=look, **SETTINGS)
    assert seen == [(20, 20), (40, 20)]
    assert int(state.step) == len(losses) == 40


def test_a_loss_that_is_no_longer_finite_is_reported_with_its_step():
    optimizer = optax.sgd(1.0)
    with pytest.raises(FloatingPointError, match="training loss is nan at step 5; lower the learning rate"):
        training.fit(
            # Copied, because fit takes over the state's memory and the average must not share it with the parameters.
            jax.tree.map(jnp.copy, slope_state(optimizer)),
            ROWS,
            SCHEDULES["cosine"],
            loss=slope_loss,
            optimizer=optimizer,
            num_steps=8,
            batch_size=4,
            chunk=4,
        )


# --------------------------------------------------------------------------------------------------- what training must reach


@pytest.fixture(scope="module")
def trained():
    """A small two-headed network trained on N(0, diag(.25, 1, 1, 4)) over twenty levels."""
    spreads = np.array([0.25, 1.0, 1.0, 4.0])
    rows = jnp.asarray(np.random.default_rng(2).normal(size=(20_000, 4)) * spreads**0.5, jnp.float32)
    schedule = noise.linear(1000)[24::50]
    network = MLP(width=32, depth=1, learned_variance=True)
    optimizer = training.adam(5e-3, num_steps=1500, warmup_steps=50)
    state = training.init_state(jax.random.key(0), network, optimizer, rows[:1], jnp.zeros(1))
    loss = training.hybrid_loss(network, noise.VELOCITY)
    options = dict(loss=loss, optimizer=optimizer, num_steps=1500, batch_size=256, ema_decay=0.99, chunk=500)
    state, losses = training.fit(state, rows, schedule.to(jnp.float32), **options)
    return spreads, schedule, network, state, losses


@pytest.mark.slow
def test_training_comes_within_a_few_per_cent_of_the_analytic_minimum(trained):
    spreads, schedule, network, state, _ = trained
    x = jnp.asarray(np.random.default_rng(3).normal(size=(20_000, 4)) * spreads**0.5, jnp.float32)
    loss = jax.jit(partial(training.simple_loss(network), train=False))
    measured = float(loss(jax.random.key(1), state.ema, x, schedule.to(jnp.float32)))
    alpha, sigma = schedule.alpha[:, None], schedule.sigma[:, None]
    minimum = np.mean(spreads / (alpha**2 * spreads + sigma**2))  # of the velocity, variance preserving
    assert 0.97 * minimum < measured < 1.05 * minimum
    untrained = np.mean(alpha**2 + sigma**2 * spreads)  # the network's output starts at zero
    assert measured - minimum < 0.1 * (untrained - minimum)


def test_the_learned_variance_approaches_the_optimal_one(trained):
    spreads, schedule, network, state, _ = trained
    variance = jax.jit(make_learned_variance(network, state.ema))
    rng = np.random.default_rng(4)
    learned, optimal, small, large = [], [], [], []
    for index in range(1, len(schedule)):
        cleaner, noisier = schedule[index - 1], schedule[index]
        total = noisier.alpha**2 * spreads + noisier.sigma**2
        q = posterior(cleaner, noisier)
        z = jnp.asarray(rng.normal(size=(2000, 4)) * total**0.5, jnp.float32)
        learned.append(np.log(variance(z, cleaner.to(jnp.float32), noisier.to(jnp.float32))).mean(axis=0))
        optimal.append(np.log(q.variance + q.from_clean**2 * spreads * noisier.sigma**2 / total))
        small.append(np.log(q.variance))
        large.append(np.log(transition_variance(cleaner, noisier)))
    small, large = np.array(small)[:, None], np.array(large)[:, None]
    distance = np.abs(np.array(learned) - np.array(optimal)).mean()
    assert distance < 0.05
    for fixed in (small, large):
        assert distance < 0.5 * np.abs(fixed - np.array(optimal)).mean()
