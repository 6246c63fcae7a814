"""Published weights for the networks of ``jaxad.denoisers``: safetensors and msgpack files, renamed, transposed and checked."""

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util
from safetensors import SafetensorError, safe_open

from jaxad.denoisers import DiT, UNet
from jaxad.denoisers.embedding import positions_2d

_DTYPES = frozenset(("F64", "F32", "F16", "BF16"))
_NAMES_SHOWN = 20


class WeightsError(ValueError):
    """A file that cannot be read as weights, or weights of another network; the message names what does not match."""


def load_weights(
    path: str | os.PathLike,
    network: DiT | UNet,
    example_shape: tuple[int, ...],
    *,
    heads_first: bool = True,
    sine_first: bool = False,
) -> dict[str, Any]:
    """The parameters of ``network`` from a published file: ``network.apply({"params": load_weights(...)}, x, log_snr)``.

    The layout is told by the names in the file. What the file does not say has to be right in the network:

    =========================================  =========================================================================
    layout (``.safetensors``)                  fields to set
    =========================================  =========================================================================
    DiT as published (facebookresearch)        ``num_classes=1000, learned_variance=True``
    ``DiTTransformer2DModel`` of diffusers     those, and ``frequency_shift=1``
    ADM as published (guided-diffusion)        ``resblock_updown``, ``head_channels`` (or None and ``heads``);
                                               for ImageNet-64, here, ``heads_first=False``
    ``UNet2DModel`` of diffusers               ``scale_shift``, ``head_channels``, ``epsilon`` and ``frequency_shift``, from
                                               its ``config.json``
    =========================================  =========================================================================

    A ``.msgpack`` file is read as flax's serialisation with the names of diffusers' former Flax networks.

    The noise level enters as ``1000 * noise_angle(log_snr)``. A network trained on steps t of 1,000 understands a level
    only if it is told that t: call it with ``log_snr = -2 log tan(pi t / 2000)``.

    Args:
        path: the file. No code in it can run: pickles (``.pt``, ``.bin``) are refused, convert them first.
        network: the network the weights are for.
        example_shape: of its input, ``[batch, height, width, channels]``.
        heads_first: the ``qkv`` layers of an ADM file hold q, k and v of the first head, then those of the second
            (guided-diffusion's default); False: all q, then all k, then all v (its ``use_new_attention_order``).
        sine_first: the file's level embedding is ``[sin, cos]`` (diffusers' ``flip_sin_to_cos=False``, DDPM).

    Returns:
        Nested dict of float32 arrays, as ``network.init(...)["params"]``. A table of ADM or diffusers has no null class:
        its row is zeros, so that ``label=None`` leaves the level alone.

    Raises:
        WeightsError: the file is missing, damaged or of an unknown layout, or it does not fit the network: everything
            missing, left over or wrongly shaped is listed, by the names in the file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load_weights(f"{folder}/dit.safetensors", DiT(), (1, 8, 8, 3))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    jaxad.denoisers.weights.WeightsError: ...dit.safetensors does not exist or is no file
    """
    if not isinstance(network, DiT | UNet):
        raise WeightsError(f"weights are known for DiT and UNet, got a {type(network).__name__}")
    path = Path(path)
    state = read_state(path)
    wanted = _parameter_shapes(network, example_shape)
    layout = _layout(path, state, network)
    if layout.startswith("diffusers"):
        state = {_modern_name(name): value for name, value in state.items()}
    entries = _entries(network, wanted, layout, heads_first, sine_first)
    positions = [name for name in ("pos_embed", "pos_embed.pos_embed") if name in state and isinstance(network, DiT)]
    _check_names_and_shapes(path, layout, state, entries, set(positions), network)
    for name in positions:
        _check_positions(path, name, state[name], network, example_shape)

    params = {}
    for name, entry in entries.items():
        try:
            params[name] = jnp.asarray(entry.build(*(state[source] for source in entry.sources)), jnp.float32)
        except _Disagreement:
            raise WeightsError(
                f"{path}: {', '.join(entry.sources)} differ from one another, but DiT has one such layer for all blocks"
            ) from None
    return traverse_util.unflatten_dict(params, sep="/")


