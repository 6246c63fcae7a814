"""Tables on the command line: files of rows, each a few numbers."""

import json
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Scoring:
    """How a table is read."""

    label_column: str | None = None
    """Tables: column that says which rows are normal: 0 and 1, or words such as normal and anomaly. It is not scored: rows to learn from
    that are no normal ones are left out, scores of new ones are measured against it."""
    id_column: str | None = None
    """Tables: column of a csv or parquet file that tells rows apart. It is not scored, and stands in place of row in the scores; jaxad
    score knows the one of jaxad fit."""
    normal: str | None = None
    """Tables: which label means normal, if it is not plain; all others are anomalies. jaxad score knows that of jaxad fit."""


@dataclass(frozen=True)
class ScoringRows(Scoring):
    """What is written."""

    why: int = 0
    """Tables: for every flagged row, so many columns that say most, with what each contributes to the score."""
    events: Path | None = None
    """Series: file for the stretches that are flagged: start, end, peak, score, channels; .csv, .parquet or .jsonl."""


@dataclass(frozen=True)
class Fitting(Scoring):
    """What is learned from."""

    kind: Literal["table", "series"] | None = None
    """What a file holds: rows that stand each by itself (table, the default), or points in order of time (series)."""
    causal: bool = False
    """Series: judge a point by what came before it alone, as a stream has to; otherwise by what follows as well."""
    columns: str | None = None
    """Tables: what columns are, if it is not found out: "age=number,zip=category,ref=leave-out"; or time."""
    missing: str | None = None
    """Tables: words that mean that nothing is known, with commas between them."""
    gaps: bool = False
    """Tables and series: new rows may have gaps although those to learn from have none."""
    drop: tuple[str, ...] = ()
    """Tables: columns of a csv or parquet file to leave out; jaxad score leaves them out as well."""
    contamination: float | None = None
    """Tables: share of anomalies among the rows to learn from, where it is known: twice as many are left out, those that belong least.
    Default: what is plainly apart is. 0: nothing."""
    training_scores: Path | None = None
    """Tables: file for a score of every row that was learned from, by views that have not seen it, .csv, .parquet or .jsonl: for a table in
    which nobody knows what is normal."""


@dataclass(frozen=True)
class Nothing:
    """No option of its own."""


