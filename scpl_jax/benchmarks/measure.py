"""What the throughput experiment measures in one process (of one or several)."""

import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from scpl_jax.benchmarks.throughput_options import Options
from scpl_jax.cli.environment import device_peak_bytes, process_peak_bytes
from scpl_jax.objectives import CrossEntropy, Objective
from scpl_jax.pipeline import Pipeline, Span, Timeline, processes
from scpl_jax.pipeline.placement import is_local
from scpl_jax.stages import Stage, decouple
from scpl_jax.stages.step import stage_loss
from scpl_jax.training.run_error import RunError
from scpl_jax.training.writing import write_json

# Steps before those that are timed: the pipeline fills.
_FILL = 4
# For processes whose memory is measured: glibc would keep freed arrays for later, and what is resident would depend on
# luck more than on what is in use.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(256 * 1024)}
# How stages share programs, as a method says it; otherwise it is left open, as in a training run.
_FUSE = {"fused": True, "separate": False}


class _MeanSquares(nnx.Module):
    def __call__(self, features: Any, labels: jax.Array) -> jax.Array:
        return sum((jnp.mean(jnp.square(x)) for x in jax.tree.leaves(features)), jnp.float32(0))


@dataclasses.dataclass(frozen=True)
class _Squares(Objective):
    """A local loss that costs nothing to speak of: what a stage takes beside it is its blocks' own work."""

    def build(self, features: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        return _MeanSquares()


@dataclasses.dataclass(frozen=True)
class Network:
    """The network that is measured, cut once; every method gets the same blocks, cut and batch.

    Attributes:
      local: stages with the contrastive loss.
      bare: the same stages with a local loss that costs nothing.
      end_to_end: the same stages without local losses.
      others: the same cut with other learning rules, by name.
      inputs: a batch.
      labels: its labels, int32.
    """

    local: tuple[Stage, ...]
    bare: tuple[Stage, ...]
    end_to_end: tuple[Stage, ...]
    others: dict[str, tuple[Stage, ...]]
    inputs: np.ndarray
    labels: np.ndarray


def network(options: Options) -> Network:
    """Cut the network of these options; the cut is that of the stages with SCPL's local losses."""
    inputs, labels = options.batch()

    def build(
        objective: Objective | Sequence[Objective], cut: str | Sequence[int], classifier: bool = True
    ) -> tuple[Stage, ...]:
        blocks = options.blocks(nnx.Rngs(0))
        used = blocks if classifier else blocks[:-1]
        return decouple(used, options.stages, objective, inputs, nnx.Rngs(1), cut=cut, classifier=classifier)

    local = build(options.rule("scpl").objectives, options.cut_positions())
    positions = [stage.blocks[0] for stage in local[1:]]
    rules = {name: options.rule(name) for name in options.other_rules}
    return Network(
        local,
        build(_Squares(), positions),
        build(CrossEntropy(), positions),
        {name: build(rule.objectives, positions, rule.classifier) for name, rule in rules.items()},
        inputs,
        labels,
    )


def pipelines(network: Network, methods: Sequence[str], placement: dict[str, Any]) -> dict[str, Pipeline]:
    """A pipeline for each method: "scpl", "bp", "gpipe M" or another rule; behind it " remat", or how stages share
    programs: " fused" or " separate", without it as in a training run."""
    made: dict[str, Pipeline] = {}
    for method in methods:
        name, *more = method.split()
        stages, options = network.end_to_end, dict(placement)
        if name == "scpl" or name in network.others:
            stages = network.local if name == "scpl" else network.others[name]
            options["fuse"] = next((_FUSE[word] for word in more if word in _FUSE), None)
        else:
            options["micro_batches"] = next((int(word) for word in more if word.isdigit()), 1)
            options["remat"] = "remat" in more
        # The sub-meshes are those of SCPL's stages for all.
        priced = [dataclasses.replace(a, cost=b.cost) for a, b in zip(stages, network.local, strict=True)]
        made[method] = Pipeline(priced, optax.adam(1e-3), **options)
    return made


def own_parts(pipeline: Pipeline, stages: Sequence[Stage]) -> list[tuple[Pipeline, int]]:
    """The stages of each sub-mesh of this process as a pipeline of their own, with the number of the first one."""
    parts = []
    for mesh in dict.fromkeys(pipeline.meshes):
        if not is_local(mesh):
            continue
        mine = [index for index, other in enumerate(pipeline.meshes) if other == mesh]
        renumbered = [dataclasses.replace(stages[index], index=number) for number, index in enumerate(mine)]
        devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
        parts.append((Pipeline(renumbered, optax.adam(1e-3), devices, data_parallel=len(devices), fuse=None), mine[0]))
    return parts


def message_before(stages: Sequence[Stage], index: int, inputs: np.ndarray, labels: np.ndarray) -> Any:
    """Noise of the shape that stage ``index`` of a local rule is given, what the rule sends along included.

    Masks are True and whole numbers 0; the first stage gets the batch itself.
    """
    if index == 0:
        return inputs
    rng = np.random.default_rng(index)
    message: Any = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
    for stage in stages[:index]:
        train = functools.partial(stage_loss, stage)
        _, (message, _, _) = jax.eval_shape(train, stage.params, stage.rest, message, labels)

    def noise(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return np.full(x.shape, x.dtype == bool, x.dtype)
        return np.maximum(rng.normal(size=x.shape), 0).astype(x.dtype)

    return jax.tree.map(noise, message)


def seconds_a_step(pipeline: Pipeline, inputs: Any, labels: Any, steps: int, max_in_flight: int) -> float:
    """Seconds a step in the steady state, the same in every process.

    The difference of two runs that differ by ``steps`` steps: filling and draining the pipeline takes as long in both.
    Where the longer run was not the slower one, so few steps are less than what else goes on in the machine, and twice
    as many are tried.
    """
    pipeline.max_in_flight = max_in_flight

    def whole(count: int) -> float:
        processes.gather(None)  # all begin together
        began = time.perf_counter()
        for _ in range(count):
            pipeline.train_step(inputs, labels)
        pipeline.wait()
        seconds: float = max(processes.gather(time.perf_counter() - began))
        return seconds

    # Every process has the same times, so all of them go on or stop together.
    while (difference := -whole(_FILL) + whole(_FILL + steps)) <= 0:
        steps *= 2
    return difference / steps


def seconds_alone(variants: Sequence[tuple[Pipeline, Any]], labels: Any, least: float) -> list[float]:
    """Seconds a step of each of some variants of the same stages, with its message, whatever the other processes do.

    They take their steps in turn, one at a time, for at least ``least`` seconds each, so that a machine whose speed
    changes changes it for all of them.
    """
    for pipeline, message in variants:
        for _ in range(2):
            pipeline.train_step(message, labels)
        pipeline.wait()
    seconds, steps = [0.0] * len(variants), 0
    while min(seconds) < least:
        for index, (pipeline, message) in enumerate(variants):
            began = time.perf_counter()
            pipeline.train_step(message, labels)
            pipeline.wait()
            seconds[index] += time.perf_counter() - began
        steps += 1
    return [one / steps for one in seconds]


def record(pipeline: Pipeline, inputs: Any, labels: Any, steps: int, max_in_flight: int) -> list[Span]:
    """The timeline of some steps in the steady state, of all processes.

    A stage that is faster than the one behind it works ahead until as many batches as may be are under way. Only then
    does it wait for the others.
    """
    pipeline.max_in_flight = max_in_flight
    for _ in range(_FILL + 3 * max_in_flight):
        pipeline.train_step(inputs, labels)
    timeline = Timeline(pipeline)
    for _ in range(steps):
        pipeline.train_step(inputs, labels)
    pipeline.wait()
    return timeline.stop_everywhere()


def task_seconds(spans: Sequence[Span]) -> dict[str, dict[str, float]]:
    """Median seconds of each kind of task: stages -> task -> seconds; the first recorded step is left out."""
    first = min((span.step for span in spans), default=0)
    found: dict[str, dict[str, list[float]]] = {}
    for span in spans:
        if span.step > first:
            found.setdefault(span.stages, {}).setdefault(span.task, []).append(span.end - span.start)
    return {
        stages: {task: statistics.median(seconds) for task, seconds in tasks.items()} for stages, tasks in found.items()
    }


class ResidentMemory:
    """Samples the process's resident memory while it is open: of what runs now, not of the compilation before it."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._done.is_set():
            self.peak = max(self.peak, resident_bytes())
            time.sleep(0.002)

    def __enter__(self) -> "ResidentMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def resident_bytes() -> int:
    """Memory of the process now; where the system does not tell, its peak so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return process_peak_bytes()


def peak_bytes(pipeline: Pipeline, inputs: Any, labels: Any, steps: int, max_in_flight: int) -> int:
    """Peak memory while training: of this process's fullest device where the backend tells, else resident memory."""
    pipeline.max_in_flight = max_in_flight
    with ResidentMemory() as memory:
        for _ in range(_FILL + steps):
            pipeline.train_step(inputs, labels)
        pipeline.wait()
    return device_peak_bytes() or memory.peak


def in_own_process(benchmark: str, arguments: Sequence[str], what: str, **variables: str) -> Any:
    """What a benchmark prints last, as JSON, in a process with these variables whose memory can be measured.

    Raises:
      RunError: it fails; the sentence says what was to be measured.
    """
    command = [sys.executable, "-m", f"scpl_jax.benchmarks.{benchmark}", *arguments]
    environment = {**os.environ, **GIVE_BACK, **variables}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RunError(f"the measurement of {what} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def write_numbers(options: Any, found: dict[str, Any], without: str = "output") -> None:
    """Write numbers to the file that ``--output`` names, if any, behind the options but files and ``without``."""
    if options.output is not None:
        asked = {k: v for k, v in dataclasses.asdict(options).items() if k != without and not isinstance(v, Path)}
        write_json(options.output, {"options": asked, **found})


def in_turn(candidates: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """What each candidate returns, called in turn, every second round backwards.

    A machine that slows down so favours nobody.
    """
    found: dict[str, list[Any]] = {name: [] for name in candidates}
    for repeat in range(repeats):
        for name in list(candidates) if repeat % 2 == 0 else list(candidates)[::-1]:
            found[name].append(candidates[name]())
    return found


def alternate(candidates: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds that each candidate takes, as :func:`in_turn`. A candidate must wait for what it computes.

    Example:
      >>> sorted(alternate({"a": lambda: sum(range(10)), "b": lambda: None}, 3))
      ['a', 'b']
    """

    def seconds(candidate: Callable[[], object]) -> float:
        began = time.perf_counter()
        candidate()
        return time.perf_counter() - began

    return in_turn({name: functools.partial(seconds, each) for name, each in candidates.items()}, repeats)


def speed_of(options: Options, seconds: Sequence[float], *, tokens: bool = True) -> dict[str, Any]:
    """Seconds a step as measured, and the examples, and if wanted tokens of a text, that this is a second."""
    row: dict[str, Any] = {"seconds_a_step": summary(seconds)}
    rate = options.batch_size / row["seconds_a_step"]["median"]
    row["texts_per_second" if options.is_text else "images_per_second"] = rate
    if options.is_text and tokens:
        row["tokens_per_second"] = rate * options.length
    return row


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Ratios within a round, then their median and spread: what slows the machine down slows both."""
    return summary([a / b for a, b in zip(numerator, denominator, strict=True)])


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": statistics.median(values), "fastest": min(values), "slowest": max(values)}
