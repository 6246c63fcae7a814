"""The detectors without a network: examples by hand, parity with PyOD, scikit-learn and scipy, and published
numbers."""

import warnings

import jax
import numpy as np
import pytest
import scipy.stats
from sklearn.base import BaseEstimator, clone
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from jaxad.detectors import neighbours, search
from jaxad.detectors.copula import COPOD, ECOD
from jaxad.detectors.estimator import check_scoring_data, check_training_data
from jaxad.detectors.gaussian import MahalanobisDetector, SquaredNorm
from jaxad.detectors.neighbours import DTENonParametric, KNNDetector, most_probable_step
from jaxad.metrics import auroc
from jaxad.metrics.calibration import threshold


@pytest.fixture(scope="module")
def pyod():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyod.models.copod
        import pyod.models.ecod
        import pyod.models.knn
    return pyod


def skewed_rows(seed, rows, features=6):
    """Columns skewed either way, one of them with many ties."""
    rng = np.random.default_rng(seed)
    table = rng.gamma(2.0, size=(rows, features)) * np.where(np.arange(features) % 2, -1.0, 1.0)
    table[:, -1] = table[:, -1].round()
    return table


# ------------------------------------------------------------------------------------------------------------ threshold


def test_the_threshold_is_an_order_statistic():
    scores = -np.arange(1.0, 100.0)
    assert threshold(scores, 0.0) == -np.inf
    assert threshold(scores, 0.05) == -95.0
    assert threshold(scores, 0.5) == -50.0
    assert threshold([3.0], 0.05) == -np.inf
    assert threshold([3.0], 0.5) == 3.0


def test_the_threshold_holds_the_false_alarm_rate_on_average():
    rng = np.random.default_rng(0)
    alarms = [np.mean(rng.normal(size=200) < threshold(rng.normal(size=59), 0.1)) for _ in range(300)]
    # Exact expectation: floor(0.1 * 60) / 60.
    assert np.mean(alarms) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("rate", [-0.1, 0.51, float("nan")])
def test_the_threshold_refuses_bad_input(rate):
    with pytest.raises(ValueError, match="false_alarm_rate"):
        KNNDetector(false_alarm_rate=rate).fit([[0.0], [1.0], [2.0]])


@pytest.mark.parametrize(
    "detector", [KNNDetector(n_neighbors=1), DTENonParametric(), COPOD(), ECOD(), MahalanobisDetector(), SquaredNorm()]
)
def test_new_normal_rows_raise_false_alarms_at_the_rate_asked_for(detector):
    # 60 rows of 30 features: scored in-sample, the nearest neighbour is the row itself and a covariance fits anything.
    rng = np.random.default_rng(0)
    detector = clone(detector).set_params(false_alarm_rate=0.1)
    alarms = []
    for _ in range(20):
        detector.fit(rng.normal(size=(60, 30)))
        alarms.append(np.mean(detector.predict(rng.normal(size=(200, 30))) == -1))
    assert np.mean(alarms) == pytest.approx(0.1, abs=0.04)


# ------------------------------------------------------------------------------------------------------------ the door


class Images(BaseEstimator):
    """The least that accepts images."""

    def fit(self, X, y=None):
        self.kept_ = check_training_data(self, X, allow_images=True)
        return self


def test_images_are_compared_in_every_axis():
    detector = Images().fit(np.zeros((3, 8, 6, 1), np.uint8))
    assert detector.sample_shape_ == (8, 6, 1)
    assert detector.kept_.dtype == np.float32
    assert check_scoring_data(detector, np.zeros((2, 8, 6, 1))).dtype == np.float64
    for shape in [(2, 8, 5, 1), (2, 8, 6), (2, 8, 6, 3), (2, 48)]:
        with pytest.raises(ValueError, match=r"fitted on rows of shape \(8, 6, 1\), got rows of shape"):
            check_scoring_data(detector, np.zeros(shape))
    with pytest.raises(ValueError, match="NaN"):
        check_scoring_data(detector, np.full((2, 8, 6, 1), np.nan))


def test_a_detector_fitted_on_a_table_refuses_images():
    detector = Images().fit(np.zeros((3, 8)))
    with pytest.raises(ValueError, match="dim 3"):
        check_scoring_data(detector, np.zeros((2, 8, 6)))
    with pytest.raises(ValueError, match=r"7 features.*8 features"):
        check_scoring_data(detector, np.zeros((2, 7)))


def test_tables_alone_are_accepted_without_allow_images():
    with pytest.raises(ValueError, match="dim 3"):
        KNNDetector().fit(np.zeros((3, 8, 6)))


# ------------------------------------------------------------------------------------------------------------
# neighbours


