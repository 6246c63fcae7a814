"""Defects for pictures, made by the denoiser of an image detector: pictures and masks in numpy, and how severe the detector finds them."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxad import generation, noise
from jaxad.data import ImageDataset
from jaxad.denoisers import DiT
from jaxad.denoising import make_denoiser
from jaxad.detectors.fitting import ProgressBar
from jaxad.detectors.image import TRAINING_LEVELS, ImageDetector
from jaxad.generation import synthesis
from jaxad.generation.few_shot import adaptation, check_losses
from jaxad.runtime.sharding import pad_to_multiple

PATH = noise.log_uniform(50, sigma_min=0.05, sigma_max=10.0)
"""From pictures to noise that drowns them, within what the detector's denoiser has learned to undo."""
TEMPERING = 0.3
"""By how much the score is weakened where a part is redrawn, so that what comes back is rare."""
STRENGTHS = (0.5, 0.8, 1.0)
OF_EACH = 8
"""Pictures of each kind and strength, unless a number is asked for."""
WEIGHT = 1.0
"""Guidance of few-shot defects away from the network as it was: without it large ones are hardly seen on magnetic tiles."""
AT_ONCE = 16
"""Pictures made by one call."""
STEPS_AT_ONCE = 25
PLAIN_BORDER = 0.9
"""Share of a picture's border that looks the same where an object stands on a plain background."""

CONTENTS: dict[str, synthesis.Defect] = {"stained": synthesis.stained, "pasted": synthesis.pasted}
"""What stands under the mask where the denoiser is to fit something in."""


class Defects(NamedTuple):
    """Pictures with a defect each; all with a leading axis ``rows``."""

    x: np.ndarray
    """Of the dtype and size of the normal pictures, which they equal outside the masks."""
    masks: np.ndarray
    """bool ``[rows, height, width]``: what was made anew."""
    kinds: tuple[str, ...]
    strengths: np.ndarray
    normals: np.ndarray
    """The number of the normal picture that each was made from."""
    p: np.ndarray
    """Conformal p-values by the detector: small is severe."""


def kinds_of(examples: ImageDataset | None = None) -> tuple[str, ...]:
    """The kinds ``make_defects`` makes; with examples also ``few_shot_<kind>`` for each of theirs."""
    few = () if examples is None else tuple(dict.fromkeys(examples.kinds or ()))
    return ("redrawn", *CONTENTS, *(f"few_shot_{kind}" for kind in few))


def check_can_make(detector: Any, *, few_shot: bool = False) -> None:
    """Raise a ValueError unless the detector makes defects for pictures, or with ``few_shot`` defects like examples."""
    if not isinstance(detector, ImageDetector):
        raise ValueError(
            f"defects for pictures are made by an image detector, got a {type(detector).__name__}; fit one on a folder of pictures"
        )
    detector._check_tells_where()
    network = detector.scorer_.pixels.errors.network
    if few_shot and not (isinstance(network, DiT) and network.patch_size is not None):
        raise ValueError(
            f"defects like examples change the attention of a DiT, this detector's denoiser is a {type(network).__name__}; fit one on "
            "pictures whose sides are multiples of 4, 8, 16 or 32 pixels (default_network), or do without examples"
        )


