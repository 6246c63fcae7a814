"""Time series: several views of what is normal in a stretch of time, each calibrated on stretches it has not seen, one score a point.

A series is ``[time, channels]``. A view gives every *window* (so many points in a row) or every point a number, larger = more anomalous:

    nearest    distance to the five nearest windows of training, 64 points long
    shape      the same after each channel's level in the window is taken out
    long       as nearest, 256 points long
    forecast   squared error of a linear forecast from the last 16 points of all channels, in units of its spread in training
    patterns   what is left of a window outside the principal components of training windows
    clusters   distance to the nearest of ten mean windows, 40 points long, channels by their range

One channel is seen by the first three: its windows are few kinds of shapes, and training holds them all. Eight and more are seen by the last
three: windows of many channels never come back, but channels hang together. Two to seven: by both, by the logarithm of their number.
Measured on one half of 180 public series and confirmed on the other (docs/series.md).

What a window says is spread over its points (the mean over all windows that hold a point), turned into evidence (``evidence.Evidence``),
added up over views, and smoothed over 32 points. With ``causal`` a point is judged by the windows that *end* at it alone, and smoothed over
points before it: what a stream can know.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.extmath import randomized_svd

from jaxad.detectors.estimator import Estimator, Learned, apply, check_scoring_data
from jaxad.runtime.sharding import fetch
from jaxad.detectors.evidence import Evidence
from jaxad.detectors.scorer import Scorer, root, static
from jaxad.detectors.search import Known, known, nearest_index, padded_size, squared_distances
from jaxad.standardiser import Standardiser

NAMES = ("nearest", "shape", "long", "forecast", "patterns", "clusters")

WINDOW, LONG, SHORT = 64, 256, 40
"""Points of the windows; of short series at most a quarter."""

LAGS, MOST_INPUTS = 16, 1024
"""Points a forecast looks back, fewer where the channels are so many that there would be more inputs."""

COMPONENTS, EXPLAINED = 64, 0.9
"""Principal components of windows, at most, and the share of their variance that the view of patterns takes out."""

NEIGHBOURS, CLUSTERS = 5, 10
MOST_WINDOWS, MOST_LEARNED_WINDOWS = 8192, 4096
"""Windows to measure distances to, and to learn components and clusters from."""

SMOOTHING = 32
FOLDS = 3
FARTHEST = 10.0
"""Standardised values beyond count by their logarithm."""

FLOOR = 0.15
"""A channel's spread is at least so large a share of its range: bits that hardly ever change do not drown all else."""

MOST_ERROR = 1e4
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


def along(rows: Float[Array, "time channels"], kernel: Float[Array | np.ndarray, "window channels k"]) -> Any:
    """Products of every window with the kernels: ``[time - window + 1, k]``."""
    kernel = jnp.asarray(kernel, rows.dtype)
    found = jax.lax.conv_general_dilated(rows.T[None], kernel.transpose(2, 1, 0), (1,), "VALID")
    return found[0].T


def added(values: Float[Array, "..."], window: int) -> Any:
    """Sums over all windows along the first axis, by adding and not by differences of running sums, which would lose small ones."""
    return jax.lax.reduce_window(values, 0.0, jax.lax.add, (window,) + (1,) * (values.ndim - 1), (1,) * values.ndim, "VALID")


class StreamState(NamedTuple):
    """What a stream remembers."""

    rows: Float[Array | np.ndarray, "..."]
    """[longest window, channels]: the last points, standardised."""
    count: Int[Array | np.ndarray, ""]
    """How many there have been."""
    said: Float[Array | np.ndarray, "..."]
    """[32]: the evidence of the last points, not yet smoothed."""


