"""Scoring tables and folders of pictures of any length and number: piece by piece, in the memory of one, taken up where a run stopped."""

import csv
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.pipeline import Pipeline

from jaxad.data import DataError, Dataset, FrameEncoder, PictureFiles, read_table, table_blocks, table_columns
from jaxad.data.arrays import damage_named
from jaxad.data.dialect import Dialect, remembered
from jaxad.data.frame_files import NAMELESS, TEXT, dialect_of, first_cells, kind_of, read_column
from jaxad.data.roles import normal_word
from jaxad.detectors.persistence import load_detector, load_extra
from jaxad.metrics.calibration import benjamini_hochberg, p_values
from jaxad.runtime.cluster import Elsewhere
from jaxad.runtime.files import FORMATS, check_format, put, unfinished
from jaxad.shipping import bundle
from jaxad.shipping.reasons import Reasons

ROWS_AT_ONCE = 65_536

NO_ROW = "\0"
"""A label that no row has: a file may hold no normal row."""

HEADER = ("row", "anomaly_score", "p_value", "flagged")


class Scored(NamedTuple):
    """What was done: ``rows`` in all, of them ``taken_up`` from an earlier run, ``flagged``, and ``seconds`` of this one."""

    rows: int
    taken_up: int
    flagged: int
    seconds: float


def judged(detector: Any, normality, alpha: float | None, fdr: float | None) -> tuple[np.ndarray, np.ndarray]:
    """``(p-values, flagged)`` of ``score_samples [rows]``: by the detector's threshold, a rate ``alpha``, or as a report (``fdr``)."""
    last: Any = detector[-1] if isinstance(detector, Pipeline) else detector
    known = getattr(last, "calibration_scores_", None)
    if known is None:
        raise ValueError(
            f"the {type(last).__name__} keeps no scores of held-out normal rows, from which p-values are made: fit, or export, it again"
        )
    p = p_values(known, normality)
    if fdr is not None:
        return p, benjamini_hochberg(p, fdr)
    return p, normality < last.offset_ if alpha is None else p <= alpha


