"""Time series: several views of what is normal in a stretch of time, each calibrated on stretches it has not seen, one score a point.

A series is ``[time, channels]``. A view gives every *window* (so many points in a row) or every point a number, larger = more anomalous:

    nearest    distance to the five nearest windows of training, 64 points long
    shape      the same after each channel's level in the window is taken out
    long       as nearest, 256 points long
    forecast   squared error of a linear forecast from the last 16 points of all channels, in units of its spread in training
    patterns   what is left of a window outside the principal components of training windows
    clusters   distance to the nearest of ten mean windows, 40 points long, channels by their range

One channel is seen by the first three: its windows are few kinds of shapes, and training holds them all. Eight and more are seen by the
last three: windows of many channels never come back, but channels hang together. Two to seven: by both, by the logarithm of their
number. Chosen on one half of 180 public series and confirmed on the other (docs/series.md).

What a window says is spread over its points (the mean over all windows that hold a point), turned into evidence (``evidence.Evidence``),
added up over views, and smoothed over 32 points. With ``causal`` a point is judged by the windows that *end* at it alone, and smoothed over
points before it: what a stream can know.
"""

import dataclasses
import math
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int
from sklearn.utils import check_random_state

from jaxad.detectors.completion import Completion, filled, fit_completion
from jaxad.detectors.estimator import Estimator, Learned, apply, check_scoring_data
from jaxad.detectors.evidence import Evidence, EvidenceByShare
from jaxad.detectors.scorer import Scorer, static
from jaxad.detectors.search import padded_size
from jaxad.detectors.windows import (
    LAGS,
    MOST_INPUTS,
    MOST_WINDOWS,
    added,
    clusters_view,
    forecast_view,
    nearest_view,
    patterns_view,
)
from jaxad.runtime.sharding import fetch
from jaxad.standardiser import Standardiser

NAMES = ("nearest", "shape", "long", "forecast", "patterns", "clusters")

WINDOW, LONG, SHORT = 64, 256, 40
"""Points of the windows; of short series at most a quarter."""

SMOOTHING = 32
FOLDS = 3
FARTHEST = 10.0
"""Standardised values beyond count by their logarithm."""

FLOOR = 0.15
"""A channel's spread is at least so large a share of its range: bits that hardly ever change do not drown all else."""

HIDDEN = (0.07, 0.15, 0.28, 0.42, 0.6)
"""Where values may be missing, these shares of normal points are hidden to see what is usual then."""

NEAR, MOST_FAR, ROUNDING = 4, 0.05, 1e-3
"""What fills a gap says something up to so many points from what is there; a window in which more than this share is farther counts for
nothing."""

FEWEST_POINTS = 32
MOST_CHANNELS = 1024
CHUNKS = (256, 1024, 4096)
"""Points scored at once: few sizes, so few compiled programs."""


class Stretch(NamedTuple):
    """Consecutive points, perhaps with padding on both sides."""

    rows: Float[Array | np.ndarray, "..."]
    """[time, channels], standardised."""
    begin: Int[Array | np.ndarray, ""]
    end: Int[Array | np.ndarray, ""]
    """Points before the first and from the last of these on are padding."""


class StreamState(NamedTuple):
    """What a stream remembers."""

    raw: Float[Array | np.ndarray, "..."]
    """[a little more, channels]: the last points, standardised, NaN for gaps and for what has not been seen."""
    rows: Float[Array | np.ndarray, "..."]
    """[longest window, channels]: the same without gaps."""
    count: Int[Array | np.ndarray, ""]
    """How many there have been."""
    said: Float[Array | np.ndarray, "..."]
    """[32]: the evidence of the last points, not yet smoothed."""


