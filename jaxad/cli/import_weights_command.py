"""``jaxad import-weights``."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxad.cli.terminal import found_at, plain_console


def import_weights(
    weights: Annotated[Path, tyro.conf.Positional],
    out: Path,
    network: str,
    size: int,
    channels: int = 3,
) -> None:
    """Turn published weights (.safetensors or .msgpack) into parameters of jaxad's U-Net or DiT, checked by name and shape.

    Args:
        weights: .safetensors of diffusers' UNet2DModel or DiTTransformer2DModel, of guided-diffusion (ADM) or the original DiT, or
            .msgpack of diffusers' former Flax U-Nets. Pickles (.pt, .bin) are refused.
        out: .safetensors file to write, one array per parameter, its name the path in the tree.
        network: a JSON object with "class" ("UNet" or "DiT") and its fields, for example
            '{"class": "DiT", "hidden": 1152, "depth": 28, "heads": 16, "patch_size": 2, "num_classes": 1000, "learned_variance": true}'.
        size: height and width of its input in pixels (latents, where it was trained on those).
        channels: of its input.
    """
    if not weights.is_file():
        raise ValueError(f"{weights}: expected a file of weights, found {found_at(weights)}; check the path")
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out}: expected the name of a file in a folder that exists")
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save_file

    from jaxad.denoisers import DiT, UNet
    from jaxad.denoisers.weights import load_weights
    from jaxad.runtime.files import put, unfinished

    try:
        fields = json.loads(network)
        chosen = {"UNet": UNet, "DiT": DiT}[fields.pop("class")]
        made = chosen(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--network: expected a JSON object with class UNet or DiT and its fields, got {network!r} ({error})"
        ) from error
    params = load_weights(weights, made, (1, size, size, channels))
    flat = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(params).items()}
    partial_file = unfinished(out)
    save_file(flat, partial_file)
    put(partial_file, out)
    total = sum(leaf.size for leaf in flat.values())
    plain_console().print(f"{len(flat)} arrays, {total:,} parameters, all matched; written to {out}")
