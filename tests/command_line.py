"""The command line in this process."""

import sys

from jaxad import cli


def jaxad(*words):
    """The command in this process: its exit code."""
    before = sys.argv
    sys.argv = ["jaxad", *map(str, words)]
    try:
        cli.main()
    except SystemExit as finished:
        return finished.code or 0
    finally:
        sys.argv = before
    return 0
