"""Every promise is simulated: rates, shares of false discoveries and thresholds against the numbers they are said to have."""

import doctest
import warnings
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils.estimator_checks import parametrize_with_checks

from jaxad.detectors import conformal
from jaxad.detectors.conformal import ConformalDetector, cross_conformal
from jaxad.detectors.gaussian import MahalanobisDetector
from jaxad.detectors.neighbours import KNNDetector
from jaxad.metrics import calibration
from jaxad.metrics.calibration import (
    aci_init,
    aci_update,
    benjamini_hochberg,
    cross_p_values,
    fewest_calibration_rows,
    p_values,
    run_aci,
    spot,
    threshold,
)


class Nearest(BaseEstimator):
    """Minus the distance to the nearest training row, as fast as numpy; remembers what it was fitted on, and counts."""

    fits = 0

    def __init__(self, scale=1.0):
        self.scale = scale

    def fit(self, X, y=None):
        type(self).fits += 1
        self.train_ = np.asarray(X)
        return self

    def score_samples(self, X):
        return -self.scale * pairwise_distances(X, self.train_).min(axis=1)


class ToTheMean(BaseEstimator):
    """Minus the Mahalanobis distance to the training rows."""

    def fit(self, X, y=None):
        self.mean_, self.precision_ = X.mean(axis=0), np.linalg.inv(np.cov(X.T))
        return self

    def score_samples(self, X):
        return -np.einsum("ri,ij,rj->r", X - self.mean_, self.precision_, X - self.mean_)


def normal_rows(seed=0, rows=200):
    return np.random.default_rng(seed).normal(size=(rows, 4))


# ---------------------------------------------------------------------------------------------------------------- p-values


def test_p_values_count_the_calibration_scores_that_are_no_higher():
    rng = np.random.default_rng(0)
    known, scores = rng.integers(0, 8, 30), rng.integers(-1, 9, 50)  # ties, and beyond both ends
    expected = [(1 + sum(k <= s for k in known)) / 31 for s in scores]
    np.testing.assert_array_equal(p_values(known, scores), expected)
    assert p_values(known, [-100.0, 100.0]).tolist() == [1 / 31, 1.0]


@pytest.mark.parametrize("draw", ["distinct", "tied"])
def test_smoothed_p_values_are_uniform_for_normal_rows(draw):
    """One new row for each calibration set, which alone are independent."""
    rng = np.random.default_rng(1)
    smoothed, plain = [], []
    for seed in range(3000):
        rows = rng.normal(size=10) if draw == "distinct" else rng.integers(0, 3, size=10).astype(float)
        smoothed.append(p_values(rows[1:], rows[:1], random_state=seed)[0])
        plain.append(p_values(rows[1:], rows[:1])[0])
    assert scipy.stats.kstest(smoothed, "uniform").pvalue > 0.01
    assert scipy.stats.kstest(plain, "uniform").pvalue < 1e-6  # the test sees a lattice of ten values
    assert all(np.mean(np.array(plain) <= alpha) <= alpha + 0.02 for alpha in (0.05, 0.1, 0.3, 0.7))


