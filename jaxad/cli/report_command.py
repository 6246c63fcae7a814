"""``jaxad report``."""

from pathlib import Path
from typing import Annotated

import tyro

from jaxad.cli.terminal import plain_console


def report(results: Annotated[Path, tyro.conf.Positional], out: Path | None = None) -> None:
    """One self-contained HTML page from a run's folder or its results.jsonl.

    Args:
        results: folder with results.jsonl (and scores/, for ROC curves and intervals), or the file.
        out: page to write; default: report.html beside the results.
    """
    if not results.exists():
        raise ValueError(f"{results}: expected a run's folder or its results.jsonl, found nothing; check the path")
    from rich.console import Console
    from rich.markdown import Markdown

    from jaxad.evaluation import sweep
    from jaxad.reports.page import markdown_table, write_report

    records = sweep.read_results(results)
    folder = results if results.is_dir() else results.parent
    if out is not None and out.exists() and out.samefile(folder / sweep.RESULTS if results.is_dir() else results):
        raise ValueError(f"--out {out} holds the records themselves: choose another name for the page")
    if not records:
        raise ValueError(f"{results} holds no finished cell yet")
    page = write_report(records, out or folder / "report.html", scores_dir=folder)
    console = Console()
    for protocol in dict.fromkeys(record.protocol for record in records):
        console.print(Markdown(markdown_table([record for record in records if record.protocol == protocol])))
    plain_console().print(f"written to {page}")
