"""The cycle as an estimator: a detector, and a head trained on generated anomalies where that is shown to help."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state

from jaxad import calibration, cycle, noise, quality, scoring
from jaxad.denoisers import MLP
from jaxad.denoising import make_denoiser
from jaxad.detectors.consensus import ConsensusDetector
from jaxad.detectors.diffusion import DiffusionDetector
from jaxad.detectors.fitting import score_in_batches
from jaxad.detectors.protocol import ThresholdMixin, check_scoring_data, check_training_data
from jaxad.generation import Generated, Kind, check_examples, nng_mix, several

FEWEST_ROWS = 100
"""Below that p-values are too coarse for the band, and too few rows judge."""
GENERATED_ROWS = 2048
MOST_ROWS = 2000
"""Normal rows, of each of the two parts, that the head learns from, and that judge it."""
LEAST_GAIN = 0.002
"""AUROC that a further round has to add."""
MOST_ARTEFACT = 0.7
"""AUROC with which a head may tell reconstructed normal rows from the rows themselves, if the first detector does not either."""
ANOMALY_FOLDS = 5
FEATURE_LEVELS = noise.log_uniform(6, sigma_min=0.05, sigma_max=2.0)


@partial(jax.jit, static_argnames=("network", "prediction"))
def _errors(params, key, rows, *, network, prediction):
    """Denoising error of every row at the levels of the head's features, ``[levels, rows]``."""
    denoise = make_denoiser(network, params, prediction)
    return scoring.denoising_error(key, denoise, rows, FEATURE_LEVELS.to(rows.dtype), draws=2)


@partial(jax.jit, static_argnames=("network", "prediction", "guided"))
def _generate(params, key, rows, normals, strength, *, network, prediction, guided):
    denoise = make_denoiser(network, params, prediction)
    variance_key, score_key, made_key = jax.random.split(key, 3)

    def score(rows):
        errors = scoring.denoising_error(score_key, denoise, rows, FEATURE_LEVELS.to(rows.dtype))
        return jnp.mean(jnp.log(errors + 1e-6), axis=0)

    guide = {"score": score, "calibration_scores": score(normals)} if guided else {}
    made = cycle.generators(denoise, normals, variance_key, strength, **guide)
    return several(made_key, rows, list(made.values()))


@partial(jax.jit, static_argnames=("network", "prediction"))
def _reconstructed(params, key, rows, *, network, prediction):
    return cycle.reconstructed(key, make_denoiser(network, params, prediction), rows)


def _fresh(detector) -> Any:
    return clone(detector)


_train_heads = jax.jit(cycle.train_heads)
_head_logits = jax.jit(cycle.head_logits)