def test_smoothing_is_seeded_and_stays_below_the_plain_p_values():
    known, scores = np.arange(20) // 4, np.arange(6)
    plain, first, again, other = (p_values(known, scores, random_state=seed) for seed in (None, 1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    assert ((first > 0.0) & (first <= plain)).all()
    below = np.array([np.sum(known < s) for s in scores]) / 21
    assert (first > below).all()


def test_false_alarms_and_false_discoveries_are_as_many_as_promised():
    """METHODS 13.4: 1,000 calibration rows, 1,000 tests, 10 % of them from N(3, 1), 200 seeds."""
    anomalous = np.arange(1000) < 100
    false_alarms, shares, adaptive, power = [], [], [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        known, tested = -rng.normal(size=1000), -(rng.normal(size=1000) + 3 * anomalous)
        p = p_values(known, tested)
        false_alarms.append(np.mean(p[~anomalous] <= 0.05))
        found = benjamini_hochberg(p, 0.1)
        shares.append(np.sum(found & ~anomalous) / max(found.sum(), 1))
        power.append(np.mean(found[anomalous]))
        more = benjamini_hochberg(p, 0.1, storey=True)
        adaptive.append(np.sum(more & ~anomalous) / max(more.sum(), 1))
    assert 0.04 < np.mean(false_alarms) < 0.06
    assert 0.07 < np.mean(shares) < 0.10  # .09: alpha times the share of normal rows
    assert np.mean(shares) < np.mean(adaptive) < 0.11  # the estimated share of normal rows gives the tenth back
    assert np.mean(power) > 0.65


# -------------------------------------------------------------------------------------------------------------- thresholds


def test_below_the_threshold_is_where_the_p_value_is_at_most_alpha():
    rng = np.random.default_rng(2)
    scores = np.arange(-1, 12).astype(float)
    for n in (1, 7, 19, 99):
        known = rng.integers(0, 10, n).astype(float)
        for alpha in (0.0, 0.01, 0.05, 0.07, 0.29, 0.3, 0.5, 0.57, 1.0):
            np.testing.assert_array_equal(scores < threshold(known, alpha), p_values(known, scores) <= alpha)


def test_the_threshold_is_the_kth_smallest_without_rounding_down():
    # In floating point .29 * 100 is less than 29 and .07 * 100 more than 7.
    assert [threshold(np.arange(1, 100), alpha) for alpha in (0.01, 0.07, 0.29, 0.57)] == [1.0, 7.0, 29.0, 57.0]


def test_the_threshold_keeps_its_level_exactly():
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(40_000, 20))
    flagged = np.mean([new < threshold(known, 0.05) for new, known in zip(rows[:, 0], rows[:, 1:], strict=True)])
    assert flagged == pytest.approx(1 / 20, abs=0.0033)  # three standard errors
    # .09 is between 1/20 and 2/20, and stays at what 19 rows support
    flagged = np.mean([new < threshold(known, 0.09) for new, known in zip(rows[:, 0], rows[:, 1:], strict=True)])
    assert flagged == pytest.approx(1 / 20, abs=0.0033)


def test_a_rate_that_so_few_rows_cannot_support_flags_nothing():
    assert threshold(np.zeros(18), 0.05) == -np.inf
    assert threshold(np.zeros(19), 0.05) == 0.0
    assert threshold([1.0, 2.0], 0.0) == -np.inf
    assert threshold([1.0, 2.0], 1.0) == np.inf


# ------------------------------------------------------------------------------------------------------------- discoveries


def by_definition(p, alpha, normal=None):
    """Benjamini and Hochberg's rule in exact arithmetic."""
    normal = len(p) if normal is None else normal
    passing = [value for k, value in enumerate(sorted(p), start=1) if value * normal <= k * alpha]
    return np.array([bool(passing) and value <= max(passing) for value in p])


def test_discoveries_by_definition_where_p_values_meet_the_bound():
    rng = np.random.default_rng(4)
    alpha, met = Fraction(1, 10), 0
    for m in (1, 3, 10, 30, 100):
        for _ in range(30):
            p = [Fraction(int(k), 1000) for k in np.ceil(1000 * rng.beta(0.4, 1.5, m))]
            met += any(value * m == k * alpha for k, value in enumerate(sorted(p), start=1))
            floats = np.array([float(value) for value in p])
            np.testing.assert_array_equal(benjamini_hochberg(floats, 0.1), by_definition(p, alpha))
            expected = by_definition(p, alpha, normal=(1 + sum(v > Fraction(1, 2) for v in p)) * 2) & (floats <= 0.5)
            np.testing.assert_array_equal(benjamini_hochberg(floats, 0.1, storey=True), expected)
    assert met > 5  # the equalities that rounding could break do occur


def test_discoveries_agree_with_scipy():
    rng = np.random.default_rng(5)
    for alpha in (0.01, 0.1, 0.5):
        p = np.concatenate([rng.uniform(size=300), rng.uniform(0, 0.01, 50)])
        np.testing.assert_array_equal(benjamini_hochberg(p, alpha), scipy.stats.false_discovery_control(p) <= alpha)


def test_storeys_estimate_finds_more_where_many_rows_are_anomalous():
    rng = np.random.default_rng(6)
    p = np.concatenate([rng.beta(0.2, 3, 300), rng.uniform(size=100)])
    plain, adaptive = benjamini_hochberg(p, 0.1), benjamini_hochberg(p, 0.1, storey=True)
    assert adaptive.sum() > plain.sum() > 0
    assert (adaptive >= plain).all()
    assert not benjamini_hochberg([0.6, 0.7], 1.0, storey=True).any()  # p-values beyond .5 are never discoveries


def test_without_evidence_nothing_is_reported():
    assert benjamini_hochberg([0.2, 0.9, 1.0], 0.1).tolist() == [False, False, False]
    assert benjamini_hochberg([0.0, 0.5], 0.0).tolist() == [True, False]


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.07, 0.1, 0.29, 0.9])
@pytest.mark.parametrize(("discoveries", "num_tests"), [(1, 1), (1, 50), (7, 100), (30, 30)])
def test_fewest_calibration_rows_is_where_discoveries_begin(alpha, discoveries, num_tests):
    def possible(n):
        p = np.ones(num_tests)
        p[:discoveries] = p_values(np.zeros(n), [-1.0])[0]
        return benjamini_hochberg(p, alpha)[0]

    n = fewest_calibration_rows(alpha, discoveries, num_tests)
    assert possible(n)
    assert n == 1 or not possible(n - 1)


