"""Anomalies made in time series: labels are exact, everything else stays, each kind is what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.generation import HAPPENINGS, make_events
from jaxad.generation import happenings as of


def waves(points=1000, channels=3):
    time = np.arange(points)[:, None]
    return (np.sin(2 * np.pi * time / 50 + np.arange(channels)) * [1.0, 2.0, 3.0][:channels]).astype(np.float32)


def changed(kind, strength=1.0, begin=300, length=40, channel=1):
    series = jnp.asarray(waves())
    return np.asarray(series), np.asarray(HAPPENINGS[kind](jax.random.key(3), series, begin, length, channel, strength))


@pytest.mark.parametrize("kind", HAPPENINGS)
def test_only_what_is_labelled_is_changed(kind):
    before, after = changed(kind)
    inside = np.zeros(before.shape, bool)
    inside[300:340, 1] = True
    np.testing.assert_array_equal(before[~inside], after[~inside])
    assert np.abs(before - after)[inside].max() > 0.05
    assert np.isfinite(after).all()


def test_each_kind_is_what_it_says():
    before, after = changed("spike")
    assert np.flatnonzero(np.abs(after - before)[:, 1]).tolist() == [300]
    before, after = changed("level", 1.5)
    np.testing.assert_allclose(np.abs(after - before)[300:340, 1], 1.5 * before[:, 1].std(), rtol=1e-4)
    before, after = changed("trend")
    assert np.all(np.diff(np.abs(after - before)[300:340, 1]) > 0)
    before, after = changed("frequency")
    np.testing.assert_allclose(after[300:320, 1], before[300:340:2, 1], atol=1e-5)
    before, after = changed("stuck")
    np.testing.assert_allclose(after[300:340, 1], before[300, 1], rtol=1e-5)
    before, after = changed("dependency")
    assert set(after[300:340, 1].round(4)) <= set(before[:, 1].round(4))


@pytest.mark.parametrize("kind", HAPPENINGS)
def test_strength_grows_and_nothing_is_nothing(kind):
    sizes = [np.abs(np.subtract(*changed(kind, strength))).sum() for strength in (0.0, 0.25, 1.0)]
    assert sizes[0] < 1e-3
    assert sizes[0] < sizes[1] < sizes[2]


def test_they_compose_with_transforms():
    series, keys = jnp.asarray(waves()), jax.random.split(jax.random.key(0), 4)
    begins = jnp.array([10, 100, 200, 900])
    many = jax.jit(jax.vmap(lambda key, begin: of.level(key, series, begin, 20, 0, 1.0)))(keys, begins)
    again = list(jax.random.split(jax.random.key(0), 4))
    for number, begin in enumerate(begins.tolist()):
        alone = of.level(again[number], series, begin, 20, 0, 1.0)
        np.testing.assert_allclose(many[number], alone, rtol=1e-5, atol=1e-6)


def test_events_are_placed_apart_with_exact_labels():
    made = make_events(jax.random.key(1), waves(2000), count=7, lengths=(5, 60))
    assert [event.kind for event in made.events] == list(HAPPENINGS)
    labels = np.zeros(2000, int)
    for event in made.events:
        assert not labels[event.begin : event.begin + event.length].any()
        labels[event.begin : event.begin + event.length] = 1
        assert made.where[event.begin : event.begin + event.length, event.channel].all()
    np.testing.assert_array_equal(labels, made.labels)
    np.testing.assert_array_equal(made.series[~made.where], waves(2000)[~made.where])
    again = make_events(jax.random.key(1), waves(2000), count=7, lengths=(5, 60))
    np.testing.assert_array_equal(made.series, again.series)


def test_constant_channels_are_left_alone():
    series = np.column_stack([waves()[:, 0], np.ones(1000)])
    made = make_events(jax.random.key(0), series, count=5, kinds=("level",))
    assert {event.channel for event in made.events} == {0}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kinds": ("level", "explosion")}, "got 'explosion'"),
        ({"count": 100}, "need a series of 20000 points, got 1000"),
        ({"lengths": (10, 5)}, "1 <= lengths"),
        ({"count": 0}, "count >= 1"),
    ],
)
def test_what_cannot_be_made_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        make_events(jax.random.key(0), waves(), **asked)
