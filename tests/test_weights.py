"""Published layouts against independent implementations: the same random weights, saved, loaded and run on both sides."""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import jaxad
from flax import serialization
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from jaxad.denoisers import MLP, DiT, UNet
from jaxad.denoisers.embedding import positions_2d
from jaxad.denoisers.weights import WeightsError, load_weights, read_state

TIMESTEP = np.array([1, 250, 871])
LOG_SNR = jnp.asarray(-2 * np.log(np.tan(np.pi / 2 * TIMESTEP / 1000)), jnp.float32)  # 1000 * noise_angle is TIMESTEP


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="parity needs torch (the `dev` extra)")


@pytest.fixture(scope="module")
def diffusers(torch):
    return pytest.importorskip("diffusers", reason="parity needs diffusers (the `dev` extra)")


def picture(height, width, channels=3):
    return np.random.default_rng(1).standard_normal((len(TIMESTEP), height, width, channels)).astype(np.float32)


def randomise(torch, model):
    """Everything, biases, gates and zero-initialised layers included: otherwise the comparison would be 0 == 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def saved(model, path):
    save_file({name: np.ascontiguousarray(value.numpy()) for name, value in model.state_dict().items()}, path)
    return path


def torch_output(torch, model, x, *extra):
    with torch.no_grad():
        arguments = (torch.from_numpy(np.asarray(a)) for a in (x.transpose(0, 3, 1, 2), TIMESTEP, *extra))
        output = model(*arguments)
    return getattr(output, "sample", output).numpy().transpose(0, 2, 3, 1)


@partial(jax.jit, static_argnums=0)
def apply(network, params, *inputs):
    return network.apply({"params": params}, *inputs)


def our_output(network, params, x, *extra):
    return apply(network, params, jnp.asarray(x), LOG_SNR, *(jnp.asarray(a) for a in extra))


def assert_same(ours, theirs):
    assert theirs.std() > 0.05
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------------------ U-Net of diffusers

UNET = dict(channels=16, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=8, groups=8)


def diffusers_unet(torch, diffusers, **options):
    defaults = dict(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        attn_norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
    )
    return randomise(torch, diffusers.UNet2DModel(**defaults | options))


ATTENDED = {
    "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
}
UNET_CASES = {
    "scale-shift": ({}, {}, {}),
    "learned-variance": ({"out_channels": 6}, {"learned_variance": True}, {}),
    "resampling-blocks": (
        {"downsample_type": "resnet", "upsample_type": "resnet", **ATTENDED},
        {"resblock_updown": True, "attention": (1, 2)},
        {},
    ),
    # The conventions of DDPM: level added, one head, its level embedding.
    "ddpm": (
        {
            "resnet_time_scale_shift": "default",
            "freq_shift": 1,
            "flip_sin_to_cos": False,
            "attention_head_dim": None,
            "norm_eps": 1e-3,
        },
        {"scale_shift": False, "frequency_shift": 1.0, "head_channels": None, "epsilon": 1e-3},
        {"sine_first": True},
    ),
}


@pytest.mark.parametrize(("theirs", "ours", "options"), UNET_CASES.values(), ids=UNET_CASES)
def test_a_diffusers_unet_is_the_same_function(torch, diffusers, tmp_path, theirs, ours, options):
    model = diffusers_unet(torch, diffusers, **theirs)
    network = UNet(**UNET | ours)
    params = load_weights(saved(model, tmp_path / "unet.safetensors"), network, (1, 8, 12, 3), **options)
    x = picture(8, 12)
    assert_same(our_output(network, params, x), torch_output(torch, model, x))


def test_the_command_writes_them_under_our_names(torch, diffusers, tmp_path, capsys):
    weights, out = saved(diffusers_unet(torch, diffusers), tmp_path / "unet.safetensors"), tmp_path / "ours.safetensors"
    words = ("--network", json.dumps({"class": "UNet", **UNET}), "--size", 8)
    assert jaxad("import-weights", weights, "--out", out, *words) == 0
    assert "all matched" in " ".join(capsys.readouterr().out.split())
    expected = load_weights(weights, UNet(**UNET), (1, 8, 8, 3))
    written = load_file(out)
    assert written.keys() == flatten_dict(expected, sep="/").keys()
    for name, leaf in flatten_dict(expected, sep="/").items():
        np.testing.assert_array_equal(written[name], leaf)


def test_a_diffusers_class_table_gets_a_null_row_of_zeros(torch, diffusers, tmp_path):
    model = diffusers_unet(torch, diffusers, num_class_embeds=5)
    network = UNet(**UNET, num_classes=5)
    params = load_weights(saved(model, tmp_path / "unet.safetensors"), network, (1, 8, 8, 3))
    np.testing.assert_array_equal(params["label"]["embedding"][5], 0)
    x, label = picture(8, 8), np.array([0, 4, 2])
    assert_same(our_output(network, params, x, label), torch_output(torch, model, x, label))


def test_flax_msgpack_with_the_old_names_is_the_same_network(torch, diffusers, tmp_path):
    model = diffusers_unet(torch, diffusers)
    path = saved(model, tmp_path / "unet.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tree = {}
    for name, value in load_file(path).items():
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        *modules, leaf = name.split(".")
        kernel = leaf == "weight" and value.ndim > 1
        # flax writes torch's lists of modules as name_0, name_1.
        joined = "/".join(modules)
        for number in range(3):
            joined = joined.replace(f"/{number}", f"_{number}")
        branch = tree
        for part in joined.split("/"):
            branch = branch.setdefault(part, {})
        leaf = "kernel" if kernel else "scale" if leaf == "weight" else leaf
        branch[leaf] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    packed = tmp_path / "unet.msgpack"
    packed.write_bytes(serialization.msgpack_serialize(tree))

    network = UNet(**UNET)
    expected = load_weights(path, network, (1, 8, 8, 3))
    jax.tree.map(np.testing.assert_array_equal, load_weights(packed, network, (1, 8, 8, 3)), expected)


# --------------------------------------------------------------------------- ADM and DiT, rewritten here after the published code


def sinusoid_in_torch(torch, timestep, width):
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angle = timestep[:, None].float() * frequencies[None]
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)


def adm_model(torch, *, channels, multipliers, blocks, factors, heads, updown, heads_first, classes):
    """guided-diffusion's UNetModel with its names (openai/guided-diffusion, unet.py, MIT licence)."""
    nn, functional = torch.nn, torch.nn.functional

    def norm(width):
        return nn.GroupNorm(8, width)

    class Resample(nn.Module):
        def __init__(self, width, up):
            super().__init__()
            self.up = up
            if up:
                self.conv = nn.Conv2d(width, width, 3, padding=1)
            else:
                self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

        def forward(self, x):
            return self.conv(functional.interpolate(x, scale_factor=2, mode="nearest")) if self.up else self.op(x)

    class ResBlock(nn.Module):
        def __init__(self, width, out, change=None):
            super().__init__()
            self.change = {
                None: nn.Identity(),
                "up": nn.Upsample(scale_factor=2, mode="nearest"),
                "down": nn.AvgPool2d(2),
            }[change]
            self.in_layers = nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * channels, 2 * out))
            self.out_layers = nn.Sequential(norm(out), nn.SiLU(), nn.Dropout(0), nn.Conv2d(out, out, 3, padding=1))
            self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

        def forward(self, x, emb):
            hidden = self.in_layers[2](self.change(self.in_layers[:2](x)))
            scale, shift = torch.chunk(self.emb_layers(emb)[..., None, None], 2, dim=1)
            hidden = self.out_layers[1:](self.out_layers[0](hidden) * (1 + scale) + shift)
            return self.skip_connection(self.change(x)) + hidden

    class AttentionBlock(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm, self.qkv, self.proj_out = norm(width), nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, width, 1)

        def forward(self, x):
            batch, width = x.shape[:2]
            flat = x.reshape(batch, width, -1)
            qkv = self.qkv(self.norm(flat))
            length, head = qkv.shape[-1], width // heads
            if heads_first:
                q, k, v = qkv.reshape(batch * heads, 3 * head, length).split(head, dim=1)
            else:
                q, k, v = (part.reshape(batch * heads, head, length) for part in qkv.chunk(3, dim=1))
            weight = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(head), dim=-1)
            mixed = torch.einsum("bts,bcs->bct", weight, v).reshape(batch, width, length)
            return (flat + self.proj_out(mixed)).reshape(x.shape)

    class Stage(nn.Sequential):
        def forward(self, x, emb):
            for layer in self:
                x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
            return x

    class UNetModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.time_embed = nn.Sequential(
                nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels)
            )
            if classes:
                self.label_emb = nn.Embedding(classes, 4 * channels)
            width, factor = multipliers[0] * channels, 1
            self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(3, width, 3, padding=1))])
            skips = [width]
            for level, multiplier in enumerate(multipliers):
                for _ in range(blocks):
                    layers = [ResBlock(width, multiplier * channels)]
                    width = multiplier * channels
                    if factor in factors:
                        layers.append(AttentionBlock(width))
                    self.input_blocks.append(Stage(*layers))
                    skips.append(width)
                if level != len(multipliers) - 1:
                    self.input_blocks.append(
                        Stage(ResBlock(width, width, "down") if updown else Resample(width, up=False))
                    )
                    skips.append(width)
                    factor *= 2
            self.middle_block = Stage(ResBlock(width, width), AttentionBlock(width), ResBlock(width, width))
            self.output_blocks = nn.ModuleList()
            for level, multiplier in list(enumerate(multipliers))[::-1]:
                for index in range(blocks + 1):
                    layers = [ResBlock(width + skips.pop(), multiplier * channels)]
                    width = multiplier * channels
                    if factor in factors:
                        layers.append(AttentionBlock(width))
                    if level and index == blocks:
                        layers.append(ResBlock(width, width, "up") if updown else Resample(width, up=True))
                        factor //= 2
                    self.output_blocks.append(Stage(*layers))
            self.out = nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, 6, 3, padding=1))

        def forward(self, x, timestep, label=None):
            emb = self.time_embed(sinusoid_in_torch(torch, timestep, channels))
            if classes:
                emb = emb + self.label_emb(label)
            skips = []
            for stage in self.input_blocks:
                x = stage(x, emb)
                skips.append(x)
            x = self.middle_block(x, emb)
            for stage in self.output_blocks:
                x = stage(torch.cat([x, skips.pop()], dim=1), emb)
            return self.out(x)

    return randomise(torch, UNetModel())


