"""The recommended detector: several views of what is normal, each calibrated on rows it has not seen, one score."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state, gen_batches

from jaxad import noise, scoring, training
from jaxad.denoisers import MLP
from jaxad.denoising import hidden_features, make_denoiser
from jaxad.detectors import views
from jaxad.detectors.estimator import ThresholdMixin, check_scoring_data, check_training_data
from jaxad.detectors.fitting import score_in_batches, train_many
from jaxad.detectors.neighbours import squared_distances
from jaxad.runtime.runs import open_run

FARTHEST = 10.0
"""Standardised values are cut here: one absurd value must not decide alone."""

MOST_REFERENCE_ROWS = 20_000
MOST_LEARNED_ROWS = 10_000
FEWEST_LEARNED_ROWS = 100
"""Training rows kept to measure distances to, in the closed-form and in the learned views; below the last no network is trained."""

MOST_HELD_OUT_ROWS = 2000
BLOCK_ROWS = 2048
"""Rows of a fold that are measured, and rows scored at once."""

LEVELS = noise.log_uniform(10, sigma_min=0.05, sigma_max=3.0)
FEATURE_LEVELS = noise.NoiseLevel(np.ones(3), np.array([0.1, 0.4, 1.0]))


@partial(jax.jit, static_argnames="network")
def represent(params, rows, *, network):
    """``(features of the network at three levels, log score norms at ten)``, both along axis 0, rows last."""
    levels = FEATURE_LEVELS.to(rows.dtype)
    features = [hidden_features(network, params, rows, levels[i]) for i in range(len(levels))]
    norms = scoring.log_score_norm(
        jax.random.key(0), make_denoiser(network, params, noise.VELOCITY), rows, LEVELS.to(rows.dtype)
    )
    return jnp.concatenate([jnp.concatenate(features, axis=1).T, norms])


class ConsensusDetector(ThresholdMixin, BaseEstimator):
    """Nothing to choose, no label, the same settings for every table: what to use when in doubt.

    Seven views look at a row. Five need no training (``jaxad.detectors.views``): the distance to the nearest normal row as it is, after
    whitening, and between ranks; the residual of every column given the others; the isolation of single values. Two are learned: a
    small diffusion model is trained on the normal rows, and distances to the five nearest training rows are taken in what it has
    learned, the features before its output layer at three noise levels, and the norms of its score at ten (MSMA, Mahmood et al. 2021).

    Each view is put on a common scale by normal rows held out of its fit, ``z = asinh(2 (d - median) / (97 % quantile - median))``, and the
    score is the soft maximum ``log mean exp z``. Why: no view is best everywhere and nothing in the normal rows tells which will be
    (synthetic anomalies do not: docs/methods.md), but an anomaly that one view sees clearly stands out of the others' noise. Measured
    over 42 ADBench sets and 55 from elsewhere, the consensus is better on average than every variant of kNN.

    Cost: each network takes at most 2,000 steps of at most 128 rows whatever the data's size, and distances are measured to at most
    20,000 rows. Below 100 training rows no network is trained.

    A training row scored again finds itself and looks more normal than it is: ``predict`` is for new rows, ``fit_predict`` flags next
    to nothing.

    Args:
        num_networks: size of the ensemble, trained at once by one ``vmap`` on different splits; 0: the closed-form views alone.
        num_steps: most steps of each network; None: 1,000 below 250 rows, else 2,000.
        max_seconds: training stops at the first look at the held-out loss after this; None: never. A limit that strikes makes
            the result depend on the machine's speed.
        run_dir: folder (or ``runs.RunDirectory``) to keep the training's state in; a fit that was stopped or killed goes on from there.
        false_alarm_rate: share of normal rows that ``predict`` may flag.
        random_state: seed; the same seed gives the same scores.
        verbose: 1 shows a progress bar.

    Attributes:
        centre_, scale_: median and 97 % quantile less median of each view's distances for normal rows it has not seen; five views,
            then two of each network.
        validation_losses_: held-out loss of every network, one value per 200 steps.

    Raises:
        ValueError: from ``fit`` and ``score_samples`` for bad data: see ``check_training_data``.

    >>> X = np.random.default_rng(0).normal(size=(80, 3))
    >>> detector = ConsensusDetector().fit(X)
    >>> inside, outside = detector.score_samples([[0.0, 0.0, 0.0], [3.0, -3.0, 3.0]])
    >>> bool(inside > outside)
    True
    """

    def __init__(
        self,
        *,
        num_networks=2,
        num_steps=None,
        max_seconds=None,
        run_dir=None,
        false_alarm_rate=0.05,
        random_state=0,
        verbose=0,
    ):
        self.num_networks = num_networks
        self.num_steps = num_steps
        self.max_seconds = max_seconds
        self.run_dir = run_dir
        self.false_alarm_rate = false_alarm_rate
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y=None):
        """Learn from normal rows ``X [rows, features]``; ``y`` is ignored."""
        X = check_training_data(self, X)
        if self.num_networks < 0 or (self.num_steps is not None and self.num_steps < 1):
            raise ValueError(f"need num_networks >= 0 and num_steps >= 1, got {self.num_networks=}, {self.num_steps=}")
        rng = check_random_state(self.random_state)
        self._fit_scale(X)
        # In random order: what is cut to so many rows below must not be the first of a file sorted by time or kind.
        rows = self._standardise(X)[rng.permutation(len(X))]
        folds = _folds(rows, rng)
        networks = min(self.num_networks, len(folds)) if len(rows) >= FEWEST_LEARNED_ROWS else 0
        with open_run(self.run_dir) as run:
            self._fit_networks(rows, folds[:networks], rng.randint(2**31 - 1), run)
        kept = np.sort(rng.permutation(len(rows))[:MOST_REFERENCE_ROWS])
        self.views_ = views.fit_views(rows[kept])
        self.build_index()

        # Calibration: every fold is measured by views fitted without it. All folds of few rows, of many as many as there are networks.
        calibrating = folds if len(rows) <= 2000 else folds[: max(networks, 1)]
        closed = []
        for fold in calibrating:
            without = np.setdiff1d(kept, fold, assume_unique=True)
            fitted = views.fit_views(rows[without])
            closed.append(views.distances(fitted, views.index_views(fitted), rows[fold[:MOST_HELD_OUT_ROWS]]))
        learned = [self._learned(i, rows[fold[:MOST_HELD_OUT_ROWS]]) for i, fold in enumerate(folds[:networks])]
        stats = [
            views.centre_and_scale(d, 0.97)
            for d in (*np.concatenate(closed, axis=1), *(d for pair in learned for d in pair))
        ]
        self.centre_, self.scale_ = np.array(stats).T

        # The threshold: the consensus on rows that were left out everywhere, with the one network that has not seen them.
        if networks:
            scores = [
                self._combine(np.concatenate([c, pair]), networks=[i])
                for i, (c, pair) in enumerate(zip(closed, learned, strict=False))
            ]
        else:
            scores = [self._combine(c) for c in closed]
        self._calibrate_on(-np.concatenate(scores))
        return self

    def score_samples(self, X) -> np.ndarray:
        """Minus the consensus, shape ``[rows]``: larger = more normal. A row's score depends on that row alone."""
        rows = self._standardise(check_scoring_data(self, X))
        return -self._combine(self._distances(rows), networks=range(len(self.params_)))

    def scores_by_view(self, X) -> dict[str, np.ndarray]:
        """What each view says, on the common scale (0 usual, about 1.4 the upper end of normal): ``{view: [rows]}``.

        ``features`` and ``norms`` are the means over the ensemble.
        """
        z = self._z(self._distances(self._standardise(check_scoring_data(self, X))), range(len(self.params_)))
        names = (*views.NAMES, "features", "norms")
        return dict(zip(names, z, strict=False))

    # ------------------------------------------------------------------------------------------------------------ in fit

    def _fit_scale(self, X):
        """Column means and spreads of values within the 0.1 % and 99.9 % quantiles, so that a few far values do not set the scale."""
        low, high = np.quantile(X, [0.001, 0.999], axis=0)
        cut = np.clip(X, low, high)
        self.mean_ = cut.mean(axis=0, dtype=np.float64)
        std, full = cut.std(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
        tiny = 1e-12 * np.maximum(np.abs(self.mean_), 1.0)
        self.spread_ = np.where(std > tiny, std, np.where(full > tiny, full, 1.0))

    def _standardise(self, X):
        return np.clip((X - self.mean_) / self.spread_, -FARTHEST, FARTHEST).astype(np.float32)

    def _fit_networks(self, rows, folds, seed, run):
        self.network_: Any = MLP(width=128, depth=3)
        self.params_, self.validation_losses_, self.known_ = [], [], []
        if not folds:
            return
        num_steps = (1000 if len(rows) < 250 else 2000) if self.num_steps is None else self.num_steps
        training_rows = [np.delete(rows, fold, axis=0) for fold in folds]
        self.params_, _, self.validation_losses_ = train_many(
            jax.random.split(jax.random.key(seed), len(folds)),
            self.network_,
            training_rows,
            [rows[fold[:MOST_HELD_OUT_ROWS]] for fold in folds],
            noise.log_uniform(256, sigma_min=0.03, sigma_max=5.0),
            (rows[:1], np.zeros(1, np.float32)),
            loss=training.simple_loss(self.network_, noise.VELOCITY),
            optimizer=training.adam(3e-3, num_steps=num_steps, warmup_steps=min(100, num_steps // 10)),
            num_steps=num_steps,
            batch_size=64 if len(rows) < 1000 else 128,
            max_seconds=self.max_seconds,
            run=run,
            verbose=self.verbose,
            title=f"{len(folds)} networks",
        )
        self.known_ = [self._representation(i, known[:MOST_LEARNED_ROWS]) for i, known in enumerate(training_rows)]

    def _representation(self, i, rows):
        """``[rows, features + levels]`` of network i, as measured, before the norms are standardised."""
        return score_in_batches(partial(represent, self.params_[i], network=self.network_), rows).T

    def build_index(self):
        """Searches in all spaces: a function of the stored arrays, rebuilt when a detector is loaded."""
        self.index_ = (views.index_views(self.views_), [_index_learned(known) for known in self.known_])
        return self

    # ------------------------------------------------------------------------------------------------------------ scoring

    def _learned(self, i, rows):
        """Mean distance to the five nearest training rows in network i's features and score norms, [2, rows]."""
        features, norms = np.split(self._representation(i, rows), [-len(LEVELS)], axis=1)
        mean, std, searches = self.index_[1][i]
        spaces = (features, (norms - mean) / std)
        return np.stack(
            [
                np.sqrt(squared_distances(known, search, x, min(5, len(known)))).mean(axis=1)
                for (known, search), x in zip(searches, spaces, strict=True)
            ]
        ).astype(float)

    def _distances(self, rows):
        """[views, rows], a block of rows at a time: what searching and representing a row takes is many times the row."""
        blocks = []
        for block in gen_batches(len(rows), BLOCK_ROWS):
            closed = views.distances(self.views_, self.index_[0], rows[block])
            blocks.append(np.concatenate([closed, *(self._learned(i, rows[block]) for i in range(len(self.params_)))]))
        return np.concatenate(blocks, axis=1)

    def _z(self, distances, networks=()):
        """[views, rows] on the common scale; the networks' z are averaged."""
        count = len(views.NAMES)
        which = [*range(count), *(count + 2 * i + j for i in networks for j in (0, 1))]
        z = np.arcsinh(2 * (distances - self.centre_[which, None]) / self.scale_[which, None])
        closed, learned = z[:count], z[count:]
        if not len(learned):
            return closed
        return np.concatenate([closed, learned.reshape(-1, 2, z.shape[1]).mean(axis=0)])

    def _combine(self, distances, networks=()):
        z = self._z(distances, networks)
        return np.log(np.mean(np.exp(z), axis=0))


def _index_learned(known) -> tuple:
    """``(mean and spread of the norms, (space, search) for the features and for the standardised norms)``."""
    features, norms = np.split(known, [-len(LEVELS)], axis=1)
    mean, std = norms.mean(axis=0), norms.std(axis=0) + 1e-6
    spaces = (np.ascontiguousarray(features), (norms - mean) / std)
    return mean, std, tuple((space, NearestNeighbors(n_neighbors=5).fit(space)) for space in spaces)


def _folds(rows, rng) -> list[np.ndarray]:
    """Disjoint index arrays to hold out: five of a fifth each, of more than 2,000 rows ten of a tenth.

    Equal rows fall into one fold, and a fold is left out as a whole even where only part of it is measured: otherwise data
    full of copies would look calibrated on itself.
    """
    _, group = np.unique(rows, axis=0, return_inverse=True)
    group = group.ravel()
    count = min(5 if len(rows) <= 2000 else 10, group.max() + 1)
    if count < 2:  # all rows alike
        return [np.arange(len(rows))[:1], np.arange(len(rows))[1:]]
    fold_of_group = rng.permutation(group.max() + 1) % count
    fold = fold_of_group[group]
    return [np.flatnonzero(fold == i) for i in range(count)]
