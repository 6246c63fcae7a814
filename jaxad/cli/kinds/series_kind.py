"""Time series on the command line: files of readings in order of time. Read as tables are; scored as a whole, with the points around."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxad.cli.kinds.table_kind import Tables, about_columns, columns_told, dialect_told

MOST_BYTES = 2**31
"""A series is in memory as a whole."""


class Series(Tables):
    """The plug: see ``kinds.Kind``."""

    key, words, items, default = "clock", "a file of a time series", "points", "recommended"
    ours: tuple[str, ...] = ("recommended", "series-patterns", "series-nearest", "series-forecast", "series-clusters")
    to_score = "FILE --out scores.csv --events events.csv"

    def holds(self, data: Path, options: Any = None) -> bool:
        """What the user calls a series; a look at a file does not tell."""
        return options is not None and getattr(options, "kind", "series") == "series" and not data.is_dir()

    def detectors(self) -> dict[str, Any]:
        """Those of series."""
        from jaxad.detectors.catalogue import SERIES

        return dict(SERIES)

    def settings(self, options: Any, given: set[str]) -> dict[str, Any]:
        """One of them."""
        if meaningless := sorted(given & {"contamination", "training_scores"}):
            raise ValueError(f"--{meaningless[0].replace('_', '-')} means nothing for {self.words}: leave it out")
        return {"causal": options.causal} if options.causal else {}

    def limits(self, options: Any, has: Any, resumes: bool, say: Any) -> dict[str, Any]:
        """None."""
        return {}

    def read(self, data: Path, options: Any, has: Any, say: Any) -> tuple[Any, dict[str, Any], dict[str, Any], str]:
        """The points in order, categories as channels of their own."""
        from jaxad.data import FrameEncoder, read_frame, table_columns
        from jaxad.data.clock import about, clock_of, ticks
        from jaxad.data.frame_files import named, taken_apart
        from jaxad.data.roles import labels_of, normal_word, roles_of

        dialect = dialect_told(data, options.missing, say)
        if table_columns(data, dialect) is None:
            raise ValueError(f"{data}: a series is read from a file whose columns have names, such as .csv or .parquet")
        frame = read_frame(data, dialect=dialect)
        frame, labels, _ = taken_apart(frame, data, options.label_column, options.drop, options.id_column)
        kept: dict[str, Any] = {"dropped": options.drop, "id_column": options.id_column}
        kept |= {} if dialect is None else {"dialect": dialect._asdict()}
        if labels is not None:
            with named(data):
                word, counted = normal_word(labels, options.label_column, options.normal)
            begin, end = _longest(labels_of(labels, word) == 0)
            say(f"labels: {counted}; learned from the longest normal stretch, rows {begin} to {end - 1}")
            frame, kept["normal"] = frame.iloc[begin:end].reset_index(drop=True), word
        told = columns_told(options.columns)
        with named(data):
            roles = roles_of(frame, told)
            clock = clock_of(roles)
            if clock is not None:
                say(f"column {clock.name!r} is the clock: " + "; ".join(about(ticks(frame, clock))))
            other = {column.name: "leave-out" for column in roles if column.role == "time"}
            encoder = FrameEncoder(told | other).fit(frame)
            rows = encoder.transform(frame, dialect)
        for line in about_columns(roles):
            say(line)
        kept |= {"columns": tuple(encoder.get_feature_names_out()), "encoder": encoder.to_json()}
        kept["clock"] = None if clock is None else list(clock)
        gaps = {"allow_gaps": True} if options.gaps or np.isnan(rows).any() else {}
        return rows, kept, gaps, f"{len(rows)} points of {rows.shape[1]} channels"

    def tell(self, fitted: Any, data: Path, options: Any, say: Any) -> None:
        """Nothing."""

    def score(self, asked: Any, options: Any) -> None:
        """As a whole: a point's score depends on those around it."""
        from jaxad import metrics
        from jaxad.cli.terminal import plain_console, say_scored
        from jaxad.data import read_frame
        from jaxad.data.clock import Clock, about, ticks
        from jaxad.data.frame_files import named, taken_apart
        from jaxad.data.roles import labels_of, normal_word
        from jaxad.metrics import events as of_events
        from jaxad.shipping.bulk import HEADER, Scored, judged, write_scores

        if options.why:
            raise ValueError(
                "--why is for rows of tables; the column channel says which channel says most of every point"
            )
        started, detector = _now(), asked.loaded.detector
        reading, say = (
            asked.loaded.reading(asked.data, options.label_column, options.id_column, options.normal),
            plain_console().print,
        )
        dialect, encoder = reading["dialect"], reading["encoder"]
        frame = read_frame(asked.data, dialect=dialect)
        frame, labels, ids = taken_apart(
            frame, asked.data, reading["label_column"], reading["drop"], reading["id_column"]
        )
        clock = asked.loaded.extra.get("clock")
        with named(asked.data):
            rows, times = encoder.transform(frame, dialect), None
            if clock is not None:
                times = frame[clock[0]] if clock[0] in frame.columns else None
                for line in about(ticks(frame, Clock(*clock)))[1:]:
                    say(line)
        if not detector.allow_gaps and (gaps := np.argwhere(np.isnan(rows))).size:
            point, column = gaps[0]
            raise ValueError(
                f"{asked.data}: nothing in row {point} (counting from 0), column {encoder.get_feature_names_out()[column]!r}, and the "
                "model has learned from points without gaps; fit it again with --gaps"
            )
        scores, where = detector.score_and_where(rows)
        p, flagged = judged(detector, scores, **asked.rates)
        parts, names = encoder.groups_, encoder.names_
        where = np.stack([where[:, parts == number].sum(axis=1) for number in range(len(names))], axis=1)
        told = np.arange(len(rows)) if ids is None else ids
        told = told if times is None else times.to_numpy()
        first = (str(clock[0]) if clock is not None and times is not None else reading["id_column"]) or HEADER[0]
        lines = zip(
            map(str, told),
            (-scores).tolist(),
            p.round(6).tolist(),
            flagged.astype(int).tolist(),
            [names[number] for number in where.argmax(axis=1)],
            strict=True,
        )
        write_scores(asked.out, (first, *HEADER[1:], "channel"), lines)
        say_scored("points", Scored(len(rows), 0, int(flagged.sum()), _now() - started), asked.out)
        events = of_events.marked_events(flagged, -scores, where, names)
        say(
            f"{len(events)} events"
            + "".join(f"\n  {_told(event, told)}" for event in sorted(events, key=lambda e: -e["score"])[:5])
        )
        if options.events is not None:
            header = ("start", "end", "peak", "anomaly_score", "channels")
            found = [
                (*(str(told[event[key]]) for key in ("start", "end", "peak")), event["score"], event["channels"])
                for event in events
            ]
            write_scores(options.events, header, found)
        if labels is not None:
            word, _ = normal_word(labels, options.label_column, reading["normal"])
            y = labels_of(labels, word)
            if len(np.unique(y)) < 2:
                say(f"nothing is measured: all {len(y)} labels are {y[0]}, a measure needs both")
                return
            window = of_events.period_of(rows[:, 0])
            roc, precision = of_events.vus(y, -scores, window)
            say(
                f"VUS-PR {precision:.4f}, VUS-ROC {roc:.4f} (windows up to {window} points), AUROC {metrics.auroc(y, -scores):.4f}, "
                f"average precision {metrics.average_precision(y, -scores):.4f}; a score without any skill has a VUS-PR of about "
                f"{y.mean():.3f}"
            )

    def generate(self, model: Path, out: Path, made: dict[str, Any], options: Any) -> None:
        """Not yet."""
        raise ValueError(
            f"{model} was fitted on a time series: anomalies of series are made from Python (jaxad.generation.make_events)"
        )


def _told(event: dict[str, Any], told: Any) -> str:
    return f"{told[event['start']]} to {told[event['end']]}, most at {told[event['peak']]}: {event['channels']}"


def _longest(normal: np.ndarray) -> tuple[int, int]:
    """Begin and end of the longest stretch without an anomaly."""
    from jaxad.metrics.events import events_of

    return max(events_of(normal.astype(int)), key=lambda pair: pair[1] - pair[0], default=(0, 0))


def _now() -> float:
    import time

    return time.perf_counter()
