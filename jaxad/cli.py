"""The ``jaxad`` command, for people with a file and a deadline: ``demo``, ``fit``, ``cycle``, ``generate``, ``score`` and the rest."""

import csv
import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from jaxad.runtime.runs import RunDirectory, RunStopped
from jaxad.shipping.bodies import DEFAULT, Limits

DEMO_SETS = ("digits_3", "digits_8", "breast_cancer", "wine_0")
DEMO_DETECTORS = ("iforest", "ocsvm", "copod", "knn", "recommended", "ddpm", "dit", "dte-c")
SAVED = (
    "recommended",
    "ddpm",
    "dit",
    "dte-c",
    "dte-ig",
    "dte-np",
    "knn",
    "knn-mean",
    "1nn",
    "copod",
    "ecod",
    "mahalanobis",
    "norm",
)


def demo(out: Path = Path("runs/demo"), seed: int = 0) -> None:
    """Train diffusion detectors on real data that ships with scikit-learn, beside honest baselines; no network needed."""
    from jaxad import data
    from jaxad.detectors.catalogue import choose
    from jaxad.evaluation import sweep
    from jaxad.reports.page import comparison_table, markdown_table, write_report

    console = Console()
    console.print(
        f"{len(DEMO_SETS)} real data sets x {len(DEMO_DETECTORS)} detectors, protocol clean: trained on half of the normal rows, "
        "tested on the other half and all anomalies."
    )
    started = time.perf_counter()
    loaders = {name: partial(data.builtin, name) for name in DEMO_SETS}
    records = sweep.run(loaders, choose(DEMO_DETECTORS), out=out, protocol="clean", seeds=(seed,))
    page = write_report(records, out / "report.html", scores_dir=out, title="jaxad demo")
    console.print(Markdown(markdown_table(records)))
    console.print(Markdown(comparison_table(records)))
    plain_console().print(
        f"{time.perf_counter() - started:.0f} s. Records: {out / 'results.jsonl'}   Page with ROC curves: {page}"
    )


@dataclass(frozen=True)
class Devices:
    """Where a training runs."""

    devices: Literal["one", "all", "cut"] | None = None
    """one: the first device. all: every device takes its part of a batch. cut: as all, with the state of the training cut over them, for
    networks that fill one. Default: one, or all of several processes."""
    coordinator: str | None = None
    """Run as one of several processes: host:port at which process 0 is reached, or auto where Slurm, Open MPI, Kubernetes or a TPU pod
    says who is who."""
    processes: int | None = None
    """Their number, with host:port."""
    process_id: int | None = None
    """The number of this one, from 0, with host:port."""
    lost_after: float = 60.0
    """Seconds without a sign of life after which a process counts as lost and the others stop."""

    def joined(self) -> AbstractContextManager:
        """The context in which this process is one of several."""
        from jaxad.runtime.distributed import joined

        if self.coordinator is None and (self.processes, self.process_id) != (None, None):
            raise ValueError("--processes and --process-id need --coordinator host:port, the address of process 0")
        if self.coordinator is not None and self.devices == "one":
            raise ValueError("--devices one: several processes train on all of their devices, choose all or cut")
        if self.coordinator is None:
            return nullcontext()
        address = None if self.coordinator == "auto" else self.coordinator
        return joined(address, self.processes, self.process_id, timeout=self.lost_after)

    def settings(self, detector: str, has: Any) -> dict[str, Any]:
        """What a detector with the parameters ``has`` is to be told."""
        from jaxad.runtime.sharding import data_mesh

        if self.coordinator is None and self.devices in (None, "one"):
            return {}
        wanted = {"mesh": data_mesh()} | ({"shard_parameters": True} if self.devices == "cut" else {})
        if missing := [name for name in wanted if name not in has]:
            raise ValueError(
                f"--devices, --coordinator: {detector} has no {missing[0]}, it is fitted on one device"
                + ("" if "mesh" in missing else " or on copies of its state: choose --devices all")
            )
        return wanted


ONE_DEVICE = Devices()


