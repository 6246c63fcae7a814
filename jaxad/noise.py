"""Noise levels and everything that follows from them in closed form.

The formulas, numbered as the rest of the library cites them (all for one noise level ``(alpha, sigma)``; x is a clean sample,
eps standard Gaussian noise, s a cleaner level than t):

    (1)  z_t         = alpha_t x + sigma_t eps                                     adding noise
    (2)  log_snr     = log(alpha^2 / sigma^2)                                       strictly decreasing along a schedule
    (3)  eps         = (z - alpha x) / sigma                                        noise      <-> clean
    (4)  v           = (alpha eps - sigma x) / r,   x = (alpha z / r - sigma v) / r velocity   <-> clean,  r^2 = alpha^2 + sigma^2
    (5)  score       = -eps / sigma = grad_z log q(z | x)                           score      <-> clean
    (6)  q(z_t|z_s)  = N(alpha_ts z_s, sigma_ts^2),  alpha_ts = alpha_t / alpha_s,  sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2
    (7)  q(z_s|z_t,x)= N(c_z z_t + c_x x, var),  c_z = alpha_ts sigma_s^2 / sigma_t^2,  c_x = alpha_s sigma_ts^2 / sigma_t^2,
                                                 var = sigma_ts^2 sigma_s^2 / sigma_t^2
    (8)  beta_t      = sigma_{t,t-1}^2,  abar_t = alpha_t^2                          DDPM's letters, for alpha^2 + sigma^2 = 1

With r = 1 (variance preserving) (4) is the v of Salimans & Ho 2022; with alpha = 1 it is -F of EDM (Karras et al. 2022, their c_skip
and c_out at sigma_data = 1). So one velocity serves both, for data of unit variance.

A *schedule* is a ``NoiseLevel`` whose arrays have shape ``[levels]``, cleanest first. Schedules are float64 numpy tables and are cast
where they meet data: one DDPM step changes sigma by 1e-4, which float32 differences would blur.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@flax.struct.dataclass
class NoiseLevel:
    """One noise level, or an array of them: ``noisy = alpha * clean + sigma * noise``.

    A pytree: index it, ``vmap`` over it, ``scan`` along it, save it. ``alpha`` and ``sigma`` have equal shapes; ``sigma > 0``.

    >>> schedule = linear(1000)
    >>> len(schedule), float(round(schedule[249].alpha ** 2, 6))
    (1000, 0.524085)
    """

    alpha: Float[Array | np.ndarray, "..."]
    sigma: Float[Array | np.ndarray, "..."]

    def __getitem__(self, index) -> "NoiseLevel":
        return NoiseLevel(self.alpha[index], self.sigma[index])

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def log_snr(self) -> Float[Array | np.ndarray, "..."]:
        """Formula (2): natural logarithm of the signal-to-noise ratio of unit-variance data; ``+inf`` is clean."""
        xp = _namespace(self.alpha)
        return 2.0 * (xp.log(self.alpha) - xp.log(self.sigma))

    def to(self, dtype) -> "NoiseLevel":
        """The same levels as JAX arrays of ``dtype``."""
        return NoiseLevel(jnp.asarray(self.alpha, dtype), jnp.asarray(self.sigma, dtype))


def _namespace(array):
    """numpy for host tables (float64 survives), jax.numpy for everything traced or on a device."""
    return np if isinstance(array, (np.ndarray, np.generic, float)) else jnp


def expand(level_values, like: Float[Array, "*batch"]) -> Float[Array, "..."]:
    """Append axes to per-row values (shape ``[]`` or ``[batch]``) until they broadcast against ``like``, in its dtype."""
    values = jnp.asarray(level_values, like.dtype)
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


# --------------------------------------------------------------------------------------------------------------- schedules


def from_betas(betas) -> NoiseLevel:
    """The variance-preserving schedule of DDPM's betas (Ho et al. 2020): ``abar_i = prod_{j<=i} (1 - beta_j)``.

    Raises:
        ValueError: fewer than 2 betas, or one outside (0, 1).
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or len(betas) < 2:
        raise ValueError(f"a schedule needs at least 2 noise levels in one dimension, got betas of shape {betas.shape}")
    if not ((betas > 0) & (betas < 1)).all():
        raise ValueError(
            f"every beta must lie strictly between 0 and 1, got values from {betas.min():.3g} to {betas.max():.3g}; "
            "use more levels, or a smaller beta_end"
        )
    log_abar = np.cumsum(np.log1p(-betas))
    return NoiseLevel(np.exp(0.5 * log_abar), np.sqrt(-np.expm1(log_abar)))


def linear(
    num_levels: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 2e-2, rescale: bool = True
) -> NoiseLevel:
    """Linear betas (Ho et al. 2020), scaled by ``1000 / num_levels`` so that the last level stays equally noisy.

    DTE's repository uses ``linear(1000, beta_end=1e-2)`` and, for its time classifiers, ``linear(400, beta_end=1e-2, rescale=False)``.

    >>> linear(1000).alpha[[0, 99, 249]] ** 2
    array([0.9999    , 0.89701815, 0.52408537])
    """
    scale = 1000 / _at_least_two(num_levels) if rescale else 1.0
    return from_betas(np.linspace(beta_start * scale, beta_end * scale, num_levels))


