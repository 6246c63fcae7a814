"""What every trained detector does around its network: scale, hold out, train with a progress bar, score in fixed batches."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxad import training
from jaxad.noise import NoiseLevel
from jaxad.sharding import batch_sharding, pad_to_multiple, replicate, shard_batch

FARTHEST = 1e5
"""Standardised values are cut here: float32 can still square them, and no anomaly needs to be farther away."""

SCORING_BATCH = 1024
"""Rows scored at once; fewer are padded to the next of 64, 256, 1024, so a few compiled programs serve every call."""

PICTURES_AT_ONCE = 128
"""The same for pictures, of which levels and draws make many copies and the network's layers many more: 1,024 of 28 x 28 took 5 GiB."""


class Standardiser(NamedTuple):
    """Column means and spreads of the training rows; for images one pair per channel."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, X: np.ndarray) -> "Standardiser":
        """A constant column keeps scale 1, so that a test value off the constant stays visible instead of dividing by zero."""
        axes = tuple(range(X.ndim - 1))
        mean, std = X.mean(axis=axes, dtype=np.float64), X.std(axis=axes, dtype=np.float64)
        # Rounding gives a constant column a spread of about eps * |mean|; real columns are far above that.
        return cls(mean, np.where(std > 1e-12 * np.maximum(np.abs(mean), 1.0), std, 1.0))

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Standardised float32 rows."""
        return np.clip((X - self.mean) / self.scale, -FARTHEST, FARTHEST).astype(np.float32)


