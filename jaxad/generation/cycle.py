"""The cycle: a denoiser makes anomalies, a detector keeps the hard ones, a head learns from them, and is trusted only where it helps.

METHODS 11.7, as functions over standardised rows; ``detectors.CycleDetector`` puts them together. What protects from a head that has
learned the generator instead of what is wrong: whole kinds are left out when it is judged (``kind_gains``), and rows that are normal but
came back from noise must look normal to it (``artefact``).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from sklearn.linear_model import LogisticRegression

from jaxad import generation, noise
from jaxad.denoising import Denoise
from jaxad.generation import Generated, Kind
from jaxad.generation.generated import walked
from jaxad.metrics import auroc
from jaxad.noise import NoiseLevel
from jaxad.sampling import fixed_small

BAND = (0.001, 0.05)
"""p-values of what is hard but not normal."""
FARTHEST_OF_NEAREST = 5.0
"""How many times the 99 % quantile of the normal rows' own nearest distances an anomaly may be away."""
LEAST_SHARE = 0.1
"""Of every kind that is kept among those the head learns from."""
FEWEST_OF_A_KIND = 8
"""Rows left after the filter, or the kind is dropped."""

PATH = noise.log_uniform(20, sigma_min=0.05, sigma_max=20.0)
"""From rows to noise that drowns them."""
SHORT_PATH = noise.log_uniform(10, sigma_min=0.05, sigma_max=0.5)
"""To noise that leaves a row recognisable."""


# ------------------------------------------------------------------------------------------------------------------ generate


def generators(
    denoise: Denoise,
    normals: Float[Array, "normals features"],
    key: Array,
    strength,
    *,
    score: generation.RowScore | None = None,
    calibration_scores: Any = None,
) -> dict[Kind, Callable[[Array, Array], Generated]]:
    """The kinds of the cycle, each ``(key, rows) -> Generated``: local, low density, dependency, point, cluster, global, and hard.

    Args:
        normals: rows that the denoiser was not trained on; they measure its reverse variance.
        strength: 1 is the middle of each kind's range; a number, also traced.
        score, calibration_scores: of ``generation.detector_guided``; None leaves the hard ones out. Rows of one column get no dependency
            and no point anomalies.
    """
    variance = generation.measured_variance(key, denoise, normals, PATH.to(normals.dtype))

    def between(low, high):
        return lambda key, rows: jnp.minimum(
            high, strength * jax.random.uniform(key, rows.shape[:1], rows.dtype, low, high)
        )

    def local(key, rows):
        made_key, strength_key = jax.random.split(key)
        spread = between(0.2, 3.0)(strength_key, rows)
        return generation.sdas(made_key, denoise, rows, PATH, variance=variance, strength=spread)

    def low_density(key, rows):
        made_key, strength_key = jax.random.split(key)
        tempering = between(0.05, 0.4)(strength_key, rows)
        return generation.low_density(made_key, denoise, rows, PATH, variance=variance, strength=tempering)

    made: dict[Kind, Callable[[Array, Array], Generated]] = {
        Kind.LOCAL: local,
        Kind.LOW_DENSITY: low_density,
        Kind.CLUSTER: lambda key, rows: generation.cluster_anomalies(
            key, denoise, rows, SHORT_PATH, strength=2 * strength
        ),
        Kind.GLOBAL: lambda key, rows: generation.global_anomalies(key, rows, strength=0.1 * strength),
    }
    if normals.shape[1] > 1:
        made[Kind.DEPENDENCY] = lambda key, rows: generation.dependency_anomalies(key, denoise, rows, PATH)
        made[Kind.POINT] = lambda key, rows: generation.point_anomalies(key, rows, strength=0.3 * strength)
    if score is not None:
        made[Kind.HARD] = lambda key, rows: generation.detector_guided(
            key, denoise, rows, PATH, score=score, calibration_scores=calibration_scores, variance=variance
        )
    return made


# ---------------------------------------------------------------------------------------------------------------------- keep


