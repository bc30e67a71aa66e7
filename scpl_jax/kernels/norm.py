"""Batch norm with a derivative of its own, which keeps one array of the input's size instead of two.

Derived operation by operation, the centred input is kept beside the input and the cotangent passes through memory
several times. Derived as a whole, it takes two sums and one pass.

Before a max pool most of what batch norm computes is thrown away. Its scale and shift keep or turn the order of values,
so the pool may come first: then only the winners are normalised, and the sums for the gradient run over them alone.

Running averages are corrected for their start, so that they are right from the first step.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from scpl_jax.kernels import thresholds
from scpl_jax.kernels.onednn import on_cpu
from scpl_jax.kernels.pooling import max_pool_2x2, windows, winners
from scpl_jax.kernels.winograd import chunk_size


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
      scale, bias, epsilon: as for :func:`normalize`.

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
    some = chunk_size(rows, x.nbytes // rows, thresholds.here().pooled_bytes)

    def body(index: Any, result: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(result, 2 * some * index, 2 * some, 1)
        gradient = to_x(part, lax.dynamic_slice_in_dim(dy, some * index, some, 1))
        return lax.dynamic_update_slice_in_dim(result, gradient, 2 * some * index, 1)

    result: jax.Array = to_x(x, dy) if some == rows else lax.fori_loop(0, rows // some, body, x)
    return result


normalize_and_pool.defvjp(_normalize_and_pool_fwd, _normalize_and_pool_bwd)


class BatchNorm(nnx.BatchNorm):
    r"""Flax's batch norm over the last axis, in training by :func:`normalize`, its running averages corrected.

    Flax's averages start at 0 and 1, and that start is a part of them for some ten to a hundred steps. Here it never
    counts: as with Adam's moments the weights of the batches so far sum to 1, so after t updates with momentum m

    .. math::

        \bar x_t = \frac{1 - m}{1 - m^t} \sum_{i=1}^t m^{t - i} x_i
                  = k_t \bar x_{t-1} + (1 - k_t) x_t, \quad k_t = m \frac{1 - m^{t-1}}{1 - m^t}

    What is kept is the corrected average itself: whoever reads ``mean`` and ``var`` needs no division, and evaluation
    is Flax's. Before the first update it takes mean 0 and variance 1. The options ``axis``, ``axis_name`` and
    ``use_fast_variance`` don't count in training.

    Args:
      num_features: C.
      bias_correction: correct the running averages for their start; without it they and the variables are Flax's.
      momentum: m, at least 0 and less than 1.
      options: of ``nnx.BatchNorm``.

    Attributes:
      updates: updates of the running averages, int32; None without the correction.

    Raises:
      ValueError: a momentum for which there is no correction.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> x = jnp.array([[1.0], [3.0]])
      >>> norm = BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
      >>> y = norm(x)
      >>> norm.mean[...].tolist(), norm.var[...].tolist(), norm.updates[...].item()
      ([2.0], [1.0], 1)
    """

    def __init__(self, num_features: int, *, bias_correction: bool = True, momentum: float = 0.99, **options: Any):
        super().__init__(num_features, momentum=momentum, **options)
        if bias_correction and not 0 <= momentum < 1:
            raise ValueError(
                f"momentum of batch norm must be at least 0 and less than 1, got {momentum}; running averages that "
                "never move need bias_correction=False"
            )
        self.updates: Any = nnx.BatchStat(jnp.zeros((), jnp.int32)) if bias_correction else nnx.data(None)

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """(..., C) to the same shape."""
        running = self.use_running_average if use_running_average is None else use_running_average
        if running:
            given: jax.Array = super().__call__(x, use_running_average, mask=mask)
            return given
        if mask is None:
            return self._train(normalize, x)
        flax = nnx.clone(self)
        flax.momentum = 0.0  # its "running average" is then the batch's own
        y: jax.Array = nnx.BatchNorm.__call__(flax, x, False, mask=mask)
        move_averages(self, flax.mean[...], flax.var[...])
        return y

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
        move_averages(self, mean, variance)
        return y.astype(x.dtype)


def move_averages(
    norm: nnx.BatchNorm, mean: jax.Array, variance: jax.Array, start: nnx.BatchNorm | None = None
) -> None:
    """Move the running averages of a batch norm, :class:`BatchNorm` or Flax's, by the statistics of one batch.

    Args:
      norm: the layer; its momentum counts.
      mean, variance: of the batch, (C,).
      start: the layer that the averages move from, if not from its own.
    """
    before: Any = norm if start is None else start
    keep: Any = norm.momentum
    if isinstance(norm, BatchNorm) and norm.updates is not None:
        norm.updates[...] = before.updates[...] + 1
        keep = _kept(norm.momentum, norm.updates[...])
    for average, old, new in ((norm.mean, before.mean, mean), (norm.var, before.var, variance)):
        average[...] = (keep * old[...] + (1 - keep) * new).astype(average.dtype)


def _kept(momentum: float, updates: jax.Array) -> jax.Array:
    """The part of the old average in the new one, m (1 - m^(t-1)) / (1 - m^t); exactly 0 at the first update."""
    log = math.log(max(momentum, 1e-30))  # momentum 0 has none
    return momentum * jnp.expm1((updates - 1) * log) / jnp.expm1(updates * log)
