"""What a view says, as evidence against a row, and how the evidence of several views becomes one number."""

import json
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxad.detectors import views
from jaxad.detectors.scorer import Scorer, stack

KNOTS = 128

SHARES = (-1.0, 0.0, 0.1, 0.2, 0.35, 0.5, 1.0)
FEWEST_OF_A_SHARE = 100
"""Rows are grouped by the share of their columns that is missing: at most so much, and so many rows at least."""

WEIGHTS = json.loads((Path(__file__).parent / "view_weights.json").read_text(encoding="utf-8"))
"""Its card says what they were learned on."""


class Evidence(Scorer):
    """Distances as evidence: minus the logarithm of the share of normal rows that lie as far out or farther; here a row *is* its distances.

    Between the knots the logarithm is interpolated; beyond the last it grows with the logarithm of the distance, without end.
    """

    knots: Float[Array | np.ndarray, "..."]
    """[distances, knots], increasing: those of normal rows, close together where they are rare."""
    evidence: Float[Array | np.ndarray, "..."]
    scale: Float[Array | np.ndarray, "..."]
    """Of what lies beyond the last knot."""

    @classmethod
    def fit(cls, distances: list[np.ndarray]) -> "Evidence":
        """Of distances of normal rows that were measured as new ones are, one array for each kind."""
        knots, evidence = np.zeros((2, len(distances), KNOTS))
        scale = np.ones(len(distances))
        for number, of in enumerate(distances):
            known = np.sort(of)
            count = len(known)
            places = np.clip(np.round(count - np.geomspace(count, 1, KNOTS)), 0, count - 1).astype(int)
            knots[number] = known[places].astype(np.float32)
            # Of equal distances half count as farther out.
            at_least, more = (count - np.searchsorted(known, known[places], side) for side in ("left", "right"))
            evidence[number] = -np.log(((at_least + more) / 2 + 1) / (count + 1))
            scale[number] = views.centre_and_scale(known, 0.97)[1]
        return cls(*(part.astype(np.float32) for part in (knots, evidence, scale)))

    def __call__(self, rows: Float[Array, "batch distances"]) -> Float[Array, "distances batch"]:
        """About 1 on average for normal rows, 3 for one in twenty, and more for rarer ones."""
        inside = jax.vmap(jnp.interp)(rows.T, self.knots, self.evidence)
        beyond = jnp.maximum(rows.T - self.knots[:, -1:], 0.0) / self.scale[:, None]
        return inside + jnp.log1p(beyond)

    def take(self, which) -> "Evidence":
        """Of some of the distances."""
        return Evidence(self.knots[which], self.evidence[which], self.scale[which])


class EvidenceByShare(Scorer):
    """``Evidence`` for rows of which some columns are missing: what is usual depends on how many.

    Here a row is its distances and, last, the share of its columns that is missing.
    """

    of: Evidence
    """With a leading axis, of normal rows in groups by that share."""
    shares: Float[Array | np.ndarray, "..."]
    """The mean share of each group, increasing."""

    @classmethod
    def fit(cls, rows: np.ndarray) -> "EvidenceByShare":
        """Of normal rows [rows, distances + 1] that were measured as new ones are."""
        share = rows[:, -1]
        groups = [rows[(share > low) & (share <= high)] for low, high in pairwise(SHARES)]
        # What is too small to say what is usual joins the next one; the last, the one before.
        joined: list[np.ndarray] = []
        for group in groups:
            if joined and min(len(joined[-1]), len(group)) < FEWEST_OF_A_SHARE:
                joined[-1] = np.concatenate([joined[-1], group])
            else:
                joined.append(group)
        each = [Evidence.fit(list(group[:, :-1].T)) for group in joined]
        return cls(stack(each), np.array([group[:, -1].mean() for group in joined], np.float32))

    def __call__(self, rows: Float[Array, "batch _"]) -> Float[Array, "distances batch"]:
        """As ``Evidence``, between the two groups whose shares are nearest."""
        z = jax.vmap(lambda of: of(rows[:, :-1]))(self.of)
        parts = jnp.eye(len(self.shares), dtype=rows.dtype)
        near = jax.vmap(lambda part: jnp.interp(rows[:, -1], self.shares, part))(parts)
        return jnp.sum(near[:, None] * z, axis=0)

    def take(self, which) -> "EvidenceByShare":
        """Of some of the distances."""
        return EvidenceByShare(jax.tree.map(lambda leaf: leaf[:, which], self.of), self.shares)


def combine(z: Float[Array, "views batch"], weights: Float[Array | np.ndarray, " views"]) -> Float[Array, " batch"]:
    """The weighted sum of the evidence: Fisher's combination of p-values. What looks very usual to one view speaks for a row."""
    return jnp.asarray(weights) @ z


def view_weights(columns: int) -> np.ndarray:
    """How much the evidence of each view counts in a table of so many columns: learned over data sets by ``experiments.combine``."""
    exponent = np.array(WEIGHTS["intercept"]) + np.array(WEIGHTS["slope"]) * np.log(columns / 8)
    return np.logaddexp(0, exponent).astype(np.float32)
