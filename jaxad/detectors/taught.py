"""The cycle as an estimator: a detector, and a head trained on generated anomalies where that is shown to help."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float
from sklearn.base import clone
from sklearn.utils import check_random_state

from jaxad import noise, sampling, scoring
from jaxad.denoisers import MLP
from jaxad.detectors.consensus import ConsensusDetector
from jaxad.detectors.diffusion import DiffusionDetector
from jaxad.detectors.estimator import (
    Estimator,
    Learned,
    apply,
    check_training_data,
    in_batches,
    rescaled,
)
from jaxad.detectors.scorer import Scorer, root
from jaxad.detectors.search import known as known_rows
from jaxad.detectors.search import squared_distances
from jaxad.generation import Generated, Kind, check_examples, cycle, nng_mix, quality, several
from jaxad.metrics import calibration
from jaxad.standardiser import FARTHEST, Standardiser

FEWEST_ROWS = 100
"""Below that p-values are too coarse for the band, and too few rows judge."""
FEWEST_FOR_DIRECTION = 20
"""Below that nothing is learned from known anomalies either."""
GENERATED_ROWS = 2048
MOST_ROWS = 2000
"""Normal rows, of each of the two parts, that the head learns from, and that judge it."""
LEAST_GAIN = 0.002
"""AUROC that a further round has to add."""
MOST_ARTEFACT = 0.7
"""AUROC with which a head may tell reconstructed normal rows from the rows themselves, if the first detector does not either."""
ANOMALY_FOLDS = 5
ROW_FOLDS = 5
"""Of fewer rows than ``FEWEST_ROWS``, none of which can be set aside."""
FEATURE_LEVELS = noise.log_uniform(6, sigma_min=0.05, sigma_max=2.0)
FARTHEST_FEATURE = 10.0
"""Features are clipped there; they are on a scale of 1."""


class Headed(Scorer):
    """What is learned from anomalies: a direction, a head, both, of columns and denoising errors; their mean with the first detector's."""

    first: Any
    first_scale: Float[Array | np.ndarray, "..."]
    """Centre and spread of its scores, as of the others'."""
    features: "Features"
    parts: tuple[tuple[Any, Any], ...]
    """Each a direction ``[features]`` or the parameters of a head, and its scale."""

    def __call__(self, rows: Float[Array, "batch columns"]) -> Float[Array, " batch"]:
        """The mean of all places on the common scale."""
        seen = self.features(rows)
        places = [place(self.first(rows), self.first_scale)]
        places += [place(asked(part, seen), scale) for part, scale in self.parts]
        return jnp.mean(jnp.stack(places), axis=0)


class Features(Scorer):
    """Columns, and if there is a denoiser the logarithm of its error at every level, standardised: ``[batch, columns + levels]``."""

    denoiser: Any
    """A ``DenoisingScore`` at the levels of the features, or None."""
    mean: Float[Array | np.ndarray, "..."]
    scale: Float[Array | np.ndarray, "..."]
    """Of the logarithms."""

    def __call__(self, rows: Float[Array, "batch columns"]) -> Float[Array, "batch features"]:
        """Features on a scale of about 1."""
        found = rows
        if self.denoiser is not None:
            errors = (log_errors(self.denoiser, rows) - self.mean[None]) / self.scale[None]
            found = jnp.concatenate([rows, errors], axis=1)
        return jnp.clip(found, -FARTHEST_FEATURE, FARTHEST_FEATURE)


def log_errors(denoiser, rows):
    """``[batch, levels]``."""
    return jnp.log(denoiser.by_level(rows) + 1e-6).T


def place(score, scale):
    """``cycle.Scale`` of a score."""
    return jnp.arcsinh(2 * (score - scale[0]) / scale[1])


def asked(part, features):
    """Of features, a direction's or a head's score."""
    return cycle.head_logits(part, features) if isinstance(part, list) else features @ part


