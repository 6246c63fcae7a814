"""What every detector promises, one table over all of them: ours, and scikit-learn's as they come."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils.estimator_checks import parametrize_with_checks

from jaxad.denoisers import MLP, DiT
from jaxad.detectors import ConformalDetector, ConsensusDetector, DiffusionDetector, DTECategorical, DTEInverseGamma
from jaxad.detectors.copula import COPOD, ECOD
from jaxad.detectors.estimator import Detector
from jaxad.detectors.gaussian import MahalanobisDetector, SquaredNorm
from jaxad.detectors.neighbours import DTENonParametric, KNNDetector
from jaxad.metrics import auroc

# A new detector is added here, with settings small enough that one fit on 300 rows takes a second.
OURS = [
    KNNDetector(),
    KNNDetector(n_neighbors=3, aggregate="mean", standardize=True),
    DTENonParametric(),
    COPOD(),
    ECOD(),
    MahalanobisDetector(),
    SquaredNorm(),
    DiffusionDetector(MLP(width=32, depth=1), num_steps=100),
    DiffusionDetector(DiT(hidden=16, depth=1, heads=2, patch_size=2), num_steps=200, learning_rate=3e-3),
    DTECategorical(num_steps=200),
    DTEInverseGamma(num_steps=100),
    ConsensusDetector(num_networks=2, num_steps=50),
    ConsensusDetector(num_networks=0),
]
# scikit-learn's checks use a dozen shapes, and every new shape compiles: the trained detectors, which share what the checks look at with
# the others (`estimator`), wait in `slow`.
QUICK_TO_CHECK, SLOW_TO_CHECK = [*OURS[:7], OURS[12]], OURS[7:12]
SCIKIT_LEARNS = [
    IsolationForest(random_state=0),
    OneClassSVM(gamma="auto"),
    LocalOutlierFactor(novelty=True),
    make_pipeline(StandardScaler(), OneClassSVM()),
    ConformalDetector(KNNDetector()),
]
# Exact for arithmetic in float64; the float32 of a network leaves this much.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def name(detector) -> str:
    return repr(detector).replace("\n", " ")


# Two of the trained ones share all that is tested here with another: they wait as well.
SAME_AGAIN = (OURS[8], OURS[10])
EACH = [pytest.param(each, marks=pytest.mark.slow) if each in SAME_AGAIN else each for each in OURS]
every_detector = pytest.mark.parametrize("detector", EACH + SCIKIT_LEARNS, ids=name)
our_detectors = pytest.mark.parametrize("detector", EACH, ids=name)


def normal_rows(seed=0, rows=300):
    return np.random.default_rng(seed).normal(size=(rows, 4)) * [1.0, 0.5, 1.0, 2.0]


@pytest.fixture(scope="module")
def fitted():
    """Each detector fitted once on the normal rows; tests score with it and never fit it again."""
    kept = {}

    def fit(detector):
        if id(detector) not in kept:
            kept[id(detector)] = clone(detector).fit(normal_rows())
        return kept[id(detector)]

    return fit


@every_detector
def test_larger_scores_are_more_normal(detector, fitted):
    assert isinstance(detector, Detector)
    rows = np.concatenate([normal_rows(1), 8.0 + normal_rows(2, 50)])
    scores = fitted(detector).score_samples(rows)
    assert scores.shape == (350,)
    assert auroc(np.repeat([0, 1], [300, 50]), -scores) > 0.97


@our_detectors
def test_predictions_follow_from_scores_and_offset(detector, fitted):
    detector = fitted(detector)
    rows = np.concatenate([normal_rows(1), 8.0 + normal_rows(2, 50)])
    scores, decisions, labels = (
        f(rows) for f in (detector.score_samples, detector.decision_function, detector.predict)
    )
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(decisions, scores - detector.offset_)
    np.testing.assert_array_equal(labels, np.where(decisions >= 0.0, 1, -1))
    assert np.mean(labels[:300] == -1) < 0.12, "about false_alarm_rate = 0.05 of new normal rows"
    assert np.mean(labels[300:] == -1) > 0.9


@our_detectors
def test_p_values_are_the_share_of_normal_rows_that_score_so_low(detector, fitted):
    detector, new, far = fitted(detector), normal_rows(1, 1000), 8.0 + normal_rows(2, 300)
    # With n calibration rows the rate at 10 % is 10 % on average over training sets, and scattered around it like a Beta variable.
    scatter = np.sqrt(0.1 * 0.9 / len(detector.calibration_scores_))
    assert abs(np.mean(detector.p_values(new) <= 0.1) - 0.1) < 4 * scatter
    flagged = [detector.predict(new, alpha=alpha) == -1 for alpha in (0.0, 0.05, 0.2)]
    assert not flagged[0].any()
    assert (flagged[1] <= flagged[2]).all()
    assert flagged[1].sum() < flagged[2].sum()
    found = detector.discoveries(np.concatenate([new[:500], far]), alpha=0.2)
    assert found[500:].mean() > 0.9
    assert found[:500].mean() < 0.3
    with pytest.raises(ValueError, match="alpha is a rate between 0 and 1"):
        detector.predict(new, alpha=1.5)


@every_detector
def test_a_second_fit_forgets_the_first(detector, fitted):
    rows = normal_rows(1, 50)
    again = clone(detector).fit(20.0 + 3.0 * normal_rows(3, 100)).fit(normal_rows())
    np.testing.assert_array_equal(again.score_samples(rows), fitted(detector).score_samples(rows))


@every_detector
def test_the_same_seed_gives_the_same_scores_and_fit_leaves_the_settings(detector):
    first, second = clone(detector), clone(detector)
    before = first.get_params()
    rows = normal_rows(0, 100)
    np.testing.assert_array_equal(first.fit(rows).score_samples(rows), second.fit(rows).score_samples(rows))
    assert repr(first.get_params()) == repr(before)


@every_detector
def test_a_score_is_a_function_of_its_row_alone(detector, fitted):
    detector, rows = fitted(detector), np.concatenate([normal_rows(1, 60), 5.0 + normal_rows(2, 7)])
    scores = detector.score_samples(rows)
    order = np.random.default_rng(5).permutation(len(rows))
    np.testing.assert_allclose(detector.score_samples(rows[order]), scores[order], **CLOSE)
    np.testing.assert_allclose(detector.score_samples(rows[3:20:2]), scores[3:20:2], **CLOSE)
    np.testing.assert_allclose(detector.score_samples(rows[5:6]), scores[5:6], **CLOSE)
    np.testing.assert_allclose(detector.score_samples(np.repeat(rows[:2], 40, axis=0)), scores[:2].repeat(40), **CLOSE)


@our_detectors
def test_integers_and_float32_are_the_numbers_they_stand_for(detector):
    train, rows = (10 * normal_rows(0, 80)).round(), (10 * normal_rows(1, 20)).round()
    expected = clone(detector).fit(train).score_samples(rows)
    for dtype in (np.int64, np.int16, np.float32):
        scores = clone(detector).fit(train.astype(dtype)).score_samples(rows.astype(dtype))
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, expected, **CLOSE)


@our_detectors
def test_constant_columns_give_finite_scores(detector):
    train, rows = normal_rows(0, 60), normal_rows(1, 20)
    train[:, 1] = rows[:, 1] = 7.0
    detector = clone(detector).fit(train)
    kept = detector.score_samples(rows)
    rows[:, 1] = 9.0
    moved = detector.score_samples(rows)
    assert np.isfinite(kept).all()
    assert np.isfinite(moved).all()
    assert (moved < kept).all(), "leaving a value that never varied is anomalous"


@our_detectors
def test_the_caller_may_reuse_the_training_array(detector):
    train, rows = normal_rows(0, 60), normal_rows(1, 20)
    detector, untouched = clone(detector).fit(train), train.copy()
    np.testing.assert_array_equal(train, untouched)
    expected = detector.score_samples(rows)
    train[:] = 1e6
    np.testing.assert_array_equal(detector.score_samples(rows), expected)


@our_detectors
def test_two_rows_are_enough(detector):
    detector = clone(detector).fit(normal_rows(0, 2))
    assert np.isfinite(detector.score_samples(normal_rows(1, 5))).all()
    assert detector.offset_ < np.inf  # -inf: so few rows support no rate


BAD_VALUES = [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")]


# scikit-learn's IsolationForest takes missing and infinite values.
@our_detectors
@pytest.mark.parametrize(("value", "message"), BAD_VALUES)
def test_non_finite_values_are_refused(detector, value, message, fitted):
    rows = normal_rows(0, 30)
    rows[7, 2] = value
    with pytest.raises(ValueError, match=message):
        clone(detector).fit(rows)
    with pytest.raises(ValueError, match=message):
        fitted(detector).score_samples(rows)


@every_detector
def test_another_width_is_refused(detector, fitted):
    with pytest.raises(ValueError, match=r"3 features.*4 features"):
        fitted(detector).score_samples(normal_rows(0, 5)[:, :3])
    with pytest.raises(ValueError, match=r"1D array|2D array|Expected 2"):
        fitted(detector).score_samples(normal_rows(0, 4)[0])


@our_detectors
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((1, 4)), r"1 sample.*minimum of 2"),
        (np.zeros((5, 0)), r"0 feature.*minimum of 1"),
        (np.zeros((0, 4)), r"0 sample"),
        (np.array([["a", "b"], ["c", "d"]], dtype=object), "could not convert string to float"),
        (np.zeros(5), "1D array|2D array"),
    ],
    ids=["one row", "no feature", "no row", "text", "vector"],
)
def test_unusable_training_data_is_refused(detector, rows, message):
    with pytest.raises(ValueError, match=message):
        clone(detector).fit(rows)


@our_detectors
@pytest.mark.parametrize("rate", [-0.1, 0.6, np.nan])
def test_a_false_alarm_rate_out_of_range_is_refused(detector, rate):
    detector = clone(detector).set_params(false_alarm_rate=rate)
    if "num_steps" in detector.get_params():
        detector.set_params(num_steps=10**8)  # refused before the training, or never
    with pytest.raises(ValueError, match=r"false_alarm_rate.*between 0 and 0\.5"):
        detector.fit(normal_rows(0, 20))


@every_detector
def test_a_clone_is_not_fitted(detector, fitted):
    copy = clone(fitted(detector))
    assert repr(copy.get_params()) == repr(detector.get_params())
    with pytest.raises(NotFittedError):
        copy.score_samples(normal_rows(0, 5))


def expected_to_fail(estimator):
    """A linen module carries an id that every copy renews, and this check compares hashes of copies; None passes it.

    The consensus measures distances to its training rows: one of them, scored again, finds itself, so none is flagged. scikit-learn's
    LocalOutlierFactor(novelty=True) has the same nature and is exempt from the checks that want some flagged.
    """
    if isinstance(estimator, ConsensusDetector):
        reason = "a training row finds itself at distance 0, so none of them is flagged"
        return dict.fromkeys(("check_outliers_train", "check_outliers_fit_predict"), reason)
    if getattr(estimator, "network", None) is None:
        return {}
    return {"check_estimators_overwrite_params": "a copied linen module has another id, so its hash differs unchanged"}


@parametrize_with_checks(QUICK_TO_CHECK, expected_failed_checks=expected_to_fail)
def test_scikit_learns_own_checks(estimator, check):
    run(check, estimator)


@pytest.mark.slow
@parametrize_with_checks(SLOW_TO_CHECK, expected_failed_checks=expected_to_fail)
def test_scikit_learns_own_checks_on_the_others(estimator, check):
    run(check, estimator)


def run(check, estimator):
    with warnings.catch_warnings():
        # scikit-learn warns about what it chooses to skip (its array API checks); that is no fault of the detector.
        warnings.simplefilter("ignore")
        check(estimator)
