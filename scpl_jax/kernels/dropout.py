"""Dropout whose random numbers cost little: on the CPU they may take longer than the layer before them."""

import math

import jax
import jax.extend
import jax.numpy as jnp
from flax import nnx

# Different random numbers; two are made of one word.
_STEPS = 1 << 16


def _words(key: jax.Array, count: int) -> jax.Array:
    """(count,), uint32, random."""
    if jax.random.key_impl(key) != "threefry2x32":
        return jax.random.bits(key, (count,), jnp.uint32)
    # jax.random.bits computes two words for each that it gives, so that parts of an array can be made alone.
    counts = jnp.arange(count + count % 2, dtype=jnp.uint32)
    return jax.extend.random.threefry_2x32(jax.random.key_data(key), counts)[:count]


def dropout(key: jax.Array, rate: float, x: jax.Array) -> jax.Array:
    """Set a share of the values to 0 and scale the others up, so that the mean stays.

    The random numbers have 16 bits: the share is the multiple of 1 / 65536 next to ``rate``, at least one of them, and
    the scale is that of the share itself.

    Args:
      key: a typed key.
      rate: the share, between 0 and 1, both not included.
      x: any shape, floating.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> y = dropout(jax.random.key(0), 0.2, jnp.ones((1000, 10)))
      >>> sorted({round(float(value), 3) for value in y.ravel()}), round(float(y.mean()), 1)
      ([0.0, 1.25], 1.0)
    """
    size = math.prod(x.shape)
    dropped = min(max(round(rate * _STEPS), 1), _STEPS - 1)
    halves = jax.lax.bitcast_convert_type(_words(key, -(-size // 2)), jnp.uint16)
    keep = halves.reshape(-1)[:size].reshape(x.shape) >= dropped
    return jnp.where(keep, x * jnp.asarray(_STEPS / (_STEPS - dropped), x.dtype), 0)


class Dropout(nnx.Module):
    """Sets a share of the values to 0 in training and scales the others up; without random state where the share is 0.

    Raises:
      ValueError: a share outside [0, 1).
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        if not 0 <= rate < 1:
            raise ValueError(f"dropout must be in [0, 1), got {rate}")
        # Flax's layer keeps the share, the random state and whether this is training.
        self.layers = nnx.List([nnx.Dropout(rate, rngs=rngs)] if rate else [])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Any array to one of the same shape."""
        for layer in self.layers:
            if not layer.deterministic:
                x = dropout(layer.rngs(), layer.rate, x)
        return x