class SeriesViews(Scorer):
    """What each view says of every point, in its own units; NaN where it knows too little to say anything."""

    each: tuple
    names: tuple[str, ...] = static()
    windows: tuple[int, ...] = static()
    """Points that each view looks at in one piece; a forecast's error is of the last of them alone."""
    causal: bool = static(default=False)
    completion: Completion | None = None
    """None: there are no gaps."""

    def __call__(self, stretch: Stretch) -> Float[Array, "views time"]:
        """Of all channels together."""
        rows, far = self.filled(stretch), self._far(stretch)
        return jnp.stack([self._of_points(number, of(rows), stretch, far) for number, of in enumerate(self.each)])

    def parts(self, stretch: Stretch) -> Float[Array, "views time channels"]:
        """Of each channel; 0 where nothing is known."""
        rows, far = self.filled(stretch), self._far(stretch)
        found = [self._of_points(number, of.parts(rows), stretch, far) for number, of in enumerate(self.each)]
        return jnp.nan_to_num(jnp.stack(found))

    def last(self, rows: Float[Array, "time channels"], far: Any, count: Any) -> Float[Array, " views"]:
        """Of the windows that end at the last point, of which ``count`` have been seen."""
        said = []
        for of, window in zip(self.each, self.windows, strict=True):
            known = count >= window
            if far is not None:
                known &= jnp.sum(far[-window:]) <= MOST_FAR * window + ROUNDING
            said.append(jnp.where(known, of(rows[-window:])[0], jnp.nan))
        return jnp.stack(said)

    def filled(self, stretch: Stretch) -> Float[Array, "time channels"]:
        """Without gaps."""
        rows = jnp.asarray(stretch.rows)
        return rows if self.completion is None else self.completion(rows, _there(stretch)[:, None] & ~jnp.isnan(rows))

    def missing(self, gaps: Any, there: Any) -> Float[Array, " time"]:
        """What share of the values near a point is missing, of those that count: in the 64 points up to it, or around it.

        ``gaps [time, channels]``, ``there [time]``: the points that have been.
        """
        far = far_share(gaps, self.causal)
        before = WINDOW - 1 if self.causal else WINDOW // 2
        near = jnp.mean(gaps.astype(jnp.float32), axis=1) - far
        return _mean_over(near / jnp.maximum(1 - far, 1e-6), there * (1 - far), before, WINDOW - 1 - before)

    def _far(self, stretch: Stretch) -> Any:
        """The share of a point's values that are missing and far from all that is there: what fills them says nothing. None: no gaps."""
        if self.completion is None:
            return None
        return far_share(_gaps(stretch), self.causal)

    def _of_points(self, number: int, values, stretch: Stretch, far):
        """From windows to points. The first of the windows ends at point window - 1."""
        window = self.windows[number]
        values = jnp.concatenate([jnp.zeros((window - 1, *values.shape[1:]), values.dtype), values])
        time = jnp.arange(values.shape[0])
        whole = (time >= stretch.begin + window - 1) & (time < stretch.end)
        if far is not None:
            whole &= added(jnp.pad(far, (window - 1, 0)), window) <= MOST_FAR * window + ROUNDING
        if self.causal or self.names[number] == "forecast":
            return jnp.where(_beside(whole, values), values, jnp.nan)
        return _mean_over(values, whole, 0, window - 1, otherwise=jnp.nan)

    @property
    def longest(self) -> int:
        """Window, in points."""
        return max(self.windows)

    @property
    def reach(self) -> tuple[int, int]:
        """How many points before and after a point count for it."""
        before, after = (0, 0) if self.completion is None else (self.completion.before, self.completion.after)
        if self.causal:
            return self.longest - 1 + before, 0
        return self.longest - 1 + before, self.longest - 1 + after


def far_share(gaps: Any, causal: bool) -> Any:
    """Of gaps ``[time, channels]``: the share of every point's values with nothing there in the last (or next) few points, ``[time]``."""
    time = jnp.arange(gaps.shape[0])[:, None]
    never = 2 * gaps.shape[0]
    since = time - jax.lax.cummax(jnp.where(gaps, -never, time), axis=0)
    if not causal:
        since = jnp.minimum(since, jax.lax.cummin(jnp.where(gaps, never, time), axis=0, reverse=True) - time)
    return jnp.mean((since > NEAR).astype(jnp.float32), axis=1)