def fit(
    data: Annotated[Path, tyro.conf.Positional],
    out: Path,
    detector: str = "recommended",
    label_column: str | None = None,
    seed: int = 0,
    false_alarm_rate: float = 0.05,
    size: int | None = None,
    crop: bool = False,
    channels: Literal[1, 3] | None = None,
    skip_broken: bool = False,
    maps: bool = True,
    num_steps: int = 2000,
    stream: bool = False,
    workers: int = 0,
    run_dir: Path | None = None,
    save_minutes: float = 5.0,
    tensorboard: bool = False,
    where: Annotated[Devices, tyro.conf.OmitArgPrefixes] = ONE_DEVICE,
) -> None:
    """Learn what is normal from a file of normal rows, or a folder of normal pictures, and save the detector.

    Args:
        data: .csv, .parquet, .npy or .npz (key X, labels y if any) of normal rows; rows labelled 1 are left out. Or a folder of pictures
            (PNG, JPEG, BMP, TIFF), or one with train/good.
        out: folder for the fitted detector.
        detector: for tables, one of recommended, ddpm, dit, dte-c, dte-ig, dte-np, knn, knn-mean, 1nn, copod, ecod, mahalanobis, norm.
        label_column: column of a csv or parquet file that holds 0 (normal) or 1 (anomalous).
        seed: random seed.
        false_alarm_rate: share of normal rows or pictures that may be flagged, between 0 and 0.5.
        size: pictures: height and width in pixels to bring them to.
        crop: pictures: scale until they cover the size and keep the middle, instead of stretching them.
        channels: pictures: 1 for gray, 3 for RGB; default: as they are.
        skip_broken: pictures: leave out those that cannot be read, with a warning, instead of refusing the folder.
        maps: pictures: train a denoiser of pixels, for maps of where.
        num_steps: pictures: most training steps of that denoiser.
        stream: pictures: read them batch by batch; done without asking where all of them would take most of the free memory.
        workers: pictures, with stream: processes that read ahead of the training.
        run_dir: folder to keep the state of the training in; if it is stopped (Ctrl-C, SIGTERM: exit code 75) or killed, the same command
            goes on from there, to the same result.
        save_minutes: with run_dir: minutes between two saves.
        tensorboard: with run_dir: write curves for TensorBoard there.
        where: one device, several, or several processes (docs/scaling.md).
    """
    if tensorboard and run_dir is None:
        raise ValueError("--tensorboard writes its curves to the run directory: name one with --run-dir")
    run = None if run_dir is None else RunDirectory(run_dir, save_minutes, tensorboard=tensorboard)
    settings = {"random_state": seed, "false_alarm_rate": false_alarm_rate, "run_dir": run}
    # Inside as well: what ends one of several processes has to be its exit code by the time the others hear of it.
    with where.joined(), _exit_on_mendable():
        if data.is_dir():
            reading = {"size": size, "fit": "crop" if crop else "resize", "channels": channels}
            settings |= {"maps": maps, "num_steps": num_steps}
            on_error = "skip" if skip_broken else "raise"
            _fit_pictures(data, out, reading, on_error, settings, stream, workers, where)
        else:
            _fit_table(data, out, detector, label_column, seed, false_alarm_rate, run, where)


def _fit_table(data, out, detector, label_column, seed, false_alarm_rate, run, where) -> None:
    from jaxad.data import read_table
    from jaxad.detectors.catalogue import DETECTORS, choose
    from jaxad.detectors.persistence import check_writable, save_detector

    console = plain_console(of_main=True)
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed is a whole number from 0 to {2**32 - 1}, got {seed}")
    chosen: Any = choose([detector], {name: DETECTORS[name] for name in SAVED})[detector](seed)
    settings: dict[str, Any] = {"false_alarm_rate": false_alarm_rate, **where.settings(detector, chosen.get_params())}
    if "verbose" in chosen.get_params():
        settings["verbose"] = 1
    if run is not None:
        if "run_dir" not in chosen.get_params():
            raise ValueError(f"--run-dir: {detector} is fitted in one go, there is no state to keep")
        settings["run_dir"] = run
    chosen.set_params(**settings)
    if not 0 <= false_alarm_rate <= 0.5:
        raise ValueError(f"--false-alarm-rate is a share of normal rows between 0 and 0.5, got {false_alarm_rate}")
    check_writable(out)
    table = read_table(data, label_column=label_column)
    rows = table.x
    if table.y is not None:
        rows = rows[table.y == 0]
        if not len(rows):
            raise ValueError(f"{data} holds no normal row to learn from: all {len(table.x)} are labelled anomalous")
        console.print(f"{len(table.x) - len(rows)} rows labelled anomalous are left out of training")
    started = time.perf_counter()
    chosen.fit(rows)
    seconds = time.perf_counter() - started
    extra = {"columns": table.columns, "detector": detector, "seed": seed, "rows": len(rows)}
    save_detector(chosen, out, extra=extra)
    console.print(
        f"{detector} fitted on {len(rows)} rows of {rows.shape[1]} features in {seconds:.1f} s and saved to {out}; "
        f"score rows with: jaxad score {out} FILE --out scores.csv"
    )


