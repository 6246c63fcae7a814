"""The ``jaxad`` command, for people with a file and a deadline: one file a command, one plug a kind of data.

What a command needs beyond its options it imports when it runs: ``jaxad --help`` waits for no JAX.
"""

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version

import tyro

from jaxad.cli.cycle_command import cycle
from jaxad.cli.demo_command import demo
from jaxad.cli.devices import Devices
from jaxad.cli.doctor_command import doctor
from jaxad.cli.export_command import export
from jaxad.cli.fit_command import fit
from jaxad.cli.generate_command import generate
from jaxad.cli.import_weights_command import import_weights
from jaxad.cli.look_command import look
from jaxad.cli.report_command import report
from jaxad.cli.score_command import score
from jaxad.cli.score_files_command import score_files
from jaxad.cli.serve_command import serve
from jaxad.cli.terminal import INTERRUPTED, end_at_once, exit_on_user_error, plain_console
from jaxad.cli.watch_command import watch
from jaxad.runtime.compilation import use_compilation_cache

__all__ = ["COMMANDS", "Devices", "exit_on_user_error", "main", "plain_console", "use_compilation_cache"]

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "look": look,
    "fit": fit,
    "cycle": cycle,
    "generate": generate,
    "score": score,
    "score-files": score_files,
    "watch": watch,
    "export": export,
    "serve": serve,
    "report": report,
    "import-weights": import_weights,
    "doctor": doctor,
}


def _cached(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the compilation cache switched on, which needs JAX, once its options are read, which do not."""

    @wraps(command)
    def run(*words, **options):
        use_compilation_cache()
        command(*words, **options)

    return run


def main() -> None:
    """The ``jaxad`` command."""
    warnings.simplefilter("default")
    warnings.filterwarnings("ignore", ".* a fill value hides")  # jaxad fit says it with the column's name
    warnings.formatwarning = lambda message, *_, **__: (
        f"jaxad: warning: {message}\n"
    )  # for people, who have no source to look at
    if sys.argv[1:] == ["--version"]:
        plain_console().print(f"jaxad {version('jaxad')}")
        return
    with exit_on_user_error("interrupted"):
        tyro.extras.subcommand_cli_from_dict(
            {name: _cached(command) for name, command in COMMANDS.items()},
            prog="jaxad",
            description="Anomaly detection with diffusion models.",
        )


def process() -> None:
    """``main`` as a process of its own: what the installed command runs."""
    try:
        main()
    except SystemExit as stopped:
        if stopped.code == INTERRUPTED and "jax" in sys.modules:
            end_at_once(INTERRUPTED)
        raise
