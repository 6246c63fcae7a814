"""The service: the bundle's scores over HTTP, and an answer with a reason to everything else."""

import copy
import doctest
import inspect
import io
import json
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import fields
from http.client import HTTPConnection, HTTPResponse
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from command_line import jaxad as command
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

from jaxad import ImageDetector, KNNDetector, cli
from jaxad.metrics import calibration
from jaxad.shipping import bodies, bundle, serve
from jaxad.shipping.bodies import ARROW, DEFAULT, JSON, Limits
from jaxad.shipping.export import export_detector

RNG = np.random.default_rng(0)
X = RNG.normal(size=(150, 5))
ROWS = np.concatenate([X[:10], RNG.normal(size=(55, 5)) * 3])
COLUMNS = list("abcde")
LIMITS = Limits(rows=100, body_bytes=20_000, waiting_rows=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "scorer"
    export_detector(KNNDetector().fit(X), folder, columns=COLUMNS)
    return folder


@pytest.fixture(scope="module")
def scorer(folder):
    return bundle.load_scorer(folder)


@pytest.fixture(scope="module")
def client(scorer):
    with TestClient(serve.application(scorer, LIMITS), raise_server_exceptions=False) as client:
        yield client


def arrow(rows=ROWS, names=COLUMNS, compression=None, **columns):
    table = pa.table({**dict(zip(names, np.asarray(rows).T, strict=True)), **columns})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_table(table)
    return sink.getvalue()


def as_json(rows=ROWS, **others):
    return json.dumps({"rows": np.asarray(rows).tolist(), **others}).encode()


def post(client, body, kind=JSON, **headers):
    return client.post("/score", content=body, headers={"content-type": kind, **headers})


def reason(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == JSON
    assert answer.json().keys() == {"error"}
    return answer.json()["error"]


# -------------------------------------------------------------------------------------------------------------------- scores


def is_what_the_scorer_says(columns, scorer, rows, alpha=None):
    """Scores to rounding, for a sum of the same numbers may be taken in another order in another batch; what follows from them exactly."""
    scores = np.asarray(columns["score"])
    assert len(scores) == len(rows)
    assert bundle.parity(scorer.score_samples(rows), scores) < 0.01
    np.testing.assert_array_equal(columns["anomaly_score"], -scores)
    p = calibration.p_values(scorer.calibration_scores_, scores)
    np.testing.assert_array_equal(columns["p_value"], p)
    np.testing.assert_array_equal(columns["flagged"], scores < scorer.offset_ if alpha is None else p <= alpha)


@pytest.mark.parametrize("size", [1, 3, 65])
@pytest.mark.parametrize("alpha", [None, 0.2])
@pytest.mark.parametrize("wanted", [None, JSON, ARROW])
@pytest.mark.parametrize("sent", [JSON, ARROW])
def test_scores_are_the_scorers(client, scorer, size, alpha, wanted, sent):
    body = arrow(ROWS[:size]) if sent == ARROW else as_json(ROWS[:size], alpha=alpha)
    params = {"alpha": alpha} if sent == ARROW and alpha is not None else {}
    headers = {"content-type": sent, **({} if wanted is None else {"accept": wanted})}
    answer = client.post("/score", content=body, headers=headers, params=params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == (wanted or sent)
    is_arrow = answer.headers["content-type"] == ARROW
    columns = pa.ipc.open_stream(answer.content).read_all().to_pydict() if is_arrow else answer.json()
    assert list(columns) == ["score", "anomaly_score", "p_value", "flagged"]
    is_what_the_scorer_says(columns, scorer, ROWS[:size], alpha)


def test_flags_are_those_of_predict(client, scorer):
    assert post(client, as_json()).json()["flagged"] == (scorer.predict(ROWS) == -1).tolist()
    assert post(client, as_json(alpha=1)).json()["flagged"] == [True] * len(ROWS)
    assert 0 < sum(post(client, as_json()).json()["flagged"]) < len(ROWS)


def test_columns_of_arrow_are_found_by_name_and_may_be_of_any_number(client, scorer):
    order = [3, 0, 4, 2, 1]
    body = arrow(ROWS[:, order], [COLUMNS[number] for number in order])
    is_what_the_scorer_says(post(client, body, ARROW, accept=JSON).json(), scorer, ROWS)
    whole = np.round(ROWS[:4])
    body = arrow(whole, a=pa.array(whole[:, 0], pa.int8()), b=pa.array(whole[:, 1], pa.float16()))
    is_what_the_scorer_says(post(client, body, ARROW, accept=JSON).json(), scorer, whole)


def count(client, name):
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", client.get("/metrics").text, re.M))


def picky(scorer):
    """A program may have no score for a row; ours have one however far out it is."""
    other = copy.copy(scorer)

    def score(rows):
        if (far := np.flatnonzero((np.abs(rows) > 1e200).any(axis=1))).size:
            raise ValueError(f"{len(far)} rows have no finite score, the first is row {far[0]}")
        return scorer._score(rows)

    other._score = score
    return other


def test_what_waits_together_is_scored_together_and_a_row_without_a_score_fails_alone(scorer):
    pieces = [ROWS[start:end] for start, end in pairwise([0, 1, 3, 7, 20, 65])]
    pieces.insert(2, np.full((2, 5), 1e300))
    with (
        TestClient(serve.application(picky(scorer), Limits(wait_ms=500))) as client,
        ThreadPoolExecutor(len(pieces)) as pool,
    ):
        answers = list(pool.map(lambda rows: post(client, as_json(rows)), pieces))
        assert count(client, "jaxad_batch_rows_count") < len(pieces)
        assert count(client, "jaxad_rows_total") == 65
        assert count(client, "jaxad_flagged_rows_total") == sum(scorer.predict(ROWS) == -1)
    assert re.match(r"2 rows have no finite score, the first is row 0", reason(answers.pop(2), 422))
    pieces.pop(2)
    for answer, rows in zip(answers, pieces, strict=True):
        is_what_the_scorer_says(answer.json(), scorer, rows)


def test_as_many_rows_are_scored_at_once_as_are_cheapest(scorer):
    service = serve.Service(scorer, DEFAULT)
    service.costs = {1: 1.0, 16: 4.0, 128: 16.0, 1024: 300.0}
    assert [service.size_for(rows) for rows in (1, 3, 5, 20, 64, 70, 128, 500, 5000)] == [
        1,
        1,
        16,
        16,
        16,
        128,
        128,
        128,
        128,
    ]
    service.costs[1024] = 100.0
    assert [service.size_for(rows) for rows in (500, 1000)] == [128, 1024]
    service._warm()
    assert min(service.costs.values()) > 0
    assert list(service.costs) == scorer.card["batch_sizes"]


def test_a_long_request_is_cut_and_its_bad_row_is_named(scorer):
    (scores,) = serve.score_pieces(scorer, [ROWS], 16)
    assert bundle.parity(scorer.score_samples(ROWS), scores) < 0.01
    spoilt = ROWS.copy()
    spoilt[40] = 1e300
    (error,) = serve.score_pieces(picky(scorer), [spoilt], 16)
    assert "the first is row 40" in str(error)


def test_a_full_queue_refuses_and_forgets_nobody(folder):
    scorer, held = bundle.load_scorer(folder), threading.Event()
    with TestClient(serve.application(scorer, LIMITS)) as client, ThreadPoolExecutor(4) as pool:
        score = scorer._score
        scorer._score = lambda rows: held.wait() and score(rows)
        first = pool.submit(post, client, as_json(ROWS[:1]))
        time.sleep(0.2)  # until it has been taken from the queue
        waiting = [pool.submit(post, client, as_json(ROWS[:60])) for _ in range(2)]
        while count(client, "jaxad_waiting_rows") < 120:
            time.sleep(0.01)
        refused = post(client, as_json(ROWS[:1]))
        held.set()
        assert "120 rows wait" in reason(refused, 503)
        assert refused.headers["retry-after"] == "1"
        is_what_the_scorer_says(first.result().json(), scorer, ROWS[:1])
        for each in waiting:
            is_what_the_scorer_says(each.result().json(), scorer, ROWS[:60])


def test_what_the_program_cannot_do_is_answered_without_details_and_forgotten(folder):
    scorer = bundle.load_scorer(folder)
    with TestClient(serve.application(scorer, LIMITS), raise_server_exceptions=False) as client:
        score, scorer._score = scorer._score, lambda rows: 1 / 0
        assert "its log says more" in reason(post(client, as_json()), 500)
        scorer._score = score
        is_what_the_scorer_says(post(client, as_json()).json(), scorer, ROWS)
        assert client.get("/health").json() == {"status": "ok", "detector": "KNNDetector"}


@pytest.mark.slow
def test_pictures_and_bundles_without_calibration_scores(tmp_path):
    pictures = (RNG.random((24, 4, 4, 1)) * 255).astype(np.uint8)
    export_detector(ImageDetector(maps=False).fit(pictures), tmp_path / "pictures")
    scorer = bundle.load_scorer(tmp_path / "pictures")
    scorer.card["batch_sizes"] = [16]  # others would be compiled
    with TestClient(serve.application(scorer)) as client:
        is_what_the_scorer_says(post(client, as_json(pictures[:3])).json(), scorer, pictures[:3])
        assert "[rows, 4, 4, 1], got another shape" in reason(post(client, as_json(pictures[:3, :, :, 0])), 400)
        assert "no table" in reason(post(client, arrow(), ARROW), 415)
        scorer.calibration_scores_ = None
        assert list(post(client, as_json(pictures[:3])).json()) == ["score", "anomaly_score", "flagged"]
        assert "holds no calibration scores" in reason(post(client, as_json(pictures[:1], alpha=0.1)), 400)


# ------------------------------------------------------------------------------------------------------------------- refused


NOT_JSON = (
    b"",
    b"{",
    b"rows",
    b"\xff\xfe\x00",
    b"\x80",
    b'{"rows": [[1,2,3,4,NaN]]}',
    b'{"rows": [[1,2,3,4,-Infinity]]}',
)
SHAPE = r"of shape \[rows, 5\], got another shape"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        *((body, 400, "the body is no JSON: ") for body in NOT_JSON),
        (b"[" * 101, 400, "no JSON"),
        (b"[" * 102, 413, "at most 100 rows"),
        (b'{"a":' * 3000, 400, "nested too deeply"),
        (b"[[1,2,3,4,5]]", 400, "expected an object with \"rows\".*got 'list'"),
        (b"3", 400, "got 'float'"),
        (b'{"row": [[1,2,3,4,5]]}', 400, r"got \['row'\]"),
        (b'{"rows": [[1,2,3,4,5]], "\\ud800": 1}', 400, r"\['rows', '\\ud800'\]"),
        (b'{"rows": {"a": 1}}', 400, SHAPE),
        (b'{"rows": null}', 400, SHAPE),
        (b'{"rows": [1,2,3,4,5]}', 400, SHAPE),
        (b'{"rows": [[1,2,3,4]]}', 400, SHAPE),
        (b'{"rows": [[1,2,3,4,5],[]]}', 400, SHAPE),
        (b'{"rows": [[1,2,3,4,[5]]]}', 400, "a value of type list"),
        (b'{"rows": [[1,2,3,4,"5"]]}', 400, "a value of type str"),
        (b'{"rows": [[1,2,3,4,true]]}', 400, "a value of type bool"),
        (b'{"rows": [[1,2,3,4,null]]}', 400, "a value of type null"),
        (b'{"rows": []}', 400, "expected 1 to 100 rows, got 0"),
        (as_json(np.zeros((101, 5))), 413, "at most 100 rows"),
        (b'{"rows": [[1,2,3,4,1e400]]}', 400, "NaN or infinity in 1 rows, the first is row 0"),
        (b'{"rows": [[1,2,3,4,%s]]}' % (b"9" * 5000), 400, "NaN or infinity"),
        (as_json(alpha=1.5), 400, "between 0 and 1, got 1.5"),
        (as_json(alpha=True), 400, 'expected "alpha" to be a number, got a value of type bool'),
        (as_json(alpha="0.1"), 400, "a value of type str"),
        (b" " * 20_001, 413, "a body of at most 20000 bytes"),
    ],
)
def test_json_that_is_refused(client, body, status, message):
    assert re.search(message, reason(post(client, body), status))


NULLS = pa.array([None, *ROWS[1:, 0]])


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "no Arrow stream"),
        (b"ARROW1\0\0", 400, "no Arrow stream"),
        (arrow()[:-100], 400, "no Arrow stream"),
        (arrow()[:50], 400, "no Arrow stream"),
        (arrow(ROWS[:, :4], COLUMNS[:4]), 400, r"missing \['e'\], not seen in training 'none'"),
        (arrow(f=ROWS[:, 0]), 400, r"missing 'none', not seen in training \['f'\]"),
        (arrow(a=NULLS), 400, "missing values"),
        (arrow(a=["x"] * 65), 400, "expected columns of numbers, got string in 'a'"),
        (arrow(a=pa.array(["x"] * 65).dictionary_encode()), 400, "dictionary|plain columns"),
        (arrow(a=[[1.0]] * 65), 400, "got list"),
        (arrow(a=np.full(65, np.nan)), 400, "NaN or infinity in 65 rows"),
        (arrow(compression="zstd"), 400, "without compression"),
        (arrow(compression="lz4"), 400, "without compression"),
        (arrow(ROWS[:0]), 400, "got 0"),
        (arrow(np.zeros((101, 5))), 413, "expected 1 to 100 rows, got 101"),
    ],
)
def test_arrow_that_is_refused(client, body, status, message):
    assert re.search(message, reason(post(client, body, ARROW), status))