def test_neighbour_distances_by_hand():
    train = np.array([[0.0, 0.0], [0.0, 3.0], [4.0, 0.0]])
    query = [[0.0, 1.0]]  # distances 1, 2 and the root of 17
    scores = {
        aggregate: KNNDetector(2, aggregate=aggregate).fit(train).score_samples(query)[0]
        for aggregate in ("largest", "mean", "median")
    }
    assert scores == {"largest": -2.0, "mean": -1.5, "median": -1.5}
    assert DTENonParametric(2, standardize=False).fit(train).score_samples(query)[0] == -((1 + 4) / 2) / 2


@pytest.mark.parametrize("aggregate", ["largest", "mean", "median"])
@pytest.mark.parametrize("features", [3, 40])  # a k-d tree and brute force
def test_parity_with_pyod_knn_on_new_and_on_training_rows(pyod, aggregate, features):
    train, test = skewed_rows(0, 200, features), skewed_rows(1, 80, features)
    theirs = pyod.models.knn.KNN(n_neighbors=5, method=aggregate).fit(train)
    ours = KNNDetector(5, aggregate=aggregate, false_alarm_rate=0.2).fit(train)
    np.testing.assert_allclose(ours.score_samples(test), -theirs.decision_function(test), rtol=1e-5)
    assert ours.offset_ == pytest.approx(threshold(-theirs.decision_scores_, 0.2), rel=1e-5)


def test_dte_is_the_mode_of_the_inverse_gamma_posterior():
    train, test = skewed_rows(0, 150), skewed_rows(1, 40)
    scaler = StandardScaler().fit(train)
    distances, _ = NearestNeighbors(n_neighbors=5).fit(scaler.transform(train)).kneighbors(scaler.transform(test))
    mean = (distances**2).mean(axis=1)
    scores = DTENonParametric().fit(train).score_samples(test)
    np.testing.assert_allclose(scores, -mean / 6, rtol=1e-5)
    variances = np.linspace(1e-3, 5.0, 50_001)
    density = scipy.stats.invgamma.logpdf(variances, a=6 / 2 - 1, scale=mean[0] / 2)
    assert variances[density.argmax()] == pytest.approx(-scores[0], abs=2e-4)


@pytest.mark.parametrize("num_features", [3, 10, 500])
@pytest.mark.parametrize("num_levels", [2, 300])
def test_the_quirky_step_is_the_arg_max_of_the_density(num_features, num_levels):
    variances = 1.0 - np.cumprod(1.0 - np.linspace(1e-4, 1e-2, num_levels))
    mean = num_features * np.geomspace(1e-6, 1e2, 400)
    density = scipy.stats.invgamma.logpdf(variances, a=num_features / 2 - 1, scale=mean[:, None] / 2)
    np.testing.assert_array_equal(most_probable_step(mean, num_features, num_levels), density.argmax(axis=1))


def test_the_quirky_score_saturates_where_the_corrected_one_does_not():
    train = np.random.default_rng(0).normal(size=(100, 4))
    far = np.array([[10.0] * 4, [20.0] * 4])
    quirky, corrected = DTENonParametric(official_quirks=True).fit(train), DTENonParametric().fit(train)
    assert quirky.score_samples(far).tolist() == [-299.0, -299.0]
    assert np.diff(corrected.score_samples(far)) < 0.0
    assert quirky.score_samples(train[:1])[0] > -299.0


@pytest.mark.parametrize(("features", "num_levels"), [(2, 300), (1, 300), (3, 1)])
def test_the_quirky_score_refuses_what_it_cannot_do(features, num_levels):
    rows = skewed_rows(0, 20, features)
    with pytest.raises(ValueError, match="at least 3 features and 2 levels"):
        DTENonParametric(official_quirks=True, num_levels=num_levels).fit(rows)


def test_more_neighbours_than_rows_means_all_of_the_others():
    train = skewed_rows(0, 4)
    detector = KNNDetector(50).fit(train)
    assert detector.n_neighbors_ == 3
    np.testing.assert_array_equal(detector.score_samples(train), KNNDetector(3).fit(train).score_samples(train))


def test_copies_of_a_row_are_its_neighbours_but_the_row_itself_is_not():
    train = np.repeat([[0.0], [1.0], [5.0]], [9, 2, 1], axis=0)
    # Leave-one-out nearest distances: nine and two rows have a copy, the last is 4 from its neighbour.
    assert KNNDetector(1, false_alarm_rate=0.08).fit(train).offset_ == pytest.approx(-4.0, rel=1e-6)
    assert KNNDetector(1, false_alarm_rate=0.5).fit(train).offset_ == 0.0


def test_many_training_rows_are_sampled_for_the_threshold(monkeypatch):
    train = skewed_rows(0, 400)
    everything = KNNDetector(false_alarm_rate=0.2).fit(train).offset_
    monkeypatch.setattr(neighbours, "MOST_THRESHOLD_ROWS", 150)
    sampled = KNNDetector(false_alarm_rate=0.2).fit(train).offset_
    assert sampled == KNNDetector(false_alarm_rate=0.2).fit(train).offset_
    assert sampled != everything
    assert sampled == pytest.approx(everything, rel=0.15)