def keep(
    p: Float[np.ndarray, " rows"],
    distance: Float[np.ndarray, " rows"],
    usual: Float[np.ndarray, " normals"],
    kind: Int[np.ndarray, " rows"],
    *,
    band: tuple[float, float] = BAND,
) -> Bool[np.ndarray, " rows"]:
    """Which anomalies to learn from: hard (``p`` in the band), no normal in disguise, and not trivially far.

    Args:
        p: conformal p-values by the detector so far.
        distance, usual: from each anomaly to its nearest normal row, and from each normal row to its nearest *other* one. Kept is what lies
            beyond the 99 % quantile of ``usual`` and within five times it; a dependency anomaly may be near, that is its nature.

    >>> usual = np.linspace(0.0, 1.0, 101)
    >>> keep(np.array([0.01, 0.01, 0.01, 0.5, 0.01]), np.array([2.0, 0.5, 0.5, 2.0, 9.0]), usual, np.array([0, 0, 4, 0, 0]))
    array([ True, False,  True, False, False])
    """
    edge = np.quantile(usual, 0.99)
    away = (distance >= edge) | (kind == Kind.DEPENDENCY)
    return (band[0] <= p) & (p <= band[1]) & away & (distance <= FARTHEST_OF_NEAREST * edge)


def balance(kind: Int[np.ndarray, " rows"], kept: Bool[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """How often the head should see each row: weights that add up to 1, every kept kind with a tenth of them at least.

    A kind of fewer than ``FEWEST_OF_A_KIND`` kept rows is dropped. Nothing kept: zeros.

    >>> weights = balance(np.repeat([0, 1, 2], [190, 10, 5]), np.ones(205, bool))
    >>> [round(float(weights[s].sum()), 3) for s in (slice(0, 190), slice(190, 200), slice(200, 205))]
    [0.9, 0.1, 0.0]
    """
    counts = {code: n for code in np.unique(kind) if (n := int((kept & (kind == code)).sum())) >= FEWEST_OF_A_KIND}
    weights = np.zeros(len(kind))
    if not counts:
        return weights
    # Water-filling: kinds below the floor are raised to it, the others share what is left by their numbers.
    share, low = {}, set()
    while True:
        rest = sum(n for code, n in counts.items() if code not in low)
        share = {
            code: LEAST_SHARE if code in low else n / rest * (1 - LEAST_SHARE * len(low)) for code, n in counts.items()
        }
        below = {code for code, value in share.items() if value < LEAST_SHARE - 1e-12 and code not in low}
        if not below or len(low | below) == len(counts):
            break
        low |= below
    for code, value in share.items():
        weights[kept & (kind == code)] = value / counts[code]
    return weights / weights.sum()


def adjusted(strength: float, accuracy: float) -> float:
    """The next round's strength: weaker where a two-sample test tells the anomalies apart too easily (> .95), stronger below .6."""
    return strength / 1.2 if accuracy > 0.95 else strength * 1.2 if accuracy < 0.6 else strength


# ---------------------------------------------------------------------------------------------------------------------- learn


def init_head(key: Array, features: int, width: int = 64) -> list[tuple[Array, Array]]:
    """Parameters of a head: weights and biases of two hidden layers and the one behind them."""
    sizes = (features, width, width, 1)
    return [
        (jax.random.normal(key, (n, m)) / jnp.sqrt(n), jnp.zeros(m))
        for key, n, m in zip(jax.random.split(key, 3), sizes[:-1], sizes[1:], strict=True)
    ]


def head_logits(params: list[tuple[Array, Array]], features: Float[Array, "rows features"]) -> Float[Array, " rows"]:
    """Is it an anomaly? A logit per row of features, larger = more anomalous."""
    hidden = features
    for weights, bias in params[:-1]:
        hidden = jax.nn.silu(hidden @ weights + bias[None])
    weights, bias = params[-1]
    return (hidden @ weights + bias[None])[:, 0]


def train_heads(
    key: Array,
    normals: Float[Array, "normals features"],
    anomalies: Float[Array, "anomalies features"],
    weights: Float[Array, "members anomalies"],
    *,
    num_steps: int = 500,
    batch_size: int = 256,
    smoothing: float = 0.05,
) -> Any:
    """Several heads by one ``vmap``ped program, each with weights of its own for the anomalies; parameters with a leading axis ``members``.

    Half of every batch are normal rows (target ``smoothing / 2``), half anomalies drawn by their weights (``1 - smoothing / 2``). The
    loss is the cross-entropy, the optimizer AdamW.
    """
    half = batch_size // 2
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, num_steps), weight_decay=1e-2)
    target = jnp.repeat(jnp.array([smoothing / 2, 1 - smoothing / 2]), half, total_repeat_length=2 * half)

    def one(key, weights):
        init_key, key = jax.random.split(key)
        params = init_head(init_key, normals.shape[1])
        cumulative = jnp.cumsum(weights) / jnp.sum(weights)

        def loss(params, key):
            normal_key, anomaly_key = jax.random.split(key)
            normal = normals[jax.random.randint(normal_key, (half,), 0, len(normals))]
            which = jnp.searchsorted(cumulative, jax.random.uniform(anomaly_key, (half,)))
            rows = jnp.concatenate([normal, anomalies[jnp.minimum(which, len(anomalies) - 1)]])
            return jnp.mean(optax.sigmoid_binary_cross_entropy(head_logits(params, rows), target))

        def step(carry, number):
            params, state = carry
            gradient = jax.grad(loss)(params, jax.random.fold_in(key, number))
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(num_steps))[0][0]

    return jax.vmap(one)(jax.random.split(key, len(weights)), weights)