def write_scores(out: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """A small table of scores, whole or not at all, in the format that the ending of ``out`` means."""
    whole = unfinished(out)
    whole.write_bytes(_lines([header, *rows]))
    in_format_of(whole, out)


def in_format_of(whole: Path, out: Path) -> None:
    """``whole``, a csv file of scores, becomes ``out`` in the format that its ending means."""
    asked = FORMATS.get(out.suffix.lower(), "csv")
    if asked == "csv":
        put(whole, out)
        return
    import pandas as pd

    other = whole.with_name(f"{whole.name}.{asked}")
    with ExitStack() as closing:
        writer: Any = None
        for piece in pd.read_csv(whole, chunksize=ROWS_AT_ONCE):
            if asked == "jsonl":
                piece.to_json(
                    other, orient="records", lines=True, mode="w" if writer is None else "a", double_precision=15
                )
                writer = other
                continue
            import pyarrow as pa
            import pyarrow.parquet as parquet

            table = pa.Table.from_pandas(piece, preserve_index=False)
            writer = closing.enter_context(parquet.ParquetWriter(other, table.schema)) if writer is None else writer
            writer.write_table(table)
    put(other, out)
    whole.unlink()


def score_file(
    detector: Any,
    data: Path,
    out: Path,
    *,
    columns: tuple[str, ...] | None = None,
    label_column: str | None = None,
    drop: Sequence[str] = (),
    id_column: str | None = None,
    dialect: Dialect | None = None,
    encoder: FrameEncoder | None = None,
    normal: str | None = None,
    alpha: float | None = None,
    fdr: float | None = None,
    mark: str = "",
    rows: int = ROWS_AT_ONCE,
    progress: bool = False,
    why: int = 0,
) -> Scored:
    """Score the table ``data`` into the csv file ``out`` (columns ``HEADER``), at most ``rows`` rows in memory.

    Until it is whole the result lies in ``out`` + ``.partial``, with a note of how far it is; a run that was killed or interrupted is
    taken up by the next one with the same ``data`` (name, size, time of change), rates and ``mark`` (which should tell one detector from
    another). ``columns`` are those of training: a table with the same names in another order is put in theirs; ``drop`` names columns
    that are left out if they are there, ``id_column`` one that stands in place of ``row``; ``encoder`` makes rows of mixed columns. ``why``
    asks for a column ``why`` with so many reasons for every row that is flagged (``reasons``). With ``fdr`` all p-values are needed to flag
    one, eight bytes a row.

    Raises:
        DataError: the table cannot be read or has other columns; what was written is removed.
    """
    identity = _identity(data, (label_column, id_column, *drop, why), alpha, fdr, mark)
    reading: dict[str, Any] = {"label_column": label_column, "drop": drop, "id_column": id_column, "dialect": dialect}
    reading |= {"encoder": encoder, "normal": normal}
    say_why = Reasons(detector, encoder, columns, why) if why else None

    def pieces(start):
        done = start
        for piece in table_blocks(data, rows=rows, start=start, **reading):
            names = range(done, done + len(piece.x)) if piece.ids is None else piece.ids.tolist()
            x = in_order_of_training(piece, columns, data)
            if not _takes_gaps(detector) and (gaps := np.argwhere(np.isnan(x))).size:
                row, column = gaps[0]
                name = repr(columns[column]) if columns else str(column)
                raise DataError(
                    f"{data}: nothing in row {done + row} (counting from 0), column {name}, and the model has learned from rows without "
                    "gaps; fit it again with --gaps, or leave such rows out"
                )
            yield names, x, piece.frame
            done += len(piece.x)
        if not done:
            read_table(data, **reading)  # says what is wrong with it
            raise DataError(f"{data}: expected at least one row, got none")

    header = (id_column or HEADER[0], *HEADER[1:], *(["why"] if why else []))
    return _score_pieces(detector, pieces, header, out, identity, alpha, fdr, progress, say_why)


def score_folder(
    detector: Any,
    pictures: PictureFiles,
    out: Path,
    *,
    alpha: float | None = None,
    fdr: float | None = None,
    mark: str = "",
    most_bytes: int = 2**26,
    progress: bool = False,
) -> Scored:
    """``score_file`` for pictures on disk, in pieces of at most ``most_bytes`` (one picture at least): a line for each.

    The first column is ``file``, its name.

    Raises:
        DataError: a picture cannot be read, or is not like the first; what was written is removed.
    """
    stats = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in pictures.files]
    reading = pictures.shape[1:], pictures.fit, pictures.channels, str(pictures.dtype)
    identity = hashlib.sha256(repr([stats, reading, alpha, fdr, mark]).encode()).hexdigest()
    at_once = max(1, most_bytes // (math.prod(pictures.sample_shape) * pictures.dtype.itemsize))

    def pieces(start):
        for first in range(start, len(pictures), at_once):
            chosen = slice(first, first + at_once)
            yield [file.name for file in pictures.files[chosen]], pictures[chosen], None

    return _score_pieces(detector, pieces, ("file", *HEADER[1:]), out, identity, alpha, fdr, progress)


def _takes_gaps(detector: Any) -> bool:
    return bool(getattr(detector, "allow_gaps", False) or getattr(detector, "card", {}).get("allow_gaps"))


def _score_pieces(
    detector: Any,
    pieces: Callable[[int], Iterator[tuple[Sequence, np.ndarray, Any]]],
    header: Sequence[str],
    out: Path,
    identity: str,
    alpha: float | None,
    fdr: float | None,
    progress: bool,
    say_why: Reasons | None = None,
) -> Scored:
    """Score ``pieces(start)``, names, rows and cells from row ``start`` on, into ``out``; ``identity`` tells this work from another."""
    started = time.perf_counter()
    check_format(out)
    partial = unfinished(out)
    note = partial.with_name(partial.name + ".json")
    known = _known(note, identity) if partial.is_file() else None
    done, size, flagged = known or (0, 0, 0)
    taken_up = done
    try:
        with partial.open("r+b" if known else "w+b") as file, _bar(progress, done) as advance:
            file.truncate(size)
            file.seek(size)
            if not known:
                file.write(_lines([header]))
            for names, rows, cells in pieces(done):
                normality = detector.score_samples(rows)
                p, found = judged(detector, normality, alpha, None)
                flagged += int(found.sum())
                written = [(-normality).tolist(), p.round(6).tolist(), found.astype(int).tolist()]
                written += [] if say_why is None else [say_why(rows, cells, found)]
                file.write(_lines(zip(names, *written, strict=True)))
                done += len(p)
                file.flush()
                os.fsync(file.fileno())
                _write_note(note, [identity, done, file.tell(), flagged])
                advance(len(p))
        if fdr is not None:
            flagged = _flag_report(partial, detector, fdr)
        in_format_of(partial, out)
    except ValueError:
        partial.unlink(missing_ok=True)
        raise
    finally:
        if not partial.exists():
            note.unlink(missing_ok=True)
    return Scored(done, taken_up, flagged, time.perf_counter() - started)


class Loaded(NamedTuple):
    """A detector, a pipeline or a bundle, read from disk: what ``score_file`` needs of it."""

    detector: Any
    extra: dict[str, Any]
    mark: str

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Those of training, if they had names."""
        return self.extra.get("columns")

    def reading(
        self, data: Path, label_column: str | None = None, id_column: str | None = None, normal: str | None = None
    ) -> dict[str, Any]:
        """How new rows are to be read: without the columns left out in training, and with the id column of training if it is there."""
        known, dialect = self.extra.get("id_column"), self._dialect(data)
        encoded = self.extra.get("encoder")
        encoder = FrameEncoder.from_json(encoded) if encoded is not None and kind_of(data) not in NAMELESS else None
        normal = self.extra.get("normal") if normal is None else normal
        if label_column is not None and encoder is not None and normal is None:
            normal, _ = normal_word(read_column(data, label_column, dialect), label_column)
            normal = NO_ROW if normal is None else normal
        if id_column is None and known is not None and known in (table_columns(data, dialect) or ()):
            id_column = known
        dropped = tuple(self.extra.get("dropped") or ())
        how = {"label_column": label_column, "drop": dropped, "id_column": id_column, "dialect": dialect}
        return how | {"encoder": encoder, "normal": normal}

    def _dialect(self, data: Path) -> Dialect | None:
        """As the file learned from was written; but a first line that holds no two names that way is another matter."""
        dialect = remembered(self.extra.get("dialect"))
        if dialect is None or kind_of(data) not in TEXT or not data.is_file():
            return dialect
        wanted = {part["name"] for part in (self.extra.get("encoder") or {}).get("parts", ())}
        if len(wanted) > 1 and dialect.header and not wanted & set(first_cells(data, dialect)):
            other = dialect_of(data)
            if other is not None and wanted <= set(first_cells(data, other)):
                return other._replace(missing=dialect.missing)
        return dialect

    def not_learned_from(self, data: Path, reading: dict[str, Any]) -> list[str]:
        """Columns of a file that an encoder leaves alone and that were not there in training."""
        if (encoder := reading["encoder"]) is None:
            return []
        known = {column.name for column in encoder.roles_} | {
            reading["label_column"],
            reading["id_column"],
            *reading["drop"],
        }
        return [name for name in table_columns(data, reading["dialect"]) or () if name not in known]

    @property
    def scores_rows(self) -> bool:
        """Does it score rows of numbers, and no pictures?"""
        card = getattr(self.detector, "card", {})
        return len(card.get("sample_shape", getattr(self.detector, "sample_shape_", (0,)))) == 1


def load(model: Path) -> Loaded:
    """What lies in a folder of ``jaxad fit`` or ``jaxad export``; how its data is read stands in ``extra``, of a bundle in its card.

    Raises:
        ValueError: no model of ours.
    """
    if bundle.is_bundle(model):
        detector: Any = bundle.load_scorer(model)
        about, columns = detector.card.get("data"), detector.card["columns"]
        extra = (about if isinstance(about, dict) else {}) | ({} if columns is None else {"columns": columns})
    else:
        detector, extra = load_detector(model), load_extra(model) or {}
        # Columns are put in their order here, and rows reach the detector as arrays: nothing to warn of.
        vars(detector).pop("feature_names_in_", None)
    return Loaded(detector, extra, _mark(model))


FILES_SCORED = "scored.jsonl"


def score_files(
    model: Path,
    files: Sequence[Path],
    folder: Path,
    *,
    label_column: str | None = None,
    alpha: float | None = None,
    fdr: float | None = None,
    on_file: Callable[[Path, Scored], None] | None = None,
    elsewhere: Elsewhere | None = None,
) -> dict[Path, Scored]:
    """``score_file`` for many tables: ``FOLDER/<name>.csv`` of each, and a line in ``FOLDER/scored.jsonl`` once it is whole.

    Files with a line there, of the same ``model``, content and rates, are not scored again. ``elsewhere`` says where the work is done,
    ``cluster.on_ray`` for instance; None: here, one after the other.

    Raises:
        ValueError: no file, two of one name, a model that scores no rows; or whatever ``score_file`` refuses, and what is done is kept.
    """
    targets = {file: folder / f"{file.name}.csv" for file in dict.fromkeys(files)}
    twice = sorted({target.name for target in targets.values()})
    if not targets or len(twice) < len(targets):
        raise ValueError(
            f"expected files to score, each of a name of its own, got {len(targets)} of {len(twice)} names"
        )
    if missing := [str(file) for file in targets if not file.is_file()]:
        raise ValueError(f"{len(missing)} of {len(targets)} files to score are missing, the first is {missing[0]}")
    mark = _mark(model)
    if not _loaded(model, mark).scores_rows:
        raise ValueError(f"{model} was fitted on a folder of pictures: score that in one piece, with jaxad score")
    rates = {"label_column": label_column, "alpha": alpha, "fdr": fdr}
    identities = {file: _identity(file, label_column, alpha, fdr, mark) for file in targets}
    folder.mkdir(exist_ok=True)
    records = folder / FILES_SCORED
    if records.is_file() and not records.read_bytes().endswith(b"\n"):  # a line cut short by a kill
        with records.open("a", encoding="utf-8") as out:
            out.write("\n")
    known = {row["of"]: Scored(*row["scored"]) for row in _lines_of(records)}
    done = {file: known[of] for file, of in identities.items() if of in known and targets[file].is_file()}
    waiting = [file for file in targets if file not in done]
    work = [(model, mark, file, targets[file], rates) for file in waiting]
    for number, scored in (_one_by_one if elsewhere is None else elsewhere)(_score, work):
        file = waiting[number]
        done[file] = scored
        with records.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"file": file.name, "scored": scored, "of": identities[file]}) + "\n")
        if on_file is not None:
            on_file(file, scored)
    return {file: done[file] for file in targets}


def _one_by_one(function, arguments):
    for number, each in enumerate(arguments):
        yield number, function(*each)


def _score(model, mark, file, out, rates) -> Scored:
    loaded, rates = _loaded(model, mark), dict(rates)
    reading = loaded.reading(file, rates.pop("label_column"))
    return score_file(loaded.detector, file, out, columns=loaded.columns, mark=loaded.mark, **reading, **rates)


@lru_cache(maxsize=1)
def _loaded(model, mark) -> Loaded:
    """Once in a process; ``mark`` tells a model from one that has replaced it."""
    return load(model)


def _lines_of(records: Path) -> list[dict]:
    """Whole lines: the last one may be cut short by a kill."""
    found = []
    for line in records.read_text(encoding="utf-8").splitlines() if records.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        match row:
            case {"of": str(), "scored": [int(), int(), int(), float()]}:
                found.append(row)
    return found


def _mark(model: Path) -> str:
    """Tells one model from another: its cards hold digests of all there is."""
    return hashlib.sha256(b"".join(card.read_bytes() for card in sorted(model.glob("*.json")))).hexdigest()


def _identity(data: Path, label_column, alpha, fdr, mark) -> str:
    stat = data.stat() if data.is_file() else None
    of = [str(data.name), stat and stat.st_size, stat and stat.st_mtime_ns, label_column, alpha, fdr, mark]
    return hashlib.sha256(repr(of).encode()).hexdigest()


def read_scores(out: Path) -> np.ndarray:
    """The anomaly scores ``[rows]`` that ``score_file`` wrote.

    Raises:
        DataError: the file is damaged, or another one.
    """
    with damage_named(out, "a file of scores"):
        asked = FORMATS.get(out.suffix.lower(), "csv")
        if asked == "csv":
            with out.open(newline="", encoding="utf-8") as file:
                scores = np.array([float(row["anomaly_score"]) for row in csv.DictReader(file)])
        else:
            import pandas as pd

            frame = pd.read_parquet(out) if asked == "parquet" else pd.read_json(out, lines=True)
            scores = frame["anomaly_score"].to_numpy(np.float64)
        if not len(scores) or not np.isfinite(scores).all():
            raise DataError(
                f"{out}: expected finite scores, got {len(scores)} of which {np.isfinite(scores).sum()} are"
            )
        return scores


def in_order_of_training(table: Dataset, columns: tuple[str, ...] | None, source: Path) -> np.ndarray:
    """The features with their columns in the order of ``columns``.

    Raises:
        DataError: columns that are missing, or that training has not seen, by name.
    """
    if not columns or not table.columns or list(columns) == list(table.columns):
        return table.x
    if sorted(columns) != sorted(table.columns):
        missing, unknown = sorted(set(columns) - set(table.columns)), sorted(set(table.columns) - set(columns))
        raise DataError(
            f"{source} does not have the columns of training: missing {missing or 'none'}, not seen in training {unknown or 'none'}"
            + ("; if one of them is a label, name it with --label-column" if unknown else "")
        )
    return table.x[:, [list(table.columns).index(column) for column in columns]]


def moved_columns(detector: Any, pieces: Iterator[Dataset], extra: dict[str, Any], most: int = 3) -> str:
    """The columns whose mean is farthest from that of training, in words; "" where the detector keeps no scale of columns."""
    scale = getattr(detector, "standardiser_", None)
    if scale is None or not (np.any(scale.mean) or np.any(scale.scale != 1)):
        return ""
    total, count = np.zeros(len(scale.mean)), 0
    for piece in pieces:
        x = in_order_of_training(piece, extra.get("columns"), Path(piece.source))
        total, count = total + np.nansum(np.clip((x - scale.mean) / scale.scale, -1e9, 1e9), axis=0), count + len(x)
    codes = getattr(detector, "categorical_features", None)
    total[[] if codes is None else codes] = 0.0  # the mean of codes means nothing
    names = extra.get("columns") or range(len(total))
    away = dict(zip(names, total / max(count, 1), strict=True))
    farthest = sorted(away, key=lambda name: -abs(away[name]))[:most]
    return ", ".join(f"{name} (mean {away[name]:+.1f} spreads)" for name in farthest if abs(away[name]) > 0.5)


def _lines(rows) -> bytes:
    with io.StringIO(newline="") as text:
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode("utf-8", "backslashreplace")  # a file's name may be any bytes


def _known(note: Path, identity: str) -> tuple[int, int, int] | None:
    """``(rows, bytes, flagged)`` that an earlier run of the same work has written for good."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    match found:
        case [str(of), int(rows), int(size), int(flagged)] if of == identity and min(rows, size, flagged) >= 0:
            return rows, size, flagged
    return None


def _write_note(note: Path, content: list) -> None:
    temporary = note.with_name(note.name + ".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(note)


def _flag_report(partial: Path, detector: Any, fdr: float) -> int:
    """Write the column of flags anew, now that all scores are known: the number of rows flagged."""
    _, found = judged(detector, -read_scores(partial), None, fdr)
    other = partial.with_name(partial.name + ".flagged")
    with partial.open(newline="", encoding="utf-8") as source, other.open("wb") as target:
        rows = csv.reader(source)
        target.write(_lines([next(rows)]))
        for row, of in zip(rows, found.astype(int), strict=True):
            target.write(_lines([(*row[:3], of, *row[4:])]))
    other.replace(partial)
    return int(found.sum())


@contextmanager
def _bar(wanted: bool, done: int) -> Iterator[Any]:
    """A function that is told of every piece; a progress bar with rows and rows per second if ``wanted``."""
    if not wanted:
        yield lambda rows: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    speed = TextColumn("{task.completed:,.0f} rows, {task.fields[rate]:,.0f} a second")
    bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), speed, TimeElapsedColumn())
    task, started, before = bar.add_task("scoring", total=None, completed=done, rate=0.0), time.perf_counter(), done
    with ExitStack() as shown:

        def advance(rows):
            nonlocal done
            if done == before:  # not for a file that cannot be read
                shown.enter_context(bar)
            done += rows
            bar.update(task, completed=done, rate=(done - before) / (time.perf_counter() - started))

        yield advance
