"""When the next program of a device may be dispatched."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from scpl_jax.pipeline.groups import Group


class Pacer:
    """Lets messages to other processes leave between two programs, where the backend does not by itself.

    The CPU backend sends a message on a thread that also computes, and goes on with the next program of the device
    first if that has been dispatched already: a message could leave only when the device has nothing more to do. So in
    a run of several processes a CPU device gets its next program when the one before has ended. Receiving is not held
    up by this: it has been asked for before. On all other backends, and in one process, nothing waits.
    """

    def __init__(self, groups: Sequence[Group]):
        platform = groups[0].mesh.devices.flat[0].platform
        self._active = platform == "cpu" and jax.process_count() > 1
        self._last: dict[Mesh, Any] = {}

    def before(self, group: Group) -> None:
        """Call before a program of the group is dispatched, and after its inputs have been asked for."""
        if self._active and group.mesh in self._last:
            jax.block_until_ready(self._last.pop(group.mesh))

    def after(self, group: Group, outputs: Any) -> None:
        """Call after it was dispatched, with outputs that no other program takes over."""
        if self._active:
            self._last[group.mesh] = outputs