def test_neither_order_nor_block_changes_a_distance(monkeypatch):
    detector, rows = KNNDetector().fit(skewed_rows(0, 200, 30)), skewed_rows(1, 50, 30)
    scores = detector.score_samples(rows)
    np.testing.assert_array_equal(detector.score_samples(rows[::-1]), scores[::-1])
    monkeypatch.setattr(search, "BLOCK", 48)  # four blocks and a rest
    jax.clear_caches()
    np.testing.assert_allclose(detector.score_samples(rows), scores, rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_distances_survive_a_large_offset(offset):
    # |x|^2 - 2xy + |y|^2 without centring loses ten digits here.
    train, rows = skewed_rows(0, 100, 30), skewed_rows(1, 20, 30)
    expected = KNNDetector().fit(train).score_samples(rows)
    np.testing.assert_allclose(KNNDetector().fit(train + offset).score_samples(rows + offset), expected, rtol=1e-5)


@pytest.mark.parametrize("setting", [{"n_neighbors": 0}, {"n_neighbors": 2.5}, {"aggregate": "max"}])
def test_neighbour_settings_are_checked(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        KNNDetector(**setting).fit(skewed_rows(0, 10))


# ------------------------------------------------------------------------------------------------------------ copula


# PyOD takes the skewness of the constant column, about which scipy warns.
@pytest.mark.filterwarnings("ignore:Precision loss")
@pytest.mark.parametrize(("name", "ours"), [("copod.COPOD", COPOD), ("ecod.ECOD", ECOD)])
def test_parity_with_pyod_in_the_transductive_form(pyod, name, ours):
    train, test = skewed_rows(0, 150), skewed_rows(1, 60)
    train[:, 2] = 4.0  # constant in training, not in test
    module, cls = name.split(".")
    theirs = getattr(getattr(pyod.models, module), cls)().fit(train)
    ours = ours(transductive=True, false_alarm_rate=0.1).fit(train)
    assert ours.offset_ == pytest.approx(threshold(-theirs.decision_scores_, 0.1), rel=1e-5)
    np.testing.assert_allclose(ours.score_samples(test), -theirs.decision_function(test), rtol=1e-5)


def test_tails_by_hand():
    # Five values skewed to the right: COPOD takes the right tail where it exceeds the mean of both, ECOD the larger
    # tail too.
    train = np.array([[0.0], [1.0], [1.0], [2.0], [9.0]])
    at_most, at_least = np.array([0.5, 3.5, 5.5]) / 6, np.array([5.5, 4.5, 0.5]) / 6
    left, right = -np.log(at_most), -np.log(at_least)
    rows = [[-1.0], [1.0], [99.0]]
    np.testing.assert_allclose(COPOD().fit(train).score_samples(rows), -np.maximum(right, (left + right) / 2))
    np.testing.assert_allclose(ECOD().fit(train).score_samples(rows), -np.maximum(left, right))


def test_a_symmetric_column_counts_both_tails():
    train = np.array([[-0.3], [-0.1], [0.1], [0.3]])
    expected = np.log(4.5 / 5) + np.log(0.5 / 5)
    for detector in (COPOD(), ECOD()):
        assert detector.fit(train).score_samples([[7.0]])[0] == pytest.approx(expected)


def test_leave_one_out_tails_set_the_threshold():
    train = skewed_rows(0, 30, 1)
    alone = [COPOD().fit(np.delete(train, row, 0)).score_samples(train[row : row + 1])[0] for row in range(30)]
    assert COPOD(false_alarm_rate=0.2).fit(train).offset_ == pytest.approx(threshold(alone, 0.2), rel=1e-5)


@pytest.mark.parametrize("detector", [COPOD(), ECOD()])
def test_a_constant_column_counts_only_for_rows_that_leave_it(detector):
    train = np.column_stack([skewed_rows(0, 40, 1), np.full(40, 1e6)])
    alone = clone(detector).fit(train[:, :1])
    both = clone(detector).fit(train)
    np.testing.assert_array_equal(both.score_samples(train), alone.score_samples(train[:, :1]))
    moved = train + np.array([0.0, 1.0])
    np.testing.assert_allclose(both.score_samples(moved), alone.score_samples(train[:, :1]) - np.log(41))


def test_the_nan_quirk_needs_a_column_constant_over_all_rows():
    train, test = skewed_rows(0, 40), skewed_rows(1, 20)
    plain, quirky = COPOD(transductive=True), COPOD(transductive=True, nan_quirk=True)
    np.testing.assert_array_equal(quirky.fit(train).score_samples(test), plain.fit(train).score_samples(test))
    train[:, 0] = 1.0
    assert quirky.fit(train).score_samples(test).any(), "constant in training only"
    test[:, 0] = 1.0
    assert not quirky.fit(train).score_samples(test).any()
    with pytest.raises(ValueError, match="transductive=True"):
        COPOD(nan_quirk=True).fit(train)


def dte_protocol(file, seed=44):
    """The published protocol: fewer than 1,000 rows are resampled to 1,000 *before* the split; see docs of the
    protocols."""
    with np.load(file) as data:
        X, y = data["X"].astype(np.float64), data["y"].ravel()
    if len(X) < 1000:
        rows = np.random.RandomState(seed).choice(len(X), 1000, replace=True)
        X, y = X[rows], y[rows]
    normal = np.flatnonzero(y == 0)
    train, rest = np.split(normal, [round(0.5 * len(normal))])
    test = np.concatenate([rest, np.flatnonzero(y == 1)])
    scaler = StandardScaler().fit(X[train])
    return scaler.transform(X[train]), scaler.transform(X[test]), y[test]


@pytest.mark.parametrize(
    ("name", "transductive", "inductive", "published", "norm"),
    [
        ("MVTec-AD_grid", 58.75, 63.64, 50.00, 64.80),
        ("MVTec-AD_tile", 83.52, 86.00, 50.00, 84.65),
        ("CIFAR10_6", 67.41, 68.38, 67.41, 71.44),
    ],
)
def test_numbers_of_the_published_table(data_dir, name, transductive, inductive, published, norm):
    train, test, labels = dte_protocol(data_dir / "adbench" / "CV_by_ResNet18" / f"{name}.npz")
    detectors = [COPOD(transductive=True), COPOD(), COPOD(transductive=True, nan_quirk=True), SquaredNorm()]
    scores = [100 * auroc(labels, -detector.fit(train).score_samples(test)) for detector in detectors]
    np.testing.assert_allclose(scores, [transductive, inductive, published, norm], atol=0.006)


# ------------------------------------------------------------------------------------------------------------ Gaussian


def test_mahalanobis_agrees_with_scikit_learn():
    train, test = skewed_rows(0, 100), skewed_rows(1, 30)
    theirs = LedoitWolf().fit(train)
    ours = MahalanobisDetector(standardize=False).fit(train)
    np.testing.assert_allclose(ours.score_samples(test), -theirs.mahalanobis(test), rtol=1e-5)


def test_mahalanobis_does_not_depend_on_units():
    train, test = skewed_rows(0, 100), skewed_rows(1, 30)
    units = np.array([1e-6, 1.0, 1e6, 10.0, 3.0, 0.1])
    expected = MahalanobisDetector().fit(train).score_samples(test)
    scores = MahalanobisDetector().fit(train * units).score_samples(test * units)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_mahalanobis_approaches_the_true_distance():
    rng = np.random.default_rng(0)
    mixing, rows = rng.normal(size=(3, 3)), rng.normal(size=(20, 3))
    train = rng.normal(size=(100_000, 3)) @ mixing
    scores = MahalanobisDetector().fit(train).score_samples(rows @ mixing)
    np.testing.assert_allclose(scores, -(rows**2).sum(axis=1), rtol=0.03, atol=0.05)


def test_a_row_off_the_plane_of_the_training_rows_is_seen():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 10))  # rank 3 in 10 dimensions
    off = np.linalg.svd(train)[2][-1]
    detector = MahalanobisDetector(standardize=False).fit(train)
    on_plane, off_plane = detector.score_samples(train[:1])[0], detector.score_samples(train[:1] + off)[0]
    assert off_plane < 5.0 * on_plane
    # The pseudo-inverse, by contrast, cannot tell the two apart.
    blind = EmpiricalCovariance().fit(train)
    assert blind.mahalanobis(train[:1] + off) == pytest.approx(blind.mahalanobis(train[:1]), rel=1e-6)


def test_fewer_rows_than_features_and_no_variance_at_all():
    rng = np.random.default_rng(0)
    scores = MahalanobisDetector().fit(rng.normal(size=(5, 50))).score_samples(rng.normal(size=(3, 50)))
    assert np.isfinite(scores).all()
    identical = MahalanobisDetector().fit(np.full((6, 2), 3.0))
    np.testing.assert_array_equal(identical.score_samples([[3.0, 3.0], [4.0, 5.0]]), [0.0, -5.0])


def test_squared_norm_learns_nothing():
    rows = skewed_rows(0, 20)
    scores = SquaredNorm().fit(rows).score_samples(rows)
    np.testing.assert_array_equal(scores, SquaredNorm().fit(100.0 + rows).score_samples(rows))
    np.testing.assert_allclose(scores, -np.sum(rows**2, axis=1))
