"""Training: losses, one step, and whole chunks of steps in one compiled scan.

A loss is a pure function ``(key, params, x, schedule) -> scalar`` made by a cached factory (``simple_loss``, ``hybrid_loss``), so that
equal settings are the *same* object and a second ``fit`` finds the compiled program of the first. The same goes for optimizers.

What noise is trained on is a setting too (``draw``): with ``coarse.pyramid_noise`` in its place an image model learns to undo noise as
large as the anomalies it is to find, and its scores and maps take the same ``draw``.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxad.denoising import interpolate_variance, network_output
from jaxad.noise import VELOCITY, NoiseLevel, Prediction, add_noise, expand, posterior, transition_variance

Loss = Callable[..., Array]
"""``(key, params, x [batch, *sample], schedule [levels], *, train=True, axis_name=None) -> scalar``; dropout only when training."""

Draw = Callable[[Array, tuple[int, ...], Any], Array]
"""``(key, shape, dtype) -> noise`` of unit variance, that of ``scoring.Draw``; a plain function, or a ``partial`` with keywords."""


@flax.struct.dataclass
class TrainState:
    """Everything a training run is: explicit in, explicit out. ``key`` never changes; step k draws from ``fold_in(key, k)``."""

    step: Int[Array, "..."]
    params: Any
    ema: Any
    opt_state: Any
    key: Array


@cache
def adam(
    learning_rate: float = 1e-3,
    *,
    num_steps: int | None = None,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """AdamW with gradient clipping and warm-up; with ``num_steps`` the rate falls to zero along a cosine, else it stays.

    Cached: optax builds new closures on every call, which would be a new static argument and a recompilation on every fit.
    """
    if num_steps is not None:
        rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, max(num_steps, warmup_steps + 1))
    elif warmup_steps:
        rate = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    else:
        rate = learning_rate
    update = optax.adamw(rate, weight_decay=weight_decay) if weight_decay else optax.adam(rate)
    return update if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), update)


# ----------------------------------------------------------------------------------------------------------------- weightings


def uniform(snr):
    """Every level weighs the same: the network's own regression error (DDPM's L_simple for noise prediction)."""
    return jnp.ones_like(snr)


@cache
def min_snr(gamma: float = 5.0) -> Callable[[Array], Array]:
    """Min-SNR-gamma (Hang et al. 2023): the error of the *clean estimate* is weighted with ``min(SNR, gamma)``."""

    def weight(snr):
        return jnp.minimum(snr, gamma)

    return weight


# --------------------------------------------------------------------------------------------------------------------- losses


def draw_rows(draw: Callable[[int], Array], batch: int, axis_name: str | None) -> Array:
    """This device's rows of ``draw(global batch)``: the same numbers whether one device holds the batch or eight share it.

    Inside ``pmap`` or ``shard_map`` every device draws the whole batch's noise and keeps its slice, the price of that equality.
    """
    if axis_name is None:
        return draw(batch)
    everything = draw(batch * jax.lax.axis_size(axis_name))
    return jax.lax.dynamic_slice_in_dim(everything, jax.lax.axis_index(axis_name) * batch, batch)


def draw_levels_and_noise(
    key: Array,
    x: Float[Array, "batch *sample"],
    schedule: NoiseLevel,
    axis_name: str | None = None,
    *,
    draw: Draw = jax.random.normal,
) -> tuple[Int[Array, " batch"], Float[Array, "batch *sample"]]:
    """What one training batch is spoilt with: ``(index into the schedule, unit-variance noise)`` for every row.

    Levels are spread evenly over the schedule (a single random offset: less variance than independent levels). ``draw`` gets the shape of
    the whole batch, on all devices together if ``axis_name`` is given, and is to treat its rows independently.

    >>> from jaxad import noise
    >>> index, eps = draw_levels_and_noise(jax.random.key(0), jnp.zeros((4, 3)), noise.cosine(8))
    >>> [int(step) for step in jnp.diff(jnp.sort(index))], eps.shape
    ([2, 2, 2], (4, 3))
    """
    level_key, noise_key = jax.random.split(key)
    num_levels, batch = len(schedule), x.shape[0]

    def stratified(rows):
        offset = jax.random.uniform(level_key)
        return ((jnp.arange(rows) + offset) / rows * num_levels).astype(jnp.int32) % num_levels

    index = draw_rows(stratified, batch, axis_name)
    noise = draw_rows(lambda rows: draw(noise_key, (rows, *x.shape[1:]), x.dtype), batch, axis_name)
    return index, noise


def _per_row_mean(values):
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def _one_object(draw: Draw) -> Draw:
    """The first of all equal partials: partials compare by identity, and every new one would be a recompilation."""
    if not isinstance(draw, partial):
        return draw
    try:
        return _known_partial(draw.func, draw.args, tuple(sorted(draw.keywords.items())))
    except TypeError:  # arrays among the settings, which cannot be compared: itself alone
        return draw


@cache
def _known_partial(function, arguments, keywords):
    return partial(function, *arguments, **dict(keywords))


def simple_loss(
    network: Any,
    prediction: Prediction = VELOCITY,
    weight: Callable[[Array], Array] | None = None,
    *,
    draw: Draw = jax.random.normal,
) -> Loss:
    """The denoising loss (Ho et al. 2020, eq. 14): squared error of whatever the network predicts, mean over elements and rows.

    With ``weight`` (``min_snr()``, or ``uniform``) the error of the *clean estimate* times ``weight(SNR)`` is taken instead, which for
    ``min_snr`` equals the published ``min(SNR, g) / SNR`` on noise and ``min(SNR, g) / (SNR + 1)`` on velocity prediction.
    ``draw`` is the noise to learn on: ``partial(coarse.pyramid_noise, coarsest=16)`` for coarse noise (AnoDDPM, Wyatt et al. 2022); the
    scores of the trained network want the same one. Equal settings, an equal ``partial`` included, give the same object.

    >>> from jaxad.coarse import pyramid_noise
    >>> from jaxad.denoisers import DiT
    >>> network = DiT(hidden=16, depth=1, heads=2, patch_size=4)
    >>> loss = simple_loss(network, draw=partial(pyramid_noise, coarsest=16))
    >>> loss is simple_loss(network, draw=partial(pyramid_noise, coarsest=16)), loss is simple_loss(network)
    (True, False)
    """
    return _simple_loss(network, prediction, weight, _one_object(draw))


@cache
def _simple_loss(network, prediction, weight, draw) -> Loss:
    def loss(key, params, x, schedule, *, train=True, axis_name=None):
        draw_key, dropout_key = jax.random.split(key)
        index, noise = draw_levels_and_noise(draw_key, x, schedule, axis_name, draw=draw)
        level = schedule[index]
        noisy = add_noise(x, noise, level)
        output, _ = network_output(network, params, noisy, level, dropout_key=dropout_key if train else None)
        if weight is None:
            return jnp.mean((output - prediction.target(x, noise, level)) ** 2)
        error = _per_row_mean((prediction.to_clean(output, noisy, level) - x) ** 2)
        return jnp.mean(weight(jnp.exp(level.log_snr)) * error)

    return loss


def trimmed_loss(
    network: Any, prediction: Prediction = VELOCITY, *, keep: float = 0.8, draw: Draw = jax.random.normal
) -> Loss:
    """``simple_loss`` of the rows that the network denoises best, the share ``keep`` of every batch: for contaminated training rows.

    What is rare the network learns late and denoises badly; left out of every step, it is never learned (TabADM, Zamberg et al. 2023,
    who drop the rows of largest loss). A row is judged by its error at ``TRIMMING_LEVELS`` levels, each over its mean in the batch, so
    that no level decides by its size; the ranking is over the whole batch, on all devices together if ``axis_name`` is given.
    A step takes four evaluations without a gradient beside the one with it. On clean rows the rarest normal ones are lost:
    docs/trust.md shows the price.

    Raises:
        ValueError: ``keep`` is not in (0, 1].

    >>> from jaxad.denoisers import MLP
    >>> network = MLP(width=8, depth=1)
    >>> trimmed_loss(network, keep=0.9) is trimmed_loss(network, keep=0.9)
    True
    """
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep is the share of every batch to learn from, in (0, 1], got {keep!r}")
    return _trimmed_loss(network, prediction, float(keep), _one_object(draw))


TRIMMING_LEVELS = 4
"""Levels, evenly spread over the schedule, by whose error ``trimmed_loss`` judges a row."""


@cache
def _trimmed_loss(network, prediction, keep, draw) -> Loss:
    def errors(key, params, x, schedule, axis_name):
        """Relative denoising error of every row, [batch]."""

        def at(key, level):
            noise = draw_rows(lambda rows: draw(key, (rows, *x.shape[1:]), x.dtype), len(x), axis_name)
            level = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, len(x)), level)
            output, _ = network_output(network, params, add_noise(x, noise, level), level)
            error = _per_row_mean((output - prediction.target(x, noise, level)) ** 2)
            mean = jnp.mean(error)
            return error / (mean if axis_name is None else jax.lax.pmean(mean, axis_name))

        chosen = schedule[((np.arange(TRIMMING_LEVELS) + 0.5) / TRIMMING_LEVELS * len(schedule)).astype(int)]
        keys = jax.random.split(key, TRIMMING_LEVELS)
        return jnp.stack([at(keys[i], chosen[i]) for i in range(TRIMMING_LEVELS)]).sum(axis=0)

    def loss(key, params, x, schedule, *, train=True, axis_name=None):
        judge_key, draw_key, dropout_key = jax.random.split(key, 3)
        strangeness = errors(judge_key, jax.lax.stop_gradient(params), x, schedule, axis_name)
        everyone = strangeness if axis_name is None else jax.lax.all_gather(strangeness, axis_name, tiled=True)
        count = max(1, round(keep * len(everyone)))
        kept = strangeness <= jnp.sort(everyone)[count - 1]
        index, noise = draw_levels_and_noise(draw_key, x, schedule, axis_name, draw=draw)
        level = schedule[index]
        output, _ = network_output(
            network, params, add_noise(x, noise, level), level, dropout_key=dropout_key if train else None
        )
        error = _per_row_mean((output - prediction.target(x, noise, level)) ** 2)
        return jnp.sum(jnp.where(kept, error, 0.0)) / (count * len(x) / len(everyone))

    return loss


def hybrid_loss(
    network: Any, prediction: Prediction = VELOCITY, *, vlb_weight: float = 1.0, draw: Draw = jax.random.normal
) -> Loss:
    """Learned variance (Nichol & Dhariwal 2021, section 3.1; the seed paper's section 3.4): ``L_simple + vlb_weight * L_vlb``.

    The network (``learned_variance=True``) puts the reverse variance between beta and beta tilde on a log scale. L_vlb, in nats per
    element, trains only that: the mean inside it is behind a stop-gradient. The term of the cleanest level is the Gaussian
    log-likelihood of the continuous data, and the smallest variance of that level is that of the next one.
    DiT and RealNet use ``vlb_weight=1``; improved-diffusion's rescaled loss is ``vlb_weight = levels / 1000``. With a ``draw`` whose
    pixels depend on each other, as in ``simple_loss``, every pixel by itself still has the posterior that the terms are made of, but
    their sum is no longer a bound for the picture.

    Raises:
        ValueError: the network has no variance output.
    """
    if not getattr(network, "learned_variance", False):
        raise ValueError(
            f"the hybrid loss trains a variance: build the network with learned_variance=True, got {network!r}"
        )
    return _hybrid_loss(network, prediction, vlb_weight, _one_object(draw))


@cache
def _hybrid_loss(network, prediction, vlb_weight, draw) -> Loss:
    def loss(key, params, x, schedule, *, train=True, axis_name=None):
        draw_key, dropout_key = jax.random.split(key)
        index, noise = draw_levels_and_noise(draw_key, x, schedule, axis_name, draw=draw)
        level = schedule[index]
        noisy = add_noise(x, noise, level)
        output, interpolation = network_output(
            network, params, noisy, level, dropout_key=dropout_key if train else None
        )
        simple = jnp.mean((output - prediction.target(x, noise, level)) ** 2)
        clean = jax.lax.stop_gradient(prediction.to_clean(output, noisy, level))
        return simple + vlb_weight * jnp.mean(vlb_terms(clean, interpolation, x, index, schedule))

    return loss


def vlb_terms(clean, interpolation, x, index, schedule: NoiseLevel) -> Float[Array, " batch"]:
    """One term of the variational bound per row, in nats per element, at schedule index ``index`` [batch].

    Above index 0: KL(q(z_s | z_t, x) || p(z_s | z_t)); at index 0: -log N(x; clean estimate, variance).
    ``interpolation=None`` stands for the fixed small variance (beta tilde).
    """
    small, large = log_variance_bounds(schedule, x.dtype)
    q = posterior(schedule[jnp.maximum(index - 1, 0)], schedule[jnp.maximum(index, 1)])
    log_small = expand(small[index], x)
    log_p = (
        log_small if interpolation is None else interpolate_variance(interpolation, log_small, expand(large[index], x))
    )
    mean_gap = (clean - x) ** 2
    mean_gap = jnp.where(expand(index > 0, x) > 0, expand(q.from_clean**2, x) * mean_gap, mean_gap)
    kl = 0.5 * (log_p - log_small - 1 + jnp.exp(log_small - log_p) + mean_gap * jnp.exp(-log_p))
    likelihood = 0.5 * (jnp.log(2 * jnp.pi) + log_p + mean_gap * jnp.exp(-log_p))
    return _per_row_mean(jnp.where(expand(index > 0, x) > 0, kl, likelihood))


def log_variance_bounds(schedule: NoiseLevel, dtype):
    """``(log beta tilde, log beta)`` per level [levels]; at index 0, where beta tilde is 0, that of index 1 stands in."""
    xp = np if isinstance(schedule.alpha, np.ndarray) else jnp
    small = posterior(schedule[:-1], schedule[1:]).variance
    large = transition_variance(schedule[:-1], schedule[1:])
    small = xp.log(xp.concatenate([small[:1], small]))
    large = xp.log(xp.concatenate([schedule.sigma[:1] ** 2, large]))
    return jnp.asarray(small, dtype), jnp.asarray(large, dtype)


# ---------------------------------------------------------------------------------------------------------------------- steps


def init_state(key: Array, network: Any, optimizer: optax.GradientTransformation, *inputs: Array) -> TrainState:
    """Fresh parameters for a network called with ``inputs`` (one row is enough); the average starts at the parameters."""
    init_key, run_key = jax.random.split(key)
    params = _init_params(network, init_key, *inputs)
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params), run_key)


@partial(jax.jit, static_argnums=0)
def _init_params(network, key, *inputs):
    # Compiled: layer by layer, drawing a deep network's parameters takes seconds.
    return network.init(key, *inputs)["params"]


def train_step(
    state: TrainState,
    x: Float[Array, "batch *sample"],
    schedule: NoiseLevel,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema_decay: float = 0.999,
    axis_name: str | None = None,
) -> tuple[TrainState, Float[Array, ""]]:
    """One optimisation step: ``(new state, loss before the step)``.

    The average's decay warms up as ``min(ema_decay, (1 + k) / (10 + k))``. The same function serves one device, a sharded batch under
    ``jit``, and ``pmap`` / ``shard_map`` (give ``axis_name``; gradients are averaged over it), with equal results.
    """
    step_key = jax.random.fold_in(state.key, state.step)

    def mean_loss(params):
        value = loss(step_key, params, x, schedule, axis_name=axis_name)
        # Averaged inside: shard_map, knowing that the parameters are the same everywhere, sums their gradients by itself.
        return value if axis_name is None else jax.lax.pmean(value, axis_name)

    value, gradients = jax.value_and_grad(mean_loss)(state.params)
    if axis_name is not None:
        # pmap's gradient is one device's share; under shard_map it is the mean already, and its mean is itself.
        gradients = jax.lax.pmean(gradients, axis_name)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, state.ema, params)
    return TrainState(state.step + 1, params, ema, opt_state, state.key), value


@partial(
    jax.jit,
    static_argnames=("loss", "optimizer", "batch_size", "num_steps", "ema_decay", "sharding"),
    donate_argnames="state",
)
def train_chunk(
    state: TrainState,
    rows: Float[Array, "batch *sample"],
    num_rows: Int[Array, ""],
    schedule: NoiseLevel,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    num_steps: int,
    ema_decay: float = 0.999,
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[TrainState, Float[Array, " steps"]]:
    """``num_steps`` steps in one compiled scan, batches gathered on the device from the first ``num_rows`` rows (with replacement).

    ``num_rows`` is data, not shape: pad ``rows`` to a common size and data sets of many sizes share one compiled program.
    ``sharding`` says how a batch lies on the devices (``sharding.batch_sharding(mesh)``).
    """

    def step(state, _):
        batch_key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
        index = jax.random.randint(batch_key, (batch_size,), 0, num_rows)
        x = rows[index] if sharding is None else jax.lax.with_sharding_constraint(rows[index], sharding)
        return train_step(state, x, schedule, loss=loss, optimizer=optimizer, ema_decay=ema_decay)

    return jax.lax.scan(step, state, None, length=num_steps)


def fit(
    state: TrainState,
    rows: Float[Array, "batch *sample"],
    schedule: NoiseLevel,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    batch_size: int,
    num_rows: int | None = None,
    ema_decay: float = 0.999,
    sharding: jax.sharding.Sharding | None = None,
    chunk: int = 200,
    on_chunk: Callable[[TrainState, np.ndarray], bool | None] | None = None,
) -> tuple[TrainState, np.ndarray]:
    """Train up to step ``num_steps`` (counted from the run's beginning, so a restored state goes on where it stopped).

    ``on_chunk(state, losses)`` runs on the host after each chunk: progress bars and checkpoints live there. If it returns True,
    training stops early.

    Raises:
        FloatingPointError: the loss stopped being finite; the message names the step.

    Returns:
        The final state and the loss of every step taken, shape [steps].
    """
    history = []
    num_rows = rows.shape[0] if num_rows is None else num_rows
    while (done := int(state.step)) < num_steps:
        state, losses = train_chunk(
            state,
            rows,
            jnp.int32(num_rows),
            schedule,
            loss=loss,
            optimizer=optimizer,
            batch_size=batch_size,
            num_steps=min(chunk, num_steps - done),
            ema_decay=ema_decay,
            sharding=sharding,
        )
        history.append(_finite(np.asarray(losses), done))
        if on_chunk is not None and on_chunk(state, history[-1]):
            break
    return state, np.concatenate(history) if history else np.zeros(0, np.float32)


@partial(jax.jit, static_argnames=("loss", "optimizer", "ema_decay"), donate_argnames="state")
def _step(state, x, schedule, *, loss, optimizer, ema_decay):
    return train_step(state, x, schedule, loss=loss, optimizer=optimizer, ema_decay=ema_decay)


def fit_stream(
    state: TrainState,
    batches: Iterator[np.ndarray],
    schedule: NoiseLevel,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    ema_decay: float = 0.999,
    sharding: jax.sharding.Sharding | None = None,
    chunk: int = 200,
    on_chunk: Callable[[TrainState, np.ndarray], bool | None] | None = None,
) -> tuple[TrainState, np.ndarray]:
    """``fit`` on rows that do not lie in memory: one step for every batch ``[batch, *sample]`` that ``batches`` delivers.

    The next batch is fetched while the device is at work on the last. Arguments, errors and results as in ``fit``; batches of
    one size share a compiled program. Of several processes each delivers its own part of every batch.

    Raises:
        FloatingPointError: the loss stopped being finite; the message names the step.
        ValueError: ``batches`` ended before ``num_steps``.
    """
    history = []
    while (done := int(state.step)) < num_steps:
        values = []
        for _ in range(min(chunk, num_steps - done)):
            x = next(batches, None)
            if x is None:
                raise ValueError(
                    f"the batches ended at step {done + len(values)} of {num_steps}: repeat them (epochs=None), or take fewer steps"
                )
            x = jnp.asarray(x) if sharding is None else jax.make_array_from_process_local_data(sharding, x)
            state, value = _step(state, x, schedule, loss=loss, optimizer=optimizer, ema_decay=ema_decay)
            values.append(value)
        history.append(_finite(np.asarray(jnp.stack(values)), done))
        if on_chunk is not None and on_chunk(state, history[-1]):
            break
    return state, np.concatenate(history) if history else np.zeros(0, np.float32)


def _finite(losses: np.ndarray, done: int) -> np.ndarray:
    if not np.isfinite(losses).all():
        bad = int(np.argmin(np.isfinite(losses)))
        raise FloatingPointError(
            f"the training loss is {losses[bad]} at step {done + bad}; lower the learning rate, or check the scale of the data"
        )
    return losses
