"""Several processes as one program: joined, watched, and stopped together with a message when one of them is lost.

Every process runs the same script on the same arguments and calls the same functions in the same order; ``jax.devices()`` are
then the devices of all of them, and a ``sharding.data_mesh()`` over these makes ``fit`` and ``score_samples`` one computation.
"""

import atexit
import contextlib
import ctypes
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # its client holds the keys that all processes see; Orbax reads it too
from jax.experimental import multihost_utils

LOST = 75
"""Exit code of a process that stops because another one is lost: that of a run that was told to stop, try again later."""

_ALIVE, _LEFT = "jaxad/alive/", "jaxad/left/"
_A_DAY = 86_400_000
_COLLECTIVE = ("gloo", "nccl", "unavailable", "aborted", "coordination")
_questions = itertools.count()


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 60.0,
) -> Iterator[None]:
    """This process as one of several; before anything else has used a device.

    Without arguments Slurm, Open MPI, Kubernetes (``pip install 'jax[k8s]'``) or a TPU pod say who is who, otherwise ``coordinator`` is
    the ``"host:port"`` at which process 0 can be reached by all, and ``process_id`` counts from 0. A process that nobody has heard of
    for ``timeout`` seconds is lost: all others say which one it is and end with ``LOST`` instead of waiting for it. One that ends
    with an error takes the others with it at once.

        with joined("10.0.0.1:1234", num_processes=2, process_id=0):
            detector = DiffusionDetector(mesh=data_mesh(), run_dir="/shared/run").fit(X)

    Raises:
        ValueError: only some of the three are given, numbers that make no sense, or nobody says who is who.
        RuntimeError: the others did not come within five minutes, or this process has used a device already.
    """
    _check(coordinator, num_processes, process_id, timeout)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # JAX's own watch ends a process without a word of ours: it is for the case that ours cannot speak.
            heartbeat_timeout_seconds=int(np.ceil(2 * timeout)) + 10,
            shutdown_timeout_seconds=int(np.ceil(timeout)),
        )
    except ValueError as error:
        raise ValueError(
            "no Slurm, Open MPI, Kubernetes or TPU pod says which process this is: give the address of process 0, the number of "
            f"processes and the number of this one ({error})"
        ) from error
    with _Watch(timeout):
        yield


def is_main() -> bool:
    """Is this the process that writes files and shows bars? True where there is only one."""
    return jax.process_index() == 0


def from_main(make: Callable[[], Any], error: type[Exception] = ValueError) -> Any:
    """What ``make`` returns in the main process, a JSON value, in all of them; an ``error`` there is raised everywhere.

    >>> from_main(lambda: {"step": 3})
    {'step': 3}
    """
    if jax.process_count() == 1:
        return make()
    client, key = _client(), f"jaxad/answer/{next(_questions)}"
    if not is_main():
        answer = json.loads(client.blocking_key_value_get(key, _A_DAY))
        if "refused" in answer:
            raise error(answer["refused"])
        return answer["value"]
    try:
        value = make()
    except error as refused:
        client.key_value_set(key, json.dumps({"refused": str(refused)}))
        raise
    client.key_value_set(key, json.dumps({"value": value}))
    return value


def from_each(value: Any) -> list[Any]:
    """What every process says, a JSON value each, in their order. All ask together.

    >>> from_each("here")
    ['here']
    """
    if jax.process_count() == 1:
        return [value]
    client, me, number = _client(), jax.process_index(), next(_questions)
    client.key_value_set(f"jaxad/said/{number}/{me}", json.dumps(value))
    client.wait_at_barrier(f"jaxad/said/{number}", _A_DAY)
    said = {
        int(key.rpartition("/")[2]): json.loads(told) for key, told in client.key_value_dir_get(f"jaxad/said/{number}/")
    }
    client.key_value_delete(f"jaxad/said/{number - 1}/{me}")  # who is at this question has read the last one
    return [said[process] for process in range(jax.process_count())]


def any_process(flags: Sequence[bool]) -> list[bool]:
    """Which of these are true in any process? All ask together.

    >>> any_process([True, False])
    [True, False]
    """
    return [any(of_all) for of_all in zip(*from_each(list(flags)), strict=True)]