def score(
    model: Annotated[Path, tyro.conf.Positional],
    data: Annotated[Path, tyro.conf.Positional],
    out: Path,
    label_column: str | None = None,
    alpha: float | None = None,
    fdr: float | None = None,
    page: Path | None = None,
    maps: Path | None = None,
    skip_broken: bool = False,
) -> None:
    """Score a file or a folder with a saved detector: a csv of row, anomaly_score (larger = more anomalous), p_value and flagged (0 or 1).

    The p-value is the chance that a normal row scores so high, by the normal rows that ``fit`` has held out.

    Args:
        model: folder written by ``jaxad fit``, or for a file of rows by ``jaxad export``.
        data: file of rows with the columns of training; or a folder of pictures, or one with test/good, test/<defect> and ground_truth.
        out: csv file to write.
        label_column: column with 0 or 1 to measure against; it is not scored.
        alpha: flag rows with a p-value up to this: so large a share of normal rows is flagged. Default: the false alarm rate of ``fit``.
        fdr: flag as many rows as possible of which this share, on average, is normal (Benjamini and Hochberg's false discovery rate).
        page: pictures: an HTML page to write, with pictures, reconstructions and maps.
        maps: pictures: an .npz file to write, with the maps [rows, height, width], the threshold and the names of the files.
        skip_broken: pictures: leave out those that cannot be read, with a warning.
    """
    from jaxad import metrics
    from jaxad.data import PictureFiles, table_blocks
    from jaxad.shipping.bulk import load, read_scores, score_file, score_folder

    console = plain_console()
    _check_rates(alpha, fdr)
    if out.is_dir():
        raise ValueError(f"--out names a csv file, {out} is a folder")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the folder {out.parent} does not exist")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(f"--out {out} cannot be written: check the permissions")
    if out.exists() and data.exists() and out.samefile(data):
        raise ValueError(f"--out {out} is the file to score, which it would replace: choose another name")
    for written in (page, maps):
        if written is not None:
            _check_page(written)
    detector, extra, mark = loaded = load(model)
    rates: Any = {"alpha": alpha, "fdr": fdr}
    if ("pictures" in extra) != data.is_dir():
        kinds = ("a folder of pictures", "a file of rows")
        wanted, got = kinds if "pictures" in extra else reversed(kinds)
        raise ValueError(f"{model} was fitted on {wanted}, {data} is {got if data.exists() else 'missing'}")
    if data.is_dir():
        on_error = "skip" if skip_broken else "raise"
        if page is None and maps is None and not (data / "test").is_dir():
            reading = {**extra["pictures"], "size": tuple(extra["pictures"]["size"])}
            files = PictureFiles(data, **reading)
            files = files.usable("skip") if skip_broken else files
            done = score_folder(detector, files, out, mark=mark, progress=True, **rates)
            _say_scored(console, "pictures", done, out)
            return
        _score_pictures(detector, extra["pictures"], data, out, page, maps, on_error, alpha, fdr)
        return
    done = score_file(
        detector, data, out, columns=loaded.columns, label_column=label_column, mark=mark, progress=True, **rates
    )
    _say_scored(console, "rows", done, out)
    if label_column is None and data.suffix.lower() != ".npz":
        return
    labels = [piece.y for piece in table_blocks(data, label_column=label_column) if piece.y is not None]
    if labels and len(np.unique(np.concatenate(labels))) == 2:
        y, scores = np.concatenate(labels), read_scores(out)
        console.print(
            f"AUROC {metrics.auroc(y, scores):.4f}, average precision {metrics.average_precision(y, scores):.4f}"
        )


