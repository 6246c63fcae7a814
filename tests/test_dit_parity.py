"""DiT against an independent implementation: diffusers' DiTTransformer2DModel with the same random weights, float32.

diffusers gives every block its own timestep and class embedder and takes the output layer's condition from block 0. The
published DiT shares one embedder, so block 0's is copied into all blocks first.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.denoisers import DiT

pytestmark = pytest.mark.filterwarnings("ignore")

CLASSES, PATCH, CHANNELS, SIZE, HEADS, HEAD_WIDTH, DEPTH = 10, 2, 3, 8, 4, 8, 3


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="parity needs torch (the `dev` extra)")


def diffusers_model(torch, out_channels):
    diffusers = pytest.importorskip("diffusers", reason="parity needs diffusers (the `dev` extra)")
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        in_channels=CHANNELS,
        out_channels=out_channels,
        num_layers=DEPTH,
        sample_size=SIZE,
        patch_size=PATCH,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,  # the published value; diffusers' default of 1e-5 would reach the second norm of each block
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # Everything, biases and gates included: the zero initialisation would make the comparison 0 == 0. Much larger
        # weights amplify the rounding of sin(999) in either library past the tolerance.
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for block in model.transformer_blocks[1:]:
            block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


def copied_params(model):
    weights = {name: value.numpy() for name, value in model.state_dict().items()}

    def dense(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def block(name):
        query, key, value = (dense(f"{name}.attn1.to_{letter}") for letter in "qkv")
        return {
            "modulation": dense(f"{name}.norm1.linear"),
            "qkv": {
                part: np.concatenate([query[part], key[part], value[part]], axis=-1) for part in ("kernel", "bias")
            },
            "attention_out": dense(f"{name}.attn1.to_out.0"),
            "mlp_in": dense(f"{name}.ff.net.0.proj"),
            "mlp_out": dense(f"{name}.ff.net.2"),
        }

    # A convolution whose stride is its kernel is a Dense layer on patches:
    # [out, in, row, column] -> [row * column * in, out].
    convolution = weights["pos_embed.proj.weight"].transpose(2, 3, 1, 0)
    embedder = "transformer_blocks.0.norm1.emb"
    return {
        "patch": {"kernel": convolution.reshape(-1, convolution.shape[-1]), "bias": weights["pos_embed.proj.bias"]},
        "level": {
            "Dense_0": dense(f"{embedder}.timestep_embedder.linear_1"),
            "Dense_1": dense(f"{embedder}.timestep_embedder.linear_2"),
        },
        "label": {"embedding": weights[f"{embedder}.class_embedder.embedding_table.weight"]},
        **{f"block_{index}": block(f"transformer_blocks.{index}") for index in range(DEPTH)},
        "final_modulation": dense("proj_out_1"),
        "final": dense("proj_out_2"),
    }


@pytest.mark.parametrize("learned_variance", [False, True], ids=["C", "2C"])
def test_forward_equals_diffusers(torch, learned_variance):
    model = diffusers_model(torch, CHANNELS * (2 if learned_variance else 1))
    rng = np.random.default_rng(1)
    timestep = np.array([1, 37, 250, 500, 871, 999])
    label = np.array([0, 3, 9, 2, CLASSES, 5])  # CLASSES is the null class of both
    x = rng.standard_normal((len(timestep), SIZE, SIZE, CHANNELS)).astype(np.float32)

    with torch.no_grad():
        arguments = torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(timestep), torch.from_numpy(label)
        expected = model(*arguments).sample.numpy().transpose(0, 2, 3, 1)

    network = DiT(
        hidden=HEADS * HEAD_WIDTH,
        depth=DEPTH,
        heads=HEADS,
        patch_size=PATCH,
        num_classes=CLASSES,
        learned_variance=learned_variance,
        frequency_shift=1.0,
    )
    log_snr = -2 * np.log(np.tan(np.pi / 2 * timestep / 1000))  # so that 1000 * noise_angle is the integer timestep

    @jax.jit
    def forward(log_snr):
        return network.apply({"params": copied_params(model)}, jnp.asarray(x), log_snr, jnp.asarray(label))

    output = forward(jnp.asarray(log_snr))

    assert expected.std() > 0.1
    assert output.shape == expected.shape
    np.testing.assert_allclose(output, expected, atol=1e-4, rtol=0)
    # The comparison would notice a slightly wrong noise level.
    assert abs(forward(jnp.asarray(log_snr + 0.1)) - expected).max() > 0.1
