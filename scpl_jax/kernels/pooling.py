"""2 x 2 max pooling, element by element.

The maximum of four strided views: its gradient is element-wise, where that of a window reduction is a scatter, which is
several times slower on a CPU. Of equal values the first in a window gets the gradient, as in PyTorch.
"""

from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_jvp
def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.maximum(a, b)


@_larger.defjvp
def _larger_jvp(values: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> Any:
    # JAX's own derivative asks which of the two equals the result. Where the compiler computes an operand again for
    # that, rounded differently (a product and a sum in one step), it can be neither. Which is larger has an answer.
    (a, b), (of_a, of_b) = values, tangents
    return _larger(a, b), jnp.where(a >= b, of_a, of_b)


def max_pool_2x2(images: jax.Array) -> jax.Array:
    """2 x 2 max pooling with stride 2 over (B, H, W, C); an odd last row or column is dropped, as in PyTorch.

    Example:
      >>> import jax.numpy as jnp
      >>> max_pool_2x2(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
      Array([[ 5.,  7.],
             [13., 15.]], dtype=float32)
    """
    h, w = images.shape[1] // 2 * 2, images.shape[2] // 2 * 2
    x = images[:, :h, :w]
    upper = _larger(x[:, ::2, ::2], x[:, ::2, 1::2])
    lower = _larger(x[:, 1::2, ::2], x[:, 1::2, 1::2])
    return _larger(upper, lower)


def windows(images: jax.Array) -> jax.Array:
    """Even images (B, H, W, C) as (B, H / 2, 2, W / 2, 2, C): axes 2 and 4 run over the pixels of a window."""
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // 2, 2, width // 2, 2, channels)


def winners(images: jax.Array, smallest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest value of each 2 x 2 window, or the smallest, and where it is.

    Args:
      images: (B, H, W, C), floating, H and W even.
      smallest: channels whose smallest value is asked for, (C,), bool.

    Returns:
      (values (B, H / 2, W / 2, C); places, the same shape, uint8: 0 to 3, row by row, the first of equal values).

    Example:
      >>> import jax.numpy as jnp
      >>> values, places = winners(jnp.array([1.0, 3.0, 3.0, 2.0]).reshape(1, 2, 2, 1), jnp.array([False]))
      >>> values.item(), places.item()
      (3.0, 1)
    """
    views = windows(images)
    entries = [(views[:, :, i, :, j], jnp.uint8(2 * i + j)) for i in range(2) for j in range(2)]

    def better(one: Any, other: Any) -> Any:
        (a, at_a), (b, at_b) = one, other
        first = jnp.where(smallest, a <= b, a >= b)
        return jnp.where(first, a, b), jnp.where(first, at_a, at_b)

    values, places = better(better(*entries[:2]), better(*entries[2:]))
    return values, places
