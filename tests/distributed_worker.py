"""One process of several, started by ``test_distributed``: what it is to do comes as JSON, what it found goes to an .npz file."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxad.data import PictureFiles, image_batches
from jaxad.denoisers import MLP
from jaxad.detectors import DiffusionDetector, ImageDetector, fitting
from jaxad.detectors.persistence import save_detector
from jaxad.runtime import distributed
from jaxad.runtime.runs import RunDirectory
from jaxad.runtime.sharding import data_mesh

ROWS = np.random.default_rng(0).normal(size=(300, 6)) * np.arange(1, 7)
NEW = np.random.default_rng(1).normal(size=(70, 6)) * np.arange(1, 7) * 2


def make(**settings: Any) -> DiffusionDetector:
    """A small detector; on one process it is fitted in the test itself."""
    return DiffusionDetector(MLP(width=32, depth=2), num_steps=150, batch_size=64, **settings)


def outcome(detector: DiffusionDetector) -> dict[str, np.ndarray]:
    """What several processes should have in common with one."""
    leaves = {f"params.{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(detector.scorer_.params))}
    found = {"losses": detector.losses_, "held_out": detector.validation_losses_, "scores": detector.score_samples(NEW)}
    return leaves | found


def fit(task: dict[str, Any]) -> dict[str, np.ndarray]:
    """A fit on all devices of all processes; the process ``kill`` kills itself (or is told to stop) at the second look at the losses."""
    keep, looks = fitting._keep, iter(range(1))

    def dying(*arguments):
        if next(looks, None) is None and jax.process_index() == task.get("kill"):
            os.kill(os.getpid(), getattr(signal, task["signal"]))
        keep(*arguments)

    fitting._keep = dying
    run_dir = None if task.get("run_dir") is None else RunDirectory(task["run_dir"], minutes=0)
    # Every process reads its own rows.
    rows = distributed.rows_of_all(np.array_split(ROWS, jax.process_count())[jax.process_index()])
    if not np.array_equal(rows, ROWS):
        raise ValueError("the rows of all processes are not those that were dealt out")
    mesh = data_mesh()
    if task.get("refused") == jax.process_index():
        raise ValueError("this process does not like its rows")
    detector = make(mesh=mesh, shard_parameters=task.get("cut", False), run_dir=run_dir, verbose=1).fit(rows)
    save_detector(detector, task["model"])
    return outcome(detector) | {"devices": np.array([mesh.size, len(jax.local_devices())])}


def pictures(task: dict[str, Any]) -> dict[str, np.ndarray]:
    """An image detector on files of which every process decodes its own part of each batch."""
    read = []

    class Counted(PictureFiles):
        def _like_first(self, file):
            read.append(file)
            return super()._like_first(file)

    files = Counted(task["folder"])
    count, me = jax.process_count(), jax.process_index()
    part = next(image_batches(files, batch_size=8, seed=3, part=(me, count)))
    num_read = len(read)
    detector = ImageDetector(num_steps=20, batch_size=8, mesh=data_mesh()).fit(files)
    found = {"losses": detector.losses_, "scores": detector.score_samples(files), "maps": detector.where(files)}
    return found | {"part": part, "num_read": np.array(num_read)}


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    with distributed.joined(task["coordinator"], task["processes"], task["process"], timeout=task["timeout"]):
        found = {"fit": fit, "pictures": pictures}[task["what"]](task)
        np.savez(Path(task["out"]), **found)
    sys.stdout.write("done\n")
