"""Are our U-Net and DiT as fast as diffusers' in PyTorch, at equal shapes and precision?

    python -m experiments.speed_images                   # 2 CPU cores, about five minutes

One training step (loss, gradients, Adam) and one-jump scoring of a batch at eight noise levels, float32, 28 or 32 pixels, the networks
that coincide in both libraries (tests/test_unet.py, tests/test_dit_parity.py). Alternating in one process: ours, theirs, ours, ...;
medians, first calls apart. PyTorch runs eagerly. Written to ``experiments/results/speed_images.jsonl``; expected: docs/images.md. The
comparison with ``torch.compile`` on a GPU, in half precision, is a check of `experiments.gpu`.
"""

import json
import os
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from jaxad import noise, scoring, training
from jaxad.cli import exit_on_user_error
from jaxad.denoisers import DiT, UNet
from jaxad.denoising import make_denoiser
from jaxad.evaluation import current_commit, device_name, versions


@dataclass(frozen=True)
class Config:
    networks: tuple[str, ...] = ("dit", "unet")
    """Which of dit and unet."""
    batch_size: int = 64
    """Pictures of a step, and of a scored batch."""
    levels: int = 8
    """Noise levels of a score."""
    rounds: int = 5
    """Alternations; medians are over these."""
    out: Path = Path(__file__).parent / "results" / "speed_images.jsonl"
    """File of records."""


NETWORKS = {
    "dit": (DiT(hidden=128, depth=4, heads=4, patch_size=4, num_classes=1, frequency_shift=1.0), (28, 28, 1)),
    "unet": (
        UNet(
            channels=32,
            multipliers=(1, 2),
            blocks=1,
            attention=(),
            head_channels=32,
            resblock_updown=False,
            scale_shift=False,
            frequency_shift=1.0,
        ),
        (32, 32, 1),
    ),
}


def run(config: Config) -> list[dict]:
    """A record per network and task, also appended to ``config.out``."""
    records = []
    for name in config.networks:
        network, shape = NETWORKS[name]
        x = np.random.default_rng(0).normal(size=(config.batch_size, *shape)).astype(np.float32)
        ours, our_count = our_tasks(network, x, config.levels)
        theirs, their_count = their_tasks(network, x, config.levels)
        for task in ours:
            first = {"jaxad": timed(ours[task]), "diffusers": timed(theirs[task])}
            times = {"jaxad": [], "diffusers": []}
            for _ in range(config.rounds):
                times["jaxad"].append(timed(ours[task]))
                times["diffusers"].append(timed(theirs[task]))
            median = {library: float(np.median(taken)) for library, taken in times.items()}
            record = {
                "network": name,
                "task": task,
                "batch_size": config.batch_size,
                "seconds": median,
                "first_call_seconds": first,
                "ratio": median["diffusers"] / median["jaxad"],
                "parameters": {"jaxad": our_count, "diffusers": their_count},
                "load_average": os.getloadavg()[0],
                "cores": len(os.sched_getaffinity(0)),
                "commit": current_commit(),
                "device": device_name(),
                "versions": versions(),
            }
            records.append(record)
            with config.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            Console().print(
                f"{name}, {task}: ours {1000 * median['jaxad']:.0f} ms, diffusers {1000 * median['diffusers']:.0f} ms, "
                f"ratio {record['ratio']:.2f}; "
                f"first call {first['jaxad']:.1f} s and {first['diffusers']:.1f} s",
                highlight=False,
                soft_wrap=True,
            )
    return records