def score_files(
    model: Annotated[Path, tyro.conf.Positional],
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Path,
    label_column: str | None = None,
    alpha: float | None = None,
    fdr: float | None = None,
    ray: str | None = None,
) -> None:
    """Score many files of rows with a saved detector: one csv for each, as of ``jaxad score``; those that are done are not scored again.

    Args:
        model: folder written by ``jaxad fit`` or ``jaxad export``.
        files: files of rows with the columns of training, each of a name of its own.
        out: folder for the csv files.
        label_column: column with 0 or 1 that is not to be scored.
        alpha: flag rows with a p-value up to this. Default: the false alarm rate of ``fit``.
        fdr: flag as many rows of a file as possible of which this share, on average, is normal.
        ray: where the files are scored at the same time: local, on the cores of this machine, or the address of a Ray cluster, such as
            auto or host:6379, that sees the same folders. Default: here, one after the other.
    """
    from jaxad.runtime import cluster
    from jaxad.shipping import bulk

    console = plain_console()
    _check_rates(alpha, fdr)
    if not out.parent.is_dir() or (out.exists() and not out.is_dir()):
        raise ValueError(f"--out {out}: expected the name of a folder in a folder that exists")
    seen = []

    def tell(file, scored):
        seen.append(file)
        console.print(f"{file.name}: {scored.rows} rows, {scored.flagged} flagged, {scored.seconds:.1f} s")

    with nullcontext() if ray is None else cluster.on_ray(ray) as elsewhere:
        done = bulk.score_files(
            *(model.absolute(), [file.absolute() for file in files], out.absolute()),
            label_column=label_column,
            alpha=alpha,
            fdr=fdr,
            on_file=tell,
            elsewhere=elsewhere,
        )
    earlier = f" ({len(done) - len(seen)} of them by an earlier run)" if len(seen) < len(done) else ""
    console.print(f"{len(done)} files{earlier}, {sum(each.rows for each in done.values())} rows scored into {out}")


def _say_scored(console, what, done, out) -> None:
    earlier = f" ({done.taken_up} of them by an earlier run)" if done.taken_up else ""
    console.print(
        f"{done.rows} {what} scored in {done.seconds:.1f} s{earlier}, {done.flagged} flagged; written to {out}"
    )


def _check_rates(alpha, fdr) -> None:
    if alpha is not None and fdr is not None:
        raise ValueError(
            "--alpha bounds the share of normal rows that are flagged, --fdr that of flagged rows that are normal: give one"
        )
    for option, rate in (("--alpha", alpha), ("--fdr", fdr)):
        if rate is not None and not 0 <= rate <= 1:
            raise ValueError(f"{option} is a rate between 0 and 1, got {rate}")


def _check_page(written: Path) -> None:
    if written.is_dir() or not written.parent.is_dir():
        raise ValueError(f"{written} cannot be written: expected the name of a file in a folder that exists")


def _write_scores(out: Path, names: dict[str, Any], normality, p, flagged) -> None:
    partial_file = out.with_name(out.name + ".partial")
    with partial_file.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "anomaly_score", "p_value", "flagged"])
        columns = ((-normality).tolist(), p.round(6).tolist(), flagged.astype(int).tolist())
        writer.writerows(zip(*names.values(), *columns, strict=True))
    partial_file.replace(out)


def _fit_pictures(folder, out, reading, on_error, settings, stream, workers, where) -> None:
    import jax

    from jaxad.data import PictureFiles, read_folder
    from jaxad.detectors import ImageDetector
    from jaxad.detectors.persistence import check_writable, save_detector
    from jaxad.runtime.distributed import any_process
    from jaxad.runtime.memory import available_bytes

    console = plain_console(of_main=True)
    seed, false_alarm_rate = settings["random_state"], settings["false_alarm_rate"]
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed is a whole number from 0 to {2**32 - 1}, got {seed}")
    if not 0 <= false_alarm_rate <= 0.5:
        raise ValueError(f"--false-alarm-rate is a share of normal pictures between 0 and 0.5, got {false_alarm_rate}")
    check_writable(out)
    good = folder / "train" / "good"
    folder = good if good.is_dir() else folder
    files = PictureFiles(folder, workers=workers, **reading)
    free = available_bytes(jax.devices("cpu")[0])
    # As bytes, as floats and standardised: nine to twelve bytes for every value.
    too_many = free is not None and 12 * math.prod(files.shape) > free / 2
    if any(any_process([stream or too_many])):
        pictures = files.usable(on_error)
        console.print(f"{pictures.shape[0]} pictures in {folder}, read batch by batch")
        rows = pictures
    else:
        pictures = read_folder(folder, on_error=on_error, **reading)
        console.print(f"{pictures!r}")
        rows = pictures.x
    # What was decided by looking at the training pictures holds for those to come.
    reading = {**reading, "size": list(rows.shape[1:3])}
    started = time.perf_counter()
    devices = where.settings("the image detector", ImageDetector().get_params())
    detector = ImageDetector(verbose=1, **settings, **devices).fit(rows)
    seconds = time.perf_counter() - started
    save_detector(detector, out, extra={"pictures": reading, "seed": seed, "rows": len(rows)})
    console.print(
        f"image detector fitted on {len(rows)} pictures in {seconds:.1f} s and saved to {out}; "
        f"score pictures with: jaxad score {out} FOLDER --out scores.csv --page report.html"
    )


