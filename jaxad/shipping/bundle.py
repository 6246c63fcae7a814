"""Exported scorers: load a bundle that ``jaxad export`` wrote and score rows, with jax, numpy and flatbuffers alone.

    card.json        format, versions, what the detector is, its threshold, parity scores, SHA-256 of every file below
    program.bin      the scorer as StableHLO, a serialized ``jax.export.Exported``: (parameters, standardised rows) -> anomaly scores
    where.bin        where a row is anomalous, likewise: (parameters, standardised rows) -> [rows, *places]; of scorers that can tell
    parameters.npz   its arrays, by name
    host.npz         mean and scale of the columns, example rows, calibration scores where there are some

Neither flax nor the code that trained the detector is imported, and there is no pickle. Digests and the parity check find accidents, not
intent: a program is a program. It can take memory and time without end, so load the bundles of people you trust.
"""

import hashlib
import io
import json
import math
import os
import re
import stat
import struct
import tokenize
import zipfile
from pathlib import Path
from typing import IO, Any

import jax
import jax.export
import numpy as np

from jaxad.standardiser import Standardiser

CARD = "card.json"
PROGRAM = "program.bin"
WHERE = "where.bin"
PARAMETERS = "parameters.npz"
HOST = "host.npz"
FILES = (PROGRAM, PARAMETERS, HOST)

FORMAT = "jaxad scorer"
FORMAT_VERSION = 2
MAX_CARD_BYTES = 4 * 2**20
"""A larger card is not ours: arrays are elsewhere."""

TOLERANCE = 1e-3
"""How far a score of the program may be from the detector's: this share of it, plus this share of the spread of the examples' scores."""

CUSTOM_CALLS = frozenset(("cu_threefry2x32_ffi", "hip_threefry2x32_ffi", "shape_assertion", "stablehlo.dynamic_top_k"))
"""What a program may ask of the runtime besides StableHLO: random bits on GPUs and the largest k. A call back into Python, say, may not."""

_DTYPES = frozenset(("bool", "float32", "float64", "int32", "uint32"))
# What jax and flatbuffers were seen to raise for bytes that are not theirs, and for programs that this jax cannot compile.
_PROGRAM_ERRORS = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError, struct.error)

# What zipfile and numpy's header parser (Python source) were seen to raise for damaged bytes.
_ARCHIVE_ERRORS = (
    *(ValueError, TypeError, LookupError, OverflowError, MemoryError, OSError, EOFError, SyntaxError, RuntimeError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile),
)


class BundleError(ValueError):
    """A directory that cannot be used as a scorer; the message says what was found and what to do."""


