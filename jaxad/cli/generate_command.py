"""``jaxad generate``."""

from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxad.cli import kinds
from jaxad.cli.terminal import check_model


def generate(
    model: Annotated[Path, tyro.conf.Positional],
    out: Path,
    count: int | None = None,
    strength: tuple[float, ...] = (),
    seed: int = 0,
    *,
    by_kind: Annotated[
        Any, tyro.conf.arg(constructor_factory=lambda: kinds.options_of("Generating")), tyro.conf.OmitArgPrefixes
    ],
) -> None:
    """Make anomalies: rows with a detector that holds a denoiser of rows, defects in ``pictures`` with one fitted on a folder of them.

    *Rows*: a .npz file of all kinds of the cycle. It holds X [count, columns] in the units of the data, y (ones), mask (what was
    changed), kind (in words), p (the conformal p-value of each by that detector: small is severe) and a card (JSON: how they were made).
    ``jaxad`` reads it as a table.

    *Pictures*: a folder in the layout of MVTec AD, with train/good, test/<kind>, ground_truth/<kind>, card.json, and index.html to look at.

    Args:
        model: folder written by ``jaxad fit`` (rows: recommended, ddpm or dit; or pictures), or by ``jaxad cycle``.
        out: .npz file, or for pictures a folder; it must not exist.
        count: anomalies in all; default: 1000 rows, or 8 pictures of each kind and strength.
        strength: rows: one number in (0, 10], 1 (the default) is the middle of each kind's range. Pictures: one or several in (0, 1], from
            subtle to plain; default: 0.5 0.8 1.
        seed: random seed.
        by_kind: of pictures.
    """
    if out.exists():
        raise FileExistsError(
            f"{out} exists; generated anomalies never replace a file and are never written over others: choose another name"
        )
    check_model(model, "jaxad fit or jaxad cycle")
    from jaxad.detectors.persistence import load_extra

    kind = kinds.of_options("Generating", by_kind) or kinds.of_model(load_extra(model))
    kinds.refuse_others(kind, "Generating", by_kind)
    kind.generate(model, out, {"count": count, "strength": strength, "seed": seed}, by_kind)