def timed(task) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def our_tasks(network, x, num_levels):
    """``({task: function without arguments}, number of parameters)``."""
    optimizer = training.adam(1e-3)
    loss = training.simple_loss(network, noise.NOISE)
    schedule = noise.cosine(1000).to(jnp.float32)
    levels = noise.log_uniform(max(num_levels, 2))[:num_levels].to(jnp.float32)
    step = jax.jit(
        lambda state, rows: training.train_step(state, rows, schedule, loss=loss, optimizer=optimizer), donate_argnums=0
    )
    state = [training.init_state(jax.random.key(0), network, optimizer, x[:1], jnp.zeros(1))]
    score = jax.jit(
        lambda params, rows: scoring.reconstruction_error(
            jax.random.key(0), make_denoiser(network, params, noise.NOISE), rows, levels, memory_budget=rows.nbytes
        )
    )
    rows, params = jnp.asarray(x), jax.tree.map(jnp.copy, state[0].params)

    def train():
        state[0], value = step(state[0], rows)
        value.block_until_ready()

    return {"train step": train, "score": lambda: score(params, rows).block_until_ready()}, sum(
        p.size for p in jax.tree.leaves(params)
    )


def their_model(network, shape) -> Any:
    """diffusers' network of the same function as ``network``, a DiT or a U-Net, on pictures of ``shape``."""
    diffusers: Any = import_module("diffusers")
    size, channels = shape[0], shape[-1]
    if isinstance(network, DiT):
        return diffusers.DiTTransformer2DModel(
            num_attention_heads=network.heads,
            attention_head_dim=network.hidden // network.heads,
            in_channels=channels,
            out_channels=channels,
            num_layers=network.depth,
            sample_size=size,
            patch_size=network.patch_size,
            num_embeds_ada_norm=1,
            norm_eps=1e-6,
        )
    kinds = ["Attn" if factor in network.attention else "" for factor in network.factors]
    return diffusers.UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(network.channels * multiplier for multiplier in network.multipliers),
        layers_per_block=network.blocks,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        attention_head_dim=network.head_channels,
        norm_num_groups=network.groups,
    )


def their_tasks(network, x, num_levels, *, device: str = "cpu", half: bool = False, compiled: bool = False):
    """The same with diffusers, whose U-Net and DiT are the same functions (but for DiT's embedders, one per block).

    ``half`` computes in bfloat16 by autocast, parameters in float32, as our ``dtype`` does; ``compiled`` is ``torch.compile``.
    """
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    on_gpu = device != "cpu"
    model: Any = their_model(network, x.shape[1:]).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    clean = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).to(device)
    if on_gpu and isinstance(network, UNet):  # how cuDNN likes its convolutions
        model, clean = model.to(memory_format=torch.channels_last), clean.to(memory_format=torch.channels_last)
    call: Any = torch.compile(model) if compiled else model
    labels = {"class_labels": torch.zeros(len(x), dtype=torch.long, device=device)} if isinstance(network, DiT) else {}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=on_gpu)
    cosine = noise.cosine(1000)
    alpha, sigma = (
        torch.from_numpy(np.asarray(values, np.float32)).to(device) for values in (cosine.alpha, cosine.sigma)
    )

    def predict(noisy, steps):
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return call(noisy, timestep=steps, **labels).sample.float()

    def finish():
        if on_gpu:
            torch.cuda.synchronize()

    def train():
        model.train()
        steps = torch.randint(0, 1000, (len(clean),), device=device)
        eps = torch.randn_like(clean)
        noisy = alpha[steps, None, None, None] * clean + sigma[steps, None, None, None] * eps
        loss = ((predict(noisy, steps) - eps) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        finish()

    def score():
        model.eval()
        with torch.no_grad():
            for step in np.linspace(50, 950, num_levels).astype(int):
                steps = torch.full((len(clean),), int(step), device=device)
                noisy = alpha[step] * clean + sigma[step] * torch.randn_like(clean[:1])
                ((noisy - sigma[step] * predict(noisy, steps)) / alpha[step] - clean).square().mean(dim=(1, 2, 3))
        finish()

    return {"train step": train, "score": score}, parameters


if __name__ == "__main__":
    with exit_on_user_error():
        run(tyro.cli(Config, description=__doc__))
