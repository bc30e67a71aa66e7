"""Which devices run which stage, and which stages one program runs.

A stage owns a sub-mesh with one axis, ``data``, over which its batch is split.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scpl_jax.stages.cuts import balanced_cut
from scpl_jax.stages.decouple import Stage

LAYOUTS = ("stages", "data")
# What a program on a CPU may hold unless something else is asked for: stages, and bytes handed on between them a batch.
# So memory does not grow with depth, and of a deep network's equal stages few programs are compiled;
# experiments/single/README.md has times and memory.
_STAGES, _SMALL = 4, 12 * 2**20


def sub_meshes(devices: Sequence[jax.Device], data_parallel: int = 1, across_hosts: str = "stages") -> tuple[Mesh, ...]:
    """Divide devices into sub-meshes of ``data_parallel`` devices each; what is left over stays idle.

    Args:
      devices: the devices to use, of one process or of several.
      data_parallel: devices a sub-mesh, at least 1.
      across_hosts: what is spread over the processes of a multi-process run: "stages" (a sub-mesh lies in one process,
        as far as it fits) or "data" (every sub-mesh has devices of every process, so that messages stay inside a
        process and gradients are summed over the network). In one process both are the same.

    Raises:
      ValueError: no device, fewer devices than ``data_parallel``, or an unknown layout.

    Example:
      >>> import jax
      >>> [mesh.shape["data"] for mesh in sub_meshes(jax.devices()[:1])]
      [1]
    """
    if across_hosts not in LAYOUTS:
        raise ValueError(f"what is spread across hosts must be stages or data, got {across_hosts!r}")
    if data_parallel < 1:
        raise ValueError(f"data_parallel must be at least 1, got {data_parallel}")
    if data_parallel > len(devices):
        raise ValueError(
            f"data_parallel {data_parallel} needs {data_parallel} devices a stage, there are {len(devices)}"
        )
    of_process = by_process(devices)
    if len({len(group) for group in of_process.values()}) > 1:
        counts = ", ".join(f"{len(group)} in process {index}" for index, group in sorted(of_process.items()))
        raise ValueError(f"every process must have the same number of devices, got {counts}")
    if across_hosts == "data":
        if data_parallel % len(of_process):
            raise ValueError(
                f"data spread across {len(of_process)} processes needs a data_parallel that {len(of_process)} divides, "
                f"got {data_parallel}"
            )
        share = data_parallel // len(of_process)
        rounds = len(devices) // data_parallel
        groups = [
            [device for group in of_process.values() for device in group[index * share : (index + 1) * share]]
            for index in range(rounds)
        ]
    else:
        ordered = [device for group in of_process.values() for device in group]
        starts = range(0, len(ordered) - data_parallel + 1, data_parallel)
        groups = [ordered[start : start + data_parallel] for start in starts]
    return tuple(Mesh(np.array(group), ("data",), axis_types=(AxisType.Auto,)) for group in groups)


def by_process(devices: Sequence[jax.Device]) -> dict[int, list[jax.Device]]:
    """Process -> its devices, both in the order in which they come."""
    groups: dict[int, list[jax.Device]] = {}
    for device in devices:
        groups.setdefault(device.process_index, []).append(device)
    return groups


def place(costs: Sequence[float], meshes: Sequence[Mesh]) -> tuple[Mesh, ...]:
    """Give every stage a sub-mesh, so that the busiest one has as little to do as possible.

    Neighbouring stages share a sub-mesh where there are more stages than sub-meshes; sub-meshes left over stay idle.

    Args:
      costs: cost of each stage, in any unit.
      meshes: from :func:`sub_meshes`, at least one.

    Returns:
      The sub-mesh of each stage, in order.

    Raises:
      ValueError: no sub-mesh, or a message can't move between two that follow each other.

    Example:
      >>> import jax
      >>> meshes = sub_meshes(jax.devices()[:1])
      >>> place([1.0, 2.0], meshes) == meshes * 2
      True
    """
    if not meshes:
        raise ValueError("a pipeline needs at least one device, got none")
    used = min(len(costs), len(meshes))
    cut = balanced_cut(lambda _, start, stop: sum(costs[start:stop]), len(costs), used)
    bounds = (0, *cut, len(costs))
    for before, behind in itertools.pairwise(meshes[:used]):
        _check_transfer(before, behind)
    groups = zip(bounds[:-1], bounds[1:], meshes, strict=False)
    return tuple(mesh for start, stop, mesh in groups for _ in range(start, stop))


def processes(mesh: Mesh) -> tuple[int, ...]:
    """The processes that have a device of the mesh, ascending; the first one owns what is written only once."""
    return tuple(sorted({device.process_index for device in mesh.devices.flat}))


def is_local(mesh: Mesh) -> bool:
    """Whether this process has a device of the mesh."""
    return jax.process_index() in processes(mesh)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split over the first dimension."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _check_transfer(before: Mesh, behind: Mesh) -> None:
    """Refuse sub-meshes unless a message stays in one process, all of it crosses, or each shard stays in its own."""
    here = [device.process_index for device in before.devices.flat]
    there = [device.process_index for device in behind.devices.flat]
    within = here == there
    one_process = len({*here, *there}) == 1
    crossing = len(here) == len(there) and all(a != b for a, b in zip(here, there, strict=True))
    if not (within or one_process or crossing):
        raise ValueError(
            f"a message can't move from devices of the processes {here} to devices of the processes {there}: either "
            "all of it crosses to another process or none; choose a number of devices a stage that divides those of a "
            "process"
        )


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
