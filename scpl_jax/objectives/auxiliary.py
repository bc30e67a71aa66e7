"""Auxiliary networks: layers between a stage's features and its local loss, trained with the stage, never handed on.

A stage learns features for whatever reads them. Behind an auxiliary network they may be features for a deep reader, as
the rest of the network is one; a linear classifier asks for features that it can separate itself.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
from flax import nnx

from scpl_jax.models.layers import LayerOptions, batch_norm, conv, linear, scaled
from scpl_jax.objectives.base import Place, is_map, one_array, shapes_of, summary_of
from scpl_jax.objectives.heads import average_pool


class Unit(nnx.Module):
    """A convolution or a linear layer, batch norm, ReLU."""

    def __init__(self, layer: nnx.Module, width: int, options: LayerOptions):
        self.layer = layer
        self.norm = batch_norm(width, rngs=options["rngs"], dtype=options.get("dtype"))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, ..., C) to (N, ..., D)."""
        y: jax.Array = jax.nn.relu(self.norm(self.layer(x)))
        return y


def flat(x: jax.Array) -> jax.Array:
    """(N, ...) to (N, D)."""
    return x.reshape(x.shape[0], -1)


def averaged(features: Any) -> Any:
    """A feature map (N, H, W, C) to (N, C); anything else as it is."""
    return features.mean(axis=(1, 2)) if is_map(features) else features


def traced(module: nnx.Module, features: Any) -> Any:
    """Shapes and dtypes of what a module makes of features.

    Args:
      module: of one argument.
      features: a pytree of arrays or ``jax.ShapeDtypeStruct``.

    Example:
      >>> import jax.numpy as jnp
      >>> traced(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), jax.ShapeDtypeStruct((2, 3), jnp.float32)).shape
      (2, 5)
    """
    graphdef, state = nnx.split(module)
    return jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, features)


@dataclasses.dataclass(frozen=True)
class AuxiliaryNetwork:
    """What the auxiliary networks of the library have in common: a description without arrays, called to build one.

    Args:
      side: to which a feature map is averaged first; 0: not at all; None: the network's own choice.
      depth: number of its convolutions or blocks; None: its own choice.
      width: multiplier of its numbers of channels.
      layers: options of its layers, ``init``, ``dtype`` and ``library``, see :class:`scpl_jax.models.LayerOptions`.

    Raises:
      ValueError: a value out of range, at construction.
    """

    side: int | None = None
    depth: int | None = None
    width: float = 1.0
    layers: Mapping[str, Any] = dataclasses.field(default_factory=lambda: MappingProxyType({}), hash=False)

    def __post_init__(self) -> None:
        if (self.side or 0) < 0 or (self.depth is not None and self.depth < 1):
            raise ValueError(f"side must be at least 0 and depth at least 1, got {self.side} and {self.depth}")
        if not (self.width > 0 and math.isfinite(self.width)):
            raise ValueError(f"width must be a number greater than 0, got {self.width}")

    def at(self, place: Place) -> "AuxiliaryNetwork":
        """This network as that of a stage at a place; it is the same everywhere unless it says otherwise."""
        return self

    def _options(self, rngs: nnx.Rngs) -> LayerOptions:
        options: Any = {"rngs": rngs, **self.layers}
        made: LayerOptions = options
        return made


