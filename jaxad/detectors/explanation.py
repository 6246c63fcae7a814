"""Why does a row score so high? Contributions that add up to the score.

Three kinds. ``error_contributions`` takes a diffusion detector's score apart exactly, by level and by element, for the price of the score
itself. ``gradients`` says how fast the score rises with each value, for every scorer. ``shapley_contributions`` works for every detector:
it walks from a reference row to the row in question, one feature (or patch of pixels) at a time, and books each step's change of the
score on what was changed (Strumbelj & Kononenko 2014). Whatever the order, the steps add up; the average over orders is the Shapley value.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxad.detectors.estimator import Detector, apply
from jaxad.detectors.search import known, nearest_index

ROWS_AT_ONCE = 4096


class Explanation(NamedTuple):
    """``base [rows]`` plus the sum of ``contributions [rows, ...]`` over all other axes is the anomaly score, ``-score_samples``."""

    base: np.ndarray
    contributions: np.ndarray


def error_contributions(detector: Any, X) -> Explanation:
    """What every level and every element (column; pixel and channel) contributes to a denoising or reconstruction error.

    The score is a mean over levels of ``(e_l - m_l) / s_l``, and ``e_l`` is a mean over elements, so it falls apart into levels and
    elements without a remainder: contributions ``[rows, levels, *sample]``, base 0. A positive one is more error than the held-out normal
    rows average over their elements. With the combination ``total`` they are the errors themselves.

    Raises:
        ValueError: a detector whose scorer has no ``contributions``, whose score is not ``denoising_error`` or ``reconstruction_error``,
            or whose combination is neither ``z_mean`` nor ``total``: set them and calibrate, or use ``shapley_contributions``; bad rows
            as in ``score_samples``.

    >>> from jaxad import DiffusionDetector
    >>> from jaxad.denoisers import MLP
    >>> rows = np.random.default_rng(0).normal(size=(200, 3))
    >>> detector = DiffusionDetector(MLP(width=16, depth=1), num_steps=50).fit(rows)
    >>> base, contributions = error_contributions(detector, rows[:2])
    >>> contributions.shape, bool(np.allclose(base + contributions.sum(axis=(1, 2)), -detector.score_samples(rows[:2]), atol=1e-4))
    ((2, 10, 3), True)
    """
    if not hasattr(getattr(detector, "scorer_", None), "contributions"):
        raise ValueError(
            f"the score of a {type(detector).__name__} is no sum over levels and elements: use shapley_contributions"
        )
    contributions = detector._scored(X, apply, Partial(_contributions, detector.scorer_)).astype(np.float64)
    return Explanation(np.zeros(len(contributions)), contributions)


def _contributions(scorer, rows):
    return scorer.contributions(rows)


def gradients(detector: Any, X) -> np.ndarray:
    """How fast does the anomaly score rise with every value of ``X [rows, *sample]``? ``[rows, *sample]``, per unit of the data.

    By automatic differentiation of the scorer. Where a score goes in steps (ranks), it is 0.

    Raises:
        ValueError: a detector without a scorer of single rows; bad rows as in ``score_samples``.

    >>> from jaxad import SquaredNorm
    >>> gradients(SquaredNorm().fit(np.eye(2)), [[3.0, -1.0]]).tolist()
    [[6.0, -2.0]]
    """
    if getattr(detector, "scorer_", None) is None:
        raise ValueError(f"a {type(detector).__name__} has no scorer to differentiate: use shapley_contributions")
    found = detector._scored(X, apply, Partial(_gradients, detector.scorer_))
    return found / detector.standardiser_.scale


def _gradients(scorer, rows):
    # A row's score depends on that row alone, so the gradient of the sum holds every row's own.
    return jax.grad(lambda rows: jnp.sum(scorer(rows)))(rows)


def shapley_contributions(
    detector: Detector,
    X,
    reference,
    *,
    groups: np.ndarray | None = None,
    num_orders: int = 4,
    seed: int = 0,
) -> Explanation:
    """What every feature contributes to the score of ``X [rows, *sample]``, against reference rows: ``[rows, groups]``.

    ``base`` is the anomaly score of the reference. Orders come in pairs, each with its reverse, the same for all rows; with one pair the
    sum is exact and the single values still vary with ``seed``. Scores ``num_orders * groups`` changed copies of every row.

    Args:
        detector: anything with ``score_samples``, fitted.
        X: rows to explain.
        reference: one row for each of ``X``, or one for all: ``nearest_normal(X, normal rows)`` answers what sets a row apart from its
            nearest normal neighbour.
        groups: which elements move together, whole numbers from 0 in the shape of a row (``patches`` for pictures); None: each its own.
        num_orders: walks averaged, an even number.

    Raises:
        ValueError: reference or groups of another shape, an odd number of orders; whatever ``score_samples`` refuses.

    >>> from jaxad import SquaredNorm
    >>> detector = SquaredNorm().fit(np.eye(3))
    >>> base, contributions = shapley_contributions(detector, [[3.0, 0.0, 1.0]], np.zeros(3))
    >>> base.tolist(), contributions.tolist()
    ([0.0], [[9.0, 0.0, 1.0]])
    """
    X = np.asarray(X)
    shape = X.shape[1:]
    reference = np.asarray(reference)
    if reference.shape not in (X.shape, shape):
        raise ValueError(
            f"reference must be one row of shape {list(shape)} or one for each of the {len(X)} rows, got shape {list(reference.shape)}"
        )
    reference = np.broadcast_to(reference, X.shape)
    groups = np.arange(int(np.prod(shape))).reshape(shape) if groups is None else np.asarray(groups)
    if groups.shape != shape or not np.issubdtype(groups.dtype, np.integer) or groups.min() < 0:
        raise ValueError(
            f"groups must be whole numbers from 0 of shape {list(shape)}, got {groups.dtype} {list(groups.shape)}"
        )
    if num_orders < 2 or num_orders % 2:
        raise ValueError(
            f"orders come in pairs, each with its reverse: num_orders must be even and at least 2, got {num_orders}"
        )
    count = int(groups.max()) + 1
    rng = np.random.default_rng(seed)
    base, whole = (-np.asarray(detector.score_samples(rows), np.float64) for rows in (reference, X))
    contributions = np.zeros((len(X), count))
    for order in _orders(rng, count, num_orders):
        place = np.argsort(order)[groups]  # when an element is changed
        before = base
        for step, group in enumerate(order):
            last = step + 1 == count
            after = whole if last else -_scored(detector, np.where(place <= step, X, reference))
            contributions[:, group] += (after - before) / num_orders
            before = after
    return Explanation(base, contributions)


def _orders(rng, count: int, num_orders: int) -> Sequence[np.ndarray]:
    halves = [rng.permutation(count) for _ in range(num_orders // 2)]
    return [order for half in halves for order in (half, half[::-1])]


def _scored(detector, rows) -> np.ndarray:
    pieces = [detector.score_samples(rows[start : start + ROWS_AT_ONCE]) for start in range(0, len(rows), ROWS_AT_ONCE)]
    return np.concatenate(pieces).astype(np.float64)


def nearest_normal(X, normal) -> np.ndarray:
    """For every row of ``X [rows, *sample]`` the nearest of ``normal [others, *sample]``, in units of each element's spread there.

    Raises:
        ValueError: rows of another shape, or no normal row.

    >>> nearest_normal(np.array([[0.0, 9.0]]), np.array([[0.0, 1.0], [1.0, 1.0], [5.0, 0.0]])).tolist()
    [[0.0, 1.0]]
    """
    X, normal = np.asarray(X), np.asarray(normal)
    if not len(normal) or normal.shape[1:] != X.shape[1:]:
        raise ValueError(f"expected normal rows of shape {list(X.shape[1:])}, got shape {list(normal.shape)}")
    flat = normal.reshape(len(normal), -1).astype(np.float64)
    std = flat.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    # Measured from the middle of the normal rows: float32 has few digits.
    centre = flat.mean(axis=0)
    among = known((flat - centre) / std)
    queries = jnp.asarray((X.reshape(len(X), -1) - centre) / std, jnp.float32)
    return normal[np.asarray(nearest_index(among, queries))]


def patches(shape: tuple[int, int, int], size: int) -> np.ndarray:
    """Groups for pictures ``[height, width, channels]``: squares of ``size`` pixels, numbered row by row, all channels together.

    >>> patches((4, 4, 1), 2)[:, :, 0].tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    """
    height, width, channels = shape
    across = -(-width // size)
    group = (np.arange(height) // size)[:, None] * across + np.arange(width) // size
    return np.repeat(group[:, :, None], channels, axis=2)
