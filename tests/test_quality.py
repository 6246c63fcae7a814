"""Measures of generated rows: the published golden values, what equal and unequal distributions must give, copies, and mistakes."""

import doctest
import json

import numpy as np
import pytest
from scipy.linalg import sqrtm

from jaxad.generation import quality as q

RNG = np.random.default_rng(0)
REAL, SAME = RNG.normal(size=(300, 4)), RNG.normal(size=(300, 4))
SHIFTED, NARROW = SAME + 1.0, 0.2 * SAME


def test_examples():
    result = doctest.testmod(q)
    assert result.attempted > 10
    assert not result.failed


def test_prdc_golden(reference_dir):
    golden = json.loads((reference_dir / "golden.json").read_text())["prdc_k5"]
    rng = np.random.default_rng(3)
    real = rng.normal(size=(200, 8)).astype(np.float32)
    generated = (rng.normal(size=(150, 8)) * 0.7 + 0.3).astype(np.float32)
    found = q.prdc(real, generated, k=5)._asdict()
    assert found == pytest.approx({name: golden[name] for name in found}, abs=1e-9)


# ------------------------------------------------------------------------------------------- equal and unequal distributions


def test_two_sample_tests_know_equal_from_unequal():
    for test in (q.c2st, q.nearest_neighbour_test):
        equal = test(REAL[:150], SAME[:150])
        assert abs(equal.z) < 3
        assert test(REAL[:150], SHIFTED[:150]).z > 5
        assert test(REAL, SHIFTED[:60]).z > 2  # as many rows of each are taken
    assert q.nearest_neighbour_test(REAL, REAL + 1e-6).accuracy < 0.1  # copies
    # A difference that no hyperplane sees.
    assert q.c2st(REAL[:150], NARROW[:150]).accuracy > 0.75


@pytest.mark.parametrize("measure", [q.mmd, q.energy_distance, q.sliced_wasserstein])
def test_distances_are_small_for_equal_and_grow_with_the_shift(measure):
    values = [measure(REAL, SAME + shift) for shift in (0.0, 0.5, 1.0)]
    assert values[0] < 0.25 * values[1] < values[1] < values[2]
    assert measure(SAME, REAL) == pytest.approx(values[0])


def test_unbiased_distances_have_mean_zero_under_equality():
    rng = np.random.default_rng(1)
    for measure in (q.mmd, q.energy_distance):
        values = [measure(rng.normal(size=(20, 2)), rng.normal(size=(30, 2))) for _ in range(200)]
        assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)


def test_fidelity_and_variety_are_told_apart():
    equal, narrow, wide = (q.prdc(REAL, rows) for rows in (SAME, NARROW, 4 * SAME))
    assert equal.density == pytest.approx(1, abs=0.15)
    assert equal.coverage > 0.9
    assert narrow.precision > 0.95 > 0.2 > narrow.recall
    assert wide.precision < 0.4 < 0.9 < wide.recall
    equal, narrow, copies = (q.alpha_beta(REAL, rows) for rows in (SAME, NARROW, REAL + 1e-6))
    assert equal.alpha_precision > 0.85
    assert narrow.alpha_precision < 0.6
    assert narrow.beta_recall < equal.beta_recall
    assert copies.authenticity < 0.01 < 0.3 < equal.authenticity


def test_copies_are_found_by_the_distance_to_the_closest_record():
    held_out = np.random.default_rng(2).normal(size=(150, 4))
    honest, copied = (q.closest_record(REAL, held_out, rows) for rows in (SAME, REAL[:200] + 1e-3))
    assert 0.7 < honest.ratio < 1.4
    assert abs(honest.closer_to_train - 0.5) < 0.1
    assert copied.ratio < 0.05
    assert copied.closer_to_train > 0.7
    assert q.closest_record(REAL, held_out, np.repeat(REAL[:1], 5, axis=0)).ratio == 0


def test_columns_and_correlations():
    together = REAL @ np.linalg.cholesky(np.full((4, 4), 0.8) + 0.2 * np.eye(4)).T
    found = q.columns(
        together, np.stack([np.random.default_rng(j).permutation(column) for j, column in enumerate(together.T)], 1)
    )
    np.testing.assert_allclose(found.ks, 0, atol=1e-12)
    assert found.correlation == pytest.approx(0.8, abs=0.1)
    shifted = q.columns(REAL, REAL + np.array([0.0, 0.0, 0.0, 9.0]))
    np.testing.assert_allclose(shifted.ks, [0, 0, 0, 1], atol=1e-12)
    assert shifted.correlation == pytest.approx(0, abs=1e-12)
    constant = q.columns(np.ones((5, 2)), np.ones((5, 2)))
    assert (constant.ks.max(), constant.correlation) == (0, 0)


# ------------------------------------------------------------------------------------------------------ with what a user gives


