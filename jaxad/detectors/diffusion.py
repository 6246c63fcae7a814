"""The diffusion detector: one denoiser trained on normal rows, any score of ``jaxad.scoring`` on top."""

import dataclasses
import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from jaxad import noise, scoring, training
from jaxad.denoisers import MLP
from jaxad.denoising import Denoise, make_denoiser
from jaxad.detectors.estimator import (
    Estimator,
    Learned,
    apply,
    check_scoring_data,
    in_batches,
    share,
)
from jaxad.detectors.fitting import Plan, default_num_steps, hold_out, learn_alone
from jaxad.detectors.scorer import Scorer, static
from jaxad.scoring.draws import over_levels_and_draws
from jaxad.standardiser import Standardiser


class CombinedLevels(Scorer):
    """One number per row from its scores at every level; here a row *is* those scores, ``[batch, levels]``."""

    statistics: Any
    """What the combination has learned from normal rows."""
    aggregate: scoring.Combination = static()

    def __call__(self, rows: Float[Array, "batch levels"]) -> Float[Array, " batch"]:
        """Larger = more anomalous."""
        return self.aggregate.apply(rows.T, self.statistics)


class DenoisingScore(Scorer):
    """A score of ``jaxad.scoring`` at every level, by one trained denoiser, and its combination."""

    params: Any
    key: Any
    """Data of the random key: noise is shared by all rows, so a row's score depends on that row alone."""
    levels: noise.NoiseLevel
    combined: CombinedLevels
    network: Any = static()
    prediction: noise.Prediction = static()
    score: Any = static()
    draws: int = static()

    def __call__(self, rows: Float[Array, "batch *sample"]) -> Float[Array, " batch"]:
        """Larger = more anomalous."""
        return self.combined(self.by_level(rows).T)

    def by_level(self, rows: Float[Array, "batch *sample"]) -> Float[Array, "levels batch"]:
        """The score at every noise level (or every statistic of it), before it is combined."""
        settings: dict[str, Any] = {"draws": self.draws}
        if "memory_budget" in inspect.signature(self.score).parameters:
            settings["memory_budget"] = share(scoring.MEMORY_BUDGET, rows)
        return self.score(jax.random.wrap_key_data(self.key), self.denoiser(), rows, self.levels, **settings)

    def denoiser(self) -> Denoise:
        """The trained denoiser, a pure function of standardised rows."""
        return make_denoiser(self.network, self.params, self.prediction)

    def contributions(self, rows: Float[Array, "batch *sample"]) -> Float[Array, "batch levels *sample"]:
        """What every level and element contributes to the score, where it is a sum of errors: see ``explanation``.

        Raises:
            ValueError: a score or a combination that does not fall apart.
        """
        if self.score not in (scoring.denoising_error, scoring.reconstruction_error):
            raise ValueError(
                f"only denoising_error and reconstruction_error fall apart into elements, this detector scores by {self.score!r:.80}; "
                "set detector.scorer and call calibrate, or use shapley_contributions"
            )
        levels, state = len(self.levels), self.combined.statistics
        if self.combined.aggregate == scoring.z_mean:
            mean, weight = state.mean, 1.0 / (levels * state.std)
        elif self.combined.aggregate == scoring.total:
            mean, weight = jnp.zeros(levels), jnp.ones(levels)
        else:
            raise ValueError(
                "only the combinations z_mean and total are sums over levels; set detector.aggregate to one of them and call "
                "calibrate, or use shapley_contributions"
            )
        denoise = self.denoiser()

        def one(_, draw, level):
            noisy = noise.add_noise(rows, draw, level)
            clean = denoise(noisy, level)
            if self.score is scoring.denoising_error:
                return (noise.noise_from_clean(clean, noisy, level) - draw) ** 2
            return (clean - rows) ** 2

        key = jax.random.wrap_key_data(self.key)
        budget = share(scoring.MEMORY_BUDGET, rows)
        squares = over_levels_and_draws(one, key, rows, self.levels, self.draws, budget, per_row=rows.shape[1:])
        each = (levels, 1, *(1,) * (rows.ndim - 1))
        elements = rows.size // rows.shape[0]
        return jnp.moveaxis((squares - mean.reshape(each)) * weight.reshape(each) / elements, 1, 0)


def default_levels(score=scoring.denoising_error) -> noise.NoiseLevel:
    """The levels at which standardised rows are scored unless ``levels`` says otherwise, by score (a partial counts as its function).

    One-jump errors and score norms: ten levels from sigma = .05 to 3 times the data's spread, geometric, the grid of METHODS for
    standardised tables. Scores that integrate or walk start finer and end where the noise drowns the data.
    """
    while isinstance(score, partial):
        score = score.func
    make = _LEVELS.get(score)
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