@pytest.mark.parametrize("heads_first", [True, False], ids=["heads-first", "qkv-first"])
@pytest.mark.parametrize("updown", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["blocks", "convolutions"])
def test_adm_is_the_same_function(torch, tmp_path, updown, heads_first):
    classes = 5 if updown else None
    model = adm_model(
        torch,
        channels=16,
        multipliers=(2, 1, 3),
        blocks=2,
        factors=(2, 4),
        heads=4,
        updown=updown,
        heads_first=heads_first,
        classes=classes,
    )
    network = UNet(
        channels=16,
        multipliers=(2, 1, 3),
        blocks=2,
        attention=(2, 4),
        head_channels=None,
        heads=4,
        groups=8,
        resblock_updown=updown,
        num_classes=classes,
        learned_variance=True,
    )
    path = saved(model, tmp_path / "adm.safetensors")
    extra = (np.array([0, 4, 2]),) if classes else ()
    x = picture(8, 12)
    params = load_weights(path, network, (1, 8, 12, 3), heads_first=heads_first)
    theirs = torch_output(torch, model, x, *extra)
    assert_same(our_output(network, params, x, *extra), theirs)
    # The order of the heads cannot be read off the file, so the comparison must be able to tell.
    wrong = load_weights(path, network, (1, 8, 12, 3), heads_first=not heads_first)
    assert abs(our_output(network, wrong, x, *extra) - theirs).max() > 1e-3


