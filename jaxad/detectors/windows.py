"""What windows of a time series, so many points in a row, look like beside those of training: four kinds of views, and their fits.

Called with a series ``[time, channels]``, standardised, a view gives a number for every window, larger = more anomalous; the first window
ends at point ``window - 1``. ``parts`` is the same by channel.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.cluster import KMeans
from sklearn.utils.extmath import randomized_svd

from jaxad.detectors.scorer import Scorer, root, static
from jaxad.detectors.search import Known, known, nearest_index, squared_distances

LAGS, MOST_INPUTS = 16, 1024
"""Points a forecast looks back, fewer where the channels are so many that there would be more inputs."""

COMPONENTS, EXPLAINED = 64, 0.9
"""Principal components of windows, at most, and the share of their variance that the view of patterns takes out."""

NEIGHBOURS, CLUSTERS = 5, 10
MOST_WINDOWS, MOST_LEARNED_WINDOWS = 8192, 4096
"""Windows to measure distances to, and to learn components and clusters from."""

MOST_NUMBERS, FEWEST_WINDOWS = 2**24, 512
"""In all these windows, so that hundreds of channels take no minutes; but so many windows at least."""

MOST_ERROR = 1e4
"""Of a forecast, squared, in units of its spread."""


def along(rows: Any, kernel: Any) -> Any:
    """Products of every window of ``rows [time, channels]`` with kernels ``[window, channels, k]``: ``[time - window + 1, k]``."""
    kernel = jnp.asarray(kernel, rows.dtype)
    found = jax.lax.conv_general_dilated(rows.T[None], kernel.transpose(2, 1, 0), (1,), "VALID")
    return found[0].T


def added(values: Float[Array, "..."], window: int) -> Any:
    """Sums over all windows along the first axis, by adding and not by differences of running sums, which would lose small ones."""
    return jax.lax.reduce_window(
        values, 0.0, jax.lax.add, (window,) + (1,) * (values.ndim - 1), (1,) * values.ndim, "VALID"
    )


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


# ------------------------------------------------------------------------------------------------------------------ the fits


def windows_of(segments: list[np.ndarray], window: int, most: int) -> np.ndarray:
    """Evenly chosen windows of all segments, ``[windows, window, channels]``."""
    most = min(most, max(MOST_NUMBERS // (window * segments[0].shape[1]), FEWEST_WINDOWS))
    starts = [(number, start) for number, rows in enumerate(segments) for start in range(len(rows) - window + 1)]
    step = max(1, -(-len(starts) // most))
    return np.stack([segments[number][start : start + window] for number, start in starts[::step]])


def components(windows: np.ndarray, count: int, explained: float | None, without_level: bool, rng) -> Windows:
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
        _, sizes, directions = randomized_svd(centred, wanted, n_iter=cast(Any, 2), random_state=rng)
    sizes, directions = sizes[:wanted], directions[:wanted]
    kept = sizes > 1e-5 * max(float(sizes[0]), 1e-12)
    if explained is not None:
        share = np.cumsum(sizes**2) / max(float(np.sum(centred.astype(np.float64) ** 2)), 1e-12)
        kept &= np.arange(len(sizes)) <= np.searchsorted(share, explained)
    basis = np.zeros((count, flat.shape[1]), np.float32)
    basis[: len(sizes)] = directions * kept[:, None]
    shape = windows.shape[1:]
    return Windows(basis.T.reshape(*shape, count), middle.reshape(shape), without_level)


def nearest_view(segments, window: int, without_level: bool, size: int, rng) -> Nearest:
    seen = windows_of(segments, window, MOST_WINDOWS)
    learned = seen[:: -(-len(seen) // MOST_LEARNED_WINDOWS)]
    of = components(learned, COMPONENTS, None, without_level, rng)
    shift = np.einsum("wck,wc->k", of.basis, of.middle)
    kernel = of.basis - of.basis.mean(axis=0) if without_level else of.basis
    codes = np.einsum("nwc,wck->nk", seen, kernel, optimize=True) - shift
    return Nearest(of, known(codes, size))


def forecast_view(segments, lags: int) -> Forecast:
    channels = segments[0].shape[1]
    inputs = [
        np.lib.stride_tricks.sliding_window_view(rows[:-1], lags, axis=0) for rows in segments if len(rows) > lags
    ]
    x = np.concatenate([each.transpose(0, 2, 1).reshape(len(each), -1) for each in inputs]).astype(np.float64)
    y = np.concatenate([rows[lags:] for rows in segments if len(rows) > lags])
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)
    spread = np.maximum(np.std(y - x @ weights, axis=0), 1e-2)
    of_lags = weights[:-1].reshape(lags, channels, channels)
    return Forecast(*(part.astype(np.float32) for part in (of_lags, weights[-1], spread)))


def clusters_view(segments, share: np.ndarray, window: int, seed: int) -> Clusters:
    windows = windows_of(segments, window, MOST_LEARNED_WINDOWS) * share
    flat = windows.reshape(len(windows), -1)
    # Of series that hardly ever change there are few different ones.
    different = len(np.unique(flat.astype(np.float64) @ np.random.default_rng(seed).normal(size=flat.shape[1])))
    found = KMeans(min(CLUSTERS, different), n_init=cast(Any, 1), random_state=seed).fit(flat).cluster_centers_
    centres = np.concatenate([found, np.full((CLUSTERS - len(found), flat.shape[1]), 1e3)])
    return Clusters(centres.reshape(CLUSTERS, *windows.shape[1:]).astype(np.float32), share.astype(np.float32))


def patterns_view(segments, window: int, seed) -> Patterns:
    return Patterns(components(windows_of(segments, window, MOST_LEARNED_WINDOWS), COMPONENTS, EXPLAINED, False, seed))
