"""Guided low-density sampling: the way back from noise is bent towards what is rare.

Every kind of guidance is a function from a ``Denoise`` to a ``Denoise``, so it works with any sampler and inside a mask.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxad.denoising import Denoise, Variance
from jaxad.generation.generated import Generated, Kind, check_denoiser, check_strength, concrete, generated, walked
from jaxad.noise import NoiseLevel, add_noise, expand
from jaxad.scoring.draws import mean_square, sample_axes

RowScore = Callable[[Array], Array]
"""``rows [batch, *sample] -> [batch]``, larger = more anomalous, each a function of its row alone; to guide by it, differentiable."""

# ------------------------------------------------------------------------------------------------------------------ tempering


def tempered(denoise: Denoise, strength, gate: RowScore | None = None) -> Denoise:
    """The noise is believed less: ``eps' = (1 - strength gate) eps``, hence the score of the data is weakened by that share.

    In clean estimates ``D + strength gate (z / alpha - D)``. ``gate`` maps clean estimates to shares in [0, 1], as ``until`` does; None: 1.

    >>> level = NoiseLevel(jnp.float32(1), jnp.float32(1))
    >>> tempered(lambda noisy, level: 0 * noisy, 0.25)(jnp.full((1, 2), 8.0), level)
    Array([[2., 2.]], dtype=float32)
    """

    def denoise_less(noisy, level):
        clean = denoise(noisy, level)
        share = expand(strength, noisy)
        if gate is not None:
            share = share * expand(gate(clean), noisy)
        return clean + share * (noisy / expand(level.alpha, noisy) - clean)

    return denoise_less


def until(score: RowScore, limit: float, softness: float) -> RowScore:
    """A gate for ``tempered``: near 1 while the score is below ``limit``, near 0 above, ``softness`` score units between.

    With the limit at the score of a p-value of .01, say, guidance ends where rows have become anomalous enough.

    >>> until(lambda rows: rows[:, 0], 3.0, 0.1)(jnp.array([[0.0], [3.0], [6.0]])).round(2)
    Array([1. , 0.5, 0. ], dtype=float32)
    """
    return lambda clean: jax.nn.sigmoid((limit - score(clean)) / softness)


def low_density(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    variance: Variance,
    strength: Float[Array | np.ndarray, " batch"] | float = 0.2,
    gate: RowScore | None = None,
) -> Generated:
    """Rows from where normal rows are rare, by a weakened score (``tempered``): wider in every direction, along the data's own shape.

    For unit-variance Gaussian rows the spread becomes ``1 / (1 - 2 strength)`` in the limit of many steps, which is why strengths end below
    one half: there the pull towards the data no longer holds the noise. (The tempered density ``p^(1 - strength)`` itself would have
    ``1 / (1 - strength)``; a diffusion with fresh noise at every step feels the weakening twice.) 0 is ancestral sampling.

    Args:
        x, levels, variance: as for ``sdas``.
        strength: from 0 to .45, one for all rows or one for each.
        gate: where to stop, see ``until``.

    Evaluations per row: ``steps``.

    Raises:
        ValueError: a strength out of range, levels that are no path, or a denoiser of rows of another shape.

    >>> from jaxad import closed_form, noise, sampling
    >>> x, denoise = jax.random.normal(jax.random.key(0), (2000, 1)), closed_form.gaussian_denoiser([0.0], [[1.0]])
    >>> rows = low_density(
    ...     jax.random.key(1), denoise, x, noise.linear(1000)[::10], variance=sampling.fixed_large, strength=0.25
    ... )
    >>> bool(abs(rows.x.var() - 2) < 0.2)
    True
    """
    check_strength(strength, 0.0, 0.45, "tempering")
    check_denoiser(denoise, x, levels, "tempering")
    return generated(walked(key, tempered(denoise, strength, gate), x, levels, variance), True, Kind.LOW_DENSITY)


# -------------------------------------------------------------------------------------------------------------- self-guidance


def minority_guided(
    denoise: Denoise,
    noise: Float[Array, "batch *sample"],
    reference: NoiseLevel,
    strength,
    distance: Callable[[Array, Array], Array] | None = None,
) -> Denoise:
    """The estimate moves to where it would be harder to come back to (self-guided minority sampling, Um & Ye, ECCV 2024).

    How unusual an estimate is, is told by the denoiser itself: ``M = d(D, D')`` with ``D' = denoise(alpha D + sigma noise)`` at the
    noisy ``reference`` level, behind a stop-gradient. The estimate becomes ``D + strength sigma^2 / (alpha^2 + sigma^2) g / max |g|`` with
    g the gradient of M by ``z``: at most ``strength`` for each element, less at clean levels. (Published: the mean of every fifth
    step moves by ``scale`` times the step's variance.)

    ``distance`` compares rows, ``[batch, *sample]`` twice -> ``[batch]``: a perceptual one of yours; None: mean squared.
    """
    distance = (lambda a, b: mean_square(a - b)) if distance is None else distance

    def guided(noisy, level):
        def unusual(noisy):
            clean = denoise(noisy, level)
            again = jax.lax.stop_gradient(denoise(add_noise(clean, noise, reference), reference))
            return jnp.sum(distance(clean, again)), clean

        gradient, clean = jax.grad(unusual, has_aux=True)(noisy)
        largest = jnp.max(jnp.abs(gradient), axis=sample_axes(noisy), keepdims=True)
        share = level.sigma**2 / (level.alpha**2 + level.sigma**2)
        return clean + expand(strength, noisy) * expand(share, noisy) * gradient / jnp.maximum(largest, 1e-20)

    return guided


def minority(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    variance: Variance,
    strength: Float[Array | np.ndarray, " batch"] | float = 1.0,
    reference: NoiseLevel | None = None,
    distance: Callable[[Array, Array], Array] | None = None,
) -> Generated:
    """Unusual rows that the denoiser itself points at, no detector needed (``minority_guided``); meant for images.

    Args:
        x, levels, variance: as for ``sdas``.
        strength: from 0 (ancestral sampling) to 10, in units of the data.
        reference: noisy level at which the denoiser is asked; None: four fifths up the path, the published place.

    Evaluations per row: ``2 steps``, and as many gradients.

    Raises:
        ValueError: a strength out of range, levels that are no path, or a denoiser of rows of another shape.
    """
    check_strength(strength, 0.0, 10.0, "self-guided sampling")
    check_denoiser(denoise, x, levels, "self-guided sampling")
    noise_key, walk_key = jax.random.split(key)
    reference = (levels[int(0.8 * len(levels))] if reference is None else reference).to(x.dtype)
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    guided = minority_guided(denoise, noise, reference, strength, distance)
    return generated(walked(walk_key, guided, x, levels, variance), True, Kind.MINORITY)


# ---------------------------------------------------------------------------------------------------------- detector guidance


def reach(
    score: RowScore,
    x: Float[Array, "batch *sample"],
    target: Float[Array, " batch"] | float,
    *,
    steps: int = 10,
    mask=True,
    largest: float = 1.0,
) -> Float[Array, "batch *sample"]:
    """Move rows along the gradient until their score is ``target``: ``steps`` Newton steps, ``(target - s) g / |g|^2``.

    Only the elements under ``mask`` move (broadcast to ``x``), and by at most ``largest`` per step, root mean square over them. A row
    whose gradient is 0 stays.

    >>> reach(lambda rows: jnp.sum(rows**2, axis=1), jnp.array([[0.6, 0.8]]), 4.0).round(3)
    Array([[1.2, 1.6]], dtype=float32)
    """
    mask = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
    axes = sample_axes(x)
    room = largest * jnp.sqrt(jnp.sum(mask, axis=axes).astype(x.dtype))

    def step(x, _):
        value, back = jax.vjp(score, x)
        gradient = jnp.where(mask, back(jnp.ones_like(value))[0], 0)
        square = jnp.sum(gradient**2, axis=axes)
        length = (target - value) / jnp.maximum(square, 1e-20)
        length = jnp.clip(length, -(bound := room / jnp.sqrt(jnp.maximum(square, 1e-20))), bound)
        return x + expand(length, x) * gradient, None

    return jax.lax.scan(step, x, length=steps)[0]


def band_targets(
    key: Array,
    calibration_scores: Float[Array | np.ndarray, " normals"],
    rows: int,
    band: tuple[float, float] = (0.001, 0.05),
) -> Float[Array, " rows"]:
    """One score per row whose conformal p-value lies in ``band``, ends included: anomalous, but barely.

    ``p = (1 + #{calibration >= score}) / (n + 1)`` with scores that are *larger for anomalies* (``calibration.p_values`` of their
    negatives). Every p-value in the band that n calibration rows can tell apart is equally likely. The least, ``1 / (n + 1)``, is left
    out: it holds everything beyond the calibration rows, near and far.

    Raises:
        ValueError: a band that is not ``0 < low <= high < 1``, or one between whose ends so few calibration rows have no p-value.

    >>> band_targets(jax.random.key(0), jnp.arange(99.0), 3, (0.02, 0.03))  # one or two of the 99 are higher
    Array([96.5, 97.5, 97.5], dtype=float32)
    """
    low, high = band
    count = len(calibration_scores)
    # From a hair below and to a hair above: the ends of a band are often multiples of 1 / (n + 1).
    fewest, most = max(1, int(np.ceil(low * (count + 1) - 1e-9)) - 1), int(np.floor(high * (count + 1) + 1e-9)) - 1
    if not 0 < low <= high < 1 or most < fewest or most >= count:
        raise ValueError(
            f"a band of p-values needs 0 < low <= high < 1 and calibration rows enough to have a p-value in it, above the least, "
            f"got {band} with {count} rows, whose p-values are multiples of {1 / (count + 1):.3g}; widen it or calibrate on more"
        )
    ordered = jnp.sort(jnp.asarray(calibration_scores))[::-1]
    at_least = jax.random.randint(key, (rows,), fewest, most + 1)
    return 0.5 * (ordered[at_least - 1] + ordered[at_least])


def detector_guided(
    key: Array,
    denoise: Denoise,
    x: Float[Array, "batch *sample"],
    levels: NoiseLevel,
    *,
    score: RowScore,
    calibration_scores: Float[Array | np.ndarray, " normals"],
    variance: Variance,
    band: tuple[float, float] = (0.001, 0.05),
    polish: int = 20,
) -> Generated:
    """Hard anomalies: rows that the denoiser would make, with a detector's score drawn from a band of p-values.

    Every clean estimate on the way back takes one Newton step towards the row's target score and is noised again, so that the denoiser
    mends what the step spoilt; ``polish`` steps at the end settle the score. Works with any differentiable score: a score of
    ``jaxad.scoring`` averaged over levels, the output of a network, a soft minimum of distances. A score that cannot reach its target
    (flat, or bounded) leaves its row where it is: look at the p-values of what comes back.

    Args:
        x, levels, variance: as for ``sdas``.
        score: ``rows -> [batch]``, larger = more anomalous.
        calibration_scores: ``score`` of normal rows that were not trained on.
        band: p-values from (barely) to (normal), see ``band_targets``; the strength of this generator.

    Evaluations per row: ``steps``, and ``steps + polish`` gradients of the score.

    Raises:
        ValueError: a band or calibration scores out of which no target comes, levels that are no path, a denoiser of rows of another
            shape, or a score that is not one number per row.

    >>> from jaxad import closed_form, noise, sampling
    >>> x, denoise = jax.random.normal(jax.random.key(0), (300, 2)), closed_form.gaussian_denoiser(jnp.zeros(2), jnp.eye(2))
    >>> def score(rows):
    ...     return jnp.sum(rows**2, axis=1)
    >>> options = {"score": score, "calibration_scores": score(x), "variance": sampling.fixed_large}
    >>> made = detector_guided(jax.random.key(1), denoise, x, noise.linear(1000)[::100], **options)
    >>> p = (1 + (score(x)[None] >= score(made.x)[:, None]).sum(axis=1)) / 301
    >>> bool(((0.001 <= p) & (p <= 0.05)).all())
    True
    """
    check_denoiser(denoise, x, levels, "detector-guided sampling")
    shape = jax.eval_shape(score, x).shape
    if shape != x.shape[:1]:
        raise ValueError(
            f"detector-guided sampling needs a score of shape {x.shape[:1]} for {x.shape[0]} rows, got {shape}"
        )
    if concrete(calibration_scores) and not np.isfinite(calibration_scores).all():
        raise ValueError("detector-guided sampling needs finite calibration scores, got some that are not")
    target_key, walk_key = jax.random.split(key)
    target = band_targets(target_key, calibration_scores, x.shape[0], band).astype(x.dtype)

    def guided(noisy, level):
        return reach(score, denoise(noisy, level), target, steps=1)

    rows = walked(walk_key, guided, x, levels, variance)
    return generated(reach(score, rows, target, steps=polish), True, Kind.HARD)
