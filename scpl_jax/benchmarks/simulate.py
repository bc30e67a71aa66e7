"""Machines that are not here: ``python -m scpl_jax.benchmarks.simulate --output FILE.json``.

Simulates SCPL, backpropagation, GPipe and 1F1B on 2 to 64 devices for a network of 64 equal convolution blocks, from
the compiler's estimate of each block and the speed of device and link. With ``--check FILE`` it simulates instead what
the throughput experiment has measured, from the times of the single stages, and says how far off it is.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scpl_jax.benchmarks import measure
from scpl_jax.cli.command_line import parse_options, run
from scpl_jax.cli.environment import versions
from scpl_jax.cli.option_types import Unset, integers
from scpl_jax.models.layers import Classifier
from scpl_jax.models.vgg import VGGBlock
from scpl_jax.objectives import SupCon
from scpl_jax.simulation import Link, StageTimes, simulate, speedup_table
from scpl_jax.stages.cost import module_cost
from scpl_jax.training.run_error import RunError
from scpl_jax.training.writing import read_json

_BLOCKS = 64


@dataclasses.dataclass
class Options:
    """Simulate pipelines of many devices."""

    stages: str = "2,4,8,16,32,64"
    """Numbers of stages, one device each; each must divide 64."""
    micro_batches: str = "4,8,16,32"
    """Numbers of micro-batches of GPipe and 1F1B."""
    channels: int = 256
    """Channels of each block."""
    image_size: int = 16
    """Side of the images, in pixels; no block makes them smaller."""
    batch_size: int = 256
    """Images a batch."""
    operations_per_second: float = 2e13
    """Speed of a device."""
    bandwidth: float = 5e10
    """Bytes a second between two devices, in each direction."""
    latency: float = 1e-5
    """Seconds until a message's first byte is there."""
    overhead: float = 2e-5
    """Seconds to start a program."""
    check: Unset[Path] = None
    """Compare with the numbers of the throughput experiment in this file."""
    output: Unset[Path] = None
    """Write the numbers as JSON."""


def _equal_stages(options: Options, count: int) -> list[StageTimes]:
    """The times of ``count`` stages of equal blocks, by the compiler's estimate."""
    side, channels = options.image_size, options.channels
    features = jax.ShapeDtypeStruct((options.batch_size, side, side, channels), jnp.float32)
    labels = jax.ShapeDtypeStruct((options.batch_size,), jnp.int32)
    rngs = nnx.Rngs(0)
    block = module_cost(VGGBlock(channels, channels, pool=False, rngs=rngs), features)
    head = module_cost(SupCon(head_pool=2).build(features, rngs=rngs), features, labels)
    classifier = module_cost(Classifier((side, side, channels), 10, pool=True, rngs=rngs), features)
    whole = block.training()
    third = whole / 3  # the forward pass has a third of the operations, and about as much of the traffic
    number, speed = _BLOCKS // count, options.operations_per_second
    size = features.size * 4
    last = classifier.training()
    return [
        StageTimes(
            forward=number * third / speed,
            backward=(number * (whole - third) + (last if index == count - 1 else 0.0)) / speed,
            local=head.training() / speed,
            update=0.0,
            # of each block its input, the convolution's and the batch norm's output
            activation_bytes=number * 3 * size,
            message_bytes=size,
            state_bytes=number * block.parameters * 12,
            local_state_bytes=head.parameters * 12,
        )
        for index in range(count)
    ]


def _check(options: Options, path: Path) -> list[dict[str, Any]]:
    """Measured and simulated seconds a step of every method in a file of the throughput experiment."""
    try:
        return _compare(options, read_json(path))
    except (KeyError, TypeError, AttributeError, ArithmeticError):
        raise RunError(f"--check {path} does not hold scpl and bp of a throughput experiment; measure both") from None


def _compare(options: Options, found: Any) -> list[dict[str, Any]]:
    alone = [one["median"] for one in found["alone_seconds"]]
    sizes, tasks = found["message_bytes"], found["methods"]["bp"]["task_seconds"]
    measured = {name: row["seconds_a_step"]["median"] for name, row in found["methods"].items()}
    local = [StageTimes(seconds, 0, 0, 0, 0, size, 0) for seconds, size in zip(alone, sizes, strict=True)]
    together = []
    for stages, size in zip(sorted(tasks), sizes, strict=True):
        own = tasks[stages]
        forward = own.get("forward", own.get("forward_backward", 0.0) / 3)
        backward = own.get("backward", own.get("forward_backward", 0.0) * 2 / 3)
        together.append(StageTimes(forward, backward, 0, 0, 0, size, 0))
    link = Link(options.bandwidth, options.latency)
    rows = []
    for name, seconds in measured.items():
        method, *more = name.split()
        numbers = [int(word) for word in more if word.isdigit()]
        simulated = simulate(
            local if method == "scpl" else together,
            method,
            devices=len(alone),
            micro_batches=numbers[0] if numbers else 1,
            remat="remat" in more and method != "scpl",
            link=link,
            max_in_flight=1 if "synchronous" in more else 8,
            overhead=options.overhead,
        ).step_seconds
        rows.append({"method": name, "measured": seconds, "simulated": simulated, "error": simulated / seconds - 1})
    return rows


def main(arguments: Sequence[str]) -> int:
    """Run the simulation; returns the exit status."""
    options = parse_options(Options, arguments, "scpl_jax.benchmarks.simulate", Options())
    counts, parts = integers(options.stages, "--stages"), integers(options.micro_batches, "--micro-batches")
    if options.check is not None:
        rows = _check(options, options.check)
        print(f"{'':22}{'measured ms':>12}{'simulated ms':>14}{'error':>8}")
        for row in rows:
            seconds = f"{row['measured'] * 1e3:>12.1f}{row['simulated'] * 1e3:>14.1f}"
            print(f"{row['method']:22}{seconds}{row['error']:>+8.1%}")
    else:
        for count in counts:
            if count < 1 or _BLOCKS % count:
                raise RunError(f"--stages must be numbers that divide {_BLOCKS}, got {count}")
        link = Link(options.bandwidth, options.latency)
        rows = speedup_table(lambda n: _equal_stages(options, n), counts, parts, link=link, overhead=options.overhead)
        columns = ["scpl", "bp", *(f"{kind} {m}" for kind in ("gpipe", "1f1b") for m in parts)]
        print(f"{'stages':>6}" + "".join(f"{name:>10}" for name in columns) + "   (milliseconds a step)")
        for row in rows:
            print(f"{row['stages']:>6}" + "".join(f"{row[name] * 1e3:>10.1f}" for name in columns))
    measure.write_numbers(options, {"rows": rows, "versions": versions()})
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
