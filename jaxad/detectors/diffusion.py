"""The diffusion detector: one denoiser trained on normal rows, any score of ``jaxad.scoring`` on top."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from jaxad import noise, scoring, training
from jaxad.denoisers import MLP
from jaxad.denoising import Denoise, make_denoiser
from jaxad.detectors.estimator import ThresholdMixin, check_scoring_data, check_training_data
from jaxad.detectors.fitting import Standardiser, default_num_steps, hold_out, score_in_batches, train, train_many
from jaxad.runtime.runs import open_run


def default_levels(scorer=scoring.denoising_error) -> noise.NoiseLevel:
    """The levels at which standardised rows are scored unless ``levels`` says otherwise, by score (a partial counts as its function).

    One-jump errors and score norms: ten levels from sigma = .05 to 3 times the data's spread, geometric, the grid of METHODS for
    standardised tables. Scores that integrate or walk start finer and end where the noise drowns the data.
    """
    while isinstance(scorer, partial):
        scorer = scorer.func
    make = _LEVELS.get(scorer)
    return noise.log_uniform(10, sigma_min=0.05, sigma_max=3.0) if make is None else make()


def _three_paths():
    return noise.reverse_paths(noise.cosine(1000), [199, 399, 599], 10)


_LEVELS = {
    scoring.ddim_reconstruction_error: _three_paths,
    scoring.ancestral_reconstruction_error: _three_paths,
    # The published setting (DTE's repository).
    scoring.unnoised_reverse_error: lambda: noise.linear(1000, beta_end=1e-2)[:250][None],
    scoring.projection_regret: lambda: noise.log_uniform(10, sigma_min=0.05, sigma_max=3.0)[_PAIRS],
    scoring.guided_reconstruction_error: lambda: noise.reverse_paths(noise.linear(1000), [249], 10),
    scoring.inpainting_error: lambda: noise.cosine(1000)[::40][None],
    scoring.path_statistics: lambda: noise.linear(1000)[::100],
    scoring.path_curvature: lambda: noise.linear(1000)[::100],
    scoring.variational_bound: lambda: noise.log_uniform(50, sigma_min=0.02, sigma_max=20.0),
    scoring.negative_log_likelihood: lambda: noise.log_uniform(33, sigma_min=0.02, sigma_max=40.0),
    scoring.time_posterior: lambda: noise.log_uniform(33, sigma_min=0.02, sigma_max=20.0),
    scoring.conditional_error: lambda: noise.log_uniform(20, sigma_min=0.05, sigma_max=20.0),
}
_PAIRS = np.array([[0, 4], [1, 5], [2, 6], [3, 7], [4, 8], [5, 9]])


@partial(jax.jit, static_argnames=("network", "prediction", "score", "draws"))
def _scores_by_level(params, key, rows, levels, *, network, prediction, score, draws):
    return score(key, make_denoiser(network, params, prediction), rows, levels, draws=draws)


class _Prepared(NamedTuple):
    key: jax.Array
    rows: np.ndarray
    held_out: np.ndarray
    common: tuple
    settings: dict[str, Any]


class DiffusionDetector(ThresholdMixin, BaseEstimator):
    """Train a diffusion model on normal rows; score a row by how badly the model denoises it, at several noise levels.

    ``fit`` standardises the columns, holds a tenth of the rows out, trains on the rest, and measures on the held-out rows what each
    level's score looks like for normal data; ``score_samples`` combines the levels by those statistics. No label is used anywhere.
    After ``fit`` the same network answers other scores: set ``scorer`` and ``levels`` and call ``calibrate``.

    Args:
        network: a linen module of ``jaxad.denoisers`` (MLP for tables, DiT for tables and images); None: ``MLP(width=256, depth=3)``.
        schedule: noise levels to train on, shape [levels]; None: ``noise.cosine(1000)``.
        levels: noise levels to score at, of the shape that the scorer takes; None: ``default_levels(scorer)``.
        scorer: a score of ``jaxad.scoring``: errors, norms, path statistics, densities, conditional errors.
        aggregate: a ``scoring.Combination``, from the scores at many levels (or many statistics) to one number; None: ``scoring.z_mean``.
        draws: noise draws per level, shared by all rows.
        prediction: what the network predicts; None: ``noise.VELOCITY``.
        loss: ``(network, prediction) -> Loss``; None: ``training.simple_loss``, or ``hybrid_loss`` for a network with learned variance.
        num_steps: most optimisation steps; None: by the number of rows (``default_num_steps``); 0 leaves the network untrained.
        batch_size: rows per step.
        learning_rate: peak rate, after a warm-up, falling to 0 along a cosine.
        weight_decay: AdamW's.
        mesh: devices to train and score on (``sharding.data_mesh()``); None: the default device.
        shard_parameters: cut the training state over the mesh's devices instead of copying it to each.
        run_dir: folder (or ``runs.RunDirectory``) to keep the training's state in; a fit that was stopped or killed goes on from there.
        false_alarm_rate: share of normal rows that ``predict`` may flag.
        random_state: seed; the same seed gives the same scores.
        verbose: 1 shows a progress bar with loss and time left.

    Attributes:
        params_: averaged parameters, a tree of numpy arrays.
        losses_: training loss of every step.
        levels_, aggregate_: the levels and the combination in use.
        statistics_: what the combination learned from the scores of held-out normal rows; for ``z_mean`` mean and spread per level.
        offset_: the threshold of ``predict``.

    Raises:
        ValueError: from ``fit`` and ``score_samples`` for bad data: see ``check_training_data``.
        FloatingPointError: from ``fit`` when the loss stops being finite.

    >>> from jaxad.denoisers import MLP
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> detector = DiffusionDetector(MLP(width=32, depth=1), num_steps=100).fit(X)
    >>> scores = detector.score_samples([[0.0, 0.0, 0.0], [9.0, -9.0, 9.0]])
    >>> bool(scores[0] > scores[1])
    True
    """

    def __init__(
        self,
        network=None,
        *,
        schedule=None,
        levels=None,
        scorer=scoring.denoising_error,
        aggregate=None,
        draws=2,
        prediction=None,
        loss=None,
        num_steps=None,
        batch_size=64,
        learning_rate=1e-3,
        weight_decay=0.0,
        mesh=None,
        shard_parameters=False,
        run_dir=None,
        false_alarm_rate=0.05,
        random_state=0,
        verbose=0,
    ):
        self.network = network
        self.schedule = schedule
        self.levels = levels
        self.scorer = scorer
        self.aggregate = aggregate
        self.draws = draws
        self.prediction = prediction
        self.loss = loss
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.mesh = mesh
        self.shard_parameters = shard_parameters
        self.run_dir = run_dir
        self.false_alarm_rate = false_alarm_rate
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y=None):
        """Learn from normal rows ``X [rows, features]`` (or images ``[rows, height, width, channels]``); ``y`` is ignored."""
        prepared = self._prepare(X)
        asked = {name: getattr(self, name) for name in ("prediction_", "loss", "learning_rate", "weight_decay")}
        with open_run(self.run_dir, **asked) as run:
            self.params_, self.losses_, self.validation_losses_ = train(
                prepared.key,
                self.network_,
                prepared.rows,
                prepared.held_out,
                *prepared.common,
                **prepared.settings,
                mesh=self.mesh,
                cut_parameters=self.shard_parameters,
                by_level=training.simple_loss(self.network_, self.prediction_),
                run=run,
                verbose=self.verbose,
                title=type(self.network_).__name__,
            )
        return self._calibrate(prepared.held_out)

    def _prepare(self, X) -> "_Prepared":
        """Everything that comes before the first step: checks, scale, held-out rows, keys, loss and optimizer."""
        X = check_training_data(self, X, allow_images=True)
        if self.batch_size < 1 or self.draws < 1 or (self.num_steps is not None and self.num_steps < 0):
            raise ValueError(
                f"need batch_size, draws >= 1 and num_steps >= 0, got {self.batch_size=}, {self.draws=}, {self.num_steps=}"
            )
        rng = check_random_state(self.random_state)
        seed = rng.randint(2**31 - 1)
        train_key, score_key = jax.random.split(jax.random.key(seed))
        self.score_key_ = np.asarray(jax.random.key_data(score_key))
        self.network_: Any = MLP(width=256, depth=3) if self.network is None else self.network.clone()
        self.prediction_ = noise.VELOCITY if self.prediction is None else self.prediction
        self.standardiser_ = Standardiser.fit(X)
        rows, held_out = hold_out(self.standardiser_(X), rng)
        num_steps = default_num_steps(len(rows)) if self.num_steps is None else self.num_steps
        make_loss = self.loss
        if make_loss is None:
            make_loss = (
                training.hybrid_loss if getattr(self.network_, "learned_variance", False) else training.simple_loss
            )
        settings = {
            "loss": make_loss(self.network_, self.prediction_),
            "optimizer": training.adam(
                self.learning_rate,
                num_steps=num_steps,
                warmup_steps=min(100, num_steps // 10),
                weight_decay=self.weight_decay,
            ),
            "num_steps": num_steps,
            "batch_size": self.batch_size,
        }
        schedule = noise.cosine(1000) if self.schedule is None else self.schedule
        return _Prepared(train_key, rows, held_out, (schedule, (rows[:1], np.zeros(1, np.float32))), settings)

    def calibrate(self, X):
        """Fit the combination and the threshold anew on normal rows ``X`` that were not trained on.

        For a score, levels, a combination or a false alarm rate changed after ``fit``: the network stays as it is.
        """
        rows = check_scoring_data(self, X)
        return self._calibrate(self.standardiser_(rows))

    def _calibrate(self, held_out):
        self.levels_ = default_levels(self.scorer) if self.levels is None else self.levels
        self.aggregate_ = scoring.z_mean if self.aggregate is None else self.aggregate
        by_level = self._by_level(held_out)
        self.statistics_ = self.aggregate_.fit(by_level)
        # Each half of the rows is judged by a combination fitted on the other: one that has seen a row is too kind to it.
        first, second = by_level[:, ::2], by_level[:, 1::2]
        if second.shape[1] < 2:
            first = second = by_level
        apart = [self._combine(b, self.aggregate_.fit(a)) for a, b in ((first, second), (second, first))]
        self._calibrate_on(np.concatenate(apart))
        return self

    def score_samples(self, X) -> np.ndarray:
        """Minus the combined score, shape ``[rows]``: larger = more normal. A row's score depends on that row alone."""
        return self._combine(self.scores_by_level(X), self.statistics_)

    def scores_by_level(self, X) -> np.ndarray:
        """The score at every noise level (or every statistic of it), shape ``[levels, rows]``, before it is combined."""
        rows = check_scoring_data(self, X)
        return self._by_level(self.standardiser_(rows))

    def denoiser(self) -> Denoise:
        """The trained denoiser as a pure function of standardised rows, for ``jaxad.scoring`` and ``jaxad.sampling``."""
        return make_denoiser(self.network_, self.params_, self.prediction_)

    def _by_level(self, rows):
        key = jax.random.wrap_key_data(jnp.asarray(self.score_key_))
        levels = self.levels_.to(jnp.float32)
        score = partial(
            _scores_by_level,
            self.params_,
            key,
            levels=levels,
            network=self.network_,
            prediction=self.prediction_,
            score=self.scorer,
            draws=self.draws,
        )
        return score_in_batches(score, rows, self.mesh)

    def _combine(self, by_level, statistics):
        # In batches of few sizes: every other number of rows would be compiled for anew.
        combined = score_in_batches(lambda rows: self.aggregate_.apply(rows.T, statistics), np.asarray(by_level).T)
        return -combined.astype(np.float64)


