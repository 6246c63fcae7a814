"""Training rows that do not belong: each is judged by views of other rows, and what is plainly apart is left out.

Anomalies among the training rows vouch for each other: the nearest neighbour of one is another. So a row is judged by *small* random
samples of the others, in which they are few (Sugiyama & Borgwardt 2013: small samples find clustered outliers better than all rows).
"""

import numpy as np
from jax.tree_util import Partial

from jaxad.detectors import views
from jaxad.detectors.estimator import in_batches
from jaxad.detectors.evidence import view_weights
from jaxad.detectors.layout import Layout

PAIRS = 6
SAMPLE = 128
"""Pairs of disjoint samples, so that every row is outside of one of each; and rows in a sample, at most half of all."""

FARTHEST = 20.0
APART = 20.0
"""A distance counts as so many times farther above the median than the upper quartile lies, 20 at most; and a row is plainly apart whose
weighted sum lies 20 times as far above the median sum as the upper quartile. Clean choosing sets pay .06 points of AUROC for it: less
leaves out more that is rare and normal, and new rows like it would be called anomalous."""

MOST_LEFT_OUT = 0.2
FEWEST_ROWS = 20
"""Fewer are all kept: they do not show what is usual."""


def judge(rows: np.ndarray, rng: np.random.Generator, layout: Layout | None = None) -> np.ndarray:
    """How little does each of the standardised rows [rows, features] belong? ``[rows]``: larger = less."""
    size, weights = min(SAMPLE, len(rows) // 2), view_weights(rows.shape[1])[: len(views.NAMES)]
    total, times = np.zeros((2, len(rows)))
    for _ in range(PAIRS):
        order = rng.permutation(len(rows))
        for sample in (order[:size], order[size : 2 * size]):
            others = np.setdiff1d(order, sample)
            fitted = views.fit_views(rows[sample], size, layout)
            distances = in_batches(Partial(views.rows_of_distances, fitted), rows[others])
            # Not by ranks, which say little of a tail in which a twentieth of the rows are anomalies.
            centre, scale = views.centre_and_scale(distances, 0.75)
            total[others] += np.clip((distances - centre) / scale, 0.0, FARTHEST) @ weights
            times[others] += 1
    return total / times


def belongs(scores: np.ndarray, contamination: float | None = None) -> np.ndarray:
    """Which rows to keep, bool ``[rows]``, by what ``judge`` says of them.

    Without a known share of anomalies among them, ``contamination``, all but what is plainly apart. Of a known share twice as many are left
    out, half of all at most: an anomaly that stays costs more than a normal row that goes.
    """
    if contamination is None:
        if len(scores) < FEWEST_ROWS:
            return np.ones(len(scores), bool)
        median, quartile = np.quantile(scores, [0.5, 0.75])
        limit = median + APART * (quartile - median)
        return scores <= max(limit, np.quantile(scores, 1 - MOST_LEFT_OUT))
    kept = np.ones(len(scores), bool)
    kept[np.argsort(-scores, kind="stable")[: round(min(2 * contamination, 0.5) * len(scores))]] = False
    return kept