# --------------------------------------------------------------------------------------------------------------- cross-fit


def test_cross_p_values_pool_the_counts_of_all_folds():
    rng = np.random.default_rng(7)
    known = [rng.integers(0, 9, n).astype(float) for n in (3, 8, 8)]
    scores = rng.integers(0, 9, size=(3, 20)).astype(float)
    expected = [(1 + sum(np.sum(k <= s[row]) for k, s in zip(known, scores, strict=True))) / 20 for row in range(20)]
    np.testing.assert_allclose(cross_p_values(known, scores), expected, rtol=1e-15)
    np.testing.assert_array_equal(cross_p_values(known[1:2], scores[1:2]), p_values(known[1], scores[1]))


def test_every_row_is_scored_once_by_the_detector_that_has_not_seen_it():
    X = normal_rows(rows=53)
    fit = cross_conformal(Nearest, X, folds=5, random_state=3)
    assert sorted(np.bincount(fit.fold)) == [10, 10, 11, 11, 11]
    for k, detector in enumerate(fit.detectors):
        np.testing.assert_array_equal(detector.train_, X[fit.fold != k])
        np.testing.assert_array_equal(detector.score_samples(X[fit.fold == k]), fit.scores[fit.fold == k])
    assert (fit.scores < 0.0).all()  # the distance to itself is 0
    np.testing.assert_array_equal(cross_conformal(Nearest, X, random_state=3).fold, fit.fold)
    assert (cross_conformal(Nearest, X, random_state=4).fold != fit.fold).any()


@pytest.mark.parametrize("make_detector", [Nearest, ToTheMean])
def test_forty_rows_have_about_the_level_asked_for(make_detector):
    rates, calibrated_on_itself = [], []
    for seed in range(300):
        X, new = normal_rows(seed, 40), normal_rows(seed + 1000, 50)
        fit = cross_conformal(make_detector, X, random_state=seed)
        p = cross_p_values(
            [fit.scores[fit.fold == k] for k in range(5)], [detector.score_samples(new) for detector in fit.detectors]
        )
        rates.append(np.mean(p <= 0.1))
        whole = make_detector().fit(X)
        calibrated_on_itself.append(np.mean(p_values(whole.score_samples(X), whole.score_samples(new)) <= 0.1))
    assert 0.08 < np.mean(rates) < 0.11  # 4 / 41 at most, if the detectors were one
    assert np.mean(calibrated_on_itself) > 0.14


@pytest.mark.parametrize("method", ["split", "cross"])
def test_equal_rows_stay_on_one_side(method):
    X = np.repeat(normal_rows(rows=40), 5, axis=0)
    model = ConformalDetector(Nearest(), method=method).fit(X)
    assert all((scores < 0.0).all() for scores in model.calibration_scores_)  # a copy would be at distance 0
    if method == "split":
        assert len(model.calibration_scores_) == 40
        assert len(model.detectors_[0].train_) == 160
    else:
        assert sum(map(len, model.calibration_scores_)) == 200
    # Copies on both sides would flag every new row.
    assert np.mean(model.predict(normal_rows(1)) == -1) < 0.2


