"""Pure functions compose with every transform; eight simulated devices give the numbers of one."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxad import noise, sampling, scoring, training
from jaxad.denoisers import MLP
from jaxad.runtime import sharding

NUM_DEVICES = 8
AXIS = sharding.BATCH_AXIS
ROWS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
SCHEDULE = noise.cosine(100).to(jnp.float32)
PLAIN = MLP(width=8, depth=1)
TWO_HEADED = MLP(width=8, depth=1, learned_variance=True)
LOSSES = {
    "simple": (PLAIN, training.simple_loss(PLAIN)),
    "trimmed": (PLAIN, training.trimmed_loss(PLAIN)),
    "min-snr": (PLAIN, training.simple_loss(PLAIN, noise.NOISE, training.min_snr())),
    "hybrid": (TWO_HEADED, training.hybrid_loss(TWO_HEADED)),
}
# Plain gradient descent, because Adam would hide gradients that are wrong by a factor; momentum, because it has a state.
OPTIMIZER = optax.sgd(0.3, momentum=0.9)

pytestmark = pytest.mark.skipif(jax.device_count() != NUM_DEVICES, reason="needs eight simulated devices")


@pytest.fixture(scope="module")
def mesh():
    return sharding.data_mesh()


# ----------------------------------------------------------------------------------------------------------------- training


def run_plain(step, state):
    return jax.jit(step)(state, ROWS, SCHEDULE)


def run_on_sharded_batch(step, state):
    mesh = sharding.data_mesh()
    state, schedule = sharding.replicate((state, SCHEDULE), mesh)
    return jax.jit(step)(state, sharding.shard_batch(ROWS, mesh), schedule)


def run_in_shard_map(step, state, check_vma):
    everywhere, rows = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        partial(step, axis_name=AXIS),
        mesh=sharding.data_mesh(),
        in_specs=(everywhere, rows, everywhere),
        out_specs=everywhere,
        check_vma=check_vma,
    )
    return jax.jit(mapped)(state, ROWS, SCHEDULE)


def run_in_pmap(step, state):
    mapped = jax.pmap(partial(step, axis_name=AXIS), axis_name=AXIS, in_axes=(None, 0, None))
    state, value = mapped(state, ROWS.reshape(NUM_DEVICES, -1, 3), SCHEDULE)
    for leaf in jax.tree.leaves(state.params):
        np.testing.assert_array_equal(leaf, jnp.broadcast_to(leaf[:1], leaf.shape))
    return jax.tree.map(lambda leaf: leaf[0], (state, value))


WAYS = {
    "sharded batch": run_on_sharded_batch,
    "shard_map": partial(run_in_shard_map, check_vma=True),
    "shard_map unchecked": partial(run_in_shard_map, check_vma=False),
    "pmap": run_in_pmap,
}


@pytest.fixture(scope="module")
def steps():
    """Per loss: the step, fresh states, and the result of one plain step from there."""
    made = {}
    for name, (network, loss) in LOSSES.items():
        start = training.init_state(jax.random.key(0), network, OPTIMIZER, ROWS[:1], jnp.zeros(1))
        rng = np.random.default_rng(1)
        # Off the zero initialisation, where most gradients vanish.
        params = jax.tree.map(lambda p: p + jnp.asarray(0.2 * rng.normal(size=p.shape), p.dtype), start.params)  # noqa: B023
        start = start.replace(params=params, step=jnp.int32(3))
        step = partial(training.train_step, loss=loss, optimizer=OPTIMIZER)
        made[name] = step, start, run_plain(step, start)
    return made


@pytest.mark.parametrize("run", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_training_step_on_eight_devices_is_the_step_on_one(loss, run, steps):
    step, start, (expected, expected_value) = steps[loss]
    state, value = run(step, start)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    assert int(state.step) == 4
    for name in ("params", "ema", "opt_state"):
        leaves = zip(jax.tree.leaves(getattr(state, name)), jax.tree.leaves(getattr(expected, name)), strict=True)
        for leaf, wanted in leaves:
            np.testing.assert_allclose(leaf, wanted, rtol=1e-5, atol=1e-6)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (start.params, state.params)), strict=True)]
    assert max(moved) > 1e-2


def test_a_sharded_training_chunk_is_the_chunk_on_one_device(mesh):
    network, loss = LOSSES["simple"]

    def run(place, batch_sharding):
        start = training.init_state(jax.random.key(0), network, OPTIMIZER, ROWS[:1], jnp.zeros(1))
        start, rows, schedule = place((start, jnp.asarray(ROWS), SCHEDULE))
        options = dict(loss=loss, optimizer=OPTIMIZER, num_steps=4, batch_size=16, sharding=batch_sharding)
        return training.fit(start, rows, schedule, **options)

    expected, expected_losses = run(lambda tree: tree, None)
    state, losses = run(lambda tree: sharding.replicate(tree, mesh), sharding.batch_sharding(mesh))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    for leaf, wanted in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------------ scoring

LEVELS = SCHEDULE[np.array([10, 60])]
PATHS = noise.reverse_paths(noise.cosine(100), [20, 60], 4).to(jnp.float32)
MIXING = jnp.asarray(np.random.default_rng(2).normal(size=(3, 3)), jnp.float32)
SCORES = {
    "reconstruction_error": partial(scoring.reconstruction_error, levels=LEVELS),
    "denoising_error": partial(scoring.denoising_error, levels=LEVELS),
    "ddim_reconstruction_error": partial(scoring.ddim_reconstruction_error, paths=PATHS),
    "ancestral_reconstruction_error": partial(scoring.ancestral_reconstruction_error, paths=PATHS),
    "unnoised_reverse_error": partial(scoring.unnoised_reverse_error, paths=PATHS, variance=sampling.fixed_small),
    "looped": partial(scoring.reconstruction_error, levels=LEVELS, memory_budget=0),
}
every_score = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)


def denoise(noisy, level):
    """Smooth, not linear, and each row for itself."""
    weight = noise.expand(1 / (1 + level.sigma / level.alpha), noisy)
    return weight * jnp.tanh(noisy @ MIXING)


@cache
def as_function(score):
    """Compiled once for all tests."""
    return jax.jit(lambda key, x: score(key, denoise, x, draws=2))


@every_score
def test_a_score_is_the_same_without_jit(score):
    eager = score(jax.random.key(0), denoise, jnp.asarray(ROWS), draws=2)
    assert eager.shape == (2, 16)
    np.testing.assert_allclose(as_function(score)(jax.random.key(0), ROWS), eager, rtol=1e-4, atol=1e-6)


@every_score
def test_a_score_maps_over_seeds(score):
    run = as_function(score)
    mapped = jax.vmap(run, in_axes=(0, None))(jax.random.split(jax.random.key(1), 3), ROWS)
    for seed, key in enumerate(jax.random.split(jax.random.key(1), 3)):
        np.testing.assert_allclose(mapped[seed], run(key, ROWS), rtol=1e-4, atol=1e-6)


@every_score
def test_a_scores_gradient_by_the_input_is_that_of_finite_differences(score):
    total = jax.jit(lambda x: score(jax.random.key(0), denoise, x, draws=2).sum())
    with jax.enable_x64(True):
        x, direction = jnp.asarray(ROWS, jnp.float64), jnp.asarray(np.random.default_rng(3).normal(size=ROWS.shape))
        gradient = jax.grad(total)(x)
        difference = (total(x + 1e-5 * direction) - total(x - 1e-5 * direction)) / 2e-5
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(np.sum(np.asarray(gradient) * np.asarray(direction)), difference, rtol=1e-5)


@every_score
def test_a_score_on_eight_devices_is_the_score_on_one(score, mesh):
    run = as_function(score)
    expected = run(jax.random.key(0), ROWS)
    rows, out = PartitionSpec(AXIS), PartitionSpec(None, AXIS)
    mapped = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=out))
    np.testing.assert_allclose(mapped(jax.random.key(0), ROWS), expected, rtol=1e-4, atol=1e-6)
    replicated = jax.pmap(run, in_axes=(None, 0), out_axes=1)(jax.random.key(0), ROWS.reshape(NUM_DEVICES, -1, 3))
    np.testing.assert_allclose(replicated.reshape(2, 16), expected, rtol=1e-4, atol=1e-6)
    sharded = run(jax.random.key(0), sharding.shard_batch(ROWS, mesh))
    np.testing.assert_allclose(sharded, expected, rtol=1e-4, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------- sampling

SAMPLERS = {
    "ancestral": sampling.ancestral,
    "ddim": sampling.ddim,
    "ddim-eta": partial(sampling.ddim, eta=0.5),
    "heun": sampling.heun,
    "heun-churn": partial(sampling.heun, churn=3.0),
    "dpmpp_2m": lambda key, *arguments: sampling.dpmpp_2m(*arguments),
    "ddim_inversion": lambda key, *arguments: sampling.ddim_inversion(*arguments),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_sampler_composes_with_every_transform(sampler, mesh):
    run = jax.jit(lambda key, z: sampler(key, denoise, z, SCHEDULE[5::20]))
    expected = run(jax.random.key(0), ROWS)
    mapped = jax.vmap(run, in_axes=(0, None))(jax.random.split(jax.random.key(1), 2), ROWS)
    for seed, key in enumerate(jax.random.split(jax.random.key(1), 2)):
        np.testing.assert_allclose(mapped[seed], run(key, ROWS), rtol=1e-4, atol=1e-5)
    sharded = run(jax.random.key(0), sharding.shard_batch(ROWS, mesh))
    np.testing.assert_allclose(sharded, expected, rtol=1e-4, atol=1e-5)
    # Each device draws for its own rows, so only the first device's rows can be compared.
    rows = PartitionSpec(AXIS)
    split = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows))
    first = run(jax.random.key(0), ROWS[:2])
    np.testing.assert_allclose(split(jax.random.key(0), ROWS)[:2], first, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda z: run(jax.random.key(0), z).sum())(jnp.asarray(ROWS))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


# ---------------------------------------------------------------------------------------------------------------- placement


@pytest.mark.parametrize(("rows", "multiple", "padded"), [(3, 4, 4), (4, 4, 4), (9, 8, 16), (1, 5, 5)])
def test_padding_repeats_the_last_row_and_masks_it(rows, multiple, padded):
    values = np.arange(2.0 * rows).reshape(rows, 2)
    result, mask = sharding.pad_to_multiple(values, multiple)
    assert result.shape == (padded, 2)
    np.testing.assert_array_equal(result[mask], values)
    np.testing.assert_array_equal(result[~mask], np.tile(values[-1:], (padded - rows, 1)))


@pytest.mark.parametrize("array", [np.zeros((9, 2)), np.float32(1.0)], ids=["nine rows", "scalar"])
def test_rows_that_the_devices_cannot_share_are_refused(array, mesh):
    with pytest.raises(ValueError, match=r"8 devices cannot share \(9?,?\) rows evenly: use pad_to_multiple first"):
        sharding.shard_batch({"rows": array}, mesh)


def test_placement_cuts_batches_and_copies_the_rest(mesh):
    assert mesh.size == NUM_DEVICES
    cut, copied = sharding.shard_batch(ROWS, mesh), sharding.replicate(ROWS, mesh)
    assert {shard.data.shape for shard in cut.addressable_shards} == {(2, 3)}
    assert {shard.data.shape for shard in copied.addressable_shards} == {(16, 3)}
    assert sharding.data_mesh(jax.devices()[:2]).size == 2
