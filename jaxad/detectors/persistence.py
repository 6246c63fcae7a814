"""Fitted detectors on disk: arrays, numbers and *names*. No code is stored, and a name is only ever looked up in the lists below."""

import dataclasses
import json
import math
import os
import warnings
from functools import partial
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler
from sklearn.utils.validation import check_is_fitted

from jaxad import noise, sampling, scoring, training
from jaxad.data.dataset import did_you_mean
from jaxad.denoisers import MLP, DiT, TimeMLP, UNet
from jaxad.detectors import appearance, views
from jaxad.detectors.consensus import ConsensusDetector, represent
from jaxad.detectors.copula import COPOD, ECOD, _Columns
from jaxad.detectors.diffusion import DiffusionDetector
from jaxad.detectors.diffusion_time import DTECategorical, DTEInverseGamma
from jaxad.detectors.estimator import check_scoring_data
from jaxad.detectors.fitting import Standardiser
from jaxad.detectors.gaussian import MahalanobisDetector, SquaredNorm
from jaxad.detectors.image import ImageDetector, PictureTable
from jaxad.detectors.neighbours import DTENonParametric, KNNDetector
from jaxad.detectors.taught import CycleDetector
from jaxad.runtime.checkpoint import (
    DTYPES,
    CheckpointError,
    check_writable,
    load_checkpoint,
    read_description,
    save_checkpoint,
)

__all__ = ["CheckpointError", "check_writable", "load_detector", "load_extra", "save_detector"]


def _by_name(*things) -> dict[str, Any]:
    return {thing.__name__: thing for thing in things}


DETECTORS = _by_name(
    ConsensusDetector,
    DiffusionDetector,
    DTECategorical,
    DTEInverseGamma,
    DTENonParametric,
    ImageDetector,
    KNNDetector,
    COPOD,
    ECOD,
    MahalanobisDetector,
    SquaredNorm,
    CycleDetector,
)

TRANSFORMERS = _by_name(StandardScaler, MinMaxScaler, RobustScaler, PCA, SimpleImputer)
"""What may come before the detector in a saved ``Pipeline``: scikit-learn's, whose fitted attributes are numbers and arrays."""

ALLOWED: dict[str, dict[str, Any]] = {
    "network": _by_name(MLP, DiT, TimeMLP, UNet),
    "schedule": _by_name(noise.NoiseLevel),
    "levels": _by_name(noise.NoiseLevel),
    "prediction": {"CLEAN": noise.CLEAN, "NOISE": noise.NOISE, "VELOCITY": noise.VELOCITY, "SCORE": noise.SCORE},
    "scorer": _by_name(
        scoring.reconstruction_error,
        scoring.denoising_error,
        scoring.ddim_reconstruction_error,
        scoring.ancestral_reconstruction_error,
        scoring.unnoised_reverse_error,
        scoring.flow_residual,
        scoring.projection_regret,
        scoring.score_norm,
        scoring.log_score_norm,
        scoring.path_statistics,
        scoring.path_curvature,
        scoring.variational_bound,
        scoring.negative_log_likelihood,
        scoring.time_posterior,
        scoring.conditional_error,
        scoring.guided_reconstruction_error,
        scoring.inpainting_error,
    ),
    "variance": _by_name(sampling.fixed_small, sampling.fixed_large, sampling.no_variance),
    "aggregate": {
        "total": scoring.total,
        "z_mean": scoring.z_mean,
        "z_max": scoring.z_max,
        "typicality": scoring.typicality,
        "likelihood_ratio": scoring.likelihood_ratio,
        "mahalanobis": scoring.mahalanobis,
        "gmm": scoring.gmm,
        "knn": scoring.knn,
    },
    "loss": _by_name(training.simple_loss, training.hybrid_loss, training.trimmed_loss),
    "weight": _by_name(training.uniform),
    "statistics": _by_name(scoring.LevelStatistics, scoring.Whitening, scoring.Mixture, scoring.Neighbours),
    "standardiser": _by_name(Standardiser),
    "columns": _by_name(_Columns),
    # a cycle's parts, which are detectors
    **{
        part: {k: v for k, v in DETECTORS.items() if v is not CycleDetector}
        for part in ("detector", "first", "denoiser")
    },
    "scaler": _by_name(StandardScaler),
    "views": _by_name(views.Views),
    # an image detector's tables, by the look they were made from
    **{look: _by_name(PictureTable) for look in appearance.NAMES},
}
"""What an attribute (or a keyword of a partial) may hold besides numbers, text and arrays, by its name without the final underscore:
instances of the classes, and the functions and predictions themselves."""

