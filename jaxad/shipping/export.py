"""From a fitted detector to a bundle that scores without it: one program of arrays and rows, written beside its card.

Every detector is turned into a pure function ``(arrays, row [*sample]) -> score`` and ``vmap``ped over a batch of symbolic size. One row
at a time, because a row's score depends on that row alone, and because then no shape inside depends on the batch. The arrays are
arguments of the program and lie in a file of their own: as constants they would be held several times while it is compiled, the compiler
would try to fold them, and nothing else could read them. Products of matrices are asked for at the highest precision, so that a GPU or
a TPU gives the processor's scores.

Columns are standardised before the program, by two lines of numpy in float64 (``Scorer._standardised``), as the detectors do it: the
program's float32 holds seven digits, of which a column of time stamps or of large offsets would lose all that matter.
"""

import hashlib
import inspect
import json
import os
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from sklearn.utils.validation import check_is_fitted

from jaxad import scoring
from jaxad.denoising import make_denoiser
from jaxad.detectors import appearance, consensus, copula, fitting, image, neighbours
from jaxad.detectors.consensus import ConsensusDetector
from jaxad.detectors.copula import COPOD, ECOD
from jaxad.detectors.diffusion import DiffusionDetector
from jaxad.detectors.diffusion_time import DTECategorical, DTEInverseGamma, expected_bin, variance
from jaxad.detectors.estimator import check_scoring_data
from jaxad.detectors.gaussian import MahalanobisDetector, SquaredNorm
from jaxad.detectors.image import ImageDetector
from jaxad.detectors.neighbours import DTENonParametric, KNNDetector
from jaxad.detectors.taught import FARTHEST_FEATURE, FEATURE_LEVELS, CycleDetector
from jaxad.generation import cycle
from jaxad.runtime.checkpoint import CheckpointError, _make_temporary, _move_into_place, _version
from jaxad.runtime.runs import in_words
from jaxad.shipping import bundle
from jaxad.shipping.bundle import BundleError

PLATFORMS = ("cpu", "cuda", "tpu")

MOST_EXAMPLES = 64
MARGIN = 8
"""Nearest rows are looked for by a matrix product, whose rounding may swap rows that are almost equally near: so many more are compared."""

DISTANCES_AT_ONCE = 2**25
"""Distances of a batch of rows to all training rows, in number: 128 MiB."""


