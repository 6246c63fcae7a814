"""What every trained detector does around its network: hold out, train with a progress bar, alone or many at once."""

import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxad import training
from jaxad.detectors.estimator import Estimator, Learned, at_once, check_training_data
from jaxad.noise import NoiseLevel
from jaxad.runtime import distributed
from jaxad.runtime.compilation import quickly_compiled
from jaxad.runtime.memory import available_bytes, check_batch, training_bytes
from jaxad.runtime.runs import Run, digest, in_words, named_leaves, open_run, tree_from_leaves
from jaxad.runtime.sharding import (
    batch_sharding,
    fetch,
    pad_to_multiple,
    parameter_sharding,
    replicate,
    shard_batch,
    shard_parameters,
)

if TYPE_CHECKING:
    from jaxad.data import ImageBatches


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

STEPS_AT_ONCE = 50
"""Steps in one compiled program: so often the progress bar moves, and so late a run that is told to stop hears of it."""

PATIENCE = 5
"""Looks without a new best after which training stops."""

VALIDATION_ROWS = 2048
"""Held-out rows are repeated or cut to this many noisy copies: few enough to be quick, many enough for a steady loss."""

MEMBERS_AT_ONCE = 16
"""Networks of a fleet that a CPU trains side by side, ``CHUNK`` steps, before the next ones: 500 at once are slower than one by one."""

LARGE_BATCH = 2**16
"""Numbers in a batch from which on it is asked whether the training fits in memory: to ask takes a second, and small ones fit."""

SECONDS_BETWEEN_LINES = 30.0

LEVELS_SHOWN = 4
"""Noise levels whose held-out loss is shown by itself, evenly spread over the schedule."""


class Stream(NamedTuple):
    """Rows that do not lie in memory: ``batches`` deliver them without end, and ``prepare(batch)`` makes them standardised float32."""

    batches: "ImageBatches"
    prepare: Callable[[np.ndarray], np.ndarray]


@partial(jax.jit, static_argnames="measure")
def _validate_levels(key, params, rows, schedule, *, measure):
    """The error at every level of ``schedule`` by itself, ``[levels]``."""
    keys = jax.random.split(key, len(schedule))
    return jax.lax.map(lambda of: measure(of[0], params, rows, of[1][None], train=False), (keys, schedule))


@partial(jax.jit, static_argnames="measure")
def _validate(key, params, rows, schedule, *, measure):
    return measure(key, params, rows, schedule, train=False)


