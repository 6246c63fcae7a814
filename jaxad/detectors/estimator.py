"""scikit-learn's face of a scorer, written once: checks at the door, scale, batches, threshold, p-values, where.

A detector is a subclass of ``Estimator`` with settings and one method, ``_learn(X) -> Learned``. All else is here.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple, Protocol, Self, dataclass_transform, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxad.data.doubts import fill_values
from jaxad.detectors.scorer import Rescaled, tells_where
from jaxad.metrics.calibration import benjamini_hochberg, check_rate, p_values, threshold
from jaxad.runtime.compilation import quickly_compiled, use_compilation_cache
from jaxad.runtime.sharding import fetch, pad_to_multiple, replicate, shard_batch
from jaxad.standardiser import Standardiser, too_far

SCORING_BATCH = 1024
"""Rows scored at once; fewer are padded to the next of 64, 256, 1024, so a few compiled programs serve every call."""

LARGEST = 1e150
"""What is larger has no square in float64, hence its column no spread to learn."""

PICTURES_AT_ONCE = 128
"""The same for pictures, of which levels and draws make many copies and the network's layers many more: 1,024 of 28 x 28 took 5 GiB."""

MOST_ELEMENTS = 2**21
"""Numbers in a batch of large pictures that go through a network at once, outside training: its activations are many times that."""


@runtime_checkable
class Detector(Protocol):
    """Anything with ``fit`` and ``score_samples``; scikit-learn's outlier detectors and pipelines of them are
    detectors.

    **The sign**: ``score_samples`` is *larger for more normal rows*, as everywhere in scikit-learn. The functions of
    ``jaxad.metrics`` take *anomaly* scores, larger for more anomalous rows: hand them ``-detector.score_samples(X)``.

    >>> from sklearn.ensemble import IsolationForest
    >>> isinstance(IsolationForest(), Detector)
    True
    """

    def fit(self, X, y=None) -> Self:
        """Learn what is normal from rows ``X [rows, features]``, forgetting any earlier fit; ``y`` is ignored."""
        ...

    def score_samples(self, X) -> np.ndarray:
        """One finite number per row, ``[rows]``: larger = more normal."""
        ...


# ----------------------------------------------------------------------------------------------------------------- the scale


def rescaled(scorer: Any, own: Standardiser, given: Standardiser) -> Any:
    """A scorer of rows on the scale ``own``, for rows that come on the scale ``given``.

    >>> own, given = Standardiser(np.ones(1), np.ones(1)), Standardiser(np.zeros(1), np.full(1, 2.0))
    >>> rescaled(lambda rows: rows[:, 0], own, given)(jnp.array([[3.0]])).tolist()  # 6 in the units of the data
    [5.0]
    """
    if own is given:
        return scorer
    stretch, shift = given.scale / own.scale, (given.mean - own.mean) / own.scale
    return Rescaled(scorer, *(np.asarray(part, np.float32) for part in (stretch, shift, own.farthest)))


class Learned(NamedTuple):
    """What a detector's ``_learn`` has found."""

    standardiser: Standardiser
    scorer: Any
    """A ``Scorer`` of standardised rows."""
    normal: np.ndarray
    """How anomalous are normal rows that it was not fitted on? ``[rows]``, larger = more anomalous: threshold and p-values."""


# ----------------------------------------------------------------------------------------------------------------- the batches


class _Forked:
    """Was this process forked from one in which a detector had run? JAX's threads do not come along: its calls would wait for ever."""

    started = forked = False

    @classmethod
    def in_child(cls):
        cls.forked = cls.started


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Forked.in_child)


@quickly_compiled
def apply(function: Any, rows):
    """``function(rows)``: the one compiled call through which every detector scores. ``function`` is a scorer, or any callable pytree."""
    return function(rows)


@jax.jit
def _score_and_where(scorer: Any, rows):
    return scorer(rows), scorer.where(rows)


def rows_at_once(sample_shape: tuple[int, ...]) -> int:
    """The most rows of this shape in one batch."""
    return at_once(SCORING_BATCH if len(sample_shape) == 1 else PICTURES_AT_ONCE, sample_shape)


