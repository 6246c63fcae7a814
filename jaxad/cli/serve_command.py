"""``jaxad serve``."""

from pathlib import Path
from typing import Annotated

import tyro

from jaxad.cli.terminal import check_model
from jaxad.shipping.bodies import DEFAULT, Limits


def serve(
    scorer: Annotated[Path, tyro.conf.Positional],
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Annotated[Limits, tyro.conf.OmitArgPrefixes] = DEFAULT,
) -> None:
    """Answer requests for scores over HTTP: POST /score with JSON or Arrow, GET /health, /card, /metrics; until SIGTERM or Ctrl-C.

    Args:
        scorer: folder written by ``jaxad export``.
        host: address to listen on; the default is this machine alone. There is no authentication: beyond it, put a proxy in front.
        port: port to listen on; 0 takes one that is free, and says which.
        limits: what clients may ask for.
    """
    check_model(scorer, "jaxad export")
    try:
        from jaxad.shipping.serve import serve as run
    except ImportError as error:
        raise ValueError(
            f"the service is made of packages that are missing here: pip install 'jaxad[serve]' ({error})"
        ) from error
    run(scorer, host, port, limits)