def train(
    key: jax.Array,
    network: Any,
    rows: np.ndarray | Stream,
    held_out: np.ndarray,
    schedule: NoiseLevel,
    inputs: tuple,
    *,
    loss: training.Loss,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    batch_size: int,
    measure: training.Loss | None = None,
    by_level: training.Loss | None = None,
    mesh: Mesh | None = None,
    cut_parameters: bool = False,
    max_seconds: float | None = None,
    run: Run | None = None,
    verbose: int = 0,
    title: str = "training",
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Train ``network`` on standardised ``rows``: ``(parameters, loss per step, held-out error per look)``.

    Every ``CHUNK`` steps the averaged parameters are tried on ``held_out`` normal rows, always with the same noise; the best ones are
    kept, and training stops once ``PATIENCE`` looks brought nothing better. So small data sets stop before they are memorised, by
    one rule for all of them and without an anomaly in sight. What is tried is ``measure``, by default the loss itself; ``by_level`` is
    a loss that means something on a single level too, shown for a few of them. Rows are padded to a bucketed number, so fits of similar
    size share one compiled program; a ``Stream`` is read batch by batch instead.

    On a ``mesh`` the state is copied to every device, or with ``cut_parameters`` cut over them (``sharding.shard_parameters``); rows
    are cut in any case. The mesh may lie over several processes (``jaxad.runtime.distributed``), all with the same ``rows``; a ``Stream``
    delivers to each its own part of every batch.
    After ``max_seconds`` it stops at the next chunk of ``STEPS_AT_ONCE`` steps, with a last look at the held-out rows.
    With ``run`` the state is kept in a run directory, and what is found there is taken up: the result is that of a run never stopped,
    to the bit on the same kind of device.

    Raises:
        ValueError: the batch does not fit in the memory that is free; the message names the size that does.
        FloatingPointError: the loss stops being finite.
        CheckpointError: the run directory holds another run.
        RunStopped: the run was told to stop and has saved.
    """
    init_key, validation_key = jax.random.split(key)
    level_key = jax.random.fold_in(jax.random.clone(validation_key), 1)
    stream = rows if isinstance(rows, Stream) else None
    validation_rows = np.resize(held_out, (at_once(VALIDATION_ROWS, held_out.shape[1:]), *held_out.shape[1:]))
    shown = schedule[np.linspace(0, len(schedule) - 1, LEVELS_SHOWN).astype(int)].to(jnp.float32)
    measure = loss if measure is None else measure
    sizes: Any = {
        "loss": loss,
        "optimizer": optimizer,
        "batch_size": batch_size,
        "mesh": mesh,
        "cut_parameters": cut_parameters,
    }
    check_memory(network, held_out.shape[1:], schedule, inputs, **sizes)
    init: Callable[[], training.TrainState] = partial(training.init_state, init_key, network, optimizer, *inputs)
    like, kept = jax.eval_shape(init), None
    if mesh is not None and cut_parameters:  # what does not fit on one device cannot be made there either
        init = jax.jit(init, out_shardings=parameter_sharding(like, mesh))
    if run is not None:
        learned = [] if isinstance(rows, Stream) else [rows]
        kept = _restore(run, _fingerprint(key, network, learned, [held_out], schedule, num_steps, batch_size), like)
    if kept is None:
        state = init()
        kept = _Progress(state, fetch(state.ema), np.zeros(0, np.float32), np.zeros(0))
    elif stream is not None and run is not None:
        stream.batches.set_state(run.data_position)
    state, best, losses, values = kept
    on_device: Any = (jax.device_put(validation_rows), schedule.to(jnp.float32), shown)
    padded: Any = () if isinstance(rows, Stream) else pad_to_multiple(rows, _bucket(len(rows)))[0]
    if mesh is not None:
        on_device = replicate(on_device, mesh)
        state = shard_parameters(state, mesh) if cut_parameters else replicate(state, mesh)
    validation_rows, schedule, shown = on_device
    if not isinstance(rows, Stream):
        padded = jax.device_put(padded) if mesh is None else shard_batch(pad_to_multiple(padded, mesh.size)[0], mesh)

    deadline, overtime = None if max_seconds is None else time.monotonic() + max_seconds, False

    def finished(step):
        return (
            step >= num_steps or overtime or (len(values) > 0 and len(values) - 1 - int(np.argmin(values)) >= PATIENCE)
        )

    with ProgressBar(title, num_steps, verbose) as bar:
        clock = _Clock(len(losses), batch_size)

        def look(state, new_losses):
            nonlocal best, losses, values, overtime
            step = int(state.step)
            if deadline is not None:
                overtime = any(distributed.any_process([time.monotonic() > deadline]))
            losses = np.concatenate([losses, new_losses])
            told = {"loss": float(new_losses.mean()), **clock(step)}
            if step % CHUNK == 0 or step == num_steps or overtime:
                value = float(
                    _validate(jax.random.clone(validation_key), state.ema, validation_rows, schedule, measure=measure)
                )
                if value < np.min(values, initial=np.inf):
                    best = fetch(state.ema)
                values = np.append(values, value)
                told["held-out loss"] = value
                if by_level is not None and (verbose or (run is not None and run.settings.tensorboard)):
                    few = validation_rows[: at_once(256, held_out.shape[1:])]
                    each = _validate_levels(jax.random.clone(level_key), state.ema, few, shown, measure=by_level)
                    told |= {
                        f"held-out loss at sigma {sigma:.2g}": float(at)
                        for sigma, at in zip(np.asarray(shown.sigma), np.asarray(each), strict=True)
                    }
            bar.update(step, told)
            done = finished(step)
            if run is not None:
                run.log(step, told)
                if stream is not None:
                    run.data_position = stream.batches.get_state()
                _keep(run, _Progress(state, best, losses, values), step, done)
            return done

        if not finished(int(state.step)):
            common: Any = {"loss": loss, "optimizer": optimizer, "num_steps": num_steps, "chunk": STEPS_AT_ONCE}
            sharding = None if mesh is None else batch_sharding(mesh)
            if isinstance(rows, Stream):
                batches = map(rows.prepare, rows.batches)
                training.fit_stream(state, batches, schedule, sharding=sharding, on_chunk=look, **common)
            else:
                more: Any = {"batch_size": batch_size, "num_rows": len(rows), "sharding": sharding}
                training.fit(state, padded, schedule, on_chunk=look, **common, **more)
    return best, losses, values.astype(np.float32)


def check_memory(
    network: Any,
    sample_shape: tuple[int, ...],
    schedule: NoiseLevel,
    inputs: tuple,
    *,
    loss: training.Loss,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    mesh: Mesh | None = None,
    cut_parameters: bool = False,
) -> None:
    """Does a training step on this batch fit in the memory that is free? Asked before any long work; ``train`` asks as well.

    Raises:
        ValueError: it does not; the message names the batch size that does.
    """
    if batch_size * math.prod(sample_shape) < LARGE_BATCH:
        return
    device = jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
    on_cpu = device.platform == "cpu"
    fixed, per_row = training_bytes(
        network, sample_shape, schedule, inputs, loss=loss, optimizer=optimizer, batch_size=batch_size, remat=not on_cpu
    )
    shares = 1 if mesh is None or on_cpu else mesh.size  # simulated devices have one memory
    available = available_bytes(device)
    if available is not None and not on_cpu:  # the estimate was only ever compared with CPUs
        available = round(1.3 * available)
    check_batch((fixed / (shares if cut_parameters else 1), per_row / shares), batch_size, available)


class _Clock:
    """Rows per second since the last look, and the memory in use."""

    def __init__(self, step, batch_size):
        self.step, self.batch_size, self.at = step, batch_size, time.perf_counter()

    def __call__(self, step) -> dict[str, float]:
        now, before = time.perf_counter(), self.at
        rate = (step - self.step) * self.batch_size / max(now - before, 1e-9)
        self.step, self.at = step, now
        return {"rows per second": rate, "memory in GiB": _used_bytes() / 2**30}


def _used_bytes() -> float:
    """Memory in use on the first accelerator, or by this process; NaN where nobody says."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats.get("bytes_in_use", np.nan)
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else np.nan


class _Progress(NamedTuple):
    """All that a training knows of itself: enough to go on."""

    state: training.TrainState
    best: Any
    losses: np.ndarray  # of every step
    values: np.ndarray  # of every look


def _fingerprint(key, network, rows, held_out, schedule, num_steps, batch_size) -> dict[str, str]:
    """What must be equal for a run to be the same run, in words a user can compare."""
    return {
        "rows": digest(*rows, *held_out),
        "seed": digest(key),
        "network": in_words(network),
        "schedule": digest(*jax.tree.leaves(schedule)),
        "number of steps": str(num_steps),
        "batch size": str(batch_size),
    }


def _restore(run: Run, fingerprint: dict[str, str], like: training.TrainState) -> _Progress | None:
    found = run.restore(fingerprint)
    if found is None:
        return None
    arrays, content = found
    run.data_position = content.get("data_position")
    state = tree_from_leaves("state", like, arrays)
    return _Progress(state, tree_from_leaves("best", like.ema, arrays), arrays["losses"], arrays["values"])


def _keep(run: Run, progress: _Progress, step: int, finished: bool) -> None:
    """Save when it is time, and at the end; end the program if it was told to stop."""
    due, stop = run.due()
    if finished or due:
        arrays = named_leaves("state", progress.state) | named_leaves("best", progress.best)
        histories = {"losses": progress.losses, "values": progress.values}
        run.save(step, arrays | histories, {"finished": finished, "data_position": run.data_position})
    if finished:
        run.wait()
    if stop:
        run.stop(step)


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
    run: Run | None = None,
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
    stacked = jax.device_put(np.stack([pad_to_multiple(piece, size)[0] for piece in rows]))
    validation = jax.device_put(np.stack([np.resize(piece, (VALIDATION_ROWS, *piece.shape[1:])) for piece in held_out]))
    num_rows = jax.device_put(np.array([len(piece) for piece in rows], np.int32))
    schedule = schedule.to(jnp.float32)
    measure = loss if measure is None else measure
    init_keys, validation_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    begin = {"keys": init_keys, "inputs": tuple(inputs), "network": network, "optimizer": optimizer}
    kept = None
    if run is not None:
        fingerprint = _fingerprint(keys, network, rows, held_out, schedule, num_steps, batch_size)
        kept = _restore(run, fingerprint, jax.eval_shape(partial(_initial_states, **begin)))
    if kept is None:
        state = _init_many(**begin)
        empty = np.zeros((len(rows), 0), np.float32)
        kept = _Progress(state, jax.tree.map(np.array, state.ema), empty, np.zeros((0, len(rows))))
    state, best, losses, values = kept
    taken, running = _looks(values)
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    with ProgressBar(title, num_steps, verbose) as bar:
        clock = _Clock(losses.shape[1], batch_size * len(rows))
        for done in range(losses.shape[1], num_steps, CHUNK):
            if not running.any() or (deadline is not None and done and time.monotonic() > deadline):
                break
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
            losses = np.concatenate([losses, chunk_losses], axis=1)
            value = np.asarray(
                _validate_many(jax.random.clone(validation_keys), state.ema, validation, schedule, measure=measure),
                np.float64,
            )
            improved = running & (value < np.min(values, axis=0, initial=np.inf))
            best = jax.tree.map(lambda kept, new: _where_members(improved, np.asarray(new), kept), best, state.ema)  # noqa: B023
            values = np.concatenate([values, value[None]])
            taken, running = _looks(values)
            told = {"loss": float(chunk_losses.mean()), "held-out loss": float(value.mean()), **clock(losses.shape[1])}
            bar.update(losses.shape[1], told)
            if run is not None:
                run.log(losses.shape[1], told)
                finished = not running.any() or losses.shape[1] == num_steps
                _keep(run, _Progress(state, best, losses, values), losses.shape[1], finished)
    members = range(len(rows))
    return (
        [jax.tree.map(lambda leaf: leaf[i], best) for i in members],  # noqa: B023
        [losses[i, : taken[i] * CHUNK] for i in members],
        [values[: taken[i], i].astype(np.float32) for i in members],
    )


def _looks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(looks taken, still running)`` per member, from all members' held-out errors ``[looks, members]``.

    A member is carried along after it has stopped; what it shows then does not count.
    """
    taken, running = np.zeros(values.shape[1], int), np.ones(values.shape[1], bool)
    for look in range(len(values)):
        taken += running
        running &= look - np.argmin(values[: look + 1], axis=0) < PATIENCE
    return taken, running


def _where_members(chosen, new, old):
    return np.where(chosen.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def _initial_states(keys, inputs, *, network, optimizer):
    return jax.vmap(lambda key: training.init_state(key, network, optimizer, *inputs))(keys)


_init_many = quickly_compiled(_initial_states, static_argnames=("network", "optimizer"))


@partial(quickly_compiled, static_argnames=("loss", "optimizer", "batch_size", "num_steps"), donate_argnames="states")
def _train_chunk_many(states, rows, num_rows, schedule, *, loss, optimizer, batch_size, num_steps):
    chunk = partial(training.train_chunk, loss=loss, optimizer=optimizer, batch_size=batch_size, num_steps=num_steps)
    return _over_members(lambda state, x, count: chunk(state, x, count, schedule), (states, rows, num_rows))


@partial(quickly_compiled, static_argnames="measure")
def _validate_many(keys, params, rows, schedule, *, measure):
    return _over_members(lambda key, p, x: measure(key, p, x, schedule, train=False), (keys, params, rows))


def _over_members(function, arguments):
    """``vmap`` over the leading axis; on a CPU so many members at a time that their states stay in its caches."""
    members = len(jax.tree.leaves(arguments)[0])
    at_once = min(members, MEMBERS_AT_ONCE) if jax.default_backend() == "cpu" else members
    return jax.lax.map(lambda of_one: function(*of_one), arguments, batch_size=at_once)


def _bucket(num_rows: int) -> int:
    """Multiples that leave four sizes per doubling: at most a quarter of the rows is padding."""
    return max(64, 2 ** (int(num_rows).bit_length() - 3))


class ProgressBar:
    """Steps, loss, held-out loss and time left on the terminal, the rest on a line below; nothing at all unless ``verbose``.

    In a file, which shows no bar, a line every half minute.
    """

    def __init__(self, title, num_steps, verbose):
        self.live, self.told, self.said = None, {}, time.monotonic()
        if verbose and distributed.is_main():
            from rich.console import Group
            from rich.live import Live
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.text import Text

            losses = TextColumn("{task.fields[losses]}")
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), losses, TimeRemainingColumn()
            )
            self.task = self.bar.add_task(title, total=num_steps, losses="")
            self.live = Live(get_renderable=lambda: Group(self.bar, Text(self.more(), style="dim")))

    def __enter__(self):
        if self.live:
            self.live.start()
        return self

    def update(self, step, told):
        if self.live:
            self.told |= told
            names = {"loss": "loss", "held-out loss": "held out"}
            losses = ", ".join(f"{word} {self.told[name]:.4f}" for name, word in names.items() if name in self.told)
            self.bar.update(self.task, completed=step, losses=losses)
            seen = self.live.console.is_terminal or self.live.console.is_jupyter
            if not seen and time.monotonic() - self.said > SECONDS_BETWEEN_LINES:
                task = self.bar.tasks[0]
                left = "" if task.time_remaining is None else f", {task.time_remaining / 60:.1f} minutes left at most"
                self.live.console.print(f"{task.description}: step {step} of {task.total:.0f}, {losses}{left}")
                self.said = time.monotonic()

    def more(self) -> str:
        """What the bar has no room for: loss by level, speed and memory."""
        levels = {name.rpartition(" ")[2]: value for name, value in self.told.items() if " at sigma " in name}
        parts = (
            [f"held out by sigma {', '.join(f'{sigma}: {value:.3f}' for sigma, value in levels.items())}"]
            if levels
            else []
        )
        if "rows per second" in self.told:
            parts.append(f"{self.told['rows per second']:,.0f} rows/s, {self.told['memory in GiB']:.1f} GiB")
        return "; ".join(parts)

    def __exit__(self, *_):
        if self.live:
            self.live.stop()
            # In a file rich's Live, unlike its Progress, leaves the last line open.
            if not self.live.console.is_terminal and not self.live.console.is_jupyter:
                self.live.console.print()


# ------------------------------------------------------------------------------------------------------- a detector's training


class Plan(NamedTuple):
    """A training that is prepared and has not begun: what a detector's ``_plan(X)`` returns.

    Its ``_finish(plan, params, losses, validation_losses)`` makes of the outcome what it has ``Learned``.
    """

    key: jax.Array
    network: Any
    rows: np.ndarray
    """Standardised ones to train on."""
    held_out: np.ndarray
    schedule: NoiseLevel
    inputs: tuple
    """What the network is initialised with."""
    settings: dict[str, Any]
    """``loss``, ``optimizer``, ``num_steps``, ``batch_size`` and, if any, ``measure``: as for ``train``."""
    kept: Any
    """For ``_finish``."""
    told: dict[str, Any]
    """Words by which a run directory knows this training from another."""
    by_level: training.Loss | None = None


def learn_alone(detector: Any, X: np.ndarray) -> Learned:
    """Carry out a detector's plan, on its devices and in its run directory: the ``_learn`` of every detector that trains one network."""
    plan = detector._plan(X)
    with open_run(detector.run_dir, **plan.told) as run:
        trained = train(
            *plan[:6],
            **plan.settings,
            mesh=detector.mesh,
            cut_parameters=getattr(detector, "shard_parameters", False),
            by_level=plan.by_level,
            run=run,
            verbose=detector.verbose,
            title=type(plan.network).__name__,
        )
    return _finished(detector, plan, *trained)


def _finished(detector, plan, params, losses, values) -> Learned:
    detector.losses_, detector.validation_losses_ = losses, values
    return detector._finish(plan, params)


def fit_many(detectors: Sequence[Any], datasets: Sequence[Any]) -> list[Any]:
    """Fit several detectors at once, one ``vmap``ped program: five seeds on one table, or twenty tables of one width.

    Detector i learns from ``datasets[i]`` and becomes what ``detectors[i].fit(datasets[i])`` would have made of it, up to rounding. The
    tables may differ in their number of rows; what shapes the program must agree: row shape, network, loss, rate, number of steps
    (set ``num_steps`` where the default would follow the rows), batch size and schedule. Detectors that train no network, or several,
    have nothing to share: they are fitted one after the other.

    Raises:
        ValueError: not one data set per detector, a detector with a mesh or a run directory, or settings that differ, by name;
            and whatever ``fit`` refuses.

    >>> from jaxad import DiffusionDetector
    >>> from jaxad.denoisers import MLP
    >>> rows = np.random.default_rng(0).normal(size=(60, 3))
    >>> seeds = [DiffusionDetector(MLP(width=16, depth=1), num_steps=20, random_state=seed) for seed in range(3)]
    >>> scores = [detector.score_samples(rows) for detector in fit_many(seeds, [rows] * 3)]
    """
    if len(detectors) != len(datasets) or not detectors:
        raise ValueError(
            f"need one data set per detector, got {len(detectors)} detectors and {len(datasets)} data sets"
        )
    if any(getattr(detector, name, None) is not None for detector in detectors for name in ("mesh", "run_dir")):
        raise ValueError(
            "fit_many trains on one device and keeps no state on disk: set mesh=None and run_dir=None, or fit one by one"
        )
    if not all(isinstance(detector, Estimator) and hasattr(detector, "_plan") for detector in detectors):
        return [detector.fit(X) for detector, X in zip(detectors, datasets, strict=True)]
    plans = [
        detector._plan(check_training_data(detector, X, allow_images=detector._takes_pictures))
        for detector, X in zip(detectors, datasets, strict=True)
    ]
    first = plans[0]
    for plan in plans:
        different = [name for name, value in first.settings.items() if plan.settings.get(name) != value]
        different += ["network"] * (plan.network != first.network)
        different += ["schedule"] * (
            not all(map(np.array_equal, *map(jax.tree.leaves, (first.schedule, plan.schedule))))
        )
        if different:
            raise ValueError(
                f"detectors trained together must agree in {', '.join(different)}; "
                "set it on all of them (num_steps=None goes by the number of rows)"
            )
    trained = train_many(
        jax.random.wrap_key_data(jnp.stack([jax.random.key_data(plan.key) for plan in plans])),
        first.network,
        [plan.rows for plan in plans],
        [plan.held_out for plan in plans],
        first.schedule,
        first.inputs,
        **first.settings,
        verbose=detectors[0].verbose,
        title=f"{len(detectors)} x {type(first.network).__name__}",
    )
    for detector, plan, *outcome in zip(detectors, plans, *trained, strict=True):
        detector._keep(_finished(detector, plan, *outcome))
    return list(detectors)
