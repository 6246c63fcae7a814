import itertools

import numpy as np
import pytest
import scipy.stats

from jaxad.metrics import (
    auroc,
    average_precision,
    bootstrap_interval,
    critical_difference,
    f1_at_k,
    fpr_at_tpr,
    paired_bootstrap_interval,
    wilcoxon_against,
)

METRICS = [auroc, average_precision, fpr_at_tpr, f1_at_k]


def random_problem(seed=0, normal=80, anomalous=20, shift=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([0, 1], [normal, anomalous]))
    return labels, rng.normal(size=normal + anomalous) + shift * labels


def test_auroc_is_the_chance_that_an_anomaly_scores_higher_with_ties_counting_half():
    labels, scores = random_problem()
    scores = scores.round(0)
    pairs = [(a > n) + 0.5 * (a == n) for a, n in itertools.product(scores[labels == 1], scores[labels == 0])]
    assert auroc(labels, scores) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("metric", [auroc, average_precision, f1_at_k])
def test_larger_scores_mean_more_anomalous(metric):
    labels = np.array([0, 0, 0, 1])
    assert metric(labels, [1.0, 2.0, 3.0, 4.0]) == 1.0
    assert metric(labels, [4.0, 3.0, 2.0, 1.0]) < 0.5


def test_average_precision_by_hand():
    # Ranked: anomaly, normal, anomaly, normal. Precision at the anomalies: 1 and 2/3.
    assert average_precision([1, 0, 1, 0], [4, 3, 2, 1]) == pytest.approx((1 + 2 / 3) / 2)


def test_fpr_at_tpr_by_hand_and_at_the_ends():
    labels = np.repeat([0, 1], [4, 4])
    scores = [0.0, 1.0, 2.0, 3.0, 1.5, 2.5, 3.5, 4.5]
    assert fpr_at_tpr(labels, scores, tpr=1.0) == 0.5
    assert fpr_at_tpr(labels, scores, tpr=0.75) == 0.25
    assert fpr_at_tpr(labels, scores, tpr=0.5) == 0.0
    assert fpr_at_tpr(labels, np.zeros(8)) == 1.0
    for tpr in (0.0, 1.1, np.nan):
        with pytest.raises(ValueError, match="tpr"):
            fpr_at_tpr(labels, scores, tpr=tpr)


