"""PyTorch's side of the comparison on one device: the networks on their batch, steps, memory."""

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import torch
from torch import Tensor, nn

from scpl_jax.benchmarks import measure
from scpl_jax.benchmarks import torch_networks as networks
from scpl_jax.benchmarks.throughput_options import Options
from scpl_jax.training.run_error import RunError


def _torch_stages(options: Options, cut: Sequence[int], *, local: bool) -> list[networks.Stage]:
    """The network of the options, cut before these blocks, on the CPU; if ``local`` with the heads of local losses."""
    if (options.head, options.head_dims) not in (("mlp", None), ("mlp", "512,1024")):
        raise RunError("--single has PyTorch's side for --head mlp with its default sizes; add --no-torch")
    if options.is_text:
        blocks = networks.text_network(
            options.model,
            vocabulary=options.vocabulary,
            layers=options.layers,
            size=options.embedding_size,
            heads=options.heads,
            width=options.width,
            length=options.length,
            classes=options.classes,
        )
    elif options.model == "vgg8":
        blocks = networks.vgg8(options.width, options.image_size, options.classes)
    elif options.model == "resnet18":
        blocks = networks.resnet18(options.width, options.classes)
    else:
        raise RunError(f"--single has no --model {options.model} in PyTorch; add --no-torch")
    *body, classifier = blocks
    bounds = [0, *cut, len(body)]
    parts = [body[start:stop] for start, stop in itertools.pairwise(bounds)]
    pool = 0 if options.is_text else options.head_pool
    # One example tells the sizes.
    message: Any = _batch(options, 1)[0]
    stages = []
    with torch.no_grad():
        for index, part in enumerate(parts):
            message = nn.Sequential(*part).eval()(message)
            shape = networks.summary_of(message).shape[1:]
            side = min(pool, *shape[1:]) if pool else 0
            features = shape[0] * (side * side if side else math.prod(shape[1:]))
            last = classifier if index == len(parts) - 1 else None
            stages.append(networks.Stage(part, features if local else None, side if local else 0, last).train())
    return stages


def _batch(options: Options, size: int | None = None) -> tuple[Tensor, Tensor]:
    inputs, labels = (torch.from_numpy(array[:size]) for array in options.batch())
    return (inputs.long() if options.is_text else inputs.permute(0, 3, 1, 2).contiguous()), labels.long()


def _device() -> torch.device:
    """The device that JAX uses."""
    return torch.device("cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu")


def _set_precision(options: Options) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.precision != "float32"


def torch_product(options: Options, side: int) -> Callable[[], None]:
    """A function that multiplies two matrices of this side, in the precision asked for, and waits for the result."""
    _set_precision(options)
    device, dtype = _device(), torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    matrix = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def run() -> None:
        torch.mm(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def torch_steps(options: Options, cut: Sequence[int], name: str, steps: int) -> Callable[[], None]:
    """A function that takes some training steps and waits for them.

    Args:
      options: of the throughput experiment.
      cut: the blocks at which stages 1, 2, ... begin.
      name: "PyTorch scpl" or "PyTorch bp".
      steps: how many.

    Raises:
      RunError: a network or a head that is not written in PyTorch.
    """
    _set_precision(options)
    device, local = _device(), name.endswith("scpl")
    stages = [stage.to(device) for stage in _torch_stages(options, cut, local=local)]
    optimizers = [networks.adam(stage) for stage in stages]
    inputs, labels = _batch(options)
    step = networks.scpl_step if local else networks.bp_step

    def run() -> None:
        half = torch.autocast(device.type, torch.bfloat16) if options.precision == "bfloat16" else None
        for _ in range(steps):
            with half or contextlib.nullcontext():
                step(stages, optimizers, inputs.to(device), labels.to(device))
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def memory_of(options: Options, cut: Sequence[int], name: str) -> dict[str, int]:
    """Peak memory of one method in this process, and what was in use before it was built, in bytes."""
    before = measure.resident_bytes()
    run = torch_steps(options, cut, name, options.steps)
    with measure.ResidentMemory() as memory:
        run()
    if _device().type == "cuda":
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(), "memory_before_bytes": 0}
    return {"peak_memory_bytes": memory.peak, "memory_before_bytes": before}
