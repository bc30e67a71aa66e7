"""Stages that one program runs."""

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from scpl_jax.stages.decouple import Stage

# What a program on a CPU may hold unless something else is asked for: stages, and bytes handed on between them a batch.
# So memory does not grow with depth, and of a deep network's equal stages few programs are compiled;
# experiments/single/README.md has times and memory.
_STAGES, _SMALL = 4, 12 * 2**20


@dataclasses.dataclass(frozen=True)
class Group:
    """Neighbouring stages that one program runs.

    Attributes:
      stages: the stages.
      mesh: their sub-mesh.
    """

    stages: tuple[Stage, ...]
    mesh: Mesh

    @property
    def members(self) -> slice:
        """Where the group's stages are among all."""
        return slice(self.stages[0].index, self.stages[-1].index + 1)

    @property
    def name(self) -> str:
        """Its stages' numbers: "2", or "2-3"."""
        first, last = self.stages[0].index, self.stages[-1].index
        return str(first) if first == last else f"{first}-{last}"


def group_stages(stages: Sequence[Stage], meshes: Sequence[Mesh], fuse: bool | None) -> tuple[Group, ...]:
    """One group for each stage, or with ``fuse`` one for all neighbours that share a sub-mesh.

    None: for up to four that share CPUs and hand on at most 12 MiB to one another, counted for the whole batch.
    """
    groups: list[Group] = []
    for stage, mesh in zip(stages, meshes, strict=True):
        before = groups[-1] if groups else None
        if before is not None and before.mesh == mesh and (_takes_one_more(before) if fuse is None else fuse):
            groups[-1] = Group((*before.stages, stage), mesh)
        else:
            groups.append(Group((stage,), mesh))
    return tuple(groups)


def _takes_one_more(group: Group) -> bool:
    """Whether the next stage should be of the same program: mostly faster, but XLA keeps more arrays at a time."""
    small = len(group.stages) < _STAGES and sum(stage.message_bytes for stage in group.stages) <= _SMALL
    return small and group.mesh.devices.flat[0].platform == "cpu"
