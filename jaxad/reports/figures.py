"""The pictures of a report, drawn by matplotlib (imported inside the functions) into bytes of SVG or PNG.

An SVG takes its ink from the page it is put in (``currentColor``) and has no background, so it is readable on light and dark
pages; a PNG is black on white. Names are drawn as they are: no mathematics, control characters replaced, long ones shortened.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from jaxad import metrics

# Okabe and Ito's colours (without black and yellow) keep apart for colour-blind readers; line styles tell the rounds apart.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")
_DASHES = ("-", "--", ":", "-.")
_INK = "#123457"
_ROC_POINTS = 90


def roc_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, title: str = "", picture: str = "svg") -> bytes:
    """ROC curves of several detectors on one test set, ``{name: (labels [rows], anomaly scores [rows])}``, best first in the key.

    Raises:
        ValueError: no curve, scores ``metrics.auroc`` refuses, or ``picture`` is neither ``"svg"`` nor ``"png"``.

    >>> roc_curves({"knn": ([0, 0, 1], [0.1, 0.4, 0.8])})[:4]
    b'<svg'
    """
    if not curves:
        raise ValueError("a picture of ROC curves needs at least one detector's labels and scores")
    areas = {name: metrics.auroc(*curve) for name, curve in curves.items()}

    def draw(figure):
        axes = figure.add_axes((0.09, 0.13, 0.48, 0.78))
        styles = {name: _style(index) for index, name in enumerate(curves)}
        lines = []
        for name in sorted(areas, key=lambda name: -areas[name]):
            false_positive, true_positive, _ = roc_curve(*curves[name])
            # Few points draw the same picture; steps get denser to the left, where curves of good detectors turn.
            grid = np.concatenate([[0.0], np.geomspace(1e-3, 1.0, _ROC_POINTS)])
            kept = false_positive, true_positive
            if len(false_positive) > _ROC_POINTS:
                kept = np.r_[0.0, grid], np.r_[0.0, np.interp(grid, false_positive, true_positive)]
            lines += axes.plot(*kept, linewidth=1.4, **styles[name])
        axes.plot([0, 1], [0, 1], color=_INK, alpha=0.35, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="false positive rate", ylabel="true positive rate")
        axes.set_title(_name(title), loc="left", fontsize=10)
        _frame(axes)
        order = sorted(areas, key=lambda name: -areas[name])
        texts = [f"{100 * areas[name]:6.2f}  {_name(name, 26)}" for name in order]
        figure.legend(
            lines,
            texts,
            loc="upper left",
            bbox_to_anchor=(0.59, 0.93),
            frameon=False,
            title="AUROC in %",
            alignment="left",
        )

    return _render(draw, (6.6, max(3.3, 0.7 + 0.19 * len(curves))), picture)


def critical_difference(
    names: Sequence[str], values, *, larger_is_better: bool = True, level: float = 0.95, picture: str = "svg"
) -> bytes:
    """The critical-difference diagram (Demsar 2006): average ranks on a line, bars joining what Nemenyi's test cannot tell apart.

    ``values [datasets, detectors]`` holds a metric, ``names`` the detectors.

    Raises:
        ValueError: fewer than three detectors or two data sets, or as ``metrics.critical_difference``.

    >>> critical_difference(["a", "b", "c"], [[0.9, 0.8, 0.7], [0.9, 0.7, 0.8]])[:4]
    b'<svg'
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 3 or values.shape[1] != len(names):
        raise ValueError(
            "a critical-difference diagram needs at least two data sets and three detectors, "
            f"got values of shape {values.shape} and {len(names)} names"
        )
    result = metrics.critical_difference(values, level=level, larger_is_better=larger_is_better)
    order = np.argsort(result.average_ranks, kind="stable")
    ranks, best_half = result.average_ranks[order], (len(names) + 1) // 2
    bars = _cliques(ranks, result.critical_difference)
    top, step = 0.42 + 0.17 * len(bars), 0.25  # inches below the axis
    height = 1.0 + top + step * best_half

    def draw(figure):
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 7.2), ylim=(height, 0))
        axes.set_axis_off()
        left, right, line = 1.9, 5.3, 0.85

        def at(rank):
            return left + (right - left) * (rank - 1) / (len(names) - 1)

        def stroke(x, y, width=0.9):
            axes.plot(x, y, color=_INK, linewidth=width, solid_capstyle="butt")

        stroke([left, right], [line, line])
        for rank in range(1, len(names) + 1):
            stroke([at(rank)] * 2, [line - 0.06, line])
            axes.text(at(rank), line - 0.1, str(rank), ha="center", va="bottom")
        shown = min(result.critical_difference, len(names) - 1)
        cut = "" if shown == result.critical_difference else " (longer than the axis)"
        stroke([left, at(1 + shown)], [0.3, 0.3], 2.5)
        axes.text(left, 0.22, f"critical difference {result.critical_difference:.2f}{cut}", va="bottom")
        for index, (first, last) in enumerate(bars):
            stroke([at(first) - 0.04, at(last) + 0.04], [line + 0.2 + 0.17 * index] * 2, 3)
        for place, (detector, rank) in enumerate(zip(order, ranks, strict=True)):
            on_left = place < best_half
            y = line + top + step * (place if on_left else len(names) - 1 - place)
            end = left - 0.15 if on_left else right + 0.15
            stroke([at(rank), at(rank), end], [line, y, y], 0.7)
            texts = [f"{rank:.2f}", _name(names[int(detector)], 24)]
            axes.text(
                end + (-0.05 if on_left else 0.05),
                y,
                "  ".join(texts[::-1] if on_left else texts),
                ha="right" if on_left else "left",
                va="center",
            )

    return _render(draw, (7.2, height), picture)


