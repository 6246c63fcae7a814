"""A detector that is not in the library: how far from the median, in units of the median deviation, is the worst column?"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxad.detectors import Estimator, Learned, Scorer, Standardiser, static


class WorstColumn(Scorer):
    """The largest deviation, or with ``soft`` a smooth stand-in for it."""

    centre: Float[Array, "..."]
    spread: Float[Array, "..."]
    soft: bool = static()

    def where(self, rows):
        return jnp.abs(rows - self.centre[None]) / self.spread[None]

    def __call__(self, rows):
        return jnp.sum(self.where(rows) ** 8, axis=1) ** 0.125 if self.soft else jnp.max(self.where(rows), axis=1)


class MedianDetector(Estimator):
    """Medians of the training rows; calibrated on every third row, which the medians have not seen."""

    soft: bool = False
    false_alarm_rate: float = 0.05

    def _learn(self, X):
        scale, held_out = Standardiser.fit(X), np.arange(len(X)) % 3 == 0
        rows = scale(X[~held_out])
        centre = np.median(rows, axis=0)
        scorer = WorstColumn(centre, np.median(np.abs(rows - centre), axis=0) + 1e-3, soft=self.soft)
        normal = np.asarray(scorer(jnp.asarray(scale(X[held_out]))))
        self.where_threshold_ = float(np.quantile(normal, 1 - self.false_alarm_rate))
        return Learned(scale, scorer, normal)
