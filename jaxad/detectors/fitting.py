"""What every trained detector does around its network: scale, hold out, train with a progress bar, score in fixed batches."""

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
        jnp.asarray(np.resize(held_out, (VALIDATION_ROWS, *held_out.shape[1:]))),
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
    for start in range(0, len(rows), SCORING_BATCH):
        piece = rows[start : start + SCORING_BATCH]
        size = next(size for size in (64, 256, SCORING_BATCH) if size >= len(piece))
        padded, mask = pad_to_multiple(piece, size)
        batch = jnp.asarray(padded) if mesh is None else shard_batch(padded, mesh)
        pieces.append(np.asarray(score(batch))[..., mask])
    return np.concatenate(pieces, axis=-1)