# ---------------------------------------------------------------------------------------------------------------------- judge


class Scale(NamedTuple):
    """``z = asinh(2 (score - centre) / spread)``: where a score lies among those of normal rows that it was not fitted on."""

    centre: float
    spread: float

    @classmethod
    def fit(cls, scores: Float[np.ndarray, " normals"]) -> "Scale":
        """Median, and the distance from there to the 97 % quantile; scores are larger for anomalies."""
        centre, upper = np.quantile(scores, [0.5, 0.97])
        return cls(float(centre), float(max(upper - centre, 1e-6 * max(abs(centre), 1.0))))

    def __call__(self, scores):
        """Of any score, its place."""
        return np.arcsinh(2 * (np.asarray(scores, np.float64) - self.centre) / self.spread)


def gain(normals: Float[np.ndarray, "scores normals"], anomalies: Float[np.ndarray, "scores anomalies"]) -> float:
    """AUROC of the mean of all scores, less that of all but the last; on one scale, of rows that none was fitted on.

    >>> gain(np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[0.5, 2.0], [5.0, 5.0]]))
    0.25
    """
    labels = np.repeat([0, 1], [normals.shape[1], anomalies.shape[1]])
    both = np.concatenate([normals, anomalies], axis=1)
    return float(auroc(labels, both.mean(axis=0)) - auroc(labels, both[:-1].mean(axis=0)))


def sure_gain(gains: Sequence[float]) -> float:
    """Their mean, less twice its standard error over the kinds, or the known anomalies: a gain that a single one makes is none.

    Stricter than METHODS 11.7, which asks for a mean above 0: on real tables means of .001 to .009 were followed by losses.

    >>> round(sure_gain([0.02, 0.01, 0.03]), 4), round(sure_gain([0.0, 0.1]), 4)
    (0.0085, -0.05)
    """
    return float(np.mean(gains) - 2 * np.std(gains, ddof=1) / np.sqrt(len(gains)))


def direction(
    normals: Float[np.ndarray, "normals features"], anomalies: Float[np.ndarray, "anomalies features"]
) -> Float[np.ndarray, " features"]:
    """Where a few known anomalies lie: a ridge logistic regression (C = .1, both classes count alike); a row's score is ``w x``.

    Features on a scale of about 1. C was set on twelve tables, eleven of which are not of ADBench (docs/generation.md).

    >>> rows = np.random.default_rng(0).normal(size=(1000, 2))
    >>> direction(rows, np.array([[3.0, 0.0], [4.0, 0.0]])).round(1)
    array([2.7, 0. ])
    """
    labels = np.repeat([0, 1], [len(normals), len(anomalies)])
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=500)
    return model.fit(np.concatenate([normals, anomalies]), labels).coef_[0]


def reconstructed(
    key: Array, denoise: Denoise, normals: Float[Array, "rows features"], levels: NoiseLevel = SHORT_PATH
) -> Float[Array, "rows features"]:
    """Normal rows noised a little and brought back: normal, but made by the generator."""
    return walked(key, denoise, normals, levels, fixed_small)


def artefact(head_normals: Float[np.ndarray, " rows"], head_reconstructed: Float[np.ndarray, " rows"]) -> float:
    """How well the head tells reconstructed normal rows from the rows themselves, an AUROC: .5 is how it should be."""
    labels = np.repeat([0, 1], [len(head_normals), len(head_reconstructed)])
    return float(auroc(labels, np.concatenate([head_normals, head_reconstructed])))
