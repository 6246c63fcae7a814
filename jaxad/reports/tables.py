"""From a list of evaluations to tables: GitHub Markdown, CSV, and the cells that the HTML page of ``report`` is made of.

Metrics come as fractions and are shown in percent. Protocols are never mixed in a table, rows with missing cells never
enter a mean, and every table says which seeds, device and commit its numbers come from.
"""

import csv
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from jaxad import metrics
from jaxad.evaluation import Evaluation
from jaxad.runtime.files import put, unfinished

MISSING = "–"


class Metric(NamedTuple):
    """How a metric is called, which way is better, and what it says in plain words."""

    title: str
    larger_is_better: bool
    meaning: str


METRICS: dict[str, Metric] = {
    "auroc": Metric("AUROC", True, "the chance that an anomaly scores above a normal row; 50 is a coin"),
    "average_precision": Metric(
        "average precision", True, "area under precision over recall; a coin gets the share of anomalies"
    ),
    "fpr_at_95_tpr": Metric(
        "FPR at 95% TPR", False, "normal rows flagged when 95% of the anomalies are; smaller is better"
    ),
    "f1_at_k": Metric("F1 at k", True, "the share of anomalies among the k highest scores, k the number of anomalies"),
}

Published = Mapping[str, Mapping[str, float]]
"""``{column: {data set: fraction}}``: numbers from elsewhere, shown beside ours."""


class Cell(NamedTuple):
    text: str
    best: bool = False
    tip: str = ""


class Table(NamedTuple):
    header: list[str]
    body: list[list[Cell]]
    foot: list[list[Cell]]


@dataclass(frozen=True)
class Grid:
    """One metric under one protocol: mean and standard deviation over seeds, ``[datasets, detectors]``, NaN where missing."""

    metric: str
    protocol: str
    datasets: tuple[str, ...]
    detectors: tuple[str, ...]
    values: np.ndarray
    spreads: np.ndarray
    complete: np.ndarray
    caption: str

    @property
    def means(self) -> np.ndarray:
        """Mean of each detector over complete rows, NaN if there is none."""
        return self.values[self.complete].mean(axis=0) if self.complete.any() else np.full(len(self.detectors), np.nan)

    @property
    def ranks(self) -> np.ndarray:
        """Mean rank of each detector over complete rows, 1 = best."""
        sign = -1.0 if METRICS[self.metric].larger_is_better else 1.0
        if not self.complete.any():
            return np.full(len(self.detectors), np.nan)
        return rankdata(sign * self.values[self.complete], axis=1).mean(axis=0)


def markdown_table(
    evaluations: Iterable[Evaluation], *, metric: str = "auroc", published: Published | None = None
) -> str:
    """A GitHub table: rows data sets, columns detectors, percent, then the mean and the average rank; best of a row in bold.

    ``published`` columns hold fractions from elsewhere; they take no part in ranks and bold print.

    Raises:
        ValueError: no evaluations, more than one protocol, an unknown metric, a cell given twice, or a published number outside
            [0, 1].

    >>> record = Evaluation("wine", "knn", "clean", 0, 0.9, 0.8, 0.1, 0.7, 60, 70, 0.0, 0.1, 0.1)
    >>> print(markdown_table([record]).splitlines()[2])
    | wine | **90.00** |
    """
    grid = grid_of(evaluations, metric)
    return f"{_markdown(metric_table(grid, published or {}))}\n\n{_one_line(caption_of(grid, published))}\n"


def comparison_table(evaluations: Iterable[Evaluation], reference: str = "knn", *, metric: str = "auroc") -> str:
    """A GitHub table: every detector against ``reference`` over the data sets both have; a positive difference is better.

    p is of Wilcoxon's signed-rank test and ``n/a`` on fewer than six data sets, where it cannot fall below 0.05.

    Raises:
        ValueError: as ``markdown_table``, or there is no detector of the name ``reference``.
    """
    return _markdown(comparison(grid_of(evaluations, metric), reference)) + "\n"


