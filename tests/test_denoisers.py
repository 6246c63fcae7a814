"""Networks: zero at the start, rows independent, composing with JAX's transforms, honest about shapes."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.denoisers import MLP, DiT, dit_b, dit_l, dit_s, dit_xl
from jaxad.denoisers.dit import Block
from jaxad.denoisers.embedding import LevelEmbedding, noise_angle, positions_1d, positions_2d, sinusoid

SMALL = dict(hidden=16, depth=1, heads=2)
CASES = {
    "mlp": (MLP(width=16, depth=1, learned_variance=True), (7,)),
    "dit-vector": (DiT(**SMALL, patch_size=3), (7,)),
    "dit-image": (DiT(**SMALL, patch_size=2, learned_variance=True), (4, 6, 3)),
    "dit-classes": (DiT(**SMALL, patch_size=2, num_classes=5), (4, 6, 3)),
}


# Compiled whole, because op by op every small network would cost seconds.
init = jax.jit(lambda network, *inputs: network.init(jax.random.key(0), *inputs)["params"], static_argnums=0)


@partial(jax.jit, static_argnums=0, static_argnames="train")
def apply(network, params, *inputs, **options):
    return network.apply({"params": params}, *inputs, **options)


@pytest.fixture(params=CASES, ids=CASES, scope="module")
def case(request):
    network, sample_shape = CASES[request.param]
    x, log_snr = random(1, (4, *sample_shape)), jnp.array([-6.0, -1.0, 0.0, 5.0])
    return network, init(network, x, log_snr), x, log_snr


def random(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def shaken(params, scale=0.1):
    """Parameters moved off their zero initialisation, so that equalities of outputs are not 0 == 0."""
    rng = np.random.default_rng(9)
    return jax.tree.map(lambda p: p + jnp.asarray(scale * rng.standard_normal(p.shape), p.dtype), params)


def test_untrained_output_is_exactly_zero_with_the_promised_shape(case):
    network, params, x, log_snr = case
    output = apply(network, params, x, log_snr)
    assert output.shape == (*x.shape[:-1], x.shape[-1] * (2 if network.learned_variance else 1))
    np.testing.assert_array_equal(output, 0)


def test_a_row_depends_on_itself_alone(case):
    network, params, x, log_snr = case
    params = shaken(params)
    together = apply(network, params, x, log_snr)
    assert together.std() > 0.01
    disturbed = apply(network, params, x.at[1:].set(1e3), log_snr.at[1:].set(20.0))
    np.testing.assert_array_equal(together[0], disturbed[0])
    np.testing.assert_allclose(together[2:3], apply(network, params, x[2:3], log_snr[2:3]), atol=1e-5)


def test_transforms_compose(case):
    network, params, x, log_snr = case
    params = shaken(params)

    @jax.jit
    def all_levels(x):
        return jax.vmap(lambda level: apply(network, params, x, jnp.full(len(x), level)))(log_snr)

    @jax.jit
    def gradients(params, x):
        return jax.grad(lambda p, x: jnp.mean(network.apply({"params": p}, x, log_snr) ** 2), argnums=(0, 1))(params, x)

    np.testing.assert_allclose(all_levels(x)[2], apply(network, params, x, jnp.full(len(x), log_snr[2])), atol=1e-5)
    parameter_gradient, input_gradient = gradients(params, x)
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(parameter_gradient))
    assert np.isfinite(input_gradient).all()
    assert np.any(input_gradient)


def test_network_is_a_static_argument_and_is_traced_once():
    traces = []

    @partial(jax.jit, static_argnums=0)
    def jitted(network, params, x, log_snr):
        traces.append(network)
        return network.apply({"params": params}, x, log_snr)

    x, log_snr = jnp.ones((2, 5)), jnp.zeros(2)
    params = init(MLP(width=8, depth=1), x, log_snr)
    for _ in range(3):
        jitted(MLP(width=8, depth=1), params, x, log_snr)
    assert len(traces) == 1


def test_extreme_levels_stay_finite(case):
    network, params, x, _ = case
    for extreme in (-np.inf, -300.0, 300.0, np.inf):
        assert np.isfinite(apply(network, shaken(params), x, jnp.full(len(x), extreme))).all()


def test_output_responds_to_the_noise_level(case):
    network, params, x, _ = case
    params = shaken(params)
    quiet, loud = (apply(network, params, x, jnp.full(len(x), level)) for level in (4.0, -4.0))
    assert abs(quiet - loud).max() > 1e-3


def test_half_precision_stays_half_precision(case):
    network, params, x, log_snr = case
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    assert apply(network, params, x.astype(jnp.bfloat16), log_snr).dtype == jnp.bfloat16


def test_adaln_zero_block_starts_as_the_identity():
    tokens, condition = random(1, (2, 5, 16)), random(2, (2, 16))
    block = Block(heads=2, mlp_ratio=4)
    params = init(block, tokens, condition)
    np.testing.assert_array_equal(apply(block, params, tokens, condition), tokens)
    assert abs(apply(block, shaken(params), tokens, condition) - tokens).max() > 0.01


def test_initialisation_is_the_published_one():
    network = DiT(hidden=64, depth=1, heads=4, patch_size=2, num_classes=1000)
    params = init(network, jnp.ones((1, 4, 4, 3)), jnp.zeros(1))
    for kernel in (params["level"]["Dense_0"]["kernel"], params["level"]["Dense_1"]["kernel"]):
        np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(params["label"]["embedding"].std(), 0.02, rtol=0.05)
    assert params["label"]["embedding"].shape == (1001, 64)
    for name, (fan_in, fan_out) in {"qkv": (64, 192), "mlp_in": (64, 256)}.items():
        bound = np.sqrt(6 / (fan_in + fan_out))
        np.testing.assert_allclose(abs(params["block_0"][name]["kernel"]).max(), bound, rtol=0.01)
        np.testing.assert_array_equal(params["block_0"][name]["bias"], 0)


@pytest.mark.parametrize(("size", "millions"), [(dit_s, 33), (dit_b, 130), (dit_l, 458), (dit_xl, 675)])
def test_published_parameter_counts(size, millions):
    """Table 1 of the paper: latents of 32 x 32 x 4, patch size 2, 1,000 classes, learned variance."""
    network = size(2, num_classes=1000, learned_variance=True)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 4)), jnp.zeros(1))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6) == millions


def test_vector_tokens_need_no_multiple_of_the_patch():
    """Seven features in patches of three: the padding is cut off again and nothing of it enters the output's layout."""
    network = DiT(**SMALL, patch_size=3, learned_variance=True)
    x, log_snr = random(1, (2, 7)), jnp.zeros(2)
    params = shaken(init(network, x, log_snr))
    output = apply(network, params, x, log_snr)
    assert output.shape == (2, 14)
    padded = apply(network, params, jnp.pad(x, ((0, 0), (0, 2))), log_snr)
    prediction, variance = jnp.split(padded, 2, axis=-1)
    np.testing.assert_allclose(output, jnp.concatenate([prediction[:, :7], variance[:, :7]], axis=-1), atol=1e-6)


