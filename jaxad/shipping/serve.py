"""``jaxad serve scorer/``: an exported scorer behind HTTP, for programs that are not written in Python or not on this machine.

    GET  /health     200 while rows can be scored
    GET  /card       what the bundle's card.json says
    GET  /metrics    for Prometheus
    POST /score      {"rows": [[...], ...], "alpha": 0.01} or a stream of Arrow record batches -> score, anomaly_score, p_value, flagged
    POST /score?where=1    likewise, and where each row is anomalous, if the bundle can tell: a map of every picture

Nothing that arrives is believed: sizes are counted while bytes come in and before anything is parsed, and every request is checked by
itself *before* it joins others. Requests that wait together are scored together, by one call of the program; a row's score depends on
that row alone, so nobody notices but the clock. Refusals are JSON, ``{"error": reason}``.

``python -m jaxad.shipping.serve scorer/`` does the same with jax, numpy, flatbuffers, starlette, uvicorn and prometheus-client alone.
There is no authentication and no encryption: beyond one machine, put a proxy in front that has both.
"""

import argparse
import asyncio
import inspect
import json
import logging
import math
import signal
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import fields
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import h11
import numpy as np
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from jaxad.shipping.bodies import ARROW, DEFAULT, JSON, Limits, Refusal, pyarrow_or, read_arrow, read_json, write_arrow
from jaxad.shipping.bundle import Scorer, load_scorer, read_card

BODIES_AT_ONCE = 16
"""So many times the largest body may be held at any moment, by all connections together."""

PARSED_AT_ONCE = 2**16
"""A body of more bytes is parsed beside the event loop."""


# ---------------------------------------------------------------------------------------------------------------- scoring


class _Waiting(NamedTuple):
    """A request that waits."""

    rows: np.ndarray
    since: float
    scores: asyncio.Future


def score_pieces(scorer: Scorer, pieces: Sequence[np.ndarray], size: int) -> Sequence[np.ndarray | ValueError]:
    """The scores of each piece, ``size`` rows by one call of the program; where a row has none, each by itself, so that it fails alone."""
    rows = np.concatenate(pieces)
    try:
        scores = np.concatenate([scorer._score(rows[start : start + size]) for start in range(0, len(rows), size)])
    except ValueError:
        return [_alone(scorer, piece) for piece in pieces]
    return np.split(scores, np.cumsum([len(piece) for piece in pieces])[:-1])


def _alone(scorer: Scorer, piece: np.ndarray) -> np.ndarray | ValueError:
    try:
        return scorer._score(piece)
    except ValueError as error:
        return error