def read_state(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a ``.safetensors`` or ``.msgpack`` file under torch's dotted names and layouts, in float32.

    Raises:
        WeightsError: the file is missing, damaged, of another kind, or holds anything but finite floating-point numbers.

    >>> import tempfile
    >>> from safetensors.numpy import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"out.bias": np.ones(2, np.float16)}, f"{folder}/one.safetensors")
    ...     read_state(f"{folder}/one.safetensors")
    {'out.bias': array([1., 1.], dtype=float32)}
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".msgpack"):
        raise WeightsError(
            f"{path} is neither .safetensors nor .msgpack; a pickle (.pt, .bin) may run code when it is opened: convert it "
            "where that does no harm, `safetensors.torch.save_file(torch.load(old, weights_only=True), new)`"
        )
    if not path.is_file():
        raise WeightsError(f"{path} does not exist or is no file")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_msgpack(path)
    for name, array in state.items():
        if not np.isfinite(array).all():
            raise WeightsError(f"{path}: {name} holds infinite values or NaN; fetch it again")
    return state


def _read_safetensors(path):
    state = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  (the file is no mapping)
                kind = file.get_slice(name).get_dtype()
                if kind not in _DTYPES:
                    raise WeightsError(f"{path}: {name} is of type {kind}, expected one of {sorted(_DTYPES)}")
                state[name] = np.asarray(file.get_tensor(name)).astype(np.float32)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from error
    return state


def _read_msgpack(path):
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    # What damaged bytes were seen to raise: in msgpack, and in numpy where flax makes arrays of them.
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged or no flax msgpack file ({error}); fetch it again") from error
    if not isinstance(tree, dict):
        raise WeightsError(f"{path}: expected a tree of named arrays, got a {type(tree).__name__}")
    state = {}
    for parts, value in traverse_util.flatten_dict(tree).items():
        name = "/".join(map(str, parts))
        if not isinstance(value, np.ndarray) or not jnp.issubdtype(value.dtype, jnp.floating):
            raise WeightsError(f"{path}: {name} is no array of floating-point numbers")
        state[_torch_name(parts)] = _as_torch(str(parts[-1]), value.astype(np.float32))
    return state


# Lists of torch modules, which flax writes with an underscore.
_LISTS = re.compile(r"(down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|to_out)_(\d+)")


def _torch_name(parts):
    *modules, leaf = (str(part) for part in parts)
    modules = [_LISTS.sub(r"\1.\2", module) for module in modules if module != "params"]
    return ".".join([*modules, "bias" if leaf == "bias" else "weight"])


def _as_torch(leaf, value):
    if leaf != "kernel":
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


# Attention layers of diffusers had these names until 2023.
_MODERN = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _modern_name(name: str) -> str:
    return ".".join(_MODERN.get(part, part) for part in name.split("."))


# ------------------------------------------------------------------------------------------- which name stands for which


def _parameter_shapes(network, example_shape):
    """``{"mid_block_0/conv_1/kernel": shape}`` of everything the network has."""
    shapes: Any = jax.eval_shape(
        network.init,
        jax.eval_shape(jax.random.key, 0),
        jax.ShapeDtypeStruct(example_shape, jnp.float32),
        jax.ShapeDtypeStruct(example_shape[:1], jnp.float32),
    )["params"]
    leaves: dict[str, Any] = traverse_util.flatten_dict(shapes, sep="/")  # pyright: ignore[reportAssignmentType]
    return {name: leaf.shape for name, leaf in leaves.items()}


_MARKS = {
    UNet: {"input_blocks.0.0.weight": "ADM", "conv_in.weight": "diffusers UNet2DModel"},
    DiT: {"x_embedder.proj.weight": "DiT", "pos_embed.proj.weight": "diffusers DiTTransformer2DModel"},
}


