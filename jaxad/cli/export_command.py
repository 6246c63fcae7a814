"""``jaxad export``."""

import time
from pathlib import Path
from typing import Annotated

import tyro

from jaxad.cli.terminal import check_model, plain_console


def export(model: Annotated[Path, tyro.conf.Positional], out: Path, licence: str | None = None) -> None:
    """Turn a saved detector into a bundle that scores with jax, numpy and flatbuffers alone (``jaxad.load_scorer``), on CPU, CUDA and TPU.

    Args:
        model: folder written by ``jaxad fit``.
        out: folder for the bundle.
        licence: under which the bundle may be used, for its card.
    """
    check_model(model, "jaxad fit")
    from jaxad.detectors.persistence import load_detector, load_extra
    from jaxad.shipping import bundle
    from jaxad.shipping.export import export_detector

    detector, extra = load_detector(model), load_extra(model) or {}
    started = time.perf_counter()
    about = {name: value for name, value in extra.items() if name != "columns"}
    export_detector(detector, out, columns=extra.get("columns"), licence=licence, data=about)
    size = sum(file.stat().st_size for file in out.iterdir()) / 2**20
    plain_console().print(
        f"{type(detector).__name__} exported to {out} in {time.perf_counter() - started:.1f} s, {size:.1f} MiB; its scores are the "
        f"detector's to within {bundle.TOLERANCE:g}, checked on example rows"
    )
