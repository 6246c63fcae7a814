"""Pictures on the command line: folders of them, plain or in the layout of MVTec AD."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxad.cli.terminal import check_file, plain_console, say_scored


@dataclass(frozen=True)
class Fitting:
    """How pictures are read and learned from."""

    size: int | None = None
    """Pictures: height and width in pixels to bring them to."""
    crop: bool = False
    """Pictures: scale until they cover the size and keep the middle, instead of stretching them."""
    channels: Literal[1, 3] | None = None
    """Pictures: 1 for gray, 3 for RGB; default: as they are."""
    skip_broken: bool = False
    """Pictures: leave out those that cannot be read, with a warning, instead of refusing the folder."""
    maps: bool = True
    """Pictures: train a denoiser of pixels, for maps of where."""
    num_steps: int = 2000
    """Pictures: most training steps of that denoiser."""
    minutes: float | None = None
    """Pictures: most minutes of its training; default: 5 on a CPU, on an accelerator no limit. With --run-dir each run has so many."""
    stream: bool = False
    """Pictures: read them batch by batch; done without asking where all of them would take most of the free memory."""
    workers: int = 0
    """Pictures, with stream: processes that read ahead of the training."""


@dataclass(frozen=True)
class Scoring:
    """What is written beside the scores."""

    page: Path | None = None
    """Pictures: an HTML page to write, with pictures, reconstructions and maps."""
    maps: Path | None = None
    """Pictures: an .npz file to write, with the maps [rows, height, width], the threshold and the names of the files."""
    skip_broken: bool = False
    """Pictures: leave out those that cannot be read, with a warning."""


@dataclass(frozen=True)
class Generating:
    """What defects are made in."""

    pictures: Path | None = None
    """Folder of normal pictures to make defects in, or one with train/good; better other ones than the model was fitted on."""
    defects: Path | None = None
    """Folder with real defects to learn from, 1 to 10 of each kind: test/<defect> and ground_truth/<defect>."""
    num_steps: int = 1000
    """With defects: steps of learning from them."""


MINUTES = 5


class Pictures:
    """The plug: see ``kinds.Kind``."""

    key, words, items, default = "pictures", "a folder of pictures", "pictures", "image"
    ours: tuple[str, ...] = ("image",)
    to_score = "FOLDER --out scores.csv --page report.html"
    Fitting, Scoring, Generating = Fitting, Scoring, Generating

    def holds(self, data: Path, options: Any = None) -> bool:
        """Any folder."""
        return data.is_dir()

    def detectors(self) -> dict[str, Any]:
        """The image detector, and all that other packages list."""
        from jaxad.detectors.catalogue import PICTURES, elsewhere, saveable

        return saveable(PICTURES | elsewhere())

    def settings(self, options: Any, given: set[str]) -> dict[str, Any]:
        """The denoiser's."""
        found = {option: getattr(options, option) for option in ("maps", "num_steps") if option in given}
        return found | ({} if options.minutes is None else {"max_seconds": 60 * options.minutes})

    def limits(self, options: Any, has: Any, resumes: bool, say: Any) -> dict[str, Any]:
        """A first answer within minutes, where a training may take hours and does not go on later."""
        import jax

        if (
            "max_seconds" not in has
            or resumes
            or not options.maps
            or options.minutes is not None
            or jax.default_backend() != "cpu"
        ):
            return {}
        say(
            f"on a CPU the denoiser's training ends after {MINUTES} minutes, then held-out pictures are measured, which takes "
            "minutes more: --minutes changes the first, --run-dir has no limit"
        )
        return {"max_seconds": 60 * MINUTES}

    def read(self, data: Path, options: Any, has: Any, say: Any) -> tuple[Any, dict[str, Any], dict[str, Any], str]:
        """An array, or files that are read batch by batch if memory is short on any process."""
        import jax

        from jaxad.data import PictureFiles, read_folder
        from jaxad.data.folders import passed_over
        from jaxad.runtime.distributed import any_process
        from jaxad.runtime.memory import available_bytes

        good = data / "train" / "good"
        folder = good if good.is_dir() else data
        fit: Any = "crop" if options.crop else "resize"
        reading: dict[str, Any] = {"size": options.size, "fit": fit, "channels": options.channels}
        on_error = "skip" if options.skip_broken else "raise"
        files = PictureFiles(folder, workers=options.workers, **reading)
        free = available_bytes(jax.devices("cpu")[0])
        # As bytes, as floats and standardised: nine to twelve bytes for every value.
        too_many = free is not None and 12 * math.prod(files.shape) > free / 2
        if any(any_process([options.stream or too_many])):
            rows: Any = files.usable(on_error)
            say(f"{rows.shape[0]} pictures in {folder}, read batch by batch")
        else:
            pictures = read_folder(folder, on_error=on_error, **reading)
            say(f"{pictures!r}")
            rows = pictures.x
        # What was decided by looking at the training pictures holds for those to come.
        if aside := passed_over(folder):
            say(f"warning: {aside}")
        height, width, channels = rows.shape[1:]
        kept = {**reading, "size": [height, width], "channels": channels if channels in (1, 3) else None}
        return rows, {self.key: kept}, {}, f"{len(rows)} pictures"

    def tell(self, fitted: Any, data: Path, options: Any, say: Any) -> None:
        """Nothing."""

    def score(self, asked: Any, options: Any) -> None:
        """In pieces, so that a folder may be of any length; as a whole for maps, a page or measurements. A bundle makes no page."""
        from jaxad.data import PictureFiles
        from jaxad.data.folders import passed_over
        from jaxad.shipping.bulk import score_folder

        for written in (options.page, options.maps):
            check_file(written)
        detector, extra, mark = asked.loaded
        tells_where = getattr(detector, "where_threshold_", None) is not None
        if options.maps is not None and not tells_where:
            raise ValueError(
                "--maps: the model was fitted with --no-maps and has no denoiser of pixels; fit it with --maps"
            )
        if options.page is not None and not hasattr(detector, "scorer_"):
            raise ValueError(
                f"--page: {asked.model} is a bundle, which scores and maps but makes no page: name the folder that jaxad fit has written"
            )
        reading = _reading(asked.model, extra[self.key])
        if options.page is None and options.maps is None and not (asked.data / "test").is_dir():
            files = PictureFiles(asked.data, **reading)
            files = files.usable("skip") if options.skip_broken else files
            done = score_folder(detector, files, asked.out, mark=mark, progress=True, **asked.rates)
            say_scored("pictures", done, asked.out)
            if aside := passed_over(asked.data):
                plain_console().print(f"warning: {aside}")
        else:
            _score_whole(
                asked, reading | {"on_error": "skip" if options.skip_broken else "raise"}, options, tells_where
            )

    def generate(self, model: Path, out: Path, made: dict[str, Any], options: Any) -> None:
        """A folder in the layout of MVTec AD."""
        from jaxad.detectors.persistence import load_detector, load_extra
        from jaxad.reports.defect_folder import STRENGTHS, check_new_folder, write_defects

        if options.pictures is None:
            raise ValueError(
                "--defects says what defects in pictures look like: name a folder of normal ones with --pictures as well"
                if options.defects is not None
                else f"{model} makes defects in pictures: name a folder of normal ones with --pictures"
            )
        check_new_folder(out)
        started = time.perf_counter()
        card = write_defects(
            *(load_detector(model), options.pictures, out),
            examples=options.defects,
            reading=(load_extra(model) or {}).get(self.key),
            strengths=made["strength"] or STRENGTHS,
            count=made["count"],
            seed=made["seed"],
            num_steps=options.num_steps,
            model=model.resolve().name,
            verbose=1,
        )
        severity = ", ".join(f"{kind} {of['severity']:.3f}" for kind, of in card["kinds"].items())
        plain_console().print(
            f"{len(card['files'])} pictures with defects written to {out} in {time.perf_counter() - started:.1f} s; median p-value of each "
            f"kind: {severity} (without defects {card['normal']['severity']:.3f}); look at {out / 'index.html'}"
        )


