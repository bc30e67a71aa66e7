"""Gradients of convolution kernels as matrix products, for the CPU, where XLA's own are slow over large images.

Both forms take a few images at a time, so that what is copied for a product stays in the cache.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from scpl_jax.models.winograd import Product, chunk_size, sum_over_parts

# Bytes of copies at a time; a quarter or four times as much is slower.
_COPY_BYTES = 8 << 20


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
    chunk = chunk_size(batch, 4 * out_h * out_w * size, _COPY_BYTES)

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

    Args:
      images: (B, H, W, C), floating.
      cotangent: (B, H', W', F), same dtype.
      kernel_shape: (kh, kw, C, F).
      padding: two pairs (before, after), in pixels.
      product: computes ``a.T @ b``, in float32 at least.

    Returns:
      (kh, kw, C, F), in the dtype of the images.
    """
    kh, kw, channels, features = kernel_shape
    batch, out_h, out_w, _ = cotangent.shape
    (above, below), (left, right) = padding
    rows = out_h + kh - 1
    chunk = chunk_size(batch, 4 * rows * out_w * (kw * channels + kh * features), _COPY_BYTES)

    def add(x: jax.Array, g: jax.Array) -> jax.Array:
        columns = [_padded(x, ((above, below), (left - j, right - (kw - 1 - j)))) for j in range(kw)]
        shifted = [_padded(g, ((i, kh - 1 - i), (0, 0))) for i in range(kh)]
        return product(
            jnp.concatenate(columns, axis=-1).reshape(-1, kw * channels),
            jnp.concatenate(shifted, axis=-1).reshape(-1, kh * features),
        )

    total = sum_over_parts(add, (kw * channels, kh * features), images.dtype, chunk, images, cotangent)
    return total.reshape(kw, channels, kh, features).transpose(2, 0, 1, 3).astype(images.dtype)
