"""Contributions add up to the score, and lie where the anomaly is."""

import doctest

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from jaxad import scoring
from jaxad.denoisers import MLP, DiT
from jaxad.detectors import (
    ConsensusDetector,
    DiffusionDetector,
    DTECategorical,
    ImageDetector,
    KNNDetector,
    MahalanobisDetector,
    SquaredNorm,
    explanation,
)
from jaxad.detectors.explanation import error_contributions, nearest_normal, patches, shapley_contributions

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4))
ANOMALIES = X[:5].copy()
ANOMALIES[:, 2] += 8.0


@pytest.fixture(scope="module")
def diffusion():
    return DiffusionDetector(MLP(width=32, depth=1), num_steps=200).fit(X)


@pytest.mark.parametrize("scorer", [scoring.denoising_error, scoring.reconstruction_error])
@pytest.mark.parametrize("aggregate", [scoring.z_mean, scoring.total])
def test_errors_by_level_and_column_are_the_score(diffusion, scorer, aggregate):
    detector = diffusion.set_params(scorer=scorer, aggregate=aggregate).calibrate(X)
    base, contributions = error_contributions(detector, ANOMALIES)
    assert contributions.shape == (5, 10, 4)
    scores = -detector.score_samples(ANOMALIES)
    np.testing.assert_allclose(base + contributions.sum(axis=(1, 2)), scores, rtol=1e-4, atol=1e-4)
    # By level it is what the detector measures there.
    if aggregate == scoring.total:
        np.testing.assert_allclose(contributions.sum(axis=2).T, detector.scores_by_level(ANOMALIES), rtol=1e-4)
    assert (contributions.sum(axis=1).argmax(axis=1) == 2).all()


def test_errors_of_pictures_lie_where_the_defect_is():
    pictures = RNG.normal(0.0, 0.1, size=(60, 8, 8, 1)).astype(np.float32)
    detector = DiffusionDetector(DiT(hidden=16, depth=1, heads=2, patch_size=2), num_steps=100).fit(pictures)
    spoilt = pictures[:3].copy()
    spoilt[:, 2:4, 4:6] += 2.0
    base, contributions = error_contributions(detector, spoilt)
    assert contributions.shape == (3, 10, 8, 8, 1)
    np.testing.assert_allclose(
        base + contributions.sum(axis=(1, 2, 3, 4)), -detector.score_samples(spoilt), rtol=1e-3, atol=1e-3
    )
    by_pixel = contributions.sum(axis=(1, 4))
    assert (by_pixel[:, 2:4, 4:6].sum(axis=(1, 2)) > 0.5 * by_pixel.sum(axis=(1, 2))).all()


def test_a_score_that_does_not_fall_apart_is_refused(diffusion):
    detector = diffusion.set_params(scorer=scoring.score_norm, aggregate=None).calibrate(X)
    with pytest.raises(ValueError, match="only denoising_error and reconstruction_error fall apart"):
        error_contributions(detector, X)
    detector.set_params(scorer=scoring.denoising_error, aggregate=scoring.z_max).calibrate(X)
    with pytest.raises(ValueError, match="only the combinations z_mean and total"):
        error_contributions(detector, X)


@pytest.mark.parametrize(
    "make",
    [
        lambda: KNNDetector(),
        lambda: MahalanobisDetector(),
        lambda: ConsensusDetector(num_networks=0),
        lambda: DTECategorical(num_steps=100),
        lambda: IsolationForest(n_estimators=20, random_state=0),
    ],
)
def test_shapley_contributions_add_up_for_every_detector(make):
    detector = make().fit(X)
    reference = nearest_normal(ANOMALIES, X)
    base, contributions = shapley_contributions(detector, ANOMALIES, reference)
    np.testing.assert_allclose(base, -detector.score_samples(reference), rtol=1e-6)
    np.testing.assert_allclose(
        base + contributions.sum(axis=1), -detector.score_samples(ANOMALIES), rtol=1e-5, atol=1e-6
    )
    assert contributions[:, 2].mean() == contributions.mean(axis=0).max()


def test_they_are_shapley_values_of_a_game_whose_values_are_known():
    """Of x1 x2 + x3 from 0: the product is shared half and half, whatever the order of the pair."""

    class Game:
        def score_samples(self, rows):
            return -(rows[:, 0] * rows[:, 1] + rows[:, 2])

    base, contributions = shapley_contributions(Game(), np.array([[2.0, 3.0, 5.0]]), np.zeros(3), num_orders=2)
    assert base.tolist() == [0.0]
    np.testing.assert_allclose(contributions, [[3.0, 3.0, 5.0]])


def test_patches_of_pictures():
    pictures = (RNG.random((24, 8, 8, 1)) * 100).astype(np.uint8)
    detector = ImageDetector(maps=False, num_steps=2).fit(pictures)
    spoilt = pictures[:2].copy()
    spoilt[:, 4:, 4:] = 255
    groups = patches((8, 8, 1), 4)
    base, contributions = shapley_contributions(detector, spoilt, pictures[:2], groups=groups, num_orders=2)
    assert contributions.shape == (2, 4)
    np.testing.assert_allclose(base + contributions.sum(axis=1), -detector.score_samples(spoilt), rtol=1e-6)
    np.testing.assert_allclose(contributions[:, :3], 0.0, atol=1e-9)  # nothing was changed there
    assert patches((5, 7, 3), 4).max() == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": np.zeros(3)}, "reference must be one row of shape"),
        ({"groups": np.zeros(3, int)}, "groups must be whole numbers"),
        ({"groups": np.zeros(4)}, "groups must be whole numbers"),
        ({"num_orders": 3}, "must be even"),
        ({"num_orders": 0}, "must be even"),
    ],
)
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        shapley_contributions(SquaredNorm().fit(X), X, **{"reference": np.zeros(4), **settings})


def test_normal_rows_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="expected normal rows of shape"):
        nearest_normal(X, X[:, :2])
    with pytest.raises(ValueError, match="expected normal rows of shape"):
        nearest_normal(X, X[:0])


def test_examples_in_docstrings():
    failed, attempted = doctest.testmod(explanation)
    assert attempted
    assert not failed