class Scorer:
    """A detector's ``score_samples`` and ``predict``, frozen. Made by ``load_scorer``.

    Attributes:
        card: what ``card.json`` says: ``detector``, ``sample_shape``, ``columns``, ``threshold``, ``data``, ``licence``, ``metrics``.
        examples: the rows in the bundle that parity is judged by.
        standardiser_: from the units of the data to what the program sees.
        offset_, calibration_scores_: the threshold of ``predict`` and what ``p_values`` compares with (or None), named as in the detectors.
        where_threshold_: what the largest value of ``where`` of a normal row stays below, but for the false alarm rate; None: cannot tell.
        parity_: largest difference between the program's scores of the example rows and the detector's, as a share of what is tolerated.
    """

    def __init__(self, card: dict[str, Any], programs: dict[str, jax.export.Exported], parameters: dict, host: dict):
        self.card = card
        self.offset_: float = -math.inf if card["threshold"] is None else card["threshold"]
        self.where_threshold_: float | None = card["where_threshold"]
        self.calibration_scores_: np.ndarray | None = host.get("calibration_scores")
        self._parameters = jax.device_put(parameters)
        self.standardiser_ = Standardiser(host["mean"], host["scale"], card["farthest"])
        self.examples = host["examples"]
        # One compilation per batch size: a call of the exported program outside jit would be compiled as often, and dispatched slower.
        self._programs = {name: jax.jit(program.call) for name, program in programs.items()}
        self.parity_ = 0.0

    def __repr__(self) -> str:
        return f"Scorer({self.card['detector']['class']}, rows of shape {tuple(self.card['sample_shape'])})"

    def score_samples(self, X) -> np.ndarray:
        """One number per row, ``[rows]`` float64: larger = more normal. A row's score depends on that row alone.

        ``X [rows, *sample_shape]`` holds finite numbers in the units of training; a data frame must have the columns of training.

        Raises:
            ValueError: rows of another shape, other columns, NaN, infinity, text, no rows; or a score that float32 cannot hold.
        """
        return self._score(self._checked(X))

    def where(self, X) -> np.ndarray:
        """How unusual is every place of every row? ``[rows, *places]`` float32, pixels for pictures; compare with ``where_threshold_``.

        Raises:
            ValueError: a bundle that cannot tell; otherwise as ``score_samples``.
        """
        if self.where_threshold_ is None:
            raise ValueError(
                f"this bundle of a {self.card['detector']['class']} cannot tell where a row is anomalous, only how much; export a "
                "detector that can"
            )
        return self._where(self._checked(X))

    def predict(self, X, alpha: float | None = None) -> np.ndarray:
        """Integers ``[rows]``: ``+1`` normal, ``-1`` anomalous: below ``offset_``, or with an ``alpha`` in [0, 1] ``p_values <= alpha``.

        Raises:
            ValueError: another ``alpha``; otherwise as ``score_samples`` and ``p_values``.
        """
        if alpha is None:
            return np.where(self.score_samples(X) >= self.offset_, 1, -1)
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha is a share of normal rows between 0 and 1, got {alpha}")
        return np.where(self.p_values(X) <= alpha, -1, 1)

    def p_values(self, X) -> np.ndarray:
        """Conformal p-values ``[rows]`` in (0, 1]: ``(1 + #{calibration score <= score}) / (n + 1)``, see ``jaxad.metrics.calibration``.

        Raises:
            ValueError: the bundle holds no calibration scores; otherwise as ``score_samples``.
        """
        known = self.calibration_scores_
        if known is None:
            raise ValueError(
                "this bundle holds no calibration scores; export it again with export_detector(..., calibration_scores="
                "detector.score_samples(normal rows that were not trained on))"
            )
        return (1 + np.searchsorted(known, self.score_samples(X), side="right")) / (len(known) + 1)

    def _checked(self, X) -> np.ndarray:
        shape, columns = tuple(self.card["sample_shape"]), self.card["columns"]
        given = getattr(X, "columns", None)
        if given is not None and columns is not None and [str(name) for name in given] != columns:
            raise ValueError(
                f"expected the columns of training in their order, {columns!r:.200}, got {list(given)!r:.200}; "
                "select them with X[columns]"
            )
        X = np.asarray(X)
        if X.dtype.kind not in "fiub":
            raise ValueError(f"expected rows of numbers, got dtype {X.dtype}; turn text and dates into numbers first")
        if X.ndim != len(shape) + 1 or X.shape[1:] != shape:
            wanted = ", ".join(map(str, ("rows", *shape)))
            raise ValueError(
                f"expected an array of shape [{wanted}], got shape {list(X.shape)}; "
                "one row needs a first axis of one, X[None]"
            )
        if not len(X):
            raise ValueError("expected at least one row, got none")
        if X.dtype.kind == "f":
            bad = np.isinf(X) if self.card.get("allow_gaps") else ~np.isfinite(X)
            wrong = np.flatnonzero(bad.reshape(len(X), -1).any(axis=1))
            if len(wrong):
                raise ValueError(
                    f"expected finite numbers, got NaN or infinity in {len(wrong)} rows, the first is row {wrong[0]}; "
                    "leave those rows out or fill them in as it was done in training"
                )
        return X

    def _score(self, X: np.ndarray) -> np.ndarray:
        scores = -self._run(PROGRAM, X).astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(scores))
        if len(wrong):
            raise ValueError(
                f"{len(wrong)} rows have no finite score, the first is row {wrong[0]}: their values are too far from "
                "those of training for float32; score them with the detector itself"
            )
        return scores

    def _where(self, X: np.ndarray) -> np.ndarray:
        return self._run(WHERE, X)

    def _run(self, name: str, X: np.ndarray) -> np.ndarray:
        pieces, start = [], 0
        while start < len(X):
            size = self._batch_size(len(X) - start)
            piece = self.standardiser_(X[start : start + size])
            start += len(piece)
            # The last row is repeated: an ordinary input, by which nothing can overflow.
            batch = np.concatenate([piece, np.repeat(piece[-1:], size - len(piece), axis=0)])
            pieces.append(np.asarray(self._programs[name](self._parameters, batch))[: len(piece)])
        return np.concatenate(pieces)

    def _batch_size(self, rows: int) -> int:
        """The least size that holds them if at most half of it were padding, else the largest that they fill: 192 rows are 128 and 64."""
        sizes = self.card["batch_sizes"]
        holds = next((size for size in sizes if size >= rows), sizes[-1])
        return holds if 2 * rows >= holds else max((size for size in sizes if size <= rows), default=holds)


