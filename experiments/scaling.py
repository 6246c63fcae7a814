"""What does a training step compute and send, on 1 to 8 simulated devices and on 1, 2 and 4 processes, and does the cost model know it?

    python -m experiments.scaling

Every line of ``experiments/results/scaling.jsonl`` is one way to train one network: the FLOPs, bytes of state and bytes of collectives
that the model of docs/scaling.md predicts, those of the program that XLA has compiled for one device, and steps per second. Simulated
devices and local processes share the cores of one machine: their speed shows what splitting a step costs, not what more machines would
gain. Expected: FLOPs within 10 %, bytes of state within 1 %, bytes of collectives within 1 %, but no more than predicted for the cut
state of a table. Runtime: about 5 minutes on 2 cores.
"""

import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxad.cli import exit_on_user_error
from jaxad.evaluation import current_commit

BYTES = 4
"""Of a number: training is in float32."""

SAMPLES: dict[str, tuple[int, ...]] = {"mlp": (32,), "dit": (16, 16, 1)}
PATCH = 4

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"


@dataclass(frozen=True)
class Config:
    networks: tuple[str, ...] = ("mlp", "dit")
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Simulated, in one process."""
    processes: tuple[int, ...] = (1, 2, 4)
    """Of one device each."""
    batch_size: int = 64
    num_steps: int = 40
    """To time, after as many that are not."""
    out: Path = Path(__file__).parent / "results" / "scaling.jsonl"
    task: str | None = None
    """What one of the processes that this script starts is to do (JSON)."""


# ---------------------------------------------------------------------------------------------------------------------- the model


def predicted(network: str, params: Any, batch_size: int, devices: int, cut: bool) -> dict[str, float]:
    """What the cost model says of a step on one of so many devices.

    - A kernel of K numbers costs 2 K FLOPs forward and 4 K backward, for every row, in a transformer for every patch of it; attention
      among T patches of width h 4 T^2 h forward. The optimizer and the average cost 20 FLOPs for a parameter.
    - The state is parameters, average and Adam's two moments.
    - A state on all devices: one all-reduce of the gradients, and one that hands out the rows of the batch. A state that is cut: every
      parameter is gathered for the step, and its gradient reduced.
    """
    import jax

    patches = 1 if network == "mlp" else math.prod(SAMPLES[network][:2]) // PATCH**2
    forward = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.ndim == 2:
            name = jax.tree_util.keystr(path)
            of_level = network == "dit" and ("modulation" in name or "level" in name)
            forward += 2 * leaf.size * (1 if of_level else patches)
            if "qkv" in name:
                forward += 4 * patches**2 * leaf.shape[0]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    cuttable = sum(leaf.size for leaf in jax.tree.leaves(params) if any(length % devices == 0 for length in leaf.shape))
    whole = size - cuttable if cut else size
    held = whole + (cuttable / devices if cut else 0)
    rows = batch_size * math.prod(SAMPLES[network])
    sent = 0 if devices == 1 else (2 * cuttable + whole if cut else size) + rows
    return {
        "flops": 3 * forward * batch_size / devices + 20 * held,
        "state_bytes": 4 * held * BYTES,
        "collective_bytes": sent * BYTES,
    }


# ---------------------------------------------------------------------------------------------------------------- what XLA compiled

_SHAPE = re.compile(r"(f32|s32|u32|pred)\[([\d,]*)\]")
_WIDTH = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}
_COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\((.*)"
)


def collectives(program: str) -> dict[str, dict[str, int]]:
    """Number and bytes of the collectives of a compiled program, each counted once: of its result, for a reduce-scatter of what goes in."""
    found: dict[str, dict[str, int]] = {}
    for line in program.splitlines():
        match = _COLLECTIVE.search(line)
        if match:
            result, kind, operands = match.groups()
            shapes = _SHAPE.findall(operands if kind == "reduce-scatter" else result)
            size = sum(_WIDTH[kind_] * math.prod(int(n) for n in dims.split(",") if n) for kind_, dims in shapes)
            entry = found.setdefault(kind, {"count": 0, "bytes": 0})
            entry["count"] += 1
            entry["bytes"] += size
    return found


# ------------------------------------------------------------------------------------------------------------------- one process


def work(config: Config, task: dict[str, Any]) -> dict[str, Any] | None:
    """Train on all devices there are; the main process tells what it found."""
    import jax
    import jax.numpy as jnp

    from jaxad import noise, training
    from jaxad.denoisers import MLP, DiT
    from jaxad.runtime import distributed, sharding

    network: Any = MLP(width=256, depth=3) if task["network"] == "mlp" else DiT(64, depth=2, heads=2, patch_size=PATCH)
    mesh, cut = sharding.data_mesh(), task["cut"]
    rows = np.random.default_rng(0).normal(size=(1024, *SAMPLES[task["network"]])).astype(np.float32)
    optimizer = training.adam(1e-3)
    inputs: Any = (rows[:1], np.zeros(1, np.float32))
    init = partial(training.init_state, jax.random.key(0), network, optimizer, *inputs)
    params = jax.eval_shape(init).params
    state = (sharding.shard_parameters if cut else sharding.replicate)(init(), mesh)
    arguments = (sharding.shard_batch(rows, mesh), jnp.int32(len(rows)), noise.cosine(1000).to(jnp.float32))
    options = {
        "loss": training.simple_loss(network),
        "optimizer": optimizer,
        "batch_size": config.batch_size,
        "num_steps": 1,
        "sharding": sharding.batch_sharding(mesh),
    }
    one_step = training.train_chunk.lower(state, *arguments, **options).compile()
    costs: Any = one_step.cost_analysis()
    state_bytes = sum(
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state))
    )
    seconds, losses = 0.0, jnp.zeros(1)
    for _ in range(2):  # the first time warms up
        started = time.perf_counter()
        for _ in range(config.num_steps):
            state, losses = one_step(state, *arguments)
            losses.block_until_ready()
        seconds = time.perf_counter() - started
    if not distributed.is_main():
        return None
    seen = collectives(one_step.as_text() or "")
    return {
        "network": task["network"],
        "processes": jax.process_count(),
        "devices": mesh.size,
        "cut": cut,
        "batch_size": config.batch_size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "predicted": predicted(task["network"], params, config.batch_size, mesh.size, cut),
        "compiled": {
            "flops": costs["flops"],
            "state_bytes": state_bytes,
            "collective_bytes": sum(entry["bytes"] for entry in seen.values()),
        },
        "collectives": seen,
        "steps_per_second": config.num_steps / seconds,
        "last_loss": float(np.asarray(losses)[-1]),
    }


def main(config: Config, task: dict[str, Any]) -> None:
    """One process of a measurement."""
    import contextlib

    from jaxad.runtime import distributed

    several = contextlib.nullcontext()
    if task["processes"] > 1:
        several = distributed.joined(task["coordinator"], task["processes"], task["process"])
    with several:
        found = work(config, task)
    if found is not None:
        print(json.dumps(found))


# ------------------------------------------------------------------------------------------------------------------- all of them


def run(config: Config) -> list[dict[str, Any]]:
    """Every way, one after the other."""
    ways = [
        (network, 1, devices, cut) for network in config.networks for devices in config.devices for cut in (False, True)
    ]
    ways += [(network, number, 1, False) for network in config.networks for number in config.processes if number > 1]
    records = []
    for network, processes, devices, cut in ways:
        if cut and devices == 1:
            continue
        record = measured(config, network, processes, devices, cut)
        record |= {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 1), "commit": current_commit()}
        records.append(record)
        config.out.parent.mkdir(parents=True, exist_ok=True)
        with config.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    show(records)
    write_page(config)
    return records


def measured(config: Config, network: str, processes: int, devices: int, cut: bool) -> dict[str, Any]:
    """Start the processes of one way and wait for them.

    Raises:
        RuntimeError: one of them failed; the message is the end of what it said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    common = ["--batch-size", str(config.batch_size), "--num-steps", str(config.num_steps)]
    task = {"network": network, "processes": processes, "cut": cut, "coordinator": address}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "experiments.scaling", *common, "--task", json.dumps({**task, "process": number})],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    said = [process.communicate() for process in started]
    for process, (_, complaint) in zip(started, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"a process ended with {process.returncode}: {complaint[-500:]}")
    return json.loads(said[0][0].strip().splitlines()[-1])


