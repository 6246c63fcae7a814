"""Metrics of time series: golden values of the official code (TSB-AD 1.5, affiliation-metrics-py), and the definitions, read directly."""

from itertools import pairwise

import numpy as np
import pytest

from jaxad.metrics import events as metrics


def stretches(*of, length=400):
    labels = np.zeros(length, int)
    for start, end in of:
        labels[start:end] = 1
    return labels


@pytest.fixture(scope="module")
def example():
    labels = stretches((100, 130), (250, 256), (390, 400))
    scores = np.random.default_rng(7).normal(size=400) + 1.5 * np.convolve(labels, np.ones(9) / 9, "same")
    return labels, scores.round(6)


def test_vus_of_the_official_code(example):
    roc, pr = metrics.vus(*example, 10)
    assert roc == pytest.approx(0.8170892594415101, abs=1e-12)
    assert pr == pytest.approx(0.4697391088055349, abs=1e-12)


def test_vus_without_a_window_is_the_usual_area_times_existence(example):
    labels, scores = example
    # One event, met by the first point that is flagged: existence is 1 from there on.
    labels = stretches((100, 130))
    scores = np.where(np.arange(400) == 110, 99.0, scores)
    from jaxad.metrics import auroc

    assert metrics.vus(labels, scores, 0)[0] == pytest.approx(auroc(labels, scores), abs=2e-3)


def test_a_score_that_is_early_costs_less_in_a_larger_window():
    labels = stretches((100, 120))
    early = np.roll(labels, -10).astype(float) + 1e-3 * np.random.default_rng(0).normal(size=400)
    values = [metrics.vus(labels, early, window)[1] for window in (0, 20, 60)]
    assert values[0] < values[1] < values[2] < 1


def test_the_period_of_waves_and_of_noise():
    time, rng = np.arange(3000), np.random.default_rng(0)
    assert metrics.period_of(np.sin(2 * np.pi * time / 75) + 0.1 * rng.normal(size=3000)) == 75
    assert metrics.period_of(np.ones(50)) == metrics.NO_PERIOD
    assert metrics.period_of(time**2.0) == metrics.NO_PERIOD
    assert metrics.period_of(np.zeros(3)) == metrics.NO_PERIOD


@pytest.mark.parametrize(
    ("flagged", "precision", "recall"),
    [
        (stretches((20, 30), (60, 65), length=100), 1.0, 1.0),
        (stretches((25, 35), (65, 70), length=100), 0.8257575757575757, 0.9267676767676768),
        (stretches((22, 24), length=100), 1.0, 0.45555555555555555),
        (stretches((0, 100), length=100), 0.514411794714825, 1.0),
    ],
)
def test_affiliation_of_the_official_code(flagged, precision, recall):
    labels = stretches((20, 30), (60, 65), length=100)
    assert metrics.affiliation(labels, flagged) == (
        pytest.approx(precision, abs=1e-12),
        pytest.approx(recall, abs=1e-12),
    )


def test_affiliation_is_the_integral_of_its_definition():
    """By brute force on a fine grid, for stretches at random."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        cuts = np.sort(rng.choice(np.arange(1, 200), 8, replace=False))
        labels, flagged = stretches(cuts[:2], cuts[4:6], length=200), stretches(cuts[1:3], cuts[5:8:2], length=200)
        assert metrics.affiliation(labels, flagged) == pytest.approx(by_brute_force(labels, flagged), abs=5e-3)


def by_brute_force(labels, flagged, fine=20):
    grid = (np.arange(len(labels) * fine) + 0.5) / fine
    on, alarm = np.repeat(labels, fine).astype(bool), np.repeat(flagged, fine).astype(bool)
    events = metrics.events_of(labels)
    borders = [0, *((a[1] + b[0]) / 2 for a, b in pairwise(events)), len(labels)]
    precisions, recalls = [], []
    for number, (start, end) in enumerate(events):
        zone = (grid >= borders[number]) & (grid < borders[number + 1])
        x = grid[zone]
        to_event = np.maximum(np.maximum(start - x, x - end), 0)
        if not (alarm & zone).any():
            recalls.append(0.0)
            continue
        farther = np.array([np.mean(to_event > d) if d else 1.0 for d in to_event[alarm[zone]]])
        precisions.append(farther.mean())
        y, at = grid[zone & on], grid[zone & alarm]
        near = np.abs(y[:, None] - at[None]).min(axis=1)
        recalls.append(np.mean([np.mean(np.abs(x - each) > d) for each, d in zip(y, near, strict=True)]))
    return (np.mean(precisions) if precisions else 0.0), np.mean(recalls)


def test_flagged_events_are_counted_as_a_user_would():
    labels = stretches((10, 20), (50, 60), (90, 95), length=100)
    flagged = stretches((15, 17), (18, 30), (40, 45), (54, 58), length=100)
    counts = metrics.event_counts(labels, flagged)
    assert counts[:2] == (pytest.approx(3 / 4), pytest.approx(2 / 3))
    assert counts.delay == pytest.approx((5 + 4) / 2)
    assert np.isnan(metrics.event_counts(labels, np.zeros(100)).delay)


def test_ranges_of_the_official_code(example):
    """Its F1, the best of 100 thresholds."""
    labels, scores = example
    best = 0.0
    for threshold in np.linspace(scores.min(), scores.max(), 100):
        precision, recall = metrics.range_precision_recall(labels, (scores > threshold).astype(int))
        best = max(best, 2 * precision * recall / (precision + recall + 1e-5))
    assert best == pytest.approx(0.4375, abs=1e-4)


def test_point_adjustment_makes_a_random_score_look_good():
    rng = np.random.default_rng(0)
    labels = np.zeros(20_000, int)
    for start in range(500, 20_000, 2000):
        labels[start : start + 200] = 1
    scores = rng.random(20_000)
    thresholds = np.quantile(scores, np.linspace(0.9, 0.999, 100))
    adjusted = max(metrics.legacy_point_adjusted_f1(labels, (scores > t).astype(int)) for t in thresholds)
    assert adjusted > 0.85
    assert metrics.vus(labels, scores, 20)[1] < 0.2


@pytest.mark.parametrize("of", [metrics.affiliation, metrics.event_counts, metrics.range_precision_recall])
def test_what_is_no_labels_is_refused(of):
    with pytest.raises(ValueError, match="nothing to find"):
        of(np.zeros(10), np.ones(10))
    with pytest.raises(ValueError, match="as many flags as labels"):
        of(np.ones(10), np.ones(9))
    with pytest.raises(ValueError, match="zeros and ones"):
        of(np.ones(10), np.linspace(0, 1, 10))
