"""Devices and links on which programs run, as the simulator sees them."""

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

# Three windows are enough as a rule. Where two devices are almost equally fast, the slower one holds up the other only
# after many, and the pace of the slower one is known long before.
_MAX_WINDOWS = 64


@dataclasses.dataclass(frozen=True)
class Link:
    """One direction between two devices: busy for a message's bytes / ``bandwidth`` (bytes a second).

    The message arrives ``latency`` seconds after its last byte was sent; the link is free meanwhile.

    Raises:
      ValueError: a bandwidth that is not above 0, or a latency that is negative or not finite.
    """

    bandwidth: float = math.inf
    latency: float = 0.0

    def __post_init__(self) -> None:
        if not self.bandwidth > 0 or not 0 <= self.latency < math.inf:
            raise ValueError(f"a link needs a bandwidth above 0 and a finite latency of at least 0, got {self}")


@dataclasses.dataclass(frozen=True)
class Span:
    """One program on the time line, from ``start`` to ``end`` in seconds.

    ``kind`` is that of a schedule's task, "update", or "step" with "scpl"; ``stage`` the first of the stages it runs.
    """

    kind: str
    stage: int
    batch: int
    micro_batch: int
    device: int
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Job:
    """A program of every step.

    Jobs are numbered in their order; ``takes`` is the one whose message this one waits for, ``to`` the device that gets
    its own message. ``stored`` bytes are held from a forward to its backward, ``activations`` during a backward.
    """

    kind: str
    stage: int
    micro_batch: int
    device: int
    seconds: float
    takes: int | None = None
    to: int | None = None
    message: float = 0.0
    stored: float = 0.0
    activations: float = 0.0


class Machine:
    """Clocks of devices and links, and what the devices hold over time."""

    def __init__(self, devices: int, link: Link):
        self.spans: list[Span] = []
        self._link = link
        self._free = [0.0] * devices
        self._link_free: defaultdict[tuple[int, int], float] = defaultdict(float)
        self._changes: list[list[tuple[float, float]]] = [[] for _ in range(devices)]

    def run_until_steady(self, jobs: Sequence[Job], max_in_flight: int | None) -> float:
        """Run steps until all devices and links took equally long for the last window of them; seconds of a step."""
        # Batches that are bounded go through in groups of as many. Steps of a synchronous method can alternate: after a
        # long update a device begins the next step late, but does not hold up the others the step after.
        window = max_in_flight or 2
        ends: list[list[float]] = []
        left: list[float] = []
        while True:
            enter = left[-max_in_flight] if max_in_flight is not None and len(left) >= max_in_flight else 0.0
            left.append(self._step(jobs, len(left), enter))
            ends.append([*self._free, *self._link_free.values()])
            if len(ends) > 2 * window:
                taken = [(now - before) / window for now, before in zip(ends[-1], ends[-1 - window], strict=True)]
                if max(taken) - min(taken) <= 1e-9 * max(taken) or len(ends) >= _MAX_WINDOWS * window:
                    return max(taken)

    def _step(self, jobs: Sequence[Job], batch: int, enter: float) -> float:
        """Run every job once, none before ``enter``; the time at which the last of them is done."""
        arrived: dict[int, float] = {}
        begun: dict[tuple[int, int], float] = {}
        for number, job in enumerate(jobs):
            device, part = job.device, (job.stage, job.micro_batch)
            ready = enter if job.takes is None else arrived[job.takes]
            start = max(self._free[device], ready)
            self._free[device] = end = start + job.seconds
            self.spans.append(Span(job.kind, job.stage, batch, job.micro_batch, device, start, end))
            if job.takes is not None:
                self._hold(device, ready, start, jobs[job.takes].message)
            if job.to is not None:
                arrived[number] = self._send(device, job.to, end, job.message)
            if job.kind == "forward":
                begun[part] = start
            else:
                self._hold(device, begun.get(part, start), start, job.stored)
                self._hold(device, start, end, job.activations)
        return end

    def _send(self, source: int, target: int, at: float, size: float) -> float:
        """Put a message on its link; the time at which it arrives."""
        if source == target:
            return at
        done = max(self._link_free[source, target], at) + size / self._link.bandwidth
        self._link_free[source, target] = done
        self._hold(source, at, done, size)
        return done + self._link.latency

    def _hold(self, device: int, start: float, end: float, size: float) -> None:
        self._changes[device] += [(start, size), (end, -size)]

    def peaks(self, moment: float) -> list[float]:
        """The most bytes held on each device; what is freed in a moment (seconds) makes room for what comes then."""
        peaks = []
        for changes in self._changes:
            # times that are the same by arithmetic can differ by rounding
            ordered = sorted((round(at / moment), size) for at, size in changes)
            peaks.append(max(itertools.accumulate((size for _, size in ordered), initial=0.0)))
        return peaks