def show(records: list[dict[str, Any]]) -> None:
    """One line for each way."""
    table = Table(
        "network", "processes x devices", "state", "MFLOP", "KiB of state", "KiB sent", "collectives", "steps/s"
    )
    for record in records:
        pairs = [
            f"{record['compiled'][name] / unit:,.1f} ({record['predicted'][name] / unit:,.1f})"
            for name, unit in (("flops", 1e6), ("state_bytes", 1024), ("collective_bytes", 1024))
        ]
        kinds = ", ".join(f"{entry['count']} {kind}" for kind, entry in record["collectives"].items())
        table.add_row(
            record["network"],
            f"{record['processes']} x {record['devices'] // record['processes']}",
            "cut" if record["cut"] else "copied",
            *pairs,
            kinds,
            f"{record['steps_per_second']:.1f}",
        )
    Console(width=170).print("for one device: compiled (predicted)", table)


def write_page(config: Config) -> None:
    """The newest record of every way, as the table between the marks of docs/scaling.md."""
    records = [json.loads(line) for line in config.out.read_text(encoding="utf-8").splitlines()]
    newest = {(r["network"], r["processes"], r["devices"], r["cut"]): r for r in records}
    lines = [
        "Compiled by XLA, in brackets predicted, for one device; the speed is that of one machine's "
        f"{records[-1]['cores']} cores, which all devices and processes share (and other work, see the load before in the records):",
        "",
        "| network | processes x devices | state | MFLOP | KiB of state | KiB of collectives | their number | steps/s |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for (network, processes, devices, cut), record in sorted(newest.items()):
        pairs = [
            f"{record['compiled'][name] / unit:,.1f} ({record['predicted'][name] / unit:,.1f})"
            for name, unit in (("flops", 1e6), ("state_bytes", 1024), ("collective_bytes", 1024))
        ]
        number = sum(entry["count"] for entry in record["collectives"].values())
        told = [network, f"{processes} x {devices // processes}", "cut" if cut else "copied", *pairs]
        lines.append(f"| {' | '.join([*told, str(number), format(record['steps_per_second'], '.1f')])} |")
    before, rest = PAGE.read_text(encoding="utf-8").split("<!-- measured -->")
    after = rest.split("<!-- /measured -->")[1]
    page = [before, "<!-- measured -->\n\n", "\n".join(lines), "\n\n<!-- /measured -->", after]
    PAGE.write_text("".join(page), encoding="utf-8")


if __name__ == "__main__":
    with exit_on_user_error():
        settings = tyro.cli(Config, description=__doc__)
        if settings.task is None:
            run(settings)
        else:
            main(settings, json.loads(settings.task))
