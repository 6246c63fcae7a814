"""Where a network becomes a function: ``Denoise = (noisy, level) -> clean estimate``.

Parameters, what the network predicts, conditioning and precision are closed over here and nowhere else; samplers and scorers see
only the function. They may rely on one property of every ``Denoise``: it depends on ``noisy`` only through ``noisy / alpha`` and
``sigma / alpha``, so ``denoise(z, (alpha, sigma)) == denoise(z / alpha, (1, sigma / alpha))``.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxad.noise import VELOCITY, NoiseLevel, Prediction, expand, posterior, transition_variance

Denoise = Callable[[Array, NoiseLevel], Array]
"""``(noisy [batch, *sample], level with arrays of shape [] or [batch]) -> posterior mean of the clean sample, [batch, *sample]``."""

Network = nn.Module
"""What is called as ``network.apply({"params": params}, x, log_snr)``: a linen module, which is its own configuration."""

Variance = Callable[[Array, NoiseLevel, NoiseLevel], Array]
"""``(noisy, cleaner, noisier) -> variance of the reverse step``, broadcastable against ``noisy``; see ``jaxad.sampling.ancestral``."""


def network_output(
    network: nn.Module,
    params: Any,
    noisy: Float[Array, "batch *sample"],
    level: NoiseLevel,
    *,
    label: Int[Array, " batch"] | None = None,
    dropout_key: Array | None = None,
    dtype: Any = None,
) -> tuple[Float[Array, "batch *sample"], Float[Array, "batch *sample"] | None]:
    """Run the network on unit-variance input: ``(prediction, variance interpolation or None)``.

    ``noisy`` is divided by ``sqrt(alpha^2 + sigma^2)`` (EDM's c_in at unit data variance; 1 for variance-preserving levels). With
    ``network.learned_variance`` the last axis of the raw output is twice as long and its second half is the interpolation.
    A ``dropout_key`` switches training mode on.
    """
    scaled, log_snr = _network_input(noisy, level)
    options = {"train": True, "rngs": {"dropout": dropout_key}} if dropout_key is not None else {}
    if label is not None:
        options["label"] = label
    if dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        scaled = scaled.astype(dtype)
    output = network.apply({"params": params}, scaled, log_snr, **options)
    output = jnp.asarray(output, noisy.dtype)
    if getattr(network, "learned_variance", False):
        prediction, interpolation = jnp.split(output, 2, axis=-1)
        return prediction, interpolation
    return output, None


def _network_input(noisy, level):
    """``(noisy at unit variance, log-SNR [batch])``: what every network is called with."""
    r = (level.alpha**2 + level.sigma**2) ** 0.5
    log_snr = jnp.broadcast_to(jnp.asarray(level.log_snr, jnp.float32), noisy.shape[:1])
    return noisy / expand(r, noisy), log_snr


def make_denoiser(
    network: nn.Module,
    params: Any,
    prediction: Prediction = VELOCITY,
    *,
    label: Int[Array, ""] | None = None,
    dtype: Any = None,
) -> Denoise:
    """Close a network, its parameters and the meaning of its output into one ``Denoise``.

    Args:
        network: any linen module called as ``network.apply({"params": params}, x, log_snr)``, see ``jaxad.denoisers``.
        params: its parameters (use the averaged ones, ``TrainState.ema``).
        prediction: what the output means; the one the network was trained with.
        label: class condition shared by all rows, for a network with ``num_classes``.
        dtype: compute in this precision (``jnp.bfloat16``); the estimate comes back in the dtype of ``noisy``.

    >>> import jax, jax.numpy as jnp
    >>> from jaxad import noise
    >>> from jaxad.denoisers import MLP
    >>> x = jnp.ones((3, 5))
    >>> network = MLP(width=16, depth=1)
    >>> params = network.init(jax.random.key(0), x, jnp.zeros(3))["params"]
    >>> make_denoiser(network, params)(x, noise.cosine(10)[4]).shape
    (3, 5)
    """

    def denoise(noisy, level):
        labels = None if label is None else jnp.broadcast_to(label, noisy.shape[:1])
        output, _ = network_output(network, params, noisy, level, label=labels, dtype=dtype)
        return prediction.to_clean(output, noisy, level)

    return denoise


def classifier_free(conditional: Denoise, unconditional: Denoise, weight: float) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): ``eps = (1 + weight) eps_conditional - weight eps_unconditional``.

    In clean estimates, of which the noise is an affine function, the same sum. With the label *normal* against the null label an image
    is rebuilt more normal than the data are, and anomalies stand out (Wolleb et al. 2022 need a classifier for that). 0 is
    ``conditional`` itself, -1 ``unconditional``. Two evaluations for one.

    >>> from jaxad import noise
    >>> level = noise.cosine(10)[4].to(jnp.float32)
    >>> guided = classifier_free(lambda noisy, level: 0 * noisy + 3, lambda noisy, level: 0 * noisy + 1, 2.0)
    >>> guided(jnp.zeros((1, 2)), level)  # 3 * 3 - 2 * 1
    Array([[7., 7.]], dtype=float32)
    """

    def denoise(noisy, level):
        clean = conditional(noisy, level)
        return clean + weight * (clean - unconditional(noisy, level))

    return denoise


def guided_towards(denoise: Denoise, target: Float[Array, "batch *sample"], weight: float) -> Denoise:
    """The estimate is drawn towards ``target``: ``D + weight sigma^2 / (alpha^2 + sigma^2) (target - D)``.

    Written in clean estimates this is ``eps' = eps - weight sigma (y_t - z)`` with ``y_t = alpha target + sigma eps`` (DDAD, Mousakhan et
    al. 2023, eq. 6, arXiv 2305.15956), for variance-preserving levels; the division extends it to all. Much at noisy levels and
    little at clean ones: the target is kept where it is what the denoiser could have made.

    >>> from jaxad import noise
    >>> level = noise.NoiseLevel(jnp.sqrt(jnp.float32(0.75)), jnp.float32(0.5))
    >>> guided = guided_towards(lambda noisy, level: 0 * noisy, jnp.full((1, 2), 8.0), 1.0)
    >>> guided(jnp.ones((1, 2)), level)  # a quarter of the way
    Array([[2., 2.]], dtype=float32)
    """

    def guided(noisy, level):
        clean = denoise(noisy, level)
        share = level.sigma**2 / (level.alpha**2 + level.sigma**2)
        return clean + weight * expand(share, noisy) * (target - clean)

    return guided


def hidden_features(
    network: nn.Module, params: Any, noisy: Float[Array, "batch *sample"], level: NoiseLevel
) -> Float[Array, "batch width"]:
    """What the network has made of its input before the output layer: the output of its last LayerNorm, flat.

    At a small noise level these are features in which rows that the denoiser tells apart lie apart.

    Raises:
        ValueError: the network has no LayerNorm of its own (only inside submodules, or none).

    >>> import jax
    >>> from jaxad.denoisers import MLP
    >>> x, network = jnp.ones((3, 5)), MLP(width=16, depth=1)
    >>> params = network.init(jax.random.key(0), x, jnp.zeros(3))["params"]
    >>> hidden_features(network, params, x, NoiseLevel(jnp.float32(1), jnp.float32(0.1))).shape
    (3, 16)
    """
    _, state = network.apply(
        {"params": params},
        *_network_input(noisy, level),
        capture_intermediates=lambda module, _: isinstance(module, nn.LayerNorm),
        mutable=["intermediates"],
    )
    norms: Any = {name: value for name, value in state["intermediates"].items() if name.startswith("LayerNorm_")}
    if not norms:
        raise ValueError(
            f"features are read off a network's last LayerNorm, which {type(network).__name__} does not have"
        )
    last = max(norms, key=lambda name: int(name.removeprefix("LayerNorm_")))
    return norms[last]["__call__"][0].reshape(noisy.shape[0], -1)


def interpolate_variance(interpolation, log_small, log_large):
    """Nichol & Dhariwal 2021, eq. 15: ``log var = f log beta + (1 - f) log beta~`` with ``f = (interpolation + 1) / 2``."""
    fraction = (interpolation + 1) / 2
    return fraction * log_large + (1 - fraction) * log_small


def make_learned_variance(network: nn.Module, params: Any) -> Variance:
    """The reverse-step variance of a network trained with ``learned_variance=True`` and ``training.hybrid_loss``.

    Raises:
        ValueError: the network has no variance output.
    """
    if not getattr(network, "learned_variance", False):
        raise ValueError(f"a learned variance needs a network built with learned_variance=True, got {network!r}")

    def variance(noisy, cleaner, noisier):
        _, interpolation = network_output(network, params, noisy, noisier)
        small = jnp.maximum(posterior(cleaner, noisier).variance, 1e-20)
        large = jnp.maximum(transition_variance(cleaner, noisier), 1e-20)
        return jnp.exp(
            interpolate_variance(interpolation, expand(jnp.log(small), noisy), expand(jnp.log(large), noisy))
        )

    return variance