def _score_pictures(detector, reading, folder, out, page, maps, on_error, alpha, fdr) -> None:
    from jaxad.data import read_folder, read_mvtec
    from jaxad.detectors.scorer import tells_where
    from jaxad.reports.picture_page import measured, write_image_report
    from jaxad.shipping.bulk import judged

    console = plain_console()
    if maps is not None and not tells_where(detector.scorer_):
        raise ValueError(
            "--maps: the model was fitted with --no-maps and has no denoiser of pixels; fit it with --maps"
        )
    reading = {**reading, "size": tuple(reading["size"]), "on_error": on_error}
    read: Any = read_mvtec if (folder / "test").is_dir() else read_folder
    pictures = read(folder, **reading)
    pictures = pictures[1] if isinstance(pictures, tuple) else pictures
    started = time.perf_counter()
    where = None
    if tells_where(detector.scorer_) and (maps is not None or pictures.masks is not None):
        normality, where = detector.score_and_where(pictures.x)
    else:
        normality = detector.score_samples(pictures.x)
    seconds = time.perf_counter() - started
    p, flagged = judged(detector, normality, alpha, fdr)
    _write_scores(out, {"file": pictures.files}, normality, p, flagged)
    console.print(f"{len(normality)} pictures scored in {seconds:.1f} s, {flagged.sum()} flagged; written to {out}")
    if maps is not None:
        partial_file = maps.with_name(maps.name + ".partial.npz")
        np.savez_compressed(
            partial_file, maps=np.asarray(where), threshold=detector.where_threshold_, files=np.array(pictures.files)
        )
        partial_file.replace(maps)
        console.print(f"maps written to {maps}")
    found = measured(pictures, -normality, where)
    if found:
        console.print(", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    if page is not None:
        write_image_report(detector, pictures, page, title=folder.resolve().name)
        console.print(f"page written to {page}")


def cycle(
    data: Annotated[Path, tyro.conf.Positional],
    out: Path,
    anomalies: Path | None = None,
    label_column: str | None = None,
    rounds: int = 2,
    seed: int = 0,
    false_alarm_rate: float = 0.05,
    report: Path | None = None,
) -> None:
    """Learn from normal rows and from anomalies made of them, keep what was learned only if it helps, and save the detector.

    Rows labelled 1 in the file, and those of ``anomalies``, are known anomalies: five are enough to be of use. Score rows with
    ``jaxad score``, make anomalies with ``jaxad generate``.

    Args:
        data: .csv, .parquet, .npy or .npz (key X, labels y if any) of normal rows.
        out: folder for the fitted detector.
        anomalies: a file of known anomalies, with the same columns.
        label_column: column of a csv or parquet file that holds 0 (normal) or 1 (anomalous).
        rounds: most rounds.
        seed: random seed.
        false_alarm_rate: share of normal rows that may be flagged, between 0 and 0.5.
        report: an HTML page to write, on what each round gained and whether it was believed; default: report.html in the model's folder.
    """
    from jaxad.data import read_table
    from jaxad.detectors import CycleDetector
    from jaxad.detectors.persistence import check_writable, save_detector
    from jaxad.reports.cycle_page import write_cycle_report
    from jaxad.shipping.bulk import in_order_of_training

    console = plain_console()
    check_writable(out)
    if report is not None:
        _check_page(report)
    table = read_table(data, label_column=label_column)
    labels = np.zeros(len(table.x), int) if table.y is None else table.y
    rows, known = table.x[labels == 0], [table.x[labels == 1]]
    if anomalies is not None:
        known.append(in_order_of_training(read_table(anomalies, label_column=label_column), table.columns, anomalies))
        if known[1].shape[1:] != rows.shape[1:]:
            raise ValueError(f"{anomalies} has {known[1].shape[1]} columns, {data} has {rows.shape[1]}")
    few = np.concatenate(known)
    started = time.perf_counter()
    detector = CycleDetector(rounds=rounds, random_state=seed, false_alarm_rate=false_alarm_rate, verbose=1)
    detector.fit(rows, anomalies=few if len(few) else None)
    for number, done in enumerate(detector.rounds_, 1):
        kept = ", ".join(f"{count} {kind}" for kind, count in done["kept"].items())
        judged = "".join(
            f"; {name.replace('_', ' ')} {done[name]:+.4f}" for name in ("kind_gain", "known_gain") if name in done
        )
        console.print(f"round {number}, strength {done['strength']:.2f}: kept {kept}{judged}")
    save_detector(detector, out, extra={"columns": table.columns, "detector": "cycle", "seed": seed, "rows": len(rows)})
    written = write_cycle_report(detector, report or out / "report.html", title=f"Cycle on {data.name}")
    console.print(
        f"{detector.reason_}\npage written to {written}\n{len(rows)} normal rows, {len(few)} known anomalies, "
        f"{time.perf_counter() - started:.1f} s; saved to {out}: score rows with jaxad score {out} FILE --out scores.csv"
    )


def generate(
    model: Annotated[Path, tyro.conf.Positional],
    out: Path,
    count: int | None = None,
    strength: tuple[float, ...] = (),
    seed: int = 0,
    pictures: Path | None = None,
    defects: Path | None = None,
    num_steps: int = 1000,
) -> None:
    """Make anomalies: rows with a detector of ``jaxad cycle``, defects in ``pictures`` with one that ``jaxad fit`` made from a folder.

    *Rows*: a .npz file of all kinds of the cycle. It holds X [count, columns] in the units of the data, y (ones), mask (what was
    changed), kind (in words), p (the conformal p-value of each by that detector: small is severe) and a card (JSON: how they were made).
    ``jaxad`` reads it as a table.

    *Pictures*: a folder in the layout of MVTec AD, with train/good, test/<kind>, ground_truth/<kind>, card.json, and index.html to look at.

    Args:
        model: folder written by ``jaxad cycle``, or by ``jaxad fit`` for pictures.
        out: .npz file, or for pictures a folder; it must not exist.
        count: anomalies in all; default: 1000 rows, or 8 pictures of each kind and strength.
        strength: rows: one number in (0, 10], 1 (the default) is the middle of each kind's range. Pictures: one or several in (0, 1], from
            subtle to plain; default: 0.5 0.8 1.
        seed: random seed.
        pictures: folder of normal pictures to make defects in, or one with train/good; better other ones than the model was fitted on.
        defects: folder with real defects to learn from, 1 to 10 of each kind: test/<defect> and ground_truth/<defect>.
        num_steps: with defects: steps of learning from them.
    """
    from jaxad.detectors import CycleDetector, ImageDetector
    from jaxad.detectors.persistence import load_detector, load_extra
    from jaxad.generation import Kind

    if pictures is not None:
        _generate_pictures(model, out, count, strength, seed, pictures, defects, num_steps)
        return
    if defects is not None:
        raise ValueError(
            "--defects says what defects in pictures look like: name a folder of normal ones with --pictures as well"
        )
    if len(strength) > 1:
        raise ValueError(f"rows are made at one --strength, got {', '.join(map(str, strength))}")
    count, factor = 1000 if count is None else count, strength[0] if strength else 1.0
    if out.suffix != ".npz":
        raise ValueError(f"--out is a .npz file, got {out}")
    if out.exists():
        raise FileExistsError(f"{out} exists; generated anomalies never replace a file: choose another name")
    if not out.parent.is_dir():
        raise ValueError(f"{out} cannot be written: expected the name of a file in a folder that exists")
    detector = load_detector(model)
    if not isinstance(detector, CycleDetector):
        advice = (
            "name a folder of normal ones with --pictures"
            if isinstance(detector, ImageDetector)
            else "make one with jaxad cycle"
        )
        kind = "makes defects in pictures" if isinstance(detector, ImageDetector) else "generates nothing"
        raise ValueError(f"{model} holds a {type(detector).__name__}, which {kind}: {advice}")
    made = detector.generate(count, seed=seed, strength=factor)
    kinds = np.array([Kind(int(code)).name.lower() for code in made.kind])
    p = detector.p_values(made.x)
    extra = load_extra(model) or {}
    card = {
        **{
            "jaxad": version("jaxad"),
            "count": count,
            "strength": factor,
            "seed": seed,
            "columns": extra.get("columns"),
        },
        "severity": {kind: float(np.median(p[kinds == kind])) for kind in sorted(set(kinds))},
    }
    arrays = {"X": made.x, "y": np.ones(count, np.int64), "mask": np.asarray(made.mask), "kind": kinds, "p": p}
    partial = out.with_name(f".{out.name}")
    try:
        np.savez_compressed(partial, **arrays, card=np.array(json.dumps(card)))
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    severity = ", ".join(f"{kind} {value:.3f}" for kind, value in card["severity"].items())
    plain_console().print(f"{count} anomalies written to {out}; median p-value of each kind: {severity}")


def _generate_pictures(model, out, count, strength, seed, pictures, defects, num_steps) -> None:
    from jaxad.detectors.persistence import load_detector, load_extra
    from jaxad.reports.defect_folder import STRENGTHS, check_new_folder, write_defects

    check_new_folder(out)
    started = time.perf_counter()
    card = write_defects(
        *(load_detector(model), pictures, out),
        examples=defects,
        reading=(load_extra(model) or {}).get("pictures"),
        strengths=strength or STRENGTHS,
        count=count,
        seed=seed,
        num_steps=num_steps,
        model=model.resolve().name,
        verbose=1,
    )
    severity = ", ".join(f"{kind} {of['severity']:.3f}" for kind, of in card["kinds"].items())
    plain_console().print(
        f"{len(card['files'])} pictures with defects written to {out} in {time.perf_counter() - started:.1f} s; median p-value of each "
        f"kind: {severity} (without defects {card['normal']['severity']:.3f}); look at {out / 'index.html'}"
    )


def export(model: Annotated[Path, tyro.conf.Positional], out: Path, licence: str | None = None) -> None:
    """Turn a saved detector into a bundle that scores with jax, numpy and flatbuffers alone (``jaxad.load_scorer``), on CPU, CUDA and TPU.

    Args:
        model: folder written by ``jaxad fit``.
        out: folder for the bundle.
        licence: under which the bundle may be used, for its card.
    """
    from jaxad.detectors.persistence import load_detector, load_extra
    from jaxad.shipping import bundle
    from jaxad.shipping.export import export_detector

    detector, extra = load_detector(model), load_extra(model) or {}
    started = time.perf_counter()
    about = {name: extra[name] for name in ("rows", "detector", "seed", "pictures") if name in extra}
    export_detector(detector, out, columns=extra.get("columns"), licence=licence, data=about)
    size = sum(file.stat().st_size for file in out.iterdir()) / 2**20
    plain_console().print(
        f"{type(detector).__name__} exported to {out} in {time.perf_counter() - started:.1f} s, {size:.1f} MiB; its scores are the "
        f"detector's to within {bundle.TOLERANCE:g}, checked on example rows"
    )


def serve(
    scorer: Annotated[Path, tyro.conf.Positional],
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Annotated[Limits, tyro.conf.OmitArgPrefixes] = DEFAULT,
) -> None:
    """Answer requests for scores over HTTP: POST /score with JSON or Arrow, GET /health, /card, /metrics; until SIGTERM or Ctrl-C.

    Args:
        scorer: folder written by ``jaxad export``.
        host: address to listen on; the default is this machine alone. There is no authentication: beyond it, put a proxy in front.
        port: port to listen on; 0 takes one that is free, and says which.
        limits: what clients may ask for.
    """
    try:
        from jaxad.shipping.serve import serve as run
    except ImportError as error:
        raise ValueError(
            f"the service is made of packages that are missing here: pip install 'jaxad[serve]' ({error})"
        ) from error
    run(scorer, host, port, limits)


def import_weights(
    weights: Annotated[Path, tyro.conf.Positional],
    out: Path,
    network: str,
    size: int,
    channels: int = 3,
) -> None:
    """Turn published weights (.safetensors or .msgpack) into parameters of jaxad's U-Net or DiT, checked by name and shape.

    Args:
        weights: .safetensors of diffusers' UNet2DModel or DiTTransformer2DModel, of guided-diffusion (ADM) or the original DiT, or
            .msgpack of diffusers' former Flax U-Nets. Pickles (.pt, .bin) are refused.
        out: .safetensors file to write, one array per parameter, its name the path in the tree.
        network: a JSON object with "class" ("UNet" or "DiT") and its fields, for example
            '{"class": "DiT", "hidden": 1152, "depth": 28, "heads": 16, "patch_size": 2, "num_classes": 1000, "learned_variance": true}'.
        size: height and width of its input in pixels (latents, where it was trained on those).
        channels: of its input.
    """
    import json

    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save_file

    from jaxad.denoisers import DiT, UNet
    from jaxad.denoisers.weights import load_weights

    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out}: expected the name of a file in a folder that exists")
    try:
        fields = json.loads(network)
        chosen = {"UNet": UNet, "DiT": DiT}[fields.pop("class")]
        made = chosen(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--network: expected a JSON object with class UNet or DiT and its fields, got {network!r} ({error})"
        ) from error
    params = load_weights(weights, made, (1, size, size, channels))
    flat = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(params).items()}
    partial_file = out.with_name(out.name + ".partial")
    save_file(flat, partial_file)
    partial_file.replace(out)
    total = sum(leaf.size for leaf in flat.values())
    plain_console().print(f"{len(flat)} arrays, {total:,} parameters, all matched; written to {out}")