class Windows(Scorer):
    """Windows in the coordinates of training's principal components: ``[windows, components]``."""

    basis: Float[Array | np.ndarray, "..."]
    """[window, channels, components], orthonormal; columns of zeros for padding."""
    middle: Float[Array | np.ndarray, "..."]
    """[window, channels]: the mean window."""
    without_level: bool = static(default=False)
    """Is each channel's mean over the window taken out first?"""

    @property
    def window(self) -> int:
        """Points."""
        return self.basis.shape[0]

    def __call__(self, rows: Float[Array, "time channels"]) -> Float[Array, "windows components"]:
        """Of every window, by its end."""
        basis = jnp.asarray(self.basis, rows.dtype)
        shift = jnp.einsum("wck,wc->k", basis, jnp.asarray(self.middle, rows.dtype))
        # Taking out the level first is the same as taking it out of the kernels.
        kernel = basis - jnp.mean(basis, axis=0, keepdims=True) if self.without_level else basis
        return along(rows, kernel) - shift[None]

    def rest(self, rows: Float[Array, "time channels"]) -> Float[Array, "windows channels"]:
        """Squared length of what the components do not explain, by channel."""
        middle, basis = jnp.asarray(self.middle, rows.dtype), jnp.asarray(self.basis, rows.dtype)
        codes, whole = self(rows), added(rows**2, self.window)
        products = jax.lax.map(lambda of: along(of[0][:, None], of[1][:, None]), (rows.T, basis.transpose(1, 0, 2)))
        with_middle = jax.lax.map(lambda of: along(of[0][:, None], of[1][:, None, None])[:, 0], (rows.T, middle.T))
        whole = whole - 2 * with_middle.T + jnp.sum(middle**2, axis=0)[None]
        products = products - jnp.einsum("wck,wc->ck", basis, middle)[:, None]
        return jnp.maximum(whole - 2 * jnp.einsum("ctk,tk->tc", products, codes) + self.lengths(codes), 0.0)

    def lengths(self, codes: Float[Array, "windows components"]) -> Float[Array, "windows channels"]:
        """Squared lengths of what components stand for, by channel."""
        basis = jnp.asarray(self.basis, codes.dtype).transpose(1, 0, 2)

        def of_channel(part):
            return jnp.sum((codes @ part.T) ** 2, axis=1)

        return jax.lax.map(of_channel, basis).T

    def length_of_rest(self, rows: Float[Array, "time channels"]) -> Float[Array, " windows"]:
        """The same of all channels together, without the detour by channels."""
        middle = jnp.asarray(self.middle, rows.dtype)
        whole = added(jnp.sum(rows**2, axis=1), self.window) - 2 * along(rows, middle[:, :, None])[:, 0]
        return jnp.maximum(whole + jnp.sum(middle**2) - jnp.sum(self(rows) ** 2, axis=1), 0.0)


class Nearest(Scorer):
    """Mean distance to the nearest windows of training."""

    windows: Windows
    known: Known

    @property
    def channels(self) -> int:
        """Of a point."""
        return self.windows.middle.shape[1]

    def __call__(self, rows: Float[Array, "time channels"]) -> Float[Array, " windows"]:
        """Of every window."""
        codes = self.windows(rows)
        return jnp.mean(root(squared_distances(self.known, codes, min(NEIGHBOURS, len(self.known.rows)))), axis=1)

    def parts(self, rows: Float[Array, "time channels"]) -> Float[Array, "windows channels"]:
        """Squared distance to the nearest one, by channel."""
        codes = self.windows(rows)
        apart = codes - jnp.asarray(self.known.rows, rows.dtype)[nearest_index(self.known, codes)]
        return self.windows.lengths(apart)


class Patterns(Scorer):
    """What principal components of windows do not explain, per point and channel."""

    windows: Windows

    @property
    def channels(self) -> int:
        """Of a point."""
        return self.windows.middle.shape[1]

    def __call__(self, rows: Float[Array, "time channels"]) -> Float[Array, " windows"]:
        """Of every window."""
        return self.windows.length_of_rest(rows) / self.windows.middle.size

    def parts(self, rows: Float[Array, "time channels"]) -> Float[Array, "windows channels"]:
        """The same by channel, in all."""
        return self.windows.rest(rows)


class Clusters(Scorer):
    """Distance to the nearest of a few mean windows."""

    centres: Float[Array | np.ndarray, "..."]
    """[clusters, window, channels], in shares of the channels' range."""
    share: Float[Array | np.ndarray, "..."]
    """[channels]: from standardised values to those shares."""

    @property
    def channels(self) -> int:
        """Of a point."""
        return self.share.shape[0]

    def __call__(self, rows: Float[Array, "time channels"]) -> Float[Array, " windows"]:
        """Of every window."""
        return root(jnp.maximum(jnp.min(self._squares(rows * self.share[None]), axis=1), 0.0))

    def _squares(self, rows):
        centres = jnp.asarray(self.centres, rows.dtype)
        products = along(rows, centres.transpose(1, 2, 0))
        whole = added(jnp.sum(rows**2, axis=1), centres.shape[1])
        return whole[:, None] - 2 * products + jnp.sum(centres**2, axis=(1, 2))[None]

    def parts(self, rows: Float[Array, "time channels"]) -> Float[Array, "windows channels"]:
        """Squared distance to the nearest one, by channel."""
        rows, centres = rows * self.share[None], jnp.asarray(self.centres, rows.dtype)
        nearest = jnp.argmin(self._squares(rows), axis=1)

        def of_channel(part):
            x, centre = part
            products = along(x[:, None], centre.T[:, None])
            squares = added(x**2, centre.shape[1])[:, None] - 2 * products + jnp.sum(centre**2, axis=1)[None]
            return jnp.take_along_axis(squares, nearest[:, None], axis=1)[:, 0]

        return jnp.maximum(jax.lax.map(of_channel, (rows.T, centres.transpose(2, 0, 1))).T, 0.0)


