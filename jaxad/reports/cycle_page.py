"""One self-contained HTML page on the cycle: what its rounds gained and kept, was it believed, how severe are its anomalies?"""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxad.detectors import taught
from jaxad.detectors.fitting import CHUNK, PATIENCE
from jaxad.generation import Kind
from jaxad.reports import figures
from jaxad.reports.page import figure, html_table, training_figure, write_page
from jaxad.reports.tables import Cell, Table

STRENGTHS = (0.5, 1.0, 2.0)


def write_cycle_report(
    detector: Any,
    out_html: str | os.PathLike,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    title: str = "Cycle",
) -> Path:
    """Write the page and return its path; the severity is of ``GENERATED_ROWS`` rows at each of ``strengths``.

    Raises:
        ValueError: a strength that ``detector.generate`` does not take.
        OSError: the page cannot be written.
    """
    verdict = "accepted" if detector.accepted_ else "closed"
    words = f'<p class="{"good" if detector.accepted_ else "warning"}"><strong>{verdict}</strong>: {html.escape(detector.reason_)}.</p>'
    parts = [f"<section>{words}{_facts(detector)}</section>"]
    if any("gains" in row for row in detector.rounds_):
        parts.append(f"<section><h2>Gain</h2>{_gains(detector)}</section>")
    if detector.rounds_:
        parts.append(f"<section><h2>Rounds</h2>{_rounds(detector)}</section>")
        parts.append(f"<section><h2>Severity</h2>{_severity(detector, strengths, seed)}</section>")
        curves = {"denoiser": detector.denoiser_.validation_losses_}
        parts.append(f"<section><h2>Training</h2>{training_figure(curves, every=CHUNK, patience=PATIENCE)}</section>")
    return write_page(
        out_html,
        title,
        "".join(parts),
        "Gains are of generated kinds that the head has not seen, or of known anomalies left out.",
    )


def _facts(detector: Any) -> str:
    known = detector.known_gain_
    facts = {
        "first detector": type(detector.first_).__name__,
        **({} if known is None else {"AUROC by the direction to known anomalies": f"{known:+.4f} on those left out"}),
        "columns": str(detector.n_features_in_),
        "rounds": f"{len(detector.rounds_)} of {detector.rounds}",
        "false alarm rate": f"{detector.false_alarm_rate:g}",
        "seed": str(detector.random_state),
    }
    return (
        f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>' for name, text in facts.items())}</dl>"
    )


def _gains(detector: Any) -> str:
    rounds = detector.rounds_
    kinds = dict.fromkeys(kind for row in rounds for kind in row.get("gains", ()))
    drawn = {"mean of kinds": [row.get("kind_gain", np.nan) for row in rounds]}
    drawn["less twice its error"] = [row.get("sure_gain", np.nan) for row in rounds]
    if any("known_gain" in row for row in rounds):
        drawn["known anomalies"] = [row.get("known_gain", np.nan) for row in rounds]
    drawn |= {kind: [row.get("gains", {}).get(kind, np.nan) for row in rounds] for kind in kinds}
    chart = figures.lines(
        {"round": (range(1, len(rounds) + 1), drawn)}, label="gain of AUROC in points", scale="linear"
    )
    words = (
        "AUROC with the head, less that without it; on each kind by a head trained without it, on known anomalies by one trained without "
        "that one. What counts is the mean less twice its error: over known anomalies where there are any, else over the kinds."
    )
    return figure(chart, words)


def _rounds(detector: Any) -> str:
    kinds = list(dict.fromkeys(kind for row in detector.rounds_ for kind in row["kept"]))
    numbers: dict[str, Any] = {
        "strength": lambda row: f"{row['strength']:.2f}",
        **{f"kept: {kind}": lambda row, kind=kind: str(row["kept"].get(kind, 0)) for kind in kinds},
        "accuracy of the two-sample test": lambda row: _share(row, "c2st"),
        "gain on kinds, mean": lambda row: _share(row, "kind_gain", "+.4f"),
        "gain on kinds, less twice its error": lambda row: _share(row, "sure_gain", "+.4f"),
        "gain on known anomalies": lambda row: _share(row, "known_gain", "+.4f"),
        "gain on known anomalies, less twice its error": lambda row: _share(row, "sure_known_gain", "+.4f"),
        "artefact: AUROC of the head": lambda row: _share(row, "artefact"),
        "artefact: AUROC of the first detector": lambda row: _share(row, "artefact_first"),
    }
    body = [[Cell(name), *(Cell(of(row)) for row in detector.rounds_)] for name, of in numbers.items()]
    words = (
        f"Kept of {taught.GENERATED_ROWS} generated rows in each round: p-values in [.001, .05], new, and no normal row in disguise; "
        "fewer than 8 of a kind are dropped. The two-sample test tells what was kept from normal rows: above .95 the next round is weaker, "
        "below .6 stronger. Artefact: how well reconstructed normal rows are told from the rows themselves, .5 is how it should be; above "
        f"{taught.MOST_ARTEFACT:g}, and .1 above the first detector, the round is refused: it has learned the generator."
    )
    return html_table(Table(["", *(f"round {number}" for number in range(1, len(body[0])))], body, []), words)


def _share(row, name: str, form: str = ".3f") -> str:
    return format(row[name], form) if name in row else "–"


def _severity(detector: Any, strengths: Sequence[float], seed: int) -> str:
    found: dict[str, list[str]] = {}
    for strength in strengths:
        made = detector.generate(taught.GENERATED_ROWS, seed=seed, strength=float(strength))
        p, kinds = detector.p_values(made.x), np.asarray(made.kind)
        for code in np.unique(kinds):
            of = p[kinds == code]
            text = f"{np.median(of):.3f} ({np.mean(of <= detector.false_alarm_rate):.0%})"
            found.setdefault(Kind(int(code)).name.lower(), []).append(text)
    body = [[Cell(kind), *map(Cell, texts)] for kind, texts in found.items()]
    words = (
        "Median p-value of generated rows by this detector (share of them with a p-value up to its false alarm rate), unfiltered: .5 is "
        "what normal rows have, small is severe, the least possible is "
        f"{1 / (1 + len(detector.calibration_scores_)):.4f}. Strength 1 is the middle of each kind's range."
    )
    return html_table(Table(["kind", *(f"strength {strength:g}" for strength in strengths)], body, []), words)
