"""Placement on many devices: parameters everywhere, a batch cut along its rows.

Data parallelism here is placement only; the compiled function stays the same and XLA inserts the communication.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

BATCH_AXIS = "data"


def data_mesh(devices: Any = None) -> Mesh:
    """A one-dimensional mesh over all devices (or the given ones), its axis named ``BATCH_AXIS``.

    The axis is of type Auto: with JAX's default, explicit axes, a plain data-parallel step does not trace.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (BATCH_AXIS,), devices=devices, axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows cut along the mesh, everything behind them whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of every array on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Every array cut along its first axis, whose length the number of devices must divide (see ``pad_to_multiple``).

    Raises:
        ValueError: a first axis that the devices do not divide.
    """
    for leaf in jax.tree.leaves(tree):
        if jnp.ndim(leaf) == 0 or leaf.shape[0] % mesh.size:
            raise ValueError(
                f"{mesh.size} devices cannot share {jnp.shape(leaf)[:1]} rows evenly: use pad_to_multiple first"
            )
    return jax.device_put(tree, batch_sharding(mesh))


def pad_to_multiple(rows: np.ndarray, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Repeat the last row until ``multiple`` divides their number: ``(padded rows, mask)``; the mask is True for real rows.

    Repeating, not zeros: a padded row is an ordinary input, so nothing can overflow or divide by zero because of it.

    >>> padded, mask = pad_to_multiple(np.arange(3)[:, None], 4)
    >>> padded.ravel().tolist(), mask.tolist()
    ([0, 1, 2, 2], [True, True, True, False])
    """
    missing = -len(rows) % multiple
    padded = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows
    return padded, np.arange(len(padded)) < len(rows)
