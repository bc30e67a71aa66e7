"""A convolution that is fast on the CPU.

Kernels of 3 x 3 over many channels take fewer products in Winograd's form (:mod:`scpl_jax.models.winograd`), in all
three passes. Of the others XLA's CPU backend computes the weight gradient over large images at a tenth of the speed of
its forward pass; as matrix products over image patches it is several times faster, provided that the patches are taken
a few images at a time so that they stay in the cache.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from scpl_jax.models import winograd

_NHWC = ("NHWC", "HWIO", "NHWC")
# Bytes of patches at a time, about half a second-level cache; half or twice as much changes little.
_PATCH_BYTES = 2 << 20
# Below this many output pixels an image XLA's own kernel gradient is as fast.
_MIN_PIXELS = 256
# Of Winograd's form: with fewer channels, or fewer channels times pixels, the transforms cost more than they save.
_MIN_CHANNELS = 32
_MIN_WORK = 1 << 14


def plain_convolution(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, precision: Any) -> jax.Array:
    """XLA's own convolution, in the layout that all networks here have."""
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=_NHWC, precision=precision)


def _row_patches(padded: jax.Array, kernel_width: int, stride: int, out_width: int) -> jax.Array:
    """Patches along one image row: (B, H, W, C) -> (B, H, W', kw * C)."""
    batch, height, _, channels = padded.shape
    windows = [
        lax.slice(
            padded,
            (0, 0, j, 0),
            (batch, height, j + stride * (out_width - 1) + 1, channels),
            (1, 1, stride, 1),
        )
        for j in range(kernel_width)
    ]
    return jnp.concatenate(windows, axis=-1)


def kernel_gradient_by_patches(
    images: jax.Array, cotangent: jax.Array, kernel_shape: Any, strides: Any, padding: Any, precision: Any
) -> jax.Array:
    """The gradient of a kernel by one matrix product for each of its rows: patches along image rows serve all of them.

    Whole two-dimensional patches would need one product only, but three times the copying, and are slower.
    """
    kh, kw, channels, features = kernel_shape
    batch, out_h, out_w, _ = cotangent.shape
    chunk = winograd.chunk_size(batch, 4 * out_h * out_w * kw * channels, _PATCH_BYTES)
    dtype = jnp.promote_types(images.dtype, jnp.float32)

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, g = part
        patches = _row_patches(jnp.pad(x, ((0, 0), *padding, (0, 0))), kw, strides[1], out_w)
        rows = [lax.slice_in_dim(patches, i, i + strides[0] * (out_h - 1) + 1, strides[0], axis=1) for i in range(kh)]
        products = [
            jnp.matmul(
                row.reshape(-1, kw * channels).T,
                g.reshape(-1, features),
                precision=precision,
                preferred_element_type=dtype,
            )
            for row in rows
        ]
        return total + jnp.concatenate(products), None

    parts = (
        images.reshape(-1, chunk, *images.shape[1:]),
        cotangent.reshape(-1, chunk, *cotangent.shape[1:]),
    )
    total, _ = lax.scan(add, jnp.zeros((kh * kw * channels, features), dtype), parts)
    return total.reshape(kernel_shape).astype(images.dtype)


def _fewer_products(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> bool:
    """Whether Winograd's form can be used and, by measurement, is faster."""
    (_, height, width, channels), (*size, _, features) = images.shape, kernel.shape
    fits = size == [3, 3] and strides == (1, 1) and padding == ((1, 1), (1, 1)) and height % 2 == width % 2 == 0
    fewest = min(channels, features)
    worth = fewest >= _MIN_CHANNELS and fewest * height * width >= _MIN_WORK
    return fits and worth and images.dtype == jnp.float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, precision: Any) -> jax.Array:
    plain = functools.partial(plain_convolution, strides=strides, padding=padding, precision=precision)
    if not _fewer_products(images, kernel, strides, padding):
        return plain(images, kernel)
    cpu = functools.partial(winograd.forward, precision=precision)
    return lax.platform_dependent(images, kernel, cpu=cpu, default=plain)


def _conv_fwd(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, precision: Any) -> Any:
    return _conv(images, kernel, strides, padding, precision), (images, kernel)


def _conv_bwd(strides: Any, padding: Any, precision: Any, saved: Any, cotangent: jax.Array) -> Any:
    images, kernel = saved
    plain = functools.partial(plain_convolution, strides=strides, padding=padding, precision=precision)

    def xla_images(g: jax.Array, w: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: plain(x, w), images)[1](g)[0]

    def xla_kernel(x: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda w: plain(x, w), kernel)[1](g)[0]

    def patches(x: jax.Array, g: jax.Array) -> jax.Array:
        return kernel_gradient_by_patches(x, g, kernel.shape, strides, padding, precision)

    if not _fewer_products(images, kernel, strides, padding):
        to_kernel = lax.platform_dependent(images, cotangent, cpu=patches, default=xla_kernel)
        return xla_images(cotangent, kernel), to_kernel
    for_images = functools.partial(winograd.image_gradient, precision=precision)
    for_kernel = functools.partial(winograd.kernel_gradient, precision=precision)
    return (
        lax.platform_dependent(cotangent, kernel, cpu=for_images, default=xla_images),
        lax.platform_dependent(images, cotangent, cpu=for_kernel, default=xla_kernel),
    )


_conv.defvjp(_conv_fwd, _conv_bwd)


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """Drop-in for :func:`jax.lax.conv_general_dilated` in ``nnx.Conv(conv_general_dilated=...)``.

    Values and gradients are those of the original up to rounding. On the CPU two-dimensional convolutions over large
    images, not grouped and not dilated, have forms of their own: those of 3 x 3 over many channels in float32
    Winograd's in all three passes, others a faster weight gradient. Everything else, and other platforms, are XLA's.
    Forward-mode differentiation (``jax.jvp``) is not supported, as with every ``jax.custom_vjp``.

    Args:
      lhs: images, shape (B, H, W, C), floating.
      rhs: kernel, shape (kh, kw, C, F), same dtype.
      window_strides: two strides, in pixels.
      padding: "SAME", "VALID" or two pairs (before, after), in pixels.
      **options: as of :func:`jax.lax.conv_general_dilated`.

    Returns:
      Shape (B, H', W', F).

    Example:
      >>> import jax.numpy as jnp
      >>> conv_general_dilated(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4)), (1, 1), "SAME",
      ...                      dimension_numbers=("NHWC", "HWIO", "NHWC")).shape
      (1, 8, 8, 4)
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.get("dimension_numbers"))
    plain_options = {"precision", "dimension_numbers"}
    simple = (
        lhs.ndim == 4
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
        and all(d == 1 for d in (*options.get("lhs_dilation", ()), *options.get("rhs_dilation", ())))
        and options.get("feature_group_count", 1) == 1
        and not any(
            v for k, v in options.items() if k not in plain_options and not k.endswith(("dilation", "group_count"))
        )
    )
    if simple:
        strides = tuple(window_strides)
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
        padding = tuple((int(lo), int(hi)) for lo, hi in padding)
        pixels = math.prod(
            (size + lo + hi - k) // s + 1
            for size, (lo, hi), k, s in zip(lhs.shape[1:3], padding, rhs.shape[:2], strides, strict=True)
        )
        if pixels >= _MIN_PIXELS or _fewer_products(lhs, rhs, strides, padding):
            return _conv(lhs, rhs, strides, padding, options.get("precision"))
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
