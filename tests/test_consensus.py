"""The recommended detector and its views: each view sees what it is for, and the whole is calibrated on what it has not seen."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from sklearn.metrics import pairwise_distances

from jaxad.detectors import ConsensusDetector, consensus, estimator, views
from jaxad.detectors.estimator import in_batches
from jaxad.detectors.evidence import WEIGHTS, Evidence, combine, view_weights
from jaxad.metrics import auroc

RNG = np.random.default_rng(0)


def correlated(rows, seed=0):
    return np.random.default_rng(seed).multivariate_normal([0, 0, 0], [[1, 0.95, 0], [0.95, 1, 0], [0, 0, 1]], rows)


@pytest.fixture(scope="module")
def fitted():
    return views.fit_views(correlated(400))


@pytest.fixture(scope="module")
def detector():
    return ConsensusDetector(num_networks=2, num_steps=400).fit(correlated(300))


def distances(fitted, rows):
    return in_batches(Partial(views.rows_of_distances, fitted), np.asarray(rows, np.float32)).T


def by_name(fitted, rows):
    return dict(zip(views.NAMES, distances(fitted, rows), strict=True))


# ------------------------------------------------------------------------------------------------------------------ views


def test_distances_are_those_to_the_nearest_row(fitted):
    queries = correlated(50, 1).astype(np.float32)
    seen = by_name(fitted, queries)
    reference = correlated(400).astype(np.float32)
    np.testing.assert_allclose(seen["nearest"], pairwise_distances(queries, reference).min(axis=1), rtol=1e-4)
    white = lambda x: (x - fitted.mean) @ fitted.whitening  # noqa: E731
    np.testing.assert_allclose(
        seen["whitened"], pairwise_distances(white(queries), white(reference)).min(axis=1), rtol=1e-3
    )


def test_a_broken_dependency_shows_in_the_conditional_view_and_not_in_the_columns(fitted):
    usual, broken = by_name(fitted, [[1.0, 1.0, 0.0]]), by_name(fitted, [[1.0, -1.0, 0.0]])
    assert broken["conditional"] > 4 * usual["conditional"]
    assert broken["columns"] == pytest.approx(usual["columns"], abs=0.3)


def test_conditional_residuals_are_the_gaussian_ones():
    rows = np.random.default_rng(0).multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 20_000)
    fitted = views.fit_views(rows)
    # x1 given x2 is N(.8 x2, .36): the residual of (1, 0) is 1 / .6, that of x2 given x1 is -.8 / .6.
    seen = distances(fitted, [[1.0, 0.0]])
    assert seen[views.NAMES.index("conditional"), 0] == pytest.approx((1 + 0.8) / 2 / 0.6, rel=0.05)


def test_an_odd_single_value_shows_in_the_columns():
    rows = RNG.normal(size=(500, 30))
    fitted = views.fit_views(rows)
    odd = np.zeros((1, 30), np.float32)
    odd[0, 7] = 8.0
    plain, strange = (dict(zip(views.NAMES, distances(fitted, x)[:, 0], strict=True)) for x in (odd * 0, odd))
    assert strange["columns"] - plain["columns"] > 0.1
    assert strange["outside"] > plain["outside"] == 0
    assert strange["ranks"] - plain["ranks"] < 0.5  # ranks do not know how far 8 is


def test_column_isolation_counts_neighbours_on_both_sides_and_not_the_value_itself():
    column = jnp.array([[0.0, 1.0, 2.0, 3.0, 4.0, 10.0, 20.0, jnp.inf]])

    def isolation(value, own=0):
        rows = jnp.array([[value]])
        return float(views.isolation_in_columns(column, rows, views._places(column, rows, "left"), 5, own)[0, 0])

    assert isolation(2.0) == pytest.approx(np.mean([0, 1, 1, 2, 2]))
    assert isolation(2.0, own=1) == pytest.approx(np.mean([1, 1, 2, 2, 8]))
    assert isolation(30.0) == pytest.approx(np.mean([10, 20, 26, 27, 28]))
    assert isolation(-1.0) == pytest.approx(np.mean([1, 2, 3, 4, 5]))


@pytest.mark.parametrize("rows", [np.ones((6, 3)), np.eye(2), RNG.normal(size=(5, 1)), RNG.normal(size=(8, 40))])
def test_degenerate_rows_give_finite_distances(rows):
    fitted = views.fit_views(rows)
    assert np.isfinite(distances(fitted, rows + 1)).all()


# -------------------------------------------------------------------------------------------------------------- consensus


def test_it_sees_what_any_one_view_sees(detector):
    normal = correlated(500, 1)
    far = normal[:100] + np.array([6, 6, 0])
    broken = normal[:100] * [1, -1, 1]
    lonely = normal[:100] + np.array([0, 0, 9])
    # Of the broken dependencies many are hardly broken, and the columns and tails, which weigh much in small tables, cannot see them.
    for anomalies, least in ((far, 0.95), (broken, 0.75), (lonely, 0.95)):
        labels = np.repeat([0, 1], [500, 100])
        assert auroc(labels, -detector.score_samples(np.concatenate([normal, anomalies]))) > least


def test_scoring_in_blocks_changes_nothing(detector, monkeypatch):
    rows = correlated(60, 4)
    whole = detector.score_samples(rows)
    monkeypatch.setattr(estimator, "SCORING_BATCH", 16)
    np.testing.assert_allclose(detector.score_samples(rows), whole, rtol=1e-4, atol=1e-5)


def test_a_fold_is_left_out_whole_where_only_part_of_it_is_measured(monkeypatch):
    """Copies of a measured row must not stay in the reference it is measured against; what finds itself is counted apart."""
    rows = np.repeat(RNG.normal(size=(300, 3)), 10, axis=0)
    monkeypatch.setattr(consensus, "MOST_HELD_OUT_ROWS", 20)
    model = ConsensusDetector(num_networks=0).fit(rows)
    nearest = model.scorer_.combined.of.knots[views.NAMES.index("nearest")]
    assert np.mean(nearest > 0) > 0.4
    assert nearest[0] == 0


def test_views_by_name_and_their_scale(detector):
    seen = detector.scores_by_view(correlated(2000, 2))
    assert list(seen) == [*views.NAMES, "features", "norms"]
    for name, evidence in seen.items():
        # One unseen normal row in twenty lies beyond log 20, up to what 300 training rows can tell.
        assert 0.9 < np.mean(evidence < np.log(20)) < 1.0, name


def test_evidence_is_minus_the_logarithm_of_a_p_value():
    normal = RNG.exponential(size=4000)
    evidence = Evidence.fit([normal])
    new = np.array([0.0, 0.5, 1.0, 3.0, 6.0], np.float32)
    np.testing.assert_allclose(evidence(new[:, None])[0], new, rtol=0.15, atol=0.01)
    far = np.asarray(evidence(np.array([[20.0], [1e3], [1e30]], np.float32))[0])
    assert (np.diff([float(evidence.evidence[0, -1]), *far]) > 0.5).all()


def test_evidence_knows_ties():
    evidence = Evidence.fit([np.repeat([0.0, 1.0], [70, 30])])
    zero, one, between = np.asarray(evidence(np.array([[0.0], [1.0], [0.5]], np.float32))[0])
    assert zero == pytest.approx(-np.log((100 + 30) / 2 / 100), abs=0.02)
    assert one == pytest.approx(-np.log(0.15), abs=0.06)
    assert zero < between < one


def test_evidence_adds_up_and_a_perfect_match_speaks_for_a_row():
    doubtful, matched = np.array([[4.0], [3.0], [1.0]]), np.array([[4.0], [3.0], [0.01]])
    weights = np.array([1.0, 2.0, 0.5])
    assert combine(jnp.asarray(doubtful), weights)[0] == pytest.approx(10.5)
    assert combine(jnp.asarray(matched), weights)[0] < 10.1


def test_weights_follow_the_columns_and_name_every_view():
    assert WEIGHTS["views"] == [*views.NAMES, "features", "norms"]
    for columns in (1, 8, 60, 5000):
        weights = view_weights(columns)
        assert weights.shape == (11,)
        assert (weights > 0).all()


def test_a_row_that_repeats_is_normal_where_rows_repeat():
    """A fold holds all copies of its rows, so none finds itself in calibration; new rows do, and must not look as strange as those."""
    rows = np.random.default_rng(0).integers(6, size=(400, 3)).astype(float)
    model = ConsensusDetector(num_networks=0).fit(rows)
    found, lost = model.scores_by_view(rows[:50])["nearest"], model.scores_by_view(rows[:50] + 0.4)["nearest"]
    assert found.max() < lost.min() - 0.2


def test_farther_out_is_more_anomalous():
    model = ConsensusDetector(num_networks=0).fit(RNG.normal(size=(200, 4)))
    rows = np.zeros((6, 4))
    rows[:, 2] = [12, 20, 100, 1e4, 1e8, 1e12]
    assert (np.diff(model.score_samples(rows)) < 0).all()


def test_false_alarms_are_about_as_many_as_asked_for(detector):
    flagged = np.mean(detector.predict(correlated(4000, 3)) == -1)
    assert 0.02 < flagged < 0.1  # asked for .05, the threshold itself is estimated from 120 rows


def test_more_columns_than_rows_do_not_flag_everything():
    """The covariance has seen the training rows: without held-out rows the threshold would be far too low."""
    rows = RNG.normal(size=(260, 120))
    detector = ConsensusDetector(num_networks=0).fit(rows[:60])
    assert np.mean(detector.predict(rows[60:]) == -1) < 0.2


def test_copies_do_not_calibrate_themselves():
    rows = np.repeat(RNG.normal(size=(120, 4)), 5, axis=0)
    fresh = RNG.normal(size=(500, 4))
    detector = ConsensusDetector(num_networks=0).fit(rows)
    assert np.mean(detector.predict(fresh) == -1) < 0.2
    for fold in consensus._folds(rows.astype(np.float32), np.random.RandomState(0)):
        inside = set(fold.tolist())
        assert all({5 * (i // 5) + j for j in range(5)} <= inside for i in inside)


def test_few_rows_train_no_network():
    assert ConsensusDetector().fit(correlated(99)).scorer_.learned is None
    assert list(ConsensusDetector().fit(correlated(99)).scores_by_view(correlated(3))) == list(views.NAMES)


@pytest.mark.slow
def test_the_networks_learn_and_their_views_see_gaps():
    """Four arcs of a circle, and the gaps between them as anomalies: the radius is the same, so are the columns' values."""
    rng = np.random.default_rng(0)

    def arcs(count, centre):
        angle = centre + np.pi / 2 * rng.integers(4, size=count) + rng.uniform(-0.25, 0.25, count)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.02 * rng.normal(size=(count, 2))

    model = ConsensusDetector(num_networks=1, num_steps=1000).fit(arcs(600, 0.0))
    losses = model.validation_losses_[0]
    assert losses.min() < losses[0] - 0.02  # most of the loss is noise that nobody can predict
    seen = model.scores_by_view(np.concatenate([arcs(300, 0.0), arcs(300, np.pi / 4)]))
    for view in ("features", "norms"):
        assert auroc(np.repeat([0, 1], 300), seen[view]) > 0.85


@pytest.mark.slow
def test_a_time_limit_ends_training_early_and_the_result_works():
    model = ConsensusDetector(num_networks=1, num_steps=2000, max_seconds=0.0).fit(correlated(150))
    assert len(model.validation_losses_[0]) == 1
    assert np.isfinite(model.score_samples(correlated(5))).all()


def test_large_training_sets_are_cut_to_what_distances_need(monkeypatch):
    monkeypatch.setattr(consensus, "MOST_REFERENCE_ROWS", 500)
    monkeypatch.setattr(consensus, "MOST_LEARNED_ROWS", 300)
    model = ConsensusDetector(num_networks=1, num_steps=20).fit(correlated(2500))
    found = np.isfinite(model.scorer_.views.known.half_norms), np.isfinite(model.scorer_.learned.features.half_norms)
    assert found[0].sum(axis=1).tolist() == [500] * 3
    assert found[1].sum(axis=1).tolist() == [300]


@pytest.mark.parametrize("settings", [{"num_networks": -1}, {"num_steps": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="num_networks >= 0 and num_steps >= 1"):
        ConsensusDetector(**settings).fit(correlated(50))
