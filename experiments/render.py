"""Are the tables in README.md and docs/ what the records say?

    python -m experiments.render            # rewrite every block from its records
    python -m experiments.render --check    # change nothing; exit code 1 if a block is not what its records say

A block lies between a line ``<!-- table:NAME -->`` and ``<!-- /table:NAME -->`` and is written from ``experiments/results/NAME.jsonl``.
Instead of ``table``: ``comparison``, every detector against kNN; ``costs``, a row per detector with its time; ``cycle`` and ``gains``, the
two tables of ``experiments.cycle``. ``detectors=a,b`` after the name picks and orders columns, ``published=a,b`` does so for the paper's;
``published=`` leaves them out. ``series`` with ``half=dev``, ``confirm`` or all: the table of ``experiments.series``. Runtime: seconds.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

from experiments import cycle, series
from experiments.images import read
from jaxad.cli import exit_on_user_error
from jaxad.data import did_you_mean
from jaxad.evaluation import Evaluation, sweep
from jaxad.reports.tables import Published, comparison_table, markdown_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
PAPER = json.loads((Path(__file__).parent / "published_table1.json").read_text(encoding="utf-8"))
BLOCK = re.compile(
    r"^<!-- (table|comparison|costs|cycle|gains|series):(\S+)((?: \w+=\S*)*) -->\n(.*?)^<!-- /\1:\2 -->$", re.M | re.S
)
MARKER = re.compile(r"^<!-- /?(?:table|comparison|costs|cycle|gains|series):", re.M)


@dataclass(frozen=True)
class Config:
    check: bool = False
    """Only look; exit code 1 if a block would change."""
    root: Path = ROOT
    """Folder with README.md and docs/."""
    results: Path = RESULTS
    """Folder with NAME.jsonl."""


def run(config: Config) -> list[Path]:
    """The files whose blocks are not what the records say; rewritten unless ``check``."""
    stale = []
    for path in (config.root / "README.md", *sorted((config.root / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        rendered = render(text, config.results, str(path))
        if rendered != text:
            stale.append(path)
            if not config.check:
                path.write_text(rendered, encoding="utf-8")
    return stale


def render(text: str, results: Path = RESULTS, where: str = "the text") -> str:
    """``text`` with every block written anew from ``results``.

    Raises:
        ValueError: a marker without its partner, a column that the records or the paper do not have, or records that are none.
    """
    if len(MARKER.findall(text)) != 2 * len(BLOCK.findall(text)):
        raise ValueError(
            f"{where}: a block is not closed; expected <!-- table:NAME --> and <!-- /table:NAME -->, each on its own line"
        )

    def block(match):
        kind, name, options, _ = match.groups()
        body = _block(kind, name, dict(option.split("=", 1) for option in options.split()), results)
        return f"<!-- {kind}:{name}{options} -->\n\n{body.strip()}\n\n<!-- /{kind}:{name} -->"

    return BLOCK.sub(block, text)


def _block(kind: str, name: str, options: dict[str, str], results: Path) -> str:
    path = results / f"{name}.jsonl"
    if not path.exists():
        return f"*No records yet: `experiments/results/{name}.jsonl` is written by the experiment of that name.*"
    if kind == "series":
        return series.table(read(path), options.get("half", "all"))
    if kind in ("cycle", "gains"):
        return {"cycle": cycle.table, "gains": cycle.differences}[kind](read(path))
    records = sweep.read_results(path)
    if "detectors" in options:
        records = _columns(records, options["detectors"].split(","))
    if kind == "comparison":
        return comparison_table(records)
    if kind == "costs":
        return _costs(records)
    return markdown_table(records, published=_paper(records, options.get("published")))


def _costs(records: list[Evaluation]) -> str:
    """A row per detector: AUROC in percent on every data set, their mean, and milliseconds to score a row, the median set."""
    sets = list(dict.fromkeys(record.dataset for record in records))
    lines = [f"| score | {' | '.join(sets)} | mean | ms per row |", f"|---|{'---|' * (len(sets) + 2)}"]
    for name in dict.fromkeys(record.detector for record in records):
        own = {record.dataset: record for record in records if record.detector == name}
        areas = [100 * own[dataset].auroc for dataset in sets]
        milliseconds = np.median([1000 * record.score_seconds / record.num_test for record in own.values()])
        lines.append(
            f"| {name} | {' | '.join(f'{area:.1f}' for area in areas)} | {np.mean(areas):.1f} | {milliseconds:.2g} |"
        )
    return "\n".join(lines)


def _columns(records: list[Evaluation], names: list[str]) -> list[Evaluation]:
    """The records of these detectors, the columns in this order and the data sets in the order they had."""
    rows = list(dict.fromkeys(record.dataset for record in records))
    known = {record.detector for record in records}
    for name in names:
        if name not in known:
            raise ValueError(f"the records have no detector {name!r}; {did_you_mean(name, sorted(known))}")
    chosen = [record for record in records if record.detector in names]
    return sorted(chosen, key=lambda record: (rows.index(record.dataset), names.index(record.detector), record.seed))


def _paper(records: list[Evaluation], columns: str | None) -> Published | None:
    """The paper's columns for records of its protocol and rows, ``columns`` of them or all; None for any other records."""
    rows = {record.dataset for record in records}
    if {record.protocol for record in records} != {"dte"} or not rows & set(PAPER["DDPM"]):
        return None
    names = list(PAPER) if columns is None else [name for name in columns.split(",") if name]
    for name in names:
        if name not in PAPER:
            raise ValueError(f"the paper has no column {name!r}; {did_you_mean(name, PAPER)}")
    return {f"paper {name}": {row: value for row, value in PAPER[name].items() if row in rows} for name in names}


if __name__ == "__main__":
    with exit_on_user_error():
        settings = tyro.cli(Config, description=__doc__)
        changed = run(settings)
        verb = "is not what the records say: run python -m experiments.render" if settings.check else "rewritten"
        for file in changed:
            Console().print(f"{file} {verb}", highlight=False, soft_wrap=True)
        sys.exit(1 if settings.check and changed else 0)
