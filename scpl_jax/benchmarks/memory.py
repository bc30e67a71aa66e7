"""Memory by depth: ``python -m scpl_jax.benchmarks.memory --output FILE.json --figure FILE.svg``.

Networks of 4 to 32 equal blocks are trained on one device: by SCPL with one stage a block, and by backpropagation. Each
is measured in a process of its own: peak memory of the device, or without such a figure the process's resident memory
while training less that before the first step; and the compiler's account of what a step needs beside parameters,
optimizer state and messages.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from scpl_jax.analysis.figures import attempt, new_figure, save_figure
from scpl_jax.benchmarks import measure
from scpl_jax.cli.command_line import parse_options, run
from scpl_jax.cli.environment import device_peak_bytes, versions
from scpl_jax.cli.option_types import Count, Unset, integers
from scpl_jax.models.layers import Classifier
from scpl_jax.models.vgg import VGGBlock
from scpl_jax.objectives import CrossEntropy, SupCon
from scpl_jax.pipeline import Pipeline
from scpl_jax.stages import decouple


@dataclasses.dataclass
class Options:
    """Compare the memory of SCPL and backpropagation on one device as the network gets deeper."""

    depths: str = "4,8,16,32"
    """Numbers of blocks, and of stages."""
    channels: Count = 16
    """Channels of each block."""
    batch_size: Count = 64
    """Images a batch."""
    image_size: Count = 32
    """Side of the images, in pixels; no block makes them smaller."""
    steps: Count = 4
    """Training steps while memory is measured."""
    output: Unset[Path] = None
    """Write the numbers as JSON."""
    figure: Unset[Path] = None
    """Draw them as SVG or PNG."""
    only: Unset[str] = None
    """Measure one method and depth, as scpl:8 (used by the experiment itself)."""


def blocks(depth: int, options: Options) -> list[nnx.Module]:
    """Equal convolution blocks (the first one takes three channels) and a classifier."""
    rngs, channels = nnx.Rngs(0), options.channels
    made: list[nnx.Module] = [VGGBlock(3, channels, pool=False, rngs=rngs)]
    made += [VGGBlock(channels, channels, pool=False, rngs=rngs) for _ in range(depth - 1)]
    shape = (options.image_size, options.image_size, channels)
    return [*made, Classifier(shape, 10, pool=True, rngs=rngs)]


def _measure(options: Options, method: str, depth: int) -> dict[str, int]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.batch_size, options.image_size, options.image_size, 3)).astype(np.float32)
    labels = rng.integers(0, 10, options.batch_size).astype(np.int32)
    objective = SupCon(head_pool=2, head_dims=(64, 32)) if method == "scpl" else CrossEntropy()
    stages = decouple(blocks(depth, options), depth, objective, images, nnx.Rngs(1), cut="even")
    pipeline = Pipeline(stages, optax.adam(1e-3), jax.devices()[:1])
    pipeline.compile(images, labels)
    before = measure.resident_bytes()
    # One batch at a time: how many messages are in flight is a choice, not a property of the method.
    peak = measure.peak_bytes(pipeline, images, labels, options.steps, max_in_flight=1)
    return {
        "peak_bytes": peak if device_peak_bytes() else peak - before,
        "temporary_bytes": max(pipeline.temporary_bytes(images, labels)),
        "parameters": sum(stage.num_parameters for stage in stages),
    }


def _draw(table: list[dict[str, Any]], path: Path) -> None:
    figure, (axis,) = new_figure(figsize=(6, 3.5))
    for method, colour in (("scpl", "#4477aa"), ("bp", "#ee6677")):
        rows = [row for row in table if row["method"] == method]
        depths = [row["depth"] for row in rows]
        axis.plot(depths, [row["peak_bytes"] / 2**20 for row in rows], "o-", color=colour, label=f"{method}, measured")
        account = [row["temporary_bytes"] / 2**20 for row in rows]
        axis.plot(depths, account, "s--", color=colour, alpha=0.6, label=f"{method}, compiler's account")
    axis.set_xlabel("blocks, and stages")
    axis.set_ylabel("MiB while training")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    save_figure(figure, path)


def main(arguments: Sequence[str]) -> int:
    """Run the measurement; returns the exit status."""
    options = parse_options(Options, arguments, "scpl_jax.benchmarks.memory", Options())
    depths = integers(options.depths, "--depths", least=1)
    if options.only is not None:
        which, _, number = options.only.partition(":")
        print(json.dumps(_measure(options, which, int(number))))
        return 0
    table = []
    print(f"{'':6}{'blocks':>8}{'measured MiB':>14}{'compiler MiB':>14}")
    for depth in depths:
        for method in ("scpl", "bp"):
            only = [*arguments, "--only", f"{method}:{depth}"]
            found = measure.in_own_process("memory", only, f"{method} with {depth} blocks")
            row = {"method": method, "depth": depth, **found}
            table.append(row)
            print(f"{method:6}{depth:>8}{row['peak_bytes'] / 2**20:>14.1f}{row['temporary_bytes'] / 2**20:>14.1f}")
    measure.write_numbers(options, {"table": table, "cores": os.cpu_count(), "versions": versions()})
    if options.figure is not None and not attempt(f"--figure {options.figure}", _draw, table, options.figure):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