DIT = dict(hidden=32, depth=2, heads=4, patch_size=2, num_classes=5, learned_variance=True)


def dit_model(torch, *, size=8, hidden=32, depth=2, heads=4, patch=2, classes=5):
    """The published DiT with its names (facebookresearch/DiT, models.py), timm's Attention and Mlp written out."""
    nn, functional = torch.nn, torch.nn.functional

    def norm():
        return nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)

    def modulate(x, shift, scale):
        return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

        def forward(self, x):
            batch, window, _ = x.shape
            qkv = self.qkv(x).reshape(batch, window, 3, heads, hidden // heads).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(*qkv.unbind(0))
            return self.proj(mixed.transpose(1, 2).reshape(x.shape))

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

        def forward(self, x):
            return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))

    class DiTBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.attn, self.norm2, self.mlp = norm(), Attention(), norm(), Mlp()
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))

        def forward(self, x, c):
            shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
            x = x + gate_msa.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_msa, scale_msa))
            return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))

    def holder(**modules):
        module = nn.Module()
        for name, value in modules.items():
            setattr(module, name, value)
        return module

    class PublishedDiT(nn.Module):
        def __init__(self):
            super().__init__()
            self.x_embedder = holder(proj=nn.Conv2d(3, hidden, patch, stride=patch))
            self.t_embedder = holder(mlp=nn.Sequential(nn.Linear(256, hidden), nn.SiLU(), nn.Linear(hidden, hidden)))
            self.y_embedder = holder(embedding_table=nn.Embedding(classes + 1, hidden))
            positions = positions_2d(size // patch, size // patch, hidden)
            self.pos_embed = nn.Parameter(torch.from_numpy(positions)[None], requires_grad=False)
            self.blocks = nn.ModuleList(DiTBlock() for _ in range(depth))
            self.final_layer = holder(
                norm_final=norm(),
                linear=nn.Linear(hidden, patch * patch * 6),
                adaLN_modulation=nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden)),
            )

        def forward(self, x, timestep, label):
            x = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
            t = self.t_embedder.mlp(sinusoid_in_torch(torch, timestep, 256))
            c = t + self.y_embedder.embedding_table(label)
            for block in self.blocks:
                x = block(x, c)
            shift, scale = self.final_layer.adaLN_modulation(c).chunk(2, dim=1)
            x = self.final_layer.linear(modulate(self.final_layer.norm_final(x), shift, scale))
            side = size // patch
            x = torch.einsum("nhwpqc->nchpwq", x.reshape(len(x), side, side, patch, patch, 6))
            return x.reshape(len(x), 6, size, size)

    model = PublishedDiT()
    positions = model.pos_embed.detach().clone()
    randomise(torch, model)
    with torch.no_grad():
        model.pos_embed.copy_(positions)
    return model