class Tables:
    """The plug: see ``kinds.Kind``."""

    key, words, items, default = "columns", "a file of rows", "rows", "recommended"
    ours: tuple[str, ...] = (
        *("recommended", "ddpm", "dit", "dit-untrained", "dte-c", "dte-ig", "dte-np"),
        *("knn", "knn-mean", "1nn", "copod", "copod-nan", "ecod", "mahalanobis", "norm"),
    )
    to_score = "FILE --out scores.csv"
    Fitting, Scoring, Generating = Fitting, ScoringRows, Nothing

    def holds(self, data: Path, options: Any = None) -> bool:
        """Whatever is no folder."""
        return not data.is_dir()

    def detectors(self) -> dict[str, Any]:
        """Ours of rows, and all that other packages list."""
        from jaxad.detectors.catalogue import ROWS, elsewhere, saveable

        return saveable(ROWS | elsewhere())

    def settings(self, options: Any, given: set[str]) -> dict[str, Any]:
        """One of them."""
        if options.causal:
            raise ValueError("--causal is for time series: say --kind series")
        return {"contamination": options.contamination} if options.contamination is not None else {}

    def limits(self, options: Any, has: Any, resumes: bool, say: Any) -> dict[str, Any]:
        """None; but what is to be written can be."""
        if (out := options.training_scores) is not None:
            from jaxad.cli.terminal import check_file
            from jaxad.runtime.files import check_format

            check_file(out)
            check_format(out)
            if "contamination" not in has:
                raise ValueError("--training-scores: the recommended detector alone judges the rows it learns from")
            if options.contamination == 0:
                raise ValueError("--training-scores: with --contamination 0 no row is judged, leave one of them out")
        return {}

    def read(self, data: Path, options: Any, has: Any, say: Any) -> tuple[Any, dict[str, Any], dict[str, Any], str]:
        """The normal rows."""
        from jaxad.data import read_table, table_columns
        from jaxad.data.doubts import doubts

        if (out := options.training_scores) is not None and out.exists() and out.samefile(data):
            raise ValueError(
                f"--training-scores {out} is the file to learn from, which it would replace: choose another name"
            )
        dialect = dialect_told(data, options.missing, say)
        named = table_columns(data, dialect)
        told = columns_told(options.columns)
        if unknown := sorted({*options.drop, *told} - {*(named or ())}):
            raise ValueError(
                f"{'--drop' if unknown[0] in options.drop else '--columns'}: {data} has no column {unknown[0]!r}"
            )
        kept: dict[str, Any] = {"dropped": options.drop, "id_column": options.id_column}
        kept |= {} if dialect is None else {"dialect": dialect._asdict()}
        if named is None:
            table = read_table(data, label_column=options.label_column, drop=options.drop, id_column=options.id_column)
            rows, settings = table.x, {}
            if table.y is not None:
                rows = rows[table.y == 0]
                say(f"{len(table.x) - len(rows)} rows labelled anomalous are left out of training")
        else:
            rows, settings, encoded = self._encoded(data, dialect, told, options, has, say)
            kept |= encoded
        if not len(rows):
            raise ValueError(f"{data} holds no normal row to learn from")
        columns = kept.setdefault("columns", None)
        for doubt in doubts(rows, columns):
            say(f"warning: {doubt}" + (" with --drop" if doubt.endswith("leave it out") else ""))
        return rows, kept, settings, f"{len(rows)} rows of {rows.shape[1]} features"

    def _encoded(self, data, dialect, told, options, has, say) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """``(rows, what to remember, what the detector is told of them)`` of a file whose columns have names."""
        from jaxad.data import DataError, FrameEncoder, read_frame, refuse_non_finite
        from jaxad.data.frame_files import named, taken_apart
        from jaxad.data.roles import labels_of, normal_word

        frame = read_frame(data, dialect=dialect)
        frame, labels, _ = taken_apart(frame, data, options.label_column, options.drop, options.id_column)
        kept: dict[str, Any] = {}
        if labels is not None:
            with named(data):
                word, counted = normal_word(labels, options.label_column, options.normal)
            normal = labels_of(labels, word) == 0
            say(f"labels: {counted}; {(~normal).sum()} rows labelled anomalous are left out of training")
            frame, kept["normal"] = frame[normal].reset_index(drop=True), word
            if not len(frame):
                return np.zeros((0, 1)), {}, kept
        elif options.normal is not None:
            raise ValueError("--normal is a label: name the column of labels with --label-column")
        knows = "categorical_features" in has
        encoder = FrameEncoder(told, categories="codes" if knows else "one-hot")
        with named(data):
            rows = encoder.fit(frame).transform(frame, dialect)
        gaps = bool(np.isnan(rows).any()) or options.gaps
        if gaps and not knows:
            say("this detector knows no gaps: they are filled with the middle of their column")
            encoder.gaps = "fill"
            rows = encoder.transform(frame, dialect)
        try:
            refuse_non_finite(rows, str(data), columns=tuple(encoder.get_feature_names_out()), allow_nan=True)
        except DataError as error:
            raise DataError(f"{error}; --missing inf,-inf takes infinities in text as gaps") from error
        for line in about_columns(encoder.roles_):
            say(line)
        if short := [c.name for c in encoder.roles_ if c.role == "time" and c.name not in encoder.names_]:
            say(f"left out, since it spans less than two days or names days alone: {', '.join(short)}")
        mixed = len(encoder.categorical_features_) > 0
        kept |= {"columns": tuple(encoder.get_feature_names_out()), "encoder": encoder.to_json()}
        settings = {"categorical_features": encoder.categorical_features_.tolist()} if knows and mixed else {}
        return rows, settings | ({"allow_gaps": True} if knows and gaps else {}), kept

    def tell(self, fitted: Any, data: Path, options: Any, say: Any) -> None:
        """Which rows were left out, and a score of each."""
        left_out, scores = (getattr(fitted, name, None) for name in ("left_out_", "training_scores_"))
        if left_out is None or scores is None or not (len(left_out) or options.training_scores):
            return
        from jaxad.runtime.distributed import is_main
        from jaxad.shipping.bulk import HEADER, write_scores

        names = self._names(data, options, len(scores))
        if len(left_out):
            worst = left_out[np.argsort(scores[left_out])]
            first = ", ".join(map(str, names[worst[:10]].tolist())) + (", ..." if len(worst) > 10 else "")
            say(
                f"{len(left_out)} of {len(scores)} rows do not belong and were left out, {options.id_column or 'row'} {first}; "
                "--training-scores FILE lists all, --contamination 0 keeps them"
            )
        if options.training_scores is not None and is_main():
            apart = np.isin(np.arange(len(scores)), left_out).astype(int)
            header = (options.id_column or HEADER[0], HEADER[1], "left_out")
            write_scores(
                options.training_scores, header, zip(names.tolist(), (-scores).tolist(), apart.tolist(), strict=True)
            )

    def _names(self, data, options, count) -> np.ndarray:
        """What tells the rows apart that were learned from, [count]."""
        from jaxad.data import dialect_of, read_frame, read_table, table_columns
        from jaxad.data.frame_files import taken_apart
        from jaxad.data.roles import labels_of, normal_word

        if table_columns(data, dialect_of(data)) is None:
            y = read_table(data).y
            return np.arange(count) if y is None else np.flatnonzero(y == 0)
        frame = read_frame(data)
        _, labels, ids = taken_apart(frame, data, options.label_column, options.drop, options.id_column)
        names = np.arange(len(frame)) if ids is None else ids
        if labels is None:
            return names
        return names[labels_of(labels, normal_word(labels, options.label_column, options.normal)[0]) == 0]

    def score(self, asked: Any, options: Any) -> None:
        """In pieces, so that a file may be of any length."""
        from jaxad import metrics
        from jaxad.cli.terminal import plain_console, say_scored
        from jaxad.data import table_blocks
        from jaxad.runtime.files import is_stream
        from jaxad.shipping.bulk import moved_columns, read_scores, score_file

        detector, extra, mark = asked.loaded
        data, out, label = asked.data, asked.out, options.label_column
        say = plain_console().print
        if options.events is not None:
            raise ValueError("--events is for models of a time series (jaxad fit FILE --kind series)")
        if options.why < 0:
            raise ValueError(f"--why is a number of columns, got {options.why}")
        reading = asked.loaded.reading(data, label, options.id_column, options.normal)
        if new := asked.loaded.not_learned_from(data, reading):
            say(f"left out, since not learned from: {', '.join(new[:10])}" + (", ..." if len(new) > 10 else ""))
        how = {"columns": extra.get("columns"), "mark": mark, "progress": True, "why": options.why}
        done = score_file(detector, data, out, **reading, **how, **asked.rates)
        blocks = partial(table_blocks, data, **reading)
        say_scored("rows", done, out)
        if done.rows >= 20 and done.flagged > done.rows / 2 and (moved := moved_columns(detector, blocks(), extra)):
            say(
                f"{done.flagged} of {done.rows} rows are flagged: the file as a whole differs from the rows of training; "
                f"moved most: {moved}"
            )
        if label is None and data.suffix.lower() != ".npz":
            return
        labels = [piece.y for piece in blocks() if piece.y is not None]
        y = np.concatenate(labels) if labels else np.zeros(0, int)
        if len(np.unique(y)) == 1:
            say(
                f"nothing is measured: all {len(y)} labels{f' of {label!r}' if label else ''} are {y[0]}, AUROC needs both"
            )
        elif len(y) and is_stream(out):
            say("nothing is measured: the scores went into a stream; name a file to measure them against the labels")
        elif len(y):
            scores = read_scores(out)
            say(f"AUROC {metrics.auroc(y, scores):.4f}, average precision {metrics.average_precision(y, scores):.4f}")

    def generate(self, model: Path, out: Path, made: dict[str, Any], options: Any) -> None:
        """A .npz file of rows of all kinds of the cycle."""
        from jaxad.cli.terminal import plain_console
        from jaxad.detectors.persistence import load_detector, load_extra
        from jaxad.generation import Kind

        count, strength = 1000 if made["count"] is None else made["count"], made["strength"]
        if len(strength) > 1:
            raise ValueError(f"rows are made at one --strength, got {', '.join(map(str, strength))}")
        how = {"seed": made["seed"], "strength": strength[0] if strength else 1.0}
        if out.suffix != ".npz":
            raise ValueError(f"--out is a .npz file, got {out}")
        if not out.parent.is_dir():
            raise ValueError(f"{out} cannot be written: expected the name of a file in a folder that exists")
        detector = load_detector(model)
        found = generator(detector, model)(count, **how)
        kinds = np.array([Kind(int(code)).name.lower() for code in found.kind])
        p = detector.p_values(found.x)
        severity = {kind: float(np.median(p[kinds == kind])) for kind in sorted(set(kinds))}
        card = {"jaxad": version("jaxad"), "count": count, **how, "columns": (load_extra(model) or {}).get("columns")}
        arrays = {"X": found.x, "y": np.ones(count, np.int64), "mask": np.asarray(found.mask), "kind": kinds, "p": p}
        unfinished = out.with_name(f".{out.name}")
        try:
            np.savez_compressed(unfinished, **arrays, card=np.array(json.dumps({**card, "severity": severity})))
            unfinished.rename(out)
        finally:
            unfinished.unlink(missing_ok=True)
        told = ", ".join(f"{kind} {value:.3f}" for kind, value in severity.items())
        plain_console().print(f"{count} anomalies written to {out}; median p-value of each kind: {told}")


