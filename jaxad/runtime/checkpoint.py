"""Named arrays and a JSON description in one directory: written all or not at all, read back with suspicion, no code inside.

    detector.json    format, versions, shape and dtype of every array, SHA-256 of every file below, and the caller's content
    arrays/          the arrays, by Orbax; absent where every array is empty

Orbax notices damage to its index but not to the numbers themselves, so the digests are compared before it opens a file.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxad.runtime import distributed

DESCRIPTION = "detector.json"
ARRAYS = "arrays"
FORMAT = "jaxad detector"
FORMAT_VERSION = 1
MAX_DESCRIPTION_BYTES = 64 * 2**20
"""A larger description is not ours: the arrays are elsewhere."""

DTYPES = frozenset(
    ("bool", "float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
)
_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)

# What Orbax was seen to raise for damaged or hostile files (its own JSON is read without checks), and for a full disk.
_ORBAX_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, MemoryError)


class CheckpointError(ValueError):
    """A directory that cannot be written or read as a checkpoint; the message says what was found and what to do."""


def check_writable(path: str | os.PathLike) -> None:
    """Would a checkpoint at ``path`` find its place? Call it before a long training; nothing is left behind.

    Raises:
        CheckpointError: the parent directory is missing or read-only, or ``path`` exists and is no checkpoint of ours.

    >>> import tempfile
    >>> check_writable(os.path.join(tempfile.gettempdir(), "detector-to-come"))
    """
    os.rmdir(_make_temporary(_target(path)))


def save_checkpoint(path: str | os.PathLike, arrays: Mapping[str, Any], content: Any) -> None:
    """Write ``arrays`` (numbers of any shape, under dotted names) and the JSON value ``content`` to the directory ``path``.

    A checkpoint that is already there is replaced. Whatever goes wrong, ``path`` is afterwards either the old state or
    the whole new one: everything is written to a hidden directory beside it, which is then renamed. Of several processes
    (``jaxad.runtime.distributed``) all call this together: the main one writes, and each what it alone holds of an array that is cut.

    Raises:
        ValueError: before anything is written: a name or dtype that cannot be saved, or ``content`` is not JSON.
        CheckpointError: ``path`` cannot be written (see ``check_writable``), or the disk is full.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(f"{folder}/one", {"table": np.eye(2)}, {"note": "two rows"})
    ...     load_checkpoint(f"{folder}/one")
    ({'table': array([[1., 0.],
           [0., 1.]])}, {'note': 'two rows'})
    """
    arrays = {name: array if _cut(array) else np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if not _NAME.fullmatch(name) or array.dtype.name not in DTYPES:
            raise ValueError(f"array {name!r} of {array.dtype} cannot be saved: names are dotted words, values numbers")
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "jaxad_version": _version(),
        "arrays": {name: _signature(array) for name, array in arrays.items()},
        "content": content,
    }
    json.dumps(description, allow_nan=False)  # fails here, before anything is written
    target = _target(path)
    temporary = Path(distributed.from_main(lambda: str(_make_temporary(target)), CheckpointError))
    try:
        # Orbax refuses empty arrays; their signature says all there is to say.
        stored = {
            name: array if _cut(array) else array.astype(array.dtype.newbyteorder("="))
            for name, array in arrays.items()
            if array.size
        }
        if stored:
            with _quiet_orbax(), ocp.PyTreeCheckpointer() as checkpointer:
                checkpointer.save(temporary / ARRAYS, stored)

        def describe():
            description["files"] = _digests(temporary / ARRAYS)
            text = json.dumps(description, allow_nan=False, indent=1)
            (temporary / DESCRIPTION).write_text(text, encoding="utf-8")
            _move_into_place(temporary, target)

        distributed.from_main(describe, OSError)
    except _ORBAX_ERRORS as error:
        raise CheckpointError(f"cannot save to {target}, nothing was changed there: {_reason(error)}") from error
    finally:
        if distributed.is_main():
            shutil.rmtree(temporary, ignore_errors=True)


def load_checkpoint(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], Any]:
    """``(arrays, content)`` as they were saved: numpy arrays of the same dtype and memory order, on no device.

    A checkpoint of another version of jaxad in the same format is read with a ``UserWarning``.

    Raises:
        CheckpointError: no checkpoint there, a damaged or incomplete one, or one in a newer format.
    """
    description = read_description(path)
    if description.get("jaxad_version") != _version():
        warnings.warn(
            f"{path} was saved by jaxad {description.get('jaxad_version')!r:.50}, this is {_version()}: "
            "compare some scores before relying on it",
            stacklevel=3,
        )
    signatures = _checked_signatures(path, description)
    damaged = _damaged(Path(path) / ARRAYS, description.get("files"))
    if damaged:
        raise CheckpointError(
            f"{path}: {len(damaged)} files are missing, damaged or foreign, the first is {damaged[0]!r:.100}; copy it again"
        )
    stored = [name for name, signature in signatures.items() if 0 not in signature["shape"]]
    try:
        # Empty arrays were never written. Plain numpy restoring needs no device and keeps float64.
        arrays = {name: np.empty(s["shape"], s["dtype"]) for name, s in signatures.items() if name not in stored}
        if stored:
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored}
            with _quiet_orbax(), _reader() as checkpointer:
                arrays |= checkpointer.restore(Path(path).resolve() / ARRAYS, restore_args=as_numpy)
    except _ORBAX_ERRORS as error:
        raise CheckpointError(f"{path}: the arrays cannot be read: {_reason(error)}") from error
    for name, signature in signatures.items():
        # BLAS rounds differently in the other memory order: without this, scores would differ in the last digit.
        array = np.require(arrays.get(name), requirements=["W", signature["order"]])
        if _signature(array) != signature:
            raise CheckpointError(f"{path}: array {name!r} should be {signature}, but is {_signature(array)}")
        arrays[name] = array
    return {name: arrays[name] for name in signatures}, description.get("content")


def read_description(path: str | os.PathLike) -> dict[str, Any]:
    """The description alone, without opening an array; ``["content"]`` is the caller's.

    Raises:
        CheckpointError: no checkpoint there, a damaged description, or one in a newer format.
    """
    description = _parse(Path(path))
    version = description.get("format_version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path}: expected a format version, a whole number from 1 on, got {version!r:.50}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is in format {version}, this jaxad ({_version()}) reads formats up to {FORMAT_VERSION}: upgrade jaxad"
        )
    return description


def _parse(path: Path) -> dict[str, Any]:
    file = path / DESCRIPTION
    try:
        if not path.is_dir():
            raise CheckpointError(f"{path}: {'a file, not a' if path.exists() else 'there is no such'} directory")
        if not file.is_file():
            raise CheckpointError(f"{path} is not a saved jaxad detector: it holds no {DESCRIPTION}")
        if file.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise CheckpointError(f"{file} is too large for a description, {file.stat().st_size} bytes")
        description = json.loads(file.read_bytes())
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not readable as JSON, cut short or damaged: {_reason(error)}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a saved jaxad detector: {DESCRIPTION} does not say {FORMAT!r}")
    return description


def _target(path) -> Path:
    """The absolute place to write to, free or taken by a checkpoint and nothing else."""
    try:
        target = Path(path).resolve()
        try:
            os.lstat(target)
        except FileNotFoundError:
            return target
        _parse(target)
        foreign = sorted(set(os.listdir(target)) - {DESCRIPTION, ARRAYS})
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a circle of links
        raise CheckpointError(
            f"cannot save to {str(path)!r}, choose a new name or one of an earlier save: {_reason(error)}"
        ) from error
    if foreign:
        raise CheckpointError(f"cannot replace {target}: it holds other files too, such as {foreign[0]!r}")
    return target


def _make_temporary(target: Path) -> Path:
    # Beside the target, because only within one file system is a rename atomic. mkdtemp would hide it from the group.
    temporary = target.parent / f".jaxad-saving-{secrets.token_hex(8)}"
    try:
        os.mkdir(temporary)
    except OSError as error:
        raise CheckpointError(f"cannot save to {target}: {_reason(error)} ({target.parent})") from error
    return temporary


def _move_into_place(temporary: Path, target: Path) -> None:
    if not target.exists():
        os.rename(temporary, target)
        return
    replaced = target.parent / f".jaxad-replaced-{secrets.token_hex(8)}"
    os.rename(target, replaced)
    try:
        os.rename(temporary, target)
    finally:
        if not target.exists():
            os.rename(replaced, target)
    shutil.rmtree(replaced, ignore_errors=True)


def _cut(array: Any) -> bool:
    """Does it lie on devices of several processes, a part here and a part there?"""
    return isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated)


def _reader() -> ocp.Checkpointer:
    """Of this process alone: others need not read the same at the same time."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _signature(array: Any) -> dict[str, Any]:
    order = "F" if not _cut(array) and array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    return {"shape": list(array.shape), "dtype": array.dtype.name, "order": order}