def load_scorer(path: str | os.PathLike) -> Scorer:
    """The scorer in the directory ``path``, checked before it is handed out.

    Checked are the card, the digest of every file, the shapes and dtypes of every array against the card and the program, what the program
    asks of the runtime, and, with the first rows scored, *parity*: on the example rows in the bundle the program must give the scores
    that the detector gave, within ``TOLERANCE``. So a bundle that loads, scores, on this device and under this version of jax.

    Raises:
        BundleError: nothing there, a newer format, damage, foreign files or links, a program that this jax cannot run, other scores.

    >>> import tempfile
    >>> from jaxad import KNNDetector
    >>> from jaxad.shipping.export import export_detector
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     detector = KNNDetector(n_neighbors=1).fit([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    ...     export_detector(detector, f"{folder}/scorer")
    ...     load_scorer(f"{folder}/scorer").score_samples([[0.0, 2.0], [3.0, 1.0]]).round(5).tolist()
    [-1.0, -3.0]
    """
    path = Path(path)
    card = read_card(path)
    contents = _read_files(path, card["files"])
    host = _read_arrays(path, HOST, contents[HOST], card["host"])
    parameters = _read_arrays(path, PARAMETERS, contents[PARAMETERS], card["parameters"])
    _check_host(path, card, host)
    programs = {name: _read_program(path, name, contents[name], card) for name in (PROGRAM, WHERE) if name in contents}
    try:
        scorer = Scorer(card, programs, parameters, host)
        scores = scorer._score(host["examples"])
        if WHERE in programs:
            scorer._where(host["examples"][:1])
    except _PROGRAM_ERRORS as error:
        raise BundleError(
            f"{path}: the program cannot be run by jax {jax.__version__} on {jax.default_backend()}, it was exported by "
            f"jax {card['jax_version']}: {_first_line(error)}; export the detector again"
        ) from error
    scorer.parity_ = parity(card["parity_scores"], scores)
    if not scorer.parity_ <= 1.0:
        expected = np.asarray(card["parity_scores"])
        worst = int(np.argmax(np.abs(expected - scores)))
        raise BundleError(
            f"{path}: parity: the program gives other scores than the detector did, for example row {worst} "
            f"{scores[worst]:.7g} instead of {expected[worst]:.7g}, {scorer.parity_:.3g} times what is tolerated; "
            "export the detector again"
        )
    return scorer


def parity(expected, scores) -> float:
    """The largest difference as a multiple of what is tolerated, ``TOLERANCE * (|expected| + standard deviation of expected)``.

    >>> parity([1.0, 3.0], [1.0, 3.004])
    1.0
    """
    expected, scores = np.asarray(expected, np.float64), np.asarray(scores, np.float64)
    tolerated = TOLERANCE * (np.abs(expected) + expected.std())
    difference = np.abs(expected - scores)
    return float(np.round(np.max(difference / np.maximum(tolerated, np.finfo(np.float32).tiny)), 6))


def is_bundle(path: str | os.PathLike) -> bool:
    """Does ``path`` look like an exported scorer? Nothing is checked but the name of its card.

    >>> is_bundle("no such folder")
    False
    """
    return (Path(path) / CARD).is_file()


def read_card(path: str | os.PathLike) -> dict[str, Any]:
    """What ``card.json`` says, its fields checked, no other file opened.

    Raises:
        BundleError: no card there, one that is damaged or too large, or one of a newer format.
    """
    path = Path(path)
    file = path / CARD
    try:
        if not path.is_dir():
            raise BundleError(f"{path}: {'a file, not a' if path.exists() else 'there is no such'} directory")
        if not stat.S_ISREG(os.lstat(file).st_mode) or os.lstat(file).st_size > MAX_CARD_BYTES:
            raise BundleError(f"{file} is no card: expected a plain file of at most {MAX_CARD_BYTES} bytes")
        card = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(
            f"{path} is not an exported scorer: it holds no {CARD}; write one with jaxad export"
        ) from error
    except BundleError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not readable as JSON, cut short or damaged: {_first_line(error)}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise BundleError(f"{path} is not an exported scorer: {CARD} does not say {FORMAT!r}")
    version = card.get("format_version")
    if version != FORMAT_VERSION or type(version) is not int:
        raise BundleError(
            f"{path} is in format {version!r:.50}, this jaxad reads format {FORMAT_VERSION}: "
            "fit and export the detector again, or install the jaxad that wrote it"
        )
    for name, is_sound in _FIELDS.items():
        if name not in card or not is_sound(card[name]):
            raise BundleError(f"{file}: {name} cannot be {card.get(name)!r:.100}; export the detector again")
    return card


