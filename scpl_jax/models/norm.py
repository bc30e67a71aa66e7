"""Batch norm with a derivative of its own, which keeps one array of the input's size instead of two.

Derived operation by operation, the centred input is kept beside the input and the cotangent passes through memory
several times. Derived as a whole, it takes two sums and one pass.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, ...]:
    r"""Normalise every channel over a batch (Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1).

    .. math::

        y = (x - \mu) \frac{\gamma}{\sqrt{v + \epsilon}} + \beta

    with the mean and the biased variance over all axes but the last. There is a reverse-mode derivative only; mean and
    variance are constants to it.

    Args:
      x: (..., C), floating.
      scale: gamma, (C,).
      bias: beta, (C,).
      epsilon: added to the variance.

    Returns:
      y, shape of x; mean and variance, (C,). All in float32 (or wider, as x).

    Example:
      >>> import jax.numpy as jnp
      >>> y, mean, variance = normalize(jnp.array([[1.0], [3.0]]), jnp.array([2.0]), jnp.array([5.0]), 0.0)
      >>> y.ravel().tolist(), mean.tolist(), variance.tolist()
      ([3.0, 7.0], [2.0], [1.0])
    """
    return _normalize_fwd(x, scale, bias, epsilon)[0]


def _normalize_fwd(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Any:
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axes)
    variance = jnp.square(wide - mean).mean(axes)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (wide - mean) * (inverse * scale) + bias
    return (y, mean, variance), (x, scale, bias, mean, inverse)


def _normalize_bwd(epsilon: float, saved: Any, cotangents: Any) -> Any:
    x, scale, bias, mean, inverse = saved
    dy, axes = cotangents[0], tuple(range(x.ndim - 1))
    centred = x.astype(dy.dtype) - mean
    of_bias = dy.sum(axes)
    of_scale = (dy * centred).sum(axes) * inverse
    count = x.size // x.shape[-1]
    of_x = (dy - (of_bias + centred * (inverse * of_scale)) / count) * (inverse * scale)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


normalize.defvjp(_normalize_fwd, _normalize_bwd)


class BatchNorm(nnx.BatchNorm):
    """Flax's batch norm over the last axis, in training by :func:`normalize`.

    The same values and running averages; its options ``axis``, ``axis_name`` and ``use_fast_variance`` don't count in
    training.
    """

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """(..., C) to the same shape."""
        running = self.use_running_average if use_running_average is None else use_running_average
        if running or mask is not None:
            given: jax.Array = super().__call__(x, use_running_average, mask=mask)
            return given
        channels = x.shape[-1:]
        scale = jnp.ones(channels, x.dtype) if self.scale is None else self.scale[...]
        bias = jnp.zeros(channels, x.dtype) if self.bias is None else self.bias[...]
        x, scale, bias = self.promote_dtype((x, scale, bias), dtype=self.dtype)
        y, mean, variance = normalize(x, scale, bias, self.epsilon)
        self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
        self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * variance
        return y.astype(x.dtype)
