"""What the engine costs: ``python -m scpl_jax.benchmarks.overhead --output FILE.json``.

Four questions, answered by measuring A and B in turn in one process, medians over the repeats:

- the engine's step against a loop written by hand: the same stages' steps, each jitted, called one after the other;
- looking for bad numbers against not looking (``--no-skip-non-finite``);
- the augmentations against the step without any;
- start-up: seconds from starting the command to the first training step, without and with compiled programs cached.
"""

import dataclasses
import functools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from scpl_jax.benchmarks import measure
from scpl_jax.cli.command_line import parse_options, run
from scpl_jax.cli.environment import versions
from scpl_jax.cli.option_types import Count, Unset
from scpl_jax.data import make_augment
from scpl_jax.models import build_model
from scpl_jax.objectives import SupCon
from scpl_jax.pipeline import Pipeline
from scpl_jax.stages import Stage, decouple, initial_state, train_step

_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
# One function takes a step without waiting, the other waits for what was begun.
_Candidate = tuple[Callable[[], object], Callable[[], object]]


@dataclasses.dataclass
class Options:
    """Measure the engine's overhead, the augmentation and the start-up."""

    model: str = "vgg8"
    """Network, as for the cifar experiment."""
    width: float = 0.25
    """Multiplier of the numbers of channels."""
    batch_size: Count = 128
    """Images a batch."""
    stages: int = 4
    """Number of stages."""
    head_pool: int = 2
    """Average a feature map to this side before the head, in pixels; 0: not at all."""
    steps: Count = 5
    """Training steps a measurement."""
    repeats: Count = 9
    """Measurements of each, taken in turn."""
    startup: bool = True
    """Also measure the start-up of the default job."""
    output: Unset[Path] = None
    """Write the numbers as JSON."""


def _by_hand(stages: Sequence[Stage], images: Any, labels: Any) -> _Candidate:
    """The loop that one would write without the engine."""
    optimizer = optax.adam(1e-3)
    states = [jax.device_put(initial_state(stage, optimizer)) for stage in stages]
    steps = [jax.jit(functools.partial(train_step, stage, optimizer), donate_argnums=0) for stage in stages]

    def step() -> None:
        message, targets = jax.device_put((images, labels))
        for index, one in enumerate(steps):
            states[index], message, _ = one(states[index], message, targets)

    return step, lambda: jax.block_until_ready(states)


def _measure(candidates: dict[str, _Candidate], steps: int, repeats: int) -> dict[str, list[float]]:
    """Seconds a step of each candidate, measured in turn; compilation and first steps are left out."""

    def several(step: Callable[[], object], wait: Callable[[], object], count: int = steps) -> None:
        for _ in range(count):
            step()
        wait()

    for candidate in candidates.values():
        several(*candidate, count=2)
    times = measure.alternate({name: functools.partial(several, *each) for name, each in candidates.items()}, repeats)
    return {name: [seconds / steps for seconds in found] for name, found in times.items()}


def _startup() -> dict[str, float]:
    """Seconds from process start to the first step of the default job, with an empty and with a filled cache."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first start", "second start"):
            command = [sys.executable, "-m", "scpl_jax.experiments.cifar", "--stages", "4", "--dataset", "digits"]
            command += ["--epochs", "1", "--cache-dir", f"{folder}/cache", "--out-dir", f"{folder}/{name}"]
            began = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("first step"):
                    found[f"{name}, to first step"] = time.perf_counter() - began
                    found[f"{name}, of it compilation"] = float(line.split(",")[1].split()[0])
            process.wait()
    return found


def _row(times: list[float], base: list[float]) -> dict[str, float]:
    """Median and spread, and the median of the ratios within a round."""
    found = measure.summary(times)
    return {"seconds": found.pop("median"), **found, "ratio": measure.ratios(times, base)["median"]}


def main(arguments: Sequence[str]) -> int:
    """Run the measurement; returns the exit status."""
    options = parse_options(Options, arguments, "scpl_jax.benchmarks.overhead", Options())
    jax.config.update("jax_default_matmul_precision", "highest")
    blocks = build_model(options.model, 10, width=options.width, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, options.batch_size).astype(np.int32)
    pixels = rng.integers(0, 256, (options.batch_size, 32, 32, 3), dtype=np.uint8)
    images = ((pixels / 255 - 0.5) / 0.25).astype(np.float32)
    stages = decouple(blocks, options.stages, SupCon(head_pool=options.head_pool), images, nnx.Rngs(1))
    device = jax.devices()[:1]

    def engine(images: Any, labels: Any, *, look: bool = True) -> _Candidate:
        pipeline = Pipeline(stages, optax.adam(1e-3), device, skip_non_finite=look)
        return functools.partial(pipeline.train_step, images, labels), pipeline.wait

    many = (options.steps, options.repeats)
    loops = _measure({"by hand": _by_hand(stages, images, labels), "engine": engine(images, labels)}, *many)
    table = {name: _row(times, loops["by hand"]) for name, times in loops.items()}
    looks = _measure({"blind": engine(images, labels, look=False), "looking": engine(images, labels)}, *many)
    table["looking for bad numbers"] = _row(looks["looking"], looks["blind"])
    for kind in ("none", "basic", "strong"):
        augment = jax.jit(make_augment(kind, mean=_MEAN, std=_STD))
        key = jax.random.key(0)
        views = 2 if kind == "strong" else 1
        # The step that this augmentation feeds: strong gives it twice as many images.
        step = engine(np.concatenate([images] * views), np.concatenate([labels] * views))
        last: list[Any] = []

        def alone(augment: Any = augment, key: Any = key, last: list[Any] = last) -> None:
            last[:] = augment(key, jnp.asarray(pixels), jnp.asarray(labels))

        times = _measure({"step": step, "augment": (alone, functools.partial(jax.block_until_ready, last))}, *many)
        table[f"augmentation {kind}"] = _row(times["augment"], times["step"])
    startup = _startup() if options.startup else {}

    print(f"{'':24}{'ms a step':>12}{'fastest':>10}{'slowest':>10}{'ratio':>9}")
    for name, row in table.items():
        milliseconds = "".join(
            f"{row[k] * 1e3:>{w}.1f}" for k, w in (("seconds", 12), ("fastest", 10), ("slowest", 10))
        )
        print(f"{name:24}{milliseconds}{row['ratio']:>9.3f}")
    print("ratio: engine to the loop by hand; looking to not looking; augmentation to the step that it feeds")
    for name, seconds in startup.items():
        print(f"{name}: {seconds:.1f} s")
    machine = {"device": device[0].device_kind, "cores": os.cpu_count(), "machine": platform.machine()}
    measure.write_numbers(options, {"table": table, "startup": startup, **machine, "versions": versions()})
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