def dialect_told(data: Path, missing: str | None, say: Any) -> Any:
    """How a text file is written, with what the user says; None for a file of another kind."""
    from jaxad.data import dialect_of

    dialect = dialect_of(data)
    if missing is not None:
        if dialect is None:
            raise ValueError(f"--missing is for text such as csv: in {data} gaps are empty cells")
        dialect = dialect._replace(missing=tuple(word.strip() for word in missing.split(",")))
    if dialect is not None and (words := dialect.words()):
        say(f"{data.name} is read as {words}")
    return dialect


def columns_told(columns: str | None) -> dict[str, str]:
    """``{name: role}`` of ``"age=number,zip=category"``.

    >>> columns_told("age=number, first name=leave-out")
    {'age': 'number', 'first name': 'leave-out'}
    """
    if columns is None:
        return {}
    pairs = [part.rpartition("=") for part in columns.split(",")]
    if wrong := next((",".join(pair) for pair in pairs if not (pair[0].strip() and pair[2].strip())), None):
        raise ValueError(
            f'--columns is written "age=number,zip=category,ref=leave-out", got {columns!r} ({wrong.strip(",=")!r})'
        )
    return {name.strip(): role.strip() for name, _, role in pairs}


MOST_SHOWN = 40


def about_columns(roles: Any) -> list[str]:
    """What the columns of a table are, in lines."""
    if all(column.role == "number" and not column.missing for column in roles):
        return [f"{len(roles)} columns, all numbers"] if len(roles) > 1 else []
    counts = dict.fromkeys(column.role for column in roles)
    told = ", ".join(f"{sum(column.role == role for column in roles)} {role}" for role in counts)
    # Of many, those that are not what most are.
    shown = (
        roles if len(roles) <= MOST_SHOWN else [c for c in roles if c.role != "number" or c.missing > 0.05][:MOST_SHOWN]
    )
    width = max(12, *(len(column.name) for column in shown)) if shown else 12
    lines = [f"{'column':{width}}  {'role':10}  missing  example"]
    for column in shown:
        note = f"  ({column.note})" if column.note and column.role not in ("time", "label", "unclear") else ""
        lines.append(f"{column.name:{width}}  {column.role:10}  {column.missing:7.1%}  {column.example}{note}")
    return [f"{len(roles)} columns: {told}", *lines]


def generator(detector: Any, model: Path) -> Any:
    """``(count, seed=, strength=) -> Generated``, of a detector that makes anomalies itself, or whose scorer holds a denoiser of rows.

    Raises:
        ValueError: it holds none; the message names detectors that do.
    """
    from jaxad.detectors.taught import make_anomalies

    if hasattr(detector, "generate"):
        return detector.generate
    scorer: Any = getattr(detector, "scorer_", None)
    if not hasattr(scorer, "denoiser") or len(getattr(detector, "sample_shape_", (0,))) > 1:
        raise ValueError(
            f"{model} holds a {type(detector).__name__}, which has no denoiser of rows to make anomalies with: fit recommended, ddpm or "
            "dit with jaxad fit, or make one with jaxad cycle"
        )
    scorer.denoiser()  # says why not, if there is none, before any work
    normals = scorer.normal_rows() if hasattr(scorer, "normal_rows") else None
    return partial(make_anomalies, scorer, detector.standardiser_, normals=normals)