def _reading(model: Path, kept: Any) -> dict[str, Any]:
    """As the pictures of training were read."""
    match kept:
        case {"size": [int(height), int(width)], "fit": str(fit), "channels": int() | None as channels}:
            return {"size": (height, width), "fit": fit, "channels": channels}
    raise ValueError(f"{model} does not say how its pictures are read: score arrays with it, from Python")


def _score_whole(asked: Any, reading: dict[str, Any], options: Any, tells_where: bool) -> None:
    from jaxad.data import read_folder, read_mvtec
    from jaxad.data.folders import passed_over
    from jaxad.reports.picture_page import measured, write_image_report
    from jaxad.runtime.files import put, unfinished
    from jaxad.shipping.bulk import HEADER, judged, write_scores

    detector, folder, console = asked.loaded.detector, asked.data, plain_console()
    read: Any = read_mvtec if (folder / "test").is_dir() else read_folder
    pictures = read(folder, **reading)
    pictures = pictures[1] if isinstance(pictures, tuple) else pictures
    started, where = time.perf_counter(), None
    if not tells_where or (options.maps is None and pictures.masks is None):
        normality = detector.score_samples(pictures.x)
    elif hasattr(detector, "score_and_where"):
        normality, where = detector.score_and_where(pictures.x)
    else:
        normality, where = detector.score_samples(pictures.x), detector.where(pictures.x)
    seconds = time.perf_counter() - started
    p, flagged = judged(detector, normality, asked.alpha, asked.fdr)
    columns = ((-normality).tolist(), p.round(6).tolist(), flagged.astype(int).tolist())
    write_scores(asked.out, ("file", *HEADER[1:]), zip(pictures.files, *columns, strict=True))
    console.print(
        f"{len(normality)} pictures scored in {seconds:.1f} s, {flagged.sum()} flagged; written to {asked.out}"
    )
    if not (folder / "test").is_dir() and (aside := passed_over(folder)):
        console.print(f"warning: {aside}")
    if options.maps is not None:
        whole = unfinished(options.maps, ".partial.npz")
        np.savez_compressed(
            whole, maps=np.asarray(where), threshold=detector.where_threshold_, files=np.array(pictures.files)
        )
        put(whole, options.maps)
        console.print(f"maps written to {options.maps}")
    found = measured(pictures, -normality, where)
    if found:
        console.print(", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    if options.page is not None:
        write_image_report(detector, pictures, options.page, title=folder.resolve().name)
        console.print(f"page written to {options.page}")