def test_frechet_distance_is_the_matrix_formula():
    def encoder(rows):
        return rows[:, :3] @ np.array([[1.0, 0.5, 0], [0, 1, 0], [0, 0.3, 2]])

    a, b = encoder(REAL), encoder(SHIFTED * 1.3)
    first, second = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(first @ second))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(first + second - 2 * root)
    assert q.fid(REAL, SHIFTED * 1.3, encoder) == pytest.approx(expected, rel=1e-6)
    assert q.fid(REAL, REAL, encoder) == pytest.approx(0, abs=1e-6)
    assert abs(q.kid(REAL, SAME, encoder)) < 0.3 * q.kid(REAL, SHIFTED, encoder)


def test_inception_score_and_intra_cluster_distance():
    assert q.inception_score(np.zeros(4), lambda rows: np.full((4, 2), 0.5)) == pytest.approx(1)
    assert q.inception_score(np.zeros(4), lambda rows: np.eye(4)) == pytest.approx(4)

    def distance(a, b):
        return float(np.linalg.norm(a - b))

    few = np.array([[0.0, 0.0], [10.0, 0.0]])
    rows = np.concatenate([few[:1] + RNG.normal(size=(20, 2)), few[1:] + RNG.normal(size=(20, 2))])
    assert q.ic_lpips(few, np.repeat(few, 5, axis=0), distance) == 0
    assert q.ic_lpips(few, rows, distance) == pytest.approx(np.sqrt(np.pi), rel=0.2)  # E|x - y| of two plane normals


# -------------------------------------------------------------------------------------------------------------------- anomalies


def test_severity_diversity_background_and_alignment():
    normal = -np.sum(REAL**2, axis=1)
    severities = [q.severity(normal, -np.sum((SAME * width) ** 2, axis=1)) for width in (1.0, 1.5, 5.0)]
    assert severities[0] == pytest.approx(0.5, abs=0.1)
    assert severities[0] > severities[1] > severities[2]
    assert q.diversity(REAL, SAME) == pytest.approx(1, abs=0.1)
    assert q.diversity(REAL, NARROW) == pytest.approx(0.2 * q.diversity(REAL, SAME))
    x, mask = np.zeros((3, 6, 6)), np.zeros((3, 6, 6), bool)
    mask[:, 1:4, 1:4] = True
    changed = np.where(mask, 1.0, x)
    assert q.background_error(x, changed, mask) == 0
    assert q.mask_alignment(x, changed, mask) == 1
    half = mask & (np.arange(6) < 2)
    assert q.mask_alignment(x, np.where(half, 1.0, x), mask) == pytest.approx(0.5 + 0.5 * half.sum() / mask.sum())
    leak = changed + np.where(mask, 0, 0.5)
    assert q.background_error(x, leak, mask) == pytest.approx(0.25)


def test_utility_is_a_gain_with_an_interval():
    labels = np.repeat([0, 1], 200)
    noise = RNG.normal(size=400)
    weak, strong = labels + noise, 3 * labels + noise
    gain = q.utility(labels, weak, strong, seed=0, num_resamples=200)
    assert 0 < gain.low < gain.gain < gain.high
    nothing = q.utility(labels, weak, labels + RNG.normal(size=400), seed=0, num_resamples=200)
    assert nothing.low < 0 < nothing.high
    harm = q.utility(labels, strong, weak, seed=0, num_resamples=200)
    assert harm.high < 0


# --------------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: q.c2st(REAL, SAME[:, :2]), "two tables .* of one width"),
        (lambda: q.mmd(REAL[0], SAME), "two tables"),
        (lambda: q.energy_distance(REAL, np.full((5, 4), np.nan)), "finite numbers"),
        (lambda: q.c2st(REAL[:3], SAME), "folds"),
        (lambda: q.prdc(REAL, SAME[:4], k=5), "1 <= k < rows"),
        (lambda: q.mmd(np.ones((5, 2)), np.ones((5, 2))), "most rows are equal"),
        (lambda: q.closest_record(REAL, REAL, SAME), "hold out distinct rows"),
        (lambda: q.fid(REAL, SAME, None), "FID needs an encoder.*nothing is downloaded"),
        (
            lambda: q.kid(REAL, SAME, lambda rows: rows[:, 0]),
            r"KID needs an encoder that returns.*\(300, features\), got shape \(300,\)",
        ),
        (lambda: q.fid(REAL, SAME, lambda rows: rows[:10]), r"got shape \(10, 4\)"),
        (lambda: q.fid(REAL, SAME, lambda rows: rows * np.nan), "finite"),
        (lambda: q.inception_score(REAL, lambda rows: rows), "probabilities"),
        (lambda: q.inception_score(REAL, None), "needs an encoder"),
        (lambda: q.ic_lpips(REAL[:2], SAME, None), r"needs a distance\(a, b\)"),
        (lambda: q.ic_lpips(REAL[:2], SAME[:1], lambda a, b: 1.0), "two rows near one example"),
        (lambda: q.diversity(np.ones((3, 2)), SAME[:, :2]), "all equal"),
        (lambda: q.background_error(REAL, SAME, np.ones((2, 4), bool)), "must have one shape"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
