"""The recommended detector: several views of what is normal, each calibrated on rows it has not seen, one score."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from jaxad import noise, scoring, training
from jaxad.denoisers import MLP
from jaxad.denoising import Denoise, hidden_features, make_denoiser
from jaxad.detectors import trimming, views
from jaxad.detectors.estimator import Estimator, Learned, apply, in_batches
from jaxad.detectors.evidence import Evidence, combine, view_weights
from jaxad.detectors.fitting import train_many
from jaxad.detectors.scorer import Scorer, stack, static
from jaxad.detectors.search import Known, known, mean_distance, padded_size
from jaxad.runtime.runs import open_run
from jaxad.standardiser import FAR, Standardiser

MOST_REFERENCE_ROWS = 20_000
MOST_LEARNED_ROWS = 10_000
FEWEST_LEARNED_ROWS = 100
"""Training rows kept to measure distances to, in the closed-form and in the learned views; below the last no network is trained."""

MOST_HELD_OUT_ROWS = 2000

LEVELS = noise.log_uniform(10, sigma_min=0.05, sigma_max=3.0)
FEATURE_LEVELS = noise.NoiseLevel(np.ones(3), np.array([0.1, 0.4, 1.0]))

LEARNED_NEIGHBOURS = 5


class Representation(Scorer):
    """A network's features at three levels, then its log score norms at ten: of rows, ``[batch, features + levels]``."""

    params: Any
    network: Any = static()

    def __call__(self, rows: Float[Array, "batch features"]) -> Float[Array, "batch _"]:
        """Features and norms."""
        # One program for all levels, and by it one for all networks: each alone would be compiled by itself.
        features = jax.vmap(lambda level: hidden_features(self.network, self.params, rows, level), out_axes=1)(
            FEATURE_LEVELS.to(rows.dtype)
        )
        denoise = make_denoiser(self.network, self.params, noise.VELOCITY)
        norms = scoring.log_score_norm(jax.random.key(0), denoise, rows, LEVELS.to(rows.dtype))
        return jnp.concatenate([features.reshape(len(rows), -1), norms.T], axis=1)


class LearnedView(NamedTuple):
    """What a network has learned of its training rows."""

    representation: Representation
    features: Known
    norms: Known
    """Standardised by the next two."""
    mean: Float[Array | np.ndarray, "..."]
    std: Float[Array | np.ndarray, "..."]

    @classmethod
    def fit(cls, representation: Representation, rows: np.ndarray, size: int) -> "LearnedView":
        """Of standardised training rows, [rows, features], padded to ``size``."""
        features, norms = np.split(in_batches(representation, rows), [-len(LEVELS)], axis=1)
        mean, std = norms.mean(axis=0), norms.std(axis=0) + 1e-6
        return cls(representation, known(features, size), known((norms - mean) / std, size), mean, std)

    def distances(self, rows: Float[Array, "batch features"]) -> Float[Array, "2 batch"]:
        """Mean distance to the five nearest training rows in features and in norms."""
        seen = self.representation(rows)
        spaces = (
            (self.features, seen[:, : -len(LEVELS)]),
            (self.norms, (seen[:, -len(LEVELS) :] - self.mean[None]) / self.std[None]),
        )
        return jnp.stack([mean_distance(among, x, LEARNED_NEIGHBOURS) for among, x in spaces])


class CombinedViews(Scorer):
    """The views' evidence in one number (``combine``); here a row *is* its distances, ``[batch, distances]``.

    The closed-form views come first, then two of each network.
    """

    of: Evidence
    weights: Float[Array | np.ndarray, "..."]
    """Of all views, the two of the networks last."""

    def __call__(self, rows: Float[Array, "batch distances"]) -> Float[Array, " batch"]:
        """Larger = more anomalous."""
        z = self.z(rows)
        return combine(z, self.weights[: len(z)])

    def z(self, rows: Float[Array, "batch distances"]) -> Float[Array, "views batch"]:
        """The evidence of each view; the networks' is averaged."""
        z = self.of(rows)
        closed, learned = z[: len(views.NAMES)], z[len(views.NAMES) :]
        if not len(learned):
            return closed
        return jnp.concatenate([closed, jnp.mean(learned.reshape(-1, 2, z.shape[1]), axis=0)])

    def of_network(self, number: int | None) -> "CombinedViews":
        """With one network alone, or none."""
        count = len(views.NAMES)
        of = [] if number is None else [count + 2 * number, count + 2 * number + 1]
        return CombinedViews(self.of.take(np.array([*range(count), *of])), self.weights)


