"""Numbers one can act on: p-values, thresholds with a stated rate of false alarms, reports with a stated share of false discoveries.

**The sign**: every function takes scores as ``score_samples`` gives them, *larger = more normal*. A p-value is small for an anomaly.

All promises rest on one assumption: the calibration rows are normal rows that the detector was *not* fitted on, and new normal rows are
*exchangeable* with them. Anomalies among the calibration rows make p-values larger, which is safe. Drift, and rows that resemble their
neighbours in time, break the assumption: see ``run_aci`` and ``spot``.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import boxcox
from sklearn.utils import check_random_state

ROUNDING = 1e-12
"""Conformal p-values lie on a lattice and often *equal* the bound they are compared with: a difference like this is arithmetic."""

FEWEST_PEAKS = 10
"""A tail of two parameters is not fitted to fewer excesses."""


def p_values(calibration_scores, scores, *, random_state=None) -> np.ndarray:
    """Conformal p-values ``[rows]`` in ``(0, 1]``: the chance that a normal row scores so low.

    ``p = (1 + #{calibration <= score}) / (n + 1)`` for n calibration scores (Vovk et al. 2005; Bates et al. 2023), so that
    ``P(p <= alpha) <= alpha`` for a new normal row, whatever the detector. The least value is ``1 / (n + 1)``. O((n + rows) log n).

    With a ``random_state`` ties, and the tie of the row with itself, are broken at random (smoothed p-values): exactly uniform for normal
    rows, and other numbers for another seed.

    Raises:
        ValueError: the scores are not two vectors of finite numbers, or one is empty (so do all functions here).

    >>> p_values([-5.0, -1.0, -2.0, -3.0], [-4.0, -9.0, 0.0]).tolist()
    [0.4, 0.2, 1.0]
    """
    ordered, scores = np.sort(finite(calibration_scores, "calibration_scores")), finite(scores, "scores")
    at_most = np.searchsorted(ordered, scores, side="right")
    if random_state is None:
        return (1 + at_most) / (len(ordered) + 1)
    below = np.searchsorted(ordered, scores, side="left")
    uniform = 1.0 - check_random_state(random_state).random_sample(len(scores))  # in (0, 1]: no p-value is 0
    return (below + uniform * (1 + at_most - below)) / (len(ordered) + 1)


def threshold(calibration_scores, alpha: float) -> float:
    """The score *below* which a row is flagged, so that a normal row is flagged with probability at most ``alpha`` in [0, 1].

    The k-th smallest of n calibration scores, ``k = floor(alpha (n + 1))``: ``score < threshold`` exactly where ``p_values <= alpha``.
    Without ties the probability is ``k / (n + 1)`` on average over calibration sets; for the one at hand the rate is distributed as
    Beta(k, n + 1 - k) around it, with a spread of about ``sqrt(alpha (1 - alpha) / n)``.

    ``-inf``, which flags nothing, where ``alpha < 1 / (n + 1)``: so few rows cannot support that rate. Raises as ``p_values``, and
    ValueError for another ``alpha``.

    >>> threshold([-5.0, -1.0, -2.0, -3.0], 0.4), threshold([-5.0, -1.0, -2.0, -3.0], 0.1)
    (-3.0, -inf)
    """
    ordered = np.sort(finite(calibration_scores, "calibration_scores"))
    check_rate(alpha)
    # The p-values themselves are compared and no product is rounded down: .29 * 100 is less than 29.
    k = np.count_nonzero(np.arange(1, len(ordered) + 2) / (len(ordered) + 1) <= alpha)
    return float(np.concatenate([[-np.inf], ordered, [np.inf]])[k])


def benjamini_hochberg(p, alpha: float, *, storey: bool = False) -> np.ndarray:
    """The rows to report, bool ``[rows]``, of which on average at most the share ``alpha`` is normal (Benjamini & Hochberg 1995).

    They are the k smallest p-values, k the largest with ``p_(k) <= k alpha / rows``. For ``p_values`` from one calibration set the mean
    share of normal rows in the report is at most ``alpha`` times their share in the batch (Bates et al. 2023); one report may hold more.
    Nothing can be reported while ``1 / (n + 1)``, the least p-value, exceeds ``alpha k / rows``: see ``fewest_calibration_rows``.

    ``storey=True`` divides ``alpha`` by an estimate of the normal share, ``(1 + #{p > .5}) / (.5 rows)``, and reports p-values up to .5
    only (Storey et al. 2004): more discoveries where many rows are anomalous. Raises as ``p_values``, and for p or ``alpha`` outside
    [0, 1].

    >>> benjamini_hochberg([0.01, 0.9, 0.04, 0.03], 0.05).tolist(), benjamini_hochberg([0.01, 0.9, 0.03, 0.03], 0.05).tolist()
    ([True, False, False, False], [True, False, True, True])
    """
    p = finite(p, "p")
    check_rate(alpha)
    if p.min() < 0.0 or p.max() > 1.0:
        raise ValueError(f"p-values lie in [0, 1], got {p.min()} to {p.max()}; p_values makes them from scores")
    ordered, rank = np.sort(p), np.arange(1, len(p) + 1)
    normal = (1 + np.count_nonzero(p > 0.5)) / 0.5 if storey else len(p)
    reached = ordered[(ordered * normal <= alpha * rank * (1 + ROUNDING)) & (ordered <= (0.5 if storey else 1.0))]
    return p <= reached[-1] if len(reached) else np.zeros(len(p), bool)


def fewest_calibration_rows(alpha: float, discoveries: int, num_tests: int) -> int:
    """Calibration rows with which ``benjamini_hochberg`` is *able* to make so many discoveries among ``num_tests`` rows.

    The smallest n with ``1 / (n + 1) <= alpha discoveries / num_tests``; it suffices if all of these rows score below every calibration
    row. ``discoveries = num_tests = 1`` gives what ``threshold`` needs to flag anything. Raises ValueError unless
    ``0 < alpha <= 1 <= discoveries <= num_tests``.

    >>> fewest_calibration_rows(0.1, discoveries=10, num_tests=1000), fewest_calibration_rows(0.05, 1, 1)
    (999, 19)
    """
    if not 0.0 < alpha <= 1.0 or not 1 <= discoveries <= num_tests:
        raise ValueError(f"need 0 < alpha <= 1 <= discoveries <= num_tests, got {alpha=}, {discoveries=}, {num_tests=}")
    return max(math.ceil(num_tests / (alpha * discoveries) * (1 - ROUNDING)) - 1, 1)


def cross_p_values(calibration_scores: Sequence, scores: Sequence) -> np.ndarray:
    """P-values ``[rows]`` from the detectors of several folds: each compares a row with those it has not seen, the counts are pooled.

    ``calibration_scores`` holds for every fold its detector's scores of the fold's own rows, ``scores [folds, rows]`` its scores of the
    rows to judge; ``p = (1 + sum_k #{calibration_k <= score_k}) / (n + 1)``, with n calibration scores in all. One fold gives ``p_values``.

    Proven is only ``P(p <= alpha) <= 2 alpha``, plus a term of order folds / n (Vovk et al. 2018; Barber et al. 2021): the detectors
    differ. It comes close to ``alpha`` in practice: for 40 Gaussian rows of 4 columns and 5 folds, .091 at .1 by kNN and .098 by
    Mahalanobis distance. Raises as ``p_values``, and where the numbers of folds differ.

    >>> cross_p_values([[-1.0, -2.0], [-10.0, -30.0]], [[-1.5, 0.0], [-20.0, 0.0]]).tolist()
    [0.6, 1.0]
    """
    if len(calibration_scores) != len(scores) or len(scores) == 0:
        raise ValueError(
            f"need both scores of every fold, got {len(calibration_scores)} calibrations, {len(scores)} scores"
        )
    calibrations = [finite(fold, "calibration_scores") for fold in calibration_scores]
    ranks = [np.rint(p_values(fold, s) * (len(fold) + 1)) for fold, s in zip(calibrations, scores, strict=True)]
    return (1 + np.sum(ranks, axis=0) - len(ranks)) / (sum(map(len, calibrations)) + 1)


class AdaptiveLevel(NamedTuple):
    """State of adaptive conformal inference: a row is flagged where ``p <= level``; ``alpha`` is the rate wanted in the long run."""

    alpha: float
    level: float


def aci_init(alpha: float) -> AdaptiveLevel:
    """Start with ``level = alpha``, in (0, 1); any other raises ValueError."""
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is a rate between 0 and 1, both excluded, got {alpha=}")
    return AdaptiveLevel(alpha, alpha)


def aci_update(state: AdaptiveLevel, error: bool, *, gamma: float = 0.01) -> AdaptiveLevel:
    """One step, ``level + gamma (alpha - error)``: every error makes the next alarm harder (Gibbs & Candes 2021, eq. 2).

    ``error``: the row was flagged, and is held to be normal. Over any T rows, *whatever the stream does*, the share of errors is within
    ``(max(alpha, 1 - alpha) + gamma) / (gamma T)`` of ``alpha`` (their proposition 4.1). The level may leave [0, 1]: nothing, or all,
    is flagged for a while. A larger ``gamma``, usually .005 to .05, follows drift faster and wavers more.

    >>> state = aci_init(0.05)
    >>> aci_update(state, True).level, round(aci_update(state, False).level, 6)
    (0.0405, 0.0505)
    """
    return state._replace(level=state.level + gamma * (state.alpha - bool(error)))


def run_aci(p, alpha: float, *, gamma: float = 0.01, labels=None) -> tuple[np.ndarray, np.ndarray]:
    """Adaptive conformal inference along a stream of p-values: ``(alarms, levels)``, bool and float ``[steps]``, the levels judged by.

    Without labels every alarm counts as an error: ``alpha`` is the long-run share of *alarms*, right or wrong, and should exceed the
    share of anomalies. Rows whose ``labels [steps]`` are 1, known anomalies, leave the level as it is: ``alpha`` is the share of alarms
    among the others. Raises as ``p_values``, and for labels of another length, ``alpha`` outside (0, 1), ``gamma`` not positive.

    >>> alarms, levels = run_aci([0.5, 0.01, 0.03], 0.05)
    >>> alarms.tolist(), levels.round(4).tolist()
    ([False, True, True], [0.05, 0.0505, 0.041])
    """
    p = finite(p, "p")
    anomalous = np.zeros(len(p), bool) if labels is None else np.asarray(labels) == 1
    if anomalous.shape != p.shape or not gamma > 0.0:
        raise ValueError(f"need labels of shape {p.shape} and gamma > 0, got shape {anomalous.shape}, {gamma=}")
    state, levels = aci_init(alpha), np.empty(len(p))
    for step in range(len(p)):
        levels[step] = state.level
        if not anomalous[step]:
            state = aci_update(state, p[step] <= state.level, gamma=gamma)
    return p <= levels, levels


def spot(initial_scores, scores, *, q: float = 1e-3, level: float = 0.98, include_alarms: bool = False):
    """Alarms along a stream from the fitted tail of its scores, at rates too small to count (SPOT; Siffer et al. 2017).

    Of minus the scores, what exceeds the initial ones' ``level`` quantile t follows a generalised Pareto distribution of shape g and
    scale s. With N excesses among n rows the limit is ``t + s / g ((q n / N)^-g - 1)`` (eq. 1). A row beyond it is an alarm, and
    forgotten; one between t and it renews the fit. The fit is Zhang & Stephens' (2009), over a hundred times faster than scipy's maximum
    likelihood, and safer: from 20 exponential excesses its limit is 3 % too high on average, the other's 6 % too low.

    **Alarms exceed q**: forgetting the normal rows that raise them shortens the tail, which raises more. Measured over 10,000 normal rows:
    2.8 q after 1,000 initial rows, 1.3 q after 10,000. ``include_alarms`` gives 1.1 q and 1.0 q.

    Args:
        initial_scores: ``score_samples`` of normal rows, 500 or more for ``level=0.98``: at least 10 must exceed the quantile.
        scores: ``score_samples`` of the stream, ``[steps]``.
        q: rate of alarms wanted among normal rows, ``0 < q < 1 - level``.
        level: quantile at which the tail begins.
        include_alarms: alarms enter the fit too. Anomalies more frequent than q then push the limit away.

    Returns ``(alarms, thresholds)``, bool and float ``[steps]``: an alarm is a *score below* the threshold of its step. Raises as
    ``p_values``, and for q or ``level`` out of range and too few or tied initial scores.

    >>> alarms, thresholds = spot(-np.random.default_rng(0).exponential(size=20_000), [-1.0, -12.0, -5.0])
    >>> alarms.tolist(), bool(abs(thresholds[0] - np.log(1e-3)) < 0.5)
    ([False, True, False], True)
    """
    initial, stream = -finite(initial_scores, "initial_scores"), -finite(scores, "scores")
    if not 0.0 < q < 1.0 - level < 1.0:
        raise ValueError(f"need 0 < q < 1 - level < 1, got {q=}, {level=}")
    start, rows = np.quantile(initial, level), len(initial)
    excesses = list(initial[initial > start] - start)
    if len(excesses) < FEWEST_PEAKS:
        raise ValueError(
            f"need {FEWEST_PEAKS} scores beyond the {level} quantile, got {len(excesses)}: more rows or a lower level"
        )

    limit, limits = start + _tail_quantile(excesses, rows * q), np.empty(len(stream))
    for step, value in enumerate(stream):
        limits[step] = limit
        if include_alarms or value <= limit:
            rows += 1
            if value > start:
                excesses.append(value - start)
                limit = start + _tail_quantile(excesses, rows * q)
    return stream > limits, -limits


def _tail_quantile(excesses, expected: float) -> float:
    """What so many of the excesses are expected to exceed, by a generalised Pareto distribution (Zhang & Stephens 2009, section 3)."""
    y, n = np.sort(excesses), len(excesses)
    size = 20 + int(math.sqrt(n))
    theta = 1 / y[-1] + (1 - np.sqrt(size / (np.arange(1, size + 1) - 0.5))) / (3 * y[int(n / 4 + 0.5) - 1])
    theta[theta == 0.0] = ROUNDING / y[-1]  # the exponential distribution, a removable 0 / 0
    k = np.log1p(-np.outer(theta, y)).mean(axis=1)
    log_likelihood = n * (np.log(-theta / k) - k - 1)
    weight = np.exp(log_likelihood - log_likelihood.max())
    theta = np.sum(theta * weight) / weight.sum()
    shape = np.log1p(-theta * y).mean()
    return float(-shape / theta * boxcox(n / expected, shape))


def finite(values, name: str) -> np.ndarray:
    """``values`` as a vector of finite float64 numbers, or a ValueError that calls them ``name``."""
    values = np.asarray(values, np.float64)
    broken = np.flatnonzero(~np.isfinite(values))
    if values.ndim != 1 or len(values) == 0 or len(broken):
        raise ValueError(
            f"{name} must be a vector of finite numbers, got shape {values.shape} with {len(broken)} non-finite values, "
            f"first at {broken[:5].tolist()}; find out why the detector gave them, no rate is meaningful until then"
        )
    return values


def check_rate(alpha):
    """Raise a ValueError unless ``alpha`` lies in [0, 1]."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is a rate between 0 and 1, got {alpha=}")
