"""Is everything right on a GPU, and how fast is it there?

    python -m experiments.gpu --data-dir ../shared/data                 # one GPU, at most nine minutes
    python -m experiments.gpu --tiny --out runs/tiny/results.jsonl      # small shapes on two CPU cores, about three minutes

One process and six checks, the most important ones first: what a lent machine has no time for is lost at the end of the list.

1. scores on the GPU equal those on the processor; 2. DiT and U-Net against diffusers under ``torch.compile``; 3. the recommended
detector on ten sets, kNN among 20,000 and 1,000,000 rows; 4. five seeds as one program; 5. DDPM, DiT, DTE-C on all sets found; 6. pictures
a second of DiT-S to DiT-XL.

Every result is a line of ``--out`` that is on disk before the next one begins, with device, versions and commit; the run may be cut
anywhere (SIGTERM, Ctrl-C, ``timeout``, a machine taken away). Nothing is fetched: docs/benchmarks.md says what to bring to a
machine without a network. Expected: no ``error`` in any line.

Exit codes: 0, or 1 if a line has an ``error``, 75 if the run was told to stop.
"""

import faulthandler
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments.on_gpu import correctness, networks, tables
from experiments.on_gpu.watch import GRACE, Interrupted, Records, Watch, failure, read_records
from jaxad.cli import exit_on_user_error
from jaxad.evaluation import current_commit, device_name
from jaxad.runtime.runs import STOPPED


@dataclass(frozen=True)
class Config:
    checks: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    """Numbers of the checks, in this order."""
    out: Path = Path("runs/gpu/results.jsonl")
    """File of records; it grows."""
    data_dir: Path | None = None
    """Folder with adbench/<group>/<name>.npz; default: JAXAD_DATA_DIR, else ~/.cache/jaxad."""
    seconds: float = 500.0
    """Of the whole run; what has not ended 16 seconds later is ended. A longer run gives every check more."""
    tiny: bool = False
    """Small shapes, to try the program where there is no GPU."""
    commit: str = ""
    """For the records, where the checkout was copied without its .git."""
    carry: Path | None = None
    """Only copy the data sets that the checks read into this folder, to be taken to another machine."""
    run_id: str = ""
    """The program sets it when it starts itself anew."""


@dataclass(frozen=True)
class Check:
    name: str
    seconds: float
    """Its share of the run, with what the checks before it left over."""
    run: Callable[[bool, float], Iterator[dict[str, Any]]]
    """``(tiny, seconds there are) -> records``, each with ``name`` and ``numbers``."""


def all_checks(data_dir: Path | None) -> dict[int, Check]:
    """By number, in order of worth; together 500 s."""
    return {
        1: Check("correctness", 95, correctness.check),
        2: Check("against diffusers", 145, networks.against_diffusers),
        3: Check("recommended, kNN", 95, partial(tables.recommended_and_neighbours, data_dir=data_dir)),
        4: Check("five seeds", 35, networks.seeds_together),
        5: Check("ADBench", 70, partial(tables.trained_detectors, data_dir=data_dir)),
        6: Check("sizes of DiT", 60, networks.sizes_of_dit),
    }


def run(
    config: Config,
    checks: Sequence[Check] | None = None,
    *,
    give_up: Callable[[Records, str, bool], None] | None = None,
) -> list[dict[str, Any]]:
    """The records of this run, also appended to ``config.out``; an error ends what raised it and nothing else.

    Raises:
        ValueError: a number that no check has.
    """
    began = time.monotonic()
    if checks is None:
        checks = chosen(config)
    records = Records(config.out, about(config))
    current, share, longer = "", 0.0, max(config.seconds / Config.seconds, 1.0)
    with Watch(None if give_up is None else lambda told: give_up(records, current, told)) as watch:
        for check in checks:
            if watch.stopped is not None:
                break
            current, share = check.name, share + check.seconds * longer
            deadline = began + min(share, config.seconds)
            for record in _records_of(check, config.tiny, watch, deadline):
                records.write({"check": check.name, **record})
                print(line({"check": check.name, **record}), flush=True)
        if watch.stopped is not None:
            name = watch.stopped.name
            records.write({"check": current, "name": "stopped", "stopped": name, "cut": f"told to stop ({name})"})
    records.close()
    return read_records(config.out, config.run_id)


def _records_of(check: Check, tiny: bool, watch: Watch, deadline: float) -> Iterator[dict[str, Any]]:
    """What a check yields until its deadline or a signal; at the end of a check that was cut a record that says so."""
    began = last = time.monotonic()
    if began >= deadline:
        yield {"name": "cut", "cut": "not begun: no time was left"}
        return
    found = check.run(tiny, deadline - began)
    while True:
        try:
            record = watch.step(found, deadline)
        except Interrupted:
            record = None
            if watch.stopped is None:
                yield {
                    "name": "cut",
                    "cut": f"time limit after {time.monotonic() - began:.0f} s",
                    "seconds": _since(last),
                }
        except Exception as error:
            record = None
            yield {"name": "failed", "error": failure(error), "seconds": _since(last)}
        if record is None:
            return
        yield {"seconds": _since(last), **record}
        last = time.monotonic()