def test_few_distinct_rows_are_split_as_far_as_they_go():
    X = np.repeat(np.eye(4)[:3], [50, 3, 2], axis=0)
    assert len(cross_conformal(Nearest, X, folds=5).detectors) == 3
    for seed in range(20):
        model = ConformalDetector(Nearest(), random_state=seed).fit(X)
        assert 0 < len(model.calibration_scores_) < 55
    with pytest.raises(ValueError, match="need 2 distinct rows, got 10 equal ones"):
        ConformalDetector(Nearest()).fit(np.ones((10, 4)))


# ---------------------------------------------------------------------------------------------------------------- detector

DETECTORS = [
    KNNDetector(),
    MahalanobisDetector(),
    IsolationForest(n_estimators=30, random_state=0),
    LocalOutlierFactor(novelty=True),
    make_pipeline(StandardScaler(), OneClassSVM()),
]


@pytest.mark.parametrize("method", ["split", "cross"])
@pytest.mark.parametrize("detector", DETECTORS, ids=lambda detector: type(detector).__name__)
def test_any_detector_is_calibrated_and_sees_what_is_far(detector, method):
    model = ConformalDetector(detector, method=method).fit(normal_rows(0, 300))
    usual, far = normal_rows(1, 500), normal_rows(2, 50) + 6.0
    assert 0.01 < np.mean(model.predict(usual) == -1) < 0.12
    assert (model.predict(far) == -1).all()
    assert model.score_samples(far).max() < np.median(model.score_samples(usual))
    rows = np.concatenate([usual, far])
    assert model.discoveries(rows, alpha=0.2)[500:].all()
    np.testing.assert_array_equal(model.discoveries(rows), benjamini_hochberg(model.p_values(rows), 0.1))
    assert not hasattr(detector, "n_features_in_"), "the detector handed over was fitted itself"


def test_the_level_is_kept_over_many_splits():
    flagged = []
    for seed in range(300):
        model = ConformalDetector(ToTheMean(), alpha=0.1, holdout=0.5, random_state=seed).fit(normal_rows(seed, 38))
        flagged.append(np.mean(model.predict(normal_rows(seed + 1000, 50)) == -1))
    assert np.mean(flagged) == pytest.approx(0.1, abs=0.012)  # 2 of 19 + 1


def test_alpha_changes_what_is_flagged_without_another_fit():
    Nearest.fits = 0
    model = ConformalDetector(Nearest(), alpha=0.05).fit(normal_rows(0, 500))
    rows = normal_rows(1, 400)
    p = model.p_values(rows)
    counts = []
    for alpha in (0.0, 0.02, 0.05, 0.2, 1.0):
        labels = model.predict(rows, alpha)
        np.testing.assert_array_equal(labels, np.where(p <= alpha, -1, 1))
        np.testing.assert_array_equal(model.set_params(alpha=alpha).predict(rows), labels)
        counts.append(np.sum(labels == -1))
    assert counts[0] == 0
    assert counts[-1] == 400
    assert np.all(np.diff(counts) > 0)
    assert Nearest.fits == 1
    ConformalDetector(Nearest(), method="cross", folds=4).fit(rows)
    assert Nearest.fits == 5


