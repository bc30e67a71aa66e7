"""ResNets with CIFAR stem as lists of blocks: the stem, one block per residual unit, the classifier."""

from typing import Any, Literal, Unpack

import jax
from flax import nnx

from scpl_jax.models.layers import Classifier, LayerOptions, batch_norm, conv, scaled

Shortcut = Literal["1x1", "3x3"]


def _activation(x: jax.Array) -> jax.Array:
    # The reference's ResNets use a leaky ReLU throughout, slope 0.01.
    return jax.nn.leaky_relu(x, 0.01)


class Stem(nnx.Module):
    """3 x 3 convolution, batch norm, leaky ReLU: the CIFAR stem, which keeps the image size."""

    def __init__(self, in_channels: int, out_channels: int, **options: Unpack[LayerOptions]):
        self.conv = conv(in_channels, out_channels, 3, **options)
        self.norm = batch_norm(out_channels, rngs=options["rngs"], dtype=options.get("dtype"))

    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) to (B, H, W, F)."""
        return _activation(self.norm(self.conv(images)))


class Residual(nnx.Module):
    """A residual unit: convolutions with batch norm, plus the shortcut, then a leaky ReLU.

    Args:
      in_channels: channels of the input.
      width: channels of the inner convolutions.
      kernels: kernel sizes of the convolutions in order, (3, 3) for a basic unit, (1, 3, 1) for a bottleneck; the
        stride belongs to the last but one of a bottleneck and to the first of a basic unit, as in torchvision.
      stride: 1 or 2.
      expansion: output channels / width; 1 for a basic unit, 4 for a bottleneck.
      shortcut: kernel of the convolution on the shortcut where shape or channels change: "1x1" or "3x3".
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        kernels: tuple[int, ...],
        stride: int,
        expansion: int,
        shortcut: Shortcut,
        **options: Unpack[LayerOptions],
    ):
        out_channels = width * expansion
        strided = len(kernels) - 2
        of_norm: dict[str, Any] = {"rngs": options["rngs"], "dtype": options.get("dtype")}
        convs, norms, channels = [], [], in_channels
        for index, kernel in enumerate(kernels):
            out = out_channels if index == len(kernels) - 1 else width
            step = stride if index == strided else 1
            convs.append(conv(channels, out, kernel, stride=step, **options))
            norms.append(batch_norm(out, **of_norm))
            channels = out
        self.convs, self.norms = nnx.List(convs), nnx.List(norms)
        changes = stride != 1 or in_channels != out_channels
        own: list[nnx.Module] = []
        if changes:
            size = 1 if shortcut == "1x1" else 3
            own = [conv(in_channels, out_channels, size, stride=stride, **options), batch_norm(out_channels, **of_norm)]
        self.shortcut = nnx.List(own)

    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), width * expansion)."""
        x = images
        for index, (convolution, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(convolution(x))
            if index < len(self.convs) - 1:
                x = _activation(x)
        shortcut = images
        for layer in self.shortcut:
            shortcut = layer(shortcut)
        return _activation(x + shortcut)


def resnet(
    repeats: tuple[int, int, int, int],
    num_classes: int = 10,
    *,
    bottleneck: bool,
    width: float = 1.0,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    shortcut: Shortcut = "1x1",
    **options: Unpack[LayerOptions],
) -> list[nnx.Module]:
    """A ResNet with CIFAR stem (3 x 3 convolution, no pool), as a list: stem, residual units, classifier.

    Args:
      repeats: residual units in each of the four groups (64, 128, 256, 512 channels times ``width``).
      num_classes: width of the logits.
      bottleneck: units of 1 x 1, 3 x 3, 1 x 1 convolutions with expansion 4, instead of two 3 x 3.
      width: multiplier of every number of channels.
      image_shape: (height, width, channels) of the input, in pixels; any size from 1 x 1 up.
      shortcut: "1x1", or "3x3" as one of the two ResNet-18 classes of the SCPL reference has it.
      **options: see :class:`scpl_jax.models.LayerOptions`.

    Raises:
      ValueError: ``shortcut`` is neither "1x1" nor "3x3".

    Example:
      >>> from flax import nnx
      >>> len(resnet((1, 1, 1, 1), bottleneck=False, width=0.1, rngs=nnx.Rngs(0)))
      6
    """
    if shortcut not in ("1x1", "3x3"):
        raise ValueError(f"unknown shortcut {shortcut!r}; choose 1x1 or 3x3")
    height, width_px, in_channels = image_shape
    channels = scaled(64, width)
    blocks: list[nnx.Module] = [Stem(in_channels, channels, **options)]
    expansion, kernels = (4, (1, 3, 1)) if bottleneck else (1, (3, 3))
    for group, count in enumerate(repeats):
        inner = scaled(64 * 2**group, width)
        for unit in range(count):
            stride = 2 if group > 0 and unit == 0 else 1
            form: dict[str, Any] = {"kernels": kernels, "expansion": expansion, "shortcut": shortcut}
            blocks.append(Residual(channels, inner, stride=stride, **form, **options))
            channels = inner * expansion
            height, width_px = -(-height // stride), -(-width_px // stride)
    blocks.append(Classifier((height, width_px, channels), num_classes, pool=True, **options))
    return blocks


def resnet18(num_classes: int = 10, **options: Any) -> list[nnx.Module]:
    """ResNet-18: stem, 8 basic units, classifier; options as for :func:`resnet`."""
    return resnet((2, 2, 2, 2), num_classes, bottleneck=False, **options)


def resnet34(num_classes: int = 10, **options: Any) -> list[nnx.Module]:
    """ResNet-34: stem, 16 basic units, classifier; options as for :func:`resnet`."""
    return resnet((3, 4, 6, 3), num_classes, bottleneck=False, **options)


def resnet50(num_classes: int = 10, **options: Any) -> list[nnx.Module]:
    """ResNet-50: stem, 16 bottlenecks, classifier; options as for :func:`resnet`."""
    return resnet((3, 4, 6, 3), num_classes, bottleneck=True, **options)


def resnet101(num_classes: int = 10, **options: Any) -> list[nnx.Module]:
    """ResNet-101: stem, 33 bottlenecks, classifier; options as for :func:`resnet`."""
    return resnet((3, 4, 23, 3), num_classes, bottleneck=True, **options)


def resnet152(num_classes: int = 10, **options: Any) -> list[nnx.Module]:
    """ResNet-152: stem, 50 bottlenecks, classifier; options as for :func:`resnet`."""
    return resnet((3, 8, 36, 3), num_classes, bottleneck=True, **options)
