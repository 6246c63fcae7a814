"""The U-Net: zero at the start, any picture size, attention where it was asked for, labels, half precision, recomputation.

That it is ADM's function, and diffusers' where both coincide, is shown in test_weights.py.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.denoisers import DiT, UNet, dit_small_28, unet_28, unet_64, unet_128, unet_224, unet_small_28
from jaxad.denoising import make_denoiser
from jaxad.noise import NoiseLevel

TINY = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=8, groups=4)
CASES = {
    "plain": UNet(**TINY),
    "resampling-blocks": UNet(**TINY, resblock_updown=True, learned_variance=True),
    "stem": UNet(**TINY | {"attention": (2, 4)}, stem=2),
    "added-level": UNet(**TINY, scale_shift=False),
}
LOG_SNR = jnp.array([-6.0, -1.0, 0.0, 5.0])


# Compiled whole, because op by op every small network would cost seconds.
@partial(jax.jit, static_argnums=0, static_argnames="train")
def apply(network, params, *inputs, **options):
    return network.apply({"params": params}, *inputs, **options)


def random(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def shapes_of(network, shape):
    log_snr = jax.ShapeDtypeStruct(shape[:1], jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32), log_snr)["params"]


def random_params(network, x, scale=0.1):
    """Nothing at its zero initialisation, so that equalities of outputs are not 0 == 0."""
    rng = np.random.default_rng(9)

    def draw(path, leaf):
        centre = 1 if path[-1].key == "scale" else 0
        return jnp.asarray(centre + scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(network, x.shape))


def million_parameters(network, shape):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(network, shape))) / 1e6


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow) if name in ("plain", "added-level") else name for name in CASES],
    ids=CASES,
    scope="module",
)
def case(request):
    network = CASES[request.param]
    x = random(1, (4, 8, 12, 3))
    return network, random_params(network, x), x


# ---------------------------------------------------------------------------------------------------------------- the function


def test_untrained_output_is_exactly_zero_with_the_promised_shape(case):
    network, _, x = case
    output, _ = jax.jit(network.init_with_output)(jax.random.key(0), x, LOG_SNR)
    assert output.shape == (*x.shape[:-1], x.shape[-1] * (2 if network.learned_variance else 1))
    np.testing.assert_array_equal(output, 0)


def test_a_row_depends_on_itself_alone_and_on_its_level(case):
    network, params, x = case
    together = apply(network, params, x, LOG_SNR)
    assert together.std() > 0.01
    disturbed = apply(network, params, x.at[1:].set(1e3), LOG_SNR.at[1:].set(20.0))
    np.testing.assert_array_equal(together[0], disturbed[0])
    other_level = apply(network, params, x, LOG_SNR.at[0].set(-3.0))
    assert abs(other_level[0] - together[0]).max() > 1e-3


def test_every_parameter_gets_a_gradient(case):
    network, params, x = case
    gradient = jax.jit(jax.grad(lambda p: jnp.mean(network.apply({"params": p}, x, LOG_SNR) ** 2)))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        # A constant added to all keys leaves the softmax as it is, so a third of the qkv bias has none.
        assert np.abs(leaf).max() > 1e-8, jax.tree_util.keystr(path)


@pytest.mark.parametrize("stem", [1, 2])
def test_a_size_that_the_factors_do_not_divide_is_filled_by_the_edge_and_cut(stem):
    network = UNet(**TINY | {"multipliers": (1, 2, 2), "attention": (4,)}, stem=stem)
    x = random(2, (2, 29, 31, 1))
    params = random_params(network, x)
    output = apply(network, params, x, LOG_SNR[:2])
    assert output.shape == x.shape
    whole = np.pad(x, ((0, 0), (0, 3), (0, 1), (0, 0)), mode="edge")
    expected = apply(network, params, jnp.asarray(whole), LOG_SNR[:2])[:, :29, :31]
    np.testing.assert_allclose(output, expected, atol=1e-5)
    assert output.std() > 0.01


def test_pixels_come_back_where_the_stem_took_them_from():
    network = UNet(**TINY, stem=2)
    x = random(3, (2, 8, 12, 3))
    assert network._cut(x).shape == (2, 4, 6, 12)
    np.testing.assert_array_equal(network._join(network._cut(x), x.shape), x)
    # The four pixels of one square are the channels of one place.
    np.testing.assert_array_equal(network._cut(x)[0, 1, 2], x[0, 2:4, 4:6].reshape(-1))
    # The doubled output splits into prediction and interpolation at the last axis of every pixel.
    both = jnp.concatenate([x, 100 + x], axis=-1)
    np.testing.assert_array_equal(network._join(network._cut(both), x.shape)[..., 3:], 100 + x)


def test_a_convolution_halves_from_the_first_pixel_as_torch_does():
    # One pixel of zeros on every side: the first output sees the inputs -1, 0 and 1. linen's "SAME" would see 0, 1, 2.
    from jaxad.denoisers.unet import _conv

    class Halving(nn.Module):
        @nn.compact
        def __call__(self, x):
            return _conv(1, None, "conv", strides=2, kernel_init=nn.initializers.ones)(x)

    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    output, _ = Halving().init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(output[0, 0, 0, 0], 0 + 1 + 4 + 5)


def test_it_is_a_denoiser():
    network, x = CASES["resampling-blocks"], random(1, (4, 8, 8, 3))
    params = random_params(network, x)
    denoise = make_denoiser(network, params)
    level = NoiseLevel(jnp.float32(0.8), jnp.float32(0.6))
    log_snr = jnp.full(4, 2 * np.log(0.8 / 0.6), jnp.float32)
    velocity = apply(network, params, x, log_snr)[..., :3]
    np.testing.assert_allclose(jax.jit(denoise)(x, level), 0.8 * x - 0.6 * velocity, atol=1e-4)
    assert velocity.std() > 0.01


# ---------------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("attention", [(), (1,), (2, 4)])
def test_attention_stands_at_the_asked_factors_and_in_the_middle(attention):
    network = UNet(channels=8, multipliers=(1, 1, 1), blocks=2, attention=attention, head_channels=8)
    names = {name for name in shapes_of(network, (1, 8, 8, 1)) if "attention" in name}
    levels = [(1, 2, 4).index(factor) for factor in attention]
    expected = {f"down_{level}_attention_{i}" for level in levels for i in range(2)}
    expected |= {f"up_{level}_attention_{i}" for level in levels for i in range(3)}
    assert names == expected | {"mid_attention"}


@pytest.mark.parametrize("size", [28, 64, 224])
def test_attention_does_not_depend_on_the_picture_size(size):
    # guided-diffusion's attention_resolutions="16" would be no attention at all at 224 pixels.
    names = shapes_of(UNet(**TINY), (1, size, size, 1))
    assert {name for name in names if "attention" in name} >= {"down_1_attention_0", "up_1_attention_1"}


def test_a_factor_that_no_level_has_is_an_error():
    with pytest.raises(ValueError, match=r"no level has the attention factors \[14\].* there are \[1, 2, 4\]"):
        UNet(attention=(4, 14))
    with pytest.raises(ValueError, match=r"factors \[1\]; with stem=2 and 3 multipliers there are \[2, 4, 8\]"):
        UNet(attention=(1,), stem=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "at least 1"),
        ({"blocks": 0}, "at least 1"),
        ({"multipliers": ()}, "one multiplier"),
        ({"channels": 32, "head_channels": 48}, r"must divide the width of every attended level, .*\{4: 64\}"),
        ({"channels": 32, "head_channels": None, "heads": 3}, "must divide the width"),
    ],
)
def test_impossible_sizes_are_refused_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        UNet(**options)


def test_vectors_and_labels_without_classes_are_refused():
    with pytest.raises(ValueError, match="UNet takes images"):
        shapes_of(UNet(**TINY), (2, 8))
    network, x = CASES["plain"], random(1, (4, 8, 8, 3))
    with pytest.raises(ValueError, match="a label was given to a UNet without classes"):
        network.init(jax.random.key(0), x, LOG_SNR, jnp.zeros(4, int))


# ------------------------------------------------------------------------------------------------------- labels and dropout


@pytest.mark.slow
def test_labels_matter_and_no_label_is_the_null_class():
    network, x = UNet(**TINY, num_classes=3, label_dropout=1.0), random(1, (4, 8, 8, 3))
    params = random_params(network, x, 0.2)
    label = jnp.array([0, 1, 2, 3])
    output, null = apply(network, params, x, LOG_SNR, label), apply(network, params, x, LOG_SNR)
    np.testing.assert_allclose(output[3], null[3], atol=1e-6)
    assert np.abs(output - null)[:3].max(axis=(1, 2, 3)).min() > 1e-3
    # In training every label is dropped at this rate.
    trained = network.apply({"params": params}, x, LOG_SNR, label, train=True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_allclose(trained, null, atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_dropout_acts_in_training_alone(remat):
    network, x = UNet(**TINY, dropout=0.5, remat=remat), random(1, (4, 8, 8, 3))
    params = random_params(network, x)

    @jax.jit
    def training(key):
        return network.apply({"params": params}, x, LOG_SNR, train=True, rngs={"dropout": key})

    one, same, other = training(jax.random.key(1)), training(jax.random.key(1)), training(jax.random.key(2))
    np.testing.assert_array_equal(one, same)
    assert abs(one - other).max() > 1e-3
    quiet = apply(CASES["plain"], params, x, LOG_SNR)
    np.testing.assert_allclose(apply(network, params, x, LOG_SNR), quiet, atol=1e-6)
    assert abs(one - quiet).max() > 1e-3


# ------------------------------------------------------------------------------------------------------- precision and memory

NETWORKS = {
    "unet": partial(UNet, **TINY | {"channels": 16}, num_classes=3),
    "dit": partial(DiT, hidden=16, depth=2, heads=2, patch_size=4, num_classes=3),
}
every_network = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)


@every_network
@pytest.mark.parametrize("dtype", [jnp.bfloat16, "bfloat16"], ids=["type", "name"])
def test_half_precision_is_inside_only(build, dtype):
    x, label = random(1, (4, 8, 8, 3)), jnp.array([0, 1, 2, 3])
    params = random_params(build(), x)
    half = build(dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(half, x.shape))} == {jnp.dtype("float32")}
    exact, output = apply(build(), params, x, LOG_SNR, label), apply(half, params, x, LOG_SNR, label)
    assert output.dtype == jnp.float32
    assert 0 < abs(output - exact).max() < 0.1 * abs(exact).max()

    capture = jax.jit(partial(half.apply, capture_intermediates=True, mutable=["intermediates"]))
    _, state = capture({"params": params}, x, LOG_SNR, label)
    captured = {
        jax.tree_util.keystr(path): leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(state["intermediates"])
    }
    wide = {name for name, kind in captured.items() if kind == jnp.float32}
    # What computes in float32: normalisations, the embedding of level and label, and the output.
    kinds = ("norm", "LayerNorm", "level", "label", "final'", "conv_out", "['__call__'][0]")
    assert all(any(kind in name for kind in kinds) for name in wide), wide
    for part in ("conv_1", "modulation", "qkv", "mlp_in", "conv_in", "patch'"):
        assert {str(kind) for name, kind in captured.items() if part in name} <= {"bfloat16"}, part
    for part in ("norm_1", "norm_2", "norm_out", "LayerNorm", "final'", "conv_out"):
        assert {str(kind) for name, kind in captured.items() if part in name} <= {"float32"}, part


@pytest.mark.parametrize(
    "build", [NETWORKS["dit"], pytest.param(NETWORKS["unet"], marks=pytest.mark.slow)], ids=["dit", "unet"]
)
def test_recomputation_changes_no_number_and_no_name(build):
    x = random(1, (4, 8, 8, 3))
    plain, remat = build(), build(remat=True)
    params = random_params(plain, x)
    assert jax.tree.structure(shapes_of(remat, x.shape)) == jax.tree.structure(params)

    def gradient(network):
        return jax.jit(jax.grad(lambda p: jnp.mean(network.apply({"params": p}, x, LOG_SNR) ** 2)))(params)

    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6, rtol=1e-4), gradient(remat), gradient(plain))
    lowered = jax.jit(jax.grad(lambda p: jnp.mean(remat.apply({"params": p}, x, LOG_SNR) ** 2))).lower(params)
    assert "optimization_barrier" in lowered.as_text()


# --------------------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("network", "shape", "millions"),
    [
        (unet_small_28(), (1, 28, 28, 1), 0.76),
        (unet_28(), (1, 28, 28, 1), 18.96),
        (unet_224(), (1, 224, 224, 3), 138.3),
        # The published models: 296, 422 and 554 million with 1,000 classes, without the null class kept here.
        (unet_64(learned_variance=True, num_classes=999), (1, 64, 64, 3), 295.9),
        (unet_128(learned_variance=True, num_classes=999, head_channels=None, heads=4), (1, 128, 128, 3), 421.5),
        (unet_224(learned_variance=True, num_classes=999, channels=256), (1, 256, 256, 3), 553.8),
        (dit_small_28(), (1, 28, 28, 1), 1.27),
    ],
)
def test_presets_have_the_promised_size(network, shape, millions):
    assert million_parameters(network, shape) == pytest.approx(millions, rel=0.005)


def test_a_preset_takes_options():
    assert unet_small_28(channels=48, head_channels=48).channels == 48
    assert unet_64(dtype="bfloat16").attention == (2, 4, 8)
