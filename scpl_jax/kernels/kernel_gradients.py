"""Gradients of convolution kernels in other forms, for the CPU, where XLA's own are slow over large images.

Two are matrix products, for which pixels are copied, of a few images at a time, so that the copies stay in the cache;
the third is a convolution forward over three axes, for a library that is fast at that.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from scpl_jax.kernels import thresholds
from scpl_jax.kernels.winograd import Product, chunk_size, sum_over_parts

# Images, kernel, strides, padding and distances between the kernel's entries to a convolution, as in
# scpl_jax.kernels.onednn.
Convolution = Callable[[jax.Array, jax.Array, Any, Any, Any], jax.Array]


def _padded(images: jax.Array, padding: Any) -> jax.Array:
    """With zeros around, or, where the padding is negative, cut off."""
    configuration = ((0, 0, 0), *((before, after, 0) for before, after in padding), (0, 0, 0))
    return lax.pad(images, jnp.zeros((), images.dtype), configuration)


def _shifted(padded: jax.Array, stride: int, size: int, offset: int, axis: int) -> jax.Array:
    """As many pixels along an axis as the output has, those that one entry of the kernel meets."""
    return lax.slice_in_dim(padded, offset, offset + stride * (size - 1) + 1, stride, axis=axis)


def by_patches(
    images: jax.Array, cotangent: jax.Array, kernel_shape: Any, strides: Any, padding: Any, product: Product
) -> jax.Array:
    """One matrix product of image patches, a copy of each pixel for every entry of the kernel, and cotangents.

    Args:
      images: (B, H, W, C), floating.
      cotangent: (B, H', W', F), same dtype.
      kernel_shape: (kh, kw, C, F).
      strides: two, in pixels.
      padding: two pairs (before, after), in pixels.
      product: computes ``a.T @ b``, in float32 at least.

    Returns:
      (kh, kw, C, F), in the dtype of the images.
    """
    kh, kw, channels, features = kernel_shape
    batch, out_h, out_w, _ = cotangent.shape
    size = kh * kw * channels
    chunk = chunk_size(batch, 4 * out_h * out_w * size, thresholds.here().copied_bytes)

    def add(x: jax.Array, g: jax.Array) -> jax.Array:
        padded = _padded(x, padding)
        rows = [_shifted(padded, strides[0], out_h, i, axis=1) for i in range(kh)]
        patches = [_shifted(row, strides[1], out_w, j, axis=2) for row in rows for j in range(kw)]
        return product(jnp.concatenate(patches, axis=-1).reshape(-1, size), g.reshape(-1, features))

    total = sum_over_parts(add, (size, features), images.dtype, chunk, images, cotangent)
    return total.reshape(kernel_shape).astype(images.dtype)


def by_shifts(images: jax.Array, cotangent: jax.Array, kernel_shape: Any, padding: Any, product: Product) -> jax.Array:
    """One matrix product for the whole kernel, of images shifted by columns and cotangents shifted by rows; strides 1.

    Entry (i, j) of the kernel meets pixel (y + i, x + j) of the padded images where the output is (y, x): for all i and
    j at once, (image row r, shifted by j) times (cotangent row r - i).

    Arguments and result are those of :func:`by_patches`.
    """
    kh, kw, channels, features = kernel_shape
    batch, out_h, out_w, _ = cotangent.shape
    (above, below), (left, right) = padding
    rows = out_h + kh - 1
    chunk = chunk_size(batch, 4 * rows * out_w * (kw * channels + kh * features), thresholds.here().copied_bytes)

    def add(x: jax.Array, g: jax.Array) -> jax.Array:
        columns = [_padded(x, ((above, below), (left - j, right - (kw - 1 - j)))) for j in range(kw)]
        shifted = [_padded(g, ((i, kh - 1 - i), (0, 0))) for i in range(kh)]
        return product(
            jnp.concatenate(columns, axis=-1).reshape(-1, kw * channels),
            jnp.concatenate(shifted, axis=-1).reshape(-1, kh * features),
        )

    total = sum_over_parts(add, (kw * channels, kh * features), images.dtype, chunk, images, cotangent)
    return total.reshape(kw, channels, kh, features).transpose(2, 0, 1, 3).astype(images.dtype)


def by_convolution(
    images: jax.Array, cotangent: jax.Array, kernel_shape: Any, strides: Any, padding: Any, convolution: Convolution
) -> jax.Array:
    """A convolution of the images with the cotangents, whose result is as large as the kernel; little is copied.

    Entry (i, j, c) of the kernel meets column x C + j C + c of a row, its columns times its channels being one axis, as
    they are in memory. So with the images of the batch one behind the other as a third axis, it is a convolution from a
    single channel to F, of distances C between the columns of its kernel, times the strides.

    Arguments and result are those of :func:`by_patches`, but no padding is negative, and ``convolution`` computes
    convolutions over three axes, of any distance between the kernel's entries.
    """
    *sizes, channels, features = kernel_shape
    batch, *out, _ = cotangent.shape
    # Strides may leave rows and columns over that the kernel does not meet.
    met = [
        (n - 1) * stride + k - before for n, stride, k, (before, _) in zip(out, strides, sizes, padding, strict=True)
    ]
    images = images[:, : met[0], : met[1]]
    (above, below), (left, right) = (
        (before, rows - n) for (before, _), rows, n in zip(padding, met, images.shape[1:3], strict=True)
    )
    _, height, width, _ = images.shape
    chunk = chunk_size(batch, cotangent.nbytes // batch, thresholds.here().convolved_bytes)

    def add(x: jax.Array, g: jax.Array) -> jax.Array:
        flat = x.reshape(1, chunk, height, width * channels, 1)
        around = ((0, 0), (above, below), (left * channels, right * channels))
        apart = (1, strides[0], strides[1] * channels)
        return convolution(flat, g.reshape(chunk, *out, 1, features), (1, 1, 1), around, apart).reshape(kernel_shape)

    return sum_over_parts(add, tuple(kernel_shape), images.dtype, chunk, images, cotangent)
