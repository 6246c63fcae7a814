"""Training on coarse noise: the draw reaches the loss, equal settings compile once, and the scores take the same noise."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxad import noise, scoring, training
from jaxad.coarse import pyramid_noise
from jaxad.denoisers import MLP, DiT
from jaxad.denoising import make_denoiser, network_output
from jaxad.runtime import sharding

SCHEDULE = noise.cosine(50).to(jnp.float32)
NETWORK = DiT(hidden=16, depth=1, heads=2, patch_size=4)
DRAW = partial(pyramid_noise, coarsest=4, octaves=2)


def pictures(rows, size=8):
    """A bright square at a random place: something to learn in a few steps."""
    rng = np.random.default_rng(0)
    x = np.full((rows, size, size, 1), -1.0, np.float32)
    for picture, (top, left) in zip(x, rng.integers(0, size // 2, (rows, 2)), strict=True):
        picture[top : top + size // 2, left : left + size // 2] = 1
    return jnp.asarray(x)


X = pictures(64)


def random_params(network, x):
    shapes = jax.eval_shape(network.init, jax.random.key(0), x[:1], jnp.zeros(1))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


# -------------------------------------------------------------------------------------------------------------------- the noise


def test_the_draw_is_what_the_batch_is_spoilt_with():
    def both(draw):
        index, eps = training.draw_levels_and_noise(jax.random.key(3), X, SCHEDULE, draw=draw)
        _, noise_key = jax.random.split(jax.random.key(3))
        np.testing.assert_array_equal(eps, draw(noise_key, X.shape, X.dtype))
        return index, eps

    (index, eps), (white_index, white) = both(DRAW), both(jax.random.normal)
    np.testing.assert_array_equal(index, white_index)  # levels do not depend on the kind of noise

    def neighbours(sample):
        return float((sample[:, 1:] * sample[:, :-1]).mean())

    assert neighbours(eps) > 0.3 > 0.1 > abs(neighbours(white))


@pytest.mark.parametrize("learned_variance", [False, True], ids=["simple", "hybrid"])
def test_the_loss_is_its_formula_on_that_noise(learned_variance):
    network = NETWORK.clone(learned_variance=learned_variance)
    factory = training.hybrid_loss if learned_variance else training.simple_loss
    params = random_params(network, X)
    value = jax.jit(factory(network, noise.NOISE, draw=DRAW))(jax.random.key(4), params, X, SCHEDULE)

    @jax.jit
    def formula(params):
        draw_key, _ = jax.random.split(jax.random.key(4))
        index, eps = training.draw_levels_and_noise(draw_key, X, SCHEDULE, draw=DRAW)
        noisy = noise.add_noise(X, eps, SCHEDULE[index])
        output, interpolation = network_output(network, params, noisy, SCHEDULE[index])
        simple = jnp.mean((output - eps) ** 2)
        if not learned_variance:
            return simple
        clean = noise.NOISE.to_clean(output, noisy, SCHEDULE[index])
        return simple + training.vlb_terms(clean, interpolation, X, index, SCHEDULE).mean()

    np.testing.assert_allclose(value, formula(params), rtol=1e-4)
    white = jax.jit(factory(network, noise.NOISE))(jax.random.key(4), params, X, SCHEDULE)
    assert abs(value - white) > 1e-3 * abs(white)


def test_equal_draws_give_the_same_loss_and_other_draws_another():
    simple, hybrid = training.simple_loss, training.hybrid_loss
    two_headed = NETWORK.clone(learned_variance=True)
    assert simple(NETWORK, draw=jax.random.normal) is simple(NETWORK)
    assert simple(NETWORK, noise.VELOCITY, None) is simple(NETWORK)
    same = {"octaves": 2, "coarsest": 4}  # in another order than DRAW's
    assert simple(NETWORK, draw=partial(pyramid_noise, **same)) is simple(NETWORK, draw=DRAW)
    assert hybrid(two_headed, draw=partial(pyramid_noise, **same)) is hybrid(two_headed, draw=DRAW)
    losses = {
        simple(NETWORK, draw=draw)
        for draw in (jax.random.normal, pyramid_noise, DRAW, partial(pyramid_noise, coarsest=8))
    }
    assert len(losses) == 4
    # Settings that cannot be compared work too: the very same partial is the same loss.
    with_array = partial(lambda key, shape, dtype, spread: spread * jax.random.normal(key, shape, dtype), spread=X[0])
    assert simple(NETWORK, draw=with_array) is simple(NETWORK, draw=with_array)


def test_a_table_is_not_trained_on_coarse_noise():
    network, rows = MLP(width=8, depth=1), jnp.zeros((4, 3))
    loss = training.simple_loss(network, draw=pyramid_noise)
    with pytest.raises(ValueError, match="coarse noise needs a shape"):
        loss(jax.random.key(0), random_params(network, rows), rows, SCHEDULE)


# --------------------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def trained():
    optimizer = training.adam(3e-3)
    state = training.init_state(jax.random.key(0), NETWORK, optimizer, X[:1], jnp.zeros(1))
    loss = training.simple_loss(NETWORK, draw=DRAW)
    options = dict(loss=loss, optimizer=optimizer, num_steps=300, batch_size=32, ema_decay=0.99, chunk=100)
    return training.fit(state, X, SCHEDULE, **options)


def test_a_step_on_coarse_noise_runs_and_the_loss_falls(trained):
    state, losses = trained
    assert losses.shape == (300,)
    assert np.isfinite(losses).all()
    assert losses[-50:].mean() < 0.6 * losses[:5].mean()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.ema))


def test_a_network_undoes_the_noise_it_was_trained_on_better(trained):
    """The wrong noise in scoring is not the denoiser's training loss: it is larger."""
    denoise = make_denoiser(NETWORK, trained[0].ema)
    levels = SCHEDULE[np.array([10, 20, 30])]
    score = jax.jit(lambda x: scoring.denoising_error(jax.random.key(5), denoise, x, levels, draws=8, draw=DRAW))
    white = jax.jit(lambda x: scoring.denoising_error(jax.random.key(5), denoise, x, levels, draws=8))
    assert (score(X).mean(axis=1) < white(X).mean(axis=1)).all()


