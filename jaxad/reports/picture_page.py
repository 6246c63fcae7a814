"""One self-contained HTML page on an image detector: pictures, what the denoiser makes of them, and where they are unusual."""

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxad import metrics
from jaxad.data import ImageDataset
from jaxad.detectors.fitting import CHUNK, PATIENCE
from jaxad.detectors.scorer import tells_where
from jaxad.metrics import localisation
from jaxad.reports.page import training_figure, write_page

SHOWN_SIDE = 128
"""Shorter side of a picture on the page, in pixels: small ones are enlarged by a whole number, their pixels left as they are."""


def overlay(pictures, maps, threshold: float) -> np.ndarray:
    """Pictures in gray with their maps in red: uint8 ``[rows, height, width, 3]``.

    ``pictures [rows, height, width, channels]`` are uint8 or floats in [0, 1], ``maps [rows, height, width]`` those of
    ``where`` and ``threshold`` its ``where_threshold_``: below it nothing is coloured, so a good picture stays
    blank; from there to twice the threshold the red fills in.

    >>> overlay(np.zeros((1, 2, 2, 1)), np.array([[[0.0, 1.0], [1.5, 2.0]]]), 1.0)[0, ..., 0].tolist()
    [[0, 0], [114, 229]]
    """
    gray = unit(pictures).mean(axis=-1, keepdims=True)
    strength = np.clip(np.asarray(maps) / max(threshold, 1e-9) - 1, 0, 1)[..., None]
    mixed = gray * (1 - strength) + np.array([0.9, 0.1, 0.1]) * strength
    return (255 * mixed).astype(np.uint8)


def write_image_report(
    detector: Any,
    dataset: ImageDataset,
    out_html: str | os.PathLike,
    *,
    most: int = 16,
    sigmas: tuple[float, ...] = (0.5, 1.0),
    title: str = "Pictures",
) -> Path:
    """Write the page and return its path.

    Up to ``most`` pictures: where labels are known, kinds in turn, of an anomalous one the most anomalous first, of a normal one some
    spread from the least to the most; else the most anomalous ones and as many spread over the rest. Each with its score, reconstructions
    from noise of ``sigmas`` times the data's spread, its map
    (blank below the threshold) and its mask. With labels of both classes the page gives AUROC and average precision of the pictures, with
    masks also those of the pixels, AUPRO and F1.

    Raises:
        ValueError: pictures of another size than the detector's.
        OSError: the page cannot be written.
    """
    has_maps = tells_where(detector.scorer_)
    scores = -(
        detector.score_and_where(dataset.x)[0]
        if has_maps and dataset.masks is None
        else detector.score_samples(dataset.x)
    )
    maps = detector.where(dataset.x) if has_maps and dataset.masks is not None else None
    chosen = _chosen(dataset, scores, most)
    shown = dataset.x[chosen]
    columns = {"picture": gray_to_rgb(shown)}
    if has_maps:
        for sigma in sigmas if hasattr(detector, "reconstruct") else ():
            columns[f"rebuilt from noise {sigma:g}"] = gray_to_rgb(
                _within(detector.reconstruct(shown, sigma), dataset.x)
            )
        columns["map"] = overlay(shown, detector.where(shown), detector.where_threshold_)
    if dataset.masks is not None:
        columns["mask"] = np.repeat(255 * dataset.masks[chosen][..., None].astype(np.uint8), 3, axis=-1)
    words = [
        f"{_words(dataset, row)}\nscore {scores[row]:.2f}{', flagged' if -scores[row] < detector.offset_ else ''}"
        for row in chosen
    ]
    body = _facts(detector, dataset, scores, maps) + picture_table(words, columns)
    return write_page(out_html, title, body, "The detector learned from normal pictures without labels.", style=CSS)


def picture_table(words: Sequence[str], columns: Mapping[str, np.ndarray]) -> str:
    """HTML: a row for each of ``words``, its pictures beside it, ``{heading: uint8 [rows, height, width, 3]}`` of one size."""
    header = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *columns))
    body = "".join(
        f"<tr><th>{html.escape(text).replace(chr(10), '<br>')}</th>"
        + "".join(f"<td>{_image(column[row])}</td>" for column in columns.values())
        + "</tr>"
        for row, text in enumerate(words)
    )
    return f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def measured(dataset: ImageDataset, scores, maps=None) -> dict[str, float]:
    """Metrics in [0, 1] that the labels and masks allow: ``scores [rows]`` larger = more anomalous, ``maps [rows, height, width]``."""
    found = {}
    if dataset.y is not None and len(np.unique(dataset.y)) == 2:
        found |= {
            "AUROC": metrics.auroc(dataset.y, scores),
            "average precision": metrics.average_precision(dataset.y, scores),
        }
    if maps is not None and dataset.masks is not None and dataset.masks.any():
        found |= {
            "pixel AUROC": localisation.pixel_auroc(dataset.masks, maps),
            "pixel average precision": localisation.pixel_average_precision(dataset.masks, maps),
            "AUPRO at 0.3": localisation.aupro(dataset.masks, maps),
            "AUPRO at 0.05": localisation.aupro(dataset.masks, maps, limit=0.05),
            "pixel F1, best": localisation.f1_max(dataset.masks, maps),
        }
    return found


