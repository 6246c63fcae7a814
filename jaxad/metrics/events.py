"""How well do point scores of a time series find events: stretches of anomalous points, some long, some short, with vague borders.

``labels [time]`` are 1 on anomalous points; ``scores [time]`` are ANOMALY scores, larger = more anomalous; an event is a run of ones. VUS
needs no threshold. Affiliation, overlap of events and delay take ``flagged [time]``: what a threshold has flagged. Print a random score
beside all of them: affiliation F gives it .7, point adjustment .9.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from jaxad.metrics.ranking import _checked

NUM_THRESHOLDS = 250
NO_PERIOD = 125
"""The window of series that do not repeat, as in TSB-AD."""


def events_of(flags) -> list[tuple[int, int]]:
    """The runs of ones of ``[time]``: ``[(start, end), ...]``, the end not included.

    >>> events_of([0, 1, 1, 0, 1])
    [(1, 3), (4, 5)]
    """
    flags = np.asarray(flags)
    if flags.ndim != 1 or not np.isin(flags, (0, 1)).all():
        raise ValueError(
            f"expected zeros and ones [time], got shape {flags.shape} with {np.unique(flags)[:5].tolist()}"
        )
    change = np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(change == 1).tolist(), np.flatnonzero(change == -1).tolist(), strict=True))


def period_of(values) -> int:
    """After how many points ``values [time]`` repeat: the highest peak of the autocorrelation between 3 and 300; 125 if there is none.

    TSB-AD's rule for the window of ``vus`` (``find_length_rank``), on the first 20,000 points and 400 lags.

    >>> period_of(np.sin(2 * np.pi * np.arange(1000) / 40))
    40
    """
    values = np.asarray(values, np.float64)[:20_000]
    values = values - values.mean()
    lags = min(400, len(values) - 1)
    power = np.abs(np.fft.rfft(values, 2 * len(values))) ** 2
    correlation = np.fft.irfft(power)[: lags + 1]
    if lags < 5 or correlation[0] <= 0:
        return NO_PERIOD
    late = correlation[3:] / correlation[0]
    peaks = 1 + np.flatnonzero((late[1:-1] > late[:-2]) & (late[1:-1] > late[2:]))
    if not len(peaks):
        return NO_PERIOD
    best = int(peaks[np.argmax(late[peaks])])
    return best + 3 if 3 <= best <= 300 else NO_PERIOD


def vus(labels, scores, window: int) -> tuple[float, float]:
    """Volumes under the surfaces ``(VUS-ROC, VUS-PR)``, in [0, 1], over all windows from 0 to ``window`` points.

    For a window w every event gets a ramp of w // 2 points on both sides, ``sqrt(1 - d / w)`` at distance d, so that a score that is a
    little early or late is not all wrong; recall is multiplied by the share of events that are met at all. Areas are averaged over w.
    Paparrizos et al., VLDB 2022, in the form of TSB-AD 1.5 (``RangeAUC_volume_opt``, 250 thresholds). TSB-AD takes ``period_of`` of the
    first channel for the window.

    Raises:
        ValueError: as ``auroc``, or ``window`` is negative.

    >>> labels = np.zeros(100)
    >>> labels[40:50] = 1
    >>> vus(labels, labels, 0)
    (1.0, 1.0)
    """
    labels, scores = _checked(labels, scores)
    if window < 0:
        raise ValueError(f"window is a number of points, at least 0, got {window}")
    count, events = len(labels), events_of(labels)
    thresholds = np.sort(scores)[::-1][np.linspace(0, count - 1, NUM_THRESHOLDS).astype(int)]
    # The first threshold that flags each point.
    met = np.searchsorted(-thresholds, -scores, side="left")

    def flagged(met, weights):
        return np.cumsum(np.bincount(met, weights, NUM_THRESHOLDS + 1)[:NUM_THRESHOLDS])

    predicted, hits = flagged(met, np.ones(count)), flagged(met, labels.astype(float))
    positives, areas = labels.sum(), np.zeros((window + 1, 2))
    for width in range(window + 1):
        ramp = _ramps(events, count, width)
        near = np.flatnonzero((ramp > 0) & (labels == 0))
        soft = flagged(met[near], np.minimum(ramp[near], 1.0))
        extended = _joined(events, count, width // 2)
        first = np.array([met[start:end].min() for start, end in extended])
        existence = np.cumsum(np.bincount(first, minlength=NUM_THRESHOLDS + 1)[:NUM_THRESHOLDS]) / len(extended)
        true = hits + soft
        # Half of what is in the ramps counts as anomalous.
        expected = positives + soft / 2
        recall = np.minimum(true / expected, 1.0) * existence
        false_rate = (predicted - true) / (count - expected)
        precision = true / predicted
        whole, rate = np.concatenate([[0.0], recall, [1.0]]), np.concatenate([[0.0], false_rate, [1.0]])
        areas[width] = np.trapezoid(whole, rate), np.sum(np.diff(whole[:-1]) * precision)
    roc, precision_recall = areas.mean(axis=0)
    return float(roc), float(precision_recall)


def _ramps(events, count: int, width: int) -> np.ndarray:
    """What stands on both sides of every event, added up where two meet."""
    ramp, half = np.zeros(count), width // 2
    if not half:
        return ramp
    fall = np.sqrt(1 - np.arange(1, half + 1) / width)
    for start, end in events:
        right, left = min(half, count - end), min(half, start)
        ramp[end : end + right] += fall[:right]
        ramp[start - left : start] += fall[:left][::-1]
    return ramp


def _joined(events, count: int, half: int) -> list[tuple[int, int]]:
    """Events with ``half`` points more on both sides, those that overlap as one."""
    joined: list[tuple[int, int]] = []
    for start, end in events:
        low, high = max(start - half, 0), min(end + half, count)
        if joined and low < joined[-1][1]:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return joined


def affiliation(labels, flagged) -> tuple[float, float]:
    """``(precision, recall)`` by how near flagged points and events lie to each other, beside a random point: in [0, 1].

    Every event has a zone, up to halfway to the next. A flagged point is worth the chance that a random point of its zone lies farther
    from the event; a point of an event, the chance that a random one lies farther from it than the nearest flagged one. Averages over
    zones, precision over those with a flagged point (Huet et al., KDD 2022). A score that flags everything gets a precision of about .5
    and a recall of 1: show a random score beside.

    Raises:
        ValueError: there is no event, or the arrays are of other shapes or values (as all functions below do).

    >>> labels, flagged = np.zeros((2, 100), int)
    >>> labels[20:30] = labels[60:65] = flagged[25:35] = flagged[65:70] = 1
    >>> [round(each, 4) for each in affiliation(labels, flagged)]
    [0.8258, 0.9268]
    """
    events, found = _both(labels, flagged)
    middles = [(before[1] + after[0]) / 2 for before, after in pairwise(events)]
    precisions, recalls = [], []
    for event, zone in zip(events, pairwise([0.0, *middles, float(len(labels))]), strict=True):
        inside = [(max(a, zone[0]), min(b, zone[1])) for a, b in found if max(a, zone[0]) < min(b, zone[1])]
        if inside:
            precisions.append(_precision(inside, event, zone))
        recalls.append(_recall(inside, event, zone) if inside else 0.0)
    return float(np.mean(precisions)) if precisions else 0.0, float(np.mean(recalls))


def _precision(found, event, zone) -> float:
    """Of the flagged stretches of a zone."""
    (start, end), (low, high) = event, zone

    def farther(x):
        distance = max(start - x, x - end)
        return 1 - (end - start + min(distance, start - low) + min(distance, high - end)) / (high - low)

    kinks = (start - (high - end), end + (start - low))
    total = 0.0
    for a, b in found:
        total += max(0.0, min(b, end) - max(a, start))  # on the event itself: 1
        total += _integral(farther, a, min(b, start), kinks) + _integral(farther, max(a, end), b, kinks)
    return total / sum(b - a for a, b in found)


def _recall(found, event, zone) -> float:
    """Of the event of a zone."""
    (start, end), (low, high) = event, zone

    def farther(y):
        distance = min(max(a - y, y - b, 0.0) for a, b in found)
        return 1 - (min(distance, y - low) + min(distance, high - y)) / (high - low)

    edges = {edge for pair in found for edge in pair}
    between = {(before[1] + after[0]) / 2 for before, after in pairwise(found)}
    as_far_as_the_border = {(edge + border) / 2 for edge in edges for border in zone}
    return _integral(farther, start, end, edges | between | as_far_as_the_border) / (end - start)


def _integral(of: Callable[[float], float], low: float, high: float, kinks) -> float:
    """Of a function that is linear between its kinks; 0 where ``low`` is not below ``high``."""
    if low >= high:
        return 0.0
    points = sorted({low, high, *(kink for kink in kinks if low < kink < high)})
    return sum((b - a) * (of(a) + of(b)) / 2 for a, b in pairwise(points))


def range_precision_recall(labels, flagged) -> tuple[float, float]:
    """``(precision, recall)`` of stretches, by the share of each that overlaps with the other kind: in [0, 1].

    Tatbul et al., NeurIPS 2018, with TSB-AD's settings: positions weigh alike, overlap with several stretches is divided by their number,
    and a fifth of the recall is for an event that is met at all.

    >>> precision, recall = range_precision_recall([0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1])
    >>> round(precision, 3), round(recall, 3)
    (0.667, 0.6)
    """
    events, found = _both(labels, flagged)

    def overlap(stretch, others):
        shared = [max(0, min(stretch[1], b) - max(stretch[0], a)) for a, b in others]
        met = sum(each > 0 for each in shared)
        return (sum(shared) / (stretch[1] - stretch[0]) / met) if met else 0.0

    recalls = [0.2 * (overlap(event, found) > 0) + 0.8 * overlap(event, found) for event in events]
    precisions = [overlap(stretch, events) for stretch in found]
    return float(np.mean(precisions)) if precisions else 0.0, float(np.mean(recalls))


class EventCounts(NamedTuple):
    """What a user of alarms would count."""

    precision: float
    """Share of alarms, runs of flagged points, that touch an event; 0 without an alarm."""
    recall: float
    """Share of events that an alarm touches."""
    f1: float
    delay: float
    """Mean number of points from the beginning of an event that was found to its first flagged point; NaN where none was."""


def event_counts(labels, flagged) -> EventCounts:
    """How many alarms are right, how many events are found, and how late.

    >>> event_counts([0, 1, 1, 0, 0, 1], [0, 0, 1, 0, 1, 0])
    EventCounts(precision=0.5, recall=0.5, f1=0.5, delay=1.0)
    """
    events, found = _both(labels, flagged)
    flagged = np.asarray(flagged)
    right = sum(any(a < end and start < b for start, end in events) for a, b in found)
    delays = [int(np.argmax(flagged[start:end])) for start, end in events if flagged[start:end].any()]
    precision, recall = right / len(found) if found else 0.0, len(delays) / len(events)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return EventCounts(precision, recall, f1, float(np.mean(delays)) if delays else float("nan"))


def legacy_point_adjusted_f1(labels, flagged) -> float:
    """F1 over points after every event with one flagged point counts as wholly flagged, in [0, 1]. **Not a measure of detection.**

    Kept to read old papers by. A random score reaches .92 where events are long (20,000 points, a tenth anomalous, in stretches of 200);
    compare with a random score or not at all.

    >>> legacy_point_adjusted_f1([0, 1, 1, 1, 0], [0, 0, 1, 0, 0])
    1.0
    """
    events, _ = _both(labels, flagged)
    labels, adjusted = np.asarray(labels).astype(bool), np.asarray(flagged).astype(bool)
    for start, end in events:
        adjusted[start:end] |= adjusted[start:end].any()
    both = np.sum(adjusted & labels)
    return float(2 * both / (adjusted.sum() + labels.sum()))


def _both(labels, flagged) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The events and the flagged stretches, checked."""
    events, found = events_of(labels), events_of(flagged)
    if len(np.asarray(labels)) != len(np.asarray(flagged)):
        raise ValueError(
            f"expected as many flags as labels, got {len(np.asarray(flagged))} and {len(np.asarray(labels))}"
        )
    if not events:
        raise ValueError("expected an event, a run of ones in labels, got none: there is nothing to find")
    return events, found