def make_anomalies(
    denoiser: Any,
    scale: Standardiser,
    count: int,
    *,
    seed: int = 0,
    strength: float = 1.0,
    normals: np.ndarray | None = None,
) -> Generated:
    """``count`` anomalies of the kinds of the cycle, in the units of the data, unfiltered; ``[count, features]``, numpy arrays.

    Args:
        denoiser: what has ``denoiser()``: the scorer of a ``DiffusionDetector``, a ``ConsensusDetector`` or a ``CycleDetector``.
        scale: of the rows that the denoiser knows.
        strength: 1 is the middle of each kind's range.
        normals: normal rows to begin from, standardised; None: rows that the denoiser makes of noise.

    Raises:
        ValueError: fewer rows than kinds, a strength that is not in (0, 10].
    """
    if not 0 < strength <= 10:
        raise ValueError(f"a strength lies in (0, 10], 1 is the middle of each kind's range, got {strength}")
    key = jax.random.key(seed)
    if normals is None:
        shape = (min(max(count, 500), MOST_ROWS), len(scale.mean))
        normals = np.asarray(apply(Partial(_sampled, denoiser, jax.random.fold_in(key, 1)), jnp.zeros(shape)))
    made = _made(denoiser, key, jnp.asarray(np.resize(normals, (count, normals.shape[1]))), normals, strength)
    return made._replace(x=scale.undo(made.x))


def _made(denoiser, key, rows, normals, strength) -> Any:
    # A band of p-values needs 39 rows to have one in it.
    make = _guided if len(normals) >= 40 else _unguided
    function = Partial(make, denoiser, jax.random.key_data(key), jnp.asarray(normals[:500]), np.float32(strength))
    return jax.tree.map(np.asarray, apply(function, rows))


def _guided(denoiser, key_data, normals, strength, rows, guided=True):
    denoise = denoiser.denoiser()
    variance_key, score_key, made_key = jax.random.split(jax.random.wrap_key_data(key_data), 3)

    def score(rows):
        errors = scoring.denoising_error(score_key, denoise, rows, FEATURE_LEVELS.to(rows.dtype))
        return jnp.mean(jnp.log(errors + 1e-6), axis=0)

    guide = {"score": score, "calibration_scores": score(normals)} if guided else {}
    made = cycle.generators(denoise, normals, variance_key, strength, **guide)
    return several(made_key, rows, list(made.values()))


def _unguided(denoiser, key_data, normals, strength, rows):
    return _guided(denoiser, key_data, normals, strength, rows, guided=False)


def _sampled(denoiser, key, like):
    """Rows made of noise, as many as ``like`` has."""
    noise_key, path_key = jax.random.split(key)
    path = cycle.PATH.to(like.dtype)
    noisy = jnp.asarray(path.sigma)[-1] * jax.random.normal(noise_key, like.shape, like.dtype)
    return sampling.ancestral(path_key, denoiser.denoiser(), noisy, path)


def _reconstructed(denoiser, key, rows):
    return cycle.reconstructed(key, denoiser.denoiser(), rows)


def _fresh(detector) -> Any:
    return clone(detector)


class _Rows(NamedTuple):
    """What is known of some rows: the first detector's score on its scale, larger = more anomalous, and the features for the rest."""

    first: np.ndarray
    features: np.ndarray

    def take(self, which) -> "_Rows":
        return _Rows(self.first[which], self.features[which])


class _Part(NamedTuple):
    """A score of features beside the first detector's, and its scale among normal rows that it was not fitted on."""

    score: Callable[[Any], np.ndarray]
    scale: cycle.Scale

    @classmethod
    def of(cls, score, stage: "_Stage") -> "_Part":
        return cls(score, cycle.Scale.fit(score(stage.held_out.features)))

    def __call__(self, features) -> np.ndarray:
        return self.scale(self.score(features))


def _scores(rows: _Rows, parts) -> np.ndarray:
    """``[1 + parts, rows]``, all on one scale; their mean is the score."""
    return np.stack([rows.first, *(part(rows.features) for part in parts)])


