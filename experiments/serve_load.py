"""How fast does the service answer under load, with bad requests mixed in, and is any answer lost or wrong?

    python -m experiments.serve_load

Two detectors are fitted on the normal rows of breast_cancer (30 columns) and exported. ``jaxad.shipping.serve`` runs each in a process
of its own; another process asks, with 1, 8 and 32 clients that each wait for their answer before they ask again, for 5 seconds a line.
One request in twenty is bad: cut short, NaN, text, other columns, too many rows, an unknown type, compressed Arrow, a row without a score.
Every answer is compared with ``Scorer.score_samples``. Written to ``experiments/results/serve_load.jsonl``.

Runtime: about 4 minutes on 2 cores. Expected: nothing lost, nothing wrong, every bad request answered 4xx. On two cores that other jobs
used as well, kNN answered 90 to 430 requests and up to 7,000 rows a second; times depend on what else runs.
"""

import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tyro

from jaxad import data
from jaxad.cli import exit_on_user_error
from jaxad.detectors.catalogue import choose
from jaxad.evaluation import current_commit, device_name, versions
from jaxad.shipping.bodies import ARROW, JSON
from jaxad.shipping.bundle import load_scorer, parity
from jaxad.shipping.export import export_detector

FORMATS = {"json": JSON, "arrow": ARROW}


@dataclass(frozen=True)
class Config:
    detectors: tuple[str, ...] = ("knn", "recommended")
    formats: tuple[str, ...] = tuple(FORMATS)
    rows: tuple[int, ...] = (1, 64)
    """In one request."""
    clients: tuple[int, ...] = (1, 8, 32)
    seconds: float = 5.0
    """Of each line."""
    bad: float = 0.05
    """Share of bad requests."""
    wait_ms: float = 0.0
    """Of the service."""
    seed: int = 0
    out: Path = Path(__file__).parent / "results" / "serve_load.jsonl"


@dataclass(frozen=True)
class Load:
    """What one client process does."""

    port: int
    folder: str
    format: str
    rows: int
    clients: int
    seconds: float
    bad: float
    seed: int


def run(config: Config) -> list[dict]:
    """One record per detector, format, number of rows and number of clients."""
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for name in config.detectors:
            place = Path(folder) / name
            place.mkdir()
            prepare(name, config.seed, place)
            with subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "jaxad.shipping.serve",
                    place / "scorer",
                    "--port",
                    "0",
                    "--wait-ms",
                    str(config.wait_ms),
                ],
                stderr=subprocess.PIPE,
                text=True,
            ) as service:
                try:
                    port = port_of(service)
                    for kind in config.formats:
                        for rows in config.rows:
                            for clients in config.clients:
                                load = Load(
                                    port, str(place), kind, rows, clients, config.seconds, config.bad, config.seed
                                )
                                records.append(append(config, name, measured(load)))
                finally:
                    service.send_signal(signal.SIGTERM)
                    service.communicate()
                if service.returncode:
                    raise RuntimeError(f"the service ended with status {service.returncode}")
    print(table(records))
    return records


def prepare(detector: str, seed: int, place: Path) -> None:
    """A bundle, rows and what they must score."""
    dataset = data.builtin("breast_cancer")
    x = np.asarray(dataset.x, np.float64)
    fitted: Any = choose([detector])[detector](seed)
    fitted.fit(x[np.asarray(dataset.y) == 0])
    export_detector(fitted, place / "scorer", columns=[f"column {number}" for number in range(x.shape[1])])
    np.savez(place / "rows.npz", rows=x, scores=load_scorer(place / "scorer").score_samples(x))


def port_of(service) -> int:
    """The port, once the service says it; the rest of its log is not looked at."""
    for line in service.stderr:
        found = re.search(r"at http://127\.0\.0\.1:(\d+)$", line)
        if found:
            return int(found[1])
    raise RuntimeError("the service did not start")


def measured(load: Load) -> dict:
    """What the clients saw, from a process of their own, and what the service counted meanwhile."""
    before = counted(load.port)
    words = [sys.executable, "-m", "experiments.serve_load", "--load", json.dumps(asdict(load))]
    seen = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    after = counted(load.port)
    calls = after["jaxad_batch_rows_count"] - before["jaxad_batch_rows_count"]
    seen["rows_per_call"] = round((after["jaxad_batch_rows_sum"] - before["jaxad_batch_rows_sum"]) / max(calls, 1), 1)
    return {"format": load.format, "rows": load.rows, "clients": load.clients, **seen}