class Series(Scorer):
    """The evidence of all views in one number a point: of a whole series ``[time, channels]``, or of a ``Stretch`` of one."""

    views: SeriesViews
    evidence: Evidence | EvidenceByShare
    weights: Float[Array | np.ndarray, "..."]
    usual: Float[Array | np.ndarray, "..."]
    """[views, channels]: what a channel's part of what a view says usually is, at most (nine tenths of normal points)."""
    whole: EvidenceByShare | None = None
    """What a score says where a share of the values is missing; None where nothing may be."""

    def __call__(self, series: Any) -> Float[Array, " time"]:
        """How anomalous is every point? Larger = more."""
        stretch = self._stretch(series)
        return self.combined(self.said(stretch), stretch)[: _length(series)]

    def said(self, stretch: Stretch) -> Float[Array, "distances time"]:
        """What the views say and, where values may be missing, their share."""
        values = self.views(stretch)
        if self.views.completion is None:
            return values
        return jnp.concatenate([values, self.views.missing(_gaps(stretch), _there(stretch))[None]])

    def combined(self, said: Float[Array, "distances time"], stretch: Stretch) -> Float[Array, " time"]:
        """The score of what has been said."""
        score = self._smooth(jnp.sum(self._weighted(said), axis=0), stretch)
        return score if self.whole is None else self.whole(jnp.stack([score, said[-1]], axis=1))[0]

    def where(self, series: Any) -> Float[Array, "time channels"]:
        """The same by channel: the parts add up to the score."""
        stretch = self._stretch(series)
        said = self.said(stretch)
        weighted = self._weighted(said)
        # A channel's share of what a view says is by how many times its part is what it usually is.
        times = self.views.parts(stretch) / self.usual[:, None] + 1e-6
        shares = times / jnp.sum(times, axis=2, keepdims=True)
        found = self._smooth(jnp.sum(weighted[:, :, None] * shares, axis=0), stretch)
        if self.whole is not None:
            score = jnp.sum(found, axis=1)
            found = found * (self.combined(said, stretch) / jnp.maximum(score, 1e-9))[:, None]
        return found[: _length(series)]

    def init(self) -> StreamState:
        """The state of a stream of which nothing has been seen.

        Raises:
            ValueError: a scorer that judges a point by what follows: fit with ``causal=True``.
        """
        if not self.views.causal:
            raise ValueError("a stream knows nothing of what follows: fit the detector with causal=True")
        channels = self.usual.shape[-1]
        raw = jnp.full((self.views.longest + NEAR, channels), jnp.nan)
        rows = jnp.zeros((self.views.longest, channels))
        return StreamState(raw, rows, jnp.zeros((), jnp.int32), jnp.zeros(SMOOTHING))

    def step(self, state: StreamState, point: Float[Array, " channels"]) -> tuple[StreamState, Float[Array, ""]]:
        """``(state, score)`` after one more point ``[channels]``, standardised: pure, in constant memory, the batch's score of that point.

        ``jax.lax.scan(scorer.step, scorer.init(), series)`` scores a series; ``jax.vmap`` over states and points, a fleet.
        """
        raw, count, far = jnp.concatenate([state.raw[1:], point[None]]), state.count + 1, None
        if (completion := self.views.completion) is not None:
            window = raw[-completion.basis.shape[0] :]
            point = jnp.where(jnp.isnan(point), completion.expected(jnp.nan_to_num(window), ~jnp.isnan(window)), point)
            far = far_share(jnp.isnan(raw), causal=True)
        rows = jnp.concatenate([state.rows[1:], point[None]])
        said = self.views.last(rows, far, count)
        if completion is not None:
            seen = jnp.arange(WINDOW + NEAR) >= WINDOW + NEAR - jnp.minimum(count, WINDOW)
            said = jnp.concatenate([said, self.views.missing(jnp.isnan(raw[-WINDOW - NEAR :]), seen)[-1:]])
        now = self.weights @ self._evidence(said[:, None])[:, 0]
        kept = jnp.concatenate([state.said[1:], now[None]])
        there = jnp.arange(SMOOTHING) >= SMOOTHING - count
        score = jnp.sum(jnp.where(there, kept, 0.0)) / jnp.minimum(count, SMOOTHING)
        if self.whole is not None:
            score = self.whole(jnp.stack([score, said[-1]])[None])[0, 0]
        return StreamState(raw, rows, count, kept), score

    @property
    def reach(self) -> tuple[int, int]:
        """How many points before and after a point count for it."""
        before, after = self.views.reach
        before, after = max(before, WINDOW - 1), after if self.views.causal else max(after, WINDOW)
        return before + self._before, after + SMOOTHING - 1 - self._before

    @property
    def _before(self) -> int:
        return SMOOTHING - 1 if self.views.causal else SMOOTHING // 2

    def _stretch(self, series) -> Stretch:
        """As long as the longest window at least."""
        if isinstance(series, Stretch):
            return series
        padded = jnp.pad(series, ((0, max(self.views.longest - len(series), 0)), (0, 0)))
        return Stretch(padded, jnp.zeros((), jnp.int32), jnp.full((), len(series), jnp.int32))

    def _weighted(self, said):
        """The evidence of each view; 1, as of a usual point, where it knows nothing."""
        return jnp.asarray(self.weights)[:, None] * self._evidence(said)

    def _evidence(self, said):
        unknown = jnp.isnan(said[: len(self.weights)])
        return jnp.where(unknown, 1.0, self.evidence(jnp.nan_to_num(said).T))

    def _smooth(self, values, stretch: Stretch):
        return _mean_over(values, _there(stretch), self._before, SMOOTHING - 1 - self._before)