def test_eight_devices_draw_the_coarse_noise_of_one():
    if jax.device_count() != 8:
        pytest.skip("needs eight simulated devices")
    loss, params = training.simple_loss(NETWORK, draw=DRAW), random_params(NETWORK, X)
    everywhere, rows = PartitionSpec(), PartitionSpec(sharding.BATCH_AXIS)

    def mean(key, params, x):
        value = loss(key, params, x, SCHEDULE, axis_name=sharding.BATCH_AXIS)
        return jax.lax.pmean(value, sharding.BATCH_AXIS)

    specs = dict(in_specs=(everywhere, everywhere, rows), out_specs=everywhere)
    mapped = jax.jit(jax.shard_map(mean, mesh=sharding.data_mesh(), **specs))
    expected = jax.jit(loss)(jax.random.key(6), params, X, SCHEDULE)
    np.testing.assert_allclose(mapped(jax.random.key(6), params, X), expected, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------- scoring

PAIRS = {
    "reconstruction": (scoring.reconstruction_error, scoring.reconstruction_error_map),
    "denoising": (scoring.denoising_error, scoring.denoising_error_map),
}


def squeeze(noisy, level):
    return jnp.tanh(noisy / noise.expand(1 + level.sigma, noisy))


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("draw", [DRAW, jax.random.normal], ids=["coarse", "white"])
def test_a_score_is_the_mean_of_the_map_with_the_same_draw_and_key(pair, draw):
    levels = SCHEDULE[np.array([10, 30])]

    @jax.jit
    def run(x):
        options = dict(draws=3, draw=draw)
        key, other = jax.random.key(2), partial(pyramid_noise, coarsest=8, octaves=1)
        score, error_map = (one(key, squeeze, x, levels, **options) for one in pair)
        looped = pair[0](key, squeeze, x, levels, memory_budget=0, **options)
        return score, error_map.mean(axis=(2, 3)), looped, pair[0](key, squeeze, x, levels, draws=3, draw=other)

    score, mean_of_map, looped, other = run(X[:6])
    assert score.shape == (2, 6)
    np.testing.assert_allclose(score, mean_of_map, rtol=1e-5)
    np.testing.assert_allclose(score, looped, rtol=1e-5)
    assert not np.allclose(score, other, rtol=1e-3)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_white_noise_is_the_default(pair):
    def run(**options):
        return jax.jit(lambda x: pair[0](jax.random.key(2), squeeze, x, SCHEDULE[10:12], **options))(X[:6])

    np.testing.assert_array_equal(run(), run(draw=jax.random.normal))


def test_the_examples_in_the_docstrings():
    failed, tried = doctest.testmod(training)
    assert tried > 0
    assert not failed
