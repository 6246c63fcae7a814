"""From a fitted detector to a bundle that scores without it: its scorer as a program of arrays and rows, written beside its card.

A scorer is ``vmap``ped over a batch of symbolic size. One row at a time, because a row's score depends on that row alone, and because then
no shape inside depends on the batch. The arrays are arguments of the program and lie in a file of their own: as constants they would be
held several times while it is compiled, the compiler would try to fold them, and nothing else could read them. Products of matrices are
asked for at the highest precision, so that a GPU or a TPU gives the processor's scores.

Rows are standardised before the program, by two lines of numpy in float64 (``bundle.Scorer._standardised``), as the detectors do it: the
program's float32 holds seven digits, of which a column of time stamps or of large offsets would lose all that matter.
"""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from sklearn.utils.validation import check_is_fitted

from jaxad.detectors.estimator import check_scoring_data, rows_at_once
from jaxad.detectors.scorer import tells_where
from jaxad.runtime.checkpoint import CheckpointError, _make_temporary, _move_into_place, _version
from jaxad.runtime.runs import in_words
from jaxad.shipping import bundle
from jaxad.shipping.bundle import BundleError

PLATFORMS = ("cpu", "cuda", "tpu")

MOST_EXAMPLES = 64


def export_detector(
    detector: Any,
    path: str | os.PathLike,
    *,
    examples: Any = None,
    columns: list[str] | None = None,
    calibration_scores: Any = None,
    licence: str | None = None,
    data: Any = None,
    metrics: Any = None,
) -> None:
    """Write ``detector.score_samples`` to the directory ``path``, a program that ``jaxad.load_scorer`` runs without flax or sklearn.

    Lowered for CPU, CUDA and TPU at once, for batches of any size. A bundle that is already there is replaced; whatever goes wrong,
    ``path`` is afterwards the old state or the whole new one.

    **Parity.** What was written is loaded again and scores the example rows; a score that differs from ``detector.score_samples`` by more
    than ``bundle.TOLERANCE`` (1e-3) of itself plus 1e-3 of the examples' standard deviation stops the export. Each loading repeats that.

    Args:
        detector: a fitted detector of jaxad, or any with ``scorer_`` and ``standardiser_``, whose scorer is made of jax functions. One
            that can tell where keeps that: the bundle then has ``where`` as well.
        examples: at most 64 rows for the parity check, kept in the bundle in clear; None: drawn from the scale of the training columns.
        columns: names of the columns, for the card; None: those of the data frame that was fitted, if it was one.
        calibration_scores: ``score_samples`` of normal rows that were not trained on, for p-values; None: ``detector.calibration_scores_``.
        licence: under which the bundle may be used.
        data, metrics: any JSON values to keep in the card: what it was trained on, how well it does.

    Raises:
        ValueError: before anything is written: not a fitted detector that can be exported (the message says why), bad examples or scores.
        BundleError: parity is missed; nothing is left behind.
        CheckpointError: ``path`` cannot be written, or holds something else than a bundle.

    >>> import tempfile
    >>> from jaxad import MahalanobisDetector
    >>> detector = MahalanobisDetector().fit(np.random.default_rng(0).normal(size=(50, 3)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_detector(detector, f"{folder}/scorer", licence="CC-BY-4.0")
    ...     scorer = bundle.load_scorer(f"{folder}/scorer")
    >>> scorer, scorer.card["licence"], scorer.predict([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0]]).tolist()
    (Scorer(MahalanobisDetector, rows of shape (3,)), 'CC-BY-4.0', [1, -1])
    """
    check_exportable(detector)
    scorer, scale = detector.scorer_, detector.standardiser_
    shape = tuple(getattr(detector, "sample_shape_", (detector.n_features_in_,)))
    examples = _examples(scale, shape) if examples is None else _checked_examples(detector, examples)
    calibration_scores = (
        getattr(detector, "calibration_scores_", None) if calibration_scores is None else calibration_scores
    )
    most_rows = rows_at_once(shape)
    card = {
        "format": bundle.FORMAT,
        "format_version": bundle.FORMAT_VERSION,
        "jaxad_version": _version(),
        "jax_version": jax.__version__,
        "detector": {"class": type(detector).__name__, "settings": _settings(detector)},
        "sample_shape": list(shape),
        "columns": _columns(detector, columns, shape),
        "farthest": float(scale.farthest),
        "allow_gaps": bool(getattr(detector, "allow_gaps", False)),
        "batch_sizes": sorted({1, min(16, most_rows), min(128, most_rows), most_rows}),
        "platforms": list(PLATFORMS),
        "threshold": float(detector.offset_) if np.isfinite(detector.offset_) else None,
        "where_threshold": float(detector.where_threshold_) if tells_where(scorer) else None,
        "tolerance": f"{bundle.TOLERANCE} of the score plus {bundle.TOLERANCE} of the standard deviation of parity_scores",
        "parity_scores": _scores_in_memory(detector, examples).tolist(),
        "licence": licence,
        "data": data,
        "metrics": metrics,
    }
    try:
        json.dumps(card, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"licence, data and metrics must be JSON values of text, finite numbers, lists and dictionaries: {error}"
        ) from error
    host = {"mean": np.asarray(scale.mean), "scale": np.asarray(scale.scale), "examples": examples}
    if calibration_scores is not None:
        host["calibration_scores"] = _checked_calibration(calibration_scores)
    target = _target(path)
    programs, parameters = _lowered(type(detector).__name__, scorer, shape)
    temporary = _make_temporary(target)
    try:
        for name, program in programs.items():
            (temporary / name).write_bytes(program)
        for name, arrays in ((bundle.PARAMETERS, parameters), (bundle.HOST, host)):
            card[name.partition(".")[0]] = {key: bundle.signature(array) for key, array in arrays.items()}
            with (temporary / name).open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
        card["files"] = {name: _entry(temporary / name) for name in (*programs, bundle.PARAMETERS, bundle.HOST)}
        text = json.dumps(card, allow_nan=False, indent=1, ensure_ascii=False)
        (temporary / bundle.CARD).write_text(text, encoding="utf-8")
        try:
            bundle.load_scorer(temporary)
        except BundleError as error:
            said = str(error).removeprefix(f"{temporary}: ").removesuffix("; export the detector again")
            raise BundleError(
                f"{type(detector).__name__} was not exported to {target}, nothing was changed there: {said}"
            ) from error
        _move_into_place(temporary, target)
    except OSError as error:
        raise CheckpointError(f"cannot export to {target}, nothing was changed there: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_exportable(detector: Any) -> None:
    """Can ``export_detector`` make a program of this fitted detector? Asked without tracing or writing anything.

    Raises:
        ValueError: it cannot; the message says why.

    >>> from jaxad import COPOD
    >>> check_exportable(COPOD(transductive=True).fit(np.eye(3)))
    Traceback (most recent call last):
    ...
    ValueError: cannot export COPOD: it scores a row by the rows scored with it, a program scores each by itself
    """
    name = type(detector).__name__
    if not hasattr(detector, "fit"):
        raise ValueError(f"cannot export {name}: expected a fitted detector")
    check_is_fitted(detector)
    if not hasattr(detector, "scorer_"):
        raise ValueError(
            f"cannot export {name}: it has no scorer_, as jaxad's detectors have; scikit-learn's own are kept with skops or ONNX"
        )
    if detector.scorer_ is None or not getattr(detector, "rows_stand_alone", True):
        raise ValueError(
            f"cannot export {name}: it scores a row by the rows scored with it, a program scores each by itself"
        )


def _lowered(name: str, scorer: Any, shape: tuple[int, ...]) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """The serialized programs by their files, and their arrays by name."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(scorer)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    parameters = {key: _narrowed(leaf) for key, (_, leaf) in zip(names, leaves, strict=True)}

    def of(method):
        def program(parameters, rows):
            whole = jax.tree.unflatten(structure, [parameters[key] for key in names])
            return jax.vmap(lambda row: method(whole, row[None])[0])(rows).astype(jnp.float32)

        return program

    programs = {bundle.PROGRAM: of(lambda scorer, rows: scorer(rows))}
    if tells_where(scorer):
        programs[bundle.WHERE] = of(lambda scorer, rows: scorer.where(rows))
    (batch,) = jax.export.symbolic_shape("batch")
    like = {key: jax.ShapeDtypeStruct(array.shape, array.dtype) for key, array in parameters.items()}
    rows = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    serialized = {}
    for file, program in programs.items():
        try:
            with jax.default_matmul_precision("highest"):
                exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(like, rows)
        # A call back into Python has no program for three platforms.
        except (jax.errors.JAXTypeError, NotImplementedError) as error:
            raise ValueError(
                f"cannot export {name}: its score is not made of jax functions alone: {str(error).splitlines()[0][:300]}"
            ) from error
        asked = bundle.custom_calls(exported.mlir_module()) - bundle.CUSTOM_CALLS
        if asked:
            raise ValueError(
                f"cannot export {name}: its score is not made of jax functions alone, it calls {sorted(asked)}, which no other process "
                "could answer"
            )
        serialized[file] = bytes(exported.serialize())
    return serialized, parameters


def _narrowed(leaf) -> np.ndarray:
    array = np.asarray(leaf)
    return array.astype(np.float32) if array.dtype == np.float64 else array


# ---------------------------------------------------------------------------------------------------------------- the bundle


def _examples(scale, shape: tuple[int, ...]) -> np.ndarray:
    """Rows like those of training and farther out: 16, or 4 pictures."""
    count = 16 if len(shape) == 1 else 4
    farther = np.geomspace(0.25, 4.0, count).reshape(-1, *(1,) * len(shape))
    return scale.undo(farther * np.random.default_rng(0).normal(size=(count, *shape)))


def _checked_examples(detector, examples) -> np.ndarray:
    rows = check_scoring_data(detector, examples)
    if len(rows) > MOST_EXAMPLES:
        raise ValueError(f"at most {MOST_EXAMPLES} example rows are kept in a bundle, got {len(rows)}: choose some")
    return rows


def _scores_in_memory(detector, rows) -> np.ndarray:
    with warnings.catch_warnings(), jax.default_matmul_precision("highest"):
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        return np.asarray(detector.score_samples(rows), np.float64)


def _checked_calibration(scores) -> np.ndarray:
    if isinstance(scores, list) and scores and isinstance(scores[0], np.ndarray):
        raise ValueError(
            "calibration_scores must be one vector, got one for each of several folds, with which a bundle makes no p-values; "
            "fit with method='split', or pass scores of normal rows"
        )
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"calibration_scores must be a vector of finite scores, got shape {scores.shape}")
    return np.sort(scores)


def _columns(detector, columns, shape) -> list[str] | None:
    if columns is None:
        names = getattr(detector, "feature_names_in_", None)
        return None if names is None else [str(name) for name in names]
    if [len(columns)] != list(shape) or not all(isinstance(name, str) for name in columns):
        raise ValueError(f"columns must name the {shape} values of a row, got {list(columns)!r:.200}")
    return list(columns)


def _settings(detector) -> dict[str, Any]:
    """Parameters as the card shows them: plain values as they are, anything else in words."""
    return {
        name: value
        if value is None or type(value) in (bool, int, float, str)
        else " ".join(in_words(value).split())[:300]
        for name, value in detector.get_params(deep=False).items()
        if name not in ("mesh", "run_dir", "verbose")
    }


def _entry(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _target(path) -> Path:
    """The absolute place to write to, free or taken by a bundle and nothing else."""
    try:
        target = Path(path).resolve()
        try:
            os.lstat(target)
        except FileNotFoundError:
            return target
        found = set(os.listdir(target))
        taken_by = json.loads((target / bundle.CARD).read_bytes()).get("format") if bundle.is_bundle(target) else None
    except (OSError, RuntimeError, ValueError, AttributeError) as error:  # RuntimeError: a circle of links
        raise CheckpointError(f"cannot export to {str(path)!r}, choose a new name: {error}") from error
    if taken_by != bundle.FORMAT or found - {bundle.CARD, bundle.WHERE, *bundle.FILES}:
        raise CheckpointError(
            f"cannot replace {target}: it holds something else than an exported scorer; choose a new name"
        )
    return target