def _is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_shape(value) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _is_signatures(value) -> bool:
    return isinstance(value, dict) and all(
        isinstance(each, dict)
        and each.keys() == {"shape", "dtype"}
        and _is_shape(each["shape"])
        and isinstance(each["dtype"], str)
        and each["dtype"] in _DTYPES
        for each in value.values()
    )


_FIELDS = {
    "jaxad_version": lambda value: isinstance(value, str),
    "jax_version": lambda value: isinstance(value, str),
    "detector": lambda value: isinstance(value, dict) and isinstance(value.get("class"), str),
    "sample_shape": lambda value: _is_shape(value) and value and min(value) >= 1,
    "columns": lambda value: (
        value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
    ),
    "farthest": lambda value: _is_number(value) and value > 0,
    "batch_sizes": lambda value: _is_shape(value) and value and min(value) >= 1 and value == sorted(value),
    "platforms": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "threshold": lambda value: value is None or _is_number(value),
    "where_threshold": lambda value: value is None or _is_number(value),
    "parity_scores": lambda value: isinstance(value, list) and value and all(map(_is_number, value)),
    "parameters": _is_signatures,
    "host": _is_signatures,
    "files": lambda value: isinstance(value, dict),
}


def _read_files(path: Path, listed: dict[str, Any]) -> dict[str, bytes]:
    """The files' bytes, read once: what was hashed is what is used."""
    # A closed list of names: no other, absolute or parent path is ever joined to the folder.
    if listed.keys() not in (set(FILES), {*FILES, WHERE}):
        raise BundleError(
            f"{path}: the card must list {', '.join(FILES)}, perhaps {WHERE}, and nothing else, it lists {list(listed)!r:.200}"
        )
    contents = {}
    try:
        foreign = sorted(set(os.listdir(path)) - {CARD, *listed})
        if foreign:
            raise BundleError(f"{path} holds a file that is not in the card, {foreign[0]!r:.100}; remove it")
        for name, entry in listed.items():
            match entry:
                case {"bytes": int(size), "sha256": str(digest)}:
                    pass
                case _:
                    raise BundleError(f"{path}: the card's entry for {name} cannot be {entry!r:.100}")
            found = os.lstat(path / name)
            if not stat.S_ISREG(found.st_mode):
                raise BundleError(f"{path / name} is a link or no plain file; copy the bundle again, links resolved")
            if found.st_size != size:
                raise BundleError(f"{path / name} is cut short or damaged: {found.st_size} bytes instead of {size}")
            contents[name] = (path / name).read_bytes()
            if hashlib.sha256(contents[name]).hexdigest() != digest:
                raise BundleError(f"{path / name} is damaged: its SHA-256 is not the card's; copy the bundle again")
    except OSError as error:
        raise BundleError(f"{path}: a file is missing or unreadable: {_first_line(error)}; copy it again") from error
    return contents


def _read_arrays(path: Path, name: str, content: bytes, signatures: dict[str, Any]) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Stored, not compressed: the arrays cannot be larger than the file.
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("it is compressed")
                with archive.open(info) as member:
                    _check_size(member, info.file_size)
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            if sorted(stored.files) != sorted(signatures):
                raise ValueError("its arrays are not the card's")
            arrays = {key: stored[key] for key in stored.files}
    except _ARCHIVE_ERRORS as error:
        raise BundleError(f"{path / name} is no archive of arrays: {_first_line(error)}") from error
    for key, array in arrays.items():
        if signature(array) != signatures[key]:
            raise BundleError(f"{path / name}: {key} should be {signatures[key]}, but is {signature(array)}")
    return arrays