class Forecast(Scorer):
    """A linear forecast of every channel from the last points of all."""

    weights: Float[Array | np.ndarray, "..."]
    """[lags, channels, channels]"""
    bias: Float[Array | np.ndarray, "..."]
    spread: Float[Array | np.ndarray, "..."]
    """[channels]: of the errors in training."""

    @property
    def channels(self) -> int:
        """Of a point."""
        return self.bias.shape[0]

    def guess(self, rows: Float[Array, "time channels"]) -> Float[Array, "windows channels"]:
        """What was to be expected of every point but the first ones."""
        return along(rows[:-1], self.weights) + self.bias[None]

    def __call__(self, rows: Float[Array, "time channels"]) -> Float[Array, " windows"]:
        """The squared error of every point but the first ones."""
        return jnp.mean(self.parts(rows), axis=1)

    def parts(self, rows: Float[Array, "time channels"]) -> Float[Array, "windows channels"]:
        """The same by channel, in units of its spread."""
        wrong = (rows[self.weights.shape[0] :] - self.guess(rows)) / self.spread[None]
        return jnp.minimum(wrong**2, MOST_ERROR)


class Series(Scorer):
    """All views of a stretch of time, and their evidence in one number a point."""

    views: tuple
    """Those that weigh something."""
    evidence: Evidence | None
    """In the order of ``views``; None while calibrating."""
    weights: Float[Array | np.ndarray, "..."]
    names: tuple[str, ...] = static()
    windows: tuple[int, ...] = static()
    """Points that each view looks at in one piece; a forecast's error is of the last of them alone."""
    causal: bool = static(default=False)

    def __call__(self, series: Any) -> Float[Array, " time"]:
        """How anomalous is every point of a series ``[time, channels]``, or of a ``Stretch``? Larger = more."""
        stretch = self._stretch(series)
        return self.combined(self.values(stretch), stretch)[: len(series) if stretch is not series else None]

    def _stretch(self, series) -> Stretch:
        """As long as the longest window at least."""
        if isinstance(series, Stretch):
            return series
        count, whole = len(series), max(self.windows)
        padded = jnp.pad(series, ((0, max(whole - count, 0)), (0, 0)))
        return Stretch(padded, np.int32(0), np.int32(count))

    def combined(self, values: Float[Array, "views time"], stretch: Stretch) -> Float[Array, " time"]:
        """The same of what the views have said."""
        return self._smooth(jnp.sum(self._weighted(values, stretch), axis=0), stretch)

    def where(self, series: Any) -> Float[Array, "time channels"]:
        """The same by channel: the parts add up to the score."""
        stretch = self._stretch(series)
        weighted = self._weighted(self.values(stretch), stretch)
        parts = jnp.zeros_like(stretch.rows)
        for number, view in enumerate(self.views):
            share = self._of_points(number, view.parts(stretch.rows), stretch) + 1e-12
            parts = parts + weighted[number][:, None] * share / jnp.sum(share, axis=1, keepdims=True)
        return self._smooth(parts, stretch)[: len(series) if stretch is not series else None]

    def _weighted(self, values, stretch: Stretch):
        """The evidence of each view; 1, as of a usual point, where there is no whole window yet."""
        assert self.evidence is not None
        time = jnp.arange(values.shape[1]) - stretch.begin
        known = time[None] >= jnp.array(self.first_points)[:, None]
        return jnp.asarray(self.weights)[:, None] * jnp.where(known, self.evidence(values.T), 1.0)

    @property
    def first_points(self) -> list[int]:
        """The first point that each view has something to say of."""
        return [window - 1 if self._at_its_end(number) else 0 for number, window in enumerate(self.windows)]

    def values(self, stretch: Stretch) -> Float[Array, "views time"]:
        """What each view says of every point, in its own units."""
        return jnp.stack(
            [self._of_points(number, view(stretch.rows), stretch) for number, view in enumerate(self.views)]
        )

    def _at_its_end(self, number: int) -> bool:
        """Is what a window says said of its last point alone?"""
        return self.causal or self.names[number] == "forecast"

    def _of_points(self, number: int, values, stretch: Stretch):
        """From windows to points. The first of the windows ends at point window - 1."""
        window = self.windows[number]
        values = jnp.concatenate([jnp.zeros((window - 1, *values.shape[1:]), values.dtype), values])
        time = jnp.arange(values.shape[0])
        whole = (time >= stretch.begin + window - 1) & (time < stretch.end)
        if self._at_its_end(number):
            return jnp.where(_beside(whole, values), values, 0.0)
        return _mean_over(values, whole, 0, window - 1)

    def _smooth(self, values, stretch: Stretch):
        time = jnp.arange(values.shape[0])
        there = (time >= stretch.begin) & (time < stretch.end)
        before = SMOOTHING - 1 if self.causal else SMOOTHING // 2
        return _mean_over(values, there, before, SMOOTHING - 1 - before)

    def init(self) -> StreamState:
        """The state of a stream of which nothing has been seen.

        Raises:
            ValueError: a scorer that judges a point by what follows: fit with ``causal=True``.
        """
        if not self.causal:
            raise ValueError("a stream knows nothing of what follows: fit the detector with causal=True")
        shape = max(self.windows), self.channels
        return StreamState(jnp.zeros(shape), jnp.zeros((), jnp.int32), jnp.zeros(SMOOTHING))

    def step(self, state: StreamState, point: Float[Array, " channels"]) -> tuple[StreamState, Float[Array, ""]]:
        """``(state, score)`` after one more point ``[channels]``, standardised: pure, in constant memory, the batch's score of that point.

        ``jax.lax.scan(scorer.step, scorer.init(), series)`` scores a series; ``jax.vmap`` over states and points, a fleet.
        """
        assert self.evidence is not None
        rows, count = jnp.concatenate([state.rows[1:], point[None]]), state.count + 1
        values = jnp.stack([view(rows[-window:])[0] for view, window in zip(self.views, self.windows, strict=True)])
        evidence = jnp.where(count >= jnp.array(self.windows), self.evidence(values[None])[:, 0], 1.0)
        said = jnp.concatenate([state.said[1:], jnp.sum(self.weights * evidence)[None]])
        there = jnp.arange(SMOOTHING) >= SMOOTHING - count
        score = jnp.sum(jnp.where(there, said, 0.0)) / jnp.minimum(count, SMOOTHING)
        return StreamState(rows, count, said), score

    @property
    def channels(self) -> int:
        """Of a point."""
        return self.views[0].channels

    @property
    def reach(self) -> tuple[int, int]:
        """How many points before and after a point its score depends on."""
        longest = max(self.windows)
        if self.causal:
            return longest - 1 + SMOOTHING - 1, 0
        return longest - 1 + SMOOTHING // 2, longest - 1 + SMOOTHING // 2


