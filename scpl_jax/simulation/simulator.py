"""Simulate training steps on devices and links that are not here, from the measured times of the stages.

Stages are laid out over devices as the executor does it, and every device works through its programs in the order in
which they are dispatched. A program starts when its device is free and the message it takes has arrived. Each direction
between two devices is a link of its own, which carries one message after the other while the devices compute.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from scpl_jax.pipeline.schedule import Task, gpipe, needs, one_forward_one_backward
from scpl_jax.simulation.devices import Job, Link, Machine, Span
from scpl_jax.stages.cuts import balanced_cut

METHODS = ("scpl", "bp", "gpipe", "1f1b")
_FREE = Link()  # messages take no time


@dataclasses.dataclass(frozen=True)
class StageTimes:
    """What one stage takes for a whole batch on one device: seconds and bytes, finite and at least 0.

    Attributes:
      forward: seconds of the forward pass of its blocks.
      backward: seconds of the backward pass of its blocks, taken to be the same for all methods.
      local: seconds of its local loss forward and backward and of the head's optimizer; only "scpl" has it.
      update: seconds of the optimizer of its blocks.
      activation_bytes: what its forward pass stores for its backward pass, its input included.
      message_bytes: what it hands to the stage behind; a gradient that comes back is as large.
      state_bytes: parameters, optimizer state and whatever else of its blocks stays on the device.
      local_state_bytes: the same of its local head; only "scpl" has it.

    Raises:
      ValueError: a value that is negative or not finite.
    """

    forward: float
    backward: float
    local: float = 0.0
    update: float = 0.0
    activation_bytes: float = 0.0
    message_bytes: float = 0.0
    state_bytes: float = 0.0
    local_state_bytes: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} of a stage must be finite and at least 0, got {value}")


@dataclasses.dataclass(frozen=True)
class Simulation:
    """What :func:`simulate` finds. Devices that got no stage are not listed and do not count.

    Attributes:
      step_seconds: seconds from one batch to the next once the pipeline is full.
      idle_share: of each device, the fraction of ``step_seconds`` in which it computes nothing. A repeated forward pass
        counts as computing.
      peak_bytes: of each device, the most that it holds at a time: state, stored activations, and messages that wait to
        be sent or used. A running program's workspace, the heads' activations and input batches are not counted.
      spans: every program of every simulated step, those of the filling pipeline included, in order of dispatch.
    """

    step_seconds: float
    idle_share: tuple[float, ...]
    peak_bytes: tuple[float, ...]
    spans: tuple[Span, ...]

    @property
    def throughput(self) -> float:
        """Batches a second."""
        return 1 / self.step_seconds

    @property
    def mean_idle_share(self) -> float:
        """Mean of ``idle_share`` over the devices."""
        return sum(self.idle_share) / len(self.idle_share)


def simulate(
    stages: Sequence[StageTimes],
    method: str,
    *,
    devices: int,
    micro_batches: int = 1,
    remat: bool = False,
    link: Link = _FREE,
    max_in_flight: int = 8,
    overhead: float = 0.0,
) -> Simulation:
    """Simulate steps of one method until they repeat.

    With "scpl" a stage's forward, backward, local loss and update are one program, and batches follow one another. The
    others are backpropagation: "bp" with the whole batch, "gpipe" and "1f1b" with micro-batches and the schedules of
    :mod:`scpl_jax.pipeline.schedule`. They compile stages that share a device into one, and a device updates when all
    its backward passes are done, then goes on to the next batch.

    Args:
      stages: the stages in order.
      method: "scpl", "bp", "gpipe" or "1f1b".
      devices: number of devices. Neighbouring stages share one where there are more stages.
      micro_batches: parts of a batch, for "gpipe" and "1f1b". A program takes ``overhead`` plus its part of the time.
      remat: store only a stage's input, and repeat the forward pass in the backward pass; not for "scpl". The last
        stage goes forward and backward in one program and has nothing to repeat.
      link: what every link between two devices is like.
      max_in_flight: for "scpl", a batch enters when the one that is this many before it has left the last stage; fewer
        than there are devices bound the throughput.
      overhead: seconds that every program takes besides its work.

    Raises:
      ValueError: an unknown method, no stage, stages that take no time, a number below 1, a negative overhead, or
        micro-batches or ``remat`` with a method that has none.

    Example:
      >>> stages = [StageTimes(forward=1.0, backward=2.0)] * 4
      >>> simulate(stages, "scpl", devices=4).step_seconds, simulate(stages, "bp", devices=4).step_seconds
      (3.0, 12.0)
      >>> round(simulate(stages, "gpipe", devices=4, micro_batches=4).mean_idle_share, 3)  # (4 - 1) / (4 + 4 - 1)
      0.429
    """
    _check(stages, method, micro_batches, remat, overhead, devices=devices, max_in_flight=max_in_flight)
    local = method == "scpl"
    if not local:
        stages = [dataclasses.replace(stage, local=0.0, local_state_bytes=0.0) for stage in stages]
    work = [stage.forward + stage.backward + stage.local + stage.update for stage in stages]
    # the rule of scpl_jax.pipeline.place
    cut = balanced_cut(lambda _, start, stop: sum(work[start:stop]), len(work), min(len(work), devices))
    bounds = (0, *cut, len(stages))
    parts = [stages[start:stop] for start, stop in itertools.pairwise(bounds)]
    if local:
        jobs = _local_jobs(parts, overhead)
    else:
        tasks = (one_forward_one_backward if method == "1f1b" else gpipe)(len(parts), micro_batches)
        jobs = _schedule_jobs([_merge(part) for part in parts], bounds, tasks, micro_batches, remat, overhead)
    machine = Machine(len(parts), link)
    seconds = machine.run_until_steady(jobs, max_in_flight if local else None)
    idle, peaks = [1.0] * len(parts), machine.peaks(moment=1e-9 * seconds)
    for job in jobs:
        idle[job.device] -= job.seconds / seconds
    for device, part in enumerate(parts):
        peaks[device] += sum(stage.state_bytes + stage.local_state_bytes for stage in part)
    return Simulation(seconds, tuple(max(0.0, share) for share in idle), tuple(peaks), tuple(machine.spans))


def speedup_table(
    stages_of: Callable[[int], Sequence[StageTimes]],
    counts: Sequence[int],
    micro_batches: Sequence[int],
    *,
    link: Link = _FREE,
    overhead: float = 0.0,
    remat: bool = False,
) -> list[dict[str, float]]:
    """Step times of all methods for several numbers of stages, on as many devices.

    Args:
      stages_of: gives the stages of the network cut into that many.
      counts: numbers of stages. Twice as many batches may be in flight with "scpl".
      micro_batches: numbers of micro-batches for "gpipe" and "1f1b".
      link: as for :func:`simulate`.
      overhead: as for :func:`simulate`, in seconds.
      remat: as for :func:`simulate`, for "gpipe" and "1f1b".

    Returns:
      A row for each count: ``stages``; seconds a step as ``scpl``, ``bp``, ``gpipe M`` and ``1f1b M`` for each number M
      of micro-batches; and with ``/scpl`` behind the name how many times that of "scpl" it is.

    Raises:
      ValueError: as for :func:`simulate`.

    Example:
      >>> rows = speedup_table(lambda count: [StageTimes(1 / count, 1 / count)] * count, [2, 4], micro_batches=[2])
      >>> rows[0]["scpl"], rows[0]["bp"], rows[0]["gpipe 2"], [row["bp/scpl"] for row in rows]
      (1.0, 2.0, 1.5, [2.0, 4.0])
    """
    variants = [("scpl", "scpl", 1), ("bp", "bp", 1)]
    variants += [(f"{method} {number}", method, number) for method in ("gpipe", "1f1b") for number in micro_batches]
    rows = []
    for count in counts:
        common: dict[str, Any] = {"devices": count, "link": link, "overhead": overhead, "max_in_flight": 2 * count}
        times = {}
        for name, method, number in variants:
            again = remat and method in ("gpipe", "1f1b")
            found = simulate(stages_of(count), method, micro_batches=number, remat=again, **common)
            times[name] = found.step_seconds
        ratios = {f"{name}/scpl": seconds / times["scpl"] for name, seconds in times.items() if name != "scpl"}
        rows.append({"stages": count, **times, **ratios})
    return rows


def _local_jobs(parts: Sequence[Sequence[StageTimes]], overhead: float) -> list[Job]:
    jobs: list[Job] = []
    devices = [device for device, part in enumerate(parts) for _ in part]
    for number, stage in enumerate(itertools.chain(*parts)):
        seconds = overhead + stage.forward + stage.backward + stage.local + stage.update
        takes = number - 1 if number else None
        to = devices[number + 1] if number + 1 < len(devices) else None
        memory = (stage.message_bytes, 0.0, stage.activation_bytes)
        jobs.append(Job("step", number, 0, devices[number], seconds, takes, to, *memory))
    return jobs


def _merge(stages: Sequence[StageTimes]) -> StageTimes:
    """Several stages in one program, without messages between them."""
    sums = {field.name: sum(getattr(stage, field.name) for stage in stages) for field in dataclasses.fields(StageTimes)}
    return StageTimes(**sums | {"message_bytes": stages[-1].message_bytes})


def _schedule_jobs(
    groups: Sequence[StageTimes], bounds: Sequence[int], tasks: Sequence[Task], parts: int, remat: bool, overhead: float
) -> list[Job]:
    numbers = {task: number for number, task in enumerate(tasks)}
    jobs = []
    for task in tasks:
        device, forward = task.stage, task.kind == "forward"
        group, handed = groups[device], groups[device - 1].message_bytes if device else 0.0
        seconds = (not forward) * group.backward + (task.kind != "backward" or remat) * group.forward
        # its own forward is further up in the device's order, so only a message can keep a task waiting
        takes = [numbers[need] for need in needs(task, len(groups)) if need.stage != device]
        to = device + 1 if forward else device - 1 if device else None
        message, stored = group.message_bytes if forward else handed, handed if remat else group.activation_bytes
        memory = (size / parts for size in (message, stored, group.activation_bytes))
        program = (task.kind, bounds[device], task.micro_batch, device, overhead + seconds / parts)
        jobs.append(Job(*program, takes[0] if takes else None, to, *memory))
    return jobs + [Job("update", bounds[d], 0, d, overhead + group.update) for d, group in enumerate(groups)]


def _check(
    stages: Sequence[StageTimes], method: str, micro_batches: int, remat: bool, overhead: float, **counts: int
) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    if not stages:
        raise ValueError("a simulation needs at least one stage, got none")
    for name, value in {"micro_batches": micro_batches, **counts}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= overhead < math.inf:
        raise ValueError(f"overhead must be finite and at least 0, got {overhead}")
    if method in ("scpl", "bp") and micro_batches != 1:
        raise ValueError(f"method {method!r} takes whole batches, got {micro_batches} micro-batches")
    if method == "scpl" and remat:
        raise ValueError("method 'scpl' stores activations only within a program, so remat is not for it")
    if not any(stage.forward + stage.backward + stage.update + overhead > 0 for stage in stages):
        raise ValueError("the stages take no time at all, so there is nothing to simulate")