def _facts(detector, dataset, scores, maps) -> str:
    rows, height, width, channels = dataset.x.shape
    facts = {"pictures": f"{rows} of {height} x {width} pixels, {channels} channel{'s' if channels > 1 else ''}"}
    facts |= {name: f"{100 * value:.1f} %" for name, value in measured(dataset, scores, maps).items()}
    facts["flagged"] = (
        f"{np.mean(-scores < detector.offset_):.1%} (asked for: {detector.false_alarm_rate:.0%} of normal ones)"
    )
    words = ""
    pixels = getattr(detector.scorer_, "pixels", None)
    if pixels is not None:
        network = type(pixels.errors.network).__name__
        facts["denoiser"] = f"{network}, held-out loss {min(detector.validation_losses_):.4f}"
        levels = ", ".join(
            f"sigma {sigma:.2f}: {weight:.2f} (AUROC {area:.2f})"
            for sigma, weight, area in zip(
                pixels.errors.levels.sigma, pixels.weights, detector.separabilities_, strict=True
            )
        )
        words = (
            "<p>The map weighs its noise levels by how well each tells held-out normal pictures from the same pictures with "
            f"synthetic defects; no real anomaly is needed. Weights: {html.escape(levels)}. Red begins where only "
            f"{detector.false_alarm_rate:.0%} of normal pictures have a spot.</p>"
        )
    items = "".join(f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>" for name, text in facts.items())
    curve = ""
    if pixels is not None:
        curves = {type(pixels.errors.network).__name__: detector.validation_losses_}
        curve = training_figure(curves, every=CHUNK, patience=PATIENCE)
    return f"<dl>{items}</dl>{words}{curve}"


def _chosen(dataset: ImageDataset, scores, most: int) -> list[int]:
    order = np.argsort(-scores)
    if dataset.kinds is None:
        rest = order[most // 2 :]
        spread = (
            rest[np.linspace(0, len(rest) - 1, min(len(rest), most - most // 2)).astype(int)] if len(rest) else rest
        )
        return list(dict.fromkeys([*order[: most // 2].tolist(), *spread.tolist()]))
    queues = {
        kind: [row for row in order.tolist() if dataset.kinds[row] == kind] for kind in dict.fromkeys(dataset.kinds)
    }
    shares = -(-most // len(queues))
    for kind, queue in queues.items():
        if dataset.y is not None and not dataset.y[queue].any():  # a normal kind as it is, not its oddest few
            queues[kind] = [queue[i] for i in np.linspace(len(queue) - 1, 0, min(shares, len(queue))).astype(int)]
    turns = [row for turn in range(most) for queue in queues.values() for row in queue[turn : turn + 1]]
    return turns[:most]


def _words(dataset, row) -> str:
    parts = [str(row) if dataset.files is None else dataset.files[row]]
    if dataset.kinds is not None:
        parts.append(dataset.kinds[row])
    return ": ".join(parts)


def unit(pictures) -> np.ndarray:
    """Pictures as floats in [0, 1]."""
    pictures = np.asarray(pictures)
    return pictures / 255 if pictures.dtype == np.uint8 else np.clip(pictures, 0, 1)


def _within(rebuilt, like):
    """Reconstructions as pictures of the kind they were made from."""
    return np.clip(rebuilt, 0, 255).astype(np.uint8) if like.dtype == np.uint8 else np.clip(rebuilt, 0, 1)


def gray_to_rgb(pictures) -> np.ndarray:
    """Pictures as they are shown: uint8 ``[rows, height, width, 3]``, from uint8 or floats in [0, 1] of any number of channels."""
    shown = (255 * unit(pictures)).astype(np.uint8)
    return shown if shown.shape[-1] == 3 else np.repeat(shown[..., :1], 3, axis=-1)


def _image(picture: np.ndarray) -> str:
    from PIL import Image

    times = max(1, SHOWN_SIDE // min(picture.shape[:2]))
    buffer = io.BytesIO()
    Image.fromarray(picture.repeat(times, axis=0).repeat(times, axis=1)).save(buffer, format="PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


CSS = """
:root{color-scheme:light dark}body{margin:2rem auto;max-width:74rem;padding:0 1rem;font:16px/1.5 system-ui,sans-serif}
dl{display:flex;flex-wrap:wrap;gap:.5rem 2rem}dt{font-size:.8rem;opacity:.7}dd{margin:0}
table{border-collapse:collapse;font-size:.85rem}th,td{padding:.25rem .5rem;text-align:left;font-weight:400}
img{max-width:16rem;height:auto;display:block}footer{margin-top:2rem;font-size:.8rem;opacity:.7}
"""