def spread(values: Mapping[str, Sequence[float]], *, label: str, picture: str = "svg") -> bytes:
    """One row per detector: a box (quartiles, median) and a dot per value, ``{name: fractions in [0, 1]}``, in the order given.

    ``label`` names the axis.

    Raises:
        ValueError: no detector, or one without values.

    >>> spread({"knn": [0.7, 0.8, 0.9]}, label="AUROC in %")[:4]
    b'<svg'
    """
    if not values or not all(len(numbers) for numbers in values.values()):
        raise ValueError("a picture of the spread needs detectors with at least one value each")

    def draw(figure):
        axes = figure.add_axes((0.24, 0.45 / height, 0.73, 1 - 0.6 / height))
        shake = np.random.default_rng(0)
        for row, numbers in enumerate(values.values()):
            percent = 100 * np.asarray(numbers, np.float64)
            axes.boxplot(
                percent,
                positions=[row],
                orientation="horizontal",
                widths=0.6,
                showfliers=False,
                manage_ticks=False,
                patch_artist=True,
                boxprops={"facecolor": _COLORS[0] + "33", "edgecolor": _COLORS[0]},
                medianprops={"color": _COLORS[1], "linewidth": 1.6},
                whiskerprops={"color": _COLORS[0]},
                capprops={"color": _COLORS[0]},
            )
            heights = row + shake.uniform(-0.2, 0.2, len(percent))
            axes.plot(percent, heights, "o", markersize=3.2, color=_INK, alpha=0.55, markeredgewidth=0)
        axes.set_yticks(range(len(values)), [_name(name, 22) for name in values])
        axes.set(ylim=(len(values) - 0.4, -0.6), xlabel=label)
        _frame(axes)
        axes.grid(visible=False, axis="y")

    height = 0.7 + 0.32 * len(values)
    return _render(draw, (6.6, height), picture)