@dataclasses.dataclass(frozen=True)
class Dgl(AuxiliaryNetwork):
    """The cheap one of decoupled greedy learning (Belilovsky et al. 2019, arXiv 1901.08164).

    A feature map is averaged to ``side`` (a quarter of its own), passes ``depth`` (3) units of a 1 x 1 convolution,
    batch norm and ReLU, is averaged to 2 x 2, and passes three units of a linear layer of 4 C, batch norm and ReLU.
    Features that are no feature map pass the linear units only.

    Example:
      >>> import jax.numpy as jnp
      >>> features = jax.ShapeDtypeStruct((2, 16, 16, 8), jnp.float32)
      >>> Dgl()(features, None, rngs=nnx.Rngs(0))(jnp.ones((2, 16, 16, 8))).shape
      (2, 32)
    """

    def __call__(self, features: Any, targets: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for features of this shape: (N, H, W, C) or (N, C) to (N, 4 C)."""
        options = self._options(rngs)
        features = one_array(summary_of(features), "the auxiliary network dgl")
        channels = scaled(features.shape[-1], self.width)
        steps: list[Any] = [summary_of]
        size = features.shape[-1]
        if is_map(features):
            side = -(-min(features.shape[1:3]) // 4) if self.side is None else self.side
            steps += [functools.partial(average_pool, side=side)] if side else []
            for _ in range(self.depth or 3):
                steps.append(Unit(conv(size, channels, 1, **options), channels, options))
                size = channels
            steps.append(functools.partial(average_pool, side=2))
        steps.append(flat)
        inner = traced(nnx.Sequential(*steps), features).shape[-1]
        for _ in range(3):
            steps.append(Unit(linear(inner, 4 * channels, use_bias=False, **options), 4 * channels, options))
            inner = 4 * channels
        return nnx.Sequential(*steps)


@dataclasses.dataclass(frozen=True)
class Conv(AuxiliaryNetwork):
    """The one of InfoPro (Wang et al. 2021, arXiv 2101.10832).

    A feature map is averaged to ``side`` (by default not at all), passes ``depth`` (1) units of a 3 x 3 convolution of
    stride 2 to twice the channels, batch norm and ReLU, is averaged over the image, and passes a linear layer of 128
    and ReLU.

    Example:
      >>> import jax.numpy as jnp
      >>> features = jax.ShapeDtypeStruct((2, 16, 16, 8), jnp.float32)
      >>> Conv()(features, None, rngs=nnx.Rngs(0))(jnp.ones((2, 16, 16, 8))).shape
      (2, 128)
    """

    def __call__(self, features: Any, targets: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for features of this shape: (N, H, W, C) to (N, 128).

        Raises:
          ValueError: they are no feature map.
        """
        if not is_map(features):
            raise ValueError(
                f"the auxiliary network conv needs a feature map (N, H, W, C), got {shapes_of(features)}; "
                "use blocks or dgl"
            )
        options = self._options(rngs)
        steps: list[Any] = [functools.partial(average_pool, side=self.side)] if self.side else []
        size = features.shape[-1]
        for _ in range(self.depth or 1):
            channels = scaled(2 * size, self.width)
            steps.append(Unit(conv(size, channels, 3, stride=2, **options), channels, options))
            size = channels
        return nnx.Sequential(*steps, averaged, linear(size, 128, **options), jax.nn.relu)


@dataclasses.dataclass(frozen=True)
class Blocks(AuxiliaryNetwork):
    """Blocks of the architecture, not the values, of the network's own later ones, as in AugLocal (arXiv 2402.17318).

    A feature map is averaged to ``side`` (8). Then come ``depth`` (2) blocks like those behind the stage, evenly
    sampled, the last one included, with ``width`` times their channels or hidden units, and the average over the
    image. Depth falls linearly from stage to stage, rounded up, to 1 in the last one; a stage gets no more blocks than
    there are behind it, so the last one has none.

    Args:
      factory: ``(features, *, rngs)`` to one block, for a network whose blocks have no ``architecture`` as those of
        :mod:`scpl_jax.models` do: ``(features, *, width, rngs)`` to another such block, where features are shapes and
        dtypes of what it is given. With it ``width`` must be 1.
      place: of the stage; :func:`scpl_jax.decouple` fills it in.

    Example:
      >>> import jax.numpy as jnp
      >>> from scpl_jax.models.vgg import VGGBlock
      >>> later = (VGGBlock(8, 16, pool=True, rngs=nnx.Rngs(0)).architecture,) * 3
      >>> blocks = Blocks().at(Place(0, 4, later))
      >>> features = jax.ShapeDtypeStruct((2, 32, 32, 8), jnp.float32)
      >>> blocks(features, None, rngs=nnx.Rngs(0))(jnp.ones((2, 32, 32, 8))).shape
      (2, 16)
    """

    factory: Callable[..., nnx.Module] | None = None
    place: Place | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factory is not None and self.width != 1:
            raise ValueError(f"a factory makes blocks of its own width, got width {self.width}; leave width out")

    def at(self, place: Place) -> "Blocks":
        """The blocks for a stage at this place."""
        return dataclasses.replace(self, place=place)

    def __call__(self, features: Any, targets: Any, *, rngs: nnx.Rngs) -> nnx.Module | None:
        """The blocks for features of this shape; None where the network has none behind the stage.

        Raises:
          ValueError: a block has no ``architecture``, or the place is not known.
        """
        chosen = self._chosen()
        side = 8 if self.side is None else self.side
        steps: list[Any] = [functools.partial(average_pool, side=side)] if side and is_map(features) else []
        features = jax.eval_shape(steps[0], features) if steps else features
        for make in chosen:
            block = make(features, rngs=rngs)
            features = traced(block, features)
            steps.append(block)
        return nnx.Sequential(*steps, averaged) if chosen else None

    def _chosen(self) -> Sequence[Callable[..., nnx.Module]]:
        if self.place is None:
            raise ValueError(
                "blocks depend on the place of their stage; pass them to decouple, or call at(place) first"
            )
        later, most = self.place.later, self.depth or 2
        way = 1 - self.place.stage / max(self.place.num_stages - 1, 1)
        depth = min(math.ceil(1 + (most - 1) * way), len(later))
        if self.factory is not None:
            return [self.factory] * depth
        chosen = [later[(i + 1) * len(later) // depth - 1] for i in range(depth)]
        if any(one is None for one in chosen):
            raise ValueError(
                "auxiliary blocks need to know how the network's blocks are made, and they have no attribute "
                "architecture; give Blocks(factory=...) or use dgl or conv"
            )
        return [functools.partial(one, width=self.width) for one in chosen if one is not None]


AUXILIARIES: Mapping[str, type[AuxiliaryNetwork]] = MappingProxyType({"dgl": Dgl, "conv": Conv, "blocks": Blocks})


def named_auxiliary(name: str, **options: Any) -> AuxiliaryNetwork:
    """The auxiliary network of a name.

    Args:
      name: dgl, conv or blocks.
      **options: as for :class:`AuxiliaryNetwork`.

    Raises:
      ValueError: there is no such name, or a value is out of range.

    Example:
      >>> named_auxiliary("conv", width=0.5).width
      0.5
    """
    if name not in AUXILIARIES:
        raise ValueError(
            f"unknown auxiliary network {name!r}; choose one of {', '.join(AUXILIARIES)}, or pass a builder"
        )
    return AUXILIARIES[name](**options)
