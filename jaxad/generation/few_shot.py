"""Anomalies like a few real ones: a denoiser of normal images, taught 1 to 10 examples of each kind without losing what it knew.

After AnomalyDiffusion (Hu et al., AAAI 2024, arXiv 2312.05767): the network is frozen, and what a kind looks like and where it is to be
is learned beside it. ``adapt`` learns, ``few_shot`` makes. What differs from the paper:

- the frozen network is a ``DiT`` of yours, trained on normal images, not a text-to-image model of 1.4 billion parameters that has seen
  scratches before. So its attention learns too, by low-rank changes (LoRA, Hu et al., ICLR 2022) of ``qkv`` and ``attention_out``;
- the tokens of a kind enter at the patches, once, and not in every layer: a small convolutional network reads the mask, each patch of it
  asks the tokens (cross-attention), and the answer is added to that patch of the image;
- the loss sees the image, in the network's own target (noise, as published, for a network that predicts noise), and has a second part:
  outside the mask the network is to stay as it was;
- no adaptive re-weighting of the attention while sampling, and masks come from ``masks_from_examples``, not from a second model.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxad.denoisers import DiT
from jaxad.denoising import classifier_free, make_denoiser, network_output
from jaxad.generation.generated import (
    Generated,
    Kind,
    check_denoiser,
    check_examples,
    check_mask,
    check_strength,
    concrete,
    generated,
)
from jaxad.noise import VELOCITY, NoiseLevel, Prediction, add_noise
from jaxad.sampling import ddim
from jaxad.scoring.draws import check_images
from jaxad.training import TrainState, adam, draw_levels_and_noise, train_step

RANK = 4
"""Rank of the changes to the attention's matrices."""

TOKENS = 4
"""Learned tokens for each kind, as published."""

ADAPTED = ("qkv", "attention_out")
"""Layers of every block whose matrices change."""

_MASK_CHANNELS = 16  # between the convolutions of the mask's encoder


@flax.struct.dataclass
class Adapters:
    """What is learned beside a frozen network; a pytree of arrays, to be saved with the network's parameters.

    ``low_rank[block][layer]``: ``down [in, RANK]`` and ``up [RANK, out]``. ``tokens [kinds, tokens, features]``: what each kind looks
    like, ``adapters.replace(tokens=describe(...))`` for kinds never seen. ``where``: the mask's encoder, four convolutions.
    ``attention``: ``key`` and ``value [features, hidden]`` of the tokens, ``out [hidden, hidden]``. ``described``: the tokens come from a
    text and are not learned.
    """

    low_rank: Any
    tokens: Float[Array, "..."]
    where: Any
    attention: Any
    described: bool = flax.struct.field(pytree_node=False, default=False)


def describe(encoder: Callable[[str], Any], texts: Sequence[str]) -> Float[Array, "kinds tokens features"]:
    """Tokens for kinds from their names in words, by an encoder of yours: ``text -> [tokens, features]``, for ``adapt(tokens=...)``.

    Raises:
        ValueError: no text, or an encoder whose output is not ``[tokens, features]``, finite and of one shape for all texts.

    >>> describe(lambda text: np.ones((3, len("features"))), ["a scratch", "a hole"]).shape
    (2, 3, 8)
    """
    found = [np.asarray(encoder(text)) for text in texts]
    shapes = sorted({one.shape for one in found})
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise ValueError(
            f"a text encoder must return one shape [tokens, features] for all of at least one text, got {shapes} for {len(found)} "
            "texts; pad or cut them to one number of tokens"
        )
    if not (np.issubdtype(found[0].dtype, np.number) and np.isfinite(found).all()):
        raise ValueError(f"a text encoder must return finite numbers, got some that are not, of {found[0].dtype}")
    return jnp.asarray(np.stack(found), jnp.float32)


def init_adapters(key: Array, network: Any, params: Any, tokens: int | Float[Array, "kinds _ features"]) -> Adapters:
    """Adapters that change nothing yet: every last matrix is 0. ``tokens``: those of a text, or the number of kinds to learn them for."""
    hidden, patch = network.hidden, network.patch_size
    keys = iter(jax.random.split(key, 7 + 2 * network.depth))
    described = not isinstance(tokens, int)
    words = tokens if described else jax.random.normal(next(keys), (tokens, TOKENS, hidden))
    matrix = jax.nn.initializers.lecun_normal()

    def low_rank(kernel):
        return {"down": matrix(next(keys), (kernel.shape[0], RANK)), "up": jnp.zeros((RANK, kernel.shape[1]))}

    blocks = [f"block_{index}" for index in range(network.depth)]
    changes = {block: {name: low_rank(params[block][name]["kernel"]) for name in ADAPTED} for block in blocks}
    channels = [patch**2, *[9 * _MASK_CHANNELS] * 3]
    sizes = zip(channels, [*[_MASK_CHANNELS] * 3, hidden], strict=True)
    where = [{"kernel": matrix(next(keys), size), "bias": jnp.zeros(size[-1])} for size in sizes]
    attention = {name: matrix(next(keys), (words.shape[-1], hidden)) for name in ("key", "value")}
    attention["out"] = jnp.zeros((hidden, hidden))
    return Adapters(changes, words, where, attention, described)


