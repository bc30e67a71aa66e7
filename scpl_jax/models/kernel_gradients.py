"""Gradients of convolution kernels as matrix products, for the CPU, where XLA's own are slow over large images.

Both forms take a few images at a time, so that what is copied for a product stays in the cache.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from scpl_jax.models.winograd import Product, chunk_size

# Bytes of patches at a time, about half a second-level cache; half or twice as much changes little.
_PATCH_BYTES = 2 << 20
# Bytes of shifted copies at a time; a quarter or four times as much is slower.
_SHIFT_BYTES = 8 << 20


def _padded(images: jax.Array, padding: Any) -> jax.Array:
    """With zeros around, or, where the padding is negative, cut off."""
    configuration = ((0, 0, 0), *((before, after, 0) for before, after in padding), (0, 0, 0))
    return lax.pad(images, jnp.zeros((), images.dtype), configuration)


def _shifted_columns(padded: jax.Array, kernel_width: int, stride: int, out_width: int) -> jax.Array:
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


def _sum_over_parts(add: Any, shape: tuple[int, ...], dtype: Any, chunk: int, *batches: jax.Array) -> jax.Array:
    parts = tuple(batch.reshape(-1, chunk, *batch.shape[1:]) for batch in batches)
    total: jax.Array
    total, _ = lax.scan(lambda total, part: (total + add(*part), None), jnp.zeros(shape, dtype), parts)
    return total


def by_patches(
    images: jax.Array, cotangent: jax.Array, kernel_shape: Any, strides: Any, padding: Any, precision: Any
) -> jax.Array:
    """One matrix product for each of the kernel's rows: patches along image rows serve all of them.

    Whole two-dimensional patches would need one product only, but three times the copying, and are slower.

    Args:
      images: (B, H, W, C), floating.
      cotangent: (B, H', W', F), same dtype.
      kernel_shape: (kh, kw, C, F).
      strides: two, in pixels.
      padding: two pairs (before, after), in pixels.
      precision: of the products.

    Returns:
      (kh, kw, C, F), summed in float32 at least, in the dtype of the images.
    """
    kh, kw, channels, features = kernel_shape
    batch, out_h, out_w, _ = cotangent.shape
    chunk = chunk_size(batch, 4 * out_h * out_w * kw * channels, _PATCH_BYTES)
    dtype = jnp.promote_types(images.dtype, jnp.float32)

    def add(x: jax.Array, g: jax.Array) -> jax.Array:
        patches = _shifted_columns(_padded(x, padding), kw, strides[1], out_w)
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
        return jnp.concatenate(products)

    total = _sum_over_parts(add, (kh * kw * channels, features), dtype, chunk, images, cotangent)
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
    rows = out_h + kh - 1
    chunk = chunk_size(batch, 4 * rows * out_w * (kw * channels + kh * features), _SHIFT_BYTES)

    def add(x: jax.Array, g: jax.Array) -> jax.Array:
        columns = _shifted_columns(_padded(x, padding), kw, 1, out_w)
        around = jnp.pad(g, ((0, 0), (kh - 1, kh - 1), (0, 0), (0, 0)))
        shifted = jnp.concatenate([around[:, kh - 1 - i : kh - 1 - i + rows] for i in range(kh)], axis=-1)
        return product(columns.reshape(-1, kw * channels), shifted.reshape(-1, kh * features))

    dtype = jnp.promote_types(images.dtype, jnp.float32)
    total = _sum_over_parts(add, (kw * channels, kh * features), dtype, chunk, images, cotangent)
    return total.reshape(kw, channels, kh, features).transpose(2, 0, 1, 3).astype(images.dtype)