class DiffusionDetector(Estimator):
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
        scorer_: a ``DenoisingScore``: averaged ``params``, ``levels``, and in ``combined.statistics`` what the combination learned from
            the scores of held-out normal rows; for ``z_mean`` mean and spread per level.
        losses_, validation_losses_: training loss of every step, held-out loss of every look.
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

    network: Any = dataclasses.field(default=None, kw_only=False)
    schedule: Any = None
    levels: Any = None
    scorer: Any = scoring.denoising_error
    aggregate: Any = None
    draws: int = 2
    prediction: Any = None
    loss: Any = None
    num_steps: int | None = None
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    mesh: Any = None
    shard_parameters: bool = False
    run_dir: Any = None
    false_alarm_rate: float = 0.05
    random_state: Any = 0
    verbose: int = 0

    _takes_pictures = True
    _learn = learn_alone  # pyright: ignore[reportAssignmentType]

    def _plan(self, X) -> Plan:
        """Everything that comes before the first step: checks, scale, held-out rows, keys, loss and optimizer."""
        if self.batch_size < 1 or self.draws < 1 or (self.num_steps is not None and self.num_steps < 0):
            raise ValueError(
                f"need batch_size, draws >= 1 and num_steps >= 0, got {self.batch_size=}, {self.draws=}, {self.num_steps=}"
            )
        rng = check_random_state(self.random_state)
        train_key, score_key = jax.random.split(jax.random.key(rng.randint(2**31 - 1)))
        network: Any = MLP(width=256, depth=3) if self.network is None else self.network.clone()
        prediction = noise.VELOCITY if self.prediction is None else self.prediction
        rows, held_out = hold_out(X, rng)
        # A scale that has not seen the rows the threshold comes from, as it has not seen new rows.
        standardiser = Standardiser.fit(rows)
        rows, held_out = standardiser(rows), standardiser(held_out)
        num_steps = default_num_steps(len(rows)) if self.num_steps is None else self.num_steps
        make_loss = self.loss
        if make_loss is None:
            make_loss = training.hybrid_loss if getattr(network, "learned_variance", False) else training.simple_loss
        warmup_steps = min(100, num_steps // 10)
        settings = {
            "loss": make_loss(network, prediction),
            "optimizer": training.adam(
                self.learning_rate, num_steps=num_steps, warmup_steps=warmup_steps, weight_decay=self.weight_decay
            ),
            "num_steps": num_steps,
            "batch_size": self.batch_size,
        }
        return Plan(
            train_key,
            network,
            rows,
            held_out,
            noise.cosine(1000) if self.schedule is None else self.schedule,
            (rows[:1], np.zeros(1, np.float32)),
            settings,
            kept=(standardiser, np.asarray(jax.random.key_data(score_key)), prediction),
            told={
                "prediction_": prediction,
                **{name: getattr(self, name) for name in ("loss", "learning_rate", "weight_decay")},
            },
            by_level=training.simple_loss(network, prediction),
        )

    def _finish(self, plan, params):
        standardiser, key, prediction = plan.kept
        return self._measured(standardiser, plan.held_out, params, key, plan.network, prediction)

    def calibrate(self, X):
        """Fit the combination and the threshold anew on normal rows ``X`` that were not trained on.

        For a score, levels, a combination or a false alarm rate changed after ``fit``: the network stays as it is.
        """
        rows, of = self.standardiser_(check_scoring_data(self, X)), self.scorer_
        return self._keep(self._measured(self.standardiser_, rows, of.params, of.key, of.network, of.prediction))

    def _measured(self, standardiser, held_out, params, key, network, prediction) -> Learned:
        """A scorer with what the combination learns from held-out rows, and their own scores."""
        levels = (default_levels(self.scorer) if self.levels is None else self.levels).to(jnp.float32)
        aggregate = scoring.z_mean if self.aggregate is None else self.aggregate
        settings = {"network": network, "prediction": prediction, "score": self.scorer, "draws": self.draws}
        scorer = DenoisingScore(params, key, levels, CombinedLevels((), aggregate), **settings)
        by_level = in_batches(Partial(_rows_by_level, scorer), held_out, mesh=self.mesh).T
        # Each half of the rows is judged by a combination fitted on the other: one that has seen a row is too kind to it.
        first, second = by_level[:, ::2], by_level[:, 1::2]
        if second.shape[1] < 2:
            first = second = by_level
        apart = [
            in_batches(CombinedLevels(aggregate.fit(a), aggregate), b.T) for a, b in ((first, second), (second, first))
        ]
        combined = CombinedLevels(aggregate.fit(by_level), aggregate)
        return Learned(standardiser, dataclasses.replace(scorer, combined=combined), np.concatenate(apart))

    def scores_by_level(self, X) -> np.ndarray:
        """The score at every noise level (or every statistic of it), shape ``[levels, rows]``, before it is combined."""
        check_is_fitted(self)
        return self._scored(X, apply, Partial(_rows_by_level, self.scorer_)).T

    def denoiser(self) -> Denoise:
        """The trained denoiser as a pure function of standardised rows, for ``jaxad.scoring`` and ``jaxad.sampling``."""
        check_is_fitted(self)
        return self.scorer_.denoiser()


def _rows_by_level(scorer, rows):
    return scorer.by_level(rows).T