@pytest.mark.parametrize("shape", [(7,), (4, 6, 3)], ids=["vector", "image"])
def test_learned_variance_comes_second(shape):
    """Only the last layer's weights for v change: the first half of the last axis must not."""
    network = DiT(**SMALL, patch_size=2, learned_variance=True)
    x, log_snr = random(1, (2, *shape)), jnp.zeros(2)
    params = init(network, x, log_snr)
    # One token's outputs are [rows, columns, 2 * channels] (or [features, 2]) flattened: channels vary fastest.
    channels = shape[-1] if len(shape) == 3 else 1
    bias = params["final"]["bias"].reshape(-1, 2, channels).at[:, 1].set(1.0).reshape(-1)
    output = apply(network, params | {"final": params["final"] | {"bias": bias}}, x, log_snr)
    prediction, variance = jnp.split(output, 2, axis=-1)
    np.testing.assert_array_equal(prediction, 0)
    np.testing.assert_array_equal(variance, 1)


def test_patches_return_to_their_pixels():
    """Patchify then unpatchify is the identity, on a picture that is not square."""
    x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    network = DiT(**SMALL, patch_size=2)
    patches, positions = network._patchify(x)
    assert patches.shape == (2, 6, 12)
    assert positions.shape == (6, 16)
    np.testing.assert_array_equal(network._unpatchify(patches, x.shape), x)
    np.testing.assert_array_equal(patches[0, 1].reshape(2, 2, 3), x[0, :2, 2:4])  # row-major: one patch to the right


