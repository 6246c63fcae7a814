"""Anomalies in time series: seven things that happen to sensors, with labels by construction.

A happening is a pure function ``(key, series, begin, length, channel, strength) -> series``, changed from point ``begin`` on for
``length`` points in one channel. All arguments may be traced: ``vmap`` makes many series at once. ``make_events`` places several of them.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Happening = Callable[..., Array]


def spike(key, series, begin, length, channel, strength):
    """One point far away: ``strength`` times four spreads of the channel, up or down."""
    size = 4 * strength * _sign(key) * _spread(series, channel)
    return _within(series, begin, 1, channel, lambda values, time: values + size)


def level(key, series, begin, length, channel, strength):
    """The level shifts by ``strength`` spreads, and comes back."""
    size = strength * _sign(key) * _spread(series, channel)
    return _within(series, begin, length, channel, lambda values, time: values + size)


def trend(key, series, begin, length, channel, strength):
    """It drifts away, by two ``strength`` spreads until the end, and comes back."""
    size = 2 * strength * _sign(key) * _spread(series, channel)
    return _within(series, begin, length, channel, lambda values, time: values + size * (time - begin + 1) / length)


def frequency(key, series, begin, length, channel, strength):
    """Time runs ``1 + strength`` times as fast; what comes is the series' own future."""

    def faster(values, time):
        return _at(values, begin + (time - begin) * (1.0 + strength))

    return _within(series, begin, length, channel, faster)


def dependency(key, series, begin, length, channel, strength):
    """The channel shows what it showed at another time: each value is normal, how it goes with other channels is not.

    ``strength`` 1: all of it; less: so large a share of it, mixed with the right one.
    """
    count = series.shape[0]
    lag = jax.random.randint(key, (), count // 4, max(count // 4 + 1, 3 * count // 4))

    def elsewhere(values, time):
        share = jnp.minimum(strength, 1.0)
        return (1 - share) * values + share * values[(time + lag) % count]

    return _within(series, begin, length, channel, elsewhere)


def stuck(key, series, begin, length, channel, strength):
    """The sensor goes on saying what it said; of ``strength`` below 1 a share of what it should say comes through."""

    def last(values, time):
        share = jnp.minimum(strength, 1.0)
        return (1 - share) * values + share * values[begin]

    return _within(series, begin, length, channel, last)


def noisy(key, series, begin, length, channel, strength):
    """Noise on top, of ``strength`` spreads."""
    noise = strength * _spread(series, channel) * jax.random.normal(key, series.shape[:1], series.dtype)
    return _within(series, begin, length, channel, lambda values, time: values + noise)


HAPPENINGS: Mapping[str, Happening] = {
    "spike": spike,
    "level": level,
    "trend": trend,
    "frequency": frequency,
    "dependency": dependency,
    "stuck": stuck,
    "noisy": noisy,
}


class Event(NamedTuple):
    """What was made to happen."""

    kind: str
    begin: int
    length: int
    channel: int
    strength: float


class MadeSeries(NamedTuple):
    """A series with anomalies in it."""

    series: np.ndarray
    """[time, channels]"""
    labels: np.ndarray
    """[time]: 1 where something happens."""
    where: np.ndarray
    """[time, channels], bool: where it happens."""
    events: list[Event]


def make_events(
    key: Array,
    series: Float[Array | np.ndarray, "time channels"],
    *,
    count: int = 10,
    kinds: tuple[str, ...] = tuple(HAPPENINGS),
    strength: float = 1.0,
    lengths: tuple[int, int] = (10, 100),
) -> MadeSeries:
    """A copy of a normal series in which ``count`` things happen, each kind in turn, apart from each other, in channels at random.

    A channel that is constant in the series is left alone, unless all are. ``strength`` 1 is an anomaly that a person would mark, .25 one
    that hardly anybody sees. A label says that something was done: a stuck sensor of a channel that does not move changes nothing.

    Raises:
        ValueError: an unknown kind, lengths out of order, or more events than there is room for: each takes its longest length twice.

    >>> wave = np.sin(np.arange(1000) / 8)[:, None].astype(np.float32)
    >>> made = make_events(jax.random.key(0), wave, count=3, kinds=("level", "stuck"))
    >>> [event.kind for event in made.events], bool((made.series[made.labels == 0] == wave[made.labels == 0]).all())
    (['level', 'stuck', 'level'], True)
    """
    series = np.asarray(series, np.float32)
    low, high = lengths
    if unknown := [kind for kind in kinds if kind not in HAPPENINGS]:
        raise ValueError(f"kinds are some of {', '.join(HAPPENINGS)}, got {unknown[0]!r}")
    if series.ndim != 2 or not 1 <= low <= high or not kinds or count < 1:
        raise ValueError(
            f"need a series [time, channels], a kind, count >= 1 and 1 <= lengths[0] <= lengths[1], got {series.shape=}, {kinds=}, "
            f"{count=}, {lengths=}"
        )
    room = len(series) // count
    if room < 2 * high:
        raise ValueError(
            f"{count} events of up to {high} points need a series of {2 * high * count} points, got {len(series)}"
        )
    moving = np.flatnonzero(np.std(series, axis=0) > 0)
    moving = np.arange(series.shape[1]) if not len(moving) else moving
    made, where, events = jnp.asarray(series), np.zeros(series.shape, bool), []
    for number, event_key in enumerate(jax.random.split(key, count)):
        place_key, length_key, channel_key, own_key = jax.random.split(event_key, 4)
        kind = kinds[number % len(kinds)]
        length = 1 if kind == "spike" else int(jax.random.randint(length_key, (), low, high + 1))
        begin = number * room + int(jax.random.randint(place_key, (), room // 4, room - length + 1))
        channel = int(moving[int(jax.random.randint(channel_key, (), 0, len(moving)))])
        made = HAPPENINGS[kind](own_key, made, begin, length, channel, strength)
        where[begin : begin + length, channel] = True
        events.append(Event(kind, begin, length, channel, strength))
    return MadeSeries(np.asarray(made), np.asarray(where.any(axis=1), np.int8), where, events)


def _sign(key):
    return jnp.where(jax.random.bernoulli(key), 1.0, -1.0)


def _spread(series, channel):
    return jnp.maximum(jnp.std(series, axis=0)[channel], 1e-6)


def _at(values, place):
    """Between the points, on a straight line."""
    low = jnp.clip(jnp.floor(place), 0, values.shape[0] - 1).astype(jnp.int32)
    high = jnp.minimum(low + 1, values.shape[0] - 1)
    share = jnp.clip(place - low, 0.0, 1.0)
    return (1 - share) * values[low] + share * values[high]


def _within(series, begin, length, channel, change):
    """The series with one channel changed for ``length`` points."""
    series = jnp.asarray(series)
    time = jnp.arange(series.shape[0])
    inside = (time >= begin) & (time < begin + length)
    values = series[:, channel]
    return series.at[:, channel].set(jnp.where(inside, change(values, time), values))
