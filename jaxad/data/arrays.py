"""Reading ``.npy`` and ``.npz`` files that nobody vouches for.

Nothing is ever unpickled, nothing is extracted to disk, and no memory is set aside on the word of a header: its dtype
and shape are judged first, against a limit and against the size of what holds it; then the bytes are taken as they
arrive.
"""

import csv
import io
import lzma
import math
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from jaxad.data.dataset import DataError

MAX_BYTES = 8 * 2**30

# What zipfile, the decompressors, numpy's header parser (Python source), csv and pandas raise for damaged bytes.
DAMAGED = (
    *(
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        RuntimeError,
        MemoryError,
        OSError,
        EOFError,
        SyntaxError,
    ),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError, csv.Error),
)


@contextmanager
def damage_named(path: Path, expected: str) -> Iterator[None]:
    """Turn what a parser raises for damaged bytes into a ``DataError`` with the file and what was expected of it."""
    try:
        yield
    except DataError:
        raise
    except DAMAGED as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"{path}: expected {expected}, but it cannot be read ({reason}); fetch or save the file again"
        ) from error


def read_npy(path: Path, *, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The table in a ``.npy`` file, ``[rows, features]`` in the dtype of the file; ``DataError`` for anything else."""
    with damage_named(path, "a NumPy .npy file"), path.open("rb") as stream:
        size = path.stat().st_size
        return _read_array(stream, size, str(path), ndim=2, max_bytes=max_bytes, step=2**20)


def read_npy_rows(path: Path, start: int, count: int, *, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """At most ``count`` rows of the table in a ``.npy`` file, from row ``start`` on, none behind its end; errors as ``read_npy``.

    Only these rows are read, unless the file holds its columns one after the other (Fortran order), which are then all read.
    """
    with damage_named(path, "a NumPy .npy file"), path.open("rb") as stream:
        shape, fortran_order, dtype = _read_header(stream, path.stat().st_size, str(path), 2, None)
        if fortran_order:
            return read_npy(path, max_bytes=max_bytes)[start : start + count]
        count = max(min(count, shape[0] - start), 0)
        num_bytes = count * shape[1] * dtype.itemsize
        if num_bytes > max_bytes:
            raise DataError(
                f"{path}: expected at most {max_bytes} bytes at once, got {num_bytes} for {count} rows; take fewer"
            )
        stream.seek(start * shape[1] * dtype.itemsize, os.SEEK_CUR)
        return np.frombuffer(stream.read(num_bytes), dtype).reshape(count, shape[1])


def read_npz(path: Path, *, max_bytes: int = MAX_BYTES) -> tuple[np.ndarray, np.ndarray | None]:
    """The members ``X`` (or ``x``) ``[rows, features]`` and ``y`` ``[rows]`` of a ``.npz`` archive; no ``y``, None.

    Other members are left alone. ``DataError`` for anything else: no archive, no ``X``, pickled objects, more bytes
    than ``max_bytes`` or than the archive holds.
    """
    with damage_named(path, "a NumPy .npz archive"), zipfile.ZipFile(path) as archive:
        key, features, labels = _features_and_labels(path, archive)
        x = _read_member(archive, features, f"{path}, key {key!r}", ndim=2, max_bytes=max_bytes)
        y = None if labels is None else _read_member(archive, labels, f"{path}, key 'y'", ndim=1, max_bytes=max_bytes)
        return x, y


def npz_pieces(
    path: Path, rows: int, start: int, *, max_bytes: int = MAX_BYTES
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """``read_npz`` in pieces of at most so many rows, from row ``start`` on, in the memory of one; errors as there, for a piece.

    A member can only be read from its beginning: rows before ``start`` are inflated and let go. One that holds its columns one after
    the other (Fortran order) is read whole.
    """
    with damage_named(path, "a NumPy .npz archive"), zipfile.ZipFile(path) as archive, ExitStack() as opened:
        key, features, labels = _features_and_labels(path, archive)
        what, members = [f"{path}, key {key!r}", f"{path}, key 'y'"], [features, *([] if labels is None else [labels])]
        steps = [_step(member, name) for member, name in zip(members, what, strict=False)]
        streams = [opened.enter_context(archive.open(member)) for member in members]
        heads = [
            _read_header(stream, member.file_size, name, ndim, None)
            for stream, member, name, ndim in zip(streams, members, what, (2, 1), strict=False)
        ]
        shape, fortran_order, _ = heads[0]
        if any(head[0][0] != shape[0] for head in heads):
            raise DataError(f"{path}: expected a label for each of {shape[0]} rows, got {heads[1][0][0]}")
        if fortran_order:
            x, y = read_npz(path, max_bytes=max_bytes)
            for first in range(start, len(x), rows):
                yield x[first : first + rows], None if y is None else y[first : first + rows]
            return
        row_bytes = [math.prod(of[1:]) * dtype.itemsize for of, _, dtype in heads]
        if min(rows, shape[0]) * max(row_bytes) > max_bytes:
            raise DataError(
                f"{path}: expected at most {max_bytes} bytes at once, got {rows} rows x {shape[1]} features"
            )
        for stream, size, step, name in zip(streams, row_bytes, steps, what, strict=False):
            left = min(start, shape[0]) * size
            while left:
                left -= len(_taken(stream, min(left, 2**20), step, name))
        for first in range(start, shape[0], rows):
            count = min(rows, shape[0] - first)
            x, *y = [
                np.frombuffer(_taken(stream, count * size, step, name), dtype).reshape(count, *of[1:])
                for stream, size, step, name, (of, _, dtype) in zip(
                    streams, row_bytes, steps, what, heads, strict=False
                )
            ]
            if first + count == shape[0]:
                for stream in streams:
                    stream.read(1)  # at its end the checksum is compared
            yield x, y[0] if y else None


def _taken(stream: IO[bytes], num_bytes: int, step: int, what: str) -> bytearray:
    """So many bytes, read ``step`` at a time."""
    content = bytearray()
    while len(content) < num_bytes and (piece := stream.read(min(step, num_bytes - len(content)))):
        content += piece
    if len(content) != num_bytes:
        raise DataError(f"{what}: it ends {num_bytes - len(content)} bytes early; the file is damaged or truncated")
    return content


def _features_and_labels(path: Path, archive: zipfile.ZipFile) -> tuple[str, zipfile.ZipInfo, zipfile.ZipInfo | None]:
    """``(key of the features, their member, that of the labels)``."""
    members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    keys = [key for key in ("X", "x") if key in members]
    if len(keys) != 1:
        found = f"it holds {', '.join(sorted(members)[:8])}" if members else "it is empty"
        raise DataError(
            f"{path}: expected the features under one of the keys 'X' and 'x' (labels under 'y'), but {found}"
        )
    return keys[0], members[keys[0]], members.get("y")


def read_record(content: bytes, what: str, *, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The row ``[features]`` in the bytes of a ``.npy`` file; ``DataError`` for anything else."""
    with damage_named(Path(what), "the bytes of a NumPy .npy file"):
        return _read_array(io.BytesIO(content), len(content), what, ndim=1, max_bytes=max_bytes, step=2**20)


def read_members(path: Path, names: Sequence[str], *, max_bytes: int = MAX_BYTES) -> list[np.ndarray]:
    """The members of a ``.npz`` archive with these names, finite numbers ``[rows]`` each; ``DataError`` for anything else."""
    with damage_named(path, "a NumPy .npz archive"), zipfile.ZipFile(path) as archive:
        found = [
            _read_member(archive, archive.getinfo(f"{name}.npy"), f"{path}, key {name!r}", ndim=1, max_bytes=max_bytes)
            for name in names
        ]
    for name, array in zip(names, found, strict=True):
        if not np.isfinite(array).all():
            raise DataError(f"{path}, key {name!r}: expected finite numbers, got {array[~np.isfinite(array)][0]}")
    return found


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, what: str, *, ndim: int, max_bytes: int
) -> np.ndarray:
    step = _step(member, what)
    with archive.open(member) as stream:
        return _read_array(stream, member.file_size, what, ndim=ndim, max_bytes=max_bytes, step=step)