def scaled_linear(num_levels: int = 1000, *, beta_start: float = 1.5e-3, beta_end: float = 1.95e-2) -> NoiseLevel:
    """Betas linear in their square root (latent diffusion; defaults of ddpm-ood, Graham et al. 2023)."""
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, _at_least_two(num_levels)) ** 2)


def cosine(num_levels: int = 1000) -> NoiseLevel:
    """Nichol & Dhariwal 2021: ``abar(u) = cos^2((u + .008) / 1.008 * pi / 2)`` with betas clipped at .999."""
    u = np.arange(_at_least_two(num_levels) + 1) / num_levels
    abar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - abar[1:] / abar[:-1], 0.999))


def sigmoid(num_levels: int = 1000, *, start: float = -3.0, end: float = 3.0, temperature: float = 1.0) -> NoiseLevel:
    """Jabri et al. 2022 / Chen 2023: ``abar`` falls along a sigmoid; ``temperature=.9`` for 128 pixels and more."""
    u = (np.arange(_at_least_two(num_levels)) + 1) / num_levels

    def logistic(value):
        return 1 / (1 + np.exp(-value / temperature))

    abar = (logistic(end) - logistic(u * (end - start) + start)) / (logistic(end) - logistic(start))
    abar = np.clip(abar, 1e-9, 1 - 1e-9)
    return NoiseLevel(np.sqrt(abar), np.sqrt(1 - abar))


