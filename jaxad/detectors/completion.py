"""Gaps in a time series, filled with what is expected given the points around: of Gaussian windows, by their principal components.

A window is ``middle + basis @ code + noise`` with independent codes of known variances (probabilistic PCA, Tipping & Bishop 1999). What is
missing is expected to be what the most likely code makes of it, given what is there.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from jaxad.detectors.estimator import apply
from jaxad.detectors.scorer import Scorer, static
from jaxad.detectors.windows import COMPONENTS, MOST_LEARNED_WINDOWS, components, windows_of

STEPS = 12
"""Of conjugate gradients for the code of a window."""

WINDOWS_AT_ONCE = 256
ROUNDS = 2
"""Gaps among the points to learn from are filled, and components learned, so many times in turn."""

LEAST_NOISE = 0.01
"""Share of a window's mean square that is noise, at least."""


class Completion(Scorer):
    """Fills gaps; called with rows and what is there of them."""

    basis: Float[Array | np.ndarray, "..."]
    """[window, channels, components]"""
    middle: Float[Array | np.ndarray, "..."]
    variance: Float[Array | np.ndarray, "..."]
    """[components]: of the codes."""
    noise: Float[Array | np.ndarray, "..."]
    """Variance of what the components leave, one number."""
    causal: bool = static(default=False)

    @property
    def before(self) -> int:
        """Points of a window before the one that is filled from it: the last one if ``causal``, else the one in its middle."""
        return self.basis.shape[0] - 1 if self.causal else self.basis.shape[0] // 2

    @property
    def after(self) -> int:
        """Points after it."""
        return self.basis.shape[0] - 1 - self.before

    def __call__(
        self, rows: Float[Array, "time channels"], there: Bool[Array, "time channels"]
    ) -> Float[Array, "time channels"]:
        """Rows without gaps; each is filled from one window."""
        padding = ((self.before, self.after), (0, 0))
        padded, known = jnp.pad(jnp.where(there, rows, 0.0), padding), jnp.pad(there, padding)

        def of(start):
            return self.expected(
                *(jax.lax.dynamic_slice_in_dim(each, start, self.basis.shape[0]) for each in (padded, known))
            )

        found = jax.lax.map(of, jnp.arange(rows.shape[0]), batch_size=min(WINDOWS_AT_ONCE, rows.shape[0]))
        return jnp.where(there, rows, found)

    def expected(
        self, rows: Float[Array, "window channels"], there: Bool[Array, "window channels"]
    ) -> Float[Array, " channels"]:
        """The point that is filled from this window, if all of it were missing."""
        basis, variance = jnp.asarray(self.basis, rows.dtype), jnp.asarray(self.variance, rows.dtype)
        target = jnp.einsum("wck,wc->k", basis, jnp.where(there, rows - self.middle, 0.0))

        def apply(code):
            return self.noise / variance * code + jnp.einsum("wck,wc->k", basis, jnp.where(there, basis @ code, 0.0))

        scale = 1.0 / (self.noise / variance + jnp.mean(there.astype(rows.dtype)))

        def step(_, of):
            code, wrong, along, size = of
            moved = apply(along)
            length = size / jnp.maximum(along @ moved, 1e-30)
            code, wrong = code + length * along, wrong - length * moved
            better = wrong @ (scale * wrong)
            return code, wrong, scale * wrong + better / jnp.maximum(size, 1e-30) * along, better

        start = (jnp.zeros_like(target), target, scale * target, target @ (scale * target))
        code = jax.lax.fori_loop(0, STEPS, step, start)[0]
        return self.middle[self.before] + basis[self.before] @ code


def fit_completion(segments: list[np.ndarray], window: int, causal: bool, seed: int) -> Completion:
    """Of standardised points in order, ``[time, channels]`` each, NaN for gaps."""
    complete = [_between(rows) for rows in segments]
    for last in range(ROUNDS):
        windows = windows_of(complete, window, MOST_LEARNED_WINDOWS)
        found = components(windows, COMPONENTS, None, False, seed)
        flat = (windows - found.middle).reshape(len(windows), -1)
        basis = found.basis.reshape(flat.shape[1], -1)
        codes = flat @ basis
        rest = np.mean((flat - codes @ basis.T) ** 2)
        noise = max(float(rest), LEAST_NOISE * float(np.mean(flat**2)), 1e-6)
        variance = np.maximum(codes.var(axis=0), 1e-6).astype(np.float32)
        completion = Completion(found.basis, found.middle, variance, np.array(noise, np.float32), causal)
        if last < ROUNDS - 1 and any(np.isnan(rows).any() for rows in segments):
            complete = [filled(completion, rows) for rows in segments]
    return completion


def filled(completion: Completion, rows: np.ndarray) -> np.ndarray:
    """Standardised rows ``[time, channels]`` without gaps, on the host."""
    if not np.isnan(rows).any():
        return rows
    return np.asarray(apply(Partial(_filled, completion), rows))


def _filled(completion: Completion, rows):
    return completion(rows, ~jnp.isnan(rows))


def _between(rows: np.ndarray) -> np.ndarray:
    """Gaps filled on the straight line between their ends."""
    found, time = rows.copy(), np.arange(len(rows))
    for channel in found.T:
        there = ~np.isnan(channel)
        channel[~there] = np.interp(time[~there], time[there], channel[there]) if there.any() else 0.0
    return found
