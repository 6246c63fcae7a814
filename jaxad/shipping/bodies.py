"""Rows in the body of a request, JSON or Arrow, from clients that nobody vouches for.

Sizes are looked at before anything is parsed: what a body takes in memory is bounded by the rows that are allowed, not by what it says.
Every refusal is one sentence with a status of HTTP.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
from flatbuffers.number_types import Int64Flags
from flatbuffers.table import Table

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"


class Refusal(Exception):
    """An answer of ``status``, 4xx or 5xx, with a ``reason``."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None):
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


@dataclass(frozen=True)
class Limits:
    """What the service lets its clients ask for.

    Args:
        rows: most rows in one request; more: 413.
        body_bytes: most bytes in the body of one request; more: 413.
        seconds: time for a client to send a body (longer: 408); and to begin, to ask again, or to take an answer (up to twice as long, then
            it is cut off).
        waiting_rows: most rows that may wait to be scored; more: 503 with Retry-After.
        connections: most connections at once; more: 503.
        wait_ms: milliseconds for which a request waits for others to be scored with. Those that come while the program runs are
            scored together in any case.
    """

    rows: int = 10_000
    body_bytes: int = 8 * 2**20
    seconds: float = 10.0
    waiting_rows: int = 50_000
    connections: int = 256
    wait_ms: float = 0.0

    def __post_init__(self):
        for field in fields(self):
            value, none = getattr(self, field.name), field.name == "wait_ms"
            if not (0 < value < math.inf or (none and value == 0)):
                raise ValueError(f"{field.name} is a positive number{' or 0' if none else ''}, got {value}")


DEFAULT = Limits()


def read_json(
    body: bytes | bytearray, shape: tuple[int, ...], most_rows: int, columns: Sequence[str] | None = None
) -> tuple[np.ndarray, float | None]:
    """``(rows [rows, *shape] float64, alpha)`` of a JSON body: any numbers, infinite where float64 ends.

    Where ``columns``, those of training, have names, a body may name its own, ``{"columns": ["b", "a"], "rows": ...}``, in any order.

    Raises:
        Refusal: 413 for more rows; 400 for what is no JSON, other fields or columns, another shape, and everything that is no number.

    >>> read_json(b'{"rows": [[1, 2.5]]}', (2,), 10)
    (array([[1. , 2.5]]), None)
    """
    # Counted, not parsed: two bytes can become a list of 64.
    lists = 1 + most_rows * sum(math.prod(shape[:depth]) for depth in range(len(shape)))
    commas = 1 + most_rows * math.prod(shape)
    if columns and b'"columns"' in body:
        lists, commas = lists + 1, commas + 1 + sum(map(len, columns))
    if body.count(b"[") > lists or body.count(b",") > commas:
        raise Refusal(413, f"expected at most {most_rows} rows in one request, got more lists or values than that")
    try:
        # Integers as floats, like the rows they become: one of a million digits is infinite, and refused as such.
        content = json.loads(body, parse_int=float, parse_constant=_no_constant)
    except RecursionError:
        raise Refusal(400, 'expected {"rows": [[...], ...]}, got JSON that is nested too deeply') from None
    except ValueError as error:
        raise Refusal(400, f"the body is no JSON: {error!s:.200}") from None
    if not isinstance(content, dict) or "rows" not in content or content.keys() - {"rows", "alpha", "columns"}:
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise Refusal(400, f'expected an object with "rows" and perhaps "alpha" and "columns", got {got!a:.200}')
    order = None
    if "columns" in content:
        given = content["columns"]
        if columns is None or type(given) is not list or any(type(name) is not str for name in given):
            raise Refusal(400, f'"columns" is a list of the names of training, of which there are {len(columns or ())}')
        order = _in_order(given, columns)
    level: Any = [content["rows"]]
    wanted = ", ".join(map(str, ("rows", *shape)))
    for size in (None, *shape):
        if any(type(each) is not list or (size is not None and len(each) != size) for each in level):
            raise Refusal(400, f'expected "rows" to be lists of numbers of shape [{wanted}], got another shape')
        level = list(chain.from_iterable(level))
        if size is None and not 1 <= len(level) <= most_rows:
            raise Refusal(413 if level else 400, f"expected 1 to {most_rows} rows, got {len(level)}")
    strangers = set(map(type, level)) - {float}
    if strangers:
        got = sorted(each.__name__ for each in strangers)[0].replace("NoneType", "null")
        raise Refusal(400, f'expected "rows" to hold numbers alone, got a value of type {got}')
    alpha = content.get("alpha")
    if alpha is not None and type(alpha) is not float:
        raise Refusal(400, f'expected "alpha" to be a number, got a value of type {type(alpha).__name__}')
    rows = np.array(level, np.float64).reshape(-1, *shape)
    return rows if order is None else rows[:, order], alpha


