"""Reading ``.npy`` and ``.npz`` files that nobody vouches for.

Nothing is ever unpickled, nothing is extracted to disk, and no memory is set aside on the word of a header: its dtype
and shape are judged first, against a limit and against the size of what holds it; then the bytes are taken as they
arrive.
"""

import csv
import lzma
import math
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        keys = [key for key in ("X", "x") if key in members]
        if len(keys) != 1:
            found = f"it holds {', '.join(sorted(members)[:8])}" if members else "it is empty"
            raise DataError(
                f"{path}: expected the features under one of the keys 'X' and 'x' (labels under 'y'), but {found}"
            )
        x = _read_member(archive, members[keys[0]], f"{path}, key {keys[0]!r}", ndim=2, max_bytes=max_bytes)
        y = (
            _read_member(archive, members["y"], f"{path}, key 'y'", ndim=1, max_bytes=max_bytes)
            if "y" in members
            else None
        )
        return x, y


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, what: str, *, ndim: int, max_bytes: int
) -> np.ndarray:
    # zipfile bounds what one read may inflate to for deflate only. Of LZMA it inflates all the compressed bytes it has
    # read, so these are taken 4 KiB at a time, which is tens of megabytes at worst. Of bzip2 the same 4 KiB can hold
    # gigabytes.
    steps = {zipfile.ZIP_STORED: 2**20, zipfile.ZIP_DEFLATED: 2**20, zipfile.ZIP_LZMA: 2**12}
    if member.compress_type not in steps:
        raise DataError(
            f"{what}: expected a member that is stored or compressed with deflate or LZMA, got zip method "
            f"{member.compress_type}; save it again with np.savez_compressed"
        )
    with archive.open(member) as stream:
        return _read_array(
            stream, member.file_size, what, ndim=ndim, max_bytes=max_bytes, step=steps[member.compress_type]
        )


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
