"""Projection heads: what stands between a stage's features and its contrastive loss."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from scpl_jax.models.layers import LayerOptions, batch_norm, linear

# Default layer sizes per kind; the reference's names are i, l, m, mb and SimSiamMLP.
_DEFAULT_DIMS: dict[str, tuple[int, ...]] = {
    "identity": (),
    "linear": (1024,),
    "mlp": (512, 1024),
    "mlp-bn": (512, 1024),
    "simsiam": (512, 1024),
}
HEADS = tuple(_DEFAULT_DIMS)


class _Layer(nnx.Module):
    """Linear, batch norm where asked for, ReLU where asked for."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        relu: bool,
        norm: bool = False,
        affine: bool = True,
        **options: Unpack[LayerOptions],
    ):
        # Batch norm takes the mean out, so a bias before it would do nothing.
        self.linear = linear(in_features, out_features, use_bias=not norm, **options)
        of_norm: dict[str, Any] = {"rngs": options["rngs"], "dtype": options.get("dtype")}
        self.norm = nnx.List([batch_norm(out_features, affine=affine, **of_norm)] if norm else [])
        self.relu = relu

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.linear(x)
        for norm in self.norm:
            x = norm(x)
        return jax.nn.relu(x) if self.relu else x


def _averaging(size: int, side: int) -> jax.Array:
    """(side, size) matrix whose row i averages the pixels floor(i size / side) to ceil((i + 1) size / side) - 1."""
    starts = [i * size // side for i in range(side)]
    stops = [-(-(i + 1) * size // side) for i in range(side)]
    pixels = jnp.arange(size)
    rows = [((pixels >= a) & (pixels < b)) / (b - a) for a, b in zip(starts, stops, strict=True)]
    return jnp.stack(rows)


def pooled_size(side: int | tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Height and width after :func:`average_pool`."""
    out_h, out_w = (side, side) if isinstance(side, int) else side
    return min(out_h, height), min(out_w, width)


def average_pool(images: jax.Array, side: int | tuple[int, int]) -> jax.Array:
    """Average a feature map (B, H, W, C) down to (B, side, side, C), or to a side for each of height and width.

    A height or width that is small enough stays as it is.

    The windows are those of torch's adaptive average pooling, so H and W need not be multiples of ``side``.

    Example:
      >>> import jax.numpy as jnp
      >>> average_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
      Array([[ 2.5,  4.5],
             [10.5, 12.5]], dtype=float32)
    """
    _, height, width, _ = images.shape
    out_h, out_w = pooled_size(side, height, width)
    if height % out_h == 0 and width % out_w == 0:
        b, _, _, c = images.shape
        cells = images.reshape(b, out_h, height // out_h, out_w, width // out_w, c)
        return cells.mean(axis=(2, 4))
    rows, columns = _averaging(height, out_h), _averaging(width, out_w)
    pooled = jnp.einsum("bhwc,ih,jw->bijc", images, rows, columns, precision=jax.lax.Precision.HIGHEST)
    return pooled.astype(images.dtype)


class ProjectionHead(nnx.Module):
    """Features to the vectors that the contrastive loss compares: (B, ...) to (B, D).

    ================  =========================================================================================
    kind              layers behind pooling and flattening (h, ..., o = ``dims``)
    ================  =========================================================================================
    ``identity``      none
    ``linear``        linear(o)
    ``mlp``           linear(h), ReLU, ..., linear(o)
    ``mlp-bn``        linear(h) without bias, batch norm, ReLU, ..., linear(o)
    ``simsiam``       linear(h), batch norm, ReLU, twice; linear(o), batch norm without scale and shift; no biases
    ================  =========================================================================================

    Args:
      in_shape: shape of one example's features, (H, W, C) or any other.
      kind: one of :data:`HEADS`.
      dims: sizes of the layers; None: 512 and 1024 (``linear``: 1024). ``linear`` takes one, ``simsiam`` two, ``mlp``
        and ``mlp-bn`` two or more.
      pool: average a feature map down to pool x pool, or to (height, width), before the first layer; 0: not at all.
      **options: see :class:`scpl_jax.models.LayerOptions`.

    Raises:
      ValueError: an unknown kind, the wrong number of sizes, or one below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> head = ProjectionHead((8, 8, 16), "mlp", (32, 10), pool=2, rngs=nnx.Rngs(0))
      >>> head(jnp.ones((5, 8, 8, 16))).shape
      (5, 10)
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        kind: str = "mlp",
        dims: Sequence[int] | None = None,
        pool: int | tuple[int, int] = 0,
        **options: Unpack[LayerOptions],
    ):
        sizes = check_head(kind, dims, pool)
        self.pool = pool if len(in_shape) == 3 else 0
        if self.pool:
            height, width, channels = in_shape
            in_shape = (*pooled_size(pool, height, width), channels)
        if kind == "simsiam":
            sizes = (sizes[0], *sizes)
        norm = kind in ("mlp-bn", "simsiam")
        pairs = list(itertools.pairwise((math.prod(in_shape), *sizes)))
        layers = [_Layer(a, b, relu=True, norm=norm, **options) for a, b in pairs[:-1]]
        layers += [_Layer(a, b, relu=False, norm=kind == "simsiam", affine=False, **options) for a, b in pairs[-1:]]
        self.layers = nnx.List(layers)

    def pooled(self, features: jax.Array) -> jax.Array:
        """What the first layer gets: (B, ...) averaged where asked for, and flattened."""
        x = average_pool(features, self.pool) if self.pool else features
        return x.reshape(x.shape[0], -1)

    def __call__(self, features: jax.Array) -> jax.Array:
        """(B, ...) to (B, D); not normalised."""
        x = self.pooled(features)
        for layer in self.layers:
            x = layer(x)
        return x


def check_head(kind: str, dims: Sequence[int] | None, pool: int | tuple[int, int]) -> tuple[int, ...]:
    """The layer sizes of a head, after checking them.

    Raises:
      ValueError: as :class:`ProjectionHead`.
    """
    if kind not in _DEFAULT_DIMS:
        raise ValueError(f"unknown head {kind!r}; choose one of {', '.join(HEADS)}")
    if min(pool if isinstance(pool, tuple) else (pool,)) < 0:
        raise ValueError(f"head pool must be a side of at least 1, or 0 for none, got {pool}")
    if kind == "identity" or dims is None:
        return _DEFAULT_DIMS[kind]
    fits = len(dims) == 1 if kind == "linear" else len(dims) == 2 if kind == "simsiam" else len(dims) >= 2
    if not fits:
        expected = {"linear": "one layer size", "simsiam": "two layer sizes"}.get(kind, "two or more layer sizes")
        raise ValueError(f"head {kind!r} takes {expected}, got {','.join(map(str, dims)) or 'none'}")
    if min(dims) < 1:
        raise ValueError(f"a head's layer sizes must be at least 1, got {','.join(map(str, dims))}")
    return tuple(dims)
