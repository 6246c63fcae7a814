"""Run directories: a training that is stopped, killed or out of disk goes on where its last good checkpoint was.

lock                  held by the process at work: a second one is refused
step_00000400/        a checkpoint of ``jaxad.runtime.checkpoint``: the state, and what the run was asked to do
<part>/step_.../      the same for every network of a detector that trains several
events.out.tfevents.* curves for TensorBoard, if asked for
"""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxad.runtime import distributed
from jaxad.runtime.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

STOPPED = 75
"""Exit code of a run that was told to stop and has saved: ``EX_TEMPFAIL``, try again later."""

_STEP = re.compile(r"step_(\d{8})")


class RunStopped(SystemExit):
    """The run was told to stop (SIGTERM or Ctrl-C) and has saved its state; a script that does not catch it ends with ``STOPPED``."""

    def __init__(self, message: str):
        super().__init__(STOPPED)
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class RunDirectory:
    """Where a training keeps its state and how often; a plain path stands for the defaults.

    Args:
        path: a folder, made if it is missing (its parent must exist). Give every run its own.
        minutes: between two checkpoints; 0 saves whenever the losses are looked at.
        keep: so many checkpoints, the newest; at least 2, so that a damaged one has another behind it.
        tensorboard: write curves for TensorBoard too (``pip install 'jaxad[tensorboard]'``).

    Raises:
        ValueError: negative minutes or fewer than two checkpoints.
    """

    path: str | os.PathLike
    minutes: float = 5.0
    keep: int = 2
    tensorboard: bool = False

    def __post_init__(self):
        if not self.minutes >= 0 or self.keep < 2:
            raise ValueError(f"need minutes >= 0 and keep >= 2, got {self.minutes=}, {self.keep=}")