def _gaps(stretch: Stretch):
    return jnp.isnan(stretch.rows) | ~_there(stretch)[:, None]


def _there(stretch: Stretch):
    time = jnp.arange(stretch.rows.shape[0])
    return (time >= stretch.begin) & (time < stretch.end)


def _length(series: Any) -> int | None:
    return None if isinstance(series, Stretch) else len(series)


def _beside(flags, values):
    return flags.reshape(-1, *(1,) * (values.ndim - 1))


def _mean_over(values, there, before: int, after: int, otherwise: float = 0.0):
    """Of every point, the mean of those values near it that are there; ``otherwise`` where none is."""
    weight = there.astype(values.dtype)
    padding = ((before, after),) + ((0, 0),) * (values.ndim - 1)
    total = added(jnp.pad(values * _beside(weight, values), padding), before + after + 1)
    count = added(jnp.pad(weight, (before, after)), before + after + 1)
    count = _beside(count, values)
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), otherwise)


# ------------------------------------------------------------------------------------------------------------------ the fit


def view_weights(channels: int) -> dict[str, float]:
    """How much each view counts, by the number of channels: 1 for one kind of views or the other, or shares of 1.

    >>> {name: round(weight, 2) for name, weight in view_weights(4).items()}
    {'nearest': 0.33, 'shape': 0.33, 'long': 0.33, 'forecast': 0.67, 'patterns': 0.67, 'clusters': 0.67}
    """
    many = min(math.log(channels) / math.log(8), 1.0)
    weights = dict.fromkeys(NAMES[:3], 1.0 - many) | dict.fromkeys(NAMES[3:], many)
    return {name: weight for name, weight in weights.items() if weight > 0}