def _since(moment: float) -> float:
    return round(time.monotonic() - moment, 3)


def chosen(config: Config) -> list[Check]:
    """The checks that are asked for."""
    known = all_checks(config.data_dir)
    unknown = [number for number in config.checks if number not in known]
    if unknown:
        raise ValueError(f"there is no check {unknown[0]}: choose among {', '.join(map(str, known))}")
    return [known[number] for number in config.checks]


def about(config: Config) -> dict[str, Any]:
    """What all records of a run say."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn", "torch", "diffusers")
    installed = {package: _version(package) for package in packages}
    return {
        "run": config.run_id,
        "tiny": config.tiny,
        "device": device_name(),
        "versions": {"python": platform.python_version(), **installed},
        "commit": config.commit or current_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ----------------------------------------------------------------------------------------------------------------------- table


def line(record: dict[str, Any]) -> str:
    """A record in one line of plain text."""
    outcome = record.get("error") or record.get("cut") or ", ".join(_flat(record.get("numbers", {})))
    mark = "ERROR " if "error" in record else ""
    return f"{record['check']:<18} {record['name']:<32} {record.get('seconds', 0):>7.1f} s  {mark}{outcome}"


def _flat(numbers: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in numbers.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name} {value:.4g}"
        elif isinstance(value, int):
            yield f"{prefix}{name} {value}"


def table(records: list[dict[str, Any]]) -> str:
    """All records of a run, and how many there are of each kind."""
    errors, cuts = (sum(key in record for record in records) for key in ("error", "cut"))
    device = records[0]["device"] if records else ""
    total = f"{len(records)} records on {device}: {errors} errors, {cuts} cut"
    return "\n".join([*map(line, records), total])


def print_table(config: Config) -> int:
    """The table of what is on disk, and the exit code: 1 if a record has an error."""
    records = read_records(config.out, config.run_id)
    print(f"\n{table(records)}\nrecords: {config.out}", flush=True)
    return int(any("error" in record for record in records))


# --------------------------------------------------------------------------------------------------------------------- process


def end_or_start_anew(config: Config, began: float, records: Records, current: str, told: bool) -> None:
    """The main thread does not come back: end the process if it was told to stop, else go on without this check.

    Called in a thread. ``exec`` keeps the process's number, by which ``timeout`` and the user know it, and frees the device.
    """
    if told:
        records.write(
            {"check": current, "name": "stopped", "stopped": "signal", "cut": "told to stop within a long call"}
        )
        print_table(config)
        os._exit(STOPPED)
    records.write(
        {
            "check": current,
            "name": "cut",
            "cut": "a call did not end at the time limit: started anew without this check",
        }
    )
    names = {number: check.name for number, check in all_checks(None).items()}
    order = [names[number] for number in config.checks]
    left = config.checks[order.index(current) + 1 :]
    seconds = config.seconds - (time.monotonic() - began)
    if not left or seconds < 10:
        os._exit(print_table(config))
    arguments = ["--checks", *map(str, left), "--out", str(config.out), "--seconds", str(round(seconds))]
    arguments += ["--run-id", config.run_id] + (["--tiny"] if config.tiny else [])
    arguments += ["--commit", config.commit] if config.commit else []
    arguments += ["--data-dir", str(config.data_dir)] if config.data_dir else []
    signal.setitimer(signal.ITIMER_REAL, 0)  # a timer outlives exec, its handler does not
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2:
            try:
                os.set_inheritable(number, False)  # or the new program would hold the device's memory of the old one
            except OSError:  # closed since it was listed
                continue
    os.execv(sys.executable, [sys.executable, "-m", "experiments.gpu", *arguments])


def prepare_devices(tiny: bool) -> None:
    """The processor stays a device beside the GPU, whose memory is shared with PyTorch; what is tiny is compiled without optimisation."""
    asked = os.environ.get("JAX_PLATFORMS")
    if asked and "cpu" not in asked.split(","):
        jax.config.update("jax_platforms", f"{asked},cpu")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if tiny:
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")


def main() -> int:
    """The exit code."""
    began = time.monotonic()
    config = tyro.cli(Config, description=__doc__)
    if config.carry is not None:
        copied = tables.carry(config.data_dir, config.carry)
        size = sum(path.stat().st_size for path in copied) / 2**20
        print(f"{len(copied)} data sets, {size:.1f} MiB, are in {config.carry}")
        return 0
    config = replace(config, run_id=config.run_id or time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()))
    prepare_devices(config.tiny)
    # The last resort: a thread in C, for a call that lets no other thread run.
    faulthandler.dump_traceback_later(config.seconds + 2 * GRACE, exit=True)
    records = run(config, give_up=partial(end_or_start_anew, config, began))
    code = print_table(config)
    if any("stopped" in record for record in records):
        os._exit(STOPPED)  # without waiting for the threads of libraries
    return code


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