def marked_events(
    flagged: np.ndarray, scores: np.ndarray, where: Any, names: tuple[str, ...], most: int = 3
) -> list[dict[str, Any]]:
    """The events: of every run of flagged points ``start``, ``end`` (the last point), ``peak`` and the channels that say most.

    A score rises before an event and falls after it, as windows begin and cease to hold it. So an event is that part of a run around its
    peak whose scores are at least half of the peak's. ``flagged [time]`` bool, ``scores [time]`` and ``where [time, channels]``, both
    larger = more anomalous.

    >>> marked_events(np.array([False, True, True]), np.array([0.0, 1.0, 3.0]), np.array([[0.0], [1.0], [3.0]]), ("heat",))
    [{'start': 2, 'end': 2, 'peak': 2, 'score': 3.0, 'channels': 'heat'}]
    """
    found = []
    for low, high in events_of(flagged.astype(int)):
        peak = low + int(np.argmax(scores[low:high]))
        start, end = next((a, b) for a, b in events_of((scores >= scores[peak] / 2) & flagged) if a <= peak < b)
        share = where[start:end].sum(axis=0)
        chosen = [number for number in np.argsort(-share)[:most] if share[number] > 0.2 * share.sum()]
        channels = ", ".join(names[number] for number in chosen)
        found.append({"start": start, "end": end - 1, "peak": peak, "score": float(scores[peak]), "channels": channels})
    return found