def counted(port: int) -> dict[str, float]:
    """The service's metrics without labels."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.M)}


# ------------------------------------------------------------------------------------------------------- the clients' process


def clients(load: Load) -> dict:
    """All of them, each a thread with a connection; counts and times together."""
    with np.load(Path(load.folder) / "rows.npz") as known:
        rows, scores = known["rows"], known["scores"]
    warm = one(load, rows, scores, number=load.clients, seconds=0.5)
    with ThreadPoolExecutor(load.clients) as pool:
        started = time.perf_counter()
        futures = [pool.submit(one, load, rows, scores, number, load.seconds) for number in range(load.clients)]
        seen = [future.result() for future in futures]
        seconds = time.perf_counter() - started
    times = np.concatenate([each["times"] for each in seen])
    total = {name: sum(each[name] for each in (warm, *seen)) for name in ("bad", "bad_refused", "lost", "wrong")}
    return {
        "requests": len(times),
        "p50_ms": round(1e3 * float(np.quantile(times, 0.5)), 2),
        "p99_ms": round(1e3 * float(np.quantile(times, 0.99)), 2),
        "requests_per_second": round(len(times) / seconds),
        "rows_per_second": round(load.rows * len(times) / seconds),
        **total,
    }


def one(load: Load, rows, scores, number: int, seconds: float) -> dict:
    """A client: asks, waits, compares, asks again."""
    rng = np.random.default_rng([load.seed, number])
    good = [rng.choice(len(rows), load.rows) for _ in range(32)]
    bodies = [body(rows[chosen], load.format) for chosen in good]
    bad, seen = bad_requests(rows[good[0]]), {"bad": 0, "bad_refused": 0, "lost": 0, "wrong": 0}
    times, connection = [], HTTPConnection("127.0.0.1", load.port, timeout=60)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        is_bad = rng.random() < load.bad
        chosen = int(rng.integers(len(bad) if is_bad else len(good)))
        content, kind = bad[chosen] if is_bad else (bodies[chosen], FORMATS[load.format])
        started = time.perf_counter()
        try:
            connection.request("POST", "/score", content, {"content-type": kind})
            answer = connection.getresponse()
            found = answer.read()
        except (OSError, HTTPException):
            seen["lost"] += 1
            connection.close()
            continue
        took = time.perf_counter() - started
        if is_bad:
            seen["bad"] += 1
            seen["bad_refused"] += 400 <= answer.status < 500 and bool(json.loads(found)["error"])
        else:
            times.append(took)
            seen["wrong"] += answer.status != 200 or not is_right(found, load.format, scores[good[chosen]], scores)
    connection.close()
    return {**seen, "times": times}


def is_right(found: bytes, kind: str, expected, scores) -> bool:
    """The scores in an answer, as near to the expected ones as a bundle's have to be to the detector's."""
    columns = json.loads(found) if kind == "json" else pa.ipc.open_stream(found).read_all().to_pydict()
    got = np.asarray(columns["score"])
    # The spread in what is tolerated is that of all rows.
    return len(got) == len(expected) and parity([*expected, *scores], [*got, *scores]) <= 1.0


def body(rows, kind: str, compression: str | None = None) -> bytes:
    """The rows as a client would send them."""
    if kind == "json":
        return json.dumps({"rows": rows.tolist()}).encode()
    columns = pa.table({f"column {number}": column for number, column in enumerate(rows.T)})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, columns.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_table(columns)
    return sink.getvalue()


def bad_requests(rows) -> list[tuple[bytes, str]]:
    """Bodies that must be refused, with the types they are sent as."""
    row, arrow = json.dumps(rows[0].tolist()), body(rows, "arrow")
    return [
        (body(rows, "json")[:-3], JSON),
        (f'{{"rows": [{row.replace(",", ", NaN,", 1)}]}}'.encode(), JSON),
        (f'{{"rows": [{row[:-1]}, 1.0]]}}'.encode(), JSON),
        (json.dumps({"rows": [["text"] * rows.shape[1]]}).encode(), JSON),
        (b'{"rows": [' + b"[0]," * 10_001 + b"[0]]}", JSON),
        (b"[" * 5_000, JSON),
        (body(rows, "json"), "text/csv"),
        (arrow[:-40], ARROW),
        (arrow[: len(arrow) // 2], ARROW),
        (body(rows, "arrow", "zstd"), ARROW),
        (body(rows[:, :-1], "arrow"), ARROW),
        (body(rows * np.nan, "arrow"), ARROW),
    ]


# -------------------------------------------------------------------------------------------------------------------- records


def append(config: Config, detector: str, row: dict) -> dict:
    """One record."""
    packages = {name: version(name) for name in ("starlette", "uvicorn")}
    about = {"commit": current_commit(), "device": device_name(), "versions": versions() | packages}
    record = {"detector": detector, "wait_ms": config.wait_ms, **row, **about}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with config.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    return record


def table(records: list[dict]) -> str:
    """For docs/shipping.md."""
    shown = {
        "detector": "detector",
        "format": "body",
        "rows": "rows",
        "clients": "clients",
        "p50_ms": "p50, ms",
        "p99_ms": "p99, ms",
        "requests_per_second": "requests/s",
        "rows_per_second": "rows/s",
        "rows_per_call": "rows per call",
        "lost": "lost",
        "wrong": "wrong",
    }
    lines = [[*shown.values(), "bad, refused"], ["---", "---", *["---:"] * 10]]
    lines += [[*(f"{row[name]}" for name in shown), f"{row['bad_refused']} of {row['bad']}"] for row in records]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        print(json.dumps(clients(Load(**json.loads(sys.argv[2])))))
    else:
        with exit_on_user_error():
            run(tyro.cli(Config, description=__doc__))
