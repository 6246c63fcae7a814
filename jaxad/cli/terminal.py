"""What every command shares: sentences on the terminal, exit codes, places to write to, and the compilation cache."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
"""The exit code after Ctrl-C."""
SWEPT = "interrupted; finished cells are kept, the same command goes on from there"


def plain_console(of_main: bool = False) -> "Console":
    """For sentences with paths in them: no markup (a path may hold brackets), no line breaks (it may be copied).

    With ``of_main`` only the main one of several processes speaks.
    """
    from rich.console import Console

    quiet = False
    if of_main:
        from jaxad.runtime.distributed import is_main

        quiet = not is_main()
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=quiet)


@contextmanager
def exit_on_mendable() -> Iterator[None]:
    """One sentence and exit code 2 for what the user can mend."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"jaxad: {message}", file=sys.stderr)
        raise SystemExit(2) from error


@contextmanager
def exit_on_user_error(interrupted: str = SWEPT) -> Iterator[None]:
    """``exit_on_mendable``; 75 for a run that was told to stop and has saved; 130 and a word for Ctrl-C. The rest is a bug and keeps its
    traceback.
    """
    try:
        with exit_on_mendable():
            yield
    except KeyboardInterrupt as stopped:
        print(f"jaxad: {str(stopped) or interrupted}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as stopped:
        if said := getattr(stopped, "message", None):  # runs.RunStopped, known without importing what trains
            print(f"jaxad: {said}", file=sys.stderr)
        raise


def end_at_once(code: int) -> None:
    """End the process without tidying up: a program of XLA that still runs would be pulled from under its threads, which crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def check_rates(alpha: float | None, fdr: float | None) -> None:
    """Raise a ValueError unless at most one rate is given, and lies in [0, 1]."""
    if alpha is not None and fdr is not None:
        raise ValueError(
            "--alpha bounds the share of normal rows that are flagged, --fdr that of flagged rows that are normal: give one"
        )
    for option, rate in (("--alpha", alpha), ("--fdr", fdr)):
        if rate is not None and not 0 <= rate <= 1:
            raise ValueError(f"{option} is a rate between 0 and 1, got {rate}")


def found_at(path: Path) -> str:
    """What lies there, in a word."""
    return "nothing" if not path.exists() else "a folder" if path.is_dir() else "a file"


def check_model(model: Path, by: str = "jaxad fit or jaxad export") -> None:
    """Raise a ValueError unless a folder is there, which the commands ``by`` write; before anything slow is imported."""
    if not model.is_dir():
        raise ValueError(f"{model} is no model: expected a folder written by {by}, found {found_at(model)}")


def check_rows(data: Path) -> None:
    """Raise a ValueError unless a file is there, before anything slow is imported."""
    if not data.is_file():
        raise ValueError(f"{data}: expected a file of rows, found {found_at(data)}; check the path")


def check_file(written: Path | None) -> None:
    """Raise a ValueError unless ``written`` may become a file, or is None."""
    if written is not None and (written.is_dir() or not written.parent.is_dir()):
        raise ValueError(f"{written} cannot be written: expected the name of a file in a folder that exists")


def say_if_nothing_is_flagged(detector: Any, alpha: float | None, items: str, say: Any = None) -> None:
    """A sentence if so few rows were held out that no row can have a p-value as small as the rate."""
    from jaxad.metrics.calibration import fewest_calibration_rows

    last = detector.steps[-1][1] if hasattr(detector, "steps") else detector
    known = getattr(last, "calibration_scores_", None)
    rate = getattr(last, "false_alarm_rate", 0.05) if alpha is None else alpha
    if known is None or not 0 < rate < 1 / (len(known) + 1):
        return
    (say or plain_console().print)(
        f"nothing can be flagged at a rate of {rate:g}: that takes {fewest_calibration_rows(rate, 1, 1)} held-out normal {items}, there "
        f"are {len(known)}; the scores rank all the same"
    )


def say_scored(what: str, done: Any, out: Path) -> None:
    """Of ``bulk.Scored``: how many, how fast, where."""
    earlier = f" ({done.taken_up} of them by an earlier run)" if done.taken_up else ""
    plain_console().print(
        f"{done.rows} {what} scored in {done.seconds:.1f} s{earlier}, {done.flagged} flagged; written to {out}"
    )
