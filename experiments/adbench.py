"""How do diffusion detectors compare with honest baselines on every ADBench set found?

    python -m experiments.adbench --data-dir ../shared/data --protocol clean --seeds 0 1 2 3 4 --out runs/adbench

Runtime: the recommended detector and ten baselines on 42 sets take about half an hour per seed on 2 cores; all detectors, hours.
Expected (clean, 42 sets): docs/methods.md. An interrupted run resumes where it stopped.
"""

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro
from rich.console import Console
from rich.markdown import Markdown

from jaxad import data
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.detectors import COPOD
from jaxad.detectors.catalogue import ROWS, choose, everything
from jaxad.evaluation import PROTOCOLS, Evaluation, sweep
from jaxad.reports.page import comparison_table, markdown_table, write_csv, write_report
from jaxad.runtime import cluster

# Under `dte` COPOD is what the published harness ran: its statistics are taken over training and test rows together.
PUBLISHED_FORM = {"copod": lambda seed: COPOD(transductive=True)}


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with adbench/<group>/<name>.npz; default: JAXAD_DATA_DIR, else ~/.cache/jaxad."""
    protocol: str = "clean"
    """clean (nothing about a test row reaches training) or dte (the published harness, bit for bit)."""
    seeds: tuple[int, ...] = (0,)
    datasets: tuple[str, ...] = ()
    """Names with or without number prefix; default: every set found."""
    detectors: tuple[str, ...] = tuple(name for name in ROWS if name not in ("copod-nan", "dit-untrained"))
    out: Path = Path("runs/adbench")
    """results.jsonl, scores/, table.md, results.csv and report.html are written here."""
    download: bool = False
    """Fetch sets that are not in the data directory from their pinned source."""
    ray: str | None = None
    """Where cells are computed at the same time: local (the cores of this machine) or the address of a Ray cluster that sees the same
    folders; default: here, one after the other."""
    ray_gpus: float = 0.0
    """GPUs that a cell takes on the cluster; a fraction puts several on one."""


def run(config: Config, published: Mapping[str, Mapping[str, float]] | None = None) -> list[Evaluation]:
    """Every requested cell, finished ones included; writes the records, the tables and the report."""
    if config.protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {config.protocol!r}: {data.did_you_mean(config.protocol, PROTOCOLS)}")
    names = [data.adbench_name(name) for name in config.datasets] or list(data.adbench_names(config.data_dir))
    if not names:
        raise ValueError(
            f"no ADBench set found in {config.data_dir or 'the default data directory'}: set --data-dir, or --download"
        )
    table = everything() | (PUBLISHED_FORM if config.protocol == "dte" else {})
    detectors = choose(config.detectors, table)
    if not config.download:
        missing = [name for name in names if name not in data.adbench_names(config.data_dir)]
        if missing:
            raise ValueError(
                f"not in the data directory: {', '.join(missing)}; --download fetches them, or check --data-dir"
            )
    loaders = {name: partial(data.adbench, name, config.data_dir, download=config.download) for name in names}
    what = {"out": config.out, "protocol": config.protocol, "seeds": config.seeds}
    with nullcontext() if config.ray is None else cluster.on_ray(config.ray, gpus=config.ray_gpus) as elsewhere:
        records = sweep.run(loaders, detectors, **what, elsewhere=elsewhere)
    tables = [markdown_table(records, published=published), markdown_table(records, metric="average_precision")]
    tables.append(comparison_table(records, "knn" if "knn" in detectors else next(iter(detectors))))
    (config.out / "table.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    write_csv(records, config.out / "results.csv")
    write_report(
        records,
        config.out / "report.html",
        scores_dir=config.out,
        title=f"ADBench, protocol {config.protocol}",
        published=None if published is None else {config.protocol: published},
    )
    return records


def show(config: Config) -> None:
    """Print the tables that ``run`` wrote."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(Markdown((config.out / "table.md").read_text(encoding="utf-8")))
    console.print(f"records: {config.out / 'results.jsonl'}   page: {config.out / 'report.html'}")


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        settings = tyro.cli(Config, description=__doc__)
        run(settings)
        show(settings)