def test_the_published_dit_is_the_same_function(torch, tmp_path):
    model = dit_model(torch)
    network = DiT(**DIT)
    params = load_weights(saved(model, tmp_path / "dit.safetensors"), network, (1, 8, 8, 3))
    x, label = picture(8, 8), np.array([0, 3, 5])
    assert_same(our_output(network, params, x, label), torch_output(torch, model, x, label))


def test_a_diffusers_dit_is_the_same_function_and_its_embedders_must_agree(torch, diffusers, tmp_path):
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    )
    randomise(torch, model)
    network = DiT(**DIT, frequency_shift=1.0)
    path = tmp_path / "dit.safetensors"
    with pytest.raises(WeightsError, match=r"class_embedder.* differ from one another"):
        load_weights(saved(model, path), network, (1, 8, 8, 3))

    blocks = model.transformer_blocks
    blocks[1].norm1.emb.load_state_dict(blocks[0].norm1.emb.state_dict())
    params = load_weights(saved(model, path), network, (1, 8, 8, 3))
    x, label = picture(8, 8), np.array([0, 3, 5])
    assert_same(our_output(network, params, x, label), torch_output(torch, model, x, label))


# ------------------------------------------------------------------------------------------ files that do not fit or are damaged


@pytest.fixture
def dit_state(torch, tmp_path):
    return load_file(saved(dit_model(torch), tmp_path / "whole.safetensors"))


def load_dit(state, tmp_path):
    path = tmp_path / "dit.safetensors"
    save_file(state, path)
    return load_weights(path, DiT(**DIT), (1, 8, 8, 3))


