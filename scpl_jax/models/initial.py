"""Initial values by few programs: the same numbers as JAX draws, whatever the shape."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