class _Parts(NamedTuple):
    """What a detector is made of: everything but the batch."""

    score: Callable[[Any, jax.Array], jax.Array]
    """``(arrays, standardised row [*sample]) -> score []``, larger = more normal."""
    arrays: Any
    mean: np.ndarray
    scale: np.ndarray
    """Of the columns, float64; empty where the program takes the rows as they are."""
    farthest: float | None
    most_rows: int
    """In one batch."""
    low: float = -np.inf
    high: float = np.inf
    """Range of values, for example rows."""


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
        detector: a fitted DiffusionDetector (any score and combination of ``jaxad.scoring``, or your own of jax functions),
            DTECategorical, DTEInverseGamma, DTENonParametric, KNNDetector, COPOD, ECOD, MahalanobisDetector, SquaredNorm,
            ConsensusDetector, ImageDetector (its scores, not its maps), or a CycleDetector whose first detector is one of these.
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
    >>> detector = MahalanobisDetector().fit(np.random.default_rng(0).normal(size=(50, 3)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_detector(detector, f"{folder}/scorer", licence="CC-BY-4.0")
    ...     scorer = bundle.load_scorer(f"{folder}/scorer")
    >>> scorer, scorer.card["licence"], scorer.predict([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0]]).tolist()
    (Scorer(MahalanobisDetector, rows of shape (3,)), 'CC-BY-4.0', [1, -1])
    """
    parts = _parts(detector)
    shape = tuple(getattr(detector, "sample_shape_", (detector.n_features_in_,)))
    examples = _examples(parts, shape) if examples is None else _checked_examples(detector, examples)
    calibration_scores = (
        getattr(detector, "calibration_scores_", None) if calibration_scores is None else calibration_scores
    )
    card = {
        "format": bundle.FORMAT,
        "format_version": bundle.FORMAT_VERSION,
        "jaxad_version": _version(),
        "jax_version": jax.__version__,
        "detector": {"class": type(detector).__name__, "settings": _settings(detector)},
        "sample_shape": list(shape),
        "columns": _columns(detector, columns, shape),
        "farthest": parts.farthest,
        "batch_sizes": sorted({1, min(16, parts.most_rows), min(128, parts.most_rows), parts.most_rows}),
        "platforms": list(PLATFORMS),
        "threshold": float(detector.offset_),
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
    host = {"mean": parts.mean, "scale": parts.scale, "examples": examples}
    if calibration_scores is not None:
        host["calibration_scores"] = _checked_calibration(calibration_scores)
    target = _target(path)
    program, parameters = _lowered(type(detector).__name__, parts, shape)
    temporary = _make_temporary(target)
    try:
        (temporary / bundle.PROGRAM).write_bytes(program)
        for name, arrays in ((bundle.PARAMETERS, parameters), (bundle.HOST, host)):
            card[name.partition(".")[0]] = {key: bundle.signature(array) for key, array in arrays.items()}
            with (temporary / name).open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
        card["files"] = {name: _entry(temporary / name) for name in bundle.FILES}
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

    >>> check_exportable(COPOD(transductive=True).fit(np.eye(3)))
    Traceback (most recent call last):
    ...
    ValueError: cannot export COPOD: transductive=True scores a row by the rows scored with it, a program scores each by itself
    """
    _parts(detector)


def _parts(detector) -> _Parts:
    name = type(detector).__name__
    make = _MAKERS.get(type(detector))
    if make is None:
        raise ValueError(
            f"cannot export {name}: no program is known for it, only for {', '.join(cls.__name__ for cls in _MAKERS)}; "
            "scikit-learn's own detectors are kept with skops or ONNX"
        )
    check_is_fitted(detector)
    return make(detector)


def _lowered(name: str, parts: _Parts, shape: tuple[int, ...]) -> tuple[bytes, dict[str, np.ndarray]]:
    """The serialized program, and its arrays by name."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(parts.arrays)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    parameters = {key: _narrowed(leaf) for key, (_, leaf) in zip(names, leaves, strict=True)}

    def program(parameters, rows):
        arrays = jax.tree.unflatten(structure, [parameters[key] for key in names])
        return jax.vmap(partial(parts.score, arrays))(rows).astype(jnp.float32)

    (batch,) = jax.export.symbolic_shape("batch")
    like = {key: jax.ShapeDtypeStruct(array.shape, array.dtype) for key, array in parameters.items()}
    try:
        with jax.default_matmul_precision("highest"):
            exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(
                like, jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
            )
    except (
        jax.errors.JAXTypeError,
        NotImplementedError,
    ) as error:  # a call back into Python has no program for three platforms
        raise ValueError(
            f"cannot export {name}: its score is not made of jax functions alone: {str(error).splitlines()[0][:300]}"
        ) from error
    asked = bundle.custom_calls(exported.mlir_module()) - bundle.CUSTOM_CALLS
    if asked:
        raise ValueError(f"cannot export {name}: its score calls {sorted(asked)}, which no other process could answer")
    return bytes(exported.serialize()), parameters


def _narrowed(leaf) -> np.ndarray:
    array = np.asarray(leaf)
    return array.astype(np.float32) if array.dtype == np.float64 else array


# ---------------------------------------------------------------------------------------------------------------- learned


def _most_rows(shape) -> int:
    wanted = fitting.SCORING_BATCH if len(shape) == 1 else fitting.PICTURES_AT_ONCE
    return fitting._at_once(wanted, np.empty((0, *shape)))


def _diffusion(detector: Any) -> _Parts:
    most_rows = _most_rows(detector.sample_shape_)
    network, prediction, aggregate = detector.network_, detector.prediction_, detector.aggregate_
    scorer: Any = partial(detector.scorer, draws=detector.draws)
    if "memory_budget" in inspect.signature(scorer).parameters:
        # A row's share of it: the levels of all rows of a batch lie in memory together.
        scorer = partial(scorer, memory_budget=scoring.MEMORY_BUDGET // most_rows)

    def score(arrays, row):
        denoise = make_denoiser(network, arrays["params"], prediction)
        by_level = scorer(jax.random.wrap_key_data(arrays["key"]), denoise, row[None], arrays["levels"])
        return -aggregate.apply(by_level, arrays["statistics"])[0]

    arrays = {
        "params": detector.params_,
        "key": detector.score_key_,
        "levels": detector.levels_,
        "statistics": detector.statistics_,
    }
    standardiser = detector.standardiser_
    return _Parts(score, arrays, standardiser.mean, standardiser.scale, fitting.FARTHEST, most_rows)


def _diffusion_time(detector: Any) -> _Parts:
    read = expected_bin if isinstance(detector, DTECategorical) else variance
    network, standardiser = detector.network_, detector.standardiser_

    def score(params, row):
        return -read(network, params, row[None])[0]

    most_rows = _most_rows((detector.n_features_in_,))
    return _Parts(score, detector.params_, standardiser.mean, standardiser.scale, fitting.FARTHEST, most_rows)


# ---------------------------------------------------------------------------------------------------------------- closed form


def _nearest(known, row, count: int):
    """Squared distances from ``row [features]`` to its ``count`` nearest rows of ``known``, increasing."""
    closeness = known @ row - 0.5 * jnp.sum(known**2, axis=1)
    _, found = jax.lax.top_k(closeness, min(count + MARGIN, len(known)))
    return jnp.sort(jnp.sum((known[found] - row[None]) ** 2, axis=1))[:count]


def _rows_against(known) -> int:
    return int(np.clip(2 ** int(np.log2(DISTANCES_AT_ONCE / len(known))), 1, fitting.SCORING_BATCH))


def _mean_of_features(squared, arrays):
    return jnp.mean(squared) / arrays["train"].shape[1]


def _most_probable_step(squared, arrays):
    return jnp.searchsorted(arrays["bounds"], jnp.mean(squared), side="left")


_OF_DISTANCES: dict[str, Callable[[Any, Any], Any]] = {
    "largest": lambda squared, _: jnp.sqrt(squared[-1]),
    "mean": lambda squared, _: jnp.mean(jnp.sqrt(squared)),
    "median": lambda squared, _: jnp.median(jnp.sqrt(squared)),
}


def _neighbours(detector: Any) -> _Parts:
    count, width, train, scaler = detector.n_neighbors_, detector.n_features_in_, detector.train_, detector.scaler_
    arrays, combine = {"train": train}, _mean_of_features
    if isinstance(detector, KNNDetector):
        combine = _OF_DISTANCES[detector.aggregate]
    elif detector.official_quirks:
        arrays["bounds"], combine = neighbours.step_bounds(width, detector.num_levels), _most_probable_step

    def score(arrays, row):
        return -combine(_nearest(arrays["train"], row, count), arrays)

    scale = np.ones(width) if scaler.scale_ is None else scaler.scale_
    return _Parts(score, arrays, scaler.mean_, scale, None, _rows_against(train))


def _mahalanobis(detector: Any) -> _Parts:
    # The spread of each column lies in the whitening; taken out, what is left is of order one in any unit.
    scale = np.sqrt(np.sum(np.linalg.inv(detector.whitening_) ** 2, axis=0))

    def score(whitening, row):
        return -jnp.sum((row @ whitening) ** 2)

    return _Parts(
        score, scale[:, None] * detector.whitening_, detector.location_, scale, None, _most_rows((len(scale),))
    )


def _squared_norm(detector: Any) -> _Parts:
    nothing = np.zeros(0)
    return _Parts(lambda _, row: -jnp.sum(row**2), {}, nothing, nothing, None, _most_rows((detector.n_features_in_,)))


def _copula(detector: Any) -> _Parts:
    if detector.transductive:
        raise ValueError(
            f"cannot export {type(detector).__name__}: transductive=True scores a row by the rows scored with it, "
            "a program scores each by itself"
        )
    columns, is_copod = detector.columns_, isinstance(detector, COPOD)
    rows = len(columns.ordered)
    first = columns.ordered[0]
    # Ranks are the same in any unit. Values that were equal stay equal, as they go through the same arithmetic.
    mean = np.where(columns.constant, first, columns.ordered.mean(axis=0))
    scale = np.where(columns.constant, 1.0, columns.ordered.std(axis=0))
    arrays = {
        "ordered": ((columns.ordered - mean) / scale).T,
        "skew_sign": columns.skew_sign,
        "constant": columns.constant,
        "tolerance": copula.CONSTANT * np.maximum(1.0, np.abs(first)),
    }

    def score(arrays, row):
        at_most, at_least = (
            jax.vmap(partial(jnp.searchsorted, side=side))(arrays["ordered"], row) for side in ("right", "left")
        )
        left, right = (-jnp.log((n + 0.5) / (rows + 1)) for n in (at_most, rows - at_least))
        skewed = left * (arrays["skew_sign"] <= 0) + right * (arrays["skew_sign"] >= 0)
        tail = (left + right) / 2 if is_copod else jnp.maximum(left, right)
        moved = (jnp.abs(row) > arrays["tolerance"]) * jnp.log(rows + 1.0)
        return -jnp.sum(jnp.where(arrays["constant"], moved, jnp.maximum(tail, skewed)))

    return _Parts(score, arrays, mean, scale, 1e30, _most_rows((len(mean),)))


# ---------------------------------------------------------------------------------------------------------------- consensus


def _views_of(detector: ConsensusDetector):
    """``(z, arrays)``: the detector's ``_z`` as a function ``(arrays, standardised row) -> [views]``."""
    network, networks = detector.network_, len(detector.params_)
    closed, learned = detector.index_
    arrays = {
        "views": detector.views_,
        "columns": closed.columns,
        "whitened": closed.searches[1][0],
        "ranks": closed.searches[2][0],
        "networks": [
            {"params": params, "mean": mean, "std": std, "features": features, "norms": norms}
            for params, (mean, std, ((features, _), (norms, _))) in zip(detector.params_, learned, strict=True)
        ],
        "centre": detector.centre_,
        "scale": detector.scale_,
    }

    def z(arrays, row):
        distances = [_closed_distances(arrays, row)]
        distances += [_learned_distances(network, each, row) for each in arrays["networks"]]
        z = jnp.arcsinh(2 * (jnp.concatenate(distances) - arrays["centre"]) / arrays["scale"])
        count = len(distances[0])
        return jnp.concatenate([z[:count], z[count:].reshape(-1, 2).mean(axis=0)]) if networks else z

    return z, arrays


def _closed_distances(arrays, row):
    """``views.distances`` of one row, [5]."""
    of, columns = arrays["views"], arrays["columns"]
    low, high = (jax.vmap(partial(jnp.searchsorted, side=side))(columns, row) for side in ("left", "right"))
    ranks = (low + high) / (2 * columns.shape[1])
    spaces = ((of.reference, row), (arrays["whitened"], (row - of.mean) @ of.whitening), (arrays["ranks"], ranks))
    nearest = [jnp.sqrt(_nearest(known, seen, 1)[0]) for known, seen in spaces]
    residual = jnp.mean(jnp.abs((row - of.mean) @ of.residual))
    isolation = jax.vmap(_isolation)(columns, row, low)
    isolated = jnp.mean(jnp.arcsinh((isolation - of.column_centre) / of.column_scale))
    return jnp.stack([*nearest, residual, isolated])


def _isolation(column, value, place):
    """Mean distance of a value to the nearest few of a sorted column, ``views._column_isolation`` of one value."""
    count = len(column)
    few = min(consensus.views.COLUMN_NEIGHBOURS, count)
    places = place + jnp.arange(-few - 1, few + 1)
    gaps = jnp.abs(column[jnp.clip(places, 0, count - 1)] - value)
    return jnp.mean(jnp.sort(jnp.where((places < 0) | (places >= count), jnp.inf, gaps))[:few])


def _learned_distances(network, of, row):
    """``ConsensusDetector._learned`` of one row, [2]."""
    representation = consensus.represent(of["params"], row[None], network=network)[:, 0]
    features, norms = jnp.split(representation, [len(representation) - len(consensus.LEVELS)])
    spaces = ((of["features"], features), (of["norms"], (norms - of["mean"]) / of["std"]))
    return jnp.stack([jnp.mean(jnp.sqrt(_nearest(known, seen, min(5, len(known))))) for known, seen in spaces])


def _soft_maximum(z):
    return jnp.log(jnp.mean(jnp.exp(z)))


def _consensus(detector: Any) -> _Parts:
    z, arrays = _views_of(detector)
    most_rows = _rows_against(detector.views_.reference)
    return _Parts(
        lambda arrays, row: -_soft_maximum(z(arrays, row)),
        arrays,
        detector.mean_,
        detector.spread_,
        consensus.FARTHEST,
        most_rows,
    )


def _picture(detector: Any) -> _Parts:
    if detector.feature_fn is not None:
        raise ValueError(
            "cannot export ImageDetector: its feature_fn is code of your own; fit one without, or export the features"
        )
    tables = {name: _views_of(table) for name, table in detector.tables_.items()}
    low, high = detector.low_, detector.high_
    arrays: Any = {
        name: {"of": of, "mean": table.mean_, "spread": table.spread_}
        for (name, table), (_, of) in zip(detector.tables_.items(), tables.values(), strict=True)
    }
    if detector.network_ is not None:
        known = ("params_", "score_key_", "levels_", "map_mean_", "map_spread_", "error_mean_", "error_spread_")
        arrays["denoiser"] = {name: getattr(detector, name) for name in (*known, "level_weights_", "centre_", "scale_")}
        arrays["standardiser"] = detector.standardiser_
    settings = {
        "network": detector.network_,
        "draws": detector.draws,
        "sigma_blur": getattr(detector, "smoothing_", None),
    }

    def score(arrays, picture):
        unit = (picture - low) / (high - low)
        z = []
        for name, look in zip(appearance.NAMES, appearance._looks(unit[None]), strict=True):
            of = arrays[name]
            row = jnp.clip((look[0] - of["mean"]) / of["spread"], -consensus.FARTHEST, consensus.FARTHEST)
            z.append(tables[name][0](of["of"], row))
        if settings["network"] is not None:
            mean, scale = arrays["standardiser"]
            standard = jnp.clip((picture - mean[None, None]) / scale[None, None], -fitting.FARTHEST, fitting.FARTHEST)
            z.append(_denoiser_views(arrays["denoiser"], standard, settings))
        return -_soft_maximum(jnp.concatenate(z))

    nothing = np.zeros(0)
    most_rows = min(
        _most_rows(detector.sample_shape_), *(_rows_against(t.views_.reference) for t in detector.tables_.values())
    )
    return _Parts(score, arrays, nothing, nothing, None, most_rows, low, high)


def _denoiser_views(of, picture, settings):
    """``ImageDetector.combine`` of one standardised picture: z of its error and of the worst place of its map, [2]."""
    key = jax.random.wrap_key_data(of["score_key_"])
    maps, errors = image._error_maps(of["params_"], key, picture[None], of["levels_"], **settings)
    combined = jnp.tensordot(of["level_weights_"], (maps[:, 0] - of["map_mean_"]) / of["map_spread_"], axes=1)
    error = of["level_weights_"] @ ((errors[:, 0] - of["error_mean_"]) / of["error_spread_"])
    values = jnp.stack([error, jnp.max(combined)])
    return jnp.arcsinh(2 * (values - of["centre_"]) / of["scale_"])


def _cycle(detector: Any) -> _Parts:
    first = _parts(detector.first_)
    if not detector.accepted_:
        return first
    mean, scale = (np.asarray(one, np.float64) for one in detector.standardiser_)
    # Rows come as the first detector takes them, to the bit: it may rank values, and ties with those of training are to stay ties.
    # If it takes them as they are, they come standardised all the same, or the direction would see float32's digits of a time stamp.
    as_they_are = not first.mean.size
    own_mean, own_scale = (mean, scale) if as_they_are else (first.mean, first.scale)
    farthest = np.inf if first.farthest is None else first.farthest
    arrays: Any = {
        "first": first.arrays,
        "stretch": own_scale / scale,
        "shift": (own_mean - mean) / scale,
        "first_scale": np.array(detector.first_scale_),
    }
    if as_they_are:
        arrays["columns"] = {"mean": mean, "scale": scale}
    learned = hasattr(detector, "denoiser_")
    if learned:
        denoiser = detector.denoiser_
        network, prediction = denoiser.network_, denoiser.prediction_
        arrays["denoiser"] = {"params": denoiser.params_, "key": denoiser.score_key_}
        arrays["errors"] = {"mean": detector.error_mean_, "scale": detector.error_scale_}
    for name in ("direction", "head"):
        if hasattr(detector, f"{name}_"):
            arrays[name] = getattr(detector, f"{name}_")
            arrays[f"{name}_scale"] = np.array(getattr(detector, f"{name}_scale_"))

    def place(scale, score):
        centre, spread = scale
        return jnp.arcsinh(2 * (score - centre) / spread)

    def score(arrays, row):
        own = jnp.clip(row, -farthest, farthest)
        if as_they_are:
            own = row * arrays["columns"]["scale"] + arrays["columns"]["mean"]
        z = [place(arrays["first_scale"], -first.score(arrays["first"], own))]
        row = jnp.clip(row * arrays["stretch"] + arrays["shift"], -fitting.FARTHEST, fitting.FARTHEST)
        features = row
        if learned:
            denoise = make_denoiser(network, arrays["denoiser"]["params"], prediction)
            key = jax.random.wrap_key_data(arrays["denoiser"]["key"])
            errors = scoring.denoising_error(key, denoise, row[None], FEATURE_LEVELS.to(row.dtype), draws=2)[:, 0]
            errors = (jnp.log(errors + 1e-6) - arrays["errors"]["mean"]) / arrays["errors"]["scale"]
            features = jnp.concatenate([row, errors])
        features = jnp.clip(features, -FARTHEST_FEATURE, FARTHEST_FEATURE)
        if "direction" in arrays:
            z.append(place(arrays["direction_scale"], features @ arrays["direction"]))
        if "head" in arrays:
            z.append(place(arrays["head_scale"], cycle.head_logits(arrays["head"], features[None])[0]))
        return -jnp.mean(jnp.stack(z))

    far = None if first.farthest is None else max(first.farthest, fitting.FARTHEST)
    most_rows = min(first.most_rows, _most_rows(mean.shape))
    return _Parts(score, arrays, own_mean, own_scale, far, most_rows)


_MAKERS: dict[type, Callable[[Any], _Parts]] = {
    DiffusionDetector: _diffusion,
    DTECategorical: _diffusion_time,
    DTEInverseGamma: _diffusion_time,
    DTENonParametric: _neighbours,
    KNNDetector: _neighbours,
    COPOD: _copula,
    ECOD: _copula,
    MahalanobisDetector: _mahalanobis,
    SquaredNorm: _squared_norm,
    ConsensusDetector: _consensus,
    ImageDetector: _picture,
    CycleDetector: _cycle,
}


# ---------------------------------------------------------------------------------------------------------------- the bundle


def _examples(parts: _Parts, shape: tuple[int, ...]) -> np.ndarray:
    """Rows like those of training and farther out: 16, or 4 pictures."""
    count = 16 if len(shape) == 1 else 4
    rng = np.random.default_rng(0)
    farther = np.geomspace(0.25, 4.0, count).reshape(-1, *(1,) * len(shape))
    draws = farther * rng.normal(size=(count, *shape))
    if parts.mean.size:
        return parts.mean + parts.scale * draws
    if np.isfinite(parts.low):
        draws = np.clip((parts.low + parts.high) / 2 + (parts.high - parts.low) / 4 * draws, parts.low, parts.high)
    return draws.astype(np.float32)


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
    if taken_by != bundle.FORMAT or found - {bundle.CARD, *bundle.FILES}:
        raise CheckpointError(
            f"cannot replace {target}: it holds something else than an exported scorer; choose a new name"
        )
    return target