def _folds(anomalies: int) -> list[np.ndarray]:
    """Which known anomalies are left out together, for each turn."""
    count = min(ANOMALY_FOLDS, anomalies)
    return [np.arange(anomalies)[i::count] for i in range(count)]


def _along(direction, features):
    return features @ direction


class _Stage(NamedTuple):
    """What every round needs of the normal rows, most of which the first detector and the denoiser were fitted on."""

    normals: np.ndarray  # standardised, those fitted on
    features: np.ndarray  # of these
    held_out: _Rows
    calibration: np.ndarray  # the first detector's scores of rows it was not fitted on
    seen: Callable[[np.ndarray], _Rows]


class _Found(NamedTuple):
    gain: float
    head: Any
    part: _Part


class _Known(NamedTuple):
    """Known anomalies, the folds to leave out in turns, and for each fold the trusted parts that were made without it."""

    rows: np.ndarray
    seen: _Rows
    folds: list[np.ndarray]
    trusted: list[list[_Part]]

    @classmethod
    def of(cls, rows, stage: _Stage) -> "_Known":
        folds = _folds(len(rows)) if len(rows) > 1 else []
        return cls(rows, stage.seen(rows), folds, [[] for _ in folds])

    def gains(self, stage: _Stage, left_out: list[_Part]) -> list[float]:
        """For every known anomaly, what the part that was made without it adds."""
        found = []
        for fold, trusted, part in zip(self.folds, self.trusted, left_out, strict=True):
            normal = _scores(stage.held_out, (*trusted, part))
            found += [cycle.gain(normal, _scores(self.seen.take([i]), (*trusted, part))) for i in fold]
        return found