def test_requests_that_are_refused(client):
    good = as_json()
    assert "expected a body of type" in reason(post(client, good, "text/csv"), 415)
    assert "expected a body of type" in reason(client.post("/score", content=good), 415)
    assert "content-encoding" in reason(post(client, good, **{"content-encoding": "gzip"}), 415)
    assert "'alpha' is no parameter" in reason(
        client.post("/score?alpha=0.1", content=good, headers={"content-type": JSON}), 400
    )
    for alpha in ("x", "nan", "2"):
        reason(client.post(f"/score?alpha={alpha}", content=arrow(), headers={"content-type": ARROW}), 400)
    assert reason(client.get("/score"), 405) == "Method Not Allowed"
    for path in ("/", "/score/", "/metrics/x", "/%00"):
        assert reason(client.post(path, content=good), 404) == "Not Found"
    assert "at most 20000 bytes" in reason(post(client, (b"[" * 999 for _ in range(99))), 413)  # of no declared length
    metrics = client.get("/metrics").text
    assert 'jaxad_requests_total{path="other",status="404"}' in metrics
    assert "%00" not in metrics
    assert re.search(r"^jaxad_held_bytes 0.0$", metrics, re.M)


def test_without_pyarrow_there_is_json(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "no pyarrow" in reason(post(client, b"", ARROW, accept=JSON), 415)
    assert "no pyarrow" in reason(post(client, as_json(), accept=ARROW), 406)
    assert post(client, as_json()).status_code == 200


def test_the_card_is_the_bundles(client, scorer):
    assert client.get("/card").json() == scorer.card


# --------------------------------------------------------------------------------------------------------------------- fuzzing


numbers = st.one_of(st.floats(), st.integers(), st.integers(10**300, 10**320), st.booleans(), st.none(), st.text())
anything = st.recursive(
    numbers, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)
tables = st.lists(st.lists(numbers, min_size=4, max_size=6), max_size=4)
nearly = st.fixed_dictionaries({"rows": tables | anything}, optional={"alpha": numbers, "beta": anything})
WHOLE = [as_json(ROWS[:3]), as_json(ROWS[:3], alpha=0.1)]
STREAMS = [
    arrow(ROWS[:3]),
    arrow(ROWS[:3], a=pa.array([1, None, 3])),
    arrow(ROWS[:3], a=["x", "y", "z"]),
    arrow(ROWS[:3], compression="zstd"),
    arrow(ROWS[:3], a=pa.array(["x", "y", "x"]).dictionary_encode()),
]


@st.composite
def spoilt(draw, whole):
    """A good body with bytes changed, put in or left out."""
    body = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(len(body) - 1, 0)))
        new = draw(st.binary(max_size=8) | st.sampled_from([b"\xff\xff\xff\x7f", b"\xff" * 8, b"[", b"NaN", b"1e999"]))
        body[place : place + draw(st.sampled_from([0, len(new), 64]))] = new
    return bytes(body)


