"""Reconstruction of the network's input from a stage's features, the information term of InfoPro."""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from scpl_jax.losses.labels import is_kept
from scpl_jax.models.layers import LayerOptions, conv
from scpl_jax.objectives.auxiliary import Unit
from scpl_jax.objectives.base import Objective, Place, is_map, shapes_of
from scpl_jax.objectives.heads import average_pool


class ReconstructionLoss(nnx.Module):
    """A decoder of a feature map and its squared error."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int, weight: float, options: LayerOptions):
        self.first = Unit(conv(in_channels, hidden, 3, **options), hidden, options)
        self.second = conv(hidden, out_channels, 3, use_bias=True, **options)
        self.weight = weight

    def __call__(self, features: jax.Array, labels: jax.Array, images: jax.Array) -> jax.Array:
        """Features (N, H, W, C), labels (N,) and the network's input (N, H', W', C') to a scalar."""
        decoded = self.second(self.first(features)).astype(jnp.float32)
        _, height, width, _ = features.shape
        target = average_pool(images.astype(jnp.float32), (height, width))
        errors = jnp.square(decoded - target).mean(axis=(1, 2, 3))
        kept = is_kept(labels)
        # Not errors * kept: what is left out may be infinite.
        total = jnp.where(kept, errors, 0).sum()
        return self.weight * total / jnp.maximum(kept.sum(), 1)


@dataclasses.dataclass(frozen=True)
class Reconstruction(Objective):
    r"""The network's input from a stage's features, averaged to their size, as in InfoPro (arXiv 2101.10832).

    .. math::

        \frac{K - k}{K} \; \frac{1}{N H W C} \sum \left( d(h) - \bar x \right)^2

    in stage k of K, from 0, with a decoder d of a 3 x 3 convolution, batch norm, ReLU and a 3 x 3 convolution. It keeps
    in early stages what their other loss would throw away, and counts less from stage to stage. The paper's weights
    fall as well, linearly; its decoder works at the image's own size, with a binary cross-entropy. Mix it with a loss
    that knows the labels: ``Mixture(((1.0, LocalClassifier(10)), (1.0, Reconstruction())))``. It reads features
    themselves, never through an auxiliary network.

    Args:
      hidden: channels between the two convolutions, at least 1.
      weight, channels: of the stage, and of the network's input; :func:`scpl_jax.decouple` fills them in.
      init, dtype: see :class:`scpl_jax.models.LayerOptions`. The loss is at least float32.

    Raises:
      ValueError: a value out of range, at construction; features or input that are no feature map.

    Example:
      >>> features, images = jnp.ones((8, 4, 4, 6)), jnp.ones((8, 16, 16, 3))
      >>> loss = Reconstruction().at(Place(0, 4, (), images)).build(features, rngs=nnx.Rngs(0))
      >>> loss(features, jnp.arange(8), images).shape
      ()
    """

    hidden: int = 12
    weight: float = 1.0
    channels: int | None = None
    init: str = "torch"
    dtype: Any = None

    direct: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {self.hidden}")

    def at(self, place: Place) -> Self:
        """The term with the weight of a stage at this place."""
        if not is_map(place.input):
            what = f"got {shapes_of(place.input)}"
            raise ValueError(f"reconstruction needs images (N, H, W, C) as the network's input, {what}")
        weight = (place.num_stages - place.stage) / place.num_stages
        return dataclasses.replace(self, weight=weight, channels=place.input.shape[-1])

    def build(self, features: Any, *, rngs: nnx.Rngs, companion: Any = None) -> ReconstructionLoss:
        """The decoder for a feature map of this shape."""
        if not is_map(features) or self.channels is None:
            raise ValueError(f"reconstruction needs a feature map (N, H, W, C) and a place, got {shapes_of(features)}")
        options = LayerOptions(rngs=rngs, init=self.init, dtype=self.dtype)
        return ReconstructionLoss(features.shape[-1], self.channels, self.hidden, self.weight, options)

    def accompany(self, message: Any, labels: jax.Array) -> Any:
        """The network's input goes along."""
        return message

    def local_loss(self, module: Any, features: Any, labels: jax.Array, companion: Any) -> tuple[jax.Array, Any]:
        """The squared error; the input goes on."""
        return module(features, labels, companion), companion