_ADVICE = {
    "feature_fn": "a detector with features of your own cannot be saved",
    "loss": "scoring needs no loss: set detector.loss = None before saving",
    "random_state": "scoring draws from a stored key: set detector.random_state to a whole number before saving",
}
_SCALER_FIELDS = ("with_mean", "with_std", "n_features_in_", "n_samples_seen_", "mean_", "var_", "scale_")

# Whatever a description that is JSON but not ours can set off while it is turned into objects and tried out.
_BUILD_ERRORS = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError),
    *(RuntimeError, MemoryError, flax.errors.FlaxError),
)


def save_detector(detector: Any, path: str | os.PathLike, *, extra: Any = None) -> None:
    """Write a fitted detector of jaxad to the directory ``path``; a detector saved there before is replaced.

    A ``Pipeline`` of scikit-learn that ends in one is saved as well, with the ``TRANSFORMERS`` in it. Parameters and fitted attributes are
    kept, ``mesh`` and ``run_dir`` are not. ``extra`` is any JSON value, such as column names, for ``load_extra``; tuples in it come
    back as lists.

    Raises:
        ValueError: before anything is written: not a fitted detector of jaxad, ``extra`` is not JSON, or an attribute is
            code of your own (a score, a network, a loss), which no file without code can hold.
        CheckpointError: ``path`` cannot be written; what was there is untouched.

    >>> import tempfile
    >>> detector = KNNDetector(n_neighbors=1).fit([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_detector(detector, f"{folder}/knn", extra={"columns": ["heat", "load"]})
    ...     load_detector(f"{folder}/knn").score_samples([[0.0, 2.0], [3.0, 1.0]]).tolist(), load_extra(f"{folder}/knn")
    ([-1.0, -3.0], {'columns': ['heat', 'load']})
    """
    arrays: dict[str, np.ndarray] = {}
    if type(detector) is Pipeline:
        *before, last = detector.steps
        steps = [
            {"name": name, **_described(step, TRANSFORMERS, arrays, f"step{i}_")}
            for i, (name, step) in enumerate(before)
        ]
        content = {
            "class": "Pipeline",
            "steps": steps,
            "last": {"name": last[0], **_described(last[1], DETECTORS, arrays)},
        }
    else:
        content = _described(detector, DETECTORS, arrays)
    content["extra"] = extra
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"extra must be a JSON value of text, finite numbers, lists and dictionaries: {error}"
        ) from error
    save_checkpoint(path, arrays, content)


def _described(estimator, known: dict[str, type], arrays: dict[str, np.ndarray], prefix: str = "") -> dict[str, Any]:
    """Class, parameters and fitted attributes of one estimator; its arrays go to ``arrays``, their names behind ``prefix``."""
    name = type(estimator).__name__
    if known.get(name) is not type(estimator):
        raise ValueError(
            f"cannot save a {type(estimator).__module__}.{name}: only jaxad's own detectors ({', '.join(DETECTORS)}), and "
            f"before them in a Pipeline {', '.join(TRANSFORMERS)}, are saved without code; keep others with a tool of their "
            "library, such as skops"
        )
    check_is_fitted(estimator)
    own: dict[str, np.ndarray] = {}
    parameters, defaults = _parameters(estimator), type(estimator)().get_params(deep=False)
    if known is TRANSFORMERS:  # the default of an imputer is NaN, which JSON has not
        parameters = {key: value for key, value in parameters.items() if value is not defaults[key]}
    described = {
        "class": name,
        "parameters": {key: _encode(value, key, own) for key, value in parameters.items()},
        "fitted": {key: _encode(value, key, own) for key, value in _fitted(estimator).items()},
    }
    arrays |= {prefix + key: value for key, value in own.items()}
    return described


def load_detector(path: str | os.PathLike) -> Any:
    """The fitted detector saved at ``path``, on whatever devices this process has (``mesh=None``).

    On the same kind of device it gives the very scores it gave when saved. Nothing in the directory is executed or
    imported, so a directory from a stranger can do no worse than score badly or take long.

    Raises:
        CheckpointError: nothing there, damage, a newer format, or a description that makes no working detector.
    """
    arrays, content = load_checkpoint(path)
    try:
        detector = _build(content, arrays)
        _try_out(detector)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except _BUILD_ERRORS as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise CheckpointError(f"{path}: its description makes no working detector ({what}); save it again") from error
    return detector


def load_extra(path: str | os.PathLike) -> Any:
    """The ``extra`` given to ``save_detector``, without opening an array.

    Raises:
        CheckpointError: nothing there, or a damaged or newer description.
    """
    content = read_description(path).get("content")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: the description has no content")
    return content.get("extra")


def _allowed(where: str) -> dict[str, Any]:
    return ALLOWED.get(where.rpartition(".")[2].removesuffix("_"), {})