class CycleDetector(Estimator):
    """A detector that generates anomalies, learns from the hard ones, and keeps what it learned only if that helps.

    ``fit`` sets a fifth of the normal rows aside; a detector and a denoiser are fitted on the rest. Each round generates anomalies of up
    to seven kinds, keeps those that are hard (conformal p-value in [.001, .05]), new and no normals in disguise, and trains a small head
    to tell them from normal rows, on the rows and their denoising errors. The head is judged on whole *kinds* of anomalies that it has
    not seen; a gain counts as far as it exceeds twice its standard error. If it is not there, or if the head has learned to see the
    generator (it tells *reconstructed* normal rows from the rows), the cycle **fails closed**: scores are those of the first detector
    fitted alone, and ``reason_`` says why. Else a score is the mean of both on a common scale. METHODS 11.7.

    A few known anomalies teach a direction (``cycle.direction``, on the same features), which joins that mean unless those left out in
    turns prove that it harms; a head then learns from known and generated ones, and has to prove, on known ones it has not seen, that it
    adds to both. Of 20 to 99 normal rows only the direction is learned, and on the columns alone; each row is scored by detectors and
    directions of the other folds, since none can be set aside.

    Args:
        detector: the first detector; anything of ``jaxad`` that keeps ``calibration_scores_``; None: ``ConsensusDetector``.
        rounds: most rounds; a round that adds less than .002 of AUROC is the last.
        num_steps: most training steps of the denoiser.
        false_alarm_rate: share of normal rows that ``predict`` may flag.
        random_state: seed.
        verbose: 1 shows progress bars.

    Attributes:
        first_: the first detector, fitted on all rows.
        accepted_: does anything count beside the first detector? reason_: what, and why, in one sentence.
        known_gain_: what the direction adds, in AUROC, on known anomalies left out in turns; None without any.
        rounds_: for each round its strength, rows kept of every kind, accuracy of the two-sample test, gains, and ``artefact``.

    Raises:
        ValueError: from ``fit`` and ``score_samples`` for bad data; anomalies of another width or identical to normal rows.

    >>> X = np.random.default_rng(0).normal(size=(60, 3))
    >>> detector = CycleDetector().fit(X)
    >>> detector.accepted_, detector.reason_
    (False, 'the cycle needs 100 normal rows, got 60: the first detector stands alone')
    """

    detector: Any = dataclasses.field(default=None, kw_only=False)
    rounds: int = 2
    num_steps: int = 2000
    false_alarm_rate: float = 0.05
    random_state: Any = 0
    verbose: int = 0

    def fit(self, X, y=None, *, anomalies=None):
        """Learn from normal rows ``X [rows, features]``, and from known ``anomalies [few, features]``, if any; ``y`` is ignored."""
        X = check_training_data(self, X)
        if self.rounds < 1:
            raise ValueError(f"need rounds >= 1, got {self.rounds=}")
        few = None
        if anomalies is not None:
            few = np.asarray(anomalies, np.float64)
            if few.ndim != 2 or few.shape[1] != X.shape[1] or not len(few) or not np.isfinite(few).all():
                raise ValueError(
                    f"known anomalies are finite rows of the {X.shape[1]} columns of X, got shape {list(few.shape)}"
                )
            check_examples(few, X)
        rng = check_random_state(self.random_state)
        base: Any = ConsensusDetector(random_state=0) if self.detector is None else self.detector
        if not isinstance(base, Estimator):
            raise ValueError(
                f"the cycle needs the scores of held-out normal rows, which {type(base).__name__} does not keep; "
                "take a detector of jaxad"
            )
        self.rounds_, self.accepted_, self.known_gain_ = [], False, None
        for name in ("denoiser_", "columns_", "direction_", "head_"):  # of an earlier fit
            vars(self).pop(name, None)
        self.first_ = _fresh(base).fit(X)
        if self.first_.scorer_ is None:
            raise ValueError(f"the cycle needs a detector that scores a row by itself, {base!r:.100} does not")
        learned = None
        if len(X) < FEWEST_ROWS:
            said = ""
            if few is not None and len(few) > 1 and len(X) >= FEWEST_FOR_DIRECTION:
                learned, said = self._learn_direction_of_few_rows(X, few, base, rng)
            alone = "" if self.accepted_ else ": the first detector stands alone"
            self.reason_ = f"{said}the cycle needs {FEWEST_ROWS} normal rows, got {len(X)}{alone}"
        else:
            learned = self._cycle(X, few, base, rng)
        if learned is None:
            learned = Learned(self.first_.standardiser_, self.first_.scorer_, -self.first_.calibration_scores_)
        return self._keep(learned)

    def generate(self, count: int, *, seed: int = 0, strength: float = 1.0) -> Generated:
        """``count`` anomalies of the kinds of the cycle, in the columns' own units, unfiltered; ``[count, features]``, numpy arrays.

        Raises:
            ValueError: the cycle did not run (too few rows), fewer rows than kinds, a strength that is not in (0, 10].
        """
        if not hasattr(self, "denoiser_"):
            raise ValueError(f"there is no denoiser to generate from: {self.reason_}")
        of = self.denoiser_.scorer_, self.columns_
        return make_anomalies(*of, count, seed=seed, strength=strength, normals=self.normals_)

    # ------------------------------------------------------------------------------------------------------------ in fit

    def _cycle(self, X, few, base, rng) -> Learned | None:
        stage = self._stage(X, base, rng)
        key = jax.random.key(rng.randint(2**31 - 1))
        known = None if few is None else _Known.of(few, stage)
        trusted, said = ((), "") if known is None else self._learn_direction(stage, known)
        strength, last, best, judges = 1.0, -np.inf, None, ()
        for number in range(self.rounds):
            key, round_key = jax.random.split(key)
            found = self._round(stage, known, trusted, judges, strength, round_key)
            if found is None:
                break
            row = self.rounds_[-1]
            clean = row["artefact"] <= max(MOST_ARTEFACT, row["artefact_first"] + 0.1)
            if clean and (best is None or found.gain > best[0].gain):
                best = found, number
            if found.gain < last + LEAST_GAIN:
                break
            last, strength = found.gain, cycle.adjusted(strength, row["c2st"])
            if best is not None:
                judges = (*trusted, best[0].part)
        if best is not None and best[0].gain > 0:
            found, number = best
            self.head_, self.head_scale_ = found.head, tuple(found.part.scale)
            trusted = (*trusted, found.part)
            reason = f"round {number + 1} adds {found.gain:.4f} to the AUROC on anomalies that the head has not seen"
        elif best is not None:
            reason = f"a head adds nothing on anomalies that it has not seen ({best[0].gain:.4f})"
        elif "artefact" in self.rounds_[-1]:
            reason = "the head tells reconstructed normal rows from the rows themselves: it has learned the generator"
        else:
            reason = f"fewer than two kinds of anomalies were hard and new in round {len(self.rounds_)}"
        reason = said + reason
        self.accepted_ = bool(trusted)
        self.reason_ = reason if trusted else f"{reason}: the first detector stands alone"
        if not trusted:
            return None
        scale = cycle.Scale.fit(-self.first_.calibration_scores_)
        return self._with_first(scale, _scores(stage.held_out, trusted).mean(axis=0))

    def _stage(self, X, base, rng) -> "_Stage":
        """A fifth of the rows set aside, and the detector and the denoiser of the others."""
        order = rng.permutation(len(X))
        held_out, train = X[order[: len(X) // 5]], X[order[len(X) // 5 :]]
        inner = _fresh(base).fit(train)
        self.denoiser_ = DiffusionDetector(
            MLP(width=128, depth=3),
            schedule=noise.log_uniform(256, sigma_min=0.03, sigma_max=20.0),
            num_steps=self.num_steps,
            random_state=rng.randint(2**31 - 1),
            verbose=self.verbose,
        ).fit(train)
        train, held_out = train[:MOST_ROWS], held_out[:MOST_ROWS]
        self.columns_ = self.denoiser_.standardiser_
        self.normals_, normals = self.columns_(held_out), self.columns_(train)
        of = dataclasses.replace(self.denoiser_.scorer_, levels=FEATURE_LEVELS.to(jnp.float32))
        errors = in_batches(Partial(log_errors, of), normals)
        self.features_ = Features(of, errors.mean(axis=0), errors.std(axis=0) + 1e-6)
        scale = cycle.Scale.fit(-inner.calibration_scores_)

        def seen(rows) -> _Rows:
            return _Rows(scale(-inner.score_samples(rows)), self._features(rows))

        calibration = scale(-inner.calibration_scores_)
        return _Stage(normals, self._features(train), seen(held_out), calibration, seen)

    def _learn_direction(self, stage, known) -> tuple[tuple["_Part", ...], str]:
        """The direction to the known anomalies, unless those left out in turns prove that it harms; and what they say, in words."""

        def part(few) -> _Part:
            return _Part.of(partial(_along, cycle.direction(stage.features, few)), stage)

        left_out = [part(np.delete(known.seen.features, fold, axis=0)) for fold in known.folds]
        if not left_out:
            return (), ""
        kept, said = self._is_kept(known.gains(stage, left_out))
        if not kept:
            return (), said
        whole = part(known.seen.features)
        self.direction_, self.direction_scale_ = whole.score.args[0], tuple(whole.scale)
        for before, each in zip(known.trusted, left_out, strict=True):
            before.append(each)
        return (whole,), said

    def _is_kept(self, gains) -> tuple[bool, str]:
        """Of the direction, what it adds on every known anomaly by the version made without it: is it kept, and what they say."""
        self.known_gain_ = float(np.mean(gains))
        twice_its_error = self.known_gain_ - cycle.sure_gain(gains)
        # A handful of them is too few to prove a gain that is there on average; a harm that they prove is taken for one.
        kept = self.known_gain_ + twice_its_error > 0
        said = f"the direction to the known anomalies adds {self.known_gain_:.4f} +- {twice_its_error:.4f} on those left out"
        return kept, f"{said} and is {'kept' if kept else 'left out'}; "

    def _learn_direction_of_few_rows(self, X, few, base, rng) -> tuple[Learned | None, str]:
        """The same where no row can be set aside: each is scored by a detector and by directions that were fitted without its fold."""
        self.columns_, self.features_ = Standardiser.fit(X), Features(None, np.zeros(0), np.ones(0))
        features, known = self._features(X), self._features(few)
        folds = np.array_split(rng.permutation(len(X)), ROW_FOLDS)
        scale = cycle.Scale.fit(-self.first_.calibration_scores_)
        first = np.empty(len(X))
        for fold in folds:
            first[fold] = scale(-_fresh(base).fit(np.delete(X, fold, axis=0)).score_samples(X[fold]))

        def learned(known):
            """The direction, its scale, and the rows' places on it, by the directions without them."""
            along = np.empty(len(X))
            for fold in folds:
                along[fold] = features[fold] @ cycle.direction(np.delete(features, fold, axis=0), known)
            scale = cycle.Scale.fit(along)
            return cycle.direction(features, known), scale, np.stack([first, scale(along)])

        gains, known_first = [], scale(-self.first_.score_samples(few))
        for fold in _folds(len(few)):
            direction, its_scale, normal = learned(np.delete(known, fold, axis=0))
            both = np.stack([known_first, its_scale(known @ direction)])
            gains += [cycle.gain(normal, both[:, [i]]) for i in fold]
        self.accepted_, said = self._is_kept(gains)
        if not self.accepted_:
            return None, said
        self.direction_, its_scale, normal = learned(known)
        self.direction_scale_ = tuple(its_scale)
        return self._with_first(scale, normal.mean(axis=0)), said

    def _with_first(self, scale, normal) -> Learned:
        """The scorer of the first detector and all that was accepted beside it."""
        parts = [
            (getattr(self, f"{name}_"), np.array(getattr(self, f"{name}_scale_"), np.float32))
            for name in ("direction", "head")
            if hasattr(self, f"{name}_")
        ]
        own = self.first_.standardiser_
        # Rows come as the first detector takes them, to the bit: it may rank values, and ties with those of training are to stay ties.
        # If it takes them as they are, they come standardised all the same, or the direction would see float32's digits of a time stamp.
        as_they_are = not own.mean.any() and (own.scale == 1).all()
        given = self.columns_ if as_they_are else own._replace(farthest=max(own.farthest, FARTHEST))
        scorer = Headed(
            rescaled(self.first_.scorer_, own, given),
            np.array(scale, np.float32),
            rescaled(self.features_, self.columns_, given),
            tuple((part.astype(np.float32) if isinstance(part, np.ndarray) else part, at) for part, at in parts),
        )
        return Learned(given, scorer, normal)

    def _round(self, stage, known, trusted, judges, strength, key) -> "_Found | None":
        """Generate, keep, learn, judge; what there is to say of it goes to ``rounds_``. None if there was nothing to learn from."""
        made_key, mix_key, head_key, back_key = jax.random.split(key, 4)
        normals = stage.normals
        rows = jnp.asarray(np.resize(normals, (GENERATED_ROWS, normals.shape[1])))
        made = _made(self.denoiser_.scorer_, made_key, rows, self.normals_, strength)
        seen = stage.seen(self.columns_.undo(made.x))
        base = _scores(stage.held_out, judges).mean(axis=0) if judges else stage.calibration
        p = calibration.p_values(-base, -_scores(seen, judges).mean(axis=0))
        near = Partial(_nearest_distance, known_rows(normals))
        usual = in_batches(Partial(_nearest_other, known_rows(normals)), np.arange(len(normals))[:, None])
        kept = cycle.keep(p, in_batches(near, made.x), usual, made.kind)
        weights = cycle.balance(made.kind, kept)
        kinds = sorted({int(code) for code in made.kind[weights > 0]})
        row: dict[str, Any] = {
            "strength": float(strength),
            "kept": {Kind(code).name.lower(): int((kept & (made.kind == code)).sum()) for code in np.unique(made.kind)},
        }
        self.rounds_.append(row)
        if len(kinds) < 2:
            return None
        row["c2st"] = quality.c2st(normals[:300], made.x[weights > 0][:300], random_state=0).accuracy
        # Member 0 learns from all; each other one without a kind, or without some of the known anomalies.
        members = [weights, *(np.where(made.kind == code, 0.0, weights) for code in kinds)]
        shown, shares = seen.features, np.stack(members)
        if known is not None:
            shown, shares = self._with_known(seen.features, members, known, stage, mix_key)
        learn = Partial(cycle.train_heads, head_key, jnp.asarray(stage.features), jnp.asarray(shown))
        heads = apply(learn, jnp.asarray(shares, jnp.float32))
        each = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), heads) for i in range(len(shares))]
        parts = [_Part.of(partial(self._logits, head), stage) for head in each]
        gains = {
            Kind(code).name.lower(): cycle.gain(
                _scores(stage.held_out, (*trusted, part)),
                _scores(seen.take(np.flatnonzero((weights > 0) & (made.kind == code))), (*trusted, part)),
            )
            for code, part in zip(kinds, parts[1:], strict=False)
        }
        gain = cycle.sure_gain(list(gains.values()))
        row |= {"gains": gains, "kind_gain": float(np.mean(list(gains.values()))), "sure_gain": gain}
        if known is not None and known.folds:
            on_known = known.gains(stage, parts[1 + len(kinds) :])
            gain = cycle.sure_gain(on_known)
            row |= {"known_gain": float(np.mean(on_known)), "sure_known_gain": gain}
        back = apply(Partial(_reconstructed, self.denoiser_.scorer_, back_key), jnp.asarray(self.normals_))
        back = stage.seen(self.columns_.undo(np.asarray(back)))
        row["artefact"] = cycle.artefact(parts[0](stage.held_out.features), parts[0](back.features))
        # What the first detector, which has never met the generator, sees in them too is no artefact but a coarse denoiser.
        row["artefact_first"] = cycle.artefact(stage.held_out.first, back.first)
        return _Found(gain, each[0], parts[0])

    def _with_known(self, features, members, known, stage, key):
        """``(features, weights of every member)``: known anomalies and their mixes take half of the weight."""
        normals = jnp.asarray(stage.normals)
        without = [[], *known.folds]
        pieces = []
        for fold, mix_key in zip(without, jax.random.split(key, len(without)), strict=True):
            left = np.delete(known.rows, np.asarray(fold, int), axis=0)
            mixes = nng_mix(mix_key, jnp.asarray(self.columns_(left)), normals, 128).x
            pieces.append(self._features(np.concatenate([left, self.columns_.undo(np.asarray(mixes))])))
        ends = len(features) + np.cumsum([0, *map(len, pieces)])
        weights = []
        # The kinds' members learn from all known anomalies: it is a kind that they have not seen. The folds' from all kinds.
        of_folds = [(members[0], 1 + i) for i in range(len(known.folds))]
        for member, which in [*((member, 0) for member in members), *of_folds]:
            full = np.zeros(ends[-1])
            full[: len(features)] = 0.5 * member / member.sum()
            shown = len(known.rows) - len(without[which])
            full[ends[which] : ends[which] + shown] = 0.25 / shown
            full[ends[which] + shown : ends[which + 1]] = 0.25 / (len(pieces[which]) - shown)
            weights.append(full)
        return np.concatenate([features, *pieces]), np.stack(weights)

    def _features(self, X):
        """``[rows, columns + levels]``: standardised columns, and the logarithm of the denoising error at every level, standardised.

        Columns alone where there is no denoiser.
        """
        return in_batches(self.features_, X, prepare=self.columns_)

    def _logits(self, head, features):
        return in_batches(Partial(cycle.head_logits, head), features)


def _nearest_distance(among, rows):
    return root(squared_distances(among, rows, 1)[:, 0])


def _nearest_other(among, own):
    return root(squared_distances(among, among.rows[own[:, 0]], 1, own[:, 0])[:, 0])
