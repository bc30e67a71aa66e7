"""Convolutions with kernels of 3 x 3 by fewer products: minimal filtering, F(2 x 2, 3 x 3).

Four output pixels take 36 products of numbers directly and 16 in Winograd's form: an input tile ``d`` of 4 x 4 pixels
and the kernel ``g`` are transformed, multiplied value by value, summed over channels (a matrix product for each of the
16 places) and transformed back,

    Y = A [(G g G^T) * (B d B^T)] A^T

with the matrices below (Lavin and Gray 2015, arXiv 1509.09308, section 4.1). Their entries are 0, 1, -1 and 1/2, so the
transforms are sums and no accuracy is lost: the error in float32 is that of the direct form. The larger F(4 x 4, 3 x 3)
would take 9 products instead of 16 (for direct 36), but is less exact.

Images are (B, H, W, C) with even H and W, kernels (3, 3, C, F), strides 1, one pixel of zeros around.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from scpl_jax.kernels import thresholds
from scpl_jax.kernels.pooling import windows

_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # B
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # A
_PLACES = list(itertools.product(range(4), range(4)))

Places = list[list[jax.Array]]
Product = Callable[[jax.Array, jax.Array], jax.Array]


def transposed_product(a: jax.Array, b: jax.Array, precision: Any = None) -> jax.Array:
    """``a.T @ b`` by XLA: (K, M) and (K, N) to (M, N), in float32 at least.

    Example:
      >>> import jax.numpy as jnp
      >>> transposed_product(jnp.ones((5, 2)), jnp.ones((5, 1))).tolist()
      [[5.0], [5.0]]
    """
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.matmul(a.T, b, precision=precision, preferred_element_type=dtype)


def sum_over_parts(
    add: Callable[..., jax.Array], shape: tuple[int, ...], dtype: Any, chunk: int, *batches: jax.Array
) -> jax.Array:
    """The sum of ``add`` over parts of ``chunk`` images, of this shape, in float32 at least.

    Example:
      >>> import jax.numpy as jnp
      >>> sum_over_parts(lambda part: part.sum(0), (2,), jnp.float32, 2, jnp.ones((6, 2))).tolist()
      [6.0, 6.0]
    """
    if chunk == len(batches[0]):
        return add(*batches).astype(jnp.promote_types(dtype, jnp.float32))

    def body(index: Any, total: jax.Array) -> jax.Array:
        return total + add(*(_part_of(batch, index, chunk) for batch in batches))

    total: jax.Array
    total = lax.fori_loop(0, len(batches[0]) // chunk, body, jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32)))
    return total


def _part_of(batch: jax.Array, index: Any, chunk: int) -> jax.Array:
    """Part ``index`` of ``chunk`` images, cut out: for a second shape of an array XLA would compute it once more."""
    part: jax.Array = lax.dynamic_slice_in_dim(batch, index * chunk, chunk)
    return part


def chunk_size(batch: int, bytes_per_image: int, limit: int) -> int:
    """The largest divisor of the batch whose images together take no more than ``limit`` bytes; at least 1.

    Example:
      >>> chunk_size(12, 100, 500)
      4
    """
    most = max(1, min(batch, limit // bytes_per_image))
    return next(size for size in range(most, 0, -1) if batch % size == 0)


def _sum(row: np.ndarray, values: list[jax.Array]) -> jax.Array:
    total = None
    for factor, value in zip(row.tolist(), values, strict=True):
        if factor == 0:
            continue
        term = value if abs(factor) == 1 else abs(factor) * value
        if total is None:
            total = term if factor > 0 else -term
        else:
            total = total + term if factor > 0 else total - term
    assert total is not None
    return total


def _transform(matrix: np.ndarray, values: Places) -> Places:
    """``matrix @ values @ matrix.T`` where every value is an array; sums, of which a compiler makes one pass."""
    columns = [[_sum(row, list(column)) for row in matrix] for column in zip(*values, strict=True)]
    return [[_sum(row, list(line)) for row in matrix] for line in zip(*columns, strict=True)]


def _tiles(images: jax.Array) -> Places:
    """The pixel at each place of a 4 x 4 tile: 4 x 4 arrays (B, H / 2, W / 2, C) of overlapping tiles."""
    _, height, width, _ = images.shape
    pairs = windows(jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))))

    def place(i: int, j: int) -> jax.Array:
        return pairs[:, i // 2 : i // 2 + height // 2, i % 2, j // 2 : j // 2 + width // 2, j % 2]

    return [[place(i, j) for j in range(4)] for i in range(4)]


def _pixels(images: jax.Array) -> Places:
    """The pixel at each place of a 2 x 2 tile: 2 x 2 arrays (B, H / 2, W / 2, C)."""
    pairs = windows(images)
    return [[pairs[:, :, i, :, j] for j in range(2)] for i in range(2)]


def _images_at_a_time(shape: tuple[int, ...], features: int, chunk_bytes: int | None) -> int:
    batch, height, width, channels = shape
    each = 4 * 4 * height * width * (channels + features)  # 16 places for every 2 x 2 pixels, 4 bytes each
    return chunk_size(batch, each, thresholds.here().winograd_bytes if chunk_bytes is None else chunk_bytes)


def forward(images: jax.Array, kernel: jax.Array, precision: Any = None, chunk_bytes: int | None = None) -> jax.Array:
    """The convolution of images (B, H, W, C) with a kernel (3, 3, C, F): (B, H, W, F).

    Args:
      images, kernel: float32.
      precision: of the matrix products, as for :func:`jax.lax.dot_general`.
      chunk_bytes: memory for transformed images and products at a time. Default: that of
        :mod:`scpl_jax.kernels.thresholds`.

    Example:
      >>> import jax.numpy as jnp
      >>> forward(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1)))[0, :2, :2, 0].tolist()
      [[8.0, 12.0], [12.0, 18.0]]
    """
    return _convolve(images, kernel, precision, chunk_bytes, turned=False)


def image_gradient(
    cotangent: jax.Array, kernel: jax.Array, precision: Any = None, chunk_bytes: int | None = None
) -> jax.Array:
    """The gradient with respect to the images (B, H, W, C), of a cotangent (B, H, W, F) and a kernel (3, 3, C, F)."""
    return _convolve(cotangent, kernel, precision, chunk_bytes, turned=True)


def _convolve(images: jax.Array, kernel: jax.Array, precision: Any, chunk_bytes: int | None, turned: bool) -> jax.Array:
    """With the kernel, or ``turned`` with the kernel turned round and its channels transposed."""
    batch, height, width, _ = images.shape
    features = kernel.shape[2 if turned else 3]
    points = kernel[::-1, ::-1] if turned else kernel
    transformed = _transform(_KERNEL, [[points[i, j] for j in range(3)] for i in range(3)])

    def product(values: jax.Array, matrix: jax.Array) -> jax.Array:
        # The channels are transposed in the product: before it, all of the kernel would be copied.
        return jnp.matmul(values, matrix.T if turned else matrix, precision=precision)

    def some(part: jax.Array) -> jax.Array:
        values = _transform(_INPUT, _tiles(part))
        products: Places = [[product(values[i][j], transformed[i][j]) for j in range(4)] for i in range(4)]
        (a, b), (c, d) = _transform(_OUTPUT, products)
        rows = jnp.stack([jnp.stack([a, b], 3), jnp.stack([c, d], 3)], 2)  # (b, H / 2, 2, W / 2, 2, F)
        return rows.reshape(-1, height, width, features)

    chunk = _images_at_a_time(images.shape, features, chunk_bytes)
    if chunk == batch:
        return some(images)

    def body(index: Any, result: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(result, some(_part_of(images, index, chunk)), index * chunk, 0)

    # Every entry is written over. Zeros depend on nothing, so they would be there, and take memory, from the beginning
    # of the program on; a maximum is not computed again by what needs it, with all that it depends on.
    unwritten = jnp.broadcast_to(images[0, 0, 0].max(), (batch, height, width, features))
    result: jax.Array = lax.fori_loop(0, batch // chunk, body, unwritten)
    return result


def kernel_gradient(
    images: jax.Array, cotangent: jax.Array, product: Product = transposed_product, chunk_bytes: int | None = None
) -> jax.Array:
    """The gradient with respect to the kernel (3, 3, C, F), of images (B, H, W, C) and a cotangent (B, H, W, F).

    The transposes of the three transforms: ``G^T [(B d B^T) * (A^T Y A)] G``, summed over tiles.

    Args:
      images, cotangent: float32.
      product: computes ``a.T @ b``.
      chunk_bytes: as for :func:`forward`.
    """
    channels, features = images.shape[-1], cotangent.shape[-1]
    chunk = _images_at_a_time(images.shape, features, chunk_bytes)

    def add(x: jax.Array, g: jax.Array) -> jax.Array:
        values, cotangents = _transform(_INPUT, _tiles(x)), _transform(_OUTPUT.T, _pixels(g))
        products = [
            product(values[i][j].reshape(-1, channels), cotangents[i][j].reshape(-1, features)) for i, j in _PLACES
        ]
        return jnp.stack(products)

    total = sum_over_parts(add, (16, channels, features), images.dtype, chunk, images, cotangent)
    gradient = _transform(_KERNEL.T, [[total[4 * i + j] for j in range(4)] for i in range(4)])
    return jnp.stack([jnp.stack(row) for row in gradient])