def _encode(value: Any, where: str, arrays: dict[str, np.ndarray]) -> Any:
    """``value`` as JSON; its arrays go to ``arrays`` under their dotted name ``where``."""
    if isinstance(value, partial) and not value.args:
        return {"$partial": _encode(value.func, where, arrays), "keywords": _encode(value.keywords, where, arrays)}
    for name, thing in _allowed(where).items():
        # Pairs of functions are compared as such: scikit-learn's clone copies the pair and keeps the functions.
        if not isinstance(thing, type) and (value is thing or (type(value) is type(thing) and value == thing)):
            return {"$name": name}
        if type(value) is thing:
            return {"$class": name, "fields": _encode(_fields(value), where, arrays)}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if type(value) is tuple:
        return {"$tuple": [_encode(item, f"{where}.{i}", arrays) for i, item in enumerate(value)]}
    if type(value) is list:
        return [_encode(item, f"{where}.{i}", arrays) for i, item in enumerate(value)]
    if type(value) is dict and all(isinstance(key, str) and key.isidentifier() for key in value):
        return {key: _encode(item, f"{where}.{key}", arrays) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype == object and all(isinstance(item, str) for item in value):
        return {"$strings": value.tolist()}
    if isinstance(value, (np.ndarray, jax.Array)) and value.dtype.name in DTYPES:
        arrays[where] = np.asarray(value)
        return {"$array": where}
    known = ", ".join(_allowed(where)) or "numbers, text and arrays"
    advice = _ADVICE.get(
        where.split(".")[0], "a saved detector holds no code; use one of those, or keep your own apart"
    )
    raise ValueError(f"cannot save {where} = {' '.join(repr(value).split()):.100}: it may be {known}; {advice}")


def _parameters(detector: Any) -> dict[str, Any]:
    # A mesh names devices of this machine, a run directory a folder of it; the next one may have others.
    return {key: value for key, value in detector.get_params(deep=False).items() if key not in ("mesh", "run_dir")}


def _fitted(detector: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(detector).items() if key.endswith("_") and key != "index_"}


def _fields(value: Any) -> dict[str, Any]:
    if isinstance(value, (PictureTable, *DETECTORS.values())):
        return {"parameters": _parameters(value), "fitted": _fitted(value)}
    if isinstance(value, StandardScaler):
        return {name: getattr(value, name) for name in _SCALER_FIELDS}
    if isinstance(value, tuple):
        return dict(zip(value._fields, value, strict=True))  # pyright: ignore[reportAttributeAccessIssue]
    # `parent` and `name` are linen's own and belong to a network inside another.
    return {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if field.name not in ("parent", "name")
    }


def _decode(node: Any, where: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(node, list):
        return [_decode(item, f"{where}.{i}", arrays) for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    match node:
        case {"$array": str(name)}:
            return arrays[name]
        case {"$strings": [*strings]} if all(isinstance(text, str) for text in strings):
            return np.array(strings, object)
        case {"$tuple": [*items]}:
            return tuple(_decode(items, where, arrays))
        case {"$name": str(name)}:
            thing = _look_up(name, _allowed(where), where)
            if not isinstance(thing, type):
                return thing
        case {"$partial": dict(function), "keywords": dict(keywords)}:
            return partial(_decode(function, where, arrays), **_decode(keywords, where, arrays))
        case {"$class": str(name), "fields": dict(fields)}:
            cls = _look_up(name, _allowed(where), where)
            if isinstance(cls, type):
                return _construct(cls, _decode(fields, where, arrays))
        case _ if all(key.isidentifier() for key in node):
            return {key: _decode(item, f"{where}.{key}", arrays) for key, item in node.items()}
    raise CheckpointError(f"{where} cannot be {node!r:.100}")


def _construct(cls: type, fields: dict[str, Any]) -> Any:
    if cls is PictureTable or cls in DETECTORS.values():
        return _restore(cls, fields["parameters"], fields["fitted"])
    if cls is not StandardScaler:
        return cls(**fields)
    scaler = StandardScaler()
    for name in _SCALER_FIELDS:
        setattr(scaler, name, fields[name])
    return scaler


def _look_up(name: Any, known: dict[str, Any], where: str) -> Any:
    if name not in known:
        raise CheckpointError(f"no {where} is called {name!r:.50}; {did_you_mean(str(name)[:50], known)}")
    return known[name]


def _build(content: Any, arrays: dict[str, np.ndarray]) -> Any:
    if content["class"] != "Pipeline":
        return _build_one(content, content["class"], DETECTORS, arrays)
    steps = []
    for i, step in enumerate(content["steps"]):
        prefix = f"step{i}_"
        own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        transformer = _build_one(step, step["class"], TRANSFORMERS, own)
        if type(transformer) is SimpleImputer:
            # Asked for when it transforms, and no public attributes.
            transformer._fit_dtype = transformer._fill_dtype = np.asarray(transformer.statistics_).dtype
        steps.append((str(step["name"]), transformer))
    last = content["last"]
    return Pipeline([*steps, (str(last["name"]), _build_one(last, last["class"], DETECTORS, arrays))])


def _build_one(content: Any, name: Any, known: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    cls = _look_up(name, known, "detector" if known is DETECTORS else "transformer")
    parts = (
        {key: _decode(node, key, arrays) for key, node in content[part].items()} for part in ("parameters", "fitted")
    )
    return _restore(cls, *parts)


def _restore(cls: type, parameters: dict[str, Any], fitted: dict[str, Any]) -> Any:
    known = cls().get_params(deep=False)
    for key in parameters:
        _look_up(key, known, f"parameter of {cls.__name__}")
    detector = cls(**parameters)
    for key, value in fitted.items():
        # Fitted attributes end in an underscore: no method or private part of the class can be overwritten.
        if not key.isidentifier() or key.startswith("_") or not key.endswith("_"):
            raise CheckpointError(f"no fitted attribute is called {key!r:.50}")
        setattr(detector, key, value)
    if fitted and cls in (KNNDetector, DTENonParametric):
        # The search tree is a function of the rows, quickly grown, and tied to scikit-learn's version.
        detector.index_ = NearestNeighbors().fit(detector.train_)
    if fitted and cls in (ConsensusDetector, PictureTable):
        detector.build_index()
    return detector


def _try_out(detector: Any) -> None:
    """Do the parts fit together? One row of zeros goes through; through a network only its shapes do, without compiling."""
    if isinstance(detector, Pipeline):
        if len(detector) == 1:
            return _try_out(detector[-1])
        seen = np.asarray(detector[:-1].transform(np.zeros((1, detector.n_features_in_))))
        if seen.shape[1:] != (detector[-1].n_features_in_,):
            raise CheckpointError(
                f"the steps before the {type(detector[-1]).__name__} give rows of {seen.shape[1:]}; save it again"
            )
        return _try_out(detector[-1])
    row = np.zeros((1, *getattr(detector, "sample_shape_", (detector.n_features_in_,))))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        # A level of 1e300 is judged by what comes of it, not by the rounding that makes it infinite.
        warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)
        if type(detector) is DiffusionDetector:
            scores = jax.eval_shape(partial(_diffusion_scores, detector), _standardised(detector, row))
        elif type(detector) in (DTECategorical, DTEInverseGamma):
            scores = jax.eval_shape(partial(_time_scores, detector), _standardised(detector, row))
        elif type(detector) is ConsensusDetector:
            scores = _consensus_scores(detector, check_scoring_data(detector, row))
        elif type(detector) is ImageDetector:
            scores = _image_scores(detector, check_scoring_data(detector, row).astype(np.float32))
        else:
            scores = detector.score_samples(row)
    if scores.shape != (1,) or not math.isfinite(detector.offset_):
        raise CheckpointError(f"the {type(detector).__name__} does not give one number per row; save it again")


def _standardised(detector, row):
    return detector.standardiser_(check_scoring_data(detector, row))


def _diffusion_scores(detector, rows):
    key = jax.random.wrap_key_data(jnp.asarray(detector.score_key_))
    levels = detector.levels_.to(jnp.float32)
    by_level = detector.scorer(key, detector.denoiser(), rows, levels, draws=detector.draws)
    return detector.aggregate_.apply(by_level, detector.statistics_)


def _image_scores(detector, rows):
    if detector.network_ is not None:
        maps, errors = jax.eval_shape(detector.measure, _standardised(detector, rows))
        detector.combine(np.zeros(maps.shape), np.zeros(errors.shape))
    by_look = [
        _consensus_scores(detector.tables_[name], check_scoring_data(detector.tables_[name], look))
        for name, look in detector.looks(rows).items()
    ]
    return np.mean(by_look, axis=0)


def _consensus_scores(detector, rows):
    rows = detector._standardise(rows)
    distances = [views.distances(detector.views_, detector.index_[0], rows)]
    for params, known in zip(detector.params_, detector.known_, strict=True):
        seen = jax.eval_shape(partial(represent, params, network=detector.network_), rows)
        if seen.shape != (known.shape[1], len(rows)):
            raise CheckpointError(
                f"a network gives {seen.shape[0]} features where {known.shape[1]} are stored; save it again"
            )
        distances.append(np.zeros((2, len(rows))))
    return detector._combine(np.concatenate(distances), range(len(detector.params_)))


def _time_scores(detector, rows):
    output = detector.network_.apply({"params": detector.params_}, rows)
    return output.reshape(1, detector.network_.outputs)[:, 0]