def _beside(flags, values):
    return flags.reshape(-1, *(1,) * (values.ndim - 1))


def _mean_over(values, there, before: int, after: int):
    """Of every point, the mean of those values near it that are there."""
    weight = there.astype(values.dtype)
    padding = ((before, after),) + ((0, 0),) * (values.ndim - 1)
    total = added(jnp.pad(values * _beside(weight, values), padding), before + after + 1)
    count = added(jnp.pad(weight, (before, after)), before + after + 1)
    return total / jnp.maximum(_beside(count, values), 1.0)


# ------------------------------------------------------------------------------------------------------------------ the fit


def view_weights(channels: int) -> dict[str, float]:
    """How much each view counts, by the number of channels: 1 for one kind of views or the other, or shares of 1.

    >>> {name: round(weight, 2) for name, weight in view_weights(4).items()}
    {'nearest': 0.33, 'shape': 0.33, 'long': 0.33, 'forecast': 0.67, 'patterns': 0.67, 'clusters': 0.67}
    """
    many = min(np.log(channels) / np.log(8), 1.0)
    weights = dict.fromkeys(NAMES[:3], 1.0 - many) | dict.fromkeys(NAMES[3:], many)
    return {name: float(weight) for name, weight in weights.items() if weight > 0}


def windows_of(segments: list[np.ndarray], window: int, most: int) -> np.ndarray:
    """Evenly chosen windows of all segments, ``[windows, window, channels]``."""
    starts = [(number, start) for number, rows in enumerate(segments) for start in range(len(rows) - window + 1)]
    step = max(1, -(-len(starts) // most))
    return np.stack([segments[number][start : start + window] for number, start in starts[::step]])


def _components(windows: np.ndarray, count: int, explained: float | None, without_level: bool, rng) -> Windows:
    """Principal components; with ``explained`` only so many as explain that share, at most ``count``."""
    if without_level:
        windows = windows - windows.mean(axis=1, keepdims=True)
    flat = windows.reshape(len(windows), -1)
    middle = flat.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = flat - middle
    wanted = min(count, *centred.shape)
    if min(centred.shape) <= 4 * wanted:
        _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    else:
        _, sizes, directions = randomized_svd(centred, wanted, n_iter=2, random_state=rng)
    sizes, directions = sizes[:wanted], directions[:wanted]
    kept = sizes > 1e-5 * max(float(sizes[0]), 1e-12)
    if explained is not None:
        share = np.cumsum(sizes**2) / max(float(np.sum(centred.astype(np.float64) ** 2)), 1e-12)
        kept &= np.arange(len(sizes)) <= np.searchsorted(share, explained)
    basis = np.zeros((count, flat.shape[1]), np.float32)
    basis[: len(sizes)] = directions * kept[:, None]
    shape = windows.shape[1:]
    return Windows(basis.T.reshape(*shape, count), middle.reshape(shape), without_level)


def _nearest_view(segments, window: int, without_level: bool, size: int, rng) -> Nearest:
    seen = windows_of(segments, window, MOST_WINDOWS)
    learned = seen[:: -(-len(seen) // MOST_LEARNED_WINDOWS)]
    of = _components(learned, COMPONENTS, None, without_level, rng)
    shift = np.einsum("wck,wc->k", of.basis, of.middle)
    kernel = of.basis - of.basis.mean(axis=0) if without_level else of.basis
    codes = np.einsum("nwc,wck->nk", seen, kernel, optimize=True) - shift
    return Nearest(of, known(codes, size))


def _forecast_view(segments, channels: int) -> Forecast:
    lags = max(1, min(LAGS, MOST_INPUTS // channels))
    inputs = [np.lib.stride_tricks.sliding_window_view(rows[:-1], lags, axis=0) for rows in segments if len(rows) > lags]
    x = np.concatenate([each.transpose(0, 2, 1).reshape(len(each), -1) for each in inputs]).astype(np.float64)
    y = np.concatenate([rows[lags:] for rows in segments if len(rows) > lags])
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)
    spread = np.maximum(np.std(y - x @ weights, axis=0), 1e-2)
    of_lags = weights[:-1].reshape(lags, channels, channels)
    return Forecast(*(part.astype(np.float32) for part in (of_lags, weights[-1], spread)))


def _clusters_view(segments, share: np.ndarray, window: int, seed: int) -> Clusters:
    windows = windows_of(segments, window, MOST_LEARNED_WINDOWS) * share
    flat = windows.reshape(len(windows), -1)
    different = len(np.unique(flat, axis=0))  # of series that hardly ever change
    found = KMeans(min(CLUSTERS, different), n_init=2, random_state=seed).fit(flat).cluster_centers_
    centres = np.concatenate([found, np.full((CLUSTERS - len(found), flat.shape[1]), 1e3)])
    return Clusters(centres.reshape(CLUSTERS, *windows.shape[1:]).astype(np.float32), share.astype(np.float32))


class SeriesDetector(Estimator):
    """Stretches of a time series that are unlike all it was fitted on: the recommended detector for series.

    ``X`` is ``[time, channels]``, points in order and evenly spaced; ``score_samples`` gives a number a point, larger = more normal. What
    is looked at, and how views are weighed, is said in ``jaxad.detectors.series``. Nothing needs to be chosen.

    Args:
        views: names of the views to use, each weighing the same; None: by the number of channels. One alone is a method of its own:
            patterns is PCA on windows, nearest kNN on windows, forecast a ridge regression, clusters k-means on windows.
        causal: judge a point by what came before it alone, as a stream has to; otherwise by what follows as well.
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

    views: Any = None
    causal: bool = False
    false_alarm_rate: float = 0.05
    random_state: Any = 0

    def _learn(self, X):
        count, channels = X.shape
        if count < FEWEST_POINTS:
            raise ValueError(f"a series to learn from has at least {FEWEST_POINTS} points, got {count}")
        if channels > MOST_CHANNELS:
            raise ValueError(f"a series has at most {MOST_CHANNELS} channels, got {channels}: fit one detector for each group of them")
        if self.views is not None and (not len(self.views) or {*self.views} - {*NAMES}):
            raise ValueError(f"views are some of {', '.join(NAMES)}, or None, got {self.views!r}")
        standardiser, share = _scale_of(X)
        rows = standardiser(X)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        whole = self._views([rows], share, count, seed)
        bounds = np.linspace(0, count, FOLDS + 1).astype(int)
        measured = []
        for begin, end in zip(bounds, bounds[1:], strict=False):
            rest = [part for part in (rows[:begin], rows[end:]) if len(part) > max(whole.windows)]
            view = self._views(rest or [rows], share, count, seed)
            measured.append(over_stretches(Partial(_values_of, view), rows[begin:end], view.reach))
        raw = np.concatenate(measured)
        first = whole.first_points
        known = [np.concatenate([of[begin:, number] for of in measured]) for number, begin in enumerate(first)]
        scorer = dataclasses.replace(whole, evidence=Evidence.fit(known))
        normal = [over_stretches(Partial(_combined, scorer), of, (SMOOTHING, SMOOTHING)) for of in measured]
        return Learned(standardiser, scorer, np.concatenate(normal))

    def _views(self, segments, share, count: int, seed: int) -> Series:
        """All views that weigh something, of points in order; ``count`` points in all decide the sizes, so that folds share programs."""
        channels = segments[0].shape[1]
        weights = view_weights(channels) if self.views is None else dict.fromkeys(self.views, 1.0)
        most = max(len(rows) for rows in segments)
        window, long, short = (min(size, count // 4, most) for size in (WINDOW, LONG, SHORT))
        size = padded_size(min(count, MOST_WINDOWS))
        make = {
            "nearest": (lambda: _nearest_view(segments, window, False, size, seed), window),
            "shape": (lambda: _nearest_view(segments, window, True, size, seed), window),
            "long": (lambda: _nearest_view(segments, long, False, size, seed), long),
            "forecast": (lambda: _forecast_view(segments, channels), min(LAGS, max(1, MOST_INPUTS // channels)) + 1),
            "patterns": (lambda: _patterns_view(segments, window, seed), window),
            "clusters": (lambda: _clusters_view(segments, share, short, seed), short),
        }
        views, windows = tuple(make[name][0]() for name in weights), tuple(make[name][1] for name in weights)
        return Series(views, None, np.array(list(weights.values()), np.float32), tuple(weights), windows, self.causal)

    def _keep(self, learned: Learned):
        super()._keep(learned)
        # A channel's part is never more than the score.
        self.where_threshold_ = float(-self.offset_ if np.isfinite(self.offset_) else -self.calibration_scores_.min())
        return self

    def _scored(self, X, call, function: Any = None) -> Any:
        rows = self.standardiser_(check_scoring_data(self, X))
        function = self.scorer_ if function is None else function
        return over_stretches(function, rows, self.scorer_.reach, call)


def _patterns_view(segments, window: int, seed) -> Patterns:
    return Patterns(_components(windows_of(segments, window, MOST_LEARNED_WINDOWS), COMPONENTS, EXPLAINED, False, seed))


def _values_of(of: Series, stretch: Stretch):
    return of.values(stretch).T


def _combined(of: Series, stretch: Stretch):
    return of.combined(stretch.rows.T, stretch)


def _scale_of(X: np.ndarray) -> tuple[Standardiser, np.ndarray]:
    """``(the scale of each channel, what share of its range one of its units is)``."""
    mean, std = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    extent = (X.max(axis=0) - X.min(axis=0)).astype(np.float64)
    scale = np.maximum(std, FLOOR * extent)
    varies = scale > 1e-12 * np.maximum(np.abs(mean), 1.0)
    scale = np.where(varies, scale, 1.0)
    return Standardiser(mean, scale, FARTHEST), scale / np.where(varies, extent, 1.0)


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
        stretch = Stretch(padded, np.int32(begin), np.int32(begin + high - low))
        with jax.default_matmul_precision("highest"):
            found = fetch(call(function, stretch))
        kept = slice(before, before + min(most, len(rows) - start))
        pieces.append(jax.tree.map(lambda leaf: leaf[kept], found))  # noqa: B023
    return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)
