"""Speed of convolutions by shape: ``python -m scpl_jax.benchmarks.convolutions --output FILE.json``.

Forward pass, gradient of the images and gradient of the kernel of 3 x 3 convolutions with strides 1 in every form that
there is: XLA's, oneDNN's (:mod:`scpl_jax.kernels.onednn`; for the kernel a convolution over three axes), Winograd's
(:mod:`scpl_jax.kernels.winograd`), for the kernel matrix products over copies
(:mod:`scpl_jax.kernels.kernel_gradients`), whose products and Winograd's may be oneDNN's, and, where it is installed,
PyTorch's. All are measured in turn in one process. Speeds count the operations of the direct form, whatever a form
saves, so that they compare times.
"""

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scpl_jax.benchmarks import measure
from scpl_jax.cli.command_line import parse_options, run
from scpl_jax.cli.environment import this_machine
from scpl_jax.cli.option_types import Count, Unset, integers
from scpl_jax.kernels import conv, kernel_gradients, onednn, thresholds, winograd
from scpl_jax.training.run_error import RunError

PASSES = ("forward", "image gradient", "kernel gradient")
_PADDING = ((1, 1), (1, 1))


@dataclasses.dataclass
class Options:
    """Compare the forms of 3 x 3 convolutions."""

    shapes: str = "32,128,256 16,256,256 16,256,512 8,512,512 4,512,512 32,64,64 16,128,128 8,256,256"
    """Side of the images in pixels, channels in, channels out; several, between spaces; first those of VGG8, then
    those of ResNet-18."""
    batch_size: Count = 64
    """Images a batch."""
    chunks: str = str(thresholds.here().winograd_bytes >> 20)
    """Mebibytes that Winograd's form works on at a time; several, between commas, are measured each."""
    torch: bool = True
    """Also measure PyTorch, if it is installed (pip install 'scpl-jax[torch]')."""
    repeats: Count = 7
    """Measurements of each, taken in turn."""
    output: Unset[Path] = None
    """Write the numbers as JSON."""

    def sizes(self) -> list[tuple[int, int, int]]:
        """(side, channels in, channels out) of each shape.

        Raises:
          RunError: one of them is not three positive numbers, the side even.
        """
        found = []
        for text in self.shapes.split():
            numbers = integers(text, "--shapes")
            if len(numbers) != 3 or min(numbers) < 1 or numbers[0] % 2:
                raise RunError(f"--shapes needs an even side, channels in and channels out, as 32,128,256; got {text}")
            found.append((numbers[0], numbers[1], numbers[2]))
        if not found:
            raise RunError("--shapes names no shape; give at least one, as 32,128,256")
        return found


def _forms(x: np.ndarray, w: np.ndarray, g: np.ndarray, chunks: Sequence[int]) -> dict[str, Callable[..., Any]]:
    """Each form of each pass, as a function of images, kernel and cotangent."""
    plain = functools.partial(conv.plain_convolution, strides=(1, 1), padding=_PADDING, precision=None)
    products: dict[str, winograd.Product] = {"": winograd.transposed_product}
    if onednn.available():
        products[" by oneDNN"] = functools.partial(onednn.matmul, transpose_a=True)
    forms: dict[str, Callable[..., Any]] = {
        "forward, XLA": lambda x, w, g: plain(x, w),
        "image gradient, XLA": lambda x, w, g: jax.vjp(lambda x: plain(x, w), x)[1](g)[0],
        "kernel gradient, XLA": lambda x, w, g: jax.vjp(lambda w: plain(x, w), w)[1](g)[0],
    }
    if onednn.available():
        forms["forward, oneDNN"] = lambda x, w, g: onednn.convolution(x, w, (1, 1), _PADDING)
        forms["image gradient, oneDNN"] = lambda x, w, g: onednn.convolution(
            g, w[::-1, ::-1].swapaxes(2, 3), (1, 1), _PADDING
        )
        forms["kernel gradient, oneDNN"] = lambda x, w, g: kernel_gradients.by_convolution(
            x, g, w.shape, (1, 1), _PADDING, onednn.convolution
        )
    for by, product in products.items():
        forms[f"kernel gradient, patches{by}"] = lambda x, w, g, product=product: kernel_gradients.by_patches(
            x, g, w.shape, (1, 1), _PADDING, product
        )
        forms[f"kernel gradient, shifts{by}"] = lambda x, w, g, product=product: kernel_gradients.by_shifts(
            x, g, w.shape, _PADDING, product
        )
    for chunk in chunks:
        name = "Winograd" if len(chunks) == 1 else f"Winograd {chunk} MiB"
        limit = chunk << 20
        forms[f"forward, {name}"] = lambda x, w, g, limit=limit: winograd.forward(x, w, None, limit)
        forms[f"image gradient, {name}"] = lambda x, w, g, limit=limit: winograd.image_gradient(g, w, None, limit)
        for by, product in products.items():
            forms[f"kernel gradient, {name}{by}"] = lambda x, w, g, limit=limit, product=product: (
                winograd.kernel_gradient(x, g, product, limit)
            )
    placed = jax.device_put((x, w, g))

    def ready(function: Callable[..., Any]) -> Callable[[], object]:
        program = jax.jit(function).lower(*placed).compile()
        return lambda: jax.block_until_ready(program(*placed))

    return {name: ready(function) for name, function in forms.items()}


