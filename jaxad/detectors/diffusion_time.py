"""Diffusion time estimation (DTE, Livernoche et al., ICLR 2024): how much noise would have turned a normal row into this one?

Rows are noised as ``x + sigma eps`` and a network learns to tell sigma from the result. At test time it sees the clean row: the
farther from normal data, the noisier it looks. One network evaluation per row, no sampling.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from sklearn.utils import check_random_state

from jaxad import noise, training
from jaxad.denoisers import TimeMLP
from jaxad.detectors.estimator import Estimator, Learned, in_batches
from jaxad.detectors.fitting import Plan, hold_out, learn_alone
from jaxad.detectors.scorer import Scorer, static
from jaxad.standardiser import Standardiser


def time_schedule(num_levels: int = 400) -> noise.NoiseLevel:
    """DTE's levels: variance exploding, ``sigma^2 = 1 - abar`` of betas linear from 1e-4 to 1e-2 (sigma from .01 to .93)."""
    sigma = noise.linear(num_levels, beta_end=1e-2, rescale=False).sigma
    return noise.NoiseLevel(np.ones_like(sigma), sigma)


def _noised(key, x, schedule, axis_name):
    """``(index [batch], sigma [batch], noisy rows, dropout key)`` with levels drawn evenly."""
    draw_key, dropout_key = jax.random.split(key)
    index, draw = training.draw_levels_and_noise(draw_key, x, schedule, axis_name)
    level = schedule[index]
    return index, level.sigma, noise.add_noise(x, draw, level), dropout_key