class Run:
    """An open run directory, or one part of it; made by ``open_run``."""

    def __init__(self, settings: RunDirectory, path: Path, asked: Mapping[str, str], shared: "_Shared"):
        self.settings, self.path, self._asked, self._shared = settings, path, asked, shared
        self.data_position: Any = None
        """Where in its data a training is that reads them batch by batch: a JSON value, saved with the next ``save``."""
        self._fingerprint: Mapping[str, str] = {}
        self._last_save = time.monotonic()
        self._pending: Future | None = None
        self._curves: Any = None

    def part(self, name: str) -> "Run":
        """The place of one network of several: its own checkpoints under the same lock."""
        path = self.path / name
        distributed.from_main(lambda: path.mkdir(exist_ok=True))
        return Run(self.settings, path, self._asked, self._shared)

    def restore(self, fingerprint: Mapping[str, str]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """``(arrays, content)`` of the newest sound checkpoint, None for a new run; a damaged one is passed over with a warning.

        ``fingerprint`` says in words what is trained on what (see ``digest``); it is stored with every later ``save``.

        Raises:
            CheckpointError: the directory holds another run; the message says in what they differ.
        """
        self._fingerprint = fingerprint = {**self._asked, **fingerprint}
        found = None

        def search():
            nonlocal found
            step, found = self._newest(fingerprint)
            return step

        step = distributed.from_main(search, CheckpointError)
        return load_checkpoint(self._at(step)) if found is None and step is not None else found

    def _newest(self, fingerprint):
        """``(step, (arrays, content))`` of the newest sound checkpoint, or two times None."""
        _sweep_up(self.path)
        for step in sorted(_steps(self.path), reverse=True):
            try:
                arrays, content = load_checkpoint(self._at(step))
                then = content["fingerprint"]
                different = sorted(name for name in {*then, *fingerprint} if then.get(name) != fingerprint.get(name))
            except (CheckpointError, TypeError, LookupError, AttributeError) as error:
                warnings.warn(
                    f"checkpoint {self._at(step)} is damaged ({error}); the one before is taken", stacklevel=2
                )
                continue
            if different:
                told = ", ".join(f"{name} ({then.get(name)} then, {fingerprint.get(name)} now)" for name in different)
                raise CheckpointError(
                    f"{self.path} holds another run, of other {told}; choose a new folder or remove that one"
                )
            return step, (arrays, content)
        return None, None

    def due(self) -> tuple[bool, bool]:
        """Is it time ``(to save, to stop)``? To stop is to save, too. All processes of a job get one answer, and ask together."""
        save = self.stopping or time.monotonic() - self._last_save >= 60 * self.settings.minutes
        save, stop = distributed.any_process([save, self.stopping])
        return save, stop

    @property
    def stopping(self) -> bool:
        """Has SIGTERM or Ctrl-C come, to this process?"""
        return self._shared.stop.is_set()

    def save(self, step: int, arrays: Mapping[str, np.ndarray], content: Mapping[str, Any]) -> None:
        """Write a checkpoint in the background (``arrays`` must be the caller's no more), and drop all but the newest few.

        Several processes save together, each what it alone holds, and wait until it is on disk.

        Raises:
            CheckpointError: the save *before* this one failed, the disk is full for instance; what was saved earlier is intact.
        """
        self.wait()
        self._last_save = time.monotonic()
        self._pending = self._shared.writer.submit(self._write, step, dict(arrays), dict(content))
        if jax.process_count() > 1:  # the state that lies on the devices is about to change
            self.wait()

    def wait(self) -> None:
        """Until the last ``save`` is on disk.

        Raises:
            CheckpointError: it failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def stop(self, step: int) -> None:
        """After the last ``save``: end the program.

        Raises:
            RunStopped: always.
        """
        self.wait()
        raise RunStopped(f"stopped at step {step}, saved in {self.path}; the same command goes on from there")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A point on every curve, if curves are wanted."""
        if not self.settings.tensorboard or not distributed.is_main():
            return
        if self._curves is None:
            from tensorboardX import SummaryWriter

            self._curves = SummaryWriter(str(self.path), purge_step=step)
            self._shared.closing.callback(self._curves.close)
        for name, value in values.items():
            self._curves.add_scalar(name, value, step)

    def _at(self, step: int) -> Path:
        return self.path / f"step_{step:08d}"

    def _write(self, step, arrays, content):
        save_checkpoint(self._at(step), arrays, {**content, "step": step, "fingerprint": self._fingerprint})
        for old in sorted(_steps(self.path))[: -self.settings.keep] if distributed.is_main() else ():
            shutil.rmtree(self._at(old), ignore_errors=True)


@dataclass(frozen=True)
class _Shared:
    """What the parts of a run have in common."""

    stop: threading.Event
    writer: ThreadPoolExecutor
    closing: contextlib.ExitStack


@contextlib.contextmanager
def open_run(where: "str | os.PathLike | RunDirectory | Run | None", **asked: Any) -> Iterator[Run | None]:
    """The run directory, locked; SIGTERM and Ctrl-C ask it to save and stop. None gives None; an open run is handed on.

    ``asked`` are settings that the result depends on, a learning rate for instance: a run goes on only if they are the same.
    A second Ctrl-C interrupts at once. Signals are only heard in the main thread. Of several processes the main
    one holds the lock for all; the folder must be one that all of them see.

    Raises:
        RunStopped: at the end, if a signal came that no training has heard.
        CheckpointError: another process works there, or the folder cannot be made.
        ImportError: TensorBoard files are wanted and tensorboardX is missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, open_run(f"{folder}/run") as run:
    ...     print(run.restore({"rows": "a"}))
    ...     run.save(3, {"table": np.arange(2)}, {})
    ...     run.wait()
    ...     print(run.restore({"rows": "a"}))
    None
    ({'table': array([0, 1])}, {'step': 3, 'fingerprint': {'rows': 'a'}})
    """
    if where is None or isinstance(where, Run):
        yield where
        return
    settings = where if isinstance(where, RunDirectory) else RunDirectory(where)
    if settings.tensorboard:
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise ImportError("curves for TensorBoard need tensorboardX; pip install 'jaxad[tensorboard]'") from error
    path = Path(settings.path).expanduser().absolute()
    with contextlib.ExitStack() as stack:

        def take():
            try:
                path.mkdir(exist_ok=True)
                lock = stack.enter_context((path / "lock").open("a+"))
            except OSError as error:
                raise CheckpointError(f"cannot keep a run in {path}: {error.strerror}") from error
            _lock(lock, path)

        distributed.from_main(take, CheckpointError)
        if not (path / "lock").exists():
            raise CheckpointError(
                f"process {jax.process_index()} sees no {path}: a run of several processes needs a folder that all of them share"
            )
        stop = threading.Event()
        # The writer is shut down before the signals are given back, and before the lock is.
        stack.enter_context(_signals_set(stop))
        closing = stack.enter_context(contextlib.ExitStack())
        writer = stack.enter_context(ThreadPoolExecutor(1, "checkpoint"))
        asked = {name.replace("_", " "): in_words(value) for name, value in asked.items()}
        yield Run(settings, path, asked, _Shared(stop, writer, closing))
        if any(distributed.any_process([stop.is_set()])):  # heard too late for the training, which is done and saved
            raise RunStopped(
                f"stopped after the training, which is kept in {path}; the same command goes on from there"
            )


def named_leaves(prefix: str, tree: Any) -> dict[str, Any]:
    """The leaves of a tree of arrays as host arrays under numbered names; random keys as their data.

    What is cut over several processes stays where it lies: Orbax has each of them write its part.

    >>> named_leaves("params", {"b": 1.0, "a": np.zeros(2)})
    {'params.0': array([0., 0.]), 'params.1': array(1.)}
    """

    def of_leaf(leaf):
        whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        return np.array(_plain(leaf)) if whole else leaf

    return {f"{prefix}.{i}": of_leaf(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def tree_from_leaves(prefix: str, like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of ``named_leaves``, for a tree of the structure and shapes of ``like`` (arrays, or their ``eval_shape``).

    Raises:
        CheckpointError: leaves of other number, shape or dtype.
    """
    leaves, structure = jax.tree.flatten(like)
    found = [arrays.get(f"{prefix}.{i}") for i in range(len(leaves))]
    restored = []
    for i, (leaf, array) in enumerate(zip(leaves, found, strict=True)):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        wanted = jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf
        if array is None or array.shape != wanted.shape or array.dtype != wanted.dtype:
            raise CheckpointError(
                f"{prefix}.{i} of the checkpoint should be {wanted.shape} {wanted.dtype}, but is "
                f"{'missing' if array is None else f'{array.shape} {array.dtype}'}"
            )
        restored.append(jax.random.wrap_key_data(jnp.asarray(array)) if is_key else array)
    return jax.tree.unflatten(structure, restored)


def digest(*arrays: Any) -> str:
    """A short hash of values and shapes, to tell one data set or schedule from another.

    >>> digest(np.zeros(2)) == digest(np.zeros(2)), digest(np.zeros(2)) == digest(np.zeros((2, 1)))
    (True, False)
    """
    seen = hashlib.sha256()
    for array in map(_plain, arrays):
        array = np.ascontiguousarray(array)
        seen.update(f"{array.shape} {array.dtype}".encode())
        seen.update(array.data)
    return seen.hexdigest()[:16]


def in_words(setting: Any) -> str:
    """``repr`` without the memory addresses that differ from process to process.

    >>> in_words(digest).startswith("<function digest")
    True
    """
    return re.sub(r" at 0x[0-9a-f]+", "", repr(setting))


def _plain(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _steps(path: Path) -> list[int]:
    return [int(match[1]) for name in os.listdir(path) if (match := _STEP.fullmatch(name))]


def _sweep_up(path: Path) -> None:
    """What a killed save left behind; the lock says that nobody else is at work here."""
    for name in os.listdir(path):
        if name.startswith(".jaxad-replaced-") or name.startswith(".jaxad-saving-"):
            shutil.rmtree(path / name, ignore_errors=True)


def _lock(file, path: Path) -> None:
    if sys.platform == "win32":  # no flock there
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        raise CheckpointError(
            f"{path} is in use by process {file.read(20).strip() or 'unknown'}: wait for it, stop it, or choose another folder"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()


@contextlib.contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number, frame):
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