def _no_constant(name: str):
    raise ValueError(f"{name} is no number in JSON")


def read_arrow(body: bytes | bytearray, card: dict[str, Any], most_rows: int) -> np.ndarray:
    """The rows ``[rows, columns]`` float64 of a stream of Arrow record batches, its columns in the order of training where they have names.

    Raises:
        Refusal: 415 without pyarrow, and for pictures; 413 for more rows; 400 for other columns or types than numbers, missing
            values, compression, and whatever pyarrow does not take for a stream.
    """
    pa = pyarrow_or(415)
    if len(card["sample_shape"]) > 1:
        raise Refusal(415, f"rows of shape {card['sample_shape']} are no table: send them as {JSON}")
    source = pa.py_buffer(body)
    try:
        # Heads first: they say what would be allocated.
        schema, *messages = pa.ipc.MessageReader.open_stream(source)
        strange = [message.type for message in messages if message.type != "record batch"]
        if schema.type != "schema" or strange:
            raise Refusal(400, f"expected a schema and record batches of plain columns, got {strange[:1]}")
        order = _order(pa, pa.ipc.read_schema(schema), card)
        rows = sum(_batch_rows(message.metadata) for message in messages)
        if not 1 <= rows <= most_rows:
            raise Refusal(413 if rows else 400, f"expected 1 to {most_rows} rows, got {rows}")
        pieces = []
        for batch in pa.ipc.open_stream(source):
            batch.validate(full=True)
            columns = [batch.column(number) for number in order]
            if any(column.null_count for column in columns):
                raise Refusal(400, "expected a number in every place, got missing values; fill them in as in training")
            pieces.append(np.column_stack([column.to_numpy(zero_copy_only=False) for column in columns]))
        return np.concatenate(pieces).astype(np.float64)
    except (pa.ArrowException, ValueError, OSError, EOFError, LookupError, struct.error) as error:
        raise Refusal(400, f"the body is no Arrow stream: {str(error) or type(error).__name__!s:.200}") from None


def _order(pa, schema, card: dict[str, Any]) -> list[int]:
    """Which column of the stream is the first of training, which the second, ..."""
    plain = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
    for field in schema:
        if not any(is_plain(field.type) for is_plain in plain):
            raise Refusal(400, f"expected columns of numbers, got {field.type!s:.100} in {field.name!a:.100}")
    (width,), columns = card["sample_shape"], card["columns"]
    if columns is None:
        if len(schema) != width:
            raise Refusal(400, f"expected {width} columns, got {len(schema)}")
        return list(range(width))
    return _in_order(schema.names, columns)


def _in_order(given: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Which of the columns given is the first of training, which the second, ..."""
    if sorted(given) != sorted(columns):
        missing, unknown = sorted(set(columns) - set(given)), sorted(set(given) - set(columns))
        raise Refusal(
            400,
            f"expected the columns of training, each once: missing {missing or 'none'!a:.200}, not seen in training "
            f"{unknown or 'none'!a:.200}",
        )
    return [list(given).index(name) for name in columns]


def _batch_rows(metadata) -> int:
    """How many rows a record batch says it has. Places of the fields: Arrow's Message.fbs, as pyarrow has just verified them."""
    content = metadata.to_pybytes()
    message, head = Table(content, int.from_bytes(content[:4], "little")), Table(content, 0)
    message.Union(head, message.Offset(8))
    if head.Offset(10):
        # A compressed buffer says itself how much memory it takes.
        raise Refusal(400, "expected record batches without compression, got compressed ones")
    place = head.Offset(4)
    rows = head.Get(Int64Flags, head.Pos + place) if place else 0
    if rows < 0:
        raise Refusal(400, f"expected a number of rows, got {rows}")
    return rows


def pyarrow_or(status: int) -> Any:
    """pyarrow, which a service may lack, or a refusal with this status."""
    try:
        import pyarrow as pa
        import pyarrow.ipc
    except ImportError:
        raise Refusal(status, f"the service has no pyarrow to read or write Arrow; use {JSON}") from None
    return pa


def write_arrow(columns: dict[str, np.ndarray]) -> bytes:
    """The columns as a stream of one record batch.

    >>> import pyarrow as pa
    >>> pa.ipc.open_stream(write_arrow({"score": np.array([-1.5, -2.0])})).read_all().to_pydict()
    {'score': [-1.5, -2.0]}
    """
    pa = pyarrow_or(406)
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()
