"""What every generator returns, where its rows begin, and the door its arguments pass."""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxad.denoising import Denoise, Variance
from jaxad.noise import NoiseLevel, add_noise
from jaxad.sampling import ancestral
from jaxad.scoring.draws import check_schedule


class Kind(IntEnum):
    """What is wrong with a generated row; ``Kind(int(code)).name`` says it in a word."""

    LOCAL = 0  # around normal rows, wider than they are (``sdas``)
    LOW_DENSITY = 1  # where normal rows are rare (``low_density``)
    MINORITY = 2  # what the denoiser itself finds unusual (``minority``)
    HARD = 3  # just beyond what a detector calls normal (``detector_guided``)
    DEPENDENCY = 4  # columns that are normal one by one, not together
    POINT = 5  # a few columns out of range
    CLUSTER = 6  # a tight group in one wrong place
    GLOBAL = 7  # anywhere in the range of the columns
    REDRAWN = 8  # a part of the row forgotten and made again
    HARMONISED = 9  # something else inside a mask, fitted in by the denoiser
    BLENDED = 10  # something else inside a mask, laid over the row
    MIXED = 11  # between a known anomaly and a neighbour (``nng_mix``)
    FEW_SHOT = 12  # like a few real anomalies, inside a mask (``few_shot``)


class Generated(NamedTuple):
    """Anomalies, what was changed in each, and how; ``[rows, *sample]``, bool ``[rows, *sample]``, a ``Kind`` per row ``[rows]``."""

    x: Float[Array, "..."]
    mask: Bool[Array, "..."]
    kind: Int[Array, "..."]


def generated(x: Float[Array, "batch *sample"], mask, kind: Kind) -> Generated:
    """``Generated`` with one kind for all rows; ``mask`` is True, or broadcasts to the shape of ``x``."""
    return Generated(x, jnp.broadcast_to(jnp.asarray(mask, bool), x.shape), jnp.full(x.shape[:1], int(kind), jnp.int32))


def several(key: Array, x: Float[Array, "batch *sample"], generators: Sequence[Callable[..., Generated]]) -> Generated:
    """Anomalies of several kinds: row i is made by generator ``i % len(generators)``, called as ``(key, rows)``.

    Raises:
        ValueError: no generator, or fewer rows than generators.

    >>> from functools import partial
    >>> from jaxad.generation.typed import point_anomalies, global_anomalies
    >>> x = jax.random.normal(jax.random.key(0), (5, 4))
    >>> several(jax.random.key(1), x, [point_anomalies, global_anomalies]).kind.tolist()
    [5, 7, 5, 7, 5]
    """
    count = len(generators)
    if not 1 <= count <= x.shape[0]:
        raise ValueError(
            f"anomalies of several kinds need at least one row for each, got {x.shape[0]} rows for {count} kinds; "
            "ask for more rows or fewer kinds"
        )
    parts = [
        generate(part_key, x[index::count])
        for index, (generate, part_key) in enumerate(zip(generators, jax.random.split(key, count), strict=True))
    ]
    # Where each row of the concatenation came from.
    place = np.concatenate([np.arange(index, x.shape[0], count) for index in range(count)])
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[np.argsort(place)], *parts)


def walked(
    key: Array, denoise: Denoise, x: Float[Array, "batch *sample"], levels: NoiseLevel, variance: Variance
) -> Float[Array, "batch *sample"]:
    """``x`` noised to the last of ``levels``, each row with noise of its own, and brought back by ancestral sampling.

    Nothing is left of ``x`` where that noise drowns the data.
    """
    start_key, path_key = jax.random.split(key)
    start = add_noise(x, jax.random.normal(start_key, x.shape, x.dtype), levels[-1].to(x.dtype))
    return ancestral(path_key, denoise, start, levels, variance=variance)


def concrete(value) -> bool:
    """Are the numbers there to be looked at? Inside ``jit`` they are not."""
    return not isinstance(value, Tracer)


def check_strength(strength, least: float, most: float, what: str) -> None:
    """Raise a ValueError unless every strength lies in ``[least, most]``; traced ones pass."""
    if concrete(strength):
        low, high = float(np.min(strength)), float(np.max(strength))
        if not least <= low <= high <= most:
            raise ValueError(
                f"{what} takes a strength from {least:g} to {most:g}, got {low:g}" + (f" to {high:g}" * (low != high))
            )


def check_denoiser(denoise: Denoise, x: Float[Array, "batch *sample"], levels: NoiseLevel, what: str) -> None:
    """Raise a ValueError for levels that are no path, and for a denoiser of rows of another shape; nothing is computed."""
    check_schedule(levels, what)
    mend = f"give it the denoiser of rows of shape {x.shape[1:]}, or rows of the shape it was trained on"
    try:
        shape = jax.eval_shape(denoise, x, levels[0].to(x.dtype)).shape
    except (TypeError, ValueError, FlaxError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{what} got a denoiser that does not take rows of shape {x.shape[1:]}; {mend} ({reason})"
        ) from error
    if shape != x.shape:
        raise ValueError(f"{what} got a denoiser that makes {shape} of rows {x.shape}; {mend}")


def check_mask(mask, x: Float[Array, "batch *sample"], what: str) -> Bool[Array, "batch *sample"]:
    """``mask`` (True where something is to change) in the shape of ``x``.

    Given for each row or once for all; for images with or without the channels.

    Raises:
        ValueError: another shape, or a row of it that hides nothing or everything (where the values are known).
    """
    mask = jnp.asarray(mask, bool)
    whole, pixels = (x.shape, x.shape[1:]), (x.shape[:-1], x.shape[1:-1]) if x.ndim == 4 else ()
    if mask.shape in pixels:
        mask = jnp.broadcast_to(mask[..., None], (*mask.shape, x.shape[-1]))
    elif mask.shape not in whole:
        raise ValueError(
            f"{what} needs a mask of one of the shapes {', '.join(map(str, pixels + whole))}, got {mask.shape}"
        )
    mask = jnp.broadcast_to(mask, x.shape)
    if concrete(mask):
        share = np.asarray(mask).reshape(len(mask), -1).mean(axis=1)
        for found, word in ((0.0, "empty"), (1.0, "full")):
            if (share == found).any():
                raise ValueError(
                    f"{what} changes a part of each row and keeps the rest, "
                    f"got {int((share == found).sum())} of {len(share)} masks that are {word}"
                )
    return mask


def check_examples(anomalies, normals, *, kinds: int = 1) -> None:
    """Raise a ValueError unless there is an anomaly for each of ``kinds``, in the shape of the normals and equal to none of them."""
    anomalies, normals = np.asarray(anomalies), np.asarray(normals)
    if anomalies.shape[1:] != normals.shape[1:]:
        raise ValueError(f"anomalies and normals must have one row shape, got {anomalies.shape} and {normals.shape}")
    if len(anomalies) < kinds:
        raise ValueError(
            f"need at least one anomaly of each kind, got {len(anomalies)} anomalies for {kinds} kinds; "
            "give more of them or ask for fewer kinds"
        )
    known = {row.tobytes() for row in normals.astype(anomalies.dtype)}
    same = sum(row.tobytes() in known for row in anomalies)
    if same:
        raise ValueError(
            f"{same} of {len(anomalies)} anomalies are identical to a normal row; remove them from one side"
        )
