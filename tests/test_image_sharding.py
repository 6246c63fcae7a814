"""Image networks on 1, 2, 4 and 8 simulated devices: the same training and the same scores, however the devices are used.

Equal means to rounding, because devices add up in another order: after one step to a relative 1e-5 (and 1e-6 of a parameter, whose
size is about 0.2), after three to 1e-4 (and 1e-5), scores and maps to 1e-4 (and 1e-6).
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxad import noise, scoring, training
from jaxad.denoisers import DiT, UNet
from jaxad.denoising import make_denoiser
from jaxad.runtime import sharding

NUM_DEVICES, STEPS = 8, 3
AXIS = sharding.BATCH_AXIS
SCHEDULE = noise.cosine(100).to(jnp.float32)
LEVELS = SCHEDULE[np.array([10, 40, 70])]
X = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype(np.float32)
NETWORKS = {
    "unet": UNet(channels=8, multipliers=(1, 1), blocks=1, attention=(), head_channels=8, groups=4),
    "dit": DiT(hidden=16, depth=1, heads=2, patch_size=4),
}
# Plain gradient descent, because Adam would hide gradients that are wrong by a factor; momentum, because it has a state.
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
# For the cut state the optimizer with more state. Its epsilon keeps gradients of nearly 0 from being blown up to a whole step.
ADAM = optax.adam(1e-2, eps=1e-3)
EVERYWHERE, ROWS = PartitionSpec(), PartitionSpec(AXIS)

pytestmark = pytest.mark.skipif(jax.device_count() != NUM_DEVICES, reason="needs eight simulated devices")
# The U-Net takes long to compile.
every_network = pytest.mark.parametrize("name", ["dit", pytest.param("unet", marks=pytest.mark.slow)])


def mesh_of(count):
    return sharding.data_mesh(jax.devices()[:count])


def assert_equal(tree, wanted, rtol, atol):
    for leaf, expected in zip(jax.tree.leaves(tree), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=rtol, atol=atol)


@cache
def start(name, optimizer=OPTIMIZER):
    """Off the zero initialisation, where most gradients vanish. On the host, so that nothing shares or donates its memory."""
    network = NETWORKS[name]
    shapes = jax.eval_shape(network.init, jax.random.key(0), X[:1], jnp.zeros(1))["params"]
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        centre = 1 if path[-1].key == "scale" else 0
        return (centre + 0.2 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    opt_state = jax.tree.map(np.asarray, optimizer.init(params))
    return training.TrainState(np.int32(3), params, params, opt_state, jax.random.key(0))


# ------------------------------------------------------------------------------------------------------------------- training


def step_of(name, optimizer=OPTIMIZER):
    return partial(training.train_step, loss=training.simple_loss(NETWORKS[name]), optimizer=optimizer)


def repeated(step, state, x):
    """The state after the first and after the last of a few steps, and all losses."""
    states, losses = [], []
    for _ in range(STEPS):
        state, loss = step(state, x, SCHEDULE)
        states.append(state)
        losses.append(loss)
    return states[0], states[-1], losses


@cache
def on_one_device(name, optimizer=OPTIMIZER):
    return repeated(jax.jit(step_of(name, optimizer)), start(name, optimizer), X)


def through_a_mesh(name, count):
    mesh = mesh_of(count)
    state, x = sharding.replicate(start(name), mesh), sharding.shard_batch(X, mesh)
    return repeated(jax.jit(step_of(name)), state, x)


def through_shard_map(name, count):
    specs = dict(in_specs=(EVERYWHERE, ROWS, EVERYWHERE), out_specs=EVERYWHERE)
    mapped = jax.shard_map(partial(step_of(name), axis_name=AXIS), mesh=mesh_of(count), **specs)
    return repeated(jax.jit(mapped), start(name), X)


def through_pmap(name, count):
    mapped = jax.pmap(partial(step_of(name), axis_name=AXIS), AXIS, in_axes=(None, 0, None))
    x, key = X.reshape(count, -1, *X.shape[1:]), start(name).key

    def of_one(leaf):
        leaf = np.asarray(leaf)
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
        return leaf[0]

    def step(state, x, schedule):
        state, loss = mapped(state, x, schedule)
        return jax.tree.map(of_one, state.replace(key=np.zeros(count))).replace(key=key), of_one(loss)

    return repeated(step, start(name), x)


WAYS = {
    **{f"mesh of {count}": partial(through_a_mesh, count=count) for count in (1, 2, 4, 8)},
    "shard_map on 8": partial(through_shard_map, count=8),
    "pmap on 8": partial(through_pmap, count=8),
}


UNET = [pytest.param("unet", way, marks=pytest.mark.slow) for way in ("mesh of 8", "shard_map on 8", "pmap on 8")]
DIT = [pytest.param("dit", way, marks=pytest.mark.slow if way in ("mesh of 2", "mesh of 4") else ()) for way in WAYS]
CASES = DIT + UNET


@pytest.mark.parametrize(("name", "way"), CASES)
def test_training_on_several_devices_is_training_on_one(name, way):
    after_one, after_all, losses = WAYS[way](name)
    expected_one, expected_all, expected_losses = on_one_device(name)
    np.testing.assert_allclose(losses[0], expected_losses[0], rtol=1e-5)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    assert (int(after_one.step), int(after_all.step)) == (4, 3 + STEPS)
    for field in ("params", "ema", "opt_state"):
        assert_equal(getattr(after_one, field), getattr(expected_one, field), rtol=3e-4, atol=1e-5)
        assert_equal(getattr(after_all, field), getattr(expected_all, field), rtol=1e-3, atol=3e-5)


@every_network
def test_the_steps_that_are_compared_go_somewhere(name):
    before, (after_one, after_all, _) = start(name).params, on_one_device(name)
    moved = [
        max(map(np.abs, jax.tree.leaves(jax.tree.map(np.subtract, before, state.params))), key=np.max).max()
        for state in (after_one, after_all)
    ]
    assert moved[1] > moved[0] > 1e-2


# ------------------------------------------------------------------------------------------------- parameters that do not fit


def specs_of(tree):
    return [leaf.sharding.spec for leaf in jax.tree.leaves(tree)]


def elements_on(device, tree):
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
    return sum(shard.data.size for shard in shards if shard.device == device)


@every_network
def test_a_state_cut_over_the_devices_trains_as_one_that_is_whole(name):
    mesh, whole = mesh_of(8), start(name, ADAM)
    state, x = sharding.shard_parameters(whole, mesh), sharding.shard_batch(X, mesh)
    after_one, after_all, losses = repeated(jax.jit(step_of(name, ADAM)), state, x)
    expected_one, expected_all, expected_losses = on_one_device(name, ADAM)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    for field in ("params", "ema", "opt_state"):
        assert_equal(getattr(after_one, field), getattr(expected_one, field), rtol=1e-4, atol=1e-5)
        assert_equal(getattr(after_all, field), getattr(expected_all, field), rtol=1e-3, atol=1e-4)
    # It stays cut: nothing is gathered on the way, or memory would be spent after the first step.
    for after in (after_one, after_all):
        assert specs_of(after) == specs_of(state)
    everything = sum(np.size(leaf) for leaf in jax.tree.leaves((whole.params, whole.ema, whole.opt_state)))
    on_the_last = elements_on(mesh.devices[-1], (after_all.params, after_all.ema, after_all.opt_state))
    assert on_the_last < 1.2 * everything / 8


@pytest.mark.slow
def test_a_chunk_of_steps_keeps_a_state_cut():
    mesh, sizes = mesh_of(8), dict(batch_size=8, num_steps=3)
    options = dict(loss=training.simple_loss(NETWORKS["dit"]), optimizer=ADAM, **sizes)

    def run(state, rows, schedule, **placement):
        arguments = state, rows, jnp.int32(16), schedule
        return training.train_chunk(*arguments, **options, **placement)

    # Arrays of their own, because a chunk takes over the memory of its state.
    whole = jax.tree.map(jnp.array, start("dit", ADAM).replace(key=0)).replace(key=jax.random.key(0))
    expected, expected_losses = run(whole, X, SCHEDULE)
    cut = sharding.shard_parameters(start("dit", ADAM).replace(key=jax.random.key(0)), mesh)
    specs = specs_of(cut)
    rows, schedule = sharding.replicate((X, SCHEDULE), mesh)
    state, losses = run(cut, rows, schedule, sharding=sharding.batch_sharding(mesh))
    assert specs_of(state) == specs
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    assert_equal(state.params, expected.params, rtol=1e-3, atol=1e-4)


def test_every_leaf_is_cut_along_its_first_axis_that_fits():
    tree = {
        "first": np.ones((16, 3)),
        "second": np.ones((3, 3, 8, 16)),
        "odd": np.ones((3, 5)),
        "scalar": np.float32(1),
    }
    tree |= {"empty": np.ones((0, 3)), "key": jax.random.key(0)}
    cut = sharding.shard_parameters(tree, mesh_of(8))
    specs = {name: leaf.sharding.spec for name, leaf in cut.items()}
    whole = PartitionSpec()
    wanted = {"first": PartitionSpec(AXIS), "second": PartitionSpec(None, None, AXIS)}
    assert specs == {**dict.fromkeys(tree, whole), **wanted}
    assert {shard.data.shape for shard in cut["second"].addressable_shards} == {(3, 3, 1, 16)}
    np.testing.assert_array_equal(cut["second"], tree["second"])
    # On one device everything is whole and equal to its copy.
    assert_equal(sharding.shard_parameters({"a": X}, mesh_of(1)), {"a": X}, rtol=0, atol=0)


def test_a_state_may_be_made_where_it_will_lie():
    network, mesh = NETWORKS["dit"], mesh_of(8)

    def init(key):
        return training.init_state(key, network, ADAM, jnp.asarray(X[:1]), jnp.zeros(1))

    shardings = sharding.parameter_sharding(jax.eval_shape(init, jax.random.key(0)), mesh)
    made = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    placed = sharding.shard_parameters(init(jax.random.key(0)), mesh)
    assert specs_of(made) == specs_of(placed)
    assert_equal((made.params, made.ema, made.opt_state), (placed.params, placed.ema, placed.opt_state), 1e-6, 1e-7)


# -------------------------------------------------------------------------------------------------------------------- scoring


def score_of(name):
    def score(params, x):
        denoise = make_denoiser(NETWORKS[name], params)
        error = scoring.denoising_error(jax.random.key(2), denoise, x, LEVELS, draws=2)
        return error, scoring.reconstruction_error_map(jax.random.key(2), denoise, x, LEVELS, draws=2)

    return score


@cache
def scored_on_one_device(name):
    return jax.jit(score_of(name))(start(name).params, X)


def score_through_a_mesh(name, count):
    mesh = mesh_of(count)
    return jax.jit(score_of(name))(sharding.replicate(start(name).params, mesh), sharding.shard_batch(X, mesh))


def score_with_cut_parameters(name, count):
    mesh = mesh_of(count)
    return jax.jit(score_of(name))(sharding.shard_parameters(start(name).params, mesh), sharding.shard_batch(X, mesh))


def score_through_shard_map(name, count):
    specs = dict(in_specs=(EVERYWHERE, ROWS), out_specs=PartitionSpec(None, AXIS))
    return jax.jit(jax.shard_map(score_of(name), mesh=mesh_of(count), **specs))(start(name).params, X)


def score_through_pmap(name, count):
    mapped = jax.pmap(score_of(name), in_axes=(None, 0), out_axes=1)
    arguments = start(name).params, X.reshape(count, -1, *X.shape[1:])
    results = mapped(*arguments)
    return [np.reshape(result, (len(LEVELS), len(X), *result.shape[3:])) for result in results]


SCORING_WAYS = {
    **{f"mesh of {count}": partial(score_through_a_mesh, count=count) for count in (1, 2, 4, 8)},
    "cut parameters on 8": partial(score_with_cut_parameters, count=8),
    "shard_map on 8": partial(score_through_shard_map, count=8),
    "pmap on 8": partial(score_through_pmap, count=8),
}


@pytest.mark.slow
@every_network
@pytest.mark.parametrize("run", SCORING_WAYS.values(), ids=SCORING_WAYS)
def test_scores_and_maps_on_several_devices_are_those_of_one(name, run):
    score, error_map = run(name)
    assert score.shape == (3, 16)
    assert error_map.shape == (3, 16, 8, 8)
    expected_score, expected_map = scored_on_one_device(name)
    # pmap compiles with other roundings than the rest.
    np.testing.assert_allclose(score, expected_score, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(error_map, expected_map, rtol=1e-3, atol=1e-5)
    assert np.std(score, axis=1).min() > 1e-3