def test_scores_are_those_of_the_wrapped_detector_and_their_mean_by_cross():
    X, rows = normal_rows(0), normal_rows(1, 20)
    split, cross = ConformalDetector(Nearest()).fit(X), ConformalDetector(Nearest(), method="cross").fit(X)
    np.testing.assert_array_equal(split.score_samples(rows), split.detectors_[0].score_samples(rows))
    assert len(split.detectors_[0].train_) == 160
    each = [detector.score_samples(rows) for detector in cross.detectors_]
    np.testing.assert_allclose(cross.score_samples(rows), np.mean(each, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(cross.p_values(rows), cross_p_values(cross.calibration_scores_, each))


def test_clones_and_nested_settings():
    model = ConformalDetector(KNNDetector(), method="cross", folds=3).set_params(detector__n_neighbors=3)
    assert model.detector.n_neighbors == 3
    model.fit(normal_rows(0, 60))
    assert [detector.n_neighbors_ for detector in model.detectors_] == [3, 3, 3]
    copy = clone(model)
    assert repr(copy.get_params()) == repr(model.get_params())
    for call in (copy.predict, copy.p_values, copy.score_samples, copy.discoveries):
        with pytest.raises(NotFittedError):
            call(normal_rows())


def test_images_are_rows_of_any_rank():
    class Brightness(Nearest):
        def score_samples(self, X):
            return -np.abs(X.mean(axis=(1, 2)) - self.train_.mean())

    images = np.random.default_rng(0).normal(size=(200, 6, 5)).astype(np.float32)
    model = ConformalDetector(Brightness()).fit(images)
    assert model.predict(images[:3] + 5.0).tolist() == [-1, -1, -1]
    with pytest.raises(ValueError, match=r"rows of shape \(6, 5\), got rows of shape \(6, 4\)"):
        model.predict(images[:, :, :4])


@parametrize_with_checks(
    [ConformalDetector(MahalanobisDetector()), ConformalDetector(MahalanobisDetector(), method="cross")],
    expected_failed_checks=lambda _: {"check_outliers_train": "asks for decision_function: p-values take its place"},
)
def test_scikit_learns_own_checks(estimator, check):
    with warnings.catch_warnings():
        # scikit-learn warns about what it chooses to skip (its array API checks); that is no fault of the detector.
        warnings.simplefilter("ignore")
        check(estimator)


# ----------------------------------------------------------------------------------------------------------------- streams


def test_an_adaptive_level_keeps_its_rate_where_a_fixed_one_does_not():
    """Normal rows wander off: by the end the calibration rows say little about them."""
    rng = np.random.default_rng(8)
    drift = 1.5 * np.sin(np.arange(10_000) / 1500) + np.linspace(0, 1, 10_000)
    p = p_values(-np.abs(rng.normal(size=2000)), -np.abs(rng.normal(size=10_000) + drift))
    alarms, levels = run_aci(p, 0.05, gamma=0.02)
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.01)
    assert np.mean(p <= 0.05) > 0.12
    np.testing.assert_array_equal(alarms, p <= levels)
    assert levels[0] == 0.05


@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_the_share_of_alarms_is_bounded_whatever_the_stream_does(alpha):
    """Proposition 4.1, on streams that try: always an anomaly, never one, both in turns, and the worst answer to every level."""
    rng = np.random.default_rng(9)
    half = np.repeat([1e-9, 1.0], 500)
    for p in (np.full(1000, 1e-9), np.ones(1000), half, half[::-1], rng.uniform(size=1000) ** 3):
        alarms, levels = run_aci(p, alpha, gamma=0.05)
        assert abs(np.mean(alarms) - alpha) <= (max(alpha, 1 - alpha) + 0.05) / (0.05 * 1000)
        assert levels.min() >= -0.05
        assert levels.max() <= 1.05


def test_a_stream_step_by_step_is_the_recorded_one():
    p = np.random.default_rng(10).uniform(size=200) ** 2
    labels = (np.arange(200) % 7 == 0).astype(int)
    state, expected = aci_init(0.1), []
    for value, label in zip(p, labels, strict=True):
        expected.append(state.level)
        if not label:
            state = aci_update(state, value <= state.level, gamma=0.03)
    alarms, levels = run_aci(p, 0.1, gamma=0.03, labels=labels)
    np.testing.assert_array_equal(levels, expected)
    np.testing.assert_array_equal(alarms, p <= expected)


def test_known_anomalies_are_no_errors():
    rng = np.random.default_rng(11)
    anomalous = rng.uniform(size=20_000) < 0.2
    p = np.where(anomalous, 1e-4, rng.uniform(size=20_000))
    informed, _ = run_aci(p, 0.05, labels=anomalous)
    blind, _ = run_aci(p, 0.05)
    assert np.mean(informed[~anomalous]) == pytest.approx(0.05, abs=0.01)
    assert np.mean(informed[anomalous]) > 0.95
    assert np.mean(blind) == pytest.approx(0.05, abs=0.01)  # alarms in all, so three anomalies of four are missed
    assert np.mean(blind[anomalous]) < 0.4


# For the exponential distribution z_q = -log q; for Pareto's with P(x > z) = z^-3 it is q^(-1/3); for the uniform one 1 - q.
TAILS = {
    "exponential": (lambda rng, n: rng.exponential(size=n), -np.log(1e-3)),
    "heavy": (lambda rng, n: 1 + rng.pareto(3, size=n), 10.0),
    "bounded": (lambda rng, n: rng.uniform(size=n), 0.999),
}


@pytest.mark.parametrize("tail", TAILS)
def test_the_first_threshold_of_spot_is_the_quantile_in_closed_form(tail):
    draw, exact = TAILS[tail]
    first = [spot(-draw(np.random.default_rng(seed), 5000), [0.0])[1][0] for seed in range(40)]
    assert -np.mean(first) == pytest.approx(exact, rel=0.05)
    assert np.std(first) < 0.2 * exact


def test_spots_alarms_are_about_as_rare_as_asked_for():
    """Measured: forgetting every alarm gives 1.3 to 3 times q, the more the fewer rows it starts from; counting them keeps q."""
    rates = {False: [], True: []}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        initial, stream = -rng.exponential(size=5000), -rng.exponential(size=10_000)
        for include_alarms, found in rates.items():
            alarms, thresholds = spot(initial, stream, q=2e-3, include_alarms=include_alarms)
            np.testing.assert_array_equal(alarms, stream < thresholds)
            found.append(np.mean(alarms))
    assert 0.75 < np.mean(rates[True]) / 2e-3 < 1.25
    assert np.mean(rates[True]) < np.mean(rates[False]) < 2 * 2e-3


def test_spot_forgets_alarms_and_learns_from_the_excesses_below_them():
    initial = -np.random.default_rng(12).exponential(size=2000)
    alarms, thresholds = spot(initial, [-1.0, -50.0, -1.0, -5.0, -1.0])
    assert alarms.tolist() == [False, True, False, False, False]
    assert thresholds[0] == thresholds[1] == thresholds[2] == thresholds[3]
    assert thresholds[4] < thresholds[3], "one more excess close to the limit makes the tail longer"
    assert spot(initial, [-1.0, -50.0, -1.0], include_alarms=True)[1][2] < thresholds[0]
    # A tail that normal rows make longer is followed.
    assert spot(initial, np.tile(initial * 1.2, 2))[1][-1] < thresholds[0]


@pytest.mark.parametrize("count", [20, 100])
def test_the_fitted_tail_is_about_as_close_as_maximum_likelihood(count):
    """Zhang and Stephens' estimate against scipy's, by the error of the log of the quantile that SPOT asks for."""
    rng = np.random.default_rng(13)
    ours, likelihoods = [], []
    for _ in range(25):
        excesses = rng.exponential(size=count)
        ours.append(calibration._tail_quantile(excesses, 0.05 * count))
        shape, _, scale = scipy.stats.genpareto.fit(excesses, 0.0, floc=0, scale=excesses.mean())
        likelihoods.append(scipy.stats.genpareto.isf(0.05, shape, scale=scale))
    exact = -np.log(0.05)
    assert np.mean(np.log(ours) - np.log(exact)) == pytest.approx(0.0, abs=0.12)
    assert np.mean(np.abs(np.log(ours) - np.log(exact))) < 1.25 * np.mean(np.abs(np.log(likelihoods) - np.log(exact)))
    assert np.corrcoef(ours, likelihoods)[0, 1] > 0.9


@pytest.mark.parametrize("excesses", [np.ones(20), np.repeat([1.0, 2.0], 10), np.r_[np.full(19, 1e-9), 1.0]])
def test_degenerate_tails_have_a_finite_limit(excesses):
    limit = calibration._tail_quantile(excesses, 0.05 * len(excesses))
    assert 0.0 < limit < np.inf
    assert calibration._tail_quantile(1e6 * excesses, 0.05 * len(excesses)) == pytest.approx(1e6 * limit, rel=1e-6)


# ------------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], r"got shape \(0,\)"),
        ([[1.0, 2.0]], r"got shape \(1, 2\)"),
        (1.0, r"got shape \(\)"),
        ([1.0, np.nan, -np.inf], r"2 non-finite values, first at \[1, 2\]"),
    ],
)
def test_scores_that_are_no_finite_vector_are_refused(bad, message):
    good = np.random.default_rng(0).normal(size=1000)
    for call in (
        lambda: p_values(bad, good),
        lambda: p_values(good, bad),
        lambda: threshold(bad, 0.1),
        lambda: benjamini_hochberg(bad, 0.1),
        lambda: cross_p_values([bad], [good]),
        lambda: cross_p_values([good], [bad]),
        lambda: run_aci(bad, 0.1),
        lambda: spot(bad, good),
        lambda: spot(good, bad),
    ):
        with pytest.raises(ValueError, match=rf"must be a vector of finite numbers.*{message}|{message}"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: threshold([1.0], 1.5), r"alpha is a rate between 0 and 1, got alpha=1\.5"),
        (lambda: threshold([1.0], np.nan), "alpha is a rate"),
        (lambda: benjamini_hochberg([0.5], -0.1), "alpha is a rate"),
        (lambda: benjamini_hochberg([0.5, 1.2], 0.1), r"lie in \[0, 1\], got 0\.5 to 1\.2; p_values makes them"),
        (lambda: benjamini_hochberg([-3.0], 0.1), r"lie in \[0, 1\]"),
        (lambda: fewest_calibration_rows(0.0, 1, 10), "0 < alpha <= 1 <= discoveries <= num_tests"),
        (lambda: fewest_calibration_rows(0.1, 11, 10), "discoveries=11, num_tests=10"),
        (lambda: cross_p_values([[1.0]], [[1.0], [2.0]]), "got 1 calibrations, 2 scores"),
        (lambda: cross_p_values([], []), "got 0 calibrations, 0 scores"),
        (lambda: cross_conformal(Nearest, normal_rows(), folds=1), "at least 2 folds, got folds=1"),
        (lambda: aci_init(0.0), "both excluded, got alpha=0.0"),
        (lambda: run_aci([0.5], 1.0), "both excluded"),
        (lambda: run_aci([0.5], 0.1, gamma=0.0), r"gamma > 0, got shape \(1,\), gamma=0\.0"),
        (lambda: run_aci([0.5], 0.1, labels=[0, 1]), r"labels of shape \(1,\)"),
        (lambda: spot(np.arange(1000), [1.0], q=0.03), "0 < q < 1 - level < 1"),
        (lambda: spot(np.arange(1000), [1.0], level=1.0), "0 < q < 1 - level < 1"),
        (lambda: spot(np.arange(400), [1.0]), "got 8: more rows or a lower level"),
        (lambda: spot(np.ones(4000), [1.0]), "got 0: more rows or a lower level"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "jackknife"}, "'jackknife'"),
        ({"holdout": 0.0}, "0 < holdout < 1"),
        ({"holdout": 1.0}, "0 < holdout < 1"),
        ({"alpha": 2.0}, "alpha is a rate"),
        ({"method": "cross", "folds": 1}, "at least 2 folds"),
        ({"detector": StandardScaler()}, "score_samples"),
        ({"detector": LocalOutlierFactor()}, "novelty=True"),
    ],
)
def test_settings_are_checked_when_fitting(settings, message):
    with pytest.raises(ValueError, match=message):
        ConformalDetector(KNNDetector()).set_params(**settings).fit(normal_rows())


def test_bad_data_and_bad_levels_are_refused():
    model = ConformalDetector(ToTheMean()).fit(normal_rows())
    broken = normal_rows(1, 5)
    broken[2, 1] = np.nan
    for call in (model.fit, model.predict, model.p_values):
        with pytest.raises(ValueError, match="NaN"):
            call(broken)
    model.fit(normal_rows())
    with pytest.raises(ValueError, match=r"3 features.*4 features"):
        model.predict(normal_rows()[:, :3])
    with pytest.raises(ValueError, match="alpha is a rate"):
        model.predict(normal_rows(), alpha=-1.0)


def test_a_detector_whose_scores_are_not_finite_is_found_out():
    class Broken(Nearest):
        def score_samples(self, X):
            return np.full(len(X), np.nan)

    for method in ("split", "cross"):
        with pytest.raises(ValueError, match="score_samples must be a vector of finite numbers"):
            ConformalDetector(Broken(), method=method).fit(normal_rows())


def test_examples_in_docstrings():
    for module, least in ((calibration, 10), (conformal, 5)):
        failed, attempted = doctest.testmod(module)
        assert failed == 0
        assert attempted >= least