def report(results: Annotated[Path, tyro.conf.Positional], out: Path | None = None) -> None:
    """One self-contained HTML page from a run's folder or its results.jsonl.

    Args:
        results: folder with results.jsonl (and scores/, for ROC curves and intervals), or the file.
        out: page to write; default: report.html beside the results.
    """
    from jaxad.evaluation import sweep
    from jaxad.reports.page import markdown_table, write_report

    records = sweep.read_results(results)
    folder = results if results.is_dir() else results.parent
    if out is not None and out.exists() and out.samefile(folder / sweep.RESULTS if results.is_dir() else results):
        raise ValueError(f"--out {out} holds the records themselves: choose another name for the page")
    if not records:
        raise ValueError(f"{results} holds no finished cell yet")
    page = write_report(records, out or folder / "report.html", scores_dir=folder)
    console = Console()
    for protocol in dict.fromkeys(record.protocol for record in records):
        console.print(Markdown(markdown_table([record for record in records if record.protocol == protocol])))
    plain_console().print(f"written to {page}")


def doctor() -> None:
    """Devices, versions, what is missing, and where data are looked for."""
    import jax

    table = Table("what", "found", "if missing")
    devices = ", ".join(f"{device.platform}:{device.device_kind}" for device in jax.devices())
    table.add_row("devices", devices, escape("pip install 'jaxad[cuda]' for an NVIDIA GPU"))
    if shutil.which("nvidia-smi") and jax.default_backend() == "cpu":
        table.add_row("[red]GPU", "[red]present, but JAX runs on the CPU", escape("pip install 'jaxad[cuda]'"))
    table.add_row("python", sys.version.split()[0], "3.11 or newer")
    for package in (
        "jaxad",
        "jax",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "scikit-learn",
        "scipy",
        "pandas",
        "matplotlib",
    ):
        table.add_row(package, version(package), "")
    for package, module, extra in (
        ("pyarrow", "pyarrow", "parquet files: jaxad[data]"),
        ("tensorflow-datasets", "tensorflow_datasets", "image data sets: jaxad[data]"),
        ("grain", "grain", "data larger than memory: jaxad[data]"),
    ):
        try:
            found = version(package) if find_spec(module) else "[yellow]not installed"
        except PackageNotFoundError:
            found = "[yellow]not installed"
        table.add_row(package, found, escape(extra))
    from jaxad import data

    found = data.adbench_names()
    table.add_row("ADBench sets", str(len(found)), "set JAXAD_DATA_DIR to a folder with adbench/<group>/<name>.npz")
    table.add_row("compilation cache", escape(str(compilation_cache())), "")
    Console().print(table)


