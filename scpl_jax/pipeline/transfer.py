"""Every move of data to a device goes through here. Nothing waits."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from scpl_jax.pipeline.placement import processes


def to_devices(tree: Any, sharding: NamedSharding) -> Any:
    """Put values that this process has (host or device) on the devices of a sub-mesh.

    In a run of several processes every one of them has the same values and puts what belongs on its own devices.

    Args:
      tree: pytree of arrays or random keys.
      sharding: where to.

    Returns:
      The same tree of arrays with that sharding.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: _assemble(x, sharding), tree)


def to_program(tree: Any, sharding: NamedSharding) -> Any:
    """What one program alone is called with: NumPy arrays stay as they are where the program can move them itself.

    A compiled program does that in less of the host's time than ``jax.device_put``.

    Arguments are those of :func:`to_devices`; the result is the same tree, of NumPy arrays or of arrays with that
    sharding.
    """
    if not sharding.is_fully_addressable:
        return to_devices(tree, sharding)
    return jax.tree.map(lambda x: x if isinstance(x, np.ndarray) else to_devices(x, sharding), tree)


def _assemble(x: Any, sharding: NamedSharding) -> jax.Array:
    """A global array of which this process puts its own shards in place; perhaps none."""
    if not hasattr(x, "dtype"):
        x = np.asarray(x)
    places = sharding.addressable_devices_indices_map(x.shape)
    shards = [jax.device_put(x[index], device) for device, index in places.items()]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, shards, dtype=x.dtype)


def hand_over(tree: Any, sharding: NamedSharding) -> Any:
    """Move a message from the sub-mesh where it was computed to the next one.

    Args:
      tree: pytree of arrays, each with the same partition as ``sharding`` but on the sub-mesh of the stage before.
      sharding: on the next sub-mesh.
    """
    return jax.tree.map(lambda x: _move(x, sharding), tree)


def _move(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    if x.sharding == sharding:
        return x  # device_put would return it, too, but takes its time to find out
    target: Any = sharding.mesh
    if x.sharding.device_set == sharding.device_set or (x.is_fully_addressable and sharding.is_fully_addressable):
        return jax.device_put(x, sharding)
    source: Any = x.sharding  # a NamedSharding: every program pins its outputs
    if processes(source.mesh) == processes(target):
        # Other devices of the same processes: device_put refuses, but no shard has to leave its process.
        targets = dict(zip(source.mesh.devices.flat, target.devices.flat, strict=True))
        shards = [jax.device_put(shard.data, targets[shard.device]) for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, shards, dtype=x.dtype)
    return jax.device_put(x, sharding)


def elsewhere(tree: Any) -> Any:
    """Arrays that other processes have: shapes, dtypes and shardings without values.

    Args:
      tree: pytree of ``jax.ShapeDtypeStruct`` with a sharding that has no device of this process.
    """

    def empty(x: Any) -> jax.Array:
        return jax.make_array_from_single_device_arrays(x.shape, x.sharding, [], dtype=x.dtype)

    return jax.tree.map(empty, tree)
