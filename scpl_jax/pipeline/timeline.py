"""When each stage worked: measured while the pipeline runs, without making it wait."""

import dataclasses
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax

from scpl_jax.pipeline import processes
from scpl_jax.pipeline.executor import Pipeline
from scpl_jax.pipeline.placement import Group, is_local


@dataclasses.dataclass(frozen=True)
class Span:
    """One program of one group of stages at work.

    Attributes:
      task: "step" for local losses; "forward", "forward_backward" or "backward" for backpropagation; "update" where
        the update is a program of its own.
      stages: numbers of its stages, as "2" or "2-3".
      device: the first device of its sub-mesh.
      step: number of the training step.
      micro_batch: number of the micro-batch, from 0.
      start: seconds since the epoch (of the system's clock) at which it began.
      end: likewise.
    """

    task: str
    stages: str
    device: str
    step: int
    micro_batch: int
    start: float
    end: float


class Timeline:
    """Records the programs of a pipeline's training steps.

    A device works through its programs in order, so one begins when its input has arrived and the one before has ended.
    One thread a sub-mesh waits for inputs and outputs and notes the time; the pipeline itself never waits. Programs
    shorter than the waking of a thread may so appear later than they ran, even after those that waited for them. In a
    run of several processes each records its own stages.

    Args:
      pipeline: its training steps are recorded from now on, until :meth:`stop`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> from scpl_jax import Pipeline, SupCon, decouple
      >>> blocks = [nnx.Linear(8, 8, rngs=nnx.Rngs(i)) for i in range(2)] + [nnx.Linear(8, 3, rngs=nnx.Rngs(2))]
      >>> x, y = jnp.ones((4, 8)), jnp.array([0, 1, 2, 0])
      >>> pipeline = Pipeline(decouple(blocks, 2, SupCon(head="identity"), x, nnx.Rngs(3)), optax.adam(1e-3))
      >>> timeline = Timeline(pipeline)
      >>> _ = pipeline.train_step(x, y)
      >>> sorted((span.task, span.stages, span.step) for span in timeline.stop())
      [('step', '0', 0), ('step', '1', 0)]
    """

    def __init__(self, pipeline: Pipeline):
        self._pipeline = pipeline
        self._spans: list[Span] = []
        self._queues: dict[Any, queue.SimpleQueue[Any]] = {}
        self._threads: list[threading.Thread] = []
        for group in pipeline.groups:
            if is_local(group.mesh) and group.mesh not in self._queues:
                waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
                thread = threading.Thread(target=self._watch, args=(waiting,), daemon=True)
                self._queues[group.mesh] = waiting
                self._threads.append(thread)
                thread.start()
        # The clock of the system tells when, the steady one how long.
        self._offset = time.time() - time.perf_counter()
        pipeline.record = self._record

    def _record(self, task: str, group: Group, taken: Any, gave: Any) -> None:
        if group.mesh not in self._queues:
            return
        kind, _, micro_batch = task.partition(" ")
        device = str(group.mesh.devices.flat[0])
        about = Span(kind, group.name, device, self._pipeline.step, int(micro_batch or 0), 0.0, 0.0)
        self._queues[group.mesh].put((about, jax.tree.leaves(taken), jax.tree.leaves(gave)))

    def _watch(self, waiting: "queue.SimpleQueue[Any]") -> None:
        free = 0.0
        while (entry := waiting.get()) is not None:
            about, taken, gave = entry
            jax.block_until_ready(taken)
            arrived = time.perf_counter()
            jax.block_until_ready(gave)
            end = time.perf_counter()
            # An update takes what its step has left on the device, and begins when that has ended; a short one may be
            # over before anybody hears of it.
            start = max(free, min(arrived, end)) if taken or not free else free
            free = end
            self._spans.append(dataclasses.replace(about, start=start + self._offset, end=end + self._offset))
            del entry, taken, gave  # not to keep messages alive while waiting for the next ones

    def stop(self) -> list[Span]:
        """Wait for what was dispatched and return the spans of this process, by start."""
        self._pipeline.record = None
        for waiting in self._queues.values():
            waiting.put(None)
        for thread in self._threads:
            thread.join()
        return sorted(self._spans, key=lambda span: span.start)

    def stop_everywhere(self) -> list[Span]:
        """The spans of all processes; every process must call it."""
        own = [dataclasses.asdict(span) for span in self.stop()]
        return [Span(**span) for spans in processes.gather(own) for span in spans]


def idle_shares(spans: Sequence[Span], skip: int = 0) -> dict[str, float]:
    """Share of the time in which each device did nothing in the steady state.

    Of each device the time from the end of its first step to the end of its last one counts: devices that work on
    different steps at the same time are treated alike.

    Args:
      spans: from :meth:`Timeline.stop`, perhaps of several processes together, of at least two steps.
      skip: steps at the start that are left out, because the pipeline fills.

    Returns:
      device -> a fraction from 0 to 1.

    Example:
      >>> spans = [Span("step", "0", "a", step, 0, 2.0 * step, 2.0 * step + 1.5) for step in range(3)]
      >>> idle_shares(spans)
      {'a': 0.25}
    """
    begin = min((span.step for span in spans), default=0) + skip
    shares = {}
    for device in sorted({span.device for span in spans}):
        own = [span for span in spans if span.device == device and span.step >= begin]
        ends = [span.end for span in own if span.step == begin]
        later = [span for span in own if span.step > begin]
        if ends and later:
            whole = max(span.end for span in later) - max(ends)
            shares[device] = 1 - sum(span.end - span.start for span in later) / whole
    return shares