def test_f1_at_k_breaks_ties_by_index():
    assert f1_at_k([1, 0, 1, 0], np.zeros(4)) == 0.5
    assert f1_at_k([1, 1, 0, 0], np.zeros(4)) == 1.0
    assert f1_at_k([0, 0, 1, 1], np.zeros(4)) == 0.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1, 1], [0.0, np.nan, np.inf], r"2 of 3 scores are not finite, first at rows \[1, 2\]"),
        ([0, 0], [0.0, 1.0], "both classes"),
        ([1, 1], [0.0, 1.0], "both classes"),
        ([0, 1], [0.0, 1.0, 2.0], r"shapes \(2,\) and \(3,\)"),
        ([[0], [1]], [[0.0], [1.0]], "vectors"),
        ([-1, 1], [0.0, 1.0], r"0 \(normal\) or 1 \(anomalous\), got \[-1, 1\]"),
        ([], [], "both classes"),
    ],
)
def test_bad_input_is_refused_with_the_reason(metric, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        metric(np.array(labels), np.array(scores))


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_take_booleans_and_return_plain_floats(metric):
    labels, scores = random_problem()
    assert type(metric(labels == 1, scores)) is float
    assert metric(labels == 1, scores) == metric(labels, scores) == metric(labels.astype(float), list(scores))


def test_bootstrap_width_agrees_with_delong():
    labels, scores = random_problem(normal=200, anomalous=100)
    wins = scores[labels == 1][:, None] > scores[labels == 0][None]
    delong = np.sqrt(wins.mean(axis=1).var(ddof=1) / 100 + wins.mean(axis=0).var(ddof=1) / 200)
    low, high = bootstrap_interval(auroc, labels, scores, seed=0, num_resamples=600)
    assert low < auroc(labels, scores) < high
    assert (high - low) / (2 * 1.96 * delong) == pytest.approx(1.0, abs=0.12)


def test_bootstrap_is_seeded_and_keeps_both_classes():
    labels, scores = random_problem(normal=30, anomalous=1)
    first = bootstrap_interval(auroc, labels, scores, seed=1, num_resamples=50)
    assert first == bootstrap_interval(auroc, labels, scores, seed=1, num_resamples=50)
    assert first != bootstrap_interval(auroc, labels, scores, seed=2, num_resamples=50)


def test_bootstrap_does_not_sort_the_classes():
    # With constant scores f1_at_k sees the order of rows only: anomalies first gives 1, and only 1, in every resample.
    assert bootstrap_interval(f1_at_k, [1, 1, 0, 0, 0], np.zeros(5), seed=0, num_resamples=20) == (1.0, 1.0)
    assert bootstrap_interval(f1_at_k, [0, 0, 0, 1, 1], np.zeros(5), seed=0, num_resamples=20) == (0.0, 0.0)


def test_paired_interval_is_narrower_than_unpaired_ones_and_signed():
    labels, scores = random_problem(normal=100, anomalous=50)
    noisy = scores + np.random.default_rng(9).normal(scale=0.2, size=150)
    low, high = paired_bootstrap_interval(auroc, labels, scores, noisy, seed=0, num_resamples=200)
    single = bootstrap_interval(auroc, labels, scores, seed=0, num_resamples=200)
    assert low <= auroc(labels, scores) - auroc(labels, noisy) <= high
    assert high - low < 0.5 * (single[1] - single[0])
    worse = paired_bootstrap_interval(auroc, labels, -scores, scores, seed=0, num_resamples=50)
    assert worse[1] < 0.0


@pytest.mark.parametrize("setting", [{"level": 1.0}, {"level": 0.0}, {"num_resamples": 0}])
def test_bootstrap_settings_are_checked(setting):
    labels, scores = random_problem()
    with pytest.raises(ValueError, match=next(iter(setting))):
        bootstrap_interval(auroc, labels, scores, seed=0, **{"num_resamples": 2, **setting})


def test_wilcoxon_counts_and_agrees_with_scipy():
    rng = np.random.default_rng(3)
    reference = rng.uniform(size=12)
    other = reference + rng.normal(0.1, 0.1, size=12)
    other[:2] = reference[:2]
    result = wilcoxon_against(reference, other)
    assert (result.wins, result.ties, result.losses) == (
        int((other > reference).sum()),
        2,
        int((other < reference).sum()),
    )
    assert result.mean_difference == pytest.approx((other - reference).mean())
    assert result.p_value == pytest.approx(scipy.stats.wilcoxon(other[2:], reference[2:]).pvalue)


def test_wilcoxon_by_hand():
    # Five data sets, all won: the chance of five equal signs, two-sided, is 2 / 2^5.
    result = wilcoxon_against([0.1, 0.2, 0.3, 0.4, 0.5], [0.15, 0.3, 0.45, 0.6, 0.75])
    assert (result.wins, result.losses, result.p_value) == (5, 0, pytest.approx(2 / 32))


def test_wilcoxon_without_any_difference():
    result = wilcoxon_against([0.5, 0.7], [0.5, 0.7])
    assert (result.mean_difference, result.wins, result.ties, result.losses, result.p_value) == (0.0, 0, 2, 0, 1.0)


@pytest.mark.parametrize(("reference", "other"), [([], []), ([1.0], [1.0, 2.0]), ([np.nan], [1.0]), ([[1.0]], [[1.0]])])
def test_wilcoxon_refuses_bad_input(reference, other):
    with pytest.raises(ValueError, match=r"data set"):
        wilcoxon_against(reference, other)


def test_critical_difference_against_demsars_table():
    published = dict(zip(range(2, 11), [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164], strict=True))
    for num_methods, q in published.items():
        values = np.tile(np.arange(num_methods, dtype=float), (14, 1))
        result = critical_difference(values)
        expected = q * np.sqrt(num_methods * (num_methods + 1) / (6 * 14))
        assert result.critical_difference == pytest.approx(expected, rel=5e-4)
        np.testing.assert_array_equal(result.average_ranks, np.arange(num_methods, 0, -1))


def test_ranks_share_ties_and_follow_the_direction():
    values = [[0.9, 0.9, 0.1], [0.3, 0.2, 0.1]]
    np.testing.assert_allclose(critical_difference(values).average_ranks, [1.25, 1.75, 3.0])
    np.testing.assert_allclose(critical_difference(values, larger_is_better=False).average_ranks, [2.75, 2.25, 1.0])


@pytest.mark.parametrize("values", [[0.1, 0.2], [[0.1], [0.2]], [[0.1, np.nan]], np.empty((0, 3))])
def test_critical_difference_refuses_bad_input(values):
    with pytest.raises(ValueError, match=r"datasets, methods"):
        critical_difference(values)
