"""A detector of time series beside a stream of points: scores in constant memory, alarms that begin and end, a state that survives."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxad.detectors.estimator import apply
from jaxad.detectors.series import SMOOTHING, SeriesDetector, StreamState, Stretch
from jaxad.metrics.calibration import p_values

AT_ONCE = 256
"""Points that are scored by one call where so many are waiting."""


class Alarm(NamedTuple):
    """The beginning or the end of a run of points that are flagged."""

    begins: bool
    point: int
    """From 0, of all that were seen."""
    score: float
    """Larger = more anomalous; at the end the largest of the run."""
    p_value: float
    channels: tuple[int, ...]
    """Those that say most, at the beginning."""


class Watcher:
    """Follows one stream with a fitted ``SeriesDetector(causal=True)``.

    >>> wave = np.sin(np.arange(800) / 5)[:, None]
    >>> watcher = Watcher(SeriesDetector(causal=True).fit(wave[:400]))
    >>> broken = wave[400:].copy()
    >>> broken[300:] = 3.0
    >>> alarms = list(watcher.see(broken))
    >>> alarms[0].begins, 295 < alarms[0].point < 320
    (True, True)

    Args:
        detector: the detector.
        alpha: share of normal points that may be flagged; None: its ``false_alarm_rate``.

    Raises:
        ValueError: a detector that needs to know what follows.
    """

    def __init__(self, detector: SeriesDetector, alpha: float | None = None):
        if not isinstance(detector, SeriesDetector):
            raise ValueError(f"a stream of points is watched by a SeriesDetector, got {type(detector).__name__}")
        self.detector, self.alpha = detector, detector.false_alarm_rate if alpha is None else alpha
        self.state: StreamState = detector.scorer_.init()
        self.peak: float | None = None
        """The largest score of the alarm that goes on; None: there is none."""
        self.quiet = 0
        """Points since the last one that was flagged."""

    @property
    def seen(self) -> int:
        """Points so far."""
        return int(self.state.count)

    def scores(self, points: np.ndarray) -> np.ndarray:
        """Anomaly scores of the next points ``[points, channels]``, in the units of the data."""
        rows, found = jnp.asarray(self.detector.standardiser_(np.asarray(points, np.float64))), []
        whole = len(rows) // AT_ONCE * AT_ONCE
        for start in range(0, whole, AT_ONCE):
            self.state, of = apply(Partial(_steps, self.detector.scorer_, self.state), rows[start : start + AT_ONCE])
            found.append(np.asarray(of))
        for row in rows[whole:]:
            self.state, of = apply(Partial(_step, self.detector.scorer_, self.state), row)
            found.append(np.asarray(of)[None])
        return np.concatenate(found).astype(np.float64) if found else np.zeros(0)

    def see(self, points: np.ndarray) -> Iterator[Alarm]:
        """Take in the next points; the alarms that begin or end among them.

        An alarm is over after 32 points that are not flagged, as many as a score is smoothed over: one that hovers about the threshold is
        one alarm.
        """
        for start in range(0, len(points), AT_ONCE):
            piece, first, before = points[start : start + AT_ONCE], self.seen, self.state.raw
            scores = self.scores(piece)
            p = p_values(self.detector.calibration_scores_, -scores)
            for at, (score, value) in enumerate(zip(scores.tolist(), p.tolist(), strict=True)):
                if value <= self.alpha:
                    begins, self.quiet = self.peak is None, 0
                    self.peak = max(score, self.peak or score)
                    if begins:
                        yield Alarm(True, first + at, score, value, self._channels(before, piece[: at + 1]))
                elif self.peak is not None:
                    self.quiet += 1
                    if self.quiet == SMOOTHING:
                        yield Alarm(False, first + at, self.peak, value, ())
                        self.peak, self.quiet = None, 0

    def _channels(self, before: Any, points: np.ndarray, most: int = 3) -> tuple[int, ...]:
        """Those that say most of the last of ``points``, which come after the standardised ``before``."""
        rows = np.concatenate([np.asarray(before), self.detector.standardiser_(np.asarray(points, np.float64))])
        unseen = len(before) - min(self.seen, len(before))
        rows = rows[max(unseen, len(rows) - len(before)) :]
        padding = np.zeros((len(before) - len(rows), rows.shape[1]), np.float32)
        stretch = Stretch(np.concatenate([rows, padding]), *np.array([0, len(rows)], np.int32))
        where = np.asarray(apply(Partial(_where, self.detector.scorer_), stretch))[len(rows) - 1]
        share = where / max(float(where.sum()), 1e-12)
        return tuple(int(channel) for channel in np.argsort(-share)[:most] if share[channel] > 0.2)

    def save(self, path: Path, **more: Any) -> None:
        """Keep the state, whole or not at all; ``more`` are numbers to keep beside."""
        unfinished = path.with_name(f".{path.name}.partial")
        arrays = {f"state_{name}": np.asarray(leaf) for name, leaf in self.state._asdict().items()}
        peak = np.nan if self.peak is None else self.peak
        with unfinished.open("wb") as file:
            np.savez(file, peak=peak, quiet=self.quiet, **arrays, **more)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def load(self, path: Path, *names: str) -> list[int]:
        """Go on from what ``save`` has kept; the numbers of these names.

        Raises:
            ValueError: another file, or the state of another model.
        """
        try:
            with np.load(path, allow_pickle=False) as kept:
                arrays = [kept[f"state_{name}"] for name in StreamState._fields]
                peak, quiet = float(kept["peak"]), int(kept["quiet"])
                more = [int(kept[name]) for name in names]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path}: expected the state of a watch, got something else ({error}); remove it to begin anew"
            ) from error
        wanted = [(leaf.shape, leaf.dtype) for leaf in self.state]
        if [(leaf.shape, leaf.dtype) for leaf in arrays] != wanted:
            raise ValueError(f"{path} is the state of another model; remove it to begin anew")
        self.state, self.peak = StreamState(*map(jnp.asarray, arrays)), None if np.isnan(peak) else peak
        self.quiet = quiet
        return more


def _step(scorer, state, row):
    return scorer.step(state, row)


def _steps(scorer, state, rows):
    return jax.lax.scan(scorer.step, state, rows)


def _where(scorer, stretch):
    return scorer.where(stretch)