class SeriesDetector(Estimator):
    """Stretches of a time series that are unlike all it was fitted on: the recommended detector for series.

    ``X`` is ``[time, channels]``, points in order and evenly spaced; ``score_samples`` gives a number a point, larger = more normal. What
    is looked at, and how views are weighed, is said in ``jaxad.detectors.series``. Nothing needs to be chosen.

    Args:
        views: names of the views to use, each weighing the same; None: by the number of channels. One alone is a method of its own:
            patterns is PCA on windows, nearest kNN on windows, forecast a ridge regression, clusters k-means on windows.
        causal: judge a point by what came before it alone, as a stream has to; otherwise by what follows as well.
        allow_gaps: may values be missing, NaN, in training or later? They are filled with what is expected given the points around
            (``detectors.completion``), and a score is compared with those of normal points near which as much is missing. False: NaN is
            refused.
        false_alarm_rate: share of normal points that ``predict`` may flag.
        random_state: seed of the clusters and of the search for components.

    Attributes:
        scorer_: a ``Series``, a pure function of a whole standardised series, or of a ``Stretch`` of it.

    Raises:
        ValueError: from ``fit``: fewer than 32 points, more than 1,024 channels, values that are not finite.

    >>> time = np.arange(1000)
    >>> wave = np.sin(2 * np.pi * time / 50)[:, None]
    >>> detector = SeriesDetector().fit(wave)
    >>> broken = wave.copy()
    >>> broken[500:520] = 0.0
    >>> scores = detector.score_samples(broken)
    >>> bool(490 < scores.argmin() < 530)
    True
    """

    rows_stand_alone: ClassVar[bool] = False
    """A point's score depends on those around it: no program of single rows can give it."""
    views: Any = None
    causal: bool = False
    allow_gaps: bool = False
    false_alarm_rate: float = 0.05
    random_state: Any = 0

    def _learn(self, X):
        count, channels = X.shape
        if count < FEWEST_POINTS:
            raise ValueError(f"a series to learn from has at least {FEWEST_POINTS} points, got {count}")
        if channels > MOST_CHANNELS:
            raise ValueError(
                f"a series has at most {MOST_CHANNELS} channels, got {channels}: fit one detector for each group of them"
            )
        if self.views is not None and (not len(self.views) or {*self.views} - {*NAMES}):
            raise ValueError(f"views are some of {', '.join(NAMES)}, or None, got {self.views!r}")
        if (empty := np.flatnonzero(np.isnan(X).all(axis=0))).size:
            raise ValueError(f"channel {empty[0]} holds no value: leave it out")
        standardiser, share = _scale_of(X)
        rows = standardiser(X)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        whole = self._views([rows], share, count, seed)
        bounds = np.linspace(0, count, FOLDS + 1).astype(int)
        rng, measured, parts = np.random.default_rng(seed), [], []
        for begin, end in pairwise(bounds):
            rest = [part for part in (rows[:begin], rows[end:]) if len(part) > whole.longest]
            without = self._views(rest or [rows], share, count, seed)
            # Where values may be missing, points with more of them missing are measured as well.
            found = [rows[begin:end], *(_with_gaps(rows[begin:end], rng) if self.allow_gaps else ())]
            each = [over_stretches(Partial(_said_of, without), of, whole.reach) for of in found]
            measured.append([said for said, _ in each])
            parts.append(each[0][1])
        usual = np.quantile(np.concatenate(parts), 0.9, axis=0)
        usual = np.maximum(usual, 1e-3 * np.maximum(usual.mean(axis=1, keepdims=True), 1e-9)).astype(np.float32)
        weights = np.array(list(self._weights(channels).values()), np.float32)
        scorer = Series(whole, _evidence([said for fold in measured for said in fold], self.allow_gaps), weights, usual)
        scores = [
            [over_stretches(Partial(_combined, scorer), said, scorer.reach) for said in fold] for fold in measured
        ]
        if not self.allow_gaps:
            return Learned(standardiser, scorer, np.concatenate([each for (each,) in scores]))
        pairs = [
            [np.stack([score, said[:, -1]], axis=1) for score, said in zip(*fold, strict=True)]
            for fold in zip(scores, measured, strict=True)
        ]
        by_share = EvidenceByShare.fit(np.concatenate([each for fold in pairs for each in fold]))
        normal = np.asarray(by_share(jnp.asarray(np.concatenate([fold[0] for fold in pairs]), jnp.float32)))[0]
        return Learned(standardiser, dataclasses.replace(scorer, whole=by_share), normal)

    def _weights(self, channels: int) -> dict[str, float]:
        return view_weights(channels) if self.views is None else dict.fromkeys(self.views, 1.0)

    def _views(self, segments, share, count: int, seed: int) -> SeriesViews:
        """All views that weigh something, of points in order; ``count`` points in all decide the sizes, so that folds share programs."""
        channels = segments[0].shape[1]
        completion, most = None, max(len(rows) for rows in segments)
        if self.allow_gaps:
            completion = fit_completion(segments, min(WINDOW, count // 4, most), self.causal, seed)
            segments = [np.asarray(filled(completion, rows)) for rows in segments]
        window, long, short = (min(size, count // 4, most) for size in (WINDOW, LONG, SHORT))
        lags = max(1, min(LAGS, MOST_INPUTS // channels, count // 8))
        size = padded_size(min(count, MOST_WINDOWS))
        make = {
            "nearest": (lambda: nearest_view(segments, window, False, size, seed), window),
            "shape": (lambda: nearest_view(segments, window, True, size, seed), window),
            "long": (lambda: nearest_view(segments, long, False, size, seed), long),
            "forecast": (lambda: forecast_view(segments, lags), lags + 1),
            "patterns": (lambda: patterns_view(segments, window, seed), window),
            "clusters": (lambda: clusters_view(segments, share, short, seed), short),
        }
        names = tuple(self._weights(channels))
        each, windows = tuple(make[name][0]() for name in names), tuple(make[name][1] for name in names)
        return SeriesViews(each, names, windows, self.causal, completion)

    def _keep(self, learned: Learned):
        super()._keep(learned)
        # A channel's part is never more than the score.
        self.where_threshold_ = float(-self.offset_ if np.isfinite(self.offset_) else -self.calibration_scores_.min())
        return self

    def _scored(self, X, call, function: Any = None) -> Any:
        rows = self.standardiser_(check_scoring_data(self, X))
        function = self.scorer_ if function is None else function
        return over_stretches(function, rows, self.scorer_.reach, call)


def _said_of(views: SeriesViews, stretch: Stretch):
    said = views(stretch).T
    if views.completion is not None:
        said = jnp.concatenate([said, views.missing(_gaps(stretch), _there(stretch))[:, None]], axis=1)
    return said, views.parts(stretch).transpose(1, 0, 2)


def _evidence(measured: list[np.ndarray], gaps: bool) -> Evidence | EvidenceByShare:
    """Of stretches of normal points ``[time, views]``, with gaps the share that is missing behind; what is not known is left out."""
    rows = np.concatenate(measured)
    if gaps:
        return EvidenceByShare.fit(rows[~np.isnan(rows).any(axis=1)])
    return Evidence.fit([of[~np.isnan(of)] for of in rows.T])


def _with_gaps(rows: np.ndarray, rng) -> list[np.ndarray]:
    """The same rows with values hidden at random, each time another share."""
    return [np.where(rng.uniform(size=rows.shape) < share, np.nan, rows) for share in HIDDEN]


def _combined(of: Series, stretch: Stretch):
    return of.combined(jnp.asarray(stretch.rows).T, stretch)


def _scale_of(X: np.ndarray) -> tuple[Standardiser, np.ndarray]:
    """``(the scale of each channel, what share of its range one of its units is)``."""
    mean, std = np.nanmean(X, axis=0, dtype=np.float64), np.nanstd(X, axis=0, dtype=np.float64)
    extent = (np.nanmax(X, axis=0) - np.nanmin(X, axis=0)).astype(np.float64)
    scale = np.maximum(std, FLOOR * extent)
    varies = scale > 1e-12 * np.maximum(np.abs(mean), 1.0)
    scale = np.where(varies, scale, 1.0)
    return Standardiser(np.asarray(mean), scale, FARTHEST), scale / np.where(varies, extent, 1.0)


def over_stretches(function: Any, rows: np.ndarray, reach: tuple[int, int], call: Any = apply) -> Any:
    """``call(function, stretch)`` over a series ``[time, channels]`` in pieces that overlap, memory flat in its length; on the host.

    ``reach`` is how many points before and after a point count for it.
    """
    most = next((size for size in CHUNKS if size >= len(rows)), CHUNKS[-1])
    before, after = reach
    pieces = []
    for start in range(0, len(rows), most):
        low, high = max(start - before, 0), min(start + most + after, len(rows))
        padded = np.zeros((before + most + after, rows.shape[1]), np.float32)
        begin = before - (start - low)
        padded[begin : begin + high - low] = rows[low:high]
        stretch = Stretch(padded, *np.array([begin, begin + high - low], np.int32))
        with jax.default_matmul_precision("highest"):
            found = fetch(call(function, stretch))
        kept = slice(before, before + min(most, len(rows) - start))
        pieces.append(jax.tree.map(lambda leaf: leaf[kept], found))  # noqa: B023
    return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)
