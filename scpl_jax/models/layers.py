"""Layers that the networks share: initial distributions, convolution with batch norm, pooling, classifiers."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Required, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scpl_jax.kernels.conv import convolution_of
from scpl_jax.kernels.norm import BatchNorm
from scpl_jax.kernels.products import dot_general

# Numbers that a program draws, up to which it is made longer to serve more shapes: XLA takes some 0.2 s to compile one
# that draws, but milliseconds to draw the longest of these.
_LENGTHS = (2**12, 2**15, 2**18)
# JAX's setting by which a number depends on its place only.
_BY_PLACE = "jax_threefry_partitionable"


def uniform(
    key: jax.Array, shape: Sequence[int], low: float, high: float, dtype: Any = jnp.float32, *, factor: Any = 1
) -> jax.Array:
    """``jax.random.uniform(key, shape, dtype, low, high) * factor``, to the bit.

    Of JAX's default generator each number depends on its place alone, not on how many there are, so any shape's numbers
    are the first ones of a longer row, which is of one of few lengths. Where that does not hold, or values are only
    traced, JAX draws the shape itself.

    Args:
      key: of ``jax.random.key``.
      shape: of the result.
      low: least value before ``factor``.
      high: bound of the values before ``factor``.
      dtype: of the result, a floating type.
      factor: a number.

    Example:
      >>> key = jax.random.key(0)
      >>> bool((uniform(key, (3, 2), -1, 1) == jax.random.uniform(key, (3, 2), minval=-1, maxval=1)).all())
      True
    """
    by_place = getattr(jax.config, _BY_PLACE) and str(jax.random.key_impl(key)) == "threefry2x32"
    if isinstance(key, jax.core.Tracer) or not by_place or dtype != jnp.float32:
        return jax.random.uniform(key, shape, dtype, low, high) * jnp.asarray(factor, dtype)
    count = math.prod(shape)
    length = next((some for some in _LENGTHS if count <= some), 1 << (count - 1).bit_length())
    row = jax.random.uniform(key, (length,), dtype, low, high)
    values = np.asarray(row)[:count].reshape(shape)
    # Not jnp.asarray, which compiles a program for every shape.
    return jax.device_put(values if factor == 1 else values * np.float32(factor))


INITIALISERS = ("torch", "lecun", "he")


class LayerOptions(TypedDict, total=False):
    """How the layers of a network are made; every network takes these by keyword.

    Attributes:
      rngs: source of randomness; there is no default.
      init: initial distribution, one of ``scpl_jax.models.INITIALISERS``; by default "torch".
      dtype: dtype of the computation; parameters are float32. None, the default: float32, or wider as the input.
      library: what computes convolutions and matrix products on the CPU, one of ``scpl_jax.models.LIBRARIES``; by
        default "xla".
    """

    rngs: Required[nnx.Rngs]
    init: str
    dtype: Any
    library: str


def kernel_init(name: str) -> Callable[..., jax.Array]:
    """The distribution of a kernel: ``torch`` (uniform within 1 / sqrt(fan_in)), ``lecun`` or ``he`` (normal).

    Raises:
      ValueError: the name is not one of :data:`INITIALISERS`.
    """
    table = {"torch": _torch_uniform, "lecun": nnx.initializers.lecun_normal(), "he": nnx.initializers.he_normal()}
    if name not in table:
        raise ValueError(f"unknown initialisation {name!r}; choose one of {', '.join(INITIALISERS)}")
    distribution = table[name]

    def draw(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, *_: Any, **__: Any) -> jax.Array:
        # The same numbers, and fan_in, as for the shape itself; programs that draw in four axes take long to compile.
        drawn: jax.Array = distribution(key, (math.prod(shape[:-1]), shape[-1]), dtype)
        return drawn.reshape(shape)

    return draw


def _torch_uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """torch's kaiming_uniform_(a=sqrt(5)): bound sqrt(6 / ((1 + 5) fan_in)), that is a variance of 1 / (3 fan_in).

    To the bit Flax's ``variance_scaling(1 / 3, "fan_in", "uniform")``.
    """
    variance = np.float32(1 / 3 / shape[0])
    return uniform(key, shape, -1, 1, dtype, factor=np.sqrt(3 * variance))


def bias_init(name: str, fan_in: int) -> Callable[..., jax.Array]:
    """The distribution of a bias: ``torch`` uniform within 1 / sqrt(fan_in), zeros otherwise."""
    if name != "torch":
        return nnx.initializers.zeros_init()
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32, **_: uniform(key, shape, -bound, bound, dtype)


def linear(
    in_features: int,
    out_features: int,
    *,
    rngs: nnx.Rngs,
    init: str = "torch",
    use_bias: bool = True,
    dtype: Any = None,
    library: str = "xla",
) -> nnx.Linear:
    """A fully connected layer, parameters in float32, computing in ``dtype``.

    Raises:
      ValueError: no library of this name, or not here.

    Example:
      >>> from flax import nnx
      >>> linear(3, 5, rngs=nnx.Rngs(0)).kernel.shape
      (3, 5)
    """
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        kernel_init=kernel_init(init),
        bias_init=bias_init(init, in_features),
        dtype=dtype,
        dot_general=dot_general(library),
        rngs=rngs,
    )


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    rngs: nnx.Rngs,
    stride: int = 1,
    use_bias: bool = False,
    init: str = "torch",
    dtype: Any = None,
    library: str = "xla",
) -> nnx.Conv:
    """A square convolution over NHWC images, padded by kernel // 2 on every side as torch's ``padding`` does.

    (XLA's "SAME" pads differently where the stride is not 1.)

    Raises:
      ValueError: no library of this name, or not here.
    """
    pad = kernel // 2
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel, kernel),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        use_bias=use_bias,
        kernel_init=kernel_init(init),
        bias_init=bias_init(init, in_channels * kernel * kernel),
        dtype=dtype,
        conv_general_dilated=convolution_of(library),
        rngs=rngs,
    )


def batch_norm(features: int, *, rngs: nnx.Rngs, affine: bool = True, dtype: Any = None) -> BatchNorm:
    """Batch norm with torch's constants (momentum 0.9 here, eps 1e-5), corrected averages and an exact variance."""
    return BatchNorm(
        features,
        momentum=0.9,
        epsilon=1e-5,
        use_fast_variance=False,
        use_bias=affine,
        use_scale=affine,
        dtype=dtype,
        rngs=rngs,
    )


class Classifier(nnx.Module):
    """Flatten, or average pool, then one or two linear layers with an activation between: features to logits.

    Args:
      in_shape: (H, W, C) of the feature map.
      num_classes: width of the output.
      hidden: width of the hidden layer with sigmoid; None for a single linear layer.
      pool: average over the image before the first layer, instead of flattening it.
      **options: see :class:`LayerOptions`.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        num_classes: int,
        *,
        hidden: int | None = None,
        pool: bool = False,
        **options: Unpack[LayerOptions],
    ):
        self.pool = pool
        size = in_shape[-1] if pool else math.prod(in_shape)
        sizes = [size, num_classes] if hidden is None else [size, hidden, num_classes]
        self.layers = nnx.List([linear(a, b, **options) for a, b in itertools.pairwise(sizes)])

    def __call__(self, features: jax.Array) -> jax.Array:
        """(B, H, W, C) to (B, classes)."""
        x = features.mean(axis=(1, 2)) if self.pool else features.reshape(features.shape[0], -1)
        for layer in self.layers[:-1]:
            x = jax.nn.sigmoid(layer(x))
        return self.layers[-1](x)


def scaled(channels: int, width: float) -> int:
    """A number of channels times the width multiplier, at least 1.

    Raises:
      ValueError: the multiplier is not positive.
    """
    if not width > 0:
        raise ValueError(f"width must be greater than 0, got {width}")
    return max(1, round(channels * width))