def plain_console(of_main: bool = False) -> Console:
    """For sentences with paths in them: no markup (a path may hold brackets), no line breaks (it may be copied).

    With ``of_main`` only the main one of several processes speaks.
    """
    quiet = False
    if of_main:
        from jaxad.runtime.distributed import is_main

        quiet = not is_main()
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=quiet)


def compilation_cache() -> Path:
    """Where compiled programs are kept between runs: under XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxad" / "xla"


def use_compilation_cache() -> None:
    """Switch on JAX's persistent compilation cache, so that the second run of a command does not compile again."""
    import jax

    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(compilation_cache()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@contextmanager
def _exit_on_mendable() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"jaxad: {message}", file=sys.stderr)
        raise SystemExit(2) from error


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """One sentence and exit code 2 for what the user can mend; anything else is a bug and keeps its traceback."""
    try:
        with _exit_on_mendable():
            yield
    except RunStopped as stopped:
        print(f"jaxad: {stopped}", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("jaxad: interrupted; finished cells are kept, the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None


def main() -> None:
    """The ``jaxad`` command."""
    warnings.simplefilter("default")
    with exit_on_user_error():
        use_compilation_cache()
        tyro.extras.subcommand_cli_from_dict(
            {
                "demo": demo,
                "fit": fit,
                "cycle": cycle,
                "generate": generate,
                "score": score,
                "score-files": score_files,
                "export": export,
                "serve": serve,
                "report": report,
                "import-weights": import_weights,
                "doctor": doctor,
            },
            prog="jaxad",
            description="Anomaly detection with diffusion models.",
        )


if __name__ == "__main__":
    main()
