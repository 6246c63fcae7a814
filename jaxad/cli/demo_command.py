"""``jaxad demo``."""

import time
from functools import partial
from pathlib import Path

from jaxad.cli.terminal import exit_on_user_error, plain_console

SETS = ("digits_3", "digits_8", "breast_cancer", "wine_0")
DETECTORS = ("iforest", "ocsvm", "copod", "knn", "recommended", "ddpm", "dit", "dte-c")


def demo(out: Path = Path("runs/demo"), seed: int = 0) -> None:
    """Train diffusion detectors on real data that ships with scikit-learn, beside honest baselines; no network needed."""
    from rich.console import Console
    from rich.markdown import Markdown

    from jaxad import data
    from jaxad.detectors.catalogue import choose
    from jaxad.evaluation import sweep
    from jaxad.reports.page import comparison_table, markdown_table, write_report

    console = Console()
    console.print(
        f"{len(SETS)} real data sets x {len(DETECTORS)} detectors, protocol clean: trained on half of the normal rows, "
        "tested on the other half and all anomalies."
    )
    started = time.perf_counter()
    loaders = {name: partial(data.builtin, name) for name in SETS}
    with exit_on_user_error():  # of a sweep, Ctrl-C loses no finished cell
        records = sweep.run(loaders, choose(DETECTORS), out=out, protocol="clean", seeds=(seed,))
    page = write_report(records, out / "report.html", scores_dir=out, title="jaxad demo")
    console.print(Markdown(markdown_table(records)))
    console.print(Markdown(comparison_table(records)))
    plain_console().print(
        f"{time.perf_counter() - started:.0f} s. Records: {out / 'results.jsonl'}   Page with ROC curves: {page}"
    )
