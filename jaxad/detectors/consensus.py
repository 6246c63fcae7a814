"""The recommended detector: several views of what is normal, each calibrated on rows it has not seen, one score."""

import dataclasses
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
from jaxad.detectors.evidence import Evidence, EvidenceByShare, combine, view_weights
from jaxad.detectors.fitting import train_many
from jaxad.detectors.layout import Layout
from jaxad.detectors.scorer import Scorer, stack, static
from jaxad.detectors.search import Known, known, mean_distance, padded_size
from jaxad.runtime.runs import open_run
from jaxad.standardiser import FAR, Standardiser

MOST_REFERENCE_ROWS = 20_000
MOST_LEARNED_ROWS = 10_000
FEWEST_LEARNED_ROWS = 100
"""Training rows kept to measure distances to, in the closed-form and in the learned views; below the last no network is trained."""

MOST_HELD_OUT_ROWS = 2000

MOST_HIDDEN = 0.6
"""Where values may be missing, up to so large a share of a held-out row is hidden to see what is usual then."""

MOST_LEVELS = 1000

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

    The closed-form views come first, then two of each network; where values may be missing, their share of a row comes last.
    """

    of: Evidence | EvidenceByShare
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
    whole: EvidenceByShare | None = None
    """What a score says of a row of which a share is missing; None where nothing may be."""

    def __call__(self, rows: Float[Array, "batch features"]) -> Float[Array, " batch"]:
        """Larger = more anomalous."""
        layout = self.views.layout
        scores = self.combined(with_share(self.distances(rows).T, rows, layout)) + how_far_beyond(rows, layout)
        return scores if self.whole is None else self.whole(with_share(scores[:, None], rows, layout))[0]

    def distances(self, rows: Float[Array, "batch features"]) -> Float[Array, "distances batch"]:
        """Of nine views, and two of each network."""
        closed = self.views.distances(rows)
        if self.learned is None:
            return closed
        cut = self.views.completed(rows)[0]
        return jnp.concatenate([closed, *jax.lax.map(lambda view: view.distances(cut), self.learned)])

    def z(self, rows: Float[Array, "batch features"]) -> Float[Array, "views batch"]:
        """The evidence of each view."""
        return self.combined.z(with_share(self.distances(rows).T, rows, self.views.layout))

    def denoiser(self) -> Denoise:
        """The first network's denoiser, a pure function of standardised rows.

        Raises:
            ValueError: no network was trained, or the rows have categories.
        """
        if self.views.layout is not None and len(self.views.layout.categories):
            raise ValueError(
                "the networks of this detector see categories as one-hot codes: there is no denoiser of its rows"
            )
        if self.learned is None:
            raise ValueError(
                f"there is no denoiser: no network is trained on fewer than {FEWEST_LEARNED_ROWS} rows, or with num_networks=0; "
                "fit on more normal rows"
            )
        of = self.learned.representation
        return make_denoiser(of.network, jax.tree.map(lambda leaf: leaf[0], of.params), noise.VELOCITY)

    def normal_rows(self) -> np.ndarray:
        """The normal rows it remembers, standardised, ``[rows, features]``, gaps filled."""
        rows, half_norms = (np.asarray(part)[0] for part in self.views.known)
        rows = rows[np.isfinite(half_norms)]
        return rows if self.views.layout is None else self.views.layout.narrow(rows)


def how_far_beyond(rows, layout: Layout | None = None) -> Any:
    """What is added for values that the views see cut: next to nothing, and more the farther out they are, so that ranking goes on."""
    xp = rows.__array_namespace__()
    if layout is not None:
        numbers = rows[:, layout.numbers]
        rows = xp.concatenate([xp.zeros_like(rows[:, :1]), xp.where(xp.isnan(numbers), 0.0, numbers)], axis=1)
    return 1e-3 * xp.max(xp.log1p(xp.maximum(xp.abs(rows) - views.FARTHEST, 0.0)), axis=1)


def with_share(seen, rows, layout: Layout | None) -> Any:
    """``seen [batch, _]`` and, where values may be missing, the share of each row that is."""
    if layout is None or not layout.gaps:
        return seen
    xp = seen.__array_namespace__()
    return xp.concatenate([seen, xp.mean(xp.isnan(rows).astype(seen.dtype), axis=1)[:, None]], axis=1)


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
        categorical_features: places of the columns that hold codes of categories, whole numbers from 0 (``jaxad.data.FrameEncoder`` makes
            them); None: all are numbers. A code that was not in training is an unseen level, and odd.
        allow_gaps: may values be missing, NaN, in training or later? A gap is filled with what is expected given the rest, for the
            distances; what single columns say is a mean over those that are there; and a score is compared with those of normal rows of
            which as much is missing. False: NaN is refused.
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
    categorical_features: Any = None
    allow_gaps: bool = False
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
        layout = self._layout_of(X)
        rng = check_random_state(self.random_state)
        standardiser = self._scale_of(X, layout)
        # In random order: what is cut to so many rows below must not be the first of a file sorted by time or kind.
        order = rng.permutation(len(X))
        belongs = self._judge(standardiser, X, order, layout)
        X = X[order[belongs]]
        if not belongs.all():
            standardiser = self._scale_of(X, layout)
        standard = standardiser(X)
        folds = _folds(standard, rng)
        networks = min(self.num_networks, len(folds)) if len(standard) >= FEWEST_LEARNED_ROWS else 0
        seed = rng.randint(2**31 - 1) if networks else None
        kept = np.sort(rng.permutation(len(standard))[:MOST_REFERENCE_ROWS])
        whole = views.fit_views(standard[kept], layout=layout)
        rows = _for_networks(whole, standard)
        with open_run(self.run_dir) as run:
            learned = self._learned_views(rows, folds[:networks], seed, run)

        # Calibration: every fold is measured by views fitted without it. All folds of few rows, of many as many as there are networks.
        calibrating = folds if len(rows) <= 2000 else folds[: max(networks, 1)]
        measured = [fold[:MOST_HELD_OUT_ROWS] for fold in calibrating]
        # Where values may be missing, rows with more of them missing are measured as well.
        new = [X[which] if layout is None or not layout.gaps else _with_more_gaps(X[which], rng) for which in measured]
        closed = []
        for fold, held_out in zip(calibrating, new, strict=True):
            without = np.setdiff1d(kept, fold, assume_unique=True)
            # A scale that has seen a row makes it look usual, the more the fewer rows and the more columns there are.
            scale = self._scale_of(np.delete(X, fold, axis=0), layout) if len(rows) <= 2000 else standardiser
            # Of one size, so that all of them, and what scores in the end, share compiled programs.
            fitted = views.fit_views(scale(X[without]), whole.known.rows.shape[1], layout)
            closed.append(in_batches(Partial(views.rows_of_distances, fitted), scale(held_out)).T)
        seen = [
            in_batches(Partial(_rows_of_distances, view), _for_networks(whole, standardiser(held_out))).T
            for view, held_out in zip(learned, new, strict=False)
        ]
        # A fold holds all copies of a row, so none of its rows finds itself; but where rows repeat, new ones find themselves as well.
        copies = self._copies(standard, kept, whole, measured)
        weights = view_weights(X.shape[1])
        combined = CombinedViews(self._evidence(closed, copies, seen, new, layout), weights)

        # The threshold: the consensus on rows that were left out everywhere, with the one network that has not seen them.
        if networks:
            apart = [
                (combined.of_network(i), np.concatenate(pair)) for i, pair in enumerate(zip(closed, seen, strict=False))
            ]
        else:
            apart = [(combined, distances) for distances in closed]
        scores = [
            in_batches(of, with_share(distances.T, held_out, layout))
            + np.asarray(how_far_beyond(standardiser(held_out), layout))
            for (of, distances), held_out in zip(apart, new, strict=False)
        ]
        consensus = Consensus(whole, stack(learned) if learned else None, combined)
        if layout is None or not layout.gaps:
            return Learned(standardiser, consensus, np.concatenate(scores))
        shares = [with_share(of[:, None], held_out, layout) for of, held_out in zip(scores, new, strict=False)]
        by_share = EvidenceByShare.fit(np.concatenate(shares))
        # As they were found.
        found = np.concatenate([of[: len(which)] for of, which in zip(shares, measured, strict=False)])
        normal = np.asarray(in_batches(Partial(_rows_of_evidence, by_share), found))[:, 0]
        return Learned(standardiser, dataclasses.replace(consensus, whole=by_share), normal)

    def _layout_of(self, X) -> Layout | None:
        """Which columns are categories, checked."""
        categorical = np.unique(np.asarray([] if self.categorical_features is None else self.categorical_features))
        if len(categorical) and (
            categorical.dtype.kind not in "iu" or categorical[0] < 0 or categorical[-1] >= X.shape[1]
        ):
            raise ValueError(
                f"categorical_features are places of columns, from 0 to {X.shape[1] - 1}, got {self.categorical_features}"
            )
        categorical = categorical.astype(int)
        codes = X[:, categorical]
        if (wrong := ~(np.isnan(codes) | ((codes >= 0) & (codes < MOST_LEVELS) & (codes == np.floor(codes))))).any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"column {categorical[column]} is a category: expected whole numbers from 0 to {MOST_LEVELS - 1}, got {codes[row, column]} "
                f"in row {row}"
            )
        if (empty := np.flatnonzero(np.isnan(X).all(axis=0))).size:
            raise ValueError(f"column {empty[0]} holds no value: leave it out")
        return Layout.of(X, categorical, bool(self.allow_gaps))

    def _evidence(self, closed, copies, seen, new, layout) -> Any:
        """Of all held-out rows; of rows with gaps, by how many there are."""
        if layout is None or not layout.gaps:
            closed_ones = np.concatenate([*closed, copies], axis=1)
            return Evidence.fit([*closed_ones, *(d for pair in seen for d in pair)])
        of_closed = EvidenceByShare.fit(
            np.concatenate([with_share(d.T, rows, layout) for d, rows in zip(closed, new, strict=True)])
        )
        each = [EvidenceByShare.fit(with_share(d.T, rows, layout)) for d, rows in zip(seen, new, strict=False)]
        return _beside([of_closed, *each])

    def scores_by_view(self, X) -> dict[str, np.ndarray]:
        """The evidence of each view, minus the logarithm of the share of normal rows as far out (3: one in twenty): ``{view: [rows]}``.

        ``features`` and ``norms`` are the means over the ensemble.
        """
        check_is_fitted(self)
        z = self._scored(X, apply, Partial(_rows_of_z, self.scorer_)).T
        return dict(zip((*views.NAMES, "features", "norms"), z, strict=False))

    def _judge(self, standardiser, X, order, layout) -> np.ndarray:
        """Which rows of ``X[order]`` are kept."""
        if self.contamination == 0:
            self.training_scores_, self.left_out_ = None, np.zeros(0, int)
            return np.ones(len(X), bool)
        scores = trimming.judge(standardiser(X[order]), np.random.default_rng(0), layout)
        belongs = trimming.belongs(scores, self.contamination)
        self.training_scores_ = np.empty(len(X))
        self.training_scores_[order] = -scores
        self.left_out_ = np.sort(order[~belongs])
        return belongs

    def _copies(self, standard, kept, whole, measured) -> np.ndarray:
        """Distances of those measured rows that have an equal one among ``kept``, by views that have seen it."""
        which = np.concatenate(measured)
        _, group, count = np.unique(_gaps_alike(standard[kept]), axis=0, return_inverse=True, return_counts=True)
        repeated = np.isin(which, kept[count[group.ravel()] > 1])
        if not repeated.any():
            return np.zeros((len(views.NAMES), 0), np.float32)
        return in_batches(Partial(views.rows_of_distances, whole), standard[which[repeated]]).T

    def _scale_of(self, X, layout: Layout | None = None) -> Standardiser:
        """Column means and spreads of values within the 0.1 % and 99.9 % quantiles, so that a few far values do not set the scale.

        Codes of categories stay as they are.
        """
        if layout is not None:
            X = np.where(np.isnan(X).all(axis=0), 0.0, X)
        of: Any = (np.nanquantile, np.nanmean, np.nanstd) if np.isnan(X).any() else (np.quantile, np.mean, np.std)
        quantile, mean_of, std_of = of
        low, high = quantile(X, [0.001, 0.999], axis=0)
        cut = np.clip(X, low, high)
        mean = mean_of(cut, axis=0, dtype=np.float64)
        std, full = std_of(cut, axis=0, dtype=np.float64), std_of(X, axis=0, dtype=np.float64)
        tiny = 1e-12 * np.maximum(np.abs(mean), 1.0)
        scale = np.where(std > tiny, std, np.where(full > tiny, full, 1.0))
        if layout is not None:
            mean[layout.categories], scale[layout.categories] = 0.0, 1.0
        return Standardiser(mean, scale, FAR)

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


def _cut(rows) -> Any:
    return rows.__array_namespace__().clip(rows, -views.FARTHEST, views.FARTHEST)


def _for_networks(of: views.Views, standard: np.ndarray) -> np.ndarray:
    """Standardised rows as the networks see them: cut, wide and completed."""
    return _cut(standard) if of.layout is None else in_batches(Partial(_completed, of), standard)


def _completed(of, rows):
    return of.completed(rows)[0]


def _rows_of_evidence(evidence, rows):
    return evidence(rows).T


def _with_more_gaps(X: np.ndarray, rng) -> np.ndarray:
    """Rows, and twice as many with a share of their values hidden that is different for each."""
    again = np.concatenate([X, X])
    hidden = rng.uniform(size=again.shape) < rng.uniform(0.0, MOST_HIDDEN, size=(len(again), 1))
    return np.concatenate([X, np.where(hidden, np.nan, again)])


def _beside(each: list[EvidenceByShare]) -> EvidenceByShare:
    """The evidence of several kinds of distances, on the shares of the first, as one."""
    shares = each[0].shares

    def at(leaf, known):
        flat = leaf.reshape(len(known), -1)
        moved = np.stack([np.interp(shares, known, column) for column in flat.T], axis=1)
        return moved.reshape(len(shares), *leaf.shape[1:]).astype(np.float32)

    moved = [jax.tree.map(lambda leaf: at(leaf, one.shares), one.of) for one in each]  # noqa: B023
    return EvidenceByShare(jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *moved), shares)


def _gaps_alike(rows: np.ndarray) -> np.ndarray:
    """With a number that no other value is instead of NaN, which is unlike itself."""
    return np.where(np.isnan(rows), np.finfo(np.float32).max, rows)


def _rows_of_z(scorer, rows):
    return scorer.z(rows).T


def _rows_of_distances(view, rows):
    return view.distances(rows).T


def _folds(rows, rng) -> list[np.ndarray]:
    """Disjoint index arrays to hold out: five of a fifth each, of more than 2,000 rows ten of a tenth.

    Equal rows fall into one fold, and a fold is left out as a whole even where only part of it is measured: otherwise data
    full of copies would look calibrated on itself.
    """
    _, group = np.unique(_gaps_alike(rows), axis=0, return_inverse=True)
    group = group.ravel()
    count = min(5 if len(rows) <= 2000 else 10, group.max() + 1)
    if count < 2:  # all rows alike
        return [np.arange(len(rows))[:1], np.arange(len(rows))[1:]]
    fold_of_group = rng.permutation(group.max() + 1) % count
    fold = fold_of_group[group]
    return [np.flatnonzero(fold == i) for i in range(count)]
