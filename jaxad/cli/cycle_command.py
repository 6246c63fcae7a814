"""``jaxad cycle``."""

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from jaxad.cli.terminal import check_file, check_rows, plain_console


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
    check_rows(data)
    if anomalies is not None:
        check_rows(anomalies)
    check_file(report)
    from jaxad.data import dialect_of, read_table
    from jaxad.detectors.catalogue import choose
    from jaxad.detectors.persistence import check_writable, save_detector
    from jaxad.reports.cycle_page import write_cycle_report
    from jaxad.shipping.bulk import in_order_of_training

    console = plain_console()
    check_writable(out)
    dialect = dialect_of(data)
    table = read_table(data, label_column=label_column, dialect=dialect)
    labels = np.zeros(len(table.x), int) if table.y is None else table.y
    rows, known = table.x[labels == 0], [table.x[labels == 1]]
    if anomalies is not None:
        known.append(in_order_of_training(read_table(anomalies, label_column=label_column), table.columns, anomalies))
        if known[1].shape[1:] != rows.shape[1:]:
            raise ValueError(f"{anomalies} has {known[1].shape[1]} columns, {data} has {rows.shape[1]}")
    few = np.concatenate(known)
    started = time.perf_counter()
    detector: Any = choose(["cycle"])["cycle"](seed)
    detector.set_params(rounds=rounds, false_alarm_rate=false_alarm_rate, verbose=1)
    detector.fit(rows, anomalies=few if len(few) else None)
    for number, done in enumerate(detector.rounds_, 1):
        kept = ", ".join(f"{count} {kind}" for kind, count in done["kept"].items())
        judged = "".join(
            f"; {name.replace('_', ' ')} {done[name]:+.4f}" for name in ("kind_gain", "known_gain") if name in done
        )
        console.print(f"round {number}, strength {done['strength']:.2f}: kept {kept}{judged}")
    extra = {"columns": table.columns, "dialect": None if dialect is None else dialect._asdict()}
    save_detector(detector, out, extra=extra | {"detector": "cycle", "seed": seed, "rows": len(rows)})
    written = write_cycle_report(detector, report or out / "report.html", title=f"Cycle on {data.name}")
    console.print(
        f"{detector.reason_}\npage written to {written}\n{len(rows)} normal rows, {len(few)} known anomalies, "
        f"{time.perf_counter() - started:.1f} s; saved to {out}: score rows with jaxad score {out} FILE --out scores.csv"
    )