def _torch_forms(x: np.ndarray, w: np.ndarray, g: np.ndarray) -> dict[str, Callable[..., Any]]:
    """PyTorch's three passes, on its own layout."""
    import torch
    from torch.nn.grad import conv2d_input, conv2d_weight

    images, cotangent = (torch.from_numpy(np.ascontiguousarray(a.transpose(0, 3, 1, 2))) for a in (x, g))
    kernel = torch.from_numpy(np.ascontiguousarray(w.transpose(3, 2, 0, 1)))
    return {
        "forward, PyTorch": lambda: torch.nn.functional.conv2d(images, kernel, padding=1),
        "image gradient, PyTorch": lambda: conv2d_input(images.shape, kernel, cotangent, padding=1),
        "kernel gradient, PyTorch": lambda: conv2d_weight(images, kernel.shape, cotangent, padding=1),
    }


def _row(size: tuple[int, int, int], options: Options, chunks: Sequence[int]) -> dict[str, Any]:
    side, channels, features = size
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    x, w = normal(options.batch_size, side, side, channels), normal(3, 3, channels, features)
    g = normal(options.batch_size, side, side, features)
    forms = _forms(x, w, g, chunks)
    if options.torch and importlib.util.find_spec("torch") is not None:
        forms |= _torch_forms(x, w, g)
    for form in forms.values():
        form()
    times = measure.alternate(forms, options.repeats)
    flops = 2.0 * 9 * options.batch_size * side**2 * channels * features
    return {
        "side": side,
        "channels": channels,
        "features": features,
        "flops": flops,
        "seconds": {name: measure.summary(seconds) for name, seconds in times.items()},
    }


def main(arguments: Sequence[str]) -> int:
    """Run the measurement; returns the exit status."""
    options = parse_options(Options, arguments, "scpl_jax.benchmarks.convolutions", Options())
    chunks = integers(options.chunks, "--chunks", least=1)
    table = []
    print("GFLOP/s of the direct form's operations, medians")
    for size in options.sizes():
        row = _row(size, options, chunks)
        table.append(row)
        side, channels, features = size
        print(f"{options.batch_size} images of {side} x {side}, {channels} to {features} channels")
        for each in PASSES:
            speeds = {
                name.removeprefix(f"{each}, "): row["flops"] / seconds["median"] / 1e9
                for name, seconds in row["seconds"].items()
                if name.startswith(each)
            }
            print(f"  {each:16}" + "".join(f"{name:>19} {speed:4.0f}" for name, speed in speeds.items()), flush=True)
    compared = ("torch",) if any("PyTorch" in name for name in table[0]["seconds"]) else ()
    measure.write_numbers(options, {"table": table, **this_machine(*compared)})
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
