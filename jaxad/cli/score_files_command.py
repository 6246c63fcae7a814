"""``jaxad score-files``."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import tyro

from jaxad.cli.terminal import check_model, check_rates, check_rows, plain_console


def score_files(
    model: Annotated[Path, tyro.conf.Positional],
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Path,
    label_column: str | None = None,
    alpha: float | None = None,
    fdr: float | None = None,
    ray: str | None = None,
) -> None:
    """Score many files of rows with a saved detector: one csv for each, as of ``jaxad score``; those that are done are not scored again.

    Args:
        model: folder written by ``jaxad fit`` or ``jaxad export``.
        files: files of rows with the columns of training, each of a name of its own.
        out: folder for the csv files.
        label_column: column with 0 or 1 that is not to be scored.
        alpha: flag rows with a p-value up to this. Default: the false alarm rate of ``fit``.
        fdr: flag as many rows of a file as possible of which this share, on average, is normal.
        ray: where the files are scored at the same time: local, on the cores of this machine, or the address of a Ray cluster, such as
            auto or host:6379, that sees the same folders. Default: here, one after the other.
    """
    check_rates(alpha, fdr)
    check_model(model)
    for file in files:
        check_rows(file)
    if not out.parent.is_dir() or (out.exists() and not out.is_dir()):
        raise ValueError(f"--out {out}: expected the name of a folder in a folder that exists")
    from jaxad.runtime import cluster
    from jaxad.shipping import bulk

    console = plain_console()
    seen = []

    def tell(file, scored):
        seen.append(file)
        console.print(f"{file.name}: {scored.rows} rows, {scored.flagged} flagged, {scored.seconds:.1f} s")

    with nullcontext() if ray is None else cluster.on_ray(ray) as elsewhere:
        done = bulk.score_files(
            *(model.absolute(), [file.absolute() for file in files], out.absolute()),
            label_column=label_column,
            alpha=alpha,
            fdr=fdr,
            on_file=tell,
            elsewhere=elsewhere,
        )
    earlier = f" ({len(done) - len(seen)} of them by an earlier run)" if len(seen) < len(done) else ""
    console.print(f"{len(done)} files{earlier}, {sum(each.rows for each in done.values())} rows scored into {out}")
