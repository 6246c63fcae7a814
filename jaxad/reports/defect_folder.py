"""A folder of pictures with defects made by an image detector: the layout of MVTec AD, a card that says how, and a page to look at."""

import html
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jaxad.data import read_defects, read_folder
from jaxad.data.images import ImageDataset
from jaxad.detectors import defects
from jaxad.detectors.defects import STRENGTHS, Defects
from jaxad.reports.page import html_table, write_page
from jaxad.reports.picture_page import CSS, gray_to_rgb, overlay, picture_table, unit
from jaxad.reports.tables import Cell, Table

DIFFERENCE = 3
"""How many times brighter than it is a difference is shown."""
LICENCE = (
    "These pictures derive from the normal pictures (and the examples of defects, if any) that they were made from: whatever licence "
    "holds for those holds for these. The anomalous ones are made, no real defect was photographed."
)


def write_defects(
    detector: Any,
    folder: str | os.PathLike,
    out: str | os.PathLike,
    *,
    examples: str | os.PathLike | None = None,
    reading: dict[str, Any] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    count: int | None = None,
    seed: int = 0,
    num_steps: int = 1000,
    model: str = "",
    most: int = 4,
    verbose: int = 0,
) -> dict[str, Any]:
    """Make defects in the normal pictures of ``folder`` (``detectors.defects.make_defects``), write them and return the card.

    ``out`` has ``test/<kind>`` and ``ground_truth/<kind>``, ready for ``data.read_mvtec``. Half of the normal pictures become
    ``train/good``, the others ``test/good`` and what the defects are made in, so no background of a test is trained on. ``card.json`` says
    how everything was made and how severe the detector finds it, ``index.html`` shows it. All of it is there at the end, or nothing.

    Args:
        folder: normal pictures, or a folder with ``train/good``; better not those that the detector was fitted on.
        out: must not exist.
        examples: ``test/<defect>`` and ``ground_truth/<defect>`` with 1 to 10 pictures of each kind (more are left out).
        reading: ``size``, ``fit`` and ``channels`` of the training pictures (``load_extra(model)["pictures"]``); None: stretched to the
            detector's size.
        model: the detector's name, for the card.
        most: pictures of each kind and strength on the page.

    Raises:
        ValueError: as ``make_defects`` and the readers of pictures, before any long work; fewer than two normal pictures.
        FileExistsError: ``out`` exists.
    """
    out, folder = Path(out), Path(folder)
    check_new_folder(out)
    defects.check_can_make(detector, few_shot=examples is not None)
    height, width, channels = detector.sample_shape_
    reading = {"size": (height, width), "channels": channels if channels in (1, 3) else None} | (reading or {})
    reading["size"] = tuple(reading["size"])
    few = None if examples is None else read_defects(examples, **reading)
    good = folder / "train" / "good"
    pictures = read_folder(good if good.is_dir() else folder, **reading)
    if len(pictures.x) < 2:
        raise ValueError(
            f"{folder}: expected at least two normal pictures, one to keep as it is and one to spoil, got 1"
        )
    if pictures.x.dtype != np.uint8 and pictures.x.shape[-1] != 1:
        raise ValueError(
            f"{folder}: coloured pictures of 16 bits cannot be written; save them with 8 bits, or fit the detector with channels=1"
        )
    shuffled = np.random.default_rng(seed).permutation(len(pictures.x))
    train, test = (
        pictures.take(np.sort(shuffled[: len(shuffled) // 2])),
        pictures.take(np.sort(shuffled[len(shuffled) // 2 :])),
    )
    made = defects.make_defects(
        *(detector, test.x),
        examples=few,
        strengths=strengths,
        count=count,
        seed=seed,
        num_steps=num_steps,
        verbose=verbose,
    )
    files = _names(made)
    p_normal = detector.p_values(test.x)
    card = {
        "jaxad": version("jaxad"),
        "model": {
            "name": model,
            "detector": type(detector).__name__,
            "denoiser": " ".join(repr(detector.scorer_.pixels.errors.network).split()),
        },
        "seed": seed,
        "steps": len(defects.PATH),
        "strengths": [float(strength) for strength in strengths],
        "kinds": _by_kind(made),
        "examples": None if few is None else dict(Counter(few.kinds or ())),
        "steps_of_learning": None if few is None else num_steps,
        "normal": {"train": len(train.x), "test": len(test.x), "severity": float(np.median(p_normal))},
        "severity": "median conformal p-value by the detector: .5 is what normal pictures have that it was not fitted on, small is severe",
        "least_p": 1 / (1 + len(detector.calibration_scores_)),
        "licence": LICENCE,
        "files": {
            file: {"made_from": (test.files or ())[normal], "strength": float(strength), "p": float(p)}
            for file, normal, strength, p in zip(files, made.normals, made.strengths, made.p, strict=True)
        },
    }
    with _folder_or_nothing(out) as partial:
        for split, dataset in (("train", train), ("test", test)):
            for row, picture in enumerate(dataset.x):
                _save(partial / split / "good" / f"{row:03}.png", picture)
        for file, picture, mask in zip(files, made.x, made.masks, strict=True):
            _save(partial / file, picture)
            truth = Path(file.replace("test", "ground_truth", 1))
            _save(partial / truth.with_name(f"{truth.stem}_mask.png"), 255 * mask[..., None].astype(np.uint8))
        (partial / "card.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
        title = f"Defects made in pictures of {folder.resolve().name}"
        write_page(partial / "index.html", title, _body(detector, test, made, files, card, most), LICENCE, style=CSS)
    return card


def check_new_folder(out: Path) -> None:
    """Raise unless a folder ``out`` can be made: a FileExistsError if there is something, a ValueError if there is no place for it."""
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists; generated pictures are never written over a folder: choose another name")
    if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise ValueError(
            f"{out} cannot be written: expected the name of a folder in a folder that exists and is writable"
        )


@contextmanager
def _folder_or_nothing(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` that takes its place in the end; of a run that is killed only that one is left."""
    partial = out.absolute().with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        check_new_folder(out)  # an empty folder that has appeared meanwhile would be replaced
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.dtype != np.uint8:
        picture = np.round(picture * 65535).astype(np.uint16)
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(path)


def _names(made: Defects) -> list[str]:
    """``test/<kind>/000.png``, counted within each kind."""
    counts: dict[str, int] = {}
    names = []
    for kind in made.kinds:
        names.append(f"test/{kind}/{counts.get(kind, 0):03}.png")
        counts[kind] = counts.get(kind, 0) + 1
    return names


def _by_kind(made: Defects) -> dict[str, Any]:
    found = {}
    for kind in dict.fromkeys(made.kinds):
        of = np.array([one == kind for one in made.kinds])
        at = {
            f"{strength:g}": float(np.median(made.p[of & (made.strengths == strength)]))
            for strength in np.unique(made.strengths)
        }
        found[kind] = {"count": int(of.sum()), "severity": float(np.median(made.p[of])), "severity_at": at}
    return found


# ------------------------------------------------------------------------------------------------------------------- the page


def _body(detector: Any, test: ImageDataset, made: Defects, files: list[str], card: dict[str, Any], most: int) -> str:
    levels = list(dict.fromkeys(float(strength) for strength in made.strengths))
    table = Table(
        ["kind", "pictures", *(f"strength {strength:g}" for strength in levels)],
        [
            [
                Cell(kind),
                Cell(str(of["count"])),
                *(Cell(f"{of['severity_at'][f'{strength:g}']:.3f}") for strength in levels),
            ]
            for kind, of in card["kinds"].items()
        ],
        [],
    )
    words = (
        f"Median p-value by the detector: small is severe, the least possible is {card['least_p']:.3f}. The same {len(test.x)} pictures "
        f"without a defect: {card['normal']['severity']:.3f}, about .5 if the detector was not fitted on them. A kind with p-values like "
        "theirs cannot be seen by this detector."
    )
    parts = [f"<h2>Severity</h2>{html_table(table, words)}"]
    for kind in card["kinds"]:
        parts.append(f"<h2>{html.escape(kind)}</h2>")
        for strength in levels:
            rows = [row for row, one in enumerate(made.kinds) if one == kind and made.strengths[row] == strength]
            p, rows = made.p[rows], rows[:most]
            shown, normal = made.x[rows], test.x[made.normals[rows]]
            difference = np.abs(unit(shown) - unit(normal)).mean(axis=-1, keepdims=True)
            columns = {
                "normal picture": gray_to_rgb(normal),
                "with a defect": gray_to_rgb(shown),
                "mask": np.repeat(255 * made.masks[rows][..., None].astype(np.uint8), 3, axis=-1),
                f"difference x {DIFFERENCE}": gray_to_rgb(np.clip(DIFFERENCE * difference, 0, 1)),
                "map": overlay(shown, detector.where(shown), detector.where_threshold_),
            }
            captions = [f"{files[row]}\np = {made.p[row]:.3f}" for row in rows]
            flagged = np.mean(p <= detector.false_alarm_rate)
            parts.append(
                f"<h3>strength {strength:g}: {len(p)} pictures, median p {np.median(p):.3f}, {flagged:.0%} with p up to "
                f"{detector.false_alarm_rate:g}</h3>{picture_table(captions, columns)}"
            )
    return "".join(parts)