class Consensus(Scorer):
    """All views of a row, and the sum of their evidence, each measured against normal rows it has not seen."""

    views: views.Views
    learned: LearnedView | None
    """With a leading axis, the networks; None where none was trained."""
    combined: CombinedViews

    def __call__(self, rows: Float[Array, "batch features"]) -> Float[Array, " batch"]:
        """Larger = more anomalous."""
        return self.combined(self.distances(rows).T) + how_far_beyond(rows)

    def distances(self, rows: Float[Array, "batch features"]) -> Float[Array, "distances batch"]:
        """Of nine views, and two of each network."""
        closed = self.views.distances(rows)
        if self.learned is None:
            return closed
        cut = _cut(rows)
        return jnp.concatenate([closed, *jax.lax.map(lambda view: view.distances(cut), self.learned)])

    def z(self, rows: Float[Array, "batch features"]) -> Float[Array, "views batch"]:
        """The evidence of each view."""
        return self.combined.z(self.distances(rows).T)

    def denoiser(self) -> Denoise:
        """The first network's denoiser, a pure function of standardised rows.

        Raises:
            ValueError: no network was trained.
        """
        if self.learned is None:
            raise ValueError(
                f"there is no denoiser: no network is trained on fewer than {FEWEST_LEARNED_ROWS} rows, or with num_networks=0; "
                "fit on more normal rows"
            )
        of = self.learned.representation
        return make_denoiser(of.network, jax.tree.map(lambda leaf: leaf[0], of.params), noise.VELOCITY)

    def normal_rows(self) -> np.ndarray:
        """The normal rows it remembers, standardised, ``[rows, features]``."""
        rows, half_norms = (np.asarray(part)[0] for part in self.views.known)
        return rows[np.isfinite(half_norms)]


def how_far_beyond(rows) -> Any:
    """What is added for values that the views see cut: next to nothing, and more the farther out they are, so that ranking goes on."""
    xp = rows.__array_namespace__()
    return 1e-3 * xp.max(xp.log1p(xp.maximum(xp.abs(rows) - views.FARTHEST, 0.0)), axis=1)


def _cut(rows) -> Any:
    return rows.__array_namespace__().clip(rows, -views.FARTHEST, views.FARTHEST)


