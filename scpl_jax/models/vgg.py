"""VGG as a list of blocks: convolution, batch norm, ReLU, where due a 2 x 2 max pool."""

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import jax
from flax import nnx

from scpl_jax.models.layers import Classifier, LayerOptions, batch_norm, conv, scaled

VGG8_LAYERS: tuple[int | Literal["M"], ...] = (128, 256, "M", 256, 512, "M", 512, "M", 512, "M")


class VGGBlock(nnx.Module):
    """3 x 3 convolution without bias, batch norm, ReLU, and a 2 x 2 max pool if ``pool``: NHWC to NHWC."""

    def __init__(self, in_channels: int, out_channels: int, *, pool: bool, **options: Unpack[LayerOptions]):
        self.conv = conv(in_channels, out_channels, 3, **options)
        self.norm = batch_norm(out_channels, rngs=options["rngs"], dtype=options.get("dtype"))
        self.pool = pool

    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) to (B, H', W', F); H' = H // 2 with the pool, H without."""
        x = self.conv(images)
        # A ReLU keeps the order of values, so it may come behind the pool, where there are fewer of them.
        return jax.nn.relu(self.norm.and_max_pool(x) if self.pool else self.norm(x))


def vgg(
    layers: Sequence[int | Literal["M"]],
    num_classes: int = 10,
    *,
    hidden: int,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    **options: Unpack[LayerOptions],
) -> list[nnx.Module]:
    """A VGG network as a list of blocks; the last one is the classifier (flatten, linear, sigmoid, linear).

    Args:
      layers: channels of each 3 x 3 convolution; "M" puts a 2 x 2 max pool behind the convolution before it.
      num_classes: width of the logits.
      hidden: width of the classifier's hidden layer.
      image_shape: (height, width, channels) of the input, in pixels.
      **options: see :class:`scpl_jax.models.LayerOptions`.

    Raises:
      ValueError: the image is too small for the number of pools.

    Example:
      >>> from flax import nnx
      >>> blocks = vgg([4, 8, "M"], 10, hidden=16, image_shape=(8, 8, 3), rngs=nnx.Rngs(0))
      >>> len(blocks)
      3
    """
    height, width_px, channels = image_shape
    pools = sum(layer == "M" for layer in layers)
    if min(height, width_px) >> pools < 1:
        raise ValueError(
            f"the network halves an image {pools} times and needs at least {2**pools} x {2**pools} pixels, "
            f"got {height} x {width_px}; give larger images"
        )
    blocks: list[nnx.Module] = []
    for index, layer in enumerate(layers):
        if layer == "M":
            continue
        pool = index + 1 < len(layers) and layers[index + 1] == "M"
        blocks.append(VGGBlock(channels, layer, pool=pool, **options))
        channels = layer
    shape = (height >> pools, width_px >> pools, channels)
    blocks.append(Classifier(shape, num_classes, hidden=hidden, **options))
    return blocks


def vgg8(num_classes: int = 10, *, width: float = 1.0, **options: Any) -> list[nnx.Module]:
    """The VGG8 of the SCPL paper: six convolution blocks and the classifier.

    Channels 128, 256, pool, 256, 512, pool, 512, pool, 512, pool; classifier with 2500 hidden units; all x ``width``.

    Args:
      num_classes: width of the logits.
      width: multiplier of every number of channels and of the hidden units.
      **options: ``image_shape`` as for :func:`vgg`, and those of :class:`scpl_jax.models.LayerOptions`.

    Example:
      >>> from flax import nnx
      >>> len(vgg8(10, width=0.125, rngs=nnx.Rngs(0)))
      7
    """
    layers = [layer if layer == "M" else scaled(layer, width) for layer in VGG8_LAYERS]
    return vgg(layers, num_classes, hidden=scaled(2500, width), **options)
