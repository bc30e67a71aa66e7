"""Batch norm with a derivative of its own, which keeps one array of the input's size instead of two.

Derived operation by operation, the centred input is kept beside the input and the cotangent passes through memory
several times. Derived as a whole, it takes two sums and one pass.

Before a max pool most of what batch norm computes is thrown away. Its scale and shift keep or turn the order of values,
so the pool may come first: then only the winners are normalised, and the sums for the gradient run over them alone.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from scpl_jax.models.onednn import on_cpu
from scpl_jax.models.pooling import max_pool_2x2, windows, winners
from scpl_jax.models.winograd import chunk_size

# Bytes of the gradient of pooled inputs that are computed at a time.
_CHUNK_BYTES = 16 << 20


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


def _statistics(x: jax.Array, epsilon: float) -> tuple[jax.Array, ...]:
    """x in float32 at least; mean, variance and 1 / its root of every channel."""
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axes)
    variance = jnp.square(wide - mean).mean(axes)
    return wide, mean, variance, jax.lax.rsqrt(variance + epsilon)


def _normalize_fwd(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Any:
    wide, mean, variance, inverse = _statistics(x, epsilon)
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize_and_pool(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, ...]:
    """:func:`normalize` and then a 2 x 2 max pool, in one.

    Args:
      x: (B, H, W, C), floating, H and W even.
      scale: as of :func:`normalize`.
      bias: likewise.
      epsilon: likewise.

    Returns:
      The pooled y, (B, H / 2, W / 2, C); mean and variance of x, (C,).

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 3.0], [3.0, 1.0]]).reshape(1, 2, 2, 1)
      >>> y, mean, variance = normalize_and_pool(x, jnp.array([2.0]), jnp.array([5.0]), 0.0)
      >>> y.item(), mean.item(), variance.item()
      (7.0, 2.0, 1.0)
    """
    return _normalize_and_pool_fwd(x, scale, bias, epsilon)[0]


def _normalize_and_pool_fwd(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Any:
    wide, mean, variance, inverse = _statistics(x, epsilon)
    # A negative scale turns the order round.
    values, _ = winners(wide, scale < 0)
    y = (values - mean) * (inverse * scale) + bias
    return (y, mean, variance), (x, values, scale, bias, mean, inverse)


def _normalize_and_pool_bwd(epsilon: float, saved: Any, cotangents: Any) -> Any:
    x, values, scale, bias, mean, inverse = saved
    dy, axes = cotangents[0], tuple(range(x.ndim - 1))
    of_bias = dy.sum(axes)
    of_scale = (dy * (values - mean)).sum(axes) * inverse
    count = x.size // x.shape[-1]

    def to_x(x: jax.Array, dy: jax.Array) -> jax.Array:
        # Of the four of a window only the winner has a cotangent.
        _, places = winners(x, scale < 0)
        entry = jnp.arange(4, dtype=places.dtype).reshape(2, 1, 2, 1)
        dy = jnp.where(places[:, :, None, :, None] == entry, dy[:, :, None, :, None], 0)
        of_x = (dy - (of_bias + (windows(x) - mean) * (inverse * of_scale)) / count) * (inverse * scale)
        return of_x.reshape(x.shape)

    of_x = on_cpu(functools.partial(_in_place, to_x), to_x, x.astype(dy.dtype), dy)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


def _in_place(to_x: Callable[..., jax.Array], x: jax.Array, dy: jax.Array) -> jax.Array:
    """``to_x`` of some rows at a time, which take the place of those of x; not of some images: devices share them."""
    rows = x.shape[1] // 2
    some = chunk_size(rows, x.nbytes // rows, _CHUNK_BYTES)

    def body(index: Any, result: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(result, 2 * some * index, 2 * some, 1)
        gradient = to_x(part, lax.dynamic_slice_in_dim(dy, some * index, some, 1))
        return lax.dynamic_update_slice_in_dim(result, gradient, 2 * some * index, 1)

    result: jax.Array = to_x(x, dy) if some == rows else lax.fori_loop(0, rows // some, body, x)
    return result


normalize_and_pool.defvjp(_normalize_and_pool_fwd, _normalize_and_pool_bwd)


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
        return self._train(normalize, x)

    def and_max_pool(self, x: jax.Array) -> jax.Array:
        """What a 2 x 2 max pool makes of the result: (B, H, W, C) to (B, H // 2, W // 2, C)."""
        if self.use_running_average or x.shape[1] % 2 or x.shape[2] % 2:
            return max_pool_2x2(self(x))
        return self._train(normalize_and_pool, x)

    def _train(self, normalize: Callable[..., tuple[jax.Array, ...]], x: jax.Array) -> jax.Array:
        channels = x.shape[-1:]
        scale = jnp.ones(channels, x.dtype) if self.scale is None else self.scale[...]
        bias = jnp.zeros(channels, x.dtype) if self.bias is None else self.bias[...]
        x, scale, bias = self.promote_dtype((x, scale, bias), dtype=self.dtype)
        y, mean, variance = normalize(x, scale, bias, self.epsilon)
        self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
        self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * variance
        return y.astype(x.dtype)
