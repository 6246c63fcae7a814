"""``jaxad score``."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import tyro

from jaxad.cli import kinds
from jaxad.cli.terminal import check_model, check_rates, say_if_nothing_is_flagged
from jaxad.runtime.files import check_format, is_stream


def score(
    model: Annotated[Path, tyro.conf.Positional],
    data: Annotated[Path, tyro.conf.Positional],
    out: Path,
    alpha: float | None = None,
    fdr: float | None = None,
    *,
    by_kind: Annotated[
        Any, tyro.conf.arg(constructor_factory=lambda: kinds.options_of("Scoring")), tyro.conf.OmitArgPrefixes
    ],
) -> None:
    """Score a file or a folder with a saved detector: a csv of row, anomaly_score (larger = more anomalous), p_value and flagged (0 or 1).

    The p-value is the chance that a normal row scores so high, by the normal rows that ``fit`` has held out.

    Args:
        model: folder written by ``jaxad fit`` or by ``jaxad export``.
        data: file of rows with the columns of training; - for csv from standard input; or a folder of pictures, or one with test/good,
            test/<defect> and ground_truth.
        out: file to write, .csv, .parquet or .jsonl by its ending; a pipe or device gets csv.
        alpha: flag rows with a p-value up to this: so large a share of normal rows is flagged. Default: the false alarm rate of ``fit``.
        fdr: flag as many rows as possible of which this share, on average, is normal (Benjamini and Hochberg's false discovery rate).
        by_kind: of tables, of pictures.
    """
    check_rates(alpha, fdr)
    check_model(model)
    with ExitStack() as held:
        if str(data) == "-":
            data = held.enter_context(_standard_input())
        if is_stream(out):  # which may be standard output: sentences are not to stand among the scores
            held.enter_context(redirect_stdout(sys.stderr))
        _score(model, data, out, alpha, fdr, by_kind)


@contextmanager
def _standard_input() -> Iterator[Path]:
    """What comes in, as a csv file: it is read in pieces, and more than once."""
    with TemporaryDirectory(prefix="jaxad-") as folder:
        file = Path(folder) / "standard_input.csv"
        with file.open("wb") as kept:
            shutil.copyfileobj(sys.stdin.buffer, kept)
        yield file


def _score(model: Path, data: Path, out: Path, alpha: float | None, fdr: float | None, by_kind: Any) -> None:
    if not data.exists():
        raise ValueError(f"{data}: expected a file of rows or a folder of pictures, found nothing; check the path")
    if out.is_dir():
        raise ValueError(f"--out names a file, {out} is a folder")
    check_format(out)
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the folder {out.parent} does not exist")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(f"--out {out} cannot be written: check the permissions")
    if out.exists() and data.exists() and out.samefile(data):
        raise ValueError(f"--out {out} is the file to score, which it would replace: choose another name")
    from jaxad.shipping.bulk import load

    loaded = load(model)
    kind = kinds.of_model(loaded.extra)
    if kind.key not in loaded.extra and not loaded.scores_rows:
        raise ValueError(
            f"{model} does not say how its data is read from files: score arrays with it, from Python, or name what jaxad fit has saved"
        )
    if not kind.holds(data, by_kind):
        got = kinds.of_data(data).words if data.exists() else "missing"
        raise ValueError(f"{model} was fitted on {kind.words}, {data} is {got}")
    kinds.refuse_others(kind, "Scoring", by_kind)
    kind.score(kinds.Asked(model, loaded, data, out, alpha, fdr), by_kind)
    if fdr is None:
        say_if_nothing_is_flagged(loaded.detector, alpha, kind.items)