def test_labels():
    network, _ = CASES["dit-classes"]
    x, log_snr = random(1, (64, 4, 6, 3)), jnp.zeros(64)
    label = jnp.full(64, 2)
    params = shaken(init(network, x, log_snr))
    given, null = apply(network, params, x, log_snr, label), apply(network, params, x, log_snr)
    np.testing.assert_array_equal(null, apply(network, params, x, log_snr, jnp.full(64, 5)))
    assert abs(given - null).max() > 1e-3
    assert np.isnan(apply(network, params, x, log_snr, jnp.full(64, 6))).all()

    # In training every row equals its labelled or its null output, and about one tenth are null.
    trained = apply(network, params, x, log_snr, label, train=True, rngs={"dropout": jax.random.key(3)})
    is_null = np.isclose(trained, null, atol=1e-6).all(axis=(1, 2, 3))
    np.testing.assert_allclose(trained, jnp.where(is_null[:, None, None, None], null, given), atol=1e-6)
    assert 1 <= is_null.sum() <= 16


def test_mlp_dropout_acts_in_training_only():
    network = MLP(width=16, depth=1, dropout=0.5)
    x, log_snr = jnp.ones((4, 7)), jnp.zeros(4)
    params = shaken(init(network, x, log_snr))
    evaluated = apply(network, params, x, log_snr)
    trained = apply(network, params, x, log_snr, train=True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(evaluated[0], evaluated[1])
    assert abs(trained[0] - trained[1]).max() > 1e-3


def test_mlp_output_is_bounded_for_far_away_rows():
    network = MLP(width=16, depth=1)
    x, log_snr = jnp.full((1, 7), 1e6), jnp.zeros(1)
    params = shaken(init(network, x, log_snr))
    assert abs(apply(network, params, x, log_snr)).max() < 100


@pytest.mark.parametrize(
    ("network", "shape", "label", "message"),
    [
        (MLP(width=8), (2, 4, 4, 3), None, "use DiT"),
        (MLP(width=8), (2, 4), 1, r"DiT\(num_classes"),
        (DiT(**SMALL, patch_size=2), (2, 4, 4), None, r"vectors \[batch, features\] or images"),
        (DiT(**SMALL, patch_size=4), (2, 8, 6, 1), None, "divisible by patch_size"),
        (DiT(**SMALL, patch_size=2), (2, 8), 1, "num_classes"),
    ],
    ids=["mlp-image", "mlp-label", "rank", "patch", "label"],
)
def test_wrong_inputs_name_the_fix(network, shape, label, message):
    label = None if label is None else jnp.full(shape[0], label)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.ones(shape), jnp.zeros(shape[0]), label)


def test_wrong_sizes_fail_at_construction():
    with pytest.raises(ValueError, match="divisible by heads"):
        DiT(hidden=20, heads=3)
    with pytest.raises(ValueError, match="by 4"):
        DiT(hidden=18, heads=3)
    with pytest.raises(ValueError, match="at least 1"):
        DiT(patch_size=0)
    with pytest.raises(ValueError, match="even width"):
        sinusoid(jnp.zeros(2), 7)
    with pytest.raises(ValueError, match="multiple of 4"):
        positions_2d(2, 2, 6)


def test_noise_angle_is_the_step_fraction_of_a_cosine_schedule():
    fraction = np.linspace(0.001, 0.999, 101)
    log_snr = -2 * np.log(np.tan(np.pi / 2 * fraction))
    np.testing.assert_allclose(noise_angle(jnp.asarray(log_snr)), fraction, atol=1e-6)


def test_sinusoid_golden():
    # w = (1, 1e-2) without shift; with shift 1 the last frequency is 1 / max_period itself.
    np.testing.assert_allclose(
        sinusoid(jnp.array([3.0]), 4), [[np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)]], atol=1e-6
    )
    np.testing.assert_allclose(
        sinusoid(jnp.array([3.0]), 4, frequency_shift=1.0),
        [[np.cos(3), np.cos(3e-4), np.sin(3), np.sin(3e-4)]],
        atol=1e-6,
    )
    assert sinusoid(jnp.zeros((2, 3)), 8).shape == (2, 3, 8)


def test_position_vectors_golden():
    np.testing.assert_allclose(positions_1d(4, 4)[3], [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)], atol=1e-6)
    # Row 1, column 2 of a 2 x 3 grid is token 1 * 3 + 2; the column's half comes first.
    expected = np.concatenate([positions_1d(3, 4)[2], positions_1d(2, 4)[1]])
    np.testing.assert_array_equal(positions_2d(2, 3, 8)[5], expected)


def test_level_embedding_takes_its_initialisation():
    embedding = LevelEmbedding(8, kernel_init=nn.initializers.zeros)
    np.testing.assert_array_equal(embedding.init_with_output(jax.random.key(0), jnp.zeros(3))[0], np.zeros((3, 8)))