def adapted_params(
    params: Any,
    adapters: Adapters,
    mask: Bool[Array, "batch height width"],
    kinds: Int[Array | np.ndarray, " batch"],
    strength: Float[Array, ""] | float = 1.0,
) -> Any:
    """The network's parameters for a batch with these masks and kinds: matrices ``W + strength down up``, and the hint at the patches.

    New ones; ``params`` stay what they are. ``strength`` 0 gives ``params`` to the bit, and a hint of 0; so do adapters fresh from
    ``init_adapters``.
    """
    changed = {
        block: {name: _plus(params[block][name], change, strength) for name, change in layers.items()}
        for block, layers in adapters.low_rank.items()
    }
    blocks = {block: params[block] | layers for block, layers in changed.items()}
    return params | blocks | {"hint": strength * _hint(adapters, mask, kinds)}


def _plus(layer, change, strength):
    return layer | {"kernel": layer["kernel"] + strength * (change["down"] @ change["up"])}


def _hint(adapters, mask, kinds) -> Float[Array, "batch window hidden"]:
    """For every patch, what its place in the mask says and what the tokens of the kind answer it."""
    query = _encoded(adapters.where, mask)
    words = adapters.tokens[jnp.asarray(kinds)]
    key, value = words @ adapters.attention["key"], words @ adapters.attention["value"]
    heads = [part[:, :, None] for part in (query, key, value)]  # one
    return (query + jax.nn.dot_product_attention(*heads)[:, :, 0]) @ adapters.attention["out"]


def _encoded(layers, mask) -> Float[Array, "batch window hidden"]:
    """Four convolutions: one whose steps are the network's patches, and three of 3 x 3 patches, as products with matrices.

    (Inside a scan XLA's convolutions on CPUs are 20 times slower than the network.)
    """
    batch, height, width = mask.shape
    patch = math.isqrt(layers[0]["kernel"].shape[0])
    rows, columns = height // patch, width // patch
    grid = mask.reshape(batch, rows, patch, columns, patch).transpose(0, 1, 3, 2, 4).reshape(batch, rows, columns, -1)
    grid = _affine(layers[0], grid.astype(jnp.float32))
    for layer in layers[1:]:
        padded = jnp.pad(jax.nn.silu(grid), ((0, 0), (1, 1), (1, 1), (0, 0)))
        around = [padded[:, down : down + rows, right : right + columns] for down in range(3) for right in range(3)]
        grid = _affine(layer, jnp.concatenate(around, axis=-1))
    return grid.reshape(batch, rows * columns, -1)


def _affine(layer, values):
    return values @ layer["kernel"] + layer["bias"][None, None, None]


# ------------------------------------------------------------------------------------------------------------------- learning