@cache
def bin_loss(network: TimeMLP) -> training.Loss:
    """Cross-entropy of the level's bin ``floor(index bins / levels)``, on logits."""

    def loss(key, params, x, schedule, *, train=True, axis_name=None):
        index, _, noisy, dropout_key = _noised(key, x, schedule, axis_name)
        logits: Any = network.apply({"params": params}, noisy, train=train, rngs={"dropout": dropout_key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, index * network.outputs // len(schedule)).mean()

    return loss


@cache
def variance_loss(network: TimeMLP) -> training.Loss:
    """Inverse-gamma likelihood of ``sigma^2`` with shape ``a = D/2 - 1`` and mode-like scale s, the output, per feature.

    ``-(a/D) log s + s / (2 sigma^2)`` up to constants; its minimum estimates ``sigma^2 (1 - 2/D)``. For two features and fewer, where
    a would not be positive, ``a = D/2`` is used.
    """

    def loss(key, params, x, schedule, *, train=True, axis_name=None):
        _, sigma, noisy, dropout_key = _noised(key, x, schedule, axis_name)
        output: Any = network.apply({"params": params}, noisy, train=train, rngs={"dropout": dropout_key})
        estimate = _positive(output[:, 0])
        share = 0.5 - 1 / x.shape[1] if x.shape[1] > 2 else 0.5
        return jnp.mean(-share * jnp.log(estimate) + 0.5 * estimate / sigma**2)

    return loss


class ExpectedBin(Scorer):
    """The mean of the classifier's distribution over bins of the noise level, in [0, bins - 1]."""

    params: Any
    network: Any = static()

    def __call__(self, rows: Float[Array, "batch features"]) -> Float[Array, " batch"]:
        """Expected bins."""
        probability = jax.nn.softmax(self.network.apply({"params": self.params}, rows))
        return probability @ jnp.arange(self.network.outputs, dtype=rows.dtype)


class NoiseVariance(Scorer):
    """The regressed noise variance, positive, in squared units of the standardised data."""

    params: Any
    network: Any = static()

    def __call__(self, rows: Float[Array, "batch features"]) -> Float[Array, " batch"]:
        """Variances."""
        return _positive(self.network.apply({"params": self.params}, rows)[:, 0])


def _positive(output):
    """A variance from an unbounded output: exp, started at the small end, where the likelihood's gradient is bounded.

    From the large end (softplus, say) the term ``s / sigma^2`` of the cleanest rows would drown all others for thousands of steps.
    """
    return jnp.exp(jnp.clip(output - 6.0, -20.0, 20.0))


# Training stops by the error of what is read off as the score, not by the likelihood: a classifier's cross-entropy on held-out rows
# rises from overconfidence long before its ordering of noise levels gets worse.


@cache
def bin_error(network: TimeMLP) -> training.Loss:
    """Mean distance, in bins, between the expected bin and the true (continuous) level."""

    def error(key, params, x, schedule, *, train=False, axis_name=None):
        index, _, noisy, _ = _noised(key, x, schedule, axis_name)
        return jnp.abs(ExpectedBin(params, network)(noisy) + 0.5 - index * network.outputs / len(schedule)).mean()

    return error


@cache
def variance_error(network: TimeMLP) -> training.Loss:
    """Mean distance between the logarithms of the estimated and the true noise variance."""

    def error(key, params, x, schedule, *, train=False, axis_name=None):
        _, sigma, noisy, _ = _noised(key, x, schedule, axis_name)
        return jnp.abs(jnp.log(NoiseVariance(params, network)(noisy)) - 2 * jnp.log(sigma)).mean()

    return error


class _TimeEstimator(Estimator):
    """What both detectors share: everything but what the network's output means."""

    num_steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 1e-3
    mesh: Any = None
    run_dir: Any = None
    false_alarm_rate: float = 0.05
    random_state: Any = 0
    verbose: int = 0

    _learn = learn_alone  # pyright: ignore[reportAssignmentType]

    def _prepared(self, X, network, make_loss, make_error) -> Plan:
        if self.batch_size < 1 or (self.num_steps is not None and self.num_steps < 0):
            raise ValueError(f"need batch_size >= 1 and num_steps >= 0, got {self.batch_size=}, {self.num_steps=}")
        rng = check_random_state(self.random_state)
        key = jax.random.key(rng.randint(2**31 - 1))
        rows, held_out = hold_out(X, rng)
        # A scale that has not seen the rows the threshold comes from, as it has not seen new rows.
        standardiser = Standardiser.fit(rows)
        rows, held_out = standardiser(rows), standardiser(held_out)
        num_steps = 4000 if self.num_steps is None else self.num_steps
        optimizer = training.adam(self.learning_rate, num_steps=num_steps, warmup_steps=min(100, num_steps // 10))
        settings = {
            "loss": make_loss(network),
            "measure": make_error(network),
            "optimizer": optimizer,
            "num_steps": num_steps,
            "batch_size": self.batch_size,
        }
        told = {"detector": type(self).__name__, "learning_rate": self.learning_rate}
        inputs = (rows[:1],)
        return Plan(key, network, rows, held_out, time_schedule(), inputs, settings, kept=standardiser, told=told)

    def _finished(self, plan, scorer) -> Learned:
        return Learned(plan.kept, scorer, in_batches(scorer, plan.held_out, mesh=self.mesh))


class DTECategorical(_TimeEstimator):
    """DTE-C: a classifier of the noise level; the score is the expected bin at the clean row, in ``[0, num_bins - 1]``.

    ``score_samples`` is minus that. Corrected: trained on logits (the published code applies softmax twice).

    Args:
        num_bins: classes the 400 noise levels are grouped into.
        num_steps: most optimisation steps; None: 4000. Fewer are taken where the held-out error stops falling.
        batch_size: rows per step.
        learning_rate: peak rate of Adam.
        mesh: devices to train and score on; None: the default device.
        run_dir: folder (or ``runs.RunDirectory``) to keep the training's state in; a fit that was stopped or killed goes on from there.
        false_alarm_rate: share of normal rows that ``predict`` may flag.
        random_state: seed.
        verbose: 1 shows a progress bar.

    >>> X = np.random.default_rng(0).normal(size=(200, 8))
    >>> detector = DTECategorical(num_steps=200).fit(X)
    >>> far, near = detector.score_samples(np.stack([np.full(8, 6.0), np.zeros(8)]))
    >>> bool(near > far)
    True
    """

    num_bins: int = 7

    def _plan(self, X):
        if not 2 <= self.num_bins <= 400:
            raise ValueError(f"the 400 noise levels can be grouped into 2 to 400 bins, got {self.num_bins=}")
        return self._prepared(X, TimeMLP(outputs=self.num_bins), bin_loss, bin_error)

    def _finish(self, plan, params):
        return self._finished(plan, ExpectedBin(params, plan.network))


class DTEInverseGamma(_TimeEstimator):
    """DTE-IG: a regression of the noise variance by inverse-gamma likelihood; the score is the variance read off the clean row.

    ``score_samples`` is minus that, in squared units of the standardised data. Corrected: the output is a variance (an exponential), where
    the published code returns a square root of undetermined sign. The arguments are those of ``DTECategorical``.

    >>> X = np.random.default_rng(0).normal(size=(200, 8))
    >>> detector = DTEInverseGamma(num_steps=200).fit(X)
    >>> far, near = detector.score_samples(np.stack([np.full(8, 6.0), np.zeros(8)]))
    >>> bool(near > far)
    True
    """

    def _plan(self, X):
        return self._prepared(X, TimeMLP(outputs=1), variance_loss, variance_error)

    def _finish(self, plan, params):
        return self._finished(plan, NoiseVariance(params, plan.network))