class Service:
    """A scorer and the requests that wait for it. Its methods run on one event loop, the program and large bodies in a thread each."""

    def __init__(self, scorer: Scorer, limits: Limits):
        self.scorer, self.limits = scorer, limits
        self.waiting: deque[_Waiting] = deque()
        self.waiting_rows = 0
        self.held_bytes = 0
        self.costs: dict[int, float] = dict.fromkeys(scorer.card["batch_sizes"], 1.0)
        """Seconds of one call of the program, by its number of rows; measured on the way in."""
        self._program_thread, self._body_thread = ThreadPoolExecutor(1, "score"), ThreadPoolExecutor(1, "read")
        self._arrived, self._enough = asyncio.Event(), asyncio.Event()
        self._loop_of_batches: asyncio.Task | None = None
        self._plenty = max(self.costs)
        self.registry = CollectorRegistry()
        kept: Any = {"registry": self.registry}
        self.requests = Counter("jaxad_requests", "Answers, by path and status.", ["path", "status"], **kept)
        self.seconds = Histogram("jaxad_request_seconds", "From the head of a request to its answer.", ["path"], **kept)
        self.rows = Counter("jaxad_rows", "Rows scored.", **kept)
        self.flagged = Counter("jaxad_flagged_rows", "Rows flagged as anomalous.", **kept)
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)
        self.batches = Histogram("jaxad_batch_rows", "Rows scored by one call.", buckets=sizes, **kept)
        self.program = Histogram("jaxad_program_seconds", "Time of one call.", **kept)
        self.connections = Gauge("jaxad_connections", "Open connections.", **kept)
        Gauge("jaxad_waiting_rows", "Rows that wait to be scored.", **kept).set_function(lambda: self.waiting_rows)
        Gauge("jaxad_held_bytes", "Bytes of bodies held.", **kept).set_function(lambda: self.held_bytes)

    @asynccontextmanager
    async def running(self, _app: Starlette | None = None) -> AsyncIterator[dict[str, Any]]:
        """Every batch size of the card compiled, then requests are scored until the block is left."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._program_thread, self._warm)
        self._plenty = self.size_for(max(self.costs))
        self._loop_of_batches = asyncio.create_task(self._batches())
        yield {"service": self}
        self._loop_of_batches.cancel()
        self._program_thread.shutdown()
        self._body_thread.shutdown()

    def _warm(self) -> None:
        examples = self.scorer.examples
        for size in self.costs:
            rows = np.resize(examples, (size, *examples.shape[1:]))
            times = []
            for _ in range(3):  # the first compiles
                started = time.perf_counter()
                self.scorer._score(rows)
                times.append(time.perf_counter() - started)
            self.costs[size] = min(times)

    def size_for(self, rows: int) -> int:
        """The batch size that scores so many rows at the least cost for each, its padding included."""
        return min(self.costs, key=lambda size: self.costs[size] / min(size, rows))

    async def scores_of(self, rows: np.ndarray) -> np.ndarray:
        """The scores of checked rows, when their turn has come.

        Raises:
            Refusal: 503, too many rows wait; 422, a row has no finite score.
        """
        if self.waiting and self.waiting_rows + len(rows) > self.limits.waiting_rows:
            raise Refusal(
                503, f"{self.waiting_rows} rows wait to be scored; try again in a moment", {"retry-after": "1"}
            )
        loop = asyncio.get_running_loop()
        waiting = _Waiting(rows, loop.time(), loop.create_future())
        self.waiting.append(waiting)
        self.waiting_rows += len(rows)
        self._arrived.set()
        if self.waiting_rows >= self._plenty:
            self._enough.set()
        scores = await waiting.scores
        if isinstance(scores, ValueError):
            raise Refusal(422, str(scores))
        return scores

    async def _batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            patience = self.waiting[0].since + self.limits.wait_ms / 1000 - loop.time()
            if patience > 0 and self.waiting_rows < self._plenty:
                self._enough.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._enough.wait(), patience)
            size = self.size_for(self.waiting_rows)
            batch = self._next_batch(size)
            rows = [each.rows for each in batch]
            started = time.perf_counter()
            done = loop.run_in_executor(self._program_thread, score_pieces, self.scorer, rows, size)
            await asyncio.wait([done])
            self.program.observe(time.perf_counter() - started)
            self.batches.observe(sum(map(len, rows)))
            error = done.exception()
            for number, each in enumerate(batch):
                if each.scores.done():  # cancelled: nobody asks any more
                    continue
                if error is None:
                    each.scores.set_result(done.result()[number])
                else:
                    each.scores.set_exception(error)

    def _next_batch(self, size: int) -> list[_Waiting]:
        """The requests that have waited longest, as many as fit in one call; the first in any case, cut where it does not."""
        batch, rows = [], 0
        while self.waiting and (not batch or rows + len(self.waiting[0].rows) <= size):
            batch.append(self.waiting.popleft())
            rows += len(batch[-1].rows)
        self.waiting_rows -= rows
        if not self.waiting:
            self._arrived.clear()
        return batch

    # ------------------------------------------------------------------------------------------------------------ endpoints

    async def health(self, _request: Request) -> Response:
        """200 while rows are scored."""
        well = self._loop_of_batches is not None and not self._loop_of_batches.done()
        content = {"status": "ok" if well else "failed", "detector": self.scorer.card["detector"]["class"]}
        return JSONResponse(content, 200 if well else 503)

    async def card(self, _request: Request) -> Response:
        """The bundle's card."""
        return Response(json.dumps(self.scorer.card), media_type=JSON)

    async def measures(self, _request: Request) -> Response:
        """What was counted, in Prometheus' words."""
        return Response(generate_latest(self.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def score(self, request: Request) -> Response:
        """The rows of a body, scored."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (JSON, ARROW):
            raise Refusal(415, f"expected a body of type {JSON} or {ARROW}, got {kind!a:.100}")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "expected a body without content-encoding")
        strange = request.query_params.keys() - ({"alpha", "where"} if kind == ARROW else {"where"})
        if strange:
            raise Refusal(
                400, f"{sorted(strange)[0]!a:.100} is no parameter; alpha goes into a JSON body, for Arrow into the URL"
            )
        wanted = request.headers.get("accept", "")
        arrow = ARROW in wanted or (kind == ARROW and JSON not in wanted)
        if arrow:
            pyarrow_or(415 if kind == ARROW else 406)
        asked = self._asks_where(request, arrow)
        try:
            rows, alpha = await self._read(request, kind)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        scores = await self.scores_of(rows)
        columns = self._judged(scores, alpha)
        self.rows.inc(len(scores))
        self.flagged.inc(int(columns["flagged"].sum()))
        if arrow:
            return Response(write_arrow(columns), media_type=ARROW)
        content = {name: column.tolist() for name, column in columns.items()}
        if asked:
            loop = asyncio.get_running_loop()
            content["where"] = (await loop.run_in_executor(self._program_thread, self.scorer._where, rows)).tolist()
            content["where_threshold"] = self.scorer.where_threshold_
        return JSONResponse(content)

    def _asks_where(self, request: Request, arrow: bool) -> bool:
        asked = request.query_params.get("where", "0")
        if asked not in ("0", "1"):
            raise Refusal(400, f"where is 0 or 1, got {asked!a:.100}")
        if asked == "1" and arrow:
            raise Refusal(406, f"where is answered as {JSON}: name it in the accept header")
        if asked == "1" and self.scorer.where_threshold_ is None:
            raise Refusal(400, "this bundle cannot tell where a row is anomalous, only how much: leave where out")
        return asked == "1"

    async def _read(self, request: Request, kind: str) -> tuple[np.ndarray, float | None]:
        """``(rows, alpha)``, checked: what passes here can be scored, but for rows too far out for float32."""
        most, body = self.limits.body_bytes, bytearray()
        declared = request.headers.get("content-length", "")
        too_large = Refusal(413, f"expected a body of at most {most} bytes; send the rows in several requests")
        if declared.isdecimal() and (len(declared) > 15 or int(declared) > most):
            raise too_large
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > most:
                        raise too_large
                    if self.held_bytes + len(chunk) > BODIES_AT_ONCE * most:
                        raise Refusal(503, "too many large bodies at once; try again in a moment", {"retry-after": "1"})
                    body += chunk
                    self.held_bytes += len(chunk)
            if len(body) <= PARSED_AT_ONCE:
                return self._parsed(body, kind, request)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._body_thread, self._parsed, body, kind, request)
        except TimeoutError:
            raise Refusal(
                408, f"expected the whole body within {self.limits.seconds:g} s", {"connection": "close"}
            ) from None
        finally:
            self.held_bytes -= len(body)

    def _parsed(self, body: bytearray, kind: str, request: Request) -> tuple[np.ndarray, float | None]:
        if kind == JSON:
            rows, alpha = read_json(
                body, tuple(self.scorer.card["sample_shape"]), self.limits.rows, self.scorer.card["columns"]
            )
        else:
            rows, alpha = read_arrow(body, self.scorer.card, self.limits.rows), request.query_params.get("alpha")
        try:
            alpha = None if alpha is None else float(alpha)
            if alpha is not None and not 0.0 <= alpha <= 1.0:
                raise ValueError(f"alpha is a share of normal rows between 0 and 1, got {alpha}")
            if alpha is not None and self.scorer.calibration_scores_ is None:
                raise ValueError(
                    "this bundle holds no calibration scores, without which alpha means nothing: leave it out"
                )
            return self.scorer._checked(rows), alpha
        except (ValueError, TypeError) as error:
            raise Refusal(400, str(error)) from None

    def _judged(self, scores: np.ndarray, alpha: float | None) -> dict[str, np.ndarray]:
        """The columns that ``jaxad score`` writes, and the scores as the detector gives them."""
        known, columns = self.scorer.calibration_scores_, {"score": scores, "anomaly_score": -scores}
        if known is not None:
            columns["p_value"] = (1 + np.searchsorted(known, scores, side="right")) / (len(known) + 1)
        columns["flagged"] = scores < self.scorer.offset_ if alpha is None else columns["p_value"] <= alpha
        return columns


# ---------------------------------------------------------------------------------------------------------------- the application


class _Counted:
    """Counts and times what passes."""

    def __init__(self, app: ASGIApp, service: Service, paths: set[str]):
        self.app, self.service, self.paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500  # an error that nobody has foreseen is answered further out

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        path = scope["path"] if scope["path"] in self.paths else "other"  # a client must not fill the memory with names
        try:
            await self.app(scope, receive, noted)
        finally:
            self.service.requests.labels(path, status).inc()
            self.service.seconds.labels(path).observe(time.perf_counter() - started)


async def _refused(_request: Request, error: Any) -> Response:
    return JSONResponse({"error": error.reason}, error.status, error.headers)


async def _unknown(_request: Request, error: Any) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failed(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "the service has failed at this request; its log says more"}, 500)


def application(scorer: Scorer, limits: Limits = DEFAULT) -> Starlette:
    """The ASGI application of a scorer, for any server of that kind; ``serve`` adds limits on connections.

    >>> import tempfile
    >>> from starlette.testclient import TestClient
    >>> from jaxad import KNNDetector, export_detector
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     detector = KNNDetector(n_neighbors=1).fit([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    ...     export_detector(detector, f"{folder}/scorer")
    ...     with TestClient(application(load_scorer(f"{folder}/scorer"))) as client:
    ...         client.post("/score", json={"rows": [[0.0, 2.0]]}).json()["score"]
    ...         client.post("/score", json={"rows": [[0.0]]}).json()["error"]
    [-1.0]
    'expected "rows" to be lists of numbers of shape [rows, 2], got another shape'
    """
    service = Service(scorer, limits)
    routes = [
        Route("/health", service.health),
        Route("/card", service.card),
        Route("/metrics", service.measures),
        Route("/score", service.score, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Counted, service=service, paths={route.path for route in routes})],
        exception_handlers={Refusal: _refused, HTTPException: _unknown, Exception: _failed},
        lifespan=service.running,
    )
    app.router.redirect_slashes = False
    return app


# ---------------------------------------------------------------------------------------------------------------- the server


class _Connection(H11Protocol):
    """uvicorn's, with reasons in JSON, so many connections at once, and a client that has so much time to ask and to listen."""

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._service: Service = self.app_state["service"]
        self._service.connections.inc()
        if len(self.connections) > self._service.limits.connections:
            self._refuse(503, "too many connections; try again in a moment")
        else:
            self._look(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._service.connections.dec()
        if self._clock is not None:
            self._clock.cancel()
        super().connection_lost(exc)

    def _look(self, seen: tuple | None) -> None:
        """Where the client has got to; a client that has not moved between two looks is given up."""
        answered = self.cycle is None or self.cycle.response_complete
        place = (self.cycle,) if answered or self.flow.write_paused else None  # None: it is the service's turn
        seconds = self._service.limits.seconds
        if place is not None and place == seen:
            half_a_head = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
            if not half_a_head or self.transport.is_closing():
                self.transport.abort()
                return
            self._refuse(408, f"expected the whole head of a request within {seconds:g} s")
        self._clock = self.loop.call_later(seconds, self._look, place)

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # in the middle of another answer
        else:
            self._refuse(400, msg)

    def _refuse(self, status: int, reason: str) -> None:
        """An answer to what has not become a request."""
        body = json.dumps({"error": reason}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {JSON}\r\ncontent-length: {len(body)}\r\n"
        )
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
        self._service.requests.labels("connection", status).inc()


class _Server(uvicorn.Server):
    """Says where it can be asked, once it can."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            logging.getLogger("uvicorn.error").info("Scores are to be had at %s", where)


def serve(path: str | Path, host: str = "127.0.0.1", port: int = 8000, limits: Limits = DEFAULT) -> None:
    """Answer requests for the scores of the bundle at ``path`` until SIGTERM or Ctrl-C, then those that have been asked, then return.

    The port, 0 for any that is free, is in the log, on stderr.

    Raises:
        BundleError: no bundle, or one that cannot be run.
        ValueError: an address that cannot be listened on.
    """
    read_card(path)
    with _bound(host, port) as listener:
        config = uvicorn.Config(
            application(load_scorer(path), limits),
            http=_Connection,
            ws="none",
            timeout_keep_alive=math.ceil(limits.seconds),
            lifespan="on",
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        # uvicorn raises the signal again when all is answered: there is nothing left to stop.
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            with suppress(KeyboardInterrupt):
                _Server(config).run([listener])
        finally:
            signal.signal(signal.SIGTERM, before)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen yet."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ValueError(f"cannot listen on {host} port {port}: {error}; choose another --host or --port") from error
    return listener


def main(words: list[str] | None = None) -> None:
    """``python -m jaxad.shipping.serve``: what ``jaxad serve`` does, without the packages of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxad.shipping.serve",
        description=inspect.getdoc(serve),
        epilog=inspect.getdoc(Limits),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scorer")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    for field in fields(Limits):
        kind: Any = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    options = vars(parser.parse_args(words))
    path, host, port = (options.pop(name) for name in ("scorer", "host", "port"))
    try:
        serve(path, host, port, Limits(**options))
    except ValueError as error:
        parser.exit(2, f"jaxad: {error}\n")


if __name__ == "__main__":
    main()