def _step(member: zipfile.ZipInfo, what: str) -> int:
    """How many bytes of a member may be read at once."""
    # zipfile bounds what one read may inflate to for deflate only. Of LZMA it inflates all the compressed bytes it has
    # read, so these are taken 4 KiB at a time, which is tens of megabytes at worst. Of bzip2 the same 4 KiB can hold
    # gigabytes.
    steps = {zipfile.ZIP_STORED: 2**20, zipfile.ZIP_DEFLATED: 2**20, zipfile.ZIP_LZMA: 2**12}
    if member.compress_type not in steps:
        raise DataError(
            f"{what}: expected a member that is stored or compressed with deflate or LZMA, got zip method "
            f"{member.compress_type}; save it again with np.savez_compressed"
        )
    return steps[member.compress_type]


def _read_array(stream: IO[bytes], size: int, what: str, *, ndim: int, max_bytes: int, step: int) -> np.ndarray:
    """The array in ``stream``, which is said to be ``size`` bytes long, read ``step`` bytes at a time."""
    shape, fortran_order, dtype = _read_header(stream, size, what, ndim, max_bytes)
    num_bytes = math.prod(shape) * dtype.itemsize
    content = bytearray()
    while len(content) <= num_bytes and (piece := stream.read(step)):
        content += piece
    if len(content) != num_bytes:
        raise DataError(
            f"{what}: expected {num_bytes} bytes of numbers, got {len(content)}; the file is damaged or truncated"
        )
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran_order else "C")


def _read_header(
    stream: IO[bytes], size: int, what: str, ndim: int, max_bytes: int | None
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """``(shape, in Fortran order, dtype)`` from the beginning of an array's file of ``size`` bytes, judged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the header is parsed as Python source: damage in it may warn before it fails
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(stream)
    if dtype.kind not in "biuf":
        pickled = " of pickled objects, which are never loaded" if dtype.hasobject else f" of {dtype}"
        raise DataError(
            f"{what}: expected an array of real numbers, got one{pickled}; save it again with a numeric dtype"
        )
    if len(shape) != ndim:
        expected, mend = ("[rows, features]", "x.reshape(len(x), -1)") if ndim == 2 else ("[rows]", "y.ravel()")
        raise DataError(f"{what}: expected an array of shape {expected}, got shape {shape}; reshape it with {mend}")
    if min(shape) < 1:
        raise DataError(f"{what}: expected at least one row and one feature, got shape {shape}")
    num_bytes = math.prod(shape) * dtype.itemsize
    if max_bytes is not None and num_bytes > max_bytes:
        raise DataError(
            f"{what}: expected at most {max_bytes} bytes, but its header declares {num_bytes} "
            f"(shape {shape}, {dtype}); raise max_bytes if the file is to be trusted"
        )
    if num_bytes != size - stream.tell():
        raise DataError(
            f"{what}: its header declares {num_bytes} bytes (shape {shape}, {dtype}), "
            f"but the file holds {size - stream.tell()}; it is damaged or truncated, fetch or save it again"
        )
    return shape, fortran_order, dtype