def karras(num_levels: int = 18, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> NoiseLevel:
    """EDM's levels (Karras et al. 2022, eq. 5), variance exploding (``alpha = 1``), here cleanest first.

    >>> karras(18).sigma[[0, -1]]
    array([2.e-03, 8.e+01])
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"noise levels need 0 < sigma_min < sigma_max, got {sigma_min=}, {sigma_max=}")
    ramp = np.linspace(0, 1, _at_least_two(num_levels))
    sigma = (sigma_min ** (1 / rho) + ramp * (sigma_max ** (1 / rho) - sigma_min ** (1 / rho))) ** rho
    return NoiseLevel(np.ones_like(sigma), sigma)


def log_uniform(num_levels: int = 10, *, sigma_min: float = 0.05, sigma_max: float = 3.0) -> NoiseLevel:
    """Variance-exploding levels whose sigma grows geometrically: the grid of score-norm methods (MSMA, Mahmood et al. 2021)."""
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"noise levels need 0 < sigma_min < sigma_max, got {sigma_min=}, {sigma_max=}")
    sigma = np.geomspace(sigma_min, sigma_max, _at_least_two(num_levels))
    return NoiseLevel(np.ones_like(sigma), sigma)


def rectified_flow(num_levels: int = 1000) -> NoiseLevel:
    """The straight path ``z = (1 - u) x + u eps`` (Liu et al. 2022) at the midpoints of ``num_levels`` equal steps of u."""
    u = (np.arange(_at_least_two(num_levels)) + 0.5) / num_levels
    return NoiseLevel(1 - u, u)


def shift_log_snr(schedule: NoiseLevel, shift: float) -> NoiseLevel:
    """Add ``shift`` to every log-SNR while keeping ``alpha^2 + sigma^2``, so variance-preserving schedules stay so."""
    r = np.sqrt(schedule.alpha**2 + schedule.sigma**2)
    angle = np.arctan2(schedule.sigma, schedule.alpha * np.exp(0.5 * shift))
    return NoiseLevel(r * np.cos(angle), r * np.sin(angle))


def shift_for_resolution(schedule: NoiseLevel, size: int, reference_size: int = 64) -> NoiseLevel:
    """Hoogeboom et al. 2023: larger pictures average noise away, so ``log_snr += 2 log(reference_size / size)``."""
    return shift_log_snr(schedule, 2 * float(np.log(reference_size / size)))


def _at_least_two(num_levels: int) -> int:
    if int(num_levels) != num_levels or num_levels < 2:
        raise ValueError(f"a schedule needs at least 2 noise levels, got {num_levels=}")
    return int(num_levels)


# --------------------------------------------------------------------------------------------------- noising and its posterior


def add_noise(
    clean: Float[Array, "*sample"], noise: Float[Array, "*sample"], level: NoiseLevel
) -> Float[Array, "*sample"]:
    """Formula (1). ``level`` is scalar or has one entry per leading row of ``clean``."""
    return expand(level.alpha, clean) * clean + expand(level.sigma, clean) * noise


class Gaussian(NamedTuple):
    """Coefficients of formula (7): ``mean = from_noisy * z_t + from_clean * x``; the arrays broadcast like the levels given."""

    from_noisy: Any
    from_clean: Any
    variance: Any


def transition_variance(cleaner: NoiseLevel, noisier: NoiseLevel):
    """``sigma_ts^2`` of formula (6): the variance added from ``cleaner`` to ``noisier``; DDPM's beta between neighbours (8)."""
    xp = _namespace(noisier.alpha)
    # sigma_t^2 (1 - SNR_t / SNR_s): the subtraction happens between logarithms, where float32 keeps its digits.
    return -(noisier.sigma**2) * xp.expm1(noisier.log_snr - cleaner.log_snr)


def posterior(cleaner: NoiseLevel, noisier: NoiseLevel) -> Gaussian:
    """Formula (7), ``q(z_s | z_t, x)`` between any two levels s (cleaner) and t (noisier) of one schedule.

    >>> schedule = linear(1000)
    >>> step = posterior(schedule[10], schedule[11])
    >>> bool(np.isclose(step.from_noisy * schedule[11].alpha + step.from_clean, schedule[10].alpha))
    True
    """
    added = transition_variance(cleaner, noisier)
    ratio = cleaner.sigma**2 / noisier.sigma**2
    return Gaussian(
        from_noisy=noisier.alpha / cleaner.alpha * ratio,
        from_clean=cleaner.alpha * added / noisier.sigma**2,
        variance=added * ratio,
    )


# ------------------------------------------------------------------------------------------------------- what a network predicts


class Prediction(NamedTuple):
    """What a network's output means: ``target(clean, noise, level)`` to learn, ``to_clean(output, noisy, level)`` to use it."""

    target: Callable[..., Array]
    to_clean: Callable[..., Array]


def _norm(level: NoiseLevel):
    return (level.alpha**2 + level.sigma**2) ** 0.5


def _clean_target(clean, noise, level):
    return clean


def _clean_to_clean(output, noisy, level):
    return output


def _noise_target(clean, noise, level):
    return noise


def _noise_to_clean(output, noisy, level):
    return (noisy - expand(level.sigma, noisy) * output) / expand(level.alpha, noisy)


def _velocity_target(clean, noise, level):
    r = _norm(level)
    return expand(level.alpha / r, clean) * noise - expand(level.sigma / r, clean) * clean


def _velocity_to_clean(output, noisy, level):
    r = _norm(level)
    return expand(level.alpha / r**2, noisy) * noisy - expand(level.sigma / r, noisy) * output


def _score_target(clean, noise, level):
    return -expand(_norm(level) / level.sigma, noise) * noise


def _score_to_clean(output, noisy, level):
    return (noisy + expand(level.sigma**2 / _norm(level), noisy) * output) / expand(level.alpha, noisy)


CLEAN = Prediction(_clean_target, _clean_to_clean)
NOISE = Prediction(_noise_target, _noise_to_clean)  # formula (3)
VELOCITY = Prediction(_velocity_target, _velocity_to_clean)  # formula (4)
SCORE = Prediction(_score_target, _score_to_clean)  # formula (5) times r: the gradient by the network's own input z / r


def noise_from_clean(
    clean: Float[Array, "*sample"], noisy: Float[Array, "*sample"], level: NoiseLevel
) -> Float[Array, "*sample"]:
    """Formula (3): the noise that ``noisy`` holds if ``clean`` is its clean part."""
    return (noisy - expand(level.alpha, noisy) * clean) / expand(level.sigma, noisy)


def score_from_clean(
    clean: Float[Array, "*sample"], noisy: Float[Array, "*sample"], level: NoiseLevel
) -> Float[Array, "*sample"]:
    """Formula (5): ``grad log p_t(noisy)`` when ``clean`` is the posterior mean (Tweedie)."""
    return -noise_from_clean(clean, noisy, level) / expand(level.sigma, noisy)


def reverse_paths(schedule: NoiseLevel, starts, num_steps: int) -> NoiseLevel:
    """One reverse path per start, as data: levels of shape ``[starts, num_steps]``, each row cleanest first and ending at its start.

    Every row has the same length, so a sampler or scorer is ``vmap``ped over the rows. Steps are spread evenly over the indices
    ``0 .. start`` of ``schedule``.

    Raises:
        ValueError: fewer than 2 steps, a start outside the schedule, or one with fewer than ``num_steps`` levels at and below it.

    >>> paths = reverse_paths(linear(1000), starts=[99, 249], num_steps=10)
    >>> paths.alpha.shape
    (2, 10)
    """
    if num_steps < 2:
        raise ValueError(f"a path needs at least 2 steps, its start and the cleanest level, got {num_steps=}")
    starts = np.atleast_1d(np.asarray(starts, np.int64))
    if starts.max() >= len(schedule) or starts.min() < num_steps - 1:
        raise ValueError(
            f"a path of {num_steps} steps must start between index {num_steps - 1} and {len(schedule) - 1} of this schedule, "
            f"got starts from {starts.min()} to {starts.max()}"
        )
    indices = np.stack([np.round(np.linspace(0, start, num_steps)).astype(np.int64) for start in starts])
    return schedule[indices]