class ConsensusDetector(Estimator):
    """Nothing to choose, no label, the same settings for every table: what to use when in doubt.

    Eleven views look at a row. Nine need no training (``jaxad.detectors.views``): distances to the nearest normal row in the columns as
    they are, after whitening, between ranks, and in pairs and triples of columns; length and conditional residuals under a Gaussian;
    isolated values, tails, and values outside of all that was seen. Two are learned: a small diffusion model is trained on the normal
    rows, and distances to the five nearest training rows are taken in what it has learned, the features before its output layer at
    three noise levels, and the norms of its score at ten (MSMA, Mahmood et al. 2021).

    What a view says is evidence: minus the logarithm of the share of normal rows, held out of its fit, that lie as far out. The score
    combines the evidence by weights (``combine``) that were learned over data sets, never inside one, and depend on the number of columns
    alone (``view_weights``): single columns and their tails mean most in small tables, distances over all columns in embeddings.

    Cost: each network takes at most 600 steps of 128 rows whatever the data's size, and distances are measured to at most
    20,000 rows. Below 100 training rows no network is trained.

    A training row scored again finds itself and looks more normal than it is: ``predict`` is for new rows, ``fit_predict`` flags next
    to nothing.

    Args:
        num_networks: size of the ensemble, trained at once by one ``vmap`` on different splits; 0: the closed-form views alone.
        contamination: share of anomalies among the training rows, where it is known, in [0, 0.5): twice as many rows are left out, those
            that belong least. None: what is plainly apart is left out, a fifth at most. 0: nothing is, nor judged
            (``jaxad.detectors.trimming``).
        num_steps: most steps of each network; None: 600.
        max_seconds: training stops at the first look at the held-out loss after this; None: never. A limit that strikes makes
            the result depend on the machine's speed.
        mesh: devices to score on; the small networks are trained on one. None: the default device.
        run_dir: folder (or ``runs.RunDirectory``) to keep the training's state in; a fit that was stopped or killed goes on from there.
        false_alarm_rate: share of normal rows that ``predict`` may flag.
        random_state: seed; the same seed gives the same scores.
        verbose: 1 shows a progress bar.

    Attributes:
        scorer_: a ``Consensus``: ``views``, ``learned`` (one a network), ``combined``: the ``Evidence`` of nine views, then two of each
            network, and the weights.
        validation_losses_: held-out loss of every network, one value per 200 steps.
        training_scores_: of every training row, by small samples of the other ones: ``[rows]``, larger = more normal. They rank the rows of
            a table in which nobody knows which are normal; other numbers than ``score_samples``. None where ``contamination`` is 0.
        left_out_: the training rows that were left out, by their place in ``X``.

    Raises:
        ValueError: from ``fit`` and ``score_samples`` for bad data: see ``check_training_data``.

    >>> X = np.random.default_rng(0).normal(size=(80, 3))
    >>> detector = ConsensusDetector().fit(X)
    >>> inside, outside = detector.score_samples([[0.0, 0.0, 0.0], [3.0, -3.0, 3.0]])
    >>> bool(inside > outside)
    True
    """

    num_networks: int = 2
    contamination: float | None = None
    num_steps: int | None = None
    max_seconds: float | None = None
    mesh: Any = None
    run_dir: Any = None
    false_alarm_rate: float = 0.05
    random_state: Any = 0
    verbose: int = 0

    def _learn(self, X):
        if self.num_networks < 0 or (self.num_steps is not None and self.num_steps < 1):
            raise ValueError(f"need num_networks >= 0 and num_steps >= 1, got {self.num_networks=}, {self.num_steps=}")
        if self.contamination is not None and not 0 <= self.contamination < 0.5:
            raise ValueError(
                f"contamination is a share of the training rows, at least 0 and below 0.5, or None, got {self.contamination}"
            )
        rng = check_random_state(self.random_state)
        standardiser = self._scale_of(X)
        # In random order: what is cut to so many rows below must not be the first of a file sorted by time or kind.
        order = rng.permutation(len(X))
        belongs = self._judge(standardiser, X, order)
        X = X[order[belongs]]
        if not belongs.all():
            standardiser = self._scale_of(X)
        standard = standardiser(X)
        rows = _cut(standard)
        folds = _folds(rows, rng)
        networks = min(self.num_networks, len(folds)) if len(rows) >= FEWEST_LEARNED_ROWS else 0
        with open_run(self.run_dir) as run:
            learned = self._learned_views(rows, folds[:networks], rng.randint(2**31 - 1), run)
        kept = np.sort(rng.permutation(len(rows))[:MOST_REFERENCE_ROWS])
        whole = views.fit_views(standard[kept])

        # Calibration: every fold is measured by views fitted without it. All folds of few rows, of many as many as there are networks.
        calibrating = folds if len(rows) <= 2000 else folds[: max(networks, 1)]
        measured = [fold[:MOST_HELD_OUT_ROWS] for fold in calibrating]
        closed = []
        for fold, which in zip(calibrating, measured, strict=True):
            without = np.setdiff1d(kept, fold, assume_unique=True)
            # A scale that has seen a row makes it look usual, the more the fewer rows and the more columns there are.
            scale = self._scale_of(np.delete(X, fold, axis=0)) if len(rows) <= 2000 else standardiser
            # Of one size, so that all of them, and what scores in the end, share compiled programs.
            fitted = views.fit_views(scale(X[without]), whole.known.rows.shape[1])
            closed.append(in_batches(Partial(views.rows_of_distances, fitted), scale(X[which])).T)
        seen = [
            in_batches(Partial(_rows_of_distances, view), rows[which]).T
            for view, which in zip(learned, measured, strict=False)
        ]
        # A fold holds all copies of a row, so none of its rows finds itself; but where rows repeat, new ones find themselves as well.
        copies = self._copies(standard, kept, whole, measured)
        closed_ones = np.concatenate([*closed, copies], axis=1)
        weights = view_weights(X.shape[1])
        combined = CombinedViews(Evidence.fit([*closed_ones, *(d for pair in seen for d in pair)]), weights)

        # The threshold: the consensus on rows that were left out everywhere, with the one network that has not seen them.
        if networks:
            apart = [
                (combined.of_network(i), np.concatenate(pair)) for i, pair in enumerate(zip(closed, seen, strict=False))
            ]
        else:
            apart = [(combined, distances) for distances in closed]
        beyond = [np.asarray(how_far_beyond(standardiser(X[which]))) for which in measured]
        scores = [in_batches(of, distances.T) + far for (of, distances), far in zip(apart, beyond, strict=False)]
        return Learned(
            standardiser, Consensus(whole, stack(learned) if learned else None, combined), np.concatenate(scores)
        )

    def scores_by_view(self, X) -> dict[str, np.ndarray]:
        """The evidence of each view, minus the logarithm of the share of normal rows as far out (3: one in twenty): ``{view: [rows]}``.

        ``features`` and ``norms`` are the means over the ensemble.
        """
        check_is_fitted(self)
        z = self._scored(X, apply, Partial(_rows_of_z, self.scorer_)).T
        return dict(zip((*views.NAMES, "features", "norms"), z, strict=False))

    def _judge(self, standardiser, X, order) -> np.ndarray:
        """Which rows of ``X[order]`` are kept."""
        if self.contamination == 0:
            self.training_scores_, self.left_out_ = None, np.zeros(0, int)
            return np.ones(len(X), bool)
        scores = trimming.judge(standardiser(X[order]), np.random.default_rng(0))
        belongs = trimming.belongs(scores, self.contamination)
        self.training_scores_ = np.empty(len(X))
        self.training_scores_[order] = -scores
        self.left_out_ = np.sort(order[~belongs])
        return belongs

    def _copies(self, standard, kept, whole, measured) -> np.ndarray:
        """Distances of those measured rows that have an equal one among ``kept``, by views that have seen it."""
        which = np.concatenate(measured)
        _, group, count = np.unique(standard[kept], axis=0, return_inverse=True, return_counts=True)
        repeated = np.isin(which, kept[count[group.ravel()] > 1])
        if not repeated.any():
            return np.zeros((len(views.NAMES), 0), np.float32)
        return in_batches(Partial(views.rows_of_distances, whole), standard[which[repeated]]).T

    def _scale_of(self, X) -> Standardiser:
        """Column means and spreads of values within the 0.1 % and 99.9 % quantiles, so that a few far values do not set the scale."""
        low, high = np.quantile(X, [0.001, 0.999], axis=0)
        cut = np.clip(X, low, high)
        mean = cut.mean(axis=0, dtype=np.float64)
        std, full = cut.std(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
        tiny = 1e-12 * np.maximum(np.abs(mean), 1.0)
        return Standardiser(mean, np.where(std > tiny, std, np.where(full > tiny, full, 1.0)), FAR)

    def _learned_views(self, rows, folds, seed, run) -> list[LearnedView]:
        """A network for each of ``folds``, trained without it."""
        self.validation_losses_ = []
        if not folds:
            return []
        network: Any = MLP(width=64, depth=2, level_width=64)
        num_steps = 600 if self.num_steps is None else self.num_steps
        training_rows = [np.delete(rows, fold, axis=0) for fold in folds]
        params, _, self.validation_losses_ = train_many(
            jax.random.split(jax.random.key(seed), len(folds)),
            network,
            training_rows,
            [rows[fold[:MOST_HELD_OUT_ROWS]] for fold in folds],
            noise.log_uniform(256, sigma_min=0.03, sigma_max=5.0),
            (rows[:1], np.zeros(1, np.float32)),
            loss=training.simple_loss(network, noise.VELOCITY),
            optimizer=training.adam(6e-3, num_steps=num_steps, warmup_steps=min(100, num_steps // 10)),
            num_steps=num_steps,
            batch_size=128,
            max_seconds=self.max_seconds,
            run=run,
            verbose=self.verbose,
            title=f"{len(folds)} networks",
        )
        known_rows = [known[:MOST_LEARNED_ROWS] for known in training_rows]
        size = padded_size(max(map(len, known_rows)))
        return [
            LearnedView.fit(Representation(each, network), known, size)
            for each, known in zip(params, known_rows, strict=True)
        ]


def _rows_of_z(scorer, rows):
    return scorer.z(rows).T


def _rows_of_distances(view, rows):
    return view.distances(rows).T


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
