"""Placement on many devices: parameters everywhere, or cut where they would not fit, a batch cut along its rows.

Data parallelism here is placement only; the compiled function stays the same and XLA inserts the communication. The devices may
belong to several processes (``jaxad.runtime.distributed``): then all of them call the same functions with the same arguments.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

BATCH_AXIS = "data"


def data_mesh(devices: Any = None) -> Mesh:
    """A one-dimensional mesh over all devices (or the given ones), its axis named ``BATCH_AXIS``.

    The axis is of type Auto: with JAX's default, explicit axes, a plain data-parallel step does not trace.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (BATCH_AXIS,), devices=devices, axis_types=(AxisType.Auto,))


def process_share(mesh: Mesh | None) -> tuple[int, int]:
    """``(i, n)``: this process is the i-th of n whose devices make up the mesh; without a mesh the only one.

    >>> process_share(data_mesh())
    (0, 1)
    """
    processes = [0] if mesh is None else sorted({device.process_index for device in mesh.devices.flat})
    return 0 if mesh is None else processes.index(jax.process_index()), len(processes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows cut along the mesh, everything behind them whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def place(tree: Any, sharding: Any) -> Any:
    """``jax.device_put`` for devices of several processes as well, each of which has all of ``tree`` and fills its own devices from it.

    >>> place(np.ones(3), batch_sharding(data_mesh(jax.devices()[:1]))).sharding.spec
    P('data',)
    """

    def of_leaf(leaf, sharding):
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(of_leaf(jax.random.key_data(leaf), sharding))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if isinstance(sharding, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: of_leaf(leaf, sharding), tree)
    return jax.tree.map(of_leaf, tree, sharding)


def fetch(tree: Any) -> Any:
    """Every array whole on the host, from whatever devices it lies on; the processes that share one ask for it together.

    >>> fetch(place(np.ones(3), batch_sharding(data_mesh(jax.devices()[:1])))).tolist()
    [1.0, 1.0, 1.0]
    """

    def of_leaf(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(of_leaf, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of every array on every device."""
    return place(tree, NamedSharding(mesh, PartitionSpec()))


def parameter_sharding(tree: Any, mesh: Mesh) -> Any:
    """Where ``shard_parameters`` puts every leaf, as a tree of shardings: for a state that is too large to be made on one device.

    ``tree`` holds arrays, or shapes only (``jax.eval_shape``); as ``out_shardings`` of a compiled ``init`` the result makes every device
    draw its own part.

    >>> mesh, shape = data_mesh(jax.devices()[:1]), jax.ShapeDtypeStruct((3, 4), jnp.float32)
    >>> jax.jit(jnp.zeros_like, out_shardings=parameter_sharding(shape, mesh))(shape).sharding.spec
    P('data',)
    """

    def of_leaf(leaf):
        axis = next((axis for axis, size in enumerate(jnp.shape(leaf)) if size and size % mesh.size == 0), None)
        cut = () if axis is None else (*(None,) * axis, BATCH_AXIS)
        return NamedSharding(mesh, PartitionSpec(*cut))

    return jax.tree.map(of_leaf, tree)


def shard_parameters(tree: Any, mesh: Mesh) -> Any:
    """Parameters that do not fit on one device, or a whole ``TrainState``: every leaf cut along its first axis that the devices divide.

    Leaves without such an axis (the step, a key, odd sizes) are copied to every device. A training step on the result is the one
    on ``replicate``: XLA gathers a layer where it is needed, and averages, optimizer state and the new parameters stay cut (ZeRO,
    Rajbhandari et al. 2020, arXiv 1910.02054), so each device holds about ``1 / mesh.size`` of the state.

    >>> mesh = data_mesh(jax.devices()[:1])
    >>> params = shard_parameters({"kernel": jnp.ones((3, 4)), "scale": jnp.float32(1)}, mesh)
    >>> params["kernel"].sharding.spec, params["scale"].sharding.spec
    (P('data',), P())
    """
    return place(tree, parameter_sharding(tree, mesh))


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
    return place(tree, batch_sharding(mesh))


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
