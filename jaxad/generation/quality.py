"""How good are generated rows? Against real ones, against the rows that were trained on, and for what they are made for.

Rows are feature vectors ``[rows, features]``: a table standardised by the real rows, pictures flattened, or what an encoder of yours
makes of them (``features_of``). Distances that need a network (FID, KID, the inception score, IC-LPIPS) take it as an argument: nothing
is downloaded. Real rows should be ones that the generator was not trained on, except where a function asks for the training rows.

What a number means here: normal rows from a generator should be hard to tell from real ones. *Anomalies* should not: what counts for them
is the severity, diversity, background, alignment and utility at the end of this file.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import ks_2samp, wasserstein_distance
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state

from jaxad.metrics import auroc, paired_bootstrap_interval
from jaxad.metrics.calibration import p_values

# ---------------------------------------------------------------------------------------------------------- two-sample tests


class TwoSample(NamedTuple):
    """``accuracy`` of telling real from generated, .5 = a coin; ``z`` is its distance from .5 in standard errors."""

    accuracy: float
    z: float


def c2st(real, generated, *, folds: int = 5, random_state: Any = 0) -> TwoSample:
    """Classifier two-sample test (Lopez-Paz & Oquab 2017): can a classifier tell the two apart on rows it was not fitted on?

    The probabilities of a logistic regression and of a network with one hidden layer are averaged, in ``folds`` folds; of the larger set as
    many rows are drawn as the smaller has. ``z = (accuracy - .5) / sqrt(.25 / rows)``. 1 is told apart always.

    Raises:
        ValueError: the rows are not two tables of one width and finite numbers (so do all functions here), or too few for the folds.

    >>> rng = np.random.default_rng(0)
    >>> c2st(rng.normal(size=(80, 2)), rng.normal(size=(80, 2)) + 5).accuracy
    1.0
    """
    real, generated = _two_tables(real, generated)
    rng = check_random_state(random_state)
    real, generated = _equally_many(real, generated, rng)
    if not 2 <= folds <= len(real):
        raise ValueError(f"need 2 folds at least and a row of each kind in all of them, got {folds=}, {len(real)} rows")
    x, y = np.concatenate([real, generated]), np.repeat([0, 1], len(real))
    seed = rng.randint(2**31 - 1)
    chance = np.zeros(len(x))
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
        network = MLPClassifier(32, solver="lbfgs", alpha=1.0, max_iter=100, random_state=seed)
        for classifier in (LogisticRegression(max_iter=1000), network):
            chance[test] += _fitted_quietly(classifier, x[train], y[train]).predict_proba(x[test])[:, 1] / 2
    accuracy = float(np.mean((chance > 0.5) == y))
    return TwoSample(accuracy, (accuracy - 0.5) / np.sqrt(0.25 / len(x)))


def nearest_neighbour_test(real, generated, *, random_state: Any = 0) -> TwoSample:
    """The same question put to the nearest other row: how often is it of the same kind (leave-one-out)?

    Nothing to train. Below .5 the generated rows are *too* close to real ones: copies.

    >>> nearest_neighbour_test([[0.0], [1.0]], [[9.0], [10.0]]).accuracy
    1.0
    """
    real, generated = _equally_many(*_two_tables(real, generated), check_random_state(random_state))
    x, y = np.concatenate([real, generated]), np.repeat([0, 1], len(real))
    nearest = NearestNeighbors(n_neighbors=1).fit(x).kneighbors(return_distance=False)[:, 0]
    accuracy = float(np.mean(y[nearest] == y))
    return TwoSample(accuracy, (accuracy - 0.5) / np.sqrt(0.25 / len(x)))


# ------------------------------------------------------------------------------------------------------- fidelity and variety


class PRDC(NamedTuple):
    """Fidelity (``precision``, ``density``: are generated rows where real ones are?) and variety (``recall``, ``coverage``)."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real, generated, *, k: int = 5) -> PRDC:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al., ICML 2020), by balls to the k-th other row.

    All in [0, 1] but the density, which is near 1 for rows of the same distribution and unbounded. Higher is better.

    Raises:
        ValueError: as ``c2st``, or ``k`` not between 1 and the rows of the smaller set less one.

    >>> prdc([[0.0], [1.0], [2.0]], [[0.5], [1.5]], k=1)
    PRDC(precision=1.0, recall=1.0, density=2.0, coverage=1.0)
    """
    real, generated = _two_tables(real, generated)
    if not 1 <= k < min(len(real), len(generated)):
        raise ValueError(
            f"a ball to the k-th other row needs 1 <= k < rows, got {k=}, {len(real)} and {len(generated)} rows"
        )
    distance = cdist(real, generated)
    real_radius, generated_radius = (_distances_to_others(rows, k)[:, -1] for rows in (real, generated))
    inside = distance < real_radius[:, None]
    return PRDC(
        precision=float(inside.any(axis=0).mean()),
        recall=float((distance < generated_radius[None]).any(axis=1).mean()),
        density=float(inside.sum(axis=0).mean() / k),
        coverage=float((distance.min(axis=1) < real_radius).mean()),
    )


class AlphaBeta(NamedTuple):
    """``alpha_precision`` (fidelity), ``beta_recall`` (variety), ``authenticity`` (no copies): each in [0, 1], higher is better."""

    alpha_precision: float
    beta_recall: float
    authenticity: float


def alpha_beta(real, generated, *, steps: int = 30) -> AlphaBeta:
    """Alpha-precision, beta-recall and authenticity (Alaa et al., ICML 2022), without their learned embedding.

    The share alpha of the real rows lies in a ball around their mean; as many generated rows should lie in it, for every alpha, and
    likewise for beta with the roles exchanged. A generated row is authentic if it is farther from its nearest real row than that row
    from its own nearest neighbour. Give the *training* rows as ``real`` where copies are in question.
    """
    real, generated = _two_tables(real, generated)
    shares = np.linspace(0, 1, steps)
    centre, generated_centre = real.mean(axis=0), generated.mean(axis=0)
    radius = np.quantile(np.linalg.norm(real - centre, axis=1), shares)
    precision = (np.linalg.norm(generated - centre, axis=1)[None] <= radius[:, None]).mean(axis=1)

    to_generated, nearest = NearestNeighbors(n_neighbors=1).fit(generated).kneighbors(real)
    to_real = _distances_to_others(real, 1)[:, 0]
    from_centre = np.linalg.norm(generated[nearest[:, 0]] - generated_centre, axis=1)
    near = to_generated[:, 0] <= to_real
    recall = ((from_centre[None] <= np.quantile(from_centre, shares)[:, None]) & near[None]).mean(axis=1)

    distance, closest = NearestNeighbors(n_neighbors=1).fit(real).kneighbors(generated)
    gap = [1 - np.abs(shares - curve).sum() / shares.sum() for curve in (precision, recall)]
    return AlphaBeta(*map(float, gap), authenticity=float((distance[:, 0] > to_real[closest[:, 0]]).mean()))


# ------------------------------------------------------------------------------------------------- distances of distributions


def mmd(real, generated) -> float:
    """Squared maximum mean discrepancy, unbiased (Gretton et al. 2012, eq. 3): 0 on average for equal distributions, and so also negative.

    Mean of five Gaussian kernels ``exp(-d^2 / 2 h^2)``, h the median distance of all rows times 1/4, 1/2, 1, 2, 4.
    """
    real, generated = _two_tables(real, generated)
    rows, count = np.concatenate([real, generated]), len(real)
    square = cdist(rows, rows, "sqeuclidean")
    median = np.median(square[np.triu_indices(len(rows), 1)])
    if median == 0:
        raise ValueError("the kernels' width is the median distance between rows, got 0: most rows are equal")
    kernel = np.mean([np.exp(-square / (2 * median * scale**2)) for scale in (0.25, 0.5, 1, 2, 4)], axis=0)
    return _mmd_from_kernel(kernel[:count, :count], kernel[count:, count:], kernel[:count, count:])


def _mmd_from_kernel(xx, yy, xy) -> float:
    n, m = len(xx), len(yy)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def sliced_wasserstein(real, generated, *, projections: int = 200, random_state: Any = 0) -> float:
    """Mean Wasserstein-1 distance of the two sets along random directions (Bonneel et al. 2015), in units of the rows; 0 is best.

    >>> sliced_wasserstein([[0.0], [1.0]], [[3.0], [4.0]])
    3.0
    """
    real, generated = _two_tables(real, generated)
    ways = check_random_state(random_state).normal(size=(real.shape[1], projections))
    ways /= np.linalg.norm(ways, axis=0)
    return float(np.mean([wasserstein_distance(real @ way, generated @ way) for way in ways.T]))


def energy_distance(real, generated) -> float:
    """``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` (Szekely & Rizzo 2013), unbiased: 0 on average for equal distributions.

    >>> round(energy_distance([[0.0], [1.0]], [[3.0], [4.0]]), 6)  # 2 * 3 - 1 - 1
    4.0
    """
    real, generated = _two_tables(real, generated)
    return -_mmd_from_kernel(cdist(real, real), cdist(generated, generated), cdist(real, generated))


class Columns(NamedTuple):
    """``ks [features]``: Kolmogorov-Smirnov distance of every column; ``correlation``: mean absolute difference of pairs' correlations."""

    ks: np.ndarray
    correlation: float


def columns(real, generated) -> Columns:
    """Column by column and pair by pair: are the marginals right, and the correlations? All in [0, 1] (correlations: [0, 2]), 0 is best.

    A constant column has no correlation and counts as uncorrelated.
    """
    real, generated = _two_tables(real, generated)
    ks = np.array([ks_2samp(a, b)[0] for a, b in zip(real.T, generated.T, strict=True)])
    pairs = np.triu_indices(real.shape[1], 1)
    difference = np.abs(_correlation(real) - _correlation(generated))[pairs]
    return Columns(ks, float(difference.mean()) if len(difference) else 0.0)


def _correlation(rows):
    spread = rows.std(axis=0)
    z = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return z.T @ z / len(rows)


# --------------------------------------------------------------------------------------------------------------- memorisation


class ClosestRecord(NamedTuple):
    """``ratio``: 5th percentile of distances to the training rows, of generated rows over held-out rows (near or above 1: no copies);
    ``closer_to_train``: share of generated rows that are nearer to a training row than to a held-out one (.5: no copies)."""

    ratio: float
    closer_to_train: float


def closest_record(train, held_out, generated, *, random_state: Any = 0) -> ClosestRecord:
    """Distance to the closest record: are generated rows nearer to the training rows than honest new rows are?

    For the share, as many training rows as held-out ones are drawn, so that a generator that copies nothing has .5.

    Raises:
        ValueError: as ``c2st``; or a 5th percentile of 0 among held-out rows, which are then copies of training rows themselves.

    >>> rng = np.random.default_rng(0)
    >>> train, held_out, new = (rng.normal(size=(200, 2)) for _ in range(3))
    >>> closest_record(train, held_out, train + 1e-9).ratio < 1e-6, abs(closest_record(train, held_out, new).closer_to_train - 0.5) < 0.1
    (True, True)
    """
    train, generated = _two_tables(train, generated)
    train, held_out = _two_tables(train, held_out)
    index = NearestNeighbors(n_neighbors=1).fit(train)
    honest, made = (np.percentile(index.kneighbors(rows)[0], 5) for rows in (held_out, generated))
    if honest == 0:
        raise ValueError("5 % and more of the held-out rows are copies of training rows: hold out distinct rows")
    some, held_out = _equally_many(train, held_out, check_random_state(random_state))
    to_train, to_held_out = (
        NearestNeighbors(n_neighbors=1).fit(rows).kneighbors(generated)[0] for rows in (some, held_out)
    )
    return ClosestRecord(
        float(made / honest), float(np.mean(to_train < to_held_out) + 0.5 * np.mean(to_train == to_held_out))
    )


# -------------------------------------------------------------------------------------------- with an encoder that you provide


def features_of(encoder: Callable | None, rows, what: str) -> np.ndarray:
    """``encoder(rows)`` as a table ``[rows, features]``; the functions below go through here.

    Raises:
        ValueError: no encoder, or one that does not return a row of finite numbers for each row.
    """
    if encoder is None:
        raise ValueError(
            f"{what} needs an encoder, rows -> [rows, features]: hand over a trained one, nothing is downloaded"
        )
    features = np.asarray(encoder(rows), np.float64)
    if features.ndim != 2 or len(features) != len(rows) or not np.isfinite(features).all():
        raise ValueError(
            f"{what} needs an encoder that returns finite numbers of shape ({len(rows)}, features), got shape {features.shape}"
        )
    return features


def fid(real, generated, encoder: Callable | None) -> float:
    """Frechet distance of two Gaussians fitted to the features (Heusel et al. 2017); 0 is best, and few rows make it larger.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``; comparable only with the same encoder and number of rows.

    >>> round(fid(np.eye(3), np.eye(3) + 2.0, lambda rows: rows), 6)
    12.0
    """
    a, b = _two_tables(features_of(encoder, real, "FID"), features_of(encoder, generated, "FID"))
    first, second = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (a, b))
    root = np.sqrt(np.maximum(np.linalg.eigvals(first @ second).real, 0)).sum()
    return float(np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.trace(first) + np.trace(second) - 2 * root)


def kid(real, generated, encoder: Callable | None) -> float:
    """Kernel inception distance (Binkowski et al. 2018): unbiased squared MMD with the kernel ``(x . y / features + 1)^3``."""
    a, b = _two_tables(features_of(encoder, real, "KID"), features_of(encoder, generated, "KID"))

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    return _mmd_from_kernel(kernel(a, a), kernel(b, b), kernel(a, b))


def inception_score(generated, classifier: Callable | None) -> float:
    """``exp E KL(p(y|x) || p(y))`` (Salimans et al. 2016) with your classifier, ``rows -> probabilities [rows, classes]``.

    From 1 (all alike, or undecided) to the number of classes. Raises ValueError for what are no probabilities.

    >>> round(inception_score(np.zeros(2), lambda rows: np.eye(2)), 6)
    2.0
    """
    p = features_of(classifier, generated, "the inception score")
    if (p < 0).any() or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
        raise ValueError("the inception score needs a classifier whose rows are probabilities that add up to 1")
    marginal = p.mean(axis=0, keepdims=True)
    terms = np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(marginal, 1e-300))), 0)
    return float(np.exp(terms.sum(axis=1).mean()))


def ic_lpips(few, generated, distance: Callable | None) -> float:
    """Intra-cluster pairwise distance (Ojha et al., CVPR 2021): variety among the rows made after the same example; higher is better.

    Every generated row joins the nearest of the ``few`` real ones; the mean distance of pairs within a cluster, averaged over the clusters
    with two rows and more. ``distance(a, b)`` of two rows is yours: LPIPS, or a Euclidean one; 0 means copies of the few.

    Raises:
        ValueError: no distance, no cluster of two rows, or a distance that is not a finite number.

    >>> ic_lpips([0.0, 10.0], [1.0, 2.0, 9.0], lambda a, b: abs(a - b))
    1.0
    """
    if distance is None:
        raise ValueError(
            "IC-LPIPS needs a distance(a, b) of two rows: hand over a perceptual one, nothing is downloaded"
        )
    nearest = np.array([np.argmin([distance(row, example) for example in few]) for row in generated])
    means = []
    for cluster in range(len(few)):
        rows = [generated[i] for i in np.flatnonzero(nearest == cluster)]
        pairs = [distance(a, b) for i, a in enumerate(rows) for b in rows[i + 1 :]]
        if pairs:
            means.append(np.mean(pairs))
    if not means or not np.isfinite(means).all():
        raise ValueError(
            f"IC-LPIPS needs two rows near one example and finite distances, got {len(generated)} rows for {len(few)} examples"
        )
    return float(np.mean(means))


# ---------------------------------------------------------------------------------------------------------- quality of anomalies


def severity(calibration_scores, scores) -> float:
    """Median conformal p-value of anomalies, in (0, 1]: .5 is as normal as normal rows, the least possible is beyond all of them.

    Scores as ``score_samples`` gives them, *larger = more normal*; the calibration rows are normal and were not fitted on.

    >>> severity([-5.0, -1.0, -2.0, -3.0], [-4.0, -9.0, -9.5])
    0.2
    """
    return float(np.median(p_values(calibration_scores, scores)))


def diversity(real, generated) -> float:
    """Mean distance between two generated rows over that between two real ones: 1 is as various, 0 one row over and over.

    >>> diversity([[0.0], [2.0]], [[1.0], [5.0]])
    2.0
    """
    real, generated = _two_tables(real, generated)
    spread, own = (cdist(rows, rows).sum() / (len(rows) * (len(rows) - 1)) for rows in (real, generated))
    if spread == 0:
        raise ValueError("diversity is measured in distances between real rows, and these are all equal")
    return float(own / spread)


def background_error(x, generated, mask) -> float:
    """Mean squared change outside the mask, in the units of ``x`` squared: exactly 0 where the background was preserved.

    >>> background_error([[1.0, 2.0]], [[1.0, 5.0]], [[False, True]])
    0.0
    """
    change, mask = _change(x, generated, mask)
    return float(np.mean(change[~mask] ** 2)) if (~mask).any() else 0.0


def mask_alignment(x, generated, mask) -> float:
    """Does the mask say where the change is? AUROC of the absolute change of every element against the mask, in [0, 1].

    1: every masked element changed more than any other. Masked elements that did not change count half, as ties do: a mask twice as large
    as the change has .75. Raises ValueError where the masks hide nothing or everything.
    """
    change, mask = _change(x, generated, mask)
    return auroc(mask.ravel().astype(int), np.abs(change).ravel())


class Utility(NamedTuple):
    """``gain`` in AUROC through the generated anomalies, with its bootstrap interval ``[low, high]``; helpful if ``low > 0``."""

    gain: float
    low: float
    high: float


def utility(labels, without, with_generated, *, seed: int, num_resamples: int = 1000, level: float = 0.95) -> Utility:
    """What the anomalies are good for: AUROC on held-out *real* anomalies of the detector trained with them, less that without.

    Args:
        labels: ``[rows]`` of the held-out rows, 1 = anomalous.
        without, with_generated: anomaly scores ``[rows]`` of the two detectors, *larger = more anomalous* (``-score_samples``).
        seed, num_resamples, level: of the paired bootstrap over rows (``metrics.paired_bootstrap_interval``).

    >>> labels = np.repeat([0, 1], 50)
    >>> utility(labels, np.arange(100) % 7, labels, seed=0, num_resamples=100).low > 0
    True
    """
    gain = auroc(labels, with_generated) - auroc(labels, without)
    low, high = paired_bootstrap_interval(
        auroc, labels, with_generated, without, seed=seed, num_resamples=num_resamples, level=level
    )
    return Utility(float(gain), float(low), float(high))


# --------------------------------------------------------------------------------------------------------------------- shared


def _two_tables(real, generated) -> tuple[np.ndarray, np.ndarray]:
    tables = [np.asarray(rows, np.float64) for rows in (real, generated)]
    if any(rows.ndim != 2 or len(rows) < 2 for rows in tables) or tables[0].shape[1] != tables[1].shape[1]:
        raise ValueError(
            f"need two tables [rows, features] of one width with 2 rows or more, got shapes {tables[0].shape} and {tables[1].shape}; "
            "flatten pictures or encode them"
        )
    if not all(np.isfinite(rows).all() for rows in tables):
        raise ValueError(
            "need finite numbers, got some that are not; find out which rows of the generator they come from"
        )
    return tables[0], tables[1]


def _equally_many(a, b, rng):
    count = min(len(a), len(b))
    return a[rng.permutation(len(a))[:count]], b[rng.permutation(len(b))[:count]]


def _distances_to_others(rows, k):
    return NearestNeighbors(n_neighbors=k).fit(rows).kneighbors()[0]


def _change(x, generated, mask):
    x, generated, mask = np.asarray(x, np.float64), np.asarray(generated, np.float64), np.asarray(mask, bool)
    if not x.shape == generated.shape == mask.shape:
        raise ValueError(
            f"rows before, after and masks must have one shape, got {x.shape}, {generated.shape}, {mask.shape}"
        )
    return generated - x, mask


def _fitted_quietly(classifier, x, y):
    """A scaled classifier. One that stopped before it converged is still a classifier, and the test is honest about what it finds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), classifier).fit(x, y)
