"""The image detector: looks at whole pictures for the score, a denoiser of pixels for the map."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.validation import check_is_fitted

from jaxad import noise, scoring, training
from jaxad.data import PictureFiles, image_batches
from jaxad.denoisers import DiT, UNet
from jaxad.denoising import Denoise, make_denoiser
from jaxad.detectors import appearance, views
from jaxad.detectors.consensus import Consensus, ConsensusDetector
from jaxad.detectors.estimator import (
    Estimator,
    Learned,
    apply,
    check_scoring_data,
    check_training_data,
    in_batches,
    on_device,
    share,
)
from jaxad.detectors.evidence import Evidence
from jaxad.detectors.fitting import Stream, check_memory, hold_out, train
from jaxad.detectors.scorer import Scorer, static
from jaxad.generation import synthesis
from jaxad.metrics.calibration import threshold
from jaxad.runtime.runs import open_run
from jaxad.runtime.sharding import process_share
from jaxad.standardiser import FAR, Standardiser

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

    def _scale_of(self, X, layout=None):
        spread = float(np.sqrt(X.var(axis=0, dtype=np.float64).mean()))
        return Standardiser(
            X.mean(axis=0, dtype=np.float64), np.full(X.shape[1], spread if spread > 1e-9 else 1.0), FAR
        )


class Look(NamedTuple):
    """One look at pictures, as a table: its own scale, and the consensus on it."""

    mean: Float[Array | np.ndarray, "..."]
    spread: Float[Array | np.ndarray, "..."]
    consensus: Consensus

    def z(self, seen: Float[Array, "batch values"]) -> Float[Array, "views batch"]:
        """What each view of this look says."""
        return self.consensus.z((seen - self.mean[None]) / self.spread[None])


class Features(NamedTuple):
    """A function of pictures that a user has given, and what it takes to call it from a compiled program."""

    function: Any
    width: int
    is_jax: bool

    def __call__(self, unit: Float[Array, "batch height width channels"]) -> Float[Array, "batch width"]:
        """Its features, flat."""
        if self.is_jax:
            return self.function(unit).reshape(len(unit), -1).astype(jnp.float32)
        like = jax.ShapeDtypeStruct((unit.shape[0], self.width), jnp.float32)
        return jax.pure_callback(self.on_host, like, unit, vmap_method="sequential")

    def on_host(self, unit) -> np.ndarray:
        """The same outside a program."""
        return np.asarray(self.function(np.asarray(unit)), np.float32).reshape(len(unit), -1)

    @classmethod
    def of(cls, function, unit: np.ndarray) -> "Features":
        """Of a function, tried on one picture. What JAX can trace is part of the program, anything else is called back."""
        try:
            is_jax = isinstance(jax.eval_shape(function, jnp.asarray(unit[:1])), jax.ShapeDtypeStruct)
        except (jax.errors.JAXTypeError, TypeError, AttributeError, ValueError, RuntimeError):
            is_jax = False
        return cls(function, int(np.asarray(function(unit[:1])).size), is_jax)


def soft_maximum(z: Float[Array, "views batch"]) -> Float[Array, " batch"]:
    """``log mean exp`` over the views."""
    return jax.nn.logsumexp(z, axis=0) - jnp.log(z.shape[0])


class Looks(Scorer):
    """The soft maximum of all views on all looks at a picture, whose values lie in [0, 1]."""

    tables: dict[str, Look]
    features: Features | None = static()

    def __call__(self, rows: Float[Array, "batch height width channels"]) -> Float[Array, " batch"]:
        """Larger = more anomalous."""
        return soft_maximum(jnp.concatenate(list(self.z(rows).values())))

    def z(self, rows: Float[Array, "batch height width channels"]) -> dict[str, Float[Array, "views batch"]]:
        """What each look's views say, on the common scale."""
        seen = see(rows, self.features)
        return {name: self.tables[name].z(seen[name]) for name in seen}