def at_once(wanted: int, sample_shape: tuple[int, ...]) -> int:
    """``wanted`` rows, or fewer if they are large pictures, but 16 at least."""
    return max(16, min(wanted, 2 ** int(np.log2(max(MOST_ELEMENTS // int(np.prod(sample_shape)), 1)))))


def share(memory_budget: int, rows: Any) -> int:
    """What these rows may take of a budget meant for a whole batch: rows scored one by one and gathered by ``vmap``, as an exported program
    does it, then need no more than a batch.

    >>> share(2**20, np.zeros((1, 4))), share(2**20, np.zeros((1024, 4)))
    (1024, 1048576)
    """
    return rows.shape[0] * max(1, memory_budget // rows_at_once(rows.shape[1:]))


def in_batches(
    function: Any,
    rows: Any,
    *,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
    mesh: Mesh | None = None,
    call: Any = apply,
) -> Any:
    """``call(function, batch)`` over all rows in batches of few fixed sizes, memory flat in their number; on the host.

    What comes back may be a tree of arrays with rows along the first axis.
    ``prepare`` is applied to each piece of ``rows`` before it goes to the device. On a ``mesh`` the function is copied to every device and
    a batch is cut over them.
    """
    if _Forked.forked:
        raise RuntimeError(
            "this process was forked from one that had already used JAX, where a call would hang: start workers by spawn or forkserver "
            "(multiprocessing.get_context('spawn'), joblib's loky, gunicorn without --preload), or score in threads"
        )
    _Forked.started = True
    use_compilation_cache()
    pieces = []
    most = rows_at_once(rows.shape[1:])
    placed = function if mesh is None else replicate(function, mesh)
    for start in range(0, len(rows), most):
        piece = rows[start : start + most]
        piece = np.asarray(piece if prepare is None else prepare(piece))
        size = next(size for size in (min(64, most), min(256, most), most) if size >= len(piece))
        padded, mask = pad_to_multiple(piece, size if mesh is None else -(-size // mesh.size) * mesh.size)
        # A GPU's and a TPU's fast products of float32 keep three digits: not enough for the processor's scores.
        with jax.default_matmul_precision("highest"):
            found = call(placed, padded if mesh is None else shard_batch(padded, mesh))
        pieces.append(jax.tree.map(lambda leaf: leaf[mask], fetch(found)))  # noqa: B023
    return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)


# ------------------------------------------------------------------------------------------------------------------ the face


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(dataclasses.field,))
class Estimator(OutlierMixin, BaseEstimator):
    """A scorer as scikit-learn knows detectors. Subclass it with settings, each a field with a default, and ``_learn(X) -> Learned``.

    The threshold asks for a *false alarm rate*, the share of normal rows one is ready to see flagged, and not for a
    contamination: in the one-class setting the training rows are normal, and the share of anomalies to come is what
    nobody knows.

    Settings that mean the same everywhere: ``false_alarm_rate`` (share of normal rows that ``predict`` may flag, in [0, 0.5]), ``mesh``
    (devices to train and score on; a detector without one is only scored on several), ``run_dir``, ``random_state``, ``verbose``.

    Attributes:
        scorer_: the ``Scorer``, a pure function of standardised rows; larger = more anomalous.
        standardiser_: from the units of the data to what the scorer sees.
        calibration_scores_: ``score_samples`` of normal rows it was not fitted on.
        offset_: the threshold of ``predict`` (``calibration.threshold``): below it lie the rows with ``p_values <= false_alarm_rate``. With
            fewer than ``1 / rate - 1`` calibration rows that is no row at any distance, and it is ``-inf``.
        where_threshold_: what ``where`` of a normal row stays below, but for the false alarm rate; of detectors that can tell.
    """

    scorer_: Any
    standardiser_: Standardiser
    offset_: float
    calibration_scores_: Any
    n_features_in_: int
    losses_: Any
    validation_losses_: Any
    _takes_pictures = False
    """Rows of any rank, not of one axis only."""

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        # What scikit-learn wants of __init__, every setting kept under its name and nothing else, is what a dataclass writes.
        if "__init__" not in vars(cls):
            dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)

    def fit(self, X, y=None) -> Self:
        """Learn from normal rows ``X [rows, features]`` (pictures ``[rows, height, width, channels]``); ``y`` is ignored."""
        return self._keep(self._learn(check_training_data(self, X, allow_images=self._takes_pictures)))

    def _learn(self, X: np.ndarray) -> Learned:
        """Everything between checked rows and a scorer."""
        raise NotImplementedError(f"{type(self).__name__} has no _learn, which makes a scorer of rows")

    def _keep(self, learned: Learned) -> Self:
        self.standardiser_ = learned.standardiser
        self.scorer_ = on_device(learned.scorer)
        self._calibrate_on(-np.asarray(learned.normal, np.float64))
        return self

    def _calibrate_on(self, normal_scores) -> None:
        """Threshold and p-values from now on by these ``score_samples`` of normal rows that were not fitted on."""
        rate = getattr(self, "false_alarm_rate", 0.05)
        self.calibration_scores_ = np.asarray(normal_scores, np.float64)
        self.offset_ = threshold(self.calibration_scores_, rate)

    def score_samples(self, X) -> np.ndarray:
        """Minus the scorer's score, ``[rows]`` float64: larger = more normal. A row's score depends on that row alone."""
        return -self._scored(X, apply).astype(np.float64)

    def where(self, X) -> np.ndarray:
        """How unusual is every place of every row? ``[rows, *places]`` float32, pixels for pictures; compare with ``where_threshold_``.

        Raises:
            ValueError: a detector whose scorer cannot tell.
        """
        self._check_tells_where()
        return self._scored(X, _where)

    def score_and_where(self, X) -> tuple[np.ndarray, np.ndarray]:
        """``(score_samples(X), where(X))`` from one pass; raises as ``where``."""
        self._check_tells_where()
        scores, where = self._scored(X, _score_and_where)
        return -scores.astype(np.float64), where

    def _scored(self, X, call, function: Any = None) -> Any:
        """``call(function, batch)`` over checked and standardised rows; the function is by default the scorer."""
        check_is_fitted(self)
        rows = check_scoring_data(self, X)
        function = self.scorer_ if function is None else function
        return in_batches(function, rows, prepare=self.standardiser_, mesh=getattr(self, "mesh", None), call=call)

    def _check_tells_where(self) -> None:
        check_is_fitted(self)
        if not tells_where(self.scorer_):
            raise ValueError(
                f"this {type(self).__name__} cannot tell where a row is anomalous: {self._why_no_where()}; score_samples says how much"
            )

    def _why_no_where(self) -> str:
        return "its scorer has no such answer"

    def decision_function(self, X) -> np.ndarray:
        """``score_samples(X) - offset_``, shape ``[rows]``: negative for the rows that ``predict`` calls anomalous."""
        # Scoring comes first: on an unfitted detector it raises NotFittedError, where `offset_` would be a bare
        # AttributeError.
        scores = self.score_samples(X)
        return scores - self.offset_

    def predict(self, X, alpha: float | None = None) -> np.ndarray:
        """Integers ``[rows]``: ``+1`` normal, ``-1`` anomalous, which is below ``offset_``, or with ``alpha`` where ``p_values <= alpha``.

        ``alpha`` in [0, 1] is a false alarm rate chosen after ``fit``; nothing is fitted again. 0, and whatever the calibration rows are
        too few to support, flags nothing.
        """
        if alpha is None:
            return np.where(self.decision_function(X) >= 0.0, 1, -1)
        check_rate(alpha)
        return np.where(self.p_values(X) <= alpha, -1, 1)

    def p_values(self, X) -> np.ndarray:
        """Conformal p-values ``[rows]`` in (0, 1]: the chance that a normal row scores so low (``calibration.p_values``).

        The calibration rows are those that ``fit`` has held out or left out one by one (``calibration_scores_``); the least value is
        ``1 / (1 + their number)``. They are valid as far as new normal rows resemble the training rows.
        """
        scores = self.score_samples(X)  # first: unfitted, it raises NotFittedError
        return p_values(self.calibration_scores_, scores)

    def discoveries(self, X, alpha: float = 0.1) -> np.ndarray:
        """The rows of this batch to report, bool ``[rows]``, of which on average at most the share ``alpha`` is normal.

        Benjamini & Hochberg's procedure on the p-values (``calibration.benjamini_hochberg``).
        """
        return benjamini_hochberg(self.p_values(X), alpha)


@jax.jit
def _where(scorer: Any, rows):
    return scorer.where(rows)


def on_device(scorer: Any) -> Any:
    """The arrays of a scorer as JAX's, so that they do not travel with every batch."""
    return jax.device_put(scorer)  # jnp.asarray would compile a program for every shape


def check_training_data(detector, X, *, allow_images: bool = False) -> np.ndarray:
    """The rows as a finite float32 or float64 array with at least 2 rows; records their width on ``detector``.

    Sets ``n_features_in_`` (and ``feature_names_in_`` for data frames), as every scikit-learn estimator does. With
    ``allow_images=True`` rows of any rank pass, ``[rows, ...]``, and their shape is kept as ``sample_shape_``. Tables
    of integers become float64, images of integers float32 (which holds every 8- and 16-bit value exactly).

    Raises:
        ValueError: a false alarm rate outside ``[0, 0.5]``; a single row, no column, NaN, infinity, text, sparse or wrongly ranked input.
    """
    _check_rate(
        getattr(detector, "false_alarm_rate", 0.0)
    )  # the threshold comes last, after a training: too late to say this
    use_compilation_cache()
    gaps = _gaps(detector)
    checked = validate_data(
        detector, X, ensure_min_samples=2, allow_nd=allow_images, dtype="numeric", ensure_all_finite=gaps, reset=True
    )
    X = _as_float(checked)
    if X.ndim == 2 and float(np.nanmax(np.abs(X), initial=0.0)) > LARGEST:
        raise too_far(X)
    # Only what no measurement is: features of a network that hardly ever answer have values a thousand times the usual.
    for doubt in fill_values(X, getattr(detector, "feature_names_in_", None), 1e6) if X.ndim == 2 else ():
        warnings.warn(doubt, stacklevel=4)
    if allow_images:
        detector.sample_shape_ = X.shape[1:]
    return X


def check_scoring_data(detector, X) -> np.ndarray:
    """The rows to score as a finite float array, of the width (or ``sample_shape_``) the detector was fitted on.

    Raises:
        NotFittedError: the detector has not been fitted.
        ValueError: rows of another shape, NaN, infinity, text, sparse or no rows.
    """
    check_is_fitted(detector)
    expected = getattr(detector, "sample_shape_", ())
    # validate_data compares axis 1 alone: without this, images of another width pass as long as their height is right.
    if len(expected) > 1 and (shape := np.asarray(X).shape[1:]) != expected:
        raise ValueError(
            f"{type(detector).__name__} was fitted on rows of shape {expected}, got rows of shape {shape}; "
            "resize the rows or fit again"
        )
    checked = validate_data(
        detector, X, allow_nd=len(expected) > 1, dtype="numeric", ensure_all_finite=_gaps(detector), reset=False
    )
    return _as_float(checked)


def _gaps(detector) -> Any:
    """What scikit-learn is told about NaN: let it pass where a detector's setting says so."""
    return "allow-nan" if getattr(detector, "allow_gaps", False) else True


def _check_rate(false_alarm_rate):
    # Written so that NaN fails too.
    if not 0.0 <= false_alarm_rate <= 0.5:
        raise ValueError(f"false_alarm_rate is a share of normal rows between 0 and 0.5, got {false_alarm_rate=}")


def _as_float(X) -> np.ndarray:
    """float32 and float64 pass unchanged; other numbers become float64, in images (bytes, and many) float32."""
    X = np.asarray(X)
    if X.dtype in (np.float32, np.float64):
        return X
    return X.astype(np.float32 if X.ndim > 2 else np.float64)


# --------------------------------------------------------------------------------------------------------- other packages'

ENTRY_POINTS = "jaxad.detectors"


@cache
def listed_elsewhere() -> dict[str, Callable[[int], Detector]]:
    """Detectors that installed packages list under the entry point ``jaxad.detectors``: ``{name: factory(seed)}``.

    One line in the other package's pyproject.toml, ``[project.entry-points."jaxad.detectors"]``: ``median = "their_package:make"``.
    """
    return {point.name: point.load() for point in entry_points(group=ENTRY_POINTS)}