def _check_size(member: IO[bytes], size: int) -> None:
    """``ValueError`` if the header of an array announces other bytes than there are: numpy would set them aside unseen."""
    version = np.lib.format.read_magic(member)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(member)
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - member.tell():
        raise ValueError(f"an array of shape {shape} is announced in {size} bytes")


def signature(array: np.ndarray) -> dict[str, Any]:
    """Shape and dtype as the card writes them.

    >>> signature(np.zeros((2, 3), np.float32))
    {'shape': [2, 3], 'dtype': 'float32'}
    """
    return {"shape": list(array.shape), "dtype": array.dtype.name}


def _check_host(path: Path, card: dict[str, Any], host: dict[str, np.ndarray]) -> None:
    shape, scores = tuple(card["sample_shape"]), len(card["parity_scores"])
    missing = {"mean", "scale", "examples"} - host.keys()
    if missing or host.keys() - {"mean", "scale", "examples", "calibration_scores"}:
        raise BundleError(f"{path / HOST} must hold mean, scale and examples, it holds {sorted(host)!r:.100}")
    mean, scale, examples = host["mean"], host["scale"], host["examples"]
    known = host.get("calibration_scores", np.zeros(1))
    sound = (
        mean.shape == scale.shape
        and mean.shape == shape[-1:]
        and examples.shape == (scores, *shape)
        and known.ndim == 1
        and len(known) >= 1
        and all(array.dtype.kind == "f" and np.isfinite(array).all() for array in host.values())
        and (scale > 0).all()
        and (np.diff(known) >= 0).all()
    )
    if not sound:
        raise BundleError(
            f"{path / HOST}: its arrays do not fit rows of shape {list(shape)}; export the detector again"
        )
    if (card["where_threshold"] is None) == (WHERE in card["files"]):
        raise BundleError(f"{path}: {WHERE} and where_threshold belong together; export the detector again")
    if card["columns"] is not None and [len(card["columns"])] != card["sample_shape"]:
        raise BundleError(f"{path}: {len(card['columns'])} columns are named for rows of shape {card['sample_shape']}")


def _read_program(path: Path, name: str, content: bytes, card: dict[str, Any]) -> jax.export.Exported:
    try:
        exported = jax.export.deserialize(bytearray(content))
        text = exported.mlir_module()
    except ImportError as error:
        raise BundleError("exported programs are read by the package flatbuffers: pip install flatbuffers") from error
    except _PROGRAM_ERRORS as error:
        raise BundleError(
            f"{path / name} is no program for jax {jax.__version__}, it was exported by jax {card['jax_version']}: "
            f"{_first_line(error)}; export the detector again with a newer jax"
        ) from error
    asked = custom_calls(text)
    if asked - CUSTOM_CALLS:
        raise BundleError(f"{path / name} calls {sorted(asked - CUSTOM_CALLS)[0]!r:.100}, which no scorer of ours does")
    *arguments, rows = (*exported.in_avals, None) if not exported.in_avals else exported.in_avals
    expected = [card["parameters"][key] for key in sorted(card["parameters"])]
    found = [{"shape": list(aval.shape), "dtype": aval.dtype.name} for aval in arguments]
    sound = (
        rows is not None
        and found == expected
        and list(rows.shape[1:]) == card["sample_shape"]
        and rows.dtype.name == "float32"
        and len(exported.out_avals) == 1
        and (len(exported.out_avals[0].shape) == 1 if name == PROGRAM else len(exported.out_avals[0].shape) > 1)
        and exported.out_avals[0].dtype.name == "float32"
    )
    if not sound:
        raise BundleError(f"{path / name} is not made for the arrays and rows of its card; export the detector again")
    if jax.default_backend() not in (*exported.platforms, *(["gpu"] if "cuda" in exported.platforms else [])):
        raise BundleError(
            f"{path} was exported for {', '.join(exported.platforms)}, this is {jax.default_backend()}; "
            "set JAX_PLATFORMS=cpu to score on the processor"
        )
    return exported


def custom_calls(text: str) -> set[str]:
    """Names of what a program in MLIR's text form calls besides StableHLO.

    >>> custom_calls('%0 = stablehlo.custom_call @shape_assertion(%1) : (tensor<i32>) -> ()')
    {'shape_assertion'}
    """
    return {name or "an unnamed function" for name in re.findall(r"custom_call(?: @([\w.]+)\(|)", text)}


def _first_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return text.splitlines()[0][:200]