class PixelErrors(Scorer):
    """A denoiser's error on standardised pictures: smoothed maps ``[batch, levels, height, width]``, and their plain means."""

    params: Any
    key: Any
    levels: noise.NoiseLevel
    network: Any = static()
    draws: int = static()
    smoothing: float = static()

    def __call__(self, rows):
        """``(maps, errors [batch, levels])``."""
        key = jax.random.wrap_key_data(self.key)
        settings: dict[str, Any] = {"draws": self.draws, "memory_budget": share(scoring.MEMORY_BUDGET, rows)}
        maps = scoring.denoising_error_map(key, self.denoiser(), rows, self.levels, **settings)
        return jnp.moveaxis(scoring.smooth(maps, self.smoothing), 0, 1), maps.mean(axis=(2, 3)).T

    def denoiser(self) -> Denoise:
        """Of standardised pictures."""
        return make_denoiser(self.network, self.params, noise.VELOCITY)


class PixelViews(Scorer):
    """Those errors against what normal pictures show: a map, and two views, the error and the worst place of the map."""

    errors: PixelErrors
    mean: Float[Array | np.ndarray, "..."]
    spread: Float[Array | np.ndarray, "..."]
    """Of the channels, from pictures in [0, 1] to standardised ones."""
    map_mean: Float[Array | np.ndarray, "..."]
    map_spread: Float[Array | np.ndarray, "..."]
    error_mean: Float[Array | np.ndarray, "..."]
    error_spread: Float[Array | np.ndarray, "..."]
    weights: Float[Array | np.ndarray, "..."]
    """Of the levels."""
    evidence: Evidence
    """Of the two views."""

    def __call__(self, rows: Float[Array, "batch height width channels"]) -> Float[Array, "2 batch"]:
        """The two views of pictures in [0, 1], on the common scale."""
        return self.both(rows)[1]

    def both(self, rows):
        """``(map [batch, height, width], views [2, batch])``."""
        standard = (rows - self.mean[None, None, None]) / self.spread[None, None, None]
        combined, values = self.measured(*self.errors(standard))
        return combined, self.evidence(values.T)

    def measured(self, maps, errors):
        """``(map, error and worst place [2, batch])`` of a denoiser's errors, not yet on the common scale."""
        combined = jnp.einsum("l,blhw->bhw", self.weights, self.standard_maps(maps))
        error = ((errors - self.error_mean[None]) / self.error_spread[None]) @ self.weights
        return combined, jnp.stack([error, jnp.max(combined, axis=(1, 2))])

    def standard_maps(self, maps):
        """In units of what normal pictures show at that pixel."""
        return (maps - self.map_mean[None]) / self.map_spread[None]


