"""Which detectors find which kind of thing that happens to sensors, and how does it look?

    python -m experiments.series_kinds --data-dir ../shared/data

Of up to six series of each of the eight collections the first half of the *training* part is learned from; in the second half seven kinds
of anomalies are made (``generation.make_events``), one kind a copy, at strength 1. VUS-PR of every method by kind: means over the series.
Multichannel collections and single channels apart. ``--sheet FILE.png`` draws each kind at three strengths in one series. About 10
minutes on one core. Records: ``experiments/results/series_kinds.jsonl``; none is made twice. Expected: docs/series.md.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from experiments.false_discoveries import append
from experiments.images import read
from experiments.series import METHODS as ALL
from experiments.series import smoothed
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.data.series_suites import LabelledSeries, series_collections
from jaxad.generation import HAPPENINGS, make_events
from jaxad.metrics.events import period_of, vus

METHODS = ("random", "norm", "ridge forecast", "PCA, windows", "kNN, windows", "k-means, windows", "recommended")


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with series/; default: JAXAD_DATA_DIR, else ~/.cache/jaxad."""
    methods: tuple[str, ...] = METHODS
    of_each: int = 6
    """Series of a collection."""
    most_points: int = 6000
    """Of a training part, the last ones."""
    strength: float = 1.0
    sheet: Path | None = None
    """A picture to write, of every kind at three strengths."""
    out: Path = Path(__file__).parent / "results" / "series_kinds.jsonl"


def run(config: Config) -> list[dict]:
    """Every cell that is not yet in ``config.out``; all records."""
    if config.sheet is not None:
        draw(config.sheet)
    done = {(row["series"], row["method"]) for row in read(config.out)}
    for each in track(chosen(series_collections(config.data_dir), config.of_each), "series"):
        rows = each.train[-config.most_points :]
        train, rest = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        longest = min(60, len(rest) // 12)
        made = {
            kind: make_events(
                jax.random.key(number),
                rest,
                count=5,
                kinds=(kind,),
                strength=config.strength,
                lengths=(max(5, longest // 4), longest),
            )
            for number, kind in enumerate(HAPPENINGS)
        }
        window = period_of(rest[:, 0])
        for method in config.methods:
            if (each.name, method) in done:
                continue
            jax.clear_caches()
            detector, found = ALL[method](train, 0), {}
            for kind, of in made.items():
                scores = -detector.score_samples(of.series)
                scores = scores if method == "recommended" else smoothed(scores)
                found[kind] = vus(of.labels, scores, min(window, 50))[1]
            append(config.out, {"series": each.name, "channels": rows.shape[1], "method": method, **found})
    records = read(config.out)
    Console(width=160, markup=False, highlight=False).print(table(records))
    return records


def chosen(found: list[LabelledSeries], of_each: int) -> list[LabelledSeries]:
    """The first few of each collection whose training part is long enough and moves."""
    kept: list[LabelledSeries] = []
    for each in found:
        enough = len(each.train) >= 600 and bool((each.train[len(each.train) // 2 :].std(axis=0) > 0).any())
        if enough and sum(other.collection == each.collection for other in kept) < of_each:
            kept.append(each)
    return kept


def table(records: list[dict]) -> str:
    """VUS-PR by kind, one channel and several apart, in Markdown."""
    lines = []
    for several in (False, True):
        rows = [row for row in records if (row["channels"] > 1) == several]
        if not rows:
            continue
        count = len({row["series"] for row in rows})
        lines += [
            f"| {'several channels' if several else 'one channel'}, {count} series | {' | '.join(HAPPENINGS)} | mean |"
        ]
        lines += ["|---|" + "---:|" * (len(HAPPENINGS) + 1)]
        for method in dict.fromkeys(row["method"] for row in rows):
            means = [np.mean([row[kind] for row in rows if row["method"] == method]) for kind in HAPPENINGS]
            lines.append(f"| {method} | {' | '.join(f'{mean:.2f}' for mean in means)} | {np.mean(means):.2f} |")
        lines.append("")
    return "\n".join(lines).strip()


def draw(path: Path) -> None:
    """Every kind at strengths .25, .5 and 1, in a wave with noise and a second channel that follows it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rng, time = np.random.default_rng(0), np.arange(400)
    wave = np.sin(2 * np.pi * time / 60) + 0.08 * rng.normal(size=400)
    series = np.stack([wave, 0.6 * wave + 0.08 * rng.normal(size=400)], axis=1).astype(np.float32)
    figure, axes = plt.subplots(len(HAPPENINGS), 3, figsize=(12, 1.5 * len(HAPPENINGS)), sharex=True)
    for row, (name, happen) in zip(axes, HAPPENINGS.items(), strict=True):
        for axis, strength in zip(row, (0.25, 0.5, 1.0), strict=True):
            made = np.asarray(happen(jax.random.key(5), series, 180, 1 if name == "spike" else 60, 1, strength))
            axis.plot(time, made[:, 0], color="#56b4e9", linewidth=0.8)
            axis.plot(time, series[:, 1], color="#999999", linewidth=0.8, linestyle=":")
            axis.plot(time, made[:, 1], color="#0072b2", linewidth=1.0)
            axis.axvspan(180, 181 if name == "spike" else 240, color="#d55e00", alpha=0.2)
            axis.set_ylim(-2.6, 2.6)
            axis.set_title(f"{name}, strength {strength:g}", loc="left", fontsize=8)
            axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        run(tyro.cli(Config, description=__doc__))
