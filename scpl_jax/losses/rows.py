"""Lengths and directions of rows whose values and gradients are finite for every input."""

import jax
import jax.numpy as jnp

# A row whose largest entry is below this counts as the zero vector: it has no direction. The released PyTorch code
# divides such a row by the same number, which keeps the value finite but not the gradient useful.
_ZERO_ROW = 1e-12


def unit_rows(features: jax.Array) -> jax.Array:
    """Rows divided by their length; a zero row stays zero and gets a zero gradient.

    The row's largest entry is divided out first, as a constant: the result does not depend on it, and without it the
    square of a large entry overflows. Near the largest number a sixteenth of it serves as well: a compiler may divide
    by multiplying with the reciprocal, which would be rounded to zero.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(features), axis=1, keepdims=True))
    largest = jnp.minimum(largest, jnp.finfo(features.dtype).max / 16)
    nonzero = largest > _ZERO_ROW
    scaled = jnp.where(nonzero, features / jnp.where(nonzero, largest, 1), 0)
    length = jnp.sqrt(jnp.sum(jnp.where(nonzero, scaled**2, 1), axis=1, keepdims=True))
    return scaled / length


def safe_sqrt(x: jax.Array) -> jax.Array:
    """Square root whose gradient at 0 is 0 instead of infinite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> float(jax.grad(safe_sqrt)(jnp.float32(0))), round(float(safe_sqrt(jnp.float32(4))), 3)
      (0.0, 2.0)
    """
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0.0)


def magnitude(x: jax.Array) -> jax.Array:
    """A constant for each example by which its entries can be divided so that their squares do not overflow.

    The largest absolute entry of x (N, ...) over all axes but the first, at least 1; no gradient passes.
    """
    axes = tuple(range(1, x.ndim))
    return jax.lax.stop_gradient(jnp.maximum(jnp.max(jnp.abs(x), axis=axes, keepdims=True), 1))