class LooksAndPixels(Looks):
    """With a denoiser of pixels, which adds its two views, and can tell where."""

    pixels: PixelViews

    def z(self, rows):
        """What each look's views say, and those of the denoiser."""
        return super().z(rows) | {"denoiser": self.pixels(rows)}

    def where(self, rows: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width"]:
        """About 0 where a pixel is usual, in units of the normal spread."""
        return self.pixels.both(rows)[0]


def see(unit, features: Features | None) -> dict[str, Any]:
    """All looks at pictures in [0, 1]: ``{name: [batch, values]}``."""
    seen = appearance.looks(unit)
    return seen if features is None else seen | {"features": features(unit)}


class ImageDetector(Estimator):
    """A number per picture and a map per pixel, learned from normal pictures alone; nothing to choose.

    *The score* comes from four looks at the whole picture (``jaxad.detectors.appearance``): its pixels, its edges by direction in
    small cells and in larger ones, and its grain. Each look is a table, and each table gets the eleven views of ``ConsensusDetector``:
    distances to normal rows, broken dependencies, single odd values, and what a small diffusion model trained in that space has
    learned. With ``maps`` a denoiser of pixels (DiT or U-Net) adds two views: its error at four noise levels, and the worst place
    of its map. What a view says is evidence, minus the logarithm of a p-value among normal pictures it has not seen, and the score is
    the soft maximum of the evidence, ``log mean exp``: minus the logarithm of the harmonic mean of the p-values (Wilson 2019).

    *The map* is the denoiser's squared error at each pixel, smoothed, at each level in units of what held-out normal pictures show
    at that pixel, and averaged over levels with weights. The weights come without an anomaly: rectangles of held-out normal pictures
    are spoilt (``synthesis.corrupt``), and a level weighs what it tells of them (METHODS 3.11; ``level_weights_``).

    Args:
        network: denoiser of pixels; None: ``default_network`` for the pictures' size.
        maps: False trains no denoiser of pixels: no map, a score from the looks alone, in a fraction of the time on a CPU.
        feature_fn: any function ``[rows, height, width, channels] float32 in [0, 1] -> [rows, ...]``, such as a frozen encoder's
            features: a fifth look. What JAX can trace becomes part of the scorer, anything else is called back. A detector with one
            cannot be saved.
        num_steps: most steps of the denoiser of pixels.
        max_seconds: its training stops after this, even if it could go on; None: never. A limit that strikes makes the result depend on
            the machine's speed.
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
        scorer_: ``Looks``, with ``maps`` ``LooksAndPixels``; it sees pictures whose values lie in [0, 1].
        pixels_: the scale of the denoiser of pixels.
        level_weights_, separabilities_: of the four levels, and the AUROC on synthetic defects they follow from.
        where_threshold_: value of the map that the worst place of a normal picture stays below, but for the false alarm rate.
        validation_losses_: held-out loss of the denoiser, one value per 200 steps.

    Raises:
        ValueError: from ``fit`` and ``score_samples``: fewer than eight pictures, other than ``[rows, height, width, channels]``, all
            pixels equal, NaN, another size or number of channels than in ``fit``.

    >>> X = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1)).astype(np.uint8)
    >>> detector = ImageDetector(DiT(hidden=16, depth=1, heads=2, patch_size=4), num_steps=2).fit(X)
    >>> detector.score_samples(X[:3]).shape, detector.where(X[:3]).shape
    ((3,), (3, 16, 16))
    """

    network: Any = dataclasses.field(default=None, kw_only=False)
    maps: bool = True
    feature_fn: Any = None
    num_steps: int = 2000
    max_seconds: float | None = None
    batch_size: int = 64
    learning_rate: float = 2e-3
    draws: int = 2
    smoothing: float | None = None
    mesh: Any = None
    shard_parameters: bool = False
    run_dir: Any = None
    false_alarm_rate: float = 0.05
    random_state: Any = 0
    verbose: int = 0

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
        network: Any = None
        if self.maps:
            network = default_network(*X.shape[1:]) if self.network is None else self.network.clone()
            how = self._how_to_train(network)
            sizes = {name: how[name] for name in ("loss", "optimizer", "batch_size", "mesh", "cut_parameters")}
            check_memory(network, X.shape[1:], TRAINING_LEVELS, (rows[:1], np.zeros(1, np.float32)), **sizes)
        # The scorer sees pictures in [0, 1]; values beyond those of training stay beyond.
        channels = X.shape[-1]
        unit = Standardiser(np.full(channels, self.low_), np.full(channels, self.high_ - self.low_))
        features = None if self.feature_fn is None else Features.of(self.feature_fn, unit(rows[:1]))
        seen = self._look(rows, unit, features)
        with open_run(self.run_dir, learning_rate=self.learning_rate) as run:
            tables = {}
            for name, look in seen.items():
                part = None if run is None else run.part(name)
                # Nothing is left out: the looks are measured on the same pictures.
                settings = {"contamination": 0.0, "random_state": int(seeds[0])}
                table = PictureTable(num_networks=1, num_steps=1000, run_dir=part, **settings).fit(look)
                mean, spread, _ = table.standardiser_
                tables[name] = Look(mean.astype(np.float32), spread.astype(np.float32), table.scorer_)
            if self.maps:
                part = None if run is None else run.part("denoiser")
                pixels = self._fit_denoiser(rows, held_out, files, int(seeds[1]), int(seeds[2]), part, network, unit)
                scorer = LooksAndPixels(tables, features, pixels)
            else:
                scorer = Looks(tables, features)
        normal = in_batches(on_device(scorer), held_out, prepare=unit, mesh=self.mesh)
        return self._keep(Learned(unit, scorer, normal))

    def scores_by_view(self, X) -> dict[str, np.ndarray]:
        """The evidence of each view, minus the logarithm of the share of normal pictures as far out: ``{"edges: whitened": [rows]}``."""
        check_is_fitted(self)
        found = {}
        for look, z in self._scored(X, apply, Partial(_rows_of_z, self.scorer_)).items():
            names = ("error", "place") if look == "denoiser" else (*views.NAMES, "features", "norms")
            found |= {f"{look}: {name}": values for name, values in zip(names, z.T, strict=False)}
        return found

    def reconstruct(self, X, sigma: float = 1.0) -> np.ndarray:
        """The denoiser's estimate of pictures it sees under noise of ``sigma`` times the data's spread, in the units of ``X``.

        Raises:
            ValueError: a detector fitted with ``maps=False``, or a sigma that is not positive.
        """
        self._check_tells_where()
        if not sigma > 0:
            raise ValueError(f"sigma is a noise level above 0, in units of the data's spread, got {sigma}")
        estimate = Partial(
            _one_jump, self.scorer_.pixels.errors, noise.NoiseLevel(np.ones(()), np.array(sigma)).to(jnp.float32)
        )
        clean = [in_batches(estimate, block, prepare=self.pixels_, mesh=self.mesh) for block in self._blocks(X)]
        return self.pixels_.undo(np.concatenate(clean)).astype(np.float32)

    def denoiser(self) -> Denoise:
        """The denoiser of pixels as a pure function of pictures standardised by ``pixels_``, for ``jaxad.scoring`` and ``jaxad.sampling``.

        Raises:
            ValueError: a detector fitted with ``maps=False``.
        """
        self._check_tells_where()
        return self.scorer_.pixels.errors.denoiser()

    # ------------------------------------------------------------------------------------------------------------ in fit

    def _how_to_train(self, network) -> dict[str, Any]:
        rate = training.adam(self.learning_rate, num_steps=self.num_steps, warmup_steps=min(50, self.num_steps // 10))
        return {
            "loss": training.simple_loss(network, noise.VELOCITY),
            "optimizer": rate,
            "num_steps": self.num_steps,
            "batch_size": self.batch_size,
            "mesh": self.mesh,
            "cut_parameters": self.shard_parameters,
        }

    def _look(self, X, unit: Standardiser, features: Features | None) -> dict[str, np.ndarray]:
        """What the tables see of pictures: ``{look: [rows, values]}``."""
        seen = in_batches(Partial(appearance.looks), X, prepare=unit)
        if features is not None:
            seen["features"] = np.concatenate([features.on_host(unit(X[rows])) for rows in gen_batches(len(X), 256)])
        return seen

    def _fit_denoiser(self, rows, held_out, files, train_seed, score_seed, run, network, unit) -> PixelViews:
        train_key = jax.random.key(train_seed)
        self.pixels_ = Standardiser.fit(rows)
        rows, held_out = self.pixels_(rows), self.pixels_(held_out)
        learn_from: np.ndarray | Stream = rows
        if files is not None:
            batches = image_batches(
                files,
                batch_size=self.batch_size,
                seed=train_seed,
                workers=files.workers,
                part=process_share(self.mesh),
            )
            learn_from = Stream(batches, self.pixels_)
        params, self.losses_, self.validation_losses_ = train(
            train_key,
            network,
            learn_from,
            held_out,
            TRAINING_LEVELS,
            (rows[:1], np.zeros(1, np.float32)),
            **self._how_to_train(network),
            by_level=training.simple_loss(network, noise.VELOCITY),
            max_seconds=self.max_seconds,
            run=run,
            verbose=self.verbose,
            title=type(network).__name__,
        )
        smoothing = max(1.0, min(rows.shape[1:3]) / 56) if self.smoothing is None else float(self.smoothing)
        levels = noise.log_uniform(4, sigma_min=0.1, sigma_max=2.0).to(jnp.float32)
        key = np.asarray(jax.random.key_data(jax.random.key(score_seed)))
        settings = {"network": network, "draws": self.draws, "smoothing": smoothing}
        measure = on_device(PixelErrors(params, key, levels, **settings))
        maps, errors = in_batches(measure, held_out, mesh=self.mesh)
        spread = maps.std(axis=0)
        pixels = PixelViews(
            errors=measure,
            mean=np.asarray((self.pixels_.mean - unit.mean) / unit.scale, np.float32),
            spread=np.asarray(self.pixels_.scale / unit.scale, np.float32),
            map_mean=maps.mean(axis=0),
            map_spread=np.maximum(spread, SMALLEST_SPREAD * spread.mean(axis=(1, 2), keepdims=True)) + 1e-9,
            error_mean=errors.mean(axis=0),
            error_spread=errors.std(axis=0) + 1e-9,
            weights=np.zeros(len(levels), np.float32),
            evidence=Evidence.fit([np.zeros(1)] * 2),
        )
        # What does each level see of synthetic defects? Judged as the map will be: by the worst place.
        spoilt, _ = synthesis.corrupt(jax.random.fold_in(train_key, 1), jnp.asarray(held_out))
        of_spoilt = in_batches(measure, np.asarray(spoilt), mesh=self.mesh)[0]
        worst = [jnp.asarray(pixels.standard_maps(seen).max(axis=(2, 3)).T) for seen in (maps, of_spoilt)]
        self.separabilities_ = np.asarray(synthesis.separability(*worst))
        self.level_weights_ = np.asarray(synthesis.level_weights(jnp.asarray(self.separabilities_)))
        pixels = dataclasses.replace(pixels, weights=self.level_weights_)
        _, values = pixels.measured(jnp.asarray(maps), jnp.asarray(errors))
        error, worst = np.asarray(values, np.float64)
        # Of few pictures, which support no rate, the worst of all: a map is to be looked at in any case.
        self.where_threshold_ = float(min(-threshold(-worst, self.false_alarm_rate), worst.max()))
        return dataclasses.replace(pixels, evidence=Evidence.fit([error, worst]))

    # ------------------------------------------------------------------------------------------------------------ scoring

    def _blocks(self, X):
        check_is_fitted(self)
        X = X if isinstance(X, PictureFiles) else np.asarray(X)
        if X.ndim != 4 or not len(X):  # the check below says what is wrong
            check_scoring_data(self, X)
        for rows in gen_batches(len(X), BLOCK_ROWS):
            yield check_scoring_data(self, X[rows])

    def _scored(self, X, call, function: Any = None):
        # What is made of a picture is many times the picture, and bytes become floats only here.
        pieces = [super(ImageDetector, self)._scored(block, call, function) for block in self._blocks(X)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)

    def _why_no_where(self) -> str:
        return "it was fitted with maps=False and has no denoiser of pixels; fit one with maps=True"


def _rows_of_z(scorer, rows):
    return {look: z.T for look, z in scorer.z(rows).items()}


def _one_jump(errors, level, rows):
    key = jax.random.wrap_key_data(errors.key)
    noisy = noise.add_noise(rows, jax.random.normal(key, (1, *rows.shape[1:])), level)
    return errors.denoiser()(noisy, level)
