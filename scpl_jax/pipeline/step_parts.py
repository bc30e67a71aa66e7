"""What training steps of all kinds are made of: settings, the update as a program of its own, memory for gradients."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from scpl_jax.kernels import thresholds
from scpl_jax.kernels.xla_flags import FUSION_EMITTERS, is_without_fusion_emitters
from scpl_jax.pipeline.compilation import Builder, Program, abstract
from scpl_jax.pipeline.placement import Group, replicated
from scpl_jax.pipeline.transfer import to_devices
from scpl_jax.stages.step import StageState

# record(name of the task, stages, what it took, what it gave): for timelines
Record = Callable[[str, Group, Any, Any], None]
States = tuple[StageState, ...]
Metrics = list[dict[str, Any]]

# An update writes each array in place of itself. Without its fusion emitters XLA's code goes number by number there, as
# it can't tell that what is read and what is written is the same (experiments/single/README.md has the times).
UPDATE_OPTIONS = {FUSION_EMITTERS: True}


def flag_of(group: Group) -> Any:
    """Shape and place of the flag that asks for gradient norms."""
    return abstract(False, replicated(group.mesh))


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """How a training step is made, by arguments of :class:`scpl_jax.Pipeline`; ``optimizers`` has one a stage."""

    optimizers: tuple[optax.GradientTransformation, ...]
    skip_non_finite: bool = True
    micro_batches: int = 1
    remat: bool = False


def is_apart(params: Any, mesh: Mesh) -> bool:
    """Whether updates are a program of their own, compiled with :data:`UPDATE_OPTIONS`.

    They are on CPUs where ``XLA_FLAGS`` switches XLA's fusion emitters off, as the commands do, if the parameters are
    so many that one more program to dispatch costs less.
    """
    count = sum(x.size for x in jax.tree.leaves(params))
    return (
        is_without_fusion_emitters()
        and count >= thresholds.here().update_parameters
        and mesh.devices.flat[0].platform == "cpu"
    )


class StepPrograms:
    """The programs of a training step, compiled for batches of one shape, and when each is dispatched.

    The CPU backend sends a message to another process on a thread that also computes, and goes on with the next program
    of the device first if that has been dispatched already: a message could leave only when the device has nothing more
    to do. So in a run of several processes a CPU device gets its next program when the one before has ended. Receiving
    is not held up by this: it has been asked for before. On all other backends, and in one process, nothing waits.

    Attributes:
      memory: of each group whose update is a program of its own, for gradients, and metrics where they are summed; a
        step donates it and gives it back. In the same place in every step: batches under way would each take as much.
    """

    def __init__(self, groups: Sequence[Group]):
        self._groups = groups
        self._updates: list[Program | None] = []
        self.memory: list[Any] = []
        self._waits = groups[0].mesh.devices.flat[0].platform == "cpu" and jax.process_count() > 1
        self._last: dict[Mesh, Any] = {}

    def _add_update(self, builder: Builder, group: Group, function: Callable[..., Any], *arguments: Any) -> Program:
        """Plan an update of its own, which takes over its first argument."""
        return builder.add(function, group.mesh, arguments, (False, False), donate=(0,), options=UPDATE_OPTIONS)[0]

    def _before(self, group: Group) -> None:
        """Call before a program of the group is dispatched, and after its inputs have been asked for."""
        if self._waits and group.mesh in self._last:
            jax.block_until_ready(self._last.pop(group.mesh))

    def _after(self, record: Record | None, task: str, group: Group, taken: Any, gave: Any) -> None:
        """Call after it was dispatched, before anything can wait: who watches must be there when it begins.

        ``gave`` is of outputs that no other program takes over.
        """
        if self._waits:
            self._last[group.mesh] = gave
        if record is not None:
            record(task, group, taken, gave)


def zeros_of(tree: Any) -> Any:
    """Zeros where the shapes, dtypes and placements of :func:`~scpl_jax.pipeline.compilation.abstract` say."""
    return jax.tree.map(lambda x: to_devices(np.zeros(x.shape, x.dtype), x.sharding), tree)


def needed_bytes(programs: Sequence[Program | None], memory: Any) -> int:
    """What the largest of the programs needs by the compiler's account, and each device's part of ``memory``."""
    kept = sum(x.nbytes for x in jax.tree.leaves(memory) if x.addressable_shards)
    return kept + max(program.temporary_bytes for program in programs if program is not None)