class CycleDetector(ThresholdMixin, BaseEstimator):
    """A detector that generates anomalies, learns from the hard ones, and keeps what it learned only if that helps.

    ``fit`` sets a fifth of the normal rows aside; a detector and a denoiser are fitted on the rest. Each round generates anomalies of up
    to seven kinds, keeps those that are hard (conformal p-value in [.001, .05]), new and no normals in disguise, and trains a small head
    to tell them from normal rows, on the rows and their denoising errors. The head is judged on whole *kinds* of anomalies that it has
    not seen; where a few real anomalies are given, on those left out in turns instead. If the gain is not there, or if the head has
    learned to see the generator (it tells *reconstructed* normal rows from the rows), the cycle **fails closed**: scores are those of the
    first detector fitted alone, and ``reason_`` says why; a gain on kinds counts as far as it exceeds
    twice its standard error. Else a score is the mean of both on a common scale. METHODS 11.7.

    Args:
        detector: the first detector; anything of ``jaxad`` that keeps ``calibration_scores_``; None: ``ConsensusDetector``.
        rounds: most rounds; a round that adds less than .002 of AUROC is the last.
        num_steps: most training steps of the denoiser.
        false_alarm_rate: share of normal rows that ``predict`` may flag.
        random_state: seed.
        verbose: 1 shows progress bars.

    Attributes:
        first_: the first detector, fitted on all rows.
        accepted_: did the cycle help? reason_: in one sentence.
        rounds_: for each round its strength, rows kept of every kind, accuracy of the two-sample test, gains, and ``artefact``.

    Raises:
        ValueError: from ``fit`` and ``score_samples`` for bad data; anomalies of another width or identical to normal rows.

    >>> X = np.random.default_rng(0).normal(size=(60, 3))
    >>> detector = CycleDetector().fit(X)
    >>> detector.accepted_, detector.reason_
    (False, 'the cycle needs 100 normal rows, got 60: the first detector stands alone')
    """

    def __init__(self, detector=None, *, rounds=2, num_steps=2000, false_alarm_rate=0.05, random_state=0, verbose=0):
        self.detector = detector
        self.rounds = rounds
        self.num_steps = num_steps
        self.false_alarm_rate = false_alarm_rate
        self.random_state = random_state
        self.verbose = verbose

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
        if not isinstance(base, ThresholdMixin):
            raise ValueError(
                f"the cycle needs the scores of held-out normal rows, which {type(base).__name__} does not keep; "
                "take a detector of jaxad"
            )
        self.rounds_, self.accepted_ = [], False
        vars(self).pop("denoiser_", None)  # of an earlier fit
        self.first_ = _fresh(base).fit(X)
        if len(X) < FEWEST_ROWS:
            self.reason_ = f"the cycle needs {FEWEST_ROWS} normal rows, got {len(X)}: the first detector stands alone"
        else:
            self._cycle(X, few, base, rng)
        if not self.accepted_:
            self._calibrate_on(self.first_.calibration_scores_)
        return self

    def score_samples(self, X) -> np.ndarray:
        """Larger = more normal, ``[rows]``: the first detector's score, or minus the mean of it and the head on their common scale."""
        X = check_scoring_data(self, X)
        first = self.first_.score_samples(X)
        if not self.accepted_:
            return first
        logits = self._logits(self.head_, self._features(X))
        return -0.5 * (cycle.Scale(*self.first_scale_)(-first) + cycle.Scale(*self.head_scale_)(logits))

    def generate(self, count: int, *, seed: int = 0, strength: float = 1.0) -> Generated:
        """``count`` anomalies of the kinds of the cycle, in the columns' own units, unfiltered; ``[count, features]``, numpy arrays.

        Raises:
            ValueError: the cycle did not run (too few rows), fewer rows than kinds, a strength that is not in (0, 10].
        """
        if not hasattr(self, "denoiser_"):
            raise ValueError(f"there is no denoiser to generate from: {self.reason_}")
        if not 0 < strength <= 10:
            raise ValueError(f"a strength lies in (0, 10], 1 is the middle of each kind's range, got {strength}")
        rows = jnp.asarray(np.resize(self.normals_, (count, self.n_features_in_)))
        made = self._made(jax.random.key(seed), rows, strength)
        scale = self.denoiser_.standardiser_
        return made._replace(x=np.asarray(made.x, np.float64) * scale.scale + scale.mean)

    # ------------------------------------------------------------------------------------------------------------ in fit

    def _cycle(self, X, few, base, rng):
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
        key = jax.random.key(rng.randint(2**31 - 1))
        standardise = self.denoiser_.standardiser_
        train, held_out = train[:MOST_ROWS], held_out[:MOST_ROWS]
        self.normals_ = standardise(held_out)
        normals = standardise(train)
        errors = np.log(self._errors(normals) + 1e-6)
        self.error_mean_, self.error_scale_ = errors.mean(axis=1), errors.std(axis=1) + 1e-6
        features = self._features(train)
        first_normals = -inner.score_samples(held_out)
        first_scale = cycle.Scale.fit(-inner.calibration_scores_)
        search = NearestNeighbors(n_neighbors=1).fit(normals)
        usual = NearestNeighbors(n_neighbors=2).fit(normals).kneighbors(normals)[0][:, 1]
        head_normals_features = self._features(held_out)

        strength, best, last = 1.0, None, -np.inf
        judge = inner.score_samples
        judged_normals = inner.calibration_scores_
        for number in range(self.rounds):
            key, made_key, mix_key, head_key, back_key = jax.random.split(key, 5)
            made = jax.tree.map(
                np.asarray,
                self._made(made_key, jnp.asarray(np.resize(normals, (GENERATED_ROWS, X.shape[1]))), strength),
            )
            x = made.x.astype(np.float64) * standardise.scale + standardise.mean
            p = calibration.p_values(judged_normals, judge(x))
            kept = cycle.keep(p, search.kneighbors(made.x)[0][:, 0], usual, made.kind)
            weights = cycle.balance(made.kind, kept)
            kinds = sorted({int(code) for code in made.kind[weights > 0]})
            row: dict[str, Any] = {
                "strength": float(strength),
                "kept": {
                    Kind(code).name.lower(): int((kept & (made.kind == code)).sum()) for code in np.unique(made.kind)
                },
            }
            self.rounds_.append(row)
            if len(kinds) < 2:
                self.reason_ = f"fewer than two kinds of anomalies were hard and new in round {number + 1}"
                break
            accuracy = quality.c2st(normals[:300], made.x[weights > 0][:300], random_state=0).accuracy
            row["c2st"] = accuracy
            # Member 0 learns from all; each other one without a kind, or without some of the known anomalies.
            members = [weights, *(np.where(made.kind == code, 0.0, weights) for code in kinds)]
            rows, member_weights, folds = self._with_known(x, members, few, train, standardise, mix_key)
            heads = _train_heads(
                head_key,
                jnp.asarray(features),
                jnp.asarray(self._features(rows)),
                jnp.asarray(member_weights, jnp.float32),
            )
            each = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), heads) for i in range(len(member_weights))]
            head_normals = np.stack([self._logits(head, head_normals_features) for head in each])
            made_features = self._features(x)
            head_made = np.stack([self._logits(head, made_features) for head in each[: 1 + len(kinds)]])
            gains = cycle.kind_gains(
                {code: 1 + i for i, code in enumerate(kinds)},
                made.kind,
                weights > 0,
                first_scale(first_normals),
                first_scale(-inner.score_samples(x)),
                head_normals,
                head_made,
            )
            gain = cycle.sure_gain(gains)
            row |= {"gains": gains, "kind_gain": float(np.mean(list(gains.values()))), "sure_gain": gain}
            if folds:
                gain = row["known_gain"] = self._gain_on_known(
                    few,
                    folds,
                    each[1 + len(kinds) :],
                    head_normals[1 + len(kinds) :],
                    first_scale,
                    first_normals,
                    inner,
                )
            back = np.asarray(
                _reconstructed(self.denoiser_.params_, back_key, jnp.asarray(self.normals_), **self._closed()),
                np.float64,
            )
            back = back * standardise.scale + standardise.mean
            row["artefact"] = cycle.artefact(head_normals[0], self._logits(each[0], self._features(back)))
            # What the first detector, which has never met the generator, sees in them too is no artefact but a coarse denoiser.
            row["artefact_first"] = cycle.artefact(first_normals, -inner.score_samples(back))
            clean = row["artefact"] <= max(MOST_ARTEFACT, row["artefact_first"] + 0.1)
            if clean and (best is None or gain > best[0]):
                best = (gain, each[0], cycle.Scale.fit(head_normals[0]), head_normals[0], number)
            if gain < last + LEAST_GAIN:
                break
            last, strength = gain, cycle.adjusted(strength, accuracy)
            if best is not None:
                head, head_scale, logits = best[1:4]

                def judge(x, head=head, head_scale=head_scale):
                    first = first_scale(-inner.score_samples(x))
                    return -0.5 * (first + head_scale(self._logits(head, self._features(x))))

                judged_normals = -0.5 * (first_scale(first_normals) + head_scale(logits))
        if best is not None and best[0] > 0:
            gain, self.head_, head_scale, logits, number = best
            self.head_scale_, self.first_scale_ = (
                tuple(head_scale),
                tuple(cycle.Scale.fit(-self.first_.calibration_scores_)),
            )
            self.accepted_ = True
            self.reason_ = f"round {number + 1} adds {gain:.4f} to the AUROC on anomalies that the head has not seen"
            self._calibrate_on(-0.5 * (first_scale(first_normals) + head_scale(logits)))
        elif best is not None:
            self.reason_ = (
                f"no gain on anomalies that the head has not seen ({best[0]:.4f}): the first detector stands alone"
            )
        elif len(self.rounds_[-1]) > 2:
            self.reason_ = (
                "the head tells reconstructed normal rows from the rows themselves: it has learned the generator"
            )

    def _with_known(self, x, members, few, train, standardise, key):
        """``(rows, weights of every member, folds of the known anomalies)``: known ones and their mixes take half of the weight."""
        if few is None:
            return x, np.stack(members), []
        count = min(ANOMALY_FOLDS, len(few))
        folds = [np.arange(len(few))[i::count] for i in range(count)] if count > 1 else []
        normals = jnp.asarray(standardise(train))

        def mixes(key, rows):
            made = nng_mix(key, jnp.asarray(standardise(rows)), normals, 128).x
            return np.asarray(made, np.float64) * standardise.scale + standardise.mean

        parts = [few, *(np.delete(few, fold, axis=0) for fold in folds)]
        pieces = [
            np.concatenate([known, mixes(k, known)])
            for known, k in zip(parts, jax.random.split(key, len(parts)), strict=True)
        ]
        ends = len(x) + np.cumsum([0, *map(len, pieces)])
        weights = []
        # The kinds' members learn from all known anomalies: it is a kind that they have not seen. The folds' from all kinds.
        for member, which in [*((member, 0) for member in members), *((members[0], 1 + i) for i in range(len(folds)))]:
            full = np.zeros(ends[-1])
            full[: len(x)] = 0.5 * member / member.sum()
            known = len(parts[which])
            full[ends[which] : ends[which] + known] = 0.25 / known
            full[ends[which] + known : ends[which + 1]] = 0.25 / (len(pieces[which]) - known)
            weights.append(full)
        return np.concatenate([x, *pieces]), np.stack(weights), folds

    def _gain_on_known(self, few, folds, heads, head_normals, first_scale, first_normals, inner) -> float:
        """AUROC gain on known anomalies, each judged by the head that was trained without it, against the held-out normal rows."""
        first = first_scale(-inner.score_samples(few))
        normal = first_scale(first_normals)
        gains = []
        for fold, head, of_normals in zip(folds, heads, head_normals, strict=True):
            scale = cycle.Scale.fit(of_normals)
            of_few = scale(self._logits(head, self._features(few[fold])))
            gains += [cycle.gain(normal, first[fold], scale(of_normals), of_few)] * len(fold)
        return float(np.mean(gains))

    # ---------------------------------------------------------------------------------------------------------- features

    def _closed(self):
        return {"network": self.denoiser_.network_, "prediction": self.denoiser_.prediction_}

    def _made(self, key, rows, strength):
        # A band of p-values needs 39 rows to have one in it.
        guided = len(self.normals_) >= 40
        normals = jnp.asarray(self.normals_[:500])
        return _generate(self.denoiser_.params_, key, rows, normals, strength, guided=guided, **self._closed())

    def _errors(self, rows):
        key = jax.random.wrap_key_data(jnp.asarray(self.denoiser_.score_key_))
        return score_in_batches(partial(_errors, self.denoiser_.params_, key, **self._closed()), rows)

    def _features(self, X):
        """``[rows, columns + levels]``: standardised columns, and the logarithm of the denoising error at every level, standardised."""
        rows = self.denoiser_.standardiser_(X)
        errors = (np.log(self._errors(rows) + 1e-6) - self.error_mean_[:, None]) / self.error_scale_[:, None]
        return np.concatenate([np.clip(rows, -10, 10), np.clip(errors.T, -10, 10)], axis=1).astype(np.float32)

    def _logits(self, head, features):
        return score_in_batches(lambda rows: _head_logits(head, rows), features)