def lines(
    panels: Mapping[str, tuple[Sequence[float], Mapping[str, Sequence[float]]]],
    *,
    label: str,
    scale: str = "log",
    picture: str = "svg",
) -> bytes:
    """One panel per entry, side by side: ``{name of the axis: (values, {detector: fractions, one per value})}``.

    ``scale`` is that of the axis, ``"log"`` or ``"linear"``; ``label`` names the other one, in percent. NaN is not drawn.

    Raises:
        ValueError: no panel, or a detector with other than one number per value.

    >>> lines({"rows": ([100, 1000], {"knn": [0.7, 0.8]})}, label="AUROC in %")[:4]
    b'<svg'
    """
    if not panels or any(
        len(numbers) != len(values) for values, drawn in panels.values() for numbers in drawn.values()
    ):
        raise ValueError("a picture of lines needs panels with one number per value and detector")

    def draw(figure):
        handles: dict[str, Any] = {}
        width = 0.68 / len(panels)
        for index, (name, (values, drawn)) in enumerate(panels.items()):
            axes = figure.add_axes((0.08 + index * width, 0.15, width - 0.05, 0.78))
            for number, (detector, fractions) in enumerate(drawn.items()):
                style = _style(number)
                (handles[_name(detector, 30)],) = axes.plot(
                    values, 100 * np.asarray(fractions, np.float64), marker="o", markersize=3.5, linewidth=1.4, **style
                )
            axes.set_xscale(scale)
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()
            axes.set(xlabel=name, ylabel=label if index == 0 else None)
            _frame(axes)
        figure.legend(handles.values(), handles, loc="upper left", bbox_to_anchor=(0.75, 0.95), frameon=False)

    return _render(draw, (8.6, 3.2), picture)


def held_out_loss(curves: Mapping[str, Any], *, every: int, picture: str = "svg") -> bytes:
    """Held-out loss of each network at every look, ``every`` steps apart, with a ring around the best: the parameters that were kept.

    Raises:
        ValueError: no network, or one without a look.

    >>> held_out_loss({"MLP": [0.9, 0.7, 0.8]}, every=200)[:4]
    b'<svg'
    """
    if not curves or not all(len(values) for values in curves.values()):
        raise ValueError("a picture of held-out losses needs networks with at least one look each")

    def draw(figure):
        axes, handles = figure.add_axes((0.1, 0.17, 0.62, 0.76)), {}
        for number, (name, values) in enumerate(curves.items()):
            steps, style = every * np.arange(1, len(values) + 1), _style(number)
            (handles[_name(name, 30)],) = axes.plot(steps, values, marker="o", markersize=3, linewidth=1.4, **style)
            best = int(np.argmin(values))
            axes.plot(steps[best], values[best], marker="o", markersize=9, fillstyle="none", color=style["color"])
        axes.set(xlabel="step", ylabel="held-out loss")
        _frame(axes)
        figure.legend(handles.values(), handles, loc="upper left", bbox_to_anchor=(0.75, 0.95), frameon=False)

    return _render(draw, (8.6, 3.0), picture)


def _cliques(ranks: np.ndarray, difference: float) -> list[tuple[float, float]]:
    """First and last of every longest run of sorted ``ranks`` that lies within ``difference``."""
    bars, reached = [], -1
    for first in range(len(ranks)):
        last = int(np.flatnonzero(ranks <= ranks[first] + difference)[-1])
        if last > max(first, reached):
            bars.append((float(ranks[first]), float(ranks[last])))
            reached = last
    return bars


def _style(index: int) -> dict[str, Any]:
    return {"color": _COLORS[index % len(_COLORS)], "linestyle": _DASHES[index // len(_COLORS) % len(_DASHES)]}


def _name(text: str, longest: int = 60) -> str:
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _frame(axes) -> None:
    axes.grid(visible=True, color=_INK, alpha=0.12, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _render(draw: Callable[[Any], None], size: tuple[float, float], picture: str) -> bytes:
    """``draw(figure)`` on a figure of ``size`` inches, as bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    if picture not in ("svg", "png"):
        raise ValueError(f'picture must be "svg" or "png", got {picture!r}')
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK)
    settings: dict[Any, Any] = {
        **ink,
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "jaxad",
        "font.size": 8.5,
        "font.sans-serif": ["DejaVu Sans"],
    }
    buffer = io.BytesIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A letter that matplotlib's font lacks is still drawn by the browser.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size)
        draw(figure)
        if picture == "png":
            figure.savefig(buffer, format="png", dpi=160, facecolor="white")
            return buffer.getvalue()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = buffer.getvalue().decode()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")  # no prolog: it goes into pages as it is
    return re.sub(
        r' id="(figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend|PathCollection|LineCollection)_\d+"',
        "",
        svg,
    ).encode()
