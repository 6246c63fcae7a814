"""A program that may be cut at any moment: records that are on disk as they come, and a watch that ends what takes too long.

Two watches, because a signal handler written in Python runs only between two lines of Python. The first raises ``Interrupted`` in
the main thread, and is enough for training loops and for scikit-learn. The second is a thread that hears signals at once, through a
pipe, even while the main thread is inside a compiler: when the first has had its time, it calls ``give_up``.
"""

import json
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

GRACE = 8.0
"""Seconds that the main thread has to come back by itself, after its time is up or the process was told to stop."""


class Interrupted(BaseException):
    """What is being measured ends here. Not an ``Exception``: libraries catch those and go on."""


class Watch:
    """Ends what a check is doing at its deadline, or when SIGTERM or SIGINT comes; outside ``step`` it interrupts nothing.

    Args:
        give_up: called in a thread as ``give_up(told)`` when the main thread has not come back ``grace`` seconds after it should have;
            ``told`` says whether the process was told to stop. It is to end or replace the process.
        grace: seconds.
    """

    def __init__(self, give_up: Callable[[bool], None] | None = None, grace: float = GRACE):
        self.stopped: signal.Signals | None = None
        """The signal that told the process to stop."""
        self._give_up, self._grace = give_up, grace
        self._armed, self._deadline = False, math.inf
        self._done = threading.Event()

    def __enter__(self) -> "Watch":
        self._began = time.monotonic()
        # Whoever else uses the timer (pytest-timeout does) gets it back.
        self._timer_before = signal.setitimer(signal.ITIMER_REAL, 0)
        numbers = (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)
        self._handlers_before = {number: signal.signal(number, self._hear) for number in numbers}
        self._ear, self._mouth = os.pipe()
        os.set_blocking(self._mouth, False)
        self._wakeup_before = signal.set_wakeup_fd(self._mouth, warn_on_full_buffer=False)
        self._guard = threading.Thread(target=self._keep_guard, daemon=True, name="watch")
        self._guard.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        delay, interval = self._timer_before
        if delay:
            signal.setitimer(signal.ITIMER_REAL, max(delay - (time.monotonic() - self._began), 0.001), interval)
        self._guard.join()
        os.close(self._ear)
        os.close(self._mouth)

    def step(self, records: Iterator[dict], deadline: float) -> dict | None:
        """The next record, None after the last one.

        Raises:
            Interrupted: ``time.monotonic()`` reached ``deadline``, or the process was told to stop.
        """
        self._deadline = deadline
        # It comes back every few seconds: an exception that is raised inside a destructor is lost.
        signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 0.001), self._grace / 3)
        try:
            self._armed = True
            if self.stopped is not None:
                raise Interrupted
            return next(records, None)
        finally:
            self._armed, self._deadline = False, math.inf
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _hear(self, number, _frame) -> None:
        if number != signal.SIGALRM:
            self.stopped = self.stopped or signal.Signals(number)
        if self._armed:
            raise Interrupted

    def _keep_guard(self) -> None:
        told = math.inf
        while not self._done.is_set():
            if select.select([self._ear], [], [], 0.2)[0]:
                heard = os.read(self._ear, 512)
                if {signal.SIGTERM, signal.SIGINT} & set(heard):
                    told = min(told, time.monotonic())
            if self._give_up is not None and time.monotonic() > min(self._deadline, told) + self._grace:
                self._give_up(told < math.inf)
                return


class Records:
    """A file of one JSON object per line that only grows; a line is on disk when ``write`` returns."""

    def __init__(self, path: Path, about: dict[str, Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._about = path, about
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":  # an earlier run lost its machine within a line
            os.write(self._file, b"\n")

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record as it is written: with what is the same for all of them, and None for numbers that are not finite."""
        record = _finite(record | self._about)
        # One call for the line: no signal can cut it in two.
        os.write(self._file, (json.dumps(record, allow_nan=False) + "\n").encode())
        os.fsync(self._file)
        return record

    def close(self) -> None:
        os.close(self._file)


def read_records(path: Path, run: str) -> list[dict[str, Any]]:
    """The records of one run, in order."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the line at which a machine was lost
            continue
        if isinstance(record, dict) and record.get("run") == run:
            found.append(record)
    return found


def failure(error: BaseException) -> str:
    """The type and the first line of what was raised: ``ValueError: expected ...``."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def attempted(cells: Iterable[tuple[str, Callable[[], dict[str, Any]]]]) -> Iterator[dict[str, Any]]:
    """A record for each ``(name, function that measures)``; one that raises leaves its error, and the next one goes on.

    What a function returns are the record's numbers, but for ``error``, by which it says that they are not what they should be.

    >>> def broken():
    ...     raise ValueError("no such thing")
    >>> [record.get("error") or record["numbers"] for record in attempted([("one", lambda: {"rows": 3}), ("two", broken)])]
    [{'rows': 3}, 'ValueError: no such thing']
    """
    for name, measure in cells:
        started = time.monotonic()
        record: dict[str, Any] = {"name": name}
        try:
            numbers = measure()
        except Exception as error:
            numbers = {"error": failure(error)}
        if "error" in numbers:
            record["error"] = numbers.pop("error")
        yield record | {"numbers": numbers, "seconds": round(time.monotonic() - started, 3)}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if hasattr(value, "item"):  # a number of numpy or jax
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