def write_csv(evaluations: Iterable[Evaluation], path: Path | str) -> Path:
    """One row per evaluation, columns as in the record, metrics as fractions, versions as ``name=version`` words."""
    rows = [asdict(record) for record in evaluations]
    lines = [{**row, "versions": " ".join(f"{name}={of}" for name, of in row["versions"].items())} for row in rows]
    path = Path(path)
    temporary = unfinished(path, f".{os.getpid()}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Evaluation)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return put(temporary, path)


def grid_of(evaluations: Iterable[Evaluation], metric: str) -> Grid:
    """The evaluations of one protocol as a matrix of means over seeds; raises as ``markdown_table``."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: choose one of {', '.join(METRICS)}")
    records: dict[tuple, Evaluation] = {}
    for record in evaluations:
        if record.cell in records:
            raise ValueError(
                f"the cell {record.cell} is given twice: keep one of them, a mean over seeds would count it double"
            )
        records[record.cell] = record
    protocols = {record.protocol for record in records.values()}
    if len(protocols) != 1:
        names = ", ".join(sorted(protocols)) or "none"
        raise ValueError(f"a table shows exactly one protocol, got {names}: filter the evaluations first")
    datasets = tuple(dict.fromkeys(record.dataset for record in records.values()))
    detectors = tuple(dict.fromkeys(record.detector for record in records.values()))
    found: dict[tuple[str, str], dict[int, float]] = {}
    for record in records.values():
        found.setdefault((record.dataset, record.detector), {})[record.seed] = getattr(record, metric)
    values, spreads = np.full((2, len(datasets), len(detectors)), np.nan)
    for (dataset, detector), by_seed in found.items():
        at = datasets.index(dataset), detectors.index(detector)
        values[at] = np.mean(list(by_seed.values()))
        if len(by_seed) > 1:
            spreads[at] = np.std(list(by_seed.values()), ddof=1)
    [protocol] = protocols
    uneven = len({frozenset(by_seed) for by_seed in found.values()}) > 1
    caption = (
        f"Protocol {protocol}; {seeds_of(records.values())}{' (not every cell has all of them)' if uneven else ''}; "
        f"{listed(record.device or 'unknown device' for record in records.values())}; "
        f"commit {listed(record.commit or 'unknown' for record in records.values())}."
    )
    return Grid(
        metric, protocol, datasets, detectors, values, spreads, np.asarray(np.isfinite(values).all(axis=1)), caption
    )


def caption_of(grid: Grid, published: Published | None) -> str:
    """What the numbers of ``metric_table`` mean and where they come from."""
    kind = METRICS[grid.metric]
    spread = " ± is the standard deviation over seeds." if np.isfinite(grid.spreads).any() else ""
    beside = f" Published elsewhere, not computed here: {', '.join(published)}." if published else ""
    return f"{kind.title} in %: {kind.meaning}. Bold: best of the row.{spread} {grid.caption}{beside}"


def metric_table(
    grid: Grid, published: Published, resamples: Mapping[tuple[str, str], np.ndarray] | None = None
) -> Table:
    """Rows data sets, columns detectors, feet the mean and the average rank; ``resamples`` give intervals to point at."""
    larger = METRICS[grid.metric].larger_is_better
    for column, numbers in published.items():
        if bad := [value for value in numbers.values() if not 0.0 <= value <= 1.0]:
            raise ValueError(
                f"published numbers are fractions in [0, 1], {column!r} has {bad[0]}: divide percent by 100"
            )
    body = []
    for name, row, spreads in zip(grid.datasets, grid.values, grid.spreads, strict=True):
        texts = [percent(value, of) for value, of in zip(row, spreads, strict=True)]
        tips = [_tip(resamples, name, detector) for detector in grid.detectors]
        beside = [Cell(percent(numbers.get(name, np.nan))) for numbers in published.values()]
        body.append([Cell(name), *_marked(100 * row, texts, tips, larger), *beside])
    complete = [name for name, whole in zip(grid.datasets, grid.complete, strict=True) if whole]
    means = [
        float(np.mean([numbers[name] for name in complete]))
        if complete and all(name in numbers for name in complete)
        else np.nan
        for numbers in published.values()
    ]
    label = "mean" if grid.complete.all() else f"mean over {len(complete)} complete of {len(grid.datasets)} rows"
    foot = [
        [
            Cell(label),
            *_marked(100 * grid.means, [percent(value) for value in grid.means], [""] * len(grid.detectors), larger),
            *(Cell(percent(value)) for value in means),
        ],
        [
            Cell("average rank"),
            *_marked(grid.ranks, [number(rank) for rank in grid.ranks], [""] * len(grid.detectors), False),
            *(Cell("") for _ in published),
        ],
    ]
    return Table(["data set", *grid.detectors, *published], body, foot)


def _marked(values: np.ndarray, texts: Sequence[str], tips: Sequence[str], larger: bool) -> list[Cell]:
    """Cells of a row, the best marked; what looks equal at two decimals is equally good."""
    rounded = np.round(values if larger else -values, 2)
    best = np.nanmax(rounded) if np.isfinite(rounded).any() else np.nan
    return [Cell(text, bool(value == best), tip) for value, text, tip in zip(rounded, texts, tips, strict=True)]


def comparison(grid: Grid, reference: str) -> Table:
    """The cells of ``comparison_table``."""
    if reference not in grid.detectors:
        raise ValueError(
            f"there is no detector {reference!r} to compare with: choose one of {', '.join(grid.detectors)}"
        )
    sign = 1.0 if METRICS[grid.metric].larger_is_better else -1.0
    against = sign * grid.values[:, grid.detectors.index(reference)]
    body = []
    for detector, column in zip(grid.detectors, (sign * grid.values).T, strict=True):
        both = np.isfinite(against) & np.isfinite(column)
        if detector == reference:
            continue
        if not both.any():
            body.append([Cell(detector), *[Cell(MISSING)] * 3, Cell("0")])
            continue
        result = metrics.wilcoxon_against(against[both], column[both])
        p_value = "n/a" if both.sum() < 6 else "< 0.0001" if result.p_value < 1e-4 else f"{result.p_value:.4f}"
        counts = f"{result.wins} / {result.ties} / {result.losses}"
        body.append(
            [Cell(detector), *map(Cell, (f"{100 * result.mean_difference:+.2f}", counts, p_value, str(both.sum())))]
        )
    return Table(
        [f"against {reference}", "mean difference", "wins / ties / losses", "Wilcoxon p", "data sets"], body, []
    )


def _tip(resamples: Mapping[tuple[str, str], np.ndarray] | None, dataset: str, detector: str) -> str:
    drawn = None if resamples is None else resamples.get((dataset, detector))
    return "" if drawn is None else f"95% bootstrap interval {interval(drawn)}"


def _markdown(table: Table) -> str:
    def line(cells):
        return f"| {' | '.join(cells)} |"

    def text(cell):
        return f"**{_one_line(cell.text)}**" if cell.best else _one_line(cell.text)

    rule = "|---|" + "---:|" * (len(table.header) - 1)
    rows = [line(map(text, row)) for row in table.body + table.foot]
    return "\n".join([line(map(_one_line, table.header)), rule, *rows])


def _one_line(text: str) -> str:
    """Names come from strangers: no line breaks, cell borders, links or HTML, which Markdown would pass through."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return escaped.translate({ord(sign): f"&#{ord(sign)};" for sign in "|[]*`\\"})


def percent(value: float | np.floating, spread: float | np.floating = np.nan) -> str:
    """``97.31``, or ``97.31 ± 0.42``, or a dash, from fractions.

    >>> percent(0.9731, 0.0042), percent(float("nan"))
    ('97.31 ± 0.42', '–')
    """
    return number(100 * value) + (f" ± {100 * spread:.2f}" if np.isfinite(spread) else "")


def number(value: float | np.floating) -> str:
    """Two decimals, or a dash for a missing value."""
    return f"{value:.2f}" if np.isfinite(value) else MISSING


def seeds_of(evaluations: Iterable[Evaluation]) -> str:
    """The seeds in words.

    >>> seeds_of([Evaluation("wine", "knn", "clean", seed, *[0.5] * 4, 60, 70, 0.0, 0.1, 0.1) for seed in range(3)])
    'seeds 0, 1, 2'
    """
    seeds = sorted({record.seed for record in evaluations})
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def listed(texts: Iterable[str]) -> str:
    """Each text once, in order of appearance."""
    return "; ".join(dict.fromkeys(texts))


def interval(resamples: np.ndarray) -> str:
    """The 95% percentile interval of resampled fractions, in percent."""
    low, high = np.quantile(resamples, [0.025, 0.975])
    return f"{100 * low:.2f} to {100 * high:.2f}"