def hold_out(X: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """``(rows to train on, rows to calibrate on)``: a tenth is held out, at least 30 rows or a third of few, at most 2,000."""
    count = min(max(len(X) // 10, min(30, len(X) // 3), 1), 2000)
    order = rng.permutation(len(X))
    return X[order[count:]], X[order[:count]]


def default_num_steps(num_rows: int) -> int:
    """The most training steps to take, by the number of rows alone; early stopping takes fewer where fewer are better.

    Three values and no formula, because the number is part of the compiled program (it shapes the learning rate).
    """
    return 1000 if num_rows < 250 else 2000 if num_rows < 1000 else 4000


CHUNK = 200
"""Steps between two looks at the held-out loss."""

PATIENCE = 5
"""Looks without a new best after which training stops."""

VALIDATION_ROWS = 2048
"""Held-out rows are repeated or cut to this many noisy copies: few enough to be quick, many enough for a steady loss."""

MOST_ELEMENTS = 2**21
"""Numbers in a batch of large pictures that go through a network at once, outside training: its activations are many times that."""


@partial(jax.jit, static_argnames="measure")
def _validate(key, params, rows, schedule, *, measure):
    return measure(key, params, rows, schedule, train=False)


def train(
    key: jax.Array,
    network: Any,
    rows: np.ndarray,
    held_out: np.ndarray,
    schedule: NoiseLevel,
    inputs: tuple,
    *,
    loss: training.Loss,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    batch_size: int,
    measure: training.Loss | None = None,
    mesh: Mesh | None = None,
    verbose: int = 0,
    title: str = "training",
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Train ``network`` on standardised ``rows``: ``(parameters, loss per step, held-out error per chunk)``.

    After every chunk the averaged parameters are tried on ``held_out`` normal rows, always with the same noise; the best ones are
    kept, and training stops once ``PATIENCE`` chunks brought nothing better. So small data sets stop before they are memorised, by
    one rule for all of them and without an anomaly in sight. What is tried is ``measure``, by default the loss itself.
    Rows are padded to a bucketed number, so fits of similar size share one compiled program.
    """
    init_key, validation_key = jax.random.split(key)
    padded, _ = pad_to_multiple(rows, _bucket(len(rows)))
    state = training.init_state(init_key, network, optimizer, *inputs)
    on_device = (
        jnp.asarray(padded),
        jnp.asarray(np.resize(held_out, (_at_once(VALIDATION_ROWS, held_out), *held_out.shape[1:]))),
        schedule.to(jnp.float32),
    )
    if mesh is not None:
        state, on_device = replicate((state, on_device), mesh)
    rows_on_device, validation_rows, schedule = on_device
    measure = loss if measure is None else measure
    best, validation_losses = jax.tree.map(np.asarray, state.ema), []

    with _ProgressBar(title, num_steps, verbose) as bar:

        def look(state, losses):
            nonlocal best
            value = float(
                _validate(jax.random.clone(validation_key), state.ema, validation_rows, schedule, measure=measure)
            )
            if not validation_losses or value < min(validation_losses):
                best = jax.tree.map(np.asarray, state.ema)
            validation_losses.append(value)
            bar.update(int(state.step), float(losses.mean()), value)
            return len(validation_losses) - 1 - int(np.argmin(validation_losses)) >= PATIENCE

        _, losses = training.fit(
            state,
            rows_on_device,
            schedule,
            loss=loss,
            optimizer=optimizer,
            num_steps=num_steps,
            batch_size=batch_size,
            num_rows=len(rows),
            sharding=None if mesh is None else batch_sharding(mesh),
            chunk=CHUNK,
            on_chunk=look,
        )
    return best, losses, np.asarray(validation_losses, np.float32)


def train_many(
    keys: jax.Array,
    network: Any,
    rows: list[np.ndarray],
    held_out: list[np.ndarray],
    schedule: NoiseLevel,
    inputs: tuple,
    *,
    loss: training.Loss,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    batch_size: int,
    measure: training.Loss | None = None,
    max_seconds: float | None = None,
    verbose: int = 0,
    title: str = "training",
) -> tuple[list[Any], list[np.ndarray], list[np.ndarray]]:
    """``train`` for several networks at once, one ``vmap``ped program: seeds, folds, or data sets of one width.

    ``keys [members]``; ``rows`` and ``held_out`` hold one array per member, of any lengths. Every member draws its own batches and
    noise, is judged by its own held-out rows and keeps its own best parameters, exactly as ``train(keys[i], ...)`` would; a
    member that is done is carried along until the last one is. Returns one entry per member.

    Raises:
        ValueError: the members' rows differ in shape.
        FloatingPointError: a loss stops being finite.
    """
    if len({piece.shape[1:] for piece in (*rows, *held_out)}) != 1 or not len(rows) == len(held_out) == len(keys):
        raise ValueError(
            "networks trained together need one key, rows and held-out rows each, all rows of one shape; got "
            f"{len(keys)} keys and rows of shapes {sorted({piece.shape[1:] for piece in (*rows, *held_out)})}"
        )
    size = _bucket(max(map(len, rows)))
    size *= -(-max(map(len, rows)) // size)
    stacked = jnp.asarray(np.stack([pad_to_multiple(piece, size)[0] for piece in rows]))
    validation = jnp.asarray(np.stack([np.resize(piece, (VALIDATION_ROWS, *piece.shape[1:])) for piece in held_out]))
    num_rows = jnp.asarray([len(piece) for piece in rows], jnp.int32)
    schedule = schedule.to(jnp.float32)
    measure = loss if measure is None else measure
    init_keys, validation_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    state = _init_many(init_keys, tuple(inputs), network=network, optimizer=optimizer)
    best, losses = jax.tree.map(np.array, state.ema), []
    values = np.zeros((0, len(rows)))
    taken = np.zeros(len(rows), int)  # looks of each member, fewer than the others' once it has stopped
    running = np.ones(len(rows), bool)
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    with _ProgressBar(title, num_steps, verbose) as bar:
        for done in range(0, num_steps, CHUNK):
            state, chunk_losses = _train_chunk_many(
                state,
                stacked,
                num_rows,
                schedule,
                loss=loss,
                optimizer=optimizer,
                batch_size=batch_size,
                num_steps=min(CHUNK, num_steps - done),
            )
            chunk_losses = np.asarray(chunk_losses)
            if not np.isfinite(chunk_losses[running]).all():
                raise FloatingPointError(
                    f"a training loss is not finite between step {done} and {done + CHUNK}; check the scale of the data"
                )
            losses.append(chunk_losses)
            value = np.asarray(
                _validate_many(jax.random.clone(validation_keys), state.ema, validation, schedule, measure=measure)
            )
            improved = running & (value < np.min(values, axis=0, initial=np.inf))
            best = jax.tree.map(lambda kept, new: _where_members(improved, np.asarray(new), kept), best, state.ema)  # noqa: B023
            values, taken = np.concatenate([values, value[None]]), taken + running
            running &= len(values) - 1 - np.argmin(values, axis=0) < PATIENCE
            bar.update(min(done + CHUNK, num_steps), float(chunk_losses.mean()), float(value.mean()))
            if not running.any() or (deadline is not None and time.monotonic() > deadline):
                break
    history = np.concatenate(losses, axis=1) if losses else np.zeros((len(rows), 0), np.float32)
    members = range(len(rows))
    return (
        [jax.tree.map(lambda leaf: leaf[i], best) for i in members],  # noqa: B023
        [history[i, : taken[i] * CHUNK] for i in members],
        [values[: taken[i], i].astype(np.float32) for i in members],
    )


def _where_members(chosen, new, old):
    return np.where(chosen.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


@partial(jax.jit, static_argnames=("network", "optimizer"))
def _init_many(keys, inputs, *, network, optimizer):
    return jax.vmap(lambda key: training.init_state(key, network, optimizer, *inputs))(keys)


@partial(jax.jit, static_argnames=("loss", "optimizer", "batch_size", "num_steps"), donate_argnames="states")
def _train_chunk_many(states, rows, num_rows, schedule, *, loss, optimizer, batch_size, num_steps):
    chunk = partial(training.train_chunk, loss=loss, optimizer=optimizer, batch_size=batch_size, num_steps=num_steps)
    return jax.vmap(chunk, in_axes=(0, 0, 0, None))(states, rows, num_rows, schedule)


@partial(jax.jit, static_argnames="measure")
def _validate_many(keys, params, rows, schedule, *, measure):
    return jax.vmap(lambda key, p, x: measure(key, p, x, schedule, train=False))(keys, params, rows)


def _at_once(wanted: int, rows: np.ndarray) -> int:
    """``wanted`` rows, or fewer if they are large pictures, but 16 at least."""
    elements = int(np.prod(rows.shape[1:]))
    return max(16, min(wanted, 2 ** int(np.log2(max(MOST_ELEMENTS // elements, 1)))))


def _bucket(num_rows: int) -> int:
    """Multiples that leave four sizes per doubling: at most a quarter of the rows is padding."""
    return max(64, 2 ** (int(num_rows).bit_length() - 3))


class _ProgressBar:
    """Steps, loss, held-out loss and time left on the terminal; nothing at all unless ``verbose``."""

    def __init__(self, title, num_steps, verbose):
        self.bar = None
        if verbose:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            losses = TextColumn("loss {task.fields[loss]:.4f}, held out {task.fields[held_out]:.4f}")
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), losses, TimeRemainingColumn()
            )
            self.task = self.bar.add_task(title, total=num_steps, loss=float("nan"), held_out=float("nan"))

    def __enter__(self):
        if self.bar:
            self.bar.start()
        return self

    def update(self, step, loss, held_out):
        if self.bar:
            self.bar.update(self.task, completed=step, loss=loss, held_out=held_out)

    def __exit__(self, *_):
        if self.bar:
            self.bar.stop()


def score_in_batches(score: Callable[[Any], Any], rows: np.ndarray, mesh: Mesh | None = None) -> np.ndarray:
    """``score(batch) -> [..., batch]`` over all rows in batches of few fixed sizes, memory flat in their number."""
    pieces = []
    most = _at_once(SCORING_BATCH if rows.ndim == 2 else PICTURES_AT_ONCE, rows)
    for start in range(0, len(rows), most):
        piece = rows[start : start + most]
        size = next(size for size in (min(64, most), min(256, most), most) if size >= len(piece))
        padded, mask = pad_to_multiple(piece, size)
        batch = jnp.asarray(padded) if mesh is None else shard_batch(padded, mesh)
        pieces.append(np.asarray(score(batch))[..., mask])
    return np.concatenate(pieces, axis=-1)
