"""The plain eight-layer CNN of the reference: no batch norm, no pooling, two strided convolutions."""

from typing import Unpack

import jax
from flax import nnx

from scpl_jax.models.layers import Classifier, LayerOptions, conv, scaled

# (channels, stride) of the eight 3 x 3 convolutions
_LAYERS = ((32, 1), (32, 1), (32, 1), (32, 2), (64, 1), (64, 1), (64, 1), (64, 2))


class ConvReLU(nnx.Module):
    """3 x 3 convolution with bias, ReLU: NHWC to NHWC."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, **options: Unpack[LayerOptions]):
        self.conv = conv(in_channels, out_channels, 3, stride=stride, use_bias=True, **options)

    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), F)."""
        return jax.nn.relu(self.conv(images))


def cnn(
    num_classes: int = 10,
    *,
    width: float = 1.0,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    **options: Unpack[LayerOptions],
) -> list[nnx.Module]:
    """Eight convolutions (32 x 4, 64 x 4 channels times ``width``) and a classifier with 1500 x ``width`` hidden units.

    Args:
      num_classes: width of the logits.
      width: multiplier of every number of channels and of the hidden units.
      image_shape: (height, width, channels) of the input, in pixels; any size from 1 x 1 up.
      **options: see :class:`scpl_jax.models.LayerOptions`.

    Example:
      >>> from flax import nnx
      >>> len(cnn(10, width=0.25, rngs=nnx.Rngs(0)))
      9
    """
    height, width_px, channels = image_shape
    blocks: list[nnx.Module] = []
    for layer, stride in _LAYERS:
        out = scaled(layer, width)
        blocks.append(ConvReLU(channels, out, stride, **options))
        channels = out
        height, width_px = -(-height // stride), -(-width_px // stride)
    blocks.append(Classifier((height, width_px, channels), num_classes, hidden=scaled(1500, width), **options))
    return blocks