def rows_of_all(rows: np.ndarray) -> np.ndarray:
    """The rows that every process has read for itself, ``[its rows, ...]``, one after the other on every host, ``[rows, ...]``.

    Raises:
        ValueError: they differ in more than their number.

    >>> rows_of_all(np.ones((3, 2))).shape
    (3, 2)
    """
    kinds = from_each([list(rows.shape[1:]), rows.dtype.str, len(rows)])
    if any(kind[:2] != kinds[0][:2] for kind in kinds):
        told = ", ".join(f"{count} rows of shape {shape} and type {dtype}" for shape, dtype, count in kinds)
        raise ValueError(f"expected every process to read rows of one shape and type, got {told}")
    if len(kinds) == 1:
        return rows
    padded = np.zeros((max(kind[2] for kind in kinds), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    # As bytes: JAX would round float64 on the way.
    everything = multihost_utils.process_allgather(padded.view(np.uint8)).view(rows.dtype)
    return np.concatenate([of[: kind[2]] for of, kind in zip(everything, kinds, strict=True)])


def _client() -> Any:
    """What all processes are connected to: keys with values, and barriers."""
    return global_state.client


def _check(coordinator, num_processes, process_id, timeout) -> None:
    given = (coordinator, num_processes, process_id)
    if None in given and given != (None, None, None):
        raise ValueError(
            f"a process needs the address of process 0, the number of processes and its own number, or none of them; got {given}"
        )
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"expected the coordinator as host:port, such as 10.0.0.1:1234, got {coordinator!r}")
    if num_processes is not None and not 0 <= process_id < num_processes:
        raise ValueError(f"process_id counts from 0 to num_processes - 1, got {process_id} of {num_processes}")
    if not timeout > 0:
        raise ValueError(f"timeout is a number of seconds above 0, got {timeout}")


class _Watch:
    """A thread that says "alive" where all can see it, and listens to the others."""

    def __init__(self, timeout: float):
        self.timeout, self.pause = timeout, min(2.0, timeout / 4)
        self.me, self.count, self.client = jax.process_index(), jax.process_count(), _client()
        self._ended, self._speaking = threading.Event(), threading.Lock()
        # The coordinator's end reaches JAX before anybody else, and JAX then aborts: from its thread, in the middle of nothing.
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        if sys.platform != "win32":
            ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind, error, trace) -> None:
        if error is not None:
            why = error.__cause__ or error  # the cause of an exit is what the others want to hear
            if any(word in str(why).lower() for word in _COLLECTIVE) and not isinstance(why, SystemExit):
                time.sleep(self.timeout + 4 * self.pause)  # another process has ended: _listen will find out which
            self._leave(why, getattr(error, "code", 1))
            return
        self.client.wait_at_barrier("jaxad/finished", _A_DAY)
        self._ended.set()
        self._thread.join()
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        jax.distributed.shutdown()

    def _leave(self, why: BaseException, code: object) -> None:
        """Tell the others why, and see to it that nobody waits for this process, nor this process for them."""
        self._ended.set()
        with contextlib.suppress(RuntimeError, ValueError):  # the coordinator may be gone
            self.client.key_value_set(f"{_LEFT}{self.me}", f"{type(why).__name__}: {why}"[:500])
        atexit.register(_vanish, code if isinstance(code, int) else 1)
        if self.me == 0:  # the others hear of it through the service in this process
            time.sleep(3 * self.pause)

    def _listen(self) -> None:
        heard = {process: ("", time.monotonic()) for process in range(self.count)}
        for beat in itertools.count():
            if self._ended.wait(self.pause if beat else 0):
                return
            try:
                self.client.key_value_set(f"{_ALIVE}{self.me}", str(beat), allow_overwrite=True)
                alive = {int(key.rpartition("/")[2]): value for key, value in self.client.key_value_dir_get(_ALIVE)}
                left = {int(key.rpartition("/")[2]): value for key, value in self.client.key_value_dir_get(_LEFT)}
            except (RuntimeError, ValueError):  # what jaxlib raises has changed its name before
                self._end("process 0, which holds the job together, is gone or out of reach")
                return
            now = time.monotonic()
            heard |= {process: (said, now) for process, said in alive.items() if said != heard[process][0]}
            if left:
                process, why = min(left.items())
                self._end(f"process {process} has stopped ({why})")
            silent = [process for process, (_, at) in heard.items() if now - at > self.timeout]
            if silent:
                names = ", ".join(map(str, silent))
                self._end(
                    f"process {names} has not been heard of for {self.timeout:.0f} s, it was killed or is out of reach"
                )

    def _aborted(self, number: int) -> None:
        self._end("process 0, which holds the job together, is gone or out of reach", last=False)

    def _end(self, why: str, last: bool = True) -> None:
        if self._ended.is_set():  # this process is on its way out already
            return
        if not self._speaking.acquire(blocking=False):
            time.sleep(60)  # the other thread will end the process
        message = (
            f"jaxad: process {self.me} of {self.count} stops: {why}. What was saved is kept: with a run directory the same command "
            "goes on from there, on any number of processes"
        )
        os.write(2, f"{message}\n".encode())
        if last and self.me == 0:  # the service lives here: the others are to hear the same from their own watch
            time.sleep(3 * self.pause)
        os._exit(LOST)


def _vanish(code: int) -> None:
    """Instead of JAX's farewell, at which all processes would have to meet."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
