"""Does a training that is killed at any moment end with the parameters it would have had, and a sweep with its records?

    python -m experiments.kill --kills 200

A fit of a small diffusion detector that saves at every look is killed by SIGKILL: half of the times at a random moment, half while a
checkpoint is being written. The same fit is then started again on the same run directory, and its final parameters are compared, to the
bit, with those of a fit never touched. The same for a sweep of fast detectors, of which at most the cell in flight is lost. Every fit
is a process of its own, forked from this one before JAX is started here. Written to ``experiments/results/kill.jsonl``.
Expected: every line identical.
"""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

from jaxad import data
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.denoisers import MLP
from jaxad.detectors import DiffusionDetector
from jaxad.detectors.catalogue import choose
from jaxad.evaluation import current_commit, sweep
from jaxad.runtime.runs import RunDirectory, digest


@dataclass(frozen=True)
class Config:
    kills: int = 200
    """Of the training."""
    sweep_kills: int = 20
    """Of the sweep."""
    num_steps: int = 1000
    seed: int = 0
    """Of the moments."""
    out: Path = Path(__file__).parent / "results" / "kill.jsonl"


def run(config: Config) -> list[dict]:
    """One record per kill of this run."""
    rng = np.random.default_rng(config.seed)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        started = time.perf_counter()
        finished(partial(train, config, None, work / "expected"))  # compiles; the second one tells how long a fit takes
        started = time.perf_counter()
        finished(partial(train, config, work / "whole", work / "again"))
        seconds = time.perf_counter() - started
        expected = (work / "expected").read_text()
        assert_equal((work / "again").read_text(), expected, "two fits that nobody touched")
        for number in range(config.kills):
            while_saving = number % 2 == 1
            place, result = work / f"run_{number}", work / f"result_{number}"
            hit = killed(
                partial(train, config, place, result), seconds * rng.random(), place if while_saving else None, rng
            )
            torn = len([*place.glob(".jaxad-*")]) if place.exists() else 0
            saved = max((int(path.name[5:]) for path in place.glob("step_*")), default=0) if place.exists() else 0
            finished(partial(train, config, place, result))
            records.append(
                append(
                    config,
                    {
                        "what": "training",
                        "aimed_at": "a save" if while_saving else "any moment",
                        "killed": hit,
                        "saves_torn": torn,
                        "step_saved": saved,
                        "identical": result.read_text() == expected,
                    },
                )
            )
        started = time.perf_counter()
        finished(partial(cells, work / "sweep"))
        seconds = time.perf_counter() - started
        whole = outcome(work / "sweep")
        for number in range(config.sweep_kills):
            place = work / f"sweep_{number}"
            hit = killed(partial(cells, place), seconds * rng.random(), None, rng)
            kept = len(outcome(place)) if place.exists() else 0
            finished(partial(cells, place))
            row = {"what": "sweep", "killed": hit, "cells_kept": kept, "identical": outcome(place) == whole}
            records.append(append(config, row))
    show(records)
    return records


def train(config: Config, place: Path | None, result: Path) -> None:
    """A fit from whatever ``place`` holds; the digest of its parameters goes to ``result``."""
    rows = np.random.default_rng(0).normal(size=(300, 6))
    run_dir = None if place is None else RunDirectory(place, minutes=0)
    detector = DiffusionDetector(
        MLP(width=64, depth=2), num_steps=config.num_steps, batch_size=32, run_dir=run_dir
    ).fit(rows)
    leaves = [detector.losses_, detector.validation_losses_]
    import jax

    result.write_text(digest(*leaves, *jax.tree.leaves(detector.scorer_.params), detector.score_samples(rows)))


def cells(place: Path) -> None:
    """A sweep of fast detectors over the sets of scikit-learn."""
    loaders = {name: partial(data.builtin, name) for name in ("wine_0", "breast_cancer", "digits_3")}
    sweep.run(loaders, choose(("knn", "ecod", "iforest", "mahalanobis")), out=place, protocol="clean", seeds=(0, 1))


def outcome(place: Path) -> dict:
    """AUROC of every cell that is on record."""
    return {record.cell: record.auroc for record in sweep.read_results(place)}


def start(work: Callable[[], None]) -> int:
    """``work`` in a process of its own: its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        use_compilation_cache()
        work()
        code = 0
    finally:
        os._exit(code)


def finished(work: Callable[[], None]) -> None:
    """Run ``work`` to its end."""
    _, status = os.waitpid(start(work), 0)
    if status:
        raise RuntimeError(f"the process ended with status {status}")


def killed(work: Callable[[], None], seconds: float, saving_in: Path | None, rng) -> bool:
    """SIGKILL after so many seconds, or inside one of the saves in ``saving_in``; False if the process was faster."""
    child, saves, at = start(work), int(rng.integers(1, 12)), time.perf_counter() + seconds
    seen: set[str] = set()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if saving_in is None:
            due = time.perf_counter() >= at
        else:
            seen |= {
                name
                for name in (os.listdir(saving_in) if saving_in.exists() else ())
                if name.startswith(".jaxad-saving-")
            }
            due = len(seen) >= saves
            if due:
                time.sleep(0.03 * rng.random())
        if due:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1] == signal.SIGKILL
        time.sleep(0.0005)
    return False


def assert_equal(found: str, expected: str, what: str) -> None:
    """A comparison means nothing where the fit itself is not deterministic."""
    if found != expected:
        raise RuntimeError(f"{what} differ: {found} and {expected}")


def append(config: Config, row: dict) -> dict:
    """One record."""
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with config.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "commit": current_commit()}) + "\n")
    return row


def show(records: list[dict]) -> None:
    """Counts."""
    console = Console(width=160, highlight=False)
    for what in dict.fromkeys((row["what"], row.get("aimed_at", "any moment")) for row in records):
        chosen = [row for row in records if (row["what"], row.get("aimed_at", "any moment")) == what]
        hit = [row for row in chosen if row["killed"]]
        console.print(
            f"{what[0]}, aimed at {what[1]}: {len(hit)} of {len(chosen)} processes killed, "
            f"{sum(row.get('saves_torn', 0) > 0 for row in hit)} inside a save; "
            f"resumed and identical: {sum(row['identical'] for row in chosen)}"
        )


if __name__ == "__main__":
    with exit_on_user_error():
        run(tyro.cli(Config, description=__doc__))