def _checked_signatures(path, description) -> dict[str, dict[str, Any]]:
    signatures = description.get("arrays")
    if not isinstance(signatures, dict):
        raise CheckpointError(f"{path}: {DESCRIPTION} lists no arrays")
    for name, signature in signatures.items():
        match signature:
            case {"shape": [*shape], "dtype": str(dtype), "order": "C" | "F"} if len(signature) == 3:
                sound = dtype in DTYPES and all(type(size) is int and size >= 0 for size in shape)
            case _:
                sound = False
        if not sound or not _NAME.fullmatch(name):
            raise CheckpointError(f"{path}: no array can be called {name!r:.50} and look like {signature!r:.100}")
    return signatures


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below ``folder``, by its relative path; links, pipes and devices are an OSError."""
    digests = {}
    for file in sorted(folder.rglob("*")):
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            raise OSError(errno.EINVAL, "not a plain file", str(file))
        if file.is_file():
            with file.open("rb") as stream:
                digests[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def _damaged(folder: Path, expected) -> list[str]:
    if not isinstance(expected, dict):
        return [DESCRIPTION]
    try:
        found = _digests(folder)
    except OSError as error:
        return [str(error.filename)]
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


@contextlib.contextmanager
def _quiet_orbax():
    """Orbax logs the traceback of everything it also raises."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _reason(error: BaseException) -> str:
    """The end of the first line, where TensorStore names the cause after a list of every layer above it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    text = text.splitlines()[0].partition(" [tensorstore_spec=")[0].partition(" [os_error_code=")[0]
    return text if len(text) <= 200 else f"... {text[-200:]}"


def _version() -> str:
    return metadata.version("jaxad")