json_bodies = st.one_of(
    st.binary(max_size=200),
    anything.map(json.dumps).map(str.encode),
    nearly.map(json.dumps).map(str.encode),
    spoilt(WHOLE),
)
requests = st.fixed_dictionaries(
    {
        "content": json_bodies | spoilt(STREAMS),
        "headers": st.fixed_dictionaries(
            {"content-type": st.sampled_from([JSON, ARROW, ARROW, f"{JSON}; charset=utf-8", "text/plain", ""])},
            optional={
                "accept": st.sampled_from([JSON, ARROW, "*/*", "text/html"]),
                "content-encoding": st.just("gzip"),
            },
        ),
    },
    optional={"params": st.dictionaries(st.sampled_from(["alpha", "beta"]), st.text(max_size=5) | st.just("0.1"))},
)


@pytest.mark.parametrize("examples", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_whatever_is_sent_is_scored_or_refused_with_a_reason(client, scorer, examples):
    seen = set()

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(request=requests)
    def answered(request):
        answer = client.post("/score", **request)
        seen.add(answer.status_code)
        if answer.status_code != 200:
            assert answer.status_code in {400, 406, 413, 415, 422}
            assert reason(answer, answer.status_code)
        elif answer.headers["content-type"] == JSON:
            assert np.isfinite(answer.json()["score"]).all()
        else:
            assert len(pa.ipc.open_stream(answer.content).read_all())

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answered()
    assert {200, 400, 415} <= seen
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
    assert client.get("/health").status_code == 200
    is_what_the_scorer_says(post(client, as_json()).json(), scorer, ROWS)
    assert count(client, "jaxad_held_bytes") == count(client, "jaxad_waiting_rows") == 0


# ----------------------------------------------------------------------------------------------------------- a process of its own

BLOCKED = (
    "flax",
    "optax",
    "sklearn",
    "orbax",
    "chex",
    "jaxtyping",
    "pandas",
    "scipy.stats",
    "tyro",
    "rich",
    "safetensors",
)
PROGRAM = """
import sys
for name in {blocked}:
    sys.modules[name] = None
from jaxad.shipping import serve
serve.main({words})
print(sorted(name for name in sys.modules if name.startswith("jaxad")))
"""


class Process:
    """A service on a port of its choice, in a process without the packages that train detectors."""

    def __init__(self, *words, blocked=BLOCKED):
        program = PROGRAM.format(blocked=blocked, words=[*map(str, words), "--port", "0"])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", program], **pipes)
        self.log = []
        while not (found := re.search(r"at http://127\.0\.0\.1:(\d+)$", self.log[-1] if self.log else "")):
            self.log.append(self.process.stderr.readline().rstrip())
            assert self.log[-1], "".join(self.log)
        self.port = int(found[1])

    def connection(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def ask(self, method="GET", path="/health", body=None, **headers):
        """Status, and the JSON of the answer."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as client:
            client.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            return read(client.getresponse())

    def connections(self):
        """How many are open, the one that asks included."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as client:
            client.request("GET", "/metrics")
            return float(re.search(rb"^jaxad_connections (\S+)$", client.getresponse().read(), re.M)[1])

    def score(self, rows, **others):
        return self.ask("POST", "/score", as_json(rows, **others), content_type=JSON)

    def end(self):
        """Exit status and what was written."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, "\n".join([*self.log, err])


def read(response):
    assert response.headers["content-type"] == JSON
    return response.status, json.loads(response.read())


def answer(connection):
    """What comes back on a raw connection."""
    with HTTPResponse(connection) as response:
        response.begin()
        return read(response)


@contextmanager
def running(*words, **settings):
    service = Process(*words, **settings)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.communicate()


@pytest.fixture(scope="module")
def service(folder):
    with running(folder, "--seconds", 0.5, "--body-bytes", 100_000, "--rows", 100, "--connections", 8) as service:
        yield service


POST = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def test_a_process_without_flax_and_sklearn_scores(service, scorer):
    status, columns = service.score(ROWS, alpha=0.1)
    assert status == 200
    is_what_the_scorer_says(columns, scorer, ROWS, 0.1)
    assert service.ask()[0] == 200
    assert service.ask("POST", "/score", arrow(), content_type=ARROW, accept=JSON)[0] == 200


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (b"GARBAGE\r\n\r\n", 400, "Invalid HTTP request"),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 2**17, 400, "Invalid HTTP request"),
        (b"GET /health HT", 408, "the whole head of a request within 0.5 s"),
        (POST + b"content-length: 100\r\n\r\n{", 408, "the whole body within 0.5 s"),
        (POST + b"content-length: 100001\r\n\r\n{", 413, "at most 100000 bytes"),
        (POST + b"content-length: 999999999999999999999999\r\n\r\n{", 400, "Invalid HTTP request"),
        (POST + b"content-length: -1\r\n\r\n{", 400, "Invalid HTTP request"),
        (POST + b"transfer-encoding: chunked\r\n\r\n" + (b"4000\r\n" + b" " * 2**14 + b"\r\n") * 7, 413, "at most"),
        (POST + b'transfer-encoding: chunked\r\n\r\n5\r\n{"row\r\nzz\r\n', 400, "Invalid HTTP request"),
        (POST + b'transfer-encoding: chunked\r\n\r\n5\r\n{"row\r\n0\r\n\r\n', 400, "no JSON"),
    ],
)
def test_requests_that_are_none(service, sent, status, message):
    with service.connection() as connection:
        connection.sendall(sent)
        found, content = answer(connection)
    assert (found, message in content["error"]) == (status, True), content
    assert service.ask()[0] == 200


def trickle(connection):
    """How long a client that goes on sending a byte at a time is listened to."""
    started = time.perf_counter()
    try:
        while time.perf_counter() - started < 30:
            connection.sendall(b"x")
            time.sleep(0.02)
    except OSError:
        pass
    return time.perf_counter() - started


@pytest.mark.parametrize(
    "sent", [b"GET /health HTTP/1.1\r\nhost: x\r\nx: ", b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /"]
)
def test_a_client_that_trickles_is_cut_off(service, sent):
    with service.connection() as connection:
        connection.sendall(sent)
        assert trickle(connection) < 10


def test_a_client_that_says_nothing_or_does_not_listen_is_cut_off(service):
    with service.connection() as silent, service.connection() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                deaf.send(b"GET /card HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
        assert silent.recv(1) == b""
        # The deaf one's system may learn of it minutes later, the service has to know.
        deadline = time.perf_counter() + 60
        while service.connections() > 1 and time.perf_counter() < deadline:
            time.sleep(0.1)
        assert service.connections() == 1
    assert service.ask()[0] == 200


def test_connections_are_limited(service):
    deadline = time.perf_counter() + 60
    while service.connections() > 1 and time.perf_counter() < deadline:  # those of other tests
        time.sleep(0.1)
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(service.connection())
        with service.connection() as connection:
            assert answer(connection) == (503, {"error": "too many connections; try again in a moment"})
    while service.ask()[0] == 503 and time.perf_counter() < deadline:
        time.sleep(0.1)
    assert service.ask()[0] == 200


def test_requests_in_flight_are_answered_before_the_end(folder, scorer):
    with running(folder, "--wait-ms", 1500, "--host", "127.0.0.1", blocked=(*BLOCKED, "pyarrow")) as service:
        assert service.ask("POST", "/score", arrow(), content_type=ARROW)[0] == 415
        with ThreadPoolExecutor(3) as pool, service.connection() as half:
            half.sendall(POST + b"content-length: %d\r\n\r\n" % len(as_json()))
            asked = [pool.submit(service.score, ROWS[:size]) for size in (1, 65)]
            time.sleep(0.5)
            ended = pool.submit(service.end)
            time.sleep(0.3)
            with pytest.raises(OSError, match="refused"):
                service.connection()
            half.sendall(as_json())
            answers = [each.result() for each in asked] + [answer(half)]
            code, out, err = ended.result()
    assert code == 0, err
    for (status, columns), size in zip(answers, (1, 65, 65), strict=True):
        assert status == 200
        is_what_the_scorer_says(columns, scorer, ROWS[:size])
    assert (
        out.strip()
        == "['jaxad', 'jaxad.shipping', 'jaxad.shipping.bodies', 'jaxad.shipping.bundle', 'jaxad.shipping.serve', 'jaxad.standardiser']"
    )
    assert "Traceback" not in err


# ---------------------------------------------------------------------------------------------------------------- command line


def test_mistakes_are_met_before_any_work(folder, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, message in (
            ((tmp_path,), "holds no card.json"),
            ((folder, "--port", port), f"cannot listen on 127.0.0.1 port {port}: .*choose another"),
            ((folder, "--port", 70_000), "cannot listen on 127.0.0.1 port 70000"),
            ((folder, "--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid"),
            ((folder, "--seconds", 0), "seconds is a positive number, got 0"),
            ((folder, "--wait-ms", -1), "wait_ms is a positive number or 0, got -1"),
        ):
            assert command("serve", *words) == 2
            assert re.search(message, " ".join(capsys.readouterr().err.split()))
            with pytest.raises(SystemExit) as exit:
                serve.main([*map(str, words)])
            assert exit.value.code == 2
            assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_both_command_lines_have_the_same_options(capsys):
    seen = []
    for run in (lambda: command("serve", "--help"), lambda: serve.main(["--help"])):
        with suppress(SystemExit):
            run()
        seen.append(set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)))
    options = {f"--{field.name.replace('_', '-')}" for field in fields(Limits)}
    assert options | {"--host", "--port", "--help"} == seen[0] == seen[1]


def test_the_address_is_this_machine_s_unless_told_otherwise():
    for function in (serve.serve, cli.serve):
        assert inspect.signature(function).parameters["host"].default == "127.0.0.1"


def test_the_command_line_names_what_is_missing(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jaxad.shipping.serve", None)
    assert command("serve", folder) == 2
    assert "pip install 'jaxad[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize("module", [bodies, serve])
def test_examples_in_docstrings(module):
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed
