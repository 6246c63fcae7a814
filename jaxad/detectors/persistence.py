"""Fitted detectors on disk: arrays, numbers and *names*. No code is stored, and a name is only ever looked up among ``known_things``."""

import dataclasses
import json
import math
import os
import sys
import warnings
from functools import partial
from types import FunctionType
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler
from sklearn.utils.validation import check_is_fitted

from jaxad import denoisers, noise, sampling, scoring, standardiser, training
from jaxad.data.dataset import did_you_mean
from jaxad.denoising import Network
from jaxad.detectors.estimator import Estimator, listed_elsewhere, on_device
from jaxad.detectors.scorer import Scorer, tells_where
from jaxad.runtime.checkpoint import (
    DTYPES,
    CheckpointError,
    check_writable,
    load_checkpoint,
    read_description,
    save_checkpoint,
)

__all__ = ["CheckpointError", "check_writable", "load_detector", "load_extra", "save_detector"]

TRANSFORMERS = {thing.__name__: thing for thing in (StandardScaler, MinMaxScaler, RobustScaler, PCA, SimpleImputer)}
"""What may come before the detector in a saved ``Pipeline``: scikit-learn's, whose fitted attributes are numbers and arrays."""

FORMAT = 2
"""1 was before a fitted detector was a scorer (jaxad 0.1)."""

_ROOMS = (noise, sampling, scoring, standardiser, training, denoisers)
_ADVICE = {
    "feature_fn": "a detector with features of your own cannot be saved",
    "loss": "scoring needs no loss: set detector.loss = None before saving",
    "random_state": "scoring draws from a stored key: set detector.random_state to a whole number before saving",
}
# The next machine may have other devices and other folders.
_NOT_SAVED = ("mesh", "run_dir")

# Whatever a description that is JSON but not ours can set off while it is turned into objects and tried out.
_BUILD_ERRORS = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError, RecursionError),
    *(RuntimeError, MemoryError, NotImplementedError, flax.errors.FlaxError),
)


def known_things() -> dict[str, Any]:
    """All that a saved detector may name, ``{name: thing}``: detectors, scorers, records of arrays, networks, and pure functions.

    Of jaxad, and of the modules of other packages in which a detector is defined that an entry point lists. Nothing in here opens a
    file or starts a process.
    """
    things = {}
    for room in _ROOMS:
        things |= {
            f"{room.__name__.removeprefix('jaxad.')}.{name}": thing
            for name, thing in vars(room).items()
            if not name.startswith("_") and (_is_ours(thing) or _is_record(type(thing)))
        }
    listed = [getattr(factory, "__module__", "") for factory in listed_elsewhere().values()]
    for module in [*(name for name in sys.modules if name.startswith("jaxad.detectors.")), *dict.fromkeys(listed)]:
        own = [thing for thing in vars(sys.modules[module]).values() if getattr(thing, "__module__", None) == module]
        classes = [thing for thing in own if isinstance(thing, type)]
        things |= {
            _name_of(cls): cls for cls in classes if _is_record(cls) or issubclass(cls, (Estimator, Scorer, Network))
        }
    return things


def _is_ours(thing) -> bool:
    if isinstance(thing, type):
        return thing.__module__.startswith("jaxad.") and (_is_record(thing) or issubclass(thing, Network))
    return callable(thing) and str(getattr(thing, "__module__", "")).startswith("jaxad.")


def _is_record(cls: type) -> bool:
    """A named tuple or a frozen dataclass."""
    return isinstance(cls, type) and (
        (issubclass(cls, tuple) and hasattr(cls, "_fields"))
        or (dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen)  # pyright: ignore[reportAttributeAccessIssue]
    )


def _name_of(cls: type) -> str:
    ours = cls.__module__.startswith("jaxad.detectors.")
    return f"detectors.{cls.__qualname__}" if ours else f"{cls.__module__}.{cls.__qualname__}"


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
            "last": {"name": last[0], **_described(last[1], None, arrays)},
        }
    else:
        content = _described(detector, None, arrays)
    content |= {"extra": extra, "detector_format": FORMAT}
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"extra must be a JSON value of text, finite numbers, lists and dictionaries: {error}"
        ) from error
    save_checkpoint(path, arrays, content)


def _described(
    estimator, known: dict[str, type] | None, arrays: dict[str, np.ndarray], prefix: str = ""
) -> dict[str, Any]:
    """Class, parameters and fitted attributes of one estimator; its arrays go to ``arrays``, their names behind ``prefix``.

    ``known`` are the classes it may be of; None: any detector of jaxad, or of a package that lists its own.
    """
    name = type(estimator).__name__ if known else _name_of(type(estimator))
    if (known or known_things()).get(name) is not type(estimator):
        raise ValueError(
            f"cannot save a {type(estimator).__module__}.{type(estimator).__name__}: only jaxad's own detectors, those that other packages "
            f"list as an entry point, and before them in a Pipeline {', '.join(TRANSFORMERS)}, are saved without code; keep others "
            "with a tool of their library, such as skops"
        )
    check_is_fitted(estimator)
    own = _Arrays()
    parameters, defaults = _parameters(estimator), type(estimator)().get_params(deep=False) if known else {}
    if known:  # the default of an imputer is NaN, which JSON has not
        parameters = {key: value for key, value in parameters.items() if value is not defaults[key]}
    described = {
        "class": name,
        "parameters": {key: _encode(value, key, own) for key, value in parameters.items()},
        "fitted": {key: _encode(value, key, own) for key, value in _fitted(estimator).items()},
    }
    arrays |= {prefix + key: value for key, value in own.items()}
    return described


class _Arrays(dict):
    """Arrays by their dotted names. One that several parts share is kept once."""

    def __init__(self):
        super().__init__()
        self.names, self.things = {}, known_things()
        self.by_identity = {id(thing): name for name, thing in self.things.items()}

    def named(self, value, where: str) -> str:
        name, _ = self.names.setdefault(id(value), (where, value))  # kept alive, or its number would be given anew
        self[name] = np.asarray(value)
        return name

    def name_of(self, value) -> str | None:
        """Of a function, or of one of the library's records of them: scikit-learn's clone copies the record and keeps the functions."""
        if id(value) in self.by_identity:
            return self.by_identity[id(value)]
        if isinstance(value, tuple) and any(isinstance(part, FunctionType) for part in value):
            return next(
                (name for name, thing in self.things.items() if type(thing) is type(value) and thing == value), None
            )
        return None


def load_detector(path: str | os.PathLike) -> Any:
    """The fitted detector saved at ``path``, on whatever devices this process has (``mesh=None``).

    On the same kind of device it gives the very scores it gave when saved. Nothing in the directory is executed or
    imported, so a directory from a stranger can do no worse than score badly or take long.

    Raises:
        CheckpointError: nothing there, damage, a newer format, or a description that makes no working detector.
    """
    arrays, content = load_checkpoint(path)
    version = content.get("detector_format", 1) if isinstance(content, dict) else 1
    if version != FORMAT:
        raise CheckpointError(
            f"{path} is in format {version!r:.50}, this jaxad reads format {FORMAT}: fit the detector again (the same command and seed "
            "give the same one), or install the jaxad that wrote it"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "X does not have valid feature names")
            # A level of 1e300 is judged by what comes of it, not by the rounding that makes it infinite.
            warnings.filterwarnings("ignore", "overflow encountered", RuntimeWarning)
            detector = _build(content, arrays)
            _try_out(detector)
            _name_columns(detector, content.get("extra"))
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


def _encode(value: Any, where: str, arrays: _Arrays) -> Any:
    """``value`` as JSON; its arrays go to ``arrays`` under their dotted name ``where``."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, float) and math.isinf(value):  # a threshold that nothing lies below
        return {"$infinity": 1 if value > 0 else -1}
    if isinstance(value, (np.ndarray, jax.Array)) and value.dtype.name in DTYPES:
        return {"$array": arrays.named(value, where)}
    if isinstance(value, np.ndarray) and value.dtype == object and all(isinstance(item, str) for item in value):
        return {"$strings": value.tolist()}
    if type(value) is tuple:
        return {"$tuple": [_encode(item, f"{where}.{i}", arrays) for i, item in enumerate(value)]}
    if type(value) is list:
        return [_encode(item, f"{where}.{i}", arrays) for i, item in enumerate(value)]
    if type(value) is dict and all(isinstance(key, str) and key.isidentifier() for key in value):
        return {key: _encode(item, f"{where}.{key}", arrays) for key, item in value.items()}
    if isinstance(value, partial) and not value.args:
        return {"$partial": _encode(value.func, where, arrays), "keywords": _encode(value.keywords, where, arrays)}
    if (name := arrays.name_of(value)) is not None and not isinstance(value, type):
        return {"$name": name}
    name = _name_in(arrays, type(value))
    if name is not None and isinstance(value, Estimator):
        fields = {"parameters": _parameters(value), "fitted": _fitted(value)}
        return {"$class": name, "fields": _encode(fields, where, arrays)}
    if name is not None:
        return {"$class": name, "fields": _encode(_fields(value), where, arrays)}
    advice = _ADVICE.get(
        where.split(".")[0], "a saved detector holds no code; use one of those, or keep your own apart"
    )
    raise ValueError(
        f"cannot save {where} = {' '.join(repr(value).split()):.100}: it may be a number, text, an array, a network, score, "
        f"combination, loss or prediction of jaxad, or a record of those; {advice}"
    )


def _name_in(arrays: _Arrays, cls: type) -> str | None:
    return arrays.by_identity.get(id(cls))


def _parameters(detector: Any) -> dict[str, Any]:
    return {key: value for key, value in detector.get_params(deep=False).items() if key not in _NOT_SAVED}


def _fitted(detector: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(detector).items() if key.endswith("_")}


def _fields(value: Any) -> dict[str, Any]:
    if isinstance(value, tuple):
        return dict(zip(value._fields, value, strict=True))  # pyright: ignore[reportAttributeAccessIssue]
    # `parent` and `name` are linen's own and belong to a network inside another.
    own = ("parent", "name") if isinstance(value, Network) else ()
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.name not in own}


class _Decoder:
    """From a description and its arrays to objects."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays, self.things = arrays, known_things()

    def __call__(self, node: Any, where: str) -> Any:
        if isinstance(node, list):
            return [self(item, f"{where}.{i}") for i, item in enumerate(node)]
        if not isinstance(node, dict):
            return node
        match node:
            case {"$array": str(name)}:
                return self.arrays[name]
            case {"$infinity": (1 | -1) as sign}:
                return sign * math.inf
            case {"$strings": [*strings]} if all(isinstance(text, str) for text in strings):
                return np.array(strings, object)
            case {"$tuple": [*items]}:
                return tuple(self(items, where))
            case {"$name": str(name)}:
                thing = _look_up(name, self.things, where)
                if not isinstance(thing, type):
                    return thing
            case {"$partial": dict(function), "keywords": dict(keywords)}:
                return partial(self(function, where), **self(keywords, where))
            case {"$class": str(name), "fields": dict(fields)}:
                cls = _look_up(name, self.things, where)
                if isinstance(cls, type):
                    found = self(fields, where)
                    return _restore(cls, **found) if issubclass(cls, Estimator) else cls(**found)
            case _ if all(key.isidentifier() for key in node):
                return {key: self(item, f"{where}.{key}") for key, item in node.items()}
        raise CheckpointError(f"{where} cannot be {node!r:.100}")


def _look_up(name: Any, known: dict[str, Any], where: str) -> Any:
    if name not in known:
        raise CheckpointError(f"no {where} is called {name!r:.50}; {did_you_mean(str(name)[:50], known)}")
    return known[name]


def _build(content: Any, arrays: dict[str, np.ndarray]) -> Any:
    if content["class"] != "Pipeline":
        return _build_one(content, content["class"], None, arrays)
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
    return Pipeline([*steps, (str(last["name"]), _build_one(last, last["class"], None, arrays))])


def _build_one(content: Any, name: Any, known: dict[str, Any] | None, arrays: dict[str, np.ndarray]) -> Any:
    decode = _Decoder(arrays)
    cls = _look_up(name, known or decode.things, "transformer" if known else "detector")
    if not known and not (isinstance(cls, type) and issubclass(cls, Estimator)):
        raise CheckpointError(f"{name!r:.50} is no detector")
    parts = ({key: decode(node, key) for key, node in content[part].items()} for part in ("parameters", "fitted"))
    return _restore(cls, *parts)


def _restore(cls: type, parameters: dict[str, Any], fitted: dict[str, Any]) -> Any:
    known = _settings_of(cls)
    for key in parameters:
        _look_up(key, known, f"parameter of {cls.__name__}")
    detector = cls(**parameters)
    for key, value in fitted.items():
        # Fitted attributes end in an underscore: no method or private part of the class can be overwritten.
        if not key.isidentifier() or key.startswith("_") or not key.endswith("_"):
            raise CheckpointError(f"no fitted attribute is called {key!r:.50}")
        setattr(detector, key, on_device(value) if isinstance(value, Scorer) else value)
    return detector


def _name_columns(detector: Any, extra: Any) -> None:
    """The command line fits arrays and remembers their columns in ``extra``: scikit-learn then refuses a data frame in another order."""
    match extra:
        case {"columns": [*columns]} if all(isinstance(name, str) for name in columns):
            if isinstance(detector, Estimator) and len(columns) == detector.n_features_in_:
                vars(detector)["feature_names_in_"] = np.array(columns, object)


def _settings_of(cls: Any) -> dict[str, Any]:
    return dict.fromkeys(cls._get_param_names())


def _try_out(detector: Any) -> None:
    """Do the parts fit together? One row of zeros goes through the scorer, of which only the shapes are worked out: nothing is compiled."""
    if isinstance(detector, Pipeline):
        if len(detector) == 1:
            return _try_out(detector[-1])
        seen = np.asarray(detector[:-1].transform(np.zeros((1, detector.n_features_in_))))
        if seen.shape[1:] != (detector[-1].n_features_in_,):
            raise CheckpointError(
                f"the steps before the {type(detector[-1]).__name__} give rows of {seen.shape[1:]}; save it again"
            )
        return _try_out(detector[-1])
    shape: tuple[int, ...] = tuple(getattr(detector, "sample_shape_", (detector.n_features_in_,)))
    row = np.zeros((1, *shape))
    if shape[0] != detector.n_features_in_:
        raise CheckpointError(f"rows of shape {list(shape)} have no {detector.n_features_in_} features; save it again")
    if detector.scorer_ is None:
        found = detector.score_samples(row)
    else:
        scale = detector.standardiser_
        seen = scale(row)
        sound = seen.shape == row.shape and np.isfinite(scale.mean).all() and np.isfinite(scale.scale).all()
        if not sound or not (scale.scale > 0).all() or not scale.farthest > 0:
            raise CheckpointError(f"the scale of the {type(detector).__name__} does not fit its rows; save it again")
        found = jax.eval_shape(detector.scorer_, jax.ShapeDtypeStruct(row.shape, jnp.float32))
        if tells_where(detector.scorer_):
            where = jax.eval_shape(detector.scorer_.where, jax.ShapeDtypeStruct(row.shape, jnp.float32))
            if where.shape[:1] != (1,) or not math.isfinite(detector.where_threshold_):
                raise CheckpointError(f"the {type(detector).__name__} does not say where; save it again")
    if found.shape != (1,) or not detector.offset_ < math.inf:
        raise CheckpointError(f"the {type(detector).__name__} does not give one number per row; save it again")