def test_everything_that_does_not_fit_is_named_at_once(dit_state, tmp_path):
    del dit_state["blocks.1.attn.proj.bias"]
    dit_state["ema.decay"] = np.ones(1, np.float32)
    dit_state["final_layer.linear.weight"] = np.ones((12, 32), np.float32)
    with pytest.raises(WeightsError) as caught:
        load_dit(dit_state, tmp_path)
    message = str(caught.value)
    assert "1 missing: blocks.1.attn.proj.bias" in message
    assert "1 unexpected: ema.decay" in message
    assert "1 wrongly shaped: final_layer.linear.weight is [12, 32], the network needs [24, 32]" in message
    assert "dit.safetensors" in message


def test_a_long_list_is_cut(dit_state, tmp_path):
    with pytest.raises(WeightsError, match=r"30 unexpected: extra\.00, .* and 10 more"):
        load_dit(dit_state | {f"extra.{i:02}": np.ones(1, np.float32) for i in range(30)}, tmp_path)


def test_other_position_vectors_are_refused_and_those_of_another_size_ignored(dit_state, tmp_path):
    other = dit_state["pos_embed"]
    load_dit(dit_state | {"pos_embed": other[:, :4]}, tmp_path)
    with pytest.raises(WeightsError, match="pos_embed holds other position vectors"):
        load_dit(dit_state | {"pos_embed": other[:, ::-1].copy()}, tmp_path)


def test_the_layout_must_be_known(dit_state, tmp_path):
    path = tmp_path / "dit.safetensors"
    save_file(dit_state, path)
    with pytest.raises(WeightsError, match=r"names by which weights of a UNet are told: expected one of \['conv_in"):
        load_weights(path, UNet(**UNET), (1, 8, 8, 3))
    with pytest.raises(WeightsError, match="known for DiT and UNet, got a MLP"):
        load_weights(path, MLP(), (1, 8))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_become_float32(tmp_path, dtype):
    values = jnp.arange(4) / 3
    save_file({"x": np.asarray(values).astype(jnp.dtype(dtype))}, tmp_path / "x.safetensors")
    read = read_state(tmp_path / "x.safetensors")["x"]
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, values, atol=1e-2)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1], ids=lambda keep: f"keep {keep}")
@pytest.mark.parametrize("suffix", ["safetensors", "msgpack"])
def test_truncated_files_are_refused_by_name(tmp_path, suffix, keep):
    path = tmp_path / f"cut.{suffix}"
    arrays = {"x": np.arange(99.0, dtype=np.float32)}
    if suffix == "safetensors":
        save_file(arrays, path)
    else:
        path.write_bytes(serialization.msgpack_serialize(arrays))
    read_state(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=rf"cut\.{suffix} is damaged"):
        read_state(path)


@pytest.mark.parametrize("suffix", ["safetensors", "msgpack"])
def test_damaged_bytes_are_refused_or_still_numbers(tmp_path, suffix):
    path = tmp_path / f"bad.{suffix}"
    arrays = {"one": np.ones((2, 3), np.float32), "two": np.ones(4, np.float32)}
    if suffix == "safetensors":
        save_file(arrays, path)
    else:
        path.write_bytes(serialization.msgpack_serialize(arrays))
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        damaged = whole.copy()
        damaged[rng.integers(len(whole) if suffix == "msgpack" else 150, size=2)] = rng.integers(256, size=2)
        path.write_bytes(damaged.tobytes())
        try:
            assert all(value.dtype == np.float32 for value in read_state(path).values())
        except WeightsError:
            refused += 1
    assert refused > 50


def test_pickles_integers_and_absent_files_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"a pickle .* may run code"):
        read_state(tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="does not exist"):
        read_state(tmp_path / "weights.safetensors")
    save_file({"x": np.arange(3)}, tmp_path / "int.safetensors")
    with pytest.raises(WeightsError, match="x is of type I64"):
        read_state(tmp_path / "int.safetensors")
    (tmp_path / "list.msgpack").write_bytes(serialization.msgpack_serialize([1, 2]))
    with pytest.raises(WeightsError, match="expected a tree"):
        read_state(tmp_path / "list.msgpack")
    (tmp_path / "int.msgpack").write_bytes(serialization.msgpack_serialize({"a": {"x": np.arange(3)}}))
    with pytest.raises(WeightsError, match="a/x is no array"):
        read_state(tmp_path / "int.msgpack")