def make_defects(
    detector: ImageDetector,
    pictures: np.ndarray,
    *,
    examples: ImageDataset | None = None,
    strengths: Sequence[float] = STRENGTHS,
    count: int | None = None,
    seed: int = 0,
    num_steps: int = 1000,
    verbose: int = 0,
) -> Defects:
    """Normal pictures with a defect each, of every kind of ``kinds_of(examples)`` at every strength in turns.

    - ``redrawn``: a part is forgotten as far as the strength says, and made again by a weakened denoiser;
    - ``stained``, ``pasted``: a coarse texture, or a part of another picture, of which the share ``strength`` survives;
    - ``few_shot_<kind>``: like the examples of that kind, with the share ``strength`` of what was learned from them.

    Masks are Perlin noise, on the object where the background is plain; those of ``few_shot`` are like the examples' own.

    Args:
        pictures: ``[rows, height, width, channels]`` uint8, or float32 in [0, 1] (16 bits), normal and of the detector's size. The
            p-values mean what they say for pictures that the detector was not fitted on.
        examples: 1 to 10 pictures of each kind of defect with their masks, of the same size; the denoiser has to be a ``DiT``.
        strengths: from 0 (excluded) to 1.
        count: pictures in all; None: ``OF_EACH`` of every kind and strength.
        num_steps: of learning from the examples, most of the time that is needed.
        verbose: 1 shows progress bars with time left.

    Raises:
        ValueError: a detector without a denoiser of pixels, or with one that cannot learn from examples; pictures or examples of another
            size or bit depth; examples without masks, or masks that mark nothing or everything; a strength out of range; fewer pictures
            than kinds and strengths. All before any long work.
        FloatingPointError: learning from the examples did not stay finite.
    """
    check_can_make(detector, few_shot=examples is not None)
    pictures = np.asarray(pictures)
    _check_pictures(detector, pictures, "normal pictures")
    if examples is not None:
        _check_examples(detector, examples)
    strengths = tuple(float(strength) for strength in strengths)
    if not strengths or not all(0 < strength <= 1 for strength in strengths):
        raise ValueError(
            f"strengths of defects lie in (0, 1], from subtle to plain, at least one, got {', '.join(map(str, strengths)) or 'none'}"
        )
    cells = [(kind, strength) for strength in strengths for kind in kinds_of(examples)]
    count = OF_EACH * len(cells) if count is None else count
    if count < len(cells):
        raise ValueError(
            f"{len(cells) // len(strengths)} kinds at {len(strengths)} strengths need a count of {len(cells)} pictures or more, got "
            f"{count}; ask for more, or for fewer strengths"
        )
    if num_steps < 1:
        raise ValueError(f"learning from examples takes at least one step, got {num_steps=}")

    order_key, place_key, learn_key, make_key = jax.random.split(jax.random.key(seed), 4)
    kinds, strength = [cells[row % len(cells)][0] for row in range(count)], np.resize([s for _, s in cells], count)
    # Rows of one cell follow each other in `order`, so that few pictures are not the same ones for a kind.
    order = np.argsort(np.arange(count) % len(cells), kind="stable")
    normals = np.empty(count, int)
    normals[order] = np.resize(np.asarray(jax.random.permutation(order_key, len(pictures))), count)
    rows = detector.pixels_(pictures)[normals]
    masks = _masks(place_key, pictures[normals], kinds, examples)
    adapters = None if examples is None else _learned(learn_key, detector, examples, pictures, num_steps, verbose)

    made = np.empty_like(rows)
    errors = detector.scorer_.pixels.errors
    closed = {"network": errors.network}
    few = [] if examples is None else list(dict.fromkeys(examples.kinds or ()))
    most = -(-count // len(cells))
    with ProgressBar("making defects", count, verbose) as bar:
        for number, (kind, share) in enumerate(cells):
            content_key, key = jax.random.split(jax.random.fold_in(make_key, number))
            of = np.flatnonzero((np.arange(count) % len(cells)) == number)
            content = rows[of]
            if kind in CONTENTS:
                content = np.asarray(CONTENTS[kind](content_key, jnp.asarray(content)))
            for start in range(0, len(of), AT_ONCE):
                piece = of[start : start + AT_ONCE]
                part_key = jax.random.fold_in(key, start)
                padded = [
                    jnp.asarray(pad_to_multiple(part, min(AT_ONCE, most))[0])
                    for part in (rows[piece], masks[piece], content[start : start + AT_ONCE])
                ]
                if kind == "redrawn":
                    part = _redrawn(errors.params, part_key, *padded[:2], share, **closed)
                elif kind in CONTENTS:
                    part = _harmonised(errors.params, part_key, *padded, share, **closed)
                else:
                    asked = jnp.full(len(padded[0]), few.index(kind.removeprefix("few_shot_")))
                    part = _few_shot(errors.params, adapters, part_key, *padded[:2], asked, share, **closed)
                made[piece] = np.asarray(part)[: len(piece)]
                bar.update(number * most + start + len(piece), {})
    x = np.where(masks[..., None], _as_pictures(detector, made, pictures.dtype), pictures[normals])
    return Defects(x, masks, tuple(kinds), strength, normals, detector.p_values(x))


# ------------------------------------------------------------------------------------------------------------- on the device


@partial(jax.jit, static_argnames="network")
def _redrawn(params, key, x, mask, strength, *, network):
    denoise = generation.tempered(make_denoiser(network, params, noise.VELOCITY), TEMPERING)
    return generation.redrawn(key, denoise, x, mask, PATH, strength=strength).x


@partial(jax.jit, static_argnames="network")
def _harmonised(params, key, x, mask, content, strength, *, network):
    denoise = make_denoiser(network, params, noise.VELOCITY)
    return generation.harmonised(key, denoise, x, mask, PATH, content=content, strength=strength).x


@partial(jax.jit, static_argnames="network")
def _few_shot(params, adapters, key, x, mask, kinds, strength, *, network):
    return generation.few_shot(key, network, params, adapters, x, mask, kinds, PATH, strength=strength, weight=WEIGHT).x


def _learned(key, detector, examples, pictures, num_steps, verbose):
    """``generation.adapt`` in pieces, with a progress bar."""
    names, errors = list(dict.fromkeys(examples.kinds)), detector.scorer_.pixels.errors
    state, step = adaptation(
        *(key, errors.network, errors.params, jnp.asarray(detector.pixels_(examples.x)), examples.masks),
        *(np.array([names.index(kind) for kind in examples.kinds]), jnp.asarray(detector.pixels_(pictures))),
        TRAINING_LEVELS,
        num_steps=num_steps,
    )
    size = next(size for size in range(min(STEPS_AT_ONCE, num_steps), 0, -1) if num_steps % size == 0)
    steps = jax.jit(lambda state: jax.lax.scan(step, state, length=size))
    with ProgressBar("learning from examples", num_steps, verbose) as bar:
        losses = np.zeros(0)
        while len(losses) < num_steps:
            state, new = steps(state)
            losses = np.append(losses, np.asarray(new))
            check_losses(losses)
            bar.update(len(losses), {"loss": float(np.mean(new))})
    return state.ema


# ----------------------------------------------------------------------------------------------------------------- on the host


def _masks(key, pictures, kinds, examples):
    """``[rows, height, width]``, of every kind from its own source, and none empty or full."""
    masks = np.zeros(pictures.shape[:3], bool)
    for number, kind in enumerate(dict.fromkeys(kinds)):
        of, part_key = np.array([one == kind for one in kinds]), jax.random.fold_in(key, number)
        x = jnp.asarray(pictures[of], jnp.float32)
        if kind.startswith("few_shot_"):
            like = examples.masks[[f"few_shot_{one}" == kind for one in examples.kinds]]
            drawn = np.asarray(generation.masks_from_examples(part_key, like, len(x)))
            if full := int(drawn.all(axis=(1, 2)).sum()):
                raise ValueError(
                    f"the masks of {kind.removeprefix('few_shot_')} are so large that {full} of {len(x)} made like them cover the whole "
                    "picture; mark less, or leave that kind out"
                )
        else:
            drawn = generation.perlin_masks(part_key, *x.shape[:3], foreground=_room(x), smallest=0.01, largest=0.2)
        masks[of] = np.asarray(drawn)
    return masks


def _room(x):
    """Where a defect may be: the object where it stands on a plain background, else everywhere."""
    on = generation.foreground(x)
    border = jnp.concatenate([on[:, 0], on[:, -1], on[:, :, 0], on[:, :, -1]], axis=1)
    stands = (jnp.mean(border, axis=1) <= 1 - PLAIN_BORDER) & (jnp.mean(on, axis=(1, 2)) >= 0.05)
    return on | ~stands[:, None, None]


def _as_pictures(detector, rows, dtype):
    """Standardised rows as pictures: clipped to what there is, and for 16 bits on the steps that a file has."""
    raw = detector.pixels_.undo(rows)
    if dtype == np.uint8:
        return np.clip(np.round(raw), 0, 255).astype(np.uint8)
    return (np.round(np.clip(raw, 0, 1) * 65535) / 65535).astype(np.float32)


def _check_pictures(detector, x, what):
    if not len(x) or x.shape[1:] != detector.sample_shape_:
        raise ValueError(
            f"{what} have to be of the shape the detector was fitted on, {list(detector.sample_shape_)} (height, width, channels), got "
            f"{list(x.shape)}; bring them to it, or fit the detector on pictures like these"
        )
    deep = x.dtype != np.uint8
    if deep != (detector.high_ <= 1) and (deep or x.max() > 1):
        kinds = ("bytes, 0 to 255", "floats in [0, 1] (16 bits)")
        raise ValueError(
            f"{what} are {kinds[deep]}, the detector was fitted on {kinds[not deep]}; save them with the bit depth of the training pictures"
        )


def _check_examples(detector, examples):
    _check_pictures(detector, examples.x, "pictures of defects")
    if examples.masks is None or examples.kinds is None:
        raise ValueError("examples of defects need their masks and kinds, got none; data.read_defects reads them")
    share = examples.masks.mean(axis=(1, 2))
    if share.min() == 0 or share.max() == 1:
        raise ValueError(
            f"a mask of an example marks a part of its picture, got {int((share == 0).sum())} that are empty and "
            f"{int((share == 1).sum())} that are full; correct them, or leave these out"
        )
