"""The recommended detector on categories and gaps: what is odd scores high, what is missing is no reason, p-values stay true."""

import warnings

import jax
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from jaxad import ConsensusDetector
from jaxad.data import FrameEncoder
from jaxad.detectors.evidence import Evidence, EvidenceByShare
from jaxad.detectors.explanation import shapley_contributions
from jaxad.detectors.persistence import load_detector, save_detector


def table(count, seed):
    """Two numbers that go together, a category that says where the first one is, a rare and a common level."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(4, count, p=[0.45, 0.35, 0.19, 0.01]).astype(float)
    first = 3.0 * kind + rng.normal(0, 0.5, count)
    second = first + rng.normal(0, 0.3, count)
    return np.column_stack([first, second, kind, rng.choice(2, count), rng.normal(size=count)])


def with_gaps(X, share, seed=1):
    rng = np.random.default_rng(seed)
    return np.where(rng.uniform(size=X.shape) < share, np.nan, X)


def detector(**settings):
    return ConsensusDetector(**({"num_networks": 0, "categorical_features": [2, 3], "allow_gaps": True} | settings))


@pytest.fixture(scope="module")
def fitted():
    return detector().fit(with_gaps(table(600, 0), 0.1))


def test_odd_levels_and_broken_dependencies_score_high(fitted):
    usual = table(200, 5)
    limit = np.quantile(-fitted.score_samples(usual), 0.95)
    unseen, broken, rare = usual[:20].copy(), usual[:20].copy(), usual[:20].copy()
    unseen[:, 2] = 4.0
    broken[:, 2] = (broken[:, 2] + 2) % 3  # a level as common as any, with the numbers of another
    rare[:, 2] = 3.0
    assert (-fitted.score_samples(unseen) > limit).mean() > 0.9
    assert (-fitted.score_samples(broken) > limit).mean() > 0.7
    assert (-fitted.score_samples(rare) > limit).mean() > 0.7


def test_p_values_of_normal_rows_stay_uniform_whatever_is_missing():
    errors = []
    for seed in range(3):
        model = detector().fit(with_gaps(table(500, seed), 0.1, seed))
        new = [model.p_values(with_gaps(table(2000, 50 + seed), share)) for share in (0.0, 0.1, 0.3, 0.5)]
        errors.append([(p <= 0.05).mean() for p in new])
    mean = np.mean(errors, axis=0)
    assert mean.min() > 0.025, mean
    assert mean.max() < 0.075, mean


def test_what_is_missing_is_no_reason(fitted):
    usual = table(400, 6)
    medians = [np.median(-fitted.score_samples(with_gaps(usual, share))) for share in (0.0, 0.2, 0.4)]
    assert np.ptp(medians) < 0.5 * np.std(-fitted.score_samples(usual))
    scores = fitted.score_samples(np.full((2, 5), np.nan))
    assert np.isfinite(scores).all()


def test_a_row_s_score_depends_on_that_row_alone(fitted):
    rows = with_gaps(table(70, 7), 0.2)
    np.testing.assert_allclose(fitted.score_samples(rows[:3]), fitted.score_samples(rows)[:3], rtol=2e-4, atol=2e-4)


def test_contributions_add_up_and_name_the_level(fitted):
    row = table(400, 8)[:1]
    row[0, 2] = 4.0
    reference = np.where(np.arange(5) == 2, 0.0, row)
    base, contributions = shapley_contributions(fitted, row, reference)
    np.testing.assert_allclose(base + contributions.sum(axis=1), -fitted.score_samples(row), rtol=1e-5)
    assert contributions[0].argmax() == 2


@pytest.mark.slow
def test_jit_vmap_and_grad_of_the_scorer(fitted):
    rows = fitted.standardiser_(with_gaps(table(64, 9), 0.2))
    plain = fitted.scorer_(rows)
    np.testing.assert_allclose(jax.jit(fitted.scorer_)(rows), plain, rtol=1e-3, atol=1e-3)
    whole = fitted.standardiser_(table(4, 9))
    gradient = jax.grad(lambda x: fitted.scorer_(x[None])[0])(whole[0])
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:2]).sum() > 0


def test_saved_and_loaded(fitted, tmp_path):
    save_detector(fitted, tmp_path / "model")
    rows = with_gaps(table(40, 10), 0.3)
    np.testing.assert_array_equal(load_detector(tmp_path / "model").score_samples(rows), fitted.score_samples(rows))
    assert clone(fitted).get_params() == fitted.get_params()


def test_categories_alone_and_numbers_with_gaps_alone():
    rng = np.random.default_rng(0)
    codes = rng.choice(3, (200, 4), p=[0.6, 0.3, 0.1]).astype(float)
    codes[:, 1] = codes[:, 0]
    model = ConsensusDetector(num_networks=0, categorical_features=[0, 1, 2, 3]).fit(codes)
    same, other = model.score_samples([[0, 0, 0, 0], [0, 2, 0, 0]])
    assert same > other
    numbers = with_gaps(rng.normal(size=(300, 3)), 0.3)
    model = ConsensusDetector(num_networks=0, allow_gaps=True).fit(numbers)
    inside, outside = model.score_samples([[0.0, np.nan, 0.0], [4.0, np.nan, 0.0]])
    assert inside > outside
    assert np.isfinite(model.scorer_.normal_rows()).all()


@pytest.mark.slow
def test_networks_see_completed_rows():
    model = detector(num_networks=1, num_steps=100).fit(with_gaps(table(200, 0), 0.2))
    views = model.scores_by_view(with_gaps(table(20, 1), 0.2))
    assert {"features", "norms"} <= set(views)
    assert all(np.isfinite(z).all() for z in views.values())
    with pytest.raises(ValueError, match="categories as one-hot codes: there is no denoiser"):
        model.scorer_.denoiser()


def test_copies_with_gaps_do_not_find_themselves():
    rows = np.repeat(with_gaps(table(60, 0), 0.2), 5, axis=0)
    model = detector().fit(rows)
    assert (model.p_values(table(300, 2)) <= 0.05).mean() < 0.9


@pytest.mark.parametrize(
    ("settings", "change", "expected"),
    [
        ({"allow_gaps": False}, {0: np.nan}, "NaN"),
        ({}, {2: 1.5}, r"column 2 is a category: expected whole numbers from 0 to 999, got 1.5 in row 3"),
        ({}, {2: -1.0}, r"column 2 is a category"),
        ({"categorical_features": [5]}, {}, r"places of columns, from 0 to 4, got \[5\]"),
        ({"categorical_features": ["kind"]}, {}, "places of columns"),
        ({}, {0: np.inf}, "infinity"),
    ],
)
def test_bad_rows_and_settings(settings, change, expected):
    X = table(50, 0)
    for column, value in change.items():
        X[3, column] = value
    with pytest.raises(ValueError, match=expected):
        detector(**settings).fit(X)


def test_a_column_without_a_value_is_refused():
    X = table(50, 0)
    X[:, 4] = np.nan
    with pytest.raises(ValueError, match="column 4 holds no value: leave it out"):
        detector().fit(X)


def test_evidence_by_share_is_evidence_where_all_is_there():
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.abs(rng.normal(size=(2000, 2))), np.repeat([[0.0], [0.3]], 1000, axis=0)], axis=1)
    rows[1000:, 0] *= 3  # usual where a third is missing
    both = EvidenceByShare.fit(rows)
    new = np.array([[2.0, 1.0]], np.float32)
    alone = Evidence.fit(list(rows[:1000, :2].T))(new)
    np.testing.assert_allclose(both(np.array([[2.0, 1.0, 0.0]], np.float32)), alone, rtol=1e-5)
    missing = both(np.array([[2.0, 1.0, 0.3]], np.float32))
    assert missing[0, 0] < alone[0, 0] - 1
    between = both(np.array([[2.0, 1.0, 0.15]], np.float32))
    np.testing.assert_allclose(between, (alone + missing) / 2, rtol=1e-4)


def test_a_frame_goes_in_through_its_encoder():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"heat": rng.normal(size=200), "pump": rng.choice(["a", "b"], 200)})
    frame.loc[::9, "heat"] = None
    encoder = FrameEncoder(categories="codes").fit(frame)
    model = ConsensusDetector(num_networks=0, categorical_features=encoder.categorical_features_, allow_gaps=True)
    model.fit(encoder.transform(frame))
    new = pd.DataFrame({"pump": ["a", "z"], "heat": [0.0, 0.0]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        usual, odd = model.score_samples(encoder.transform(new))
    assert usual > odd