def few_shot_loss(
    key: Array,
    adapters: Adapters,
    x: Float[Array, "batch height width channels"],
    schedule: NoiseLevel,
    *,
    network: Any,
    params: Any,
    mask: Bool[Array, "batch height width"],
    kinds: Int[Array, " batch"],
    anomalous: Bool[Array, " batch"],
    prediction: Prediction = VELOCITY,
    background: float = 0.1,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Squared error of the network's output under the mask of ``anomalous`` rows, plus ``background`` times its departure elsewhere.

    Elsewhere: outside the mask of all rows, from what the frozen ``params`` predict. Both are means over the elements of a row, then over
    rows. A ``training.Loss`` once everything after ``*`` is given; in rows that are not ``anomalous`` the mask says where an anomaly
    might have been.
    """
    if adapters.described:
        adapters = dataclasses.replace(adapters, tokens=jax.lax.stop_gradient(adapters.tokens))
    index, noise = draw_levels_and_noise(key, x, schedule, axis_name)
    level = schedule[index]
    noisy = add_noise(x, noise, level)
    learned, _ = network_output(network, adapted_params(params, adapters, mask, kinds), noisy, level)
    frozen, _ = network_output(network, params, noisy, level)
    inside = _mean_under(mask, (learned - prediction.target(x, noise, level)) ** 2)
    outside = _mean_under(~mask, (learned - frozen) ** 2)
    return jnp.sum(anomalous * inside) / jnp.sum(anomalous) + background * jnp.mean(outside)


def _mean_under(mask, values) -> Float[Array, " batch"]:
    per_pixel = jnp.mean(values, axis=-1)
    return jnp.sum(mask * per_pixel, axis=(1, 2)) / jnp.maximum(jnp.sum(mask, axis=(1, 2)), 1)


def adapt(
    key: Array,
    network: Any,
    params: Any,
    images: Float[Array, "few height width channels"],
    masks,
    kinds,
    normals: Float[Array, "batch height width channels"],
    schedule: NoiseLevel,
    *,
    prediction: Prediction = VELOCITY,
    tokens: Float[Array, "kinds tokens features"] | None = None,
    num_steps: int = 1000,
    batch_size: int = 4,
    learning_rate: float = 5e-3,
    background: float = 0.1,
    shift: int = 0,
    mirror: bool = False,
) -> tuple[Adapters, Float[Array, " steps"]]:
    """Learn what a few real anomalies look like: ``(averaged adapters, loss of every step)``. The network is not touched.

    A step sees ``batch_size`` anomalies, every kind as often as every other, and as many normal images under masks of the anomalies, moved
    about, where it is to change nothing outside. To compile it, or to ``vmap`` it over keys, close over all but the key.

    Args:
        network, params: a ``DiT`` on images and its trained parameters (``TrainState.ema``).
        schedule, prediction: what it was trained with.
        images: anomalies in the scale of ``normals``, 1 to 10 of each kind.
        masks: where each is wrong, bool [few, height, width].
        kinds: which kind each is, integers [few] from 0 on, none left out.
        tokens: kinds in words (``describe``), of which key and value are learned; None: ``TOKENS`` learned tokens for each kind.
        background: weight of what must not change, see ``few_shot_loss``.
        shift: pixels by which anomalies are moved up, down and sideways at most, the border repeated.
        mirror: anomalies are mirrored left to right half of the time; for pictures where that makes no other kind.

    Evaluations: ``2 batch_size num_steps`` with a gradient, and as many without.

    Raises:
        ValueError: a network that is no ``DiT`` on images or takes rows of another shape, masks of another shape, empty or full, kinds that
            are not as above, anomalies of another shape than the normals or identical to one, tokens for another number of kinds, or a
            setting out of range.
        FloatingPointError: the loss stopped being finite; the message names the step.

    >>> from jaxad import noise
    >>> network, normals = DiT(hidden=16, depth=1, heads=2, patch_size=4), jnp.zeros((3, 8, 8, 1))
    >>> params = network.init(jax.random.key(0), normals, jnp.zeros(3))["params"]
    >>> mask = np.zeros((1, 8, 8), bool)
    >>> mask[0, 2:5, 2:5] = True
    >>> images, schedule = jnp.where(mask[..., None], 1.0, normals[:1]), noise.cosine(100)
    >>> @jax.jit
    ... def learn(key):
    ...     return adapt(key, network, params, images, mask, [0], normals, schedule, num_steps=3)
    >>> @jax.jit
    ... def make(key, adapters):
    ...     return few_shot(key, network, params, adapters, normals, mask[0], np.zeros(3, int), schedule[9:99:10])
    >>> adapters, losses = learn(jax.random.key(1))
    >>> made = make(jax.random.key(2), adapters)
    >>> losses.shape, bool((made.x == normals)[~made.mask].all())
    ((3,), True)
    """
    state, step = adaptation(
        *(key, network, params, images, masks, kinds, normals, schedule),
        prediction=prediction,
        tokens=tokens,
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        background=background,
        shift=shift,
        mirror=mirror,
    )
    state, losses = jax.lax.scan(step, state, length=num_steps)
    check_losses(losses)
    return state.ema, losses


def adaptation(
    key,
    network,
    params,
    images,
    masks,
    kinds,
    normals,
    schedule,
    *,
    prediction: Prediction = VELOCITY,
    tokens=None,
    num_steps: int = 1000,
    batch_size: int = 4,
    learning_rate: float = 5e-3,
    background: float = 0.1,
    shift: int = 0,
    mirror: bool = False,
) -> tuple[TrainState, Callable[[TrainState, None], tuple[TrainState, Float[Array, ""]]]]:
    """``(state, step)`` of ``adapt``, checked and not yet run: for ``jax.lax.scan`` in pieces, with a look at the losses between them.

    The adapters are ``state.ema``; the same steps in other pieces give the same adapters.
    """
    what = "few-shot adaptation"
    check_images(images, what)
    check_images(normals, what)
    settings = {"num_steps": num_steps, "batch_size": batch_size, "learning_rate": learning_rate}
    least_side = min(images.shape[1:3])
    if min(settings.values()) <= 0 or background < 0 or not 0 <= shift < least_side:
        raise ValueError(
            f"{what} takes num_steps, batch_size and learning_rate above 0, a background of 0 or more, and a shift of 0 to "
            f"{least_side - 1} pixels, got {settings | {'background': background, 'shift': shift}}"
        )
    for name, rows in (("anomalies", images), ("normals", normals)):
        if not jnp.issubdtype(rows.dtype, jnp.floating) or (concrete(rows) and not np.isfinite(rows).all()):
            raise ValueError(
                f"{what} needs finite {name} on the scale of the network, in floating point, got {rows.dtype}"
            )
    if tokens is not None and jnp.ndim(tokens) != 3:
        raise ValueError(
            f"{what} takes tokens [kinds, tokens, features], as describe makes them, got {jnp.shape(tokens)}"
        )
    kinds, num_kinds = _check_kinds(kinds, len(images), None if tokens is None else len(tokens))
    if concrete(images) and concrete(normals):
        check_examples(images, normals, kinds=num_kinds)
    schedule = schedule.to(images.dtype)
    _check_network(network, params, images, schedule, prediction, what)
    masks = check_mask(masks, images, what).any(axis=-1)

    init_key, run_key = jax.random.split(key)
    adapters: Any = init_adapters(init_key, network, params, num_kinds if tokens is None else jnp.asarray(tokens))
    optimizer = adam(learning_rate)
    state = TrainState(
        jnp.zeros((), jnp.int32), adapters, jax.tree.map(jnp.copy, adapters), optimizer.init(adapters), run_key
    )

    def step(state, _):
        batch_key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
        x, mask, kind, anomalous = _batch(batch_key, images, masks, kinds, normals, batch_size, shift, mirror)

        def loss(key, adapters, x, schedule, *, axis_name=None):
            return few_shot_loss(
                key,
                adapters,
                x,
                schedule,
                network=network,
                params=params,
                mask=mask,
                kinds=kind,
                anomalous=anomalous,
                prediction=prediction,
                background=background,
                axis_name=axis_name,
            )

        return train_step(state, x, schedule, loss=loss, optimizer=optimizer)

    return state, step


def check_losses(losses: Float[Array | np.ndarray, " steps"]) -> None:
    """Raise a FloatingPointError at the first step of ``adapt`` whose loss is not finite; traced ones pass."""
    if concrete(losses) and not np.isfinite(losses).all():
        raise FloatingPointError(
            f"the loss of few-shot adaptation is not finite at step {int(np.argmin(np.isfinite(losses)))}; lower the learning rate, "
            "or check the scale of the images"
        )


def _batch(key, images, masks, kinds, normals, batch_size, shift, mirror):
    """Half anomalies, half normals, in any order: the noise levels of a batch go up with its rows."""
    example_key, normal_key, mask_key, move_key, shift_key, mirror_key, order_key = jax.random.split(key, 7)
    share = 1 / np.bincount(kinds)[kinds]
    example = jax.random.choice(example_key, len(images), (batch_size,), p=jnp.asarray(share / share.sum()))
    both = jnp.concatenate([images, masks[..., None].astype(images.dtype)], axis=-1)[example]
    if shift:
        padded = jnp.pad(both, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
        start = jax.random.randint(shift_key, (batch_size, 2), 0, 2 * shift + 1)
        both = jax.vmap(lambda one, at: jax.lax.dynamic_slice(one, (at[0], at[1], 0), both.shape[1:]))(padded, start)
    if mirror:
        flipped = jax.random.bernoulli(mirror_key, 0.5, (batch_size, 1, 1, 1))
        both = jnp.where(flipped, both[:, :, ::-1], both)

    normal = normals[jax.random.randint(normal_key, (batch_size,), 0, len(normals))]
    other = jax.random.choice(mask_key, len(images), (batch_size,), p=jnp.asarray(share / share.sum()))
    height, width = masks.shape[1:]
    move = jax.random.randint(move_key, (batch_size, 2), 0, jnp.array([[height, width]]))
    moved = jax.vmap(lambda mask, by: jnp.roll(mask, (by[0], by[1]), axis=(0, 1)))(masks[other], move)

    order = jax.random.permutation(order_key, 2 * batch_size)
    kinds = jnp.asarray(kinds)
    x = jnp.concatenate([both[..., :-1], normal])[order]
    mask = jnp.concatenate([both[..., -1] > 0.5, moved])[order]
    return x, mask, jnp.concatenate([kinds[example], kinds[other]])[order], order < batch_size


# --------------------------------------------------------------------------------------------------------------------- making


def few_shot(
    key: Array,
    network: Any,
    params: Any,
    adapters: Adapters,
    x: Float[Array, "batch height width channels"],
    mask,
    kinds,
    levels: NoiseLevel,
    *,
    prediction: Prediction = VELOCITY,
    strength: Float[Array, ""] | float = 1.0,
    weight: float = 0.0,
) -> Generated:
    """Normal images with an anomaly of the kind ``kinds[i]`` under the mask of image i, by DDIM in which all else is known.

    Args:
        network, params: the frozen ones that ``adapt`` was given.
        mask: for each image or one for all, with or without channels (``masks_from_examples``).
        kinds: integers [batch], those of ``adapt``.
        levels: [steps], cleanest first; at the last one the noise should drown the data. 50 of them, as published.
        strength: how far the network is changed, from 0 (the frozen network fills the mask with something normal) to 1.
        weight: guidance away from what the frozen network would make, from 0 to 10 (``denoising.classifier_free``).

    Evaluations per row: ``steps``, twice as many with a ``weight``.

    Raises:
        ValueError: a strength or weight out of range, a mask of another shape, an empty or a full one, kinds that were not adapted to or
            not one for each image, levels that are no path, or a network of rows of another shape.
    """
    what = "few-shot generation"
    check_images(x, what)
    check_strength(strength, 0.0, 1.0, what)
    check_strength(weight, 0.0, 10.0, "guidance of few-shot generation")
    kinds = np.asarray(kinds) if concrete(kinds) else kinds
    mask, num_kinds = check_mask(mask, x, what), len(adapters.tokens)
    if kinds.shape != x.shape[:1] or (concrete(kinds) and not ((kinds >= 0) & (kinds < num_kinds)).all()):
        raise ValueError(
            f"{what} needs a kind from 0 to {num_kinds - 1} for each of {len(x)} images, got {_shown(kinds)}; adapt to more kinds, or "
            "ask for these"
        )
    levels = levels.to(x.dtype)
    _check_network(network, params, x, levels, prediction, what)
    changed = adapted_params(params, adapters, mask.any(axis=-1), kinds, strength)
    denoise = make_denoiser(network, changed, prediction)
    if weight:
        denoise = classifier_free(denoise, make_denoiser(network, params, prediction), weight)

    def known_outside(noisy, level):
        return jnp.where(mask, denoise(noisy, level), x)

    start_key, path_key = jax.random.split(key)
    start = add_noise(x, jax.random.normal(start_key, x.shape, x.dtype), levels[-1])
    return generated(ddim(path_key, known_outside, start, levels), mask, Kind.FEW_SHOT)


# --------------------------------------------------------------------------------------------------------------------- checks


def _check_network(network, params, x, levels, prediction, what):
    if not isinstance(network, DiT) or network.patch_size is None:
        raise ValueError(
            f"{what} changes the attention of a DiT with a patch_size, got {network!r}; train one on images"
        )
    check_denoiser(make_denoiser(network, params, prediction), x, levels, what)


def _check_kinds(kinds, few, described) -> tuple[Int[np.ndarray, " few"], int]:
    """``(kinds, how many)``; ``described`` is the number of kinds that there are tokens for, or None."""
    if not concrete(kinds):
        raise ValueError(
            "kinds are counted while tracing, got traced ones; close over them instead of passing them to jit"
        )
    kinds = np.asarray(kinds)
    if kinds.shape != (few,) or not np.issubdtype(kinds.dtype, np.integer) or (few and kinds.min() < 0):
        raise ValueError(f"need an integer kind from 0 on for each of {few} anomalies, got {_shown(kinds)}")
    count = int(kinds.max(initial=0)) + 1 if described is None else described
    missing = sorted(set(range(count)) - set(kinds.tolist()))
    if missing or kinds.max(initial=0) >= count:
        raise ValueError(
            f"need at least one anomaly of each of {count} kinds, and of no others, got {_shown(kinds)}; "
            "number the kinds from 0 without a gap"
        )
    return kinds, count


def _shown(kinds) -> str:
    return f"{kinds.dtype} {kinds.shape}" + (
        f" from {kinds.min()} to {kinds.max()}" if concrete(kinds) and kinds.size else ""
    )