def fit_many(detectors: Sequence[DiffusionDetector], datasets: Sequence[Any]) -> list[DiffusionDetector]:
    """Fit several detectors at once, one ``vmap``ped program: five seeds on one table, or twenty tables of one width.

    Detector i learns from ``datasets[i]`` and becomes what ``detectors[i].fit(datasets[i])`` would have made of it, up to rounding. The
    tables may differ in their number of rows; what shapes the program must agree: row shape, network, loss, rate, number of steps
    (set ``num_steps`` where the default would follow the rows), batch size and schedule.

    Raises:
        ValueError: not one data set per detector, a detector with a mesh or a run directory, or settings that differ, by name;
            and whatever ``fit`` refuses.

    >>> rows = np.random.default_rng(0).normal(size=(60, 3))
    >>> seeds = [DiffusionDetector(MLP(width=16, depth=1), num_steps=20, random_state=seed) for seed in range(3)]
    >>> scores = [detector.score_samples(rows) for detector in fit_many(seeds, [rows] * 3)]
    """
    if len(detectors) != len(datasets) or not detectors:
        raise ValueError(
            f"need one data set per detector, got {len(detectors)} detectors and {len(datasets)} data sets"
        )
    if any(detector.mesh is not None or detector.run_dir is not None for detector in detectors):
        raise ValueError(
            "fit_many trains on one device and keeps no state on disk: set mesh=None and run_dir=None, or fit one by one"
        )
    prepared = [detector._prepare(X) for detector, X in zip(detectors, datasets, strict=True)]
    first = prepared[0]
    for other, detector in zip(prepared, detectors, strict=True):
        different = [name for name, value in first.settings.items() if other.settings[name] != value]
        different += ["network"] * (detector.network_ != detectors[0].network_)
        different += ["schedule"] * (
            not all(map(np.array_equal, *map(jax.tree.leaves, (first.common[0], other.common[0]))))
        )
        if different:
            raise ValueError(
                f"detectors trained together must agree in {', '.join(different)}; "
                "set it on all of them (num_steps=None goes by the number of rows)"
            )
    trained = train_many(
        jax.random.wrap_key_data(jnp.stack([jax.random.key_data(each.key) for each in prepared])),
        detectors[0].network_,
        [each.rows for each in prepared],
        [each.held_out for each in prepared],
        *first.common,
        **first.settings,
        verbose=detectors[0].verbose,
        title=f"{len(detectors)} x {type(detectors[0].network_).__name__}",
    )
    for detector, each, params, losses, values in zip(detectors, prepared, *trained, strict=True):
        detector.params_, detector.losses_, detector.validation_losses_ = params, losses, values
        detector._calibrate(each.held_out)
    return list(detectors)