def _layout(path, state, network):
    marks = next(marks for kind, marks in _MARKS.items() if isinstance(network, kind))
    found = [layout for mark, layout in marks.items() if mark in state]
    if not found:
        raise WeightsError(
            f"{path} has none of the names by which weights of a {type(network).__name__} are told: expected one of "
            f"{sorted(marks)}, got {_shortened(sorted(state))}"
        )
    return found[0]


class _Disagreement(Exception):
    """Arrays that must be equal are not."""


class _Entry(NamedTuple):
    """Where one parameter comes from: names in the file, the shapes they may have, and how the array is made of them."""

    sources: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    build: Callable[..., np.ndarray]


def _entries(network, wanted, layout, heads_first, sine_first) -> dict[str, _Entry]:
    modules = _SOURCES[layout](network)
    entries = {}
    for name, shape in wanted.items():
        module, _, leaf = name.rpartition("/")
        sources = tuple(f"{source}.{'bias' if leaf == 'bias' else 'weight'}" for source in modules[module])
        if module == "label":
            entry = _Entry(sources, (shape, (shape[0] - 1, shape[1])), partial(_with_null_row, shape[0]))
        elif module.endswith("qkv"):
            heads = network.heads_of(shape[-1] // 3) if layout == "ADM" and heads_first else None
            # One source or three, of which each is a dense layer with rows of outputs.
            rows = (shape[-1] // len(sources), *shape[:-1])
            entry = _Entry(sources, _as_convolutions(rows), partial(_qkv, heads))
        elif leaf != "kernel":
            entry = _Entry(sources, (shape,), _same)
        elif module == "patch":
            p, hidden = network.patch_size, shape[-1]
            entry = _Entry(sources, ((hidden, shape[0] // p**2, p, p),), _patch)
        elif len(shape) == 4:
            entry = _Entry(sources, ((shape[3], shape[2], *shape[:2]),), _convolution)
        else:
            build = _sine_first if module == "level_in" and sine_first else _dense
            entry = _Entry(sources, _as_convolutions(shape[::-1]), build)
        entries[name] = entry
    return entries


def _as_convolutions(shape):
    """A layer on pixels is a 1x1 convolution elsewhere, or a 1-d one over the flattened picture."""
    return (shape,) if len(shape) == 1 else (shape, (*shape, 1), (*shape, 1, 1))


def _same(*arrays):
    """One array, which the file may hold several times."""
    if any(not np.array_equal(array, arrays[0]) for array in arrays[1:]):
        raise _Disagreement
    return arrays[0]


def _dense(*arrays):
    return _same(*arrays).reshape(arrays[0].shape[:2]).T


def _convolution(array):
    return array.transpose(2, 3, 1, 0)


def _patch(array):
    """A convolution whose stride is its kernel is a dense layer on patches: rows, columns and channels of one patch."""
    return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])


def _sine_first(*arrays):
    """``[sin, cos]`` inputs to ``[cos, sin]``."""
    kernel = _dense(*arrays)
    return np.roll(kernel, len(kernel) // 2, axis=0)


def _qkv(heads, *arrays):
    """Outputs ordered q, k, v, each head after head; with ``heads`` they come as q, k, v of every head in turn."""
    rows = np.concatenate([array.reshape(array.shape[:2]) for array in arrays])
    if heads is not None:
        rows = np.swapaxes(rows.reshape(heads, 3, -1, *rows.shape[1:]), 0, 1).reshape(rows.shape)
    return rows.T


def _with_null_row(rows, *arrays):
    table = _same(*arrays)
    return np.pad(table, ((0, rows - len(table)), (0, 0)))


# Inside a residual block and an attention layer.
_DIFFUSERS_BLOCK = {
    "norm_1": ("norm1",),
    "conv_1": ("conv1",),
    "modulation": ("time_emb_proj",),
    "norm_2": ("norm2",),
    "conv_2": ("conv2",),
    "shortcut": ("conv_shortcut",),
}
_DIFFUSERS_ATTENTION = {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "out": ("to_out.0",)}
_ADM_BLOCK = {
    "norm_1": ("in_layers.0",),
    "conv_1": ("in_layers.2",),
    "modulation": ("emb_layers.1",),
    "norm_2": ("out_layers.0",),
    "conv_2": ("out_layers.3",),
    "shortcut": ("skip_connection",),
}
_ADM_ATTENTION = {"norm": ("norm",), "qkv": ("qkv",), "out": ("proj_out",)}


def _inside(ours, theirs, parts):
    return {f"{ours}/{part}": tuple(f"{theirs}.{name}" for name in names) for part, names in parts.items()}


def _adm(network: UNet) -> dict[str, tuple[str, ...]]:
    """guided-diffusion counts blocks and resolution changes together, in the order of their execution."""
    modules = {
        "level_in": ("time_embed.0",),
        "level_out": ("time_embed.2",),
        "label": ("label_emb",),
        "conv_in": ("input_blocks.0.0",),
        "norm_out": ("out.0",),
        "conv_out": ("out.2",),
        **_inside("mid_block_0", "middle_block.0", _ADM_BLOCK),
        **_inside("mid_attention", "middle_block.1", _ADM_ATTENTION),
        **_inside("mid_block_1", "middle_block.2", _ADM_BLOCK),
    }

    def resample(ours, theirs, convolution):
        if network.resblock_updown:
            return _inside(ours, theirs, _ADM_BLOCK)
        return {ours: (f"{theirs}.{convolution}",)}

    last = len(network.factors) - 1
    position = 1
    for level in range(last + 1):
        for index in range(network.blocks):
            modules |= _inside(f"down_{level}_block_{index}", f"input_blocks.{position}.0", _ADM_BLOCK)
            modules |= _inside(f"down_{level}_attention_{index}", f"input_blocks.{position}.1", _ADM_ATTENTION)
            position += 1
        if level < last:
            modules |= resample(f"down_{level}_resample", f"input_blocks.{position}.0", "op")
            position += 1
    position = 0
    for level in range(last, -1, -1):
        for index in range(network.blocks + 1):
            modules |= _inside(f"up_{level}_block_{index}", f"output_blocks.{position}.0", _ADM_BLOCK)
            modules |= _inside(f"up_{level}_attention_{index}", f"output_blocks.{position}.1", _ADM_ATTENTION)
            position += 1
        if level > 0:
            place = 2 if network.factors[level] in network.attention else 1
            modules |= resample(f"up_{level}_resample", f"output_blocks.{position - 1}.{place}", "conv")
    return modules


def _diffusers_unet(network: UNet) -> dict[str, tuple[str, ...]]:
    modules = {
        "level_in": ("time_embedding.linear_1",),
        "level_out": ("time_embedding.linear_2",),
        "label": ("class_embedding",),
        "conv_in": ("conv_in",),
        "norm_out": ("conv_norm_out",),
        "conv_out": ("conv_out",),
        **_inside("mid_block_0", "mid_block.resnets.0", _DIFFUSERS_BLOCK),
        **_inside("mid_attention", "mid_block.attentions.0", _DIFFUSERS_ATTENTION),
        **_inside("mid_block_1", "mid_block.resnets.1", _DIFFUSERS_BLOCK),
    }
    last = len(network.factors) - 1
    for level in range(last + 1):
        # Upwards, diffusers counts from the deepest level.
        for way, folder, change, blocks in (
            ("down", f"down_blocks.{level}", "downsamplers.0", network.blocks),
            ("up", f"up_blocks.{last - level}", "upsamplers.0", network.blocks + 1),
        ):
            for index in range(blocks):
                block, attention = f"{way}_{level}_block_{index}", f"{way}_{level}_attention_{index}"
                modules |= _inside(block, f"{folder}.resnets.{index}", _DIFFUSERS_BLOCK)
                modules |= _inside(attention, f"{folder}.attentions.{index}", _DIFFUSERS_ATTENTION)
            if network.resblock_updown:
                modules |= _inside(f"{way}_{level}_resample", f"{folder}.{change}", _DIFFUSERS_BLOCK)
            else:
                modules[f"{way}_{level}_resample"] = (f"{folder}.{change}.conv",)
    return modules


def _dit(network: DiT) -> dict[str, tuple[str, ...]]:
    modules = {
        "patch": ("x_embedder.proj",),
        "level/Dense_0": ("t_embedder.mlp.0",),
        "level/Dense_1": ("t_embedder.mlp.2",),
        "label": ("y_embedder.embedding_table",),
        "final_modulation": ("final_layer.adaLN_modulation.1",),
        "final": ("final_layer.linear",),
    }
    for index in range(network.depth):
        parts = {
            "modulation": ("adaLN_modulation.1",),
            "qkv": ("attn.qkv",),
            "attention_out": ("attn.proj",),
            "mlp_in": ("mlp.fc1",),
            "mlp_out": ("mlp.fc2",),
        }
        modules |= _inside(f"block_{index}", f"blocks.{index}", parts)
    return modules


def _diffusers_dit(network: DiT) -> dict[str, tuple[str, ...]]:
    """diffusers gives every block its own embedders of level and class; as published all are equal."""
    embedders = [f"transformer_blocks.{index}.norm1.emb" for index in range(network.depth)]
    modules = {
        "patch": ("pos_embed.proj",),
        "level/Dense_0": tuple(f"{embedder}.timestep_embedder.linear_1" for embedder in embedders),
        "level/Dense_1": tuple(f"{embedder}.timestep_embedder.linear_2" for embedder in embedders),
        "label": tuple(f"{embedder}.class_embedder.embedding_table" for embedder in embedders),
        "final_modulation": ("proj_out_1",),
        "final": ("proj_out_2",),
    }
    for index in range(network.depth):
        parts = {
            "modulation": ("norm1.linear",),
            "qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
            "attention_out": ("attn1.to_out.0",),
            "mlp_in": ("ff.net.0.proj",),
            "mlp_out": ("ff.net.2",),
        }
        modules |= _inside(f"block_{index}", f"transformer_blocks.{index}", parts)
    return modules


_SOURCES: Mapping[str, Callable[[Any], dict[str, tuple[str, ...]]]] = {
    "ADM": _adm,
    "diffusers UNet2DModel": _diffusers_unet,
    "DiT": _dit,
    "diffusers DiTTransformer2DModel": _diffusers_dit,
}


# ------------------------------------------------------------------------------------------------------------------ checks


def _check_names_and_shapes(path, layout, state, entries, constants, network):
    shapes = {source: entry.shapes for entry in entries.values() for source in entry.sources}
    missing = sorted(shapes.keys() - state.keys())
    unexpected = sorted(state.keys() - shapes.keys() - constants)
    misshapen = [
        f"{name} is {list(state[name].shape)}, the network needs {list(shapes[name][0])}"
        for name in sorted(shapes.keys() & state.keys())
        if state[name].shape not in shapes[name]
    ]
    lists = {"missing": missing, "unexpected": unexpected, "wrongly shaped": misshapen}
    if any(lists.values()):
        found = "; ".join(f"{len(names)} {what}: {_shortened(names)}" for what, names in lists.items() if names)
        raise WeightsError(f"{path} (layout: {layout}) does not fit {' '.join(repr(network).split())}. {found}")


def _shortened(names):
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _check_positions(path, name, positions, network, example_shape):
    """Position vectors are constants here; those of another picture size say nothing about this one."""
    rows, columns = (size // network.patch_size for size in example_shape[1:3])
    if positions.size != rows * columns * network.hidden:
        return
    ours = positions_2d(rows, columns, network.hidden)
    if not np.allclose(positions.reshape(ours.shape), ours, atol=1e-4):
        raise WeightsError(f"{path}: {name} holds other position vectors than the fixed sines and cosines of DiT")
