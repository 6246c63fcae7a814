"""The image detector: looks at whole pictures for the score, a denoiser of pixels for the map."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.validation import check_is_fitted

from jaxad import noise, scoring, training
from jaxad.data import PictureFiles, image_batches
from jaxad.denoisers import DiT, UNet
from jaxad.denoising import Denoise, make_denoiser
from jaxad.detectors import views
from jaxad.detectors.appearance import looks
from jaxad.detectors.consensus import ConsensusDetector
from jaxad.detectors.estimator import ThresholdMixin, check_scoring_data, check_training_data, threshold_from
from jaxad.detectors.fitting import Standardiser, Stream, check_memory, hold_out, score_in_batches, train
from jaxad.generation import synthesis
from jaxad.runtime.runs import open_run
from jaxad.runtime.sharding import process_share

MOST_IN_MEMORY = 5000
"""Of more pictures than memory holds, so many are looked at as a whole: all that the one-vs-rest suites train on."""

BLOCK_ROWS = 1024
"""Pictures that are scored at once: what is made of one is many times the picture, and bytes become floats only here."""

FEWEST_PICTURES = 8

TRAINING_LEVELS = noise.log_uniform(256, sigma_min=0.05, sigma_max=10.0)
"""What the denoiser of pixels learns to undo."""

SMALLEST_SPREAD = 0.3
"""Least spread of a pixel's error, as a share of the average pixel's: a border that is always black must not shout at a speck of dust."""


def default_network(height: int, width: int, channels: int) -> Any:
    """The denoiser for pictures of this size: a DiT of 200 tokens at most where a patch size divides both sides, else a U-Net.

    >>> default_network(28, 28, 1).patch_size, default_network(224, 224, 3).patch_size, type(default_network(61, 47, 3)).__name__
    (4, 16, 'UNet')
    """
    for patch in (4, 8, 16, 32):
        if height % patch == width % patch == 0 and (height // patch) * (width // patch) <= 200:
            values = patch * patch * channels
            hidden, heads = (128, 4) if values <= 64 else (192, 6) if values <= 256 else (384, 6)
            return DiT(hidden=hidden, depth=4, heads=heads, patch_size=patch)
    stem = max(1, 2 ** round(np.log2(max(height, width) / 32)))
    return UNet(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(), head_channels=32, stem=stem)


class PictureTable(ConsensusDetector):
    """The views of ``ConsensusDetector`` on one look at pictures.

    All columns share one spread: in pixels and edges, unlike in measured columns, a small spread means that there is little to see.
    """

    def _fit_scale(self, X):
        self.mean_ = X.mean(axis=0, dtype=np.float64)
        spread = float(np.sqrt(X.var(axis=0, dtype=np.float64).mean()))
        self.spread_ = np.full(X.shape[1], spread if spread > 1e-9 else 1.0)


@partial(jax.jit, static_argnames=("network", "draws", "sigma_blur"))
def _error_maps(params, key, rows, levels, *, network, draws, sigma_blur):
    """Smoothed error per level, row and pixel, and its plain mean per level and row."""
    maps = scoring.denoising_error_map(key, make_denoiser(network, params, noise.VELOCITY), rows, levels, draws=draws)
    return scoring.smooth(maps, sigma_blur), maps.mean(axis=(2, 3))


class ImageDetector(ThresholdMixin, BaseEstimator):
    """A number per picture and a map per pixel, learned from normal pictures alone; nothing to choose.

    *The score* comes from four looks at the whole picture (``jaxad.detectors.appearance``): its pixels, its edges by direction in
    small cells and in larger ones, and its grain. Each look is a table, and each table gets the seven views of ``ConsensusDetector``:
    distances to normal rows, broken dependencies, single odd values, and what a small diffusion model trained in that space has
    learned. With ``maps`` a denoiser of pixels (DiT or U-Net) adds two views: its error at four noise levels, and the worst place
    of its map. Every view is put on a common scale by normal pictures it has not seen, and the score is their soft maximum,
    ``log mean exp z``.

    *The map* is the denoiser's squared error at each pixel, smoothed, at each level in units of what held-out normal pictures show
    at that pixel, and averaged over levels with weights. The weights come without an anomaly: rectangles of held-out normal pictures
    are spoilt (``synthesis.corrupt``), and a level weighs what it tells of them (METHODS 3.11; ``level_weights_``).

    Args:
        network: denoiser of pixels; None: ``default_network`` for the pictures' size.
        maps: False trains no denoiser of pixels: no map, a score from the looks alone, in a fraction of the time on a CPU.
        feature_fn: any function ``[rows, height, width, channels] float32 in [0, 1] -> [rows, ...]``, such as a frozen encoder's
            features: a fifth look. A detector with one cannot be saved.
        num_steps: most steps of the denoiser of pixels.
        batch_size, learning_rate: of that denoiser.
        draws: noise draws per level, shared by all pictures.
        smoothing: standard deviation of the map's blur in pixels; None: a 56th of the shorter side, 1 at least.
        mesh: devices to train and score the denoiser on (``sharding.data_mesh()``); None: the default device.
        shard_parameters: cut the training state over the mesh's devices instead of copying it to each.
        run_dir: folder (or ``runs.RunDirectory``) to keep the training's state in; a fit that was stopped or killed goes on from there.
        false_alarm_rate: share of normal pictures that ``predict`` may flag, and that may have a spot on their map.
        random_state: seed; the same seed gives the same scores.
        verbose: 1 shows a progress bar with loss and time left.

    Attributes:
        tables_: ``{look: fitted PictureTable}``.
        level_weights_, separabilities_: of the four levels, and the AUROC on synthetic defects they follow from.
        map_threshold_: value of the map that the worst place of a normal picture stays below, but for the false alarm rate.
        validation_losses_: held-out loss of the denoiser, one value per 200 steps.

    Raises:
        ValueError: from ``fit`` and ``score_samples``: fewer than eight pictures, other than ``[rows, height, width, channels]``, all
            pixels equal, NaN, another size or number of channels than in ``fit``.

    >>> X = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1)).astype(np.uint8)
    >>> detector = ImageDetector(DiT(hidden=16, depth=1, heads=2, patch_size=4), num_steps=2).fit(X)
    >>> detector.score_samples(X[:3]).shape, detector.score_maps(X[:3]).shape
    ((3,), (3, 16, 16))
    """

    def __init__(
        self,
        network=None,
        *,
        maps=True,
        feature_fn=None,
        num_steps=2000,
        batch_size=64,
        learning_rate=2e-3,
        draws=2,
        smoothing=None,
        mesh=None,
        shard_parameters=False,
        run_dir=None,
        false_alarm_rate=0.05,
        random_state=0,
        verbose=0,
    ):
        self.network = network
        self.maps = maps
        self.feature_fn = feature_fn
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.draws = draws
        self.smoothing = smoothing
        self.mesh = mesh
        self.shard_parameters = shard_parameters
        self.run_dir = run_dir
        self.false_alarm_rate = false_alarm_rate
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y=None):
        """Learn from normal pictures ``X [rows, height, width, channels]``, of any dtype and range; ``y`` is ignored.

        ``X`` may be ``data.PictureFiles``, more than memory holds: ``MOST_IN_MEMORY`` of them, drawn with the seed, are looked at
        as a whole and held out, and the denoiser of pixels is trained on all the others, read batch by batch.
        """
        shape = X.shape if isinstance(X, PictureFiles) else np.shape(X)
        if len(shape) != 4 or shape[0] < FEWEST_PICTURES:
            raise ValueError(
                f"ImageDetector needs at least {FEWEST_PICTURES} pictures [rows, height, width, channels], got shape {list(shape)}; "
                "gray pictures need a last axis of one channel, x[..., None]"
            )
        if min(self.num_steps, self.batch_size, self.draws) < 1 or (self.smoothing is not None and self.smoothing < 0):
            raise ValueError(
                f"need num_steps, batch_size, draws >= 1 and smoothing >= 0, got {self.num_steps=}, {self.batch_size=}, "
                f"{self.draws=}, {self.smoothing=}"
            )
        rng = check_random_state(self.random_state)
        files = None
        if isinstance(X, PictureFiles):
            files = X.take(rng.permutation(len(X)))
            X = files[:MOST_IN_MEMORY]
        X = check_training_data(self, X, allow_images=True).astype(np.float32)
        self.low_, self.high_ = float(X.min()), float(X.max())
        if not self.low_ < self.high_:
            raise ValueError(f"every pixel of all {len(X)} pictures is {self.low_}: there is nothing to learn from")
        seeds = rng.randint(2**31 - 1, size=3)
        learned, kept_out = hold_out(np.arange(len(X)), rng)
        rows, held_out = X[learned], X[kept_out]
        if files is not None:
            files = files.take(np.delete(np.arange(len(files)), kept_out))
        self.network_: Any = None
        if self.maps:
            self.network_ = default_network(*X.shape[1:]) if self.network is None else self.network.clone()
            how = self._how_to_train()
            sizes = {name: how[name] for name in ("loss", "optimizer", "batch_size", "mesh", "cut_parameters")}
            check_memory(self.network_, X.shape[1:], TRAINING_LEVELS, (rows[:1], np.zeros(1, np.float32)), **sizes)
        seen = self.looks(rows)
        with open_run(self.run_dir, learning_rate=self.learning_rate) as run:
            self.tables_ = {}
            for name, look in seen.items():
                part = None if run is None else run.part(name)
                self.tables_[name] = PictureTable(
                    num_networks=1, num_steps=1000, run_dir=part, random_state=int(seeds[0])
                ).fit(look)
                self.tables_[name].run_dir = None  # its work is done, and an open run cannot be saved
            if self.maps:
                part = None if run is None else run.part("denoiser")
                self._fit_denoiser(rows, held_out, files, int(seeds[1]), int(seeds[2]), part)
        self._calibrate_on(-soft_maximum(self._z_and_maps(held_out)[0]))
        return self

    def score_samples(self, X) -> np.ndarray:
        """Minus the soft maximum of all views, ``[rows]``: larger = more normal. A picture's score depends on that picture alone."""
        return np.concatenate([-soft_maximum(self._z_and_maps(block)[0]) for block in self._blocks(X)])

    def score_maps(self, X) -> np.ndarray:
        """How unusual is each pixel? ``[rows, height, width]`` float32: about 0 where it is usual, in units of the normal spread.

        A picture's map depends on that picture alone. Compare with ``map_threshold_``.

        Raises:
            ValueError: a detector fitted with ``maps=False``.
        """
        self._need_maps()
        pieces = [self.combine(*self._measured(self.standardiser_(block)))[0] for block in self._blocks(X)]
        return np.concatenate(pieces)

    def score_with_maps(self, X) -> tuple[np.ndarray, np.ndarray]:
        """``(score_samples(X), score_maps(X))`` from one pass.

        Raises:
            ValueError: a detector fitted with ``maps=False``.
        """
        self._need_maps()
        scores, maps = zip(*((-soft_maximum(z), of) for z, of in map(self._z_and_maps, self._blocks(X))), strict=True)
        return np.concatenate(scores), np.concatenate(maps)

    def scores_by_view(self, X) -> dict[str, np.ndarray]:
        """What each view says on the common scale, 0 usual and about 1.4 the upper end of normal: ``{"edges: whitened": [rows]}``."""
        pieces = [self._z_and_maps(block)[0] for block in self._blocks(X)]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def reconstruct(self, X, sigma: float = 1.0) -> np.ndarray:
        """The denoiser's estimate of pictures it sees under noise of ``sigma`` times the data's spread, in the units of ``X``.

        Raises:
            ValueError: a detector fitted with ``maps=False``, or a sigma that is not positive.
        """
        self._need_maps()
        if not sigma > 0:
            raise ValueError(f"sigma is a noise level above 0, in units of the data's spread, got {sigma}")
        key = jax.random.wrap_key_data(jnp.asarray(self.score_key_))
        level = noise.NoiseLevel(jnp.float32(1.0), jnp.float32(sigma))

        def estimate(rows):
            clean = _one_jump(self.params_, jax.random.clone(key), rows, level, network=self.network_)
            return jnp.moveaxis(clean, 0, -1)

        pieces = []
        for block in self._blocks(X):
            clean = np.moveaxis(score_in_batches(estimate, self.standardiser_(block), self.mesh), -1, 0)
            pieces.append(clean * self.standardiser_.scale + self.standardiser_.mean)
        return np.concatenate(pieces).astype(np.float32)

    def denoiser(self) -> Denoise:
        """The denoiser of pixels as a pure function of standardised pictures, for ``jaxad.scoring`` and ``jaxad.sampling``.

        Raises:
            ValueError: a detector fitted with ``maps=False``.
        """
        self._need_maps()
        return make_denoiser(self.network_, self.params_, noise.VELOCITY)

    # ------------------------------------------------------------------------------------------------------------ in fit

    def _how_to_train(self) -> dict[str, Any]:
        rate = training.adam(self.learning_rate, num_steps=self.num_steps, warmup_steps=min(50, self.num_steps // 10))
        return {
            "loss": training.simple_loss(self.network_, noise.VELOCITY),
            "optimizer": rate,
            "num_steps": self.num_steps,
            "batch_size": self.batch_size,
            "mesh": self.mesh,
            "cut_parameters": self.shard_parameters,
        }

    def _fit_denoiser(self, rows, held_out, files, train_seed, score_seed, run):
        train_key = jax.random.key(train_seed)
        self.score_key_ = np.asarray(jax.random.key_data(jax.random.key(score_seed)))
        self.standardiser_ = Standardiser.fit(rows)
        rows, held_out = self.standardiser_(rows), self.standardiser_(held_out)
        learn_from: np.ndarray | Stream = rows
        if files is not None:
            batches = image_batches(
                files,
                batch_size=self.batch_size,
                seed=train_seed,
                workers=files.workers,
                part=process_share(self.mesh),
            )
            learn_from = Stream(batches, self.standardiser_)
        self.params_, self.losses_, self.validation_losses_ = train(
            train_key,
            self.network_,
            learn_from,
            held_out,
            TRAINING_LEVELS,
            (rows[:1], np.zeros(1, np.float32)),
            **self._how_to_train(),
            by_level=training.simple_loss(self.network_, noise.VELOCITY),
            run=run,
            verbose=self.verbose,
            title=type(self.network_).__name__,
        )
        self.levels_ = noise.log_uniform(4, sigma_min=0.1, sigma_max=2.0)
        size = min(rows.shape[1:3])
        self.smoothing_ = max(1.0, size / 56) if self.smoothing is None else float(self.smoothing)
        maps, errors = self._measured(held_out)
        spread = maps.std(axis=1)
        self.map_mean_ = maps.mean(axis=1)
        self.map_spread_ = np.maximum(spread, SMALLEST_SPREAD * spread.mean(axis=(1, 2), keepdims=True)) + 1e-9
        self.error_mean_, self.error_spread_ = errors.mean(axis=1), errors.std(axis=1) + 1e-9
        # What does each level see of synthetic defects? Judged as the map will be: by the worst place.
        spoilt, _ = synthesis.corrupt(jax.random.fold_in(train_key, 1), jnp.asarray(held_out))
        worst = [self._standard_maps(seen).max(axis=(2, 3)) for seen in (maps, self._measured(np.asarray(spoilt))[0])]
        self.separabilities_ = np.asarray(synthesis.separability(*map(jnp.asarray, worst)))
        self.level_weights_ = np.asarray(synthesis.level_weights(jnp.asarray(self.separabilities_)))
        self.centre_, self.scale_ = np.zeros(2), np.ones(2)
        combined, _ = self.combine(maps, errors)
        worst = combined.max(axis=(1, 2)).astype(np.float64)
        self.map_threshold_ = -threshold_from(-worst, self.false_alarm_rate)
        stats = [views.centre_and_scale(values, 0.97) for values in (self._standard_errors(errors), worst)]
        self.centre_, self.scale_ = np.array(stats).T

    # ------------------------------------------------------------------------------------------------------------ scoring

    def looks(self, X) -> dict[str, np.ndarray]:
        """What the tables see of pictures ``X``: ``{look: [rows, values]}``."""
        unit = (np.asarray(X, np.float32) - self.low_) / (self.high_ - self.low_)
        seen = looks(unit)
        if self.feature_fn is not None:
            given = [np.asarray(self.feature_fn(unit[rows])) for rows in gen_batches(len(unit), 256)]
            seen["features"] = np.concatenate([piece.reshape(len(piece), -1) for piece in given]).astype(np.float32)
        return seen

    def measure(self, rows: Float[Array, "rows height width channels"]):
        """Pure, of standardised pictures: ``(smoothed error maps [levels, rows, height, width], errors [levels, rows])``."""
        return _error_maps(
            self.params_,
            jax.random.wrap_key_data(jnp.asarray(self.score_key_)),
            rows,
            self.levels_.to(jnp.float32),
            network=self.network_,
            draws=self.draws,
            sigma_blur=self.smoothing_,
        )

    def combine(self, maps, errors):
        """What ``measure`` gives, against normal pictures: ``(map [rows, height, width], {"denoiser: error" and "place": z [rows]})``."""
        combined = np.tensordot(self.level_weights_, self._standard_maps(maps), axes=1).astype(np.float32)
        values = {"error": self._standard_errors(errors), "place": combined.max(axis=(1, 2))}
        z = {
            f"denoiser: {name}": np.arcsinh(2 * (value - centre) / scale)
            for (name, value), centre, scale in zip(values.items(), self.centre_, self.scale_, strict=True)
        }
        return combined, z

    def _blocks(self, X):
        check_is_fitted(self)
        X = X if isinstance(X, PictureFiles) else np.asarray(X)
        if X.ndim != 4 or not len(X):  # the check below says what is wrong
            check_scoring_data(self, X)
        for rows in gen_batches(len(X), BLOCK_ROWS):
            yield check_scoring_data(self, X[rows]).astype(np.float32)

    def _z_and_maps(self, X):
        z = {}
        for name, look in self.looks(X).items():
            z |= {f"{name}: {view}": values for view, values in self.tables_[name].scores_by_view(look).items()}
        if self.network_ is None:
            return z, None
        maps, of_denoiser = self.combine(*self._measured(self.standardiser_(X)))
        return z | of_denoiser, maps

    def _measured(self, rows):
        """``measure`` in batches, on the host."""

        def flat(batch):
            maps, errors = self.measure(batch)
            return jnp.concatenate([jnp.moveaxis(maps, 1, -1).reshape(-1, len(batch)), errors])

        values, levels = score_in_batches(flat, rows, self.mesh), len(self.levels_)
        return np.moveaxis(values[:-levels].reshape(levels, *rows.shape[1:3], len(rows)), -1, 1), values[-levels:]

    def _standard_maps(self, maps):
        return (maps - self.map_mean_[:, None]) / self.map_spread_[:, None]

    def _standard_errors(self, errors):
        return self.level_weights_ @ ((errors - self.error_mean_[:, None]) / self.error_spread_[:, None])

    def _need_maps(self):
        check_is_fitted(self)
        if self.network_ is None:
            raise ValueError(
                "this detector was fitted with maps=False and has no denoiser of pixels; fit one with maps=True"
            )


@partial(jax.jit, static_argnames="network")
def _one_jump(params, key, rows, level, *, network):
    noisy = noise.add_noise(rows, jax.random.normal(key, (1, *rows.shape[1:])), level)
    return make_denoiser(network, params, noise.VELOCITY)(noisy, level)


def soft_maximum(z: dict[str, np.ndarray]) -> np.ndarray:
    """``log mean exp`` over the views of ``scores_by_view``: the anomaly score, ``-score_samples``."""
    return np.log(np.mean(np.exp(np.stack(list(z.values()))), axis=0))
