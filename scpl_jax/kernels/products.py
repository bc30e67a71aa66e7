"""Matrix products of layers and of attention, by XLA or on the CPU by oneDNN (:mod:`scpl_jax.kernels.onednn`).

The functions for oneDNN have derivatives of their own, whose products are oneDNN's too where these are faster. Those of
attention take queries, keys and values as the layers before them leave them, (N, L, heads, D): XLA would copy them into
another order first. All have reverse-mode derivatives only.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from scpl_jax.kernels import onednn, thresholds
from scpl_jax.kernels.winograd import transposed_product

# (N, L, heads, D) in memory is the array with the axes (N, heads, L, D).
_HEADS, _PLAIN = (0, 2, 1, 3), (0, 1, 2, 3)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    def by_onednn(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return onednn.matmul(_flat(x), kernel).reshape(*x.shape[:-1], kernel.shape[-1])

    return onednn.on_cpu(by_onednn, functools.partial(jnp.matmul, precision=precision), x, kernel)


def _dense_bwd(precision: Any, saved: Any, cotangent: jax.Array) -> Any:
    x, kernel = saved
    return _gradient_of_inputs(cotangent, kernel, precision), _gradient_of_kernel(x, cotangent, precision)


_dense.defvjp(lambda x, kernel, precision: (_dense(x, kernel, precision), (x, kernel)), _dense_bwd)


def _gradient_of_inputs(cotangent: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    """``cotangent @ kernel.T`` by oneDNN, of a cotangent (..., F) and a kernel (D, F): (..., D), all float32."""

    def by_onednn(g: jax.Array, w: jax.Array) -> jax.Array:
        return onednn.matmul(_flat(g), w, transpose_b=True).reshape(*g.shape[:-1], w.shape[0])

    return onednn.on_cpu(by_onednn, lambda g, w: jnp.matmul(g, w.T, precision=precision), cotangent, kernel)


def _gradient_of_kernel(x: jax.Array, cotangent: jax.Array, precision: Any) -> jax.Array:
    def by_xla(x: jax.Array, g: jax.Array) -> jax.Array:
        return transposed_product(_flat(x), _flat(g), precision)

    if cotangent.shape[-1] > thresholds.here().xla_outputs:
        return by_xla(x, cotangent)
    return onednn.on_cpu(lambda x, g: onednn.matmul(_flat(x), _flat(g), transpose_a=True), by_xla, x, cotangent)


def dense(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None, **options: Any) -> jax.Array:
    """Drop-in for :func:`jax.lax.dot_general` in ``nnx.Linear(dot_general=...)``: (..., D) and (D, F) to (..., F).

    Dtypes other than float32 and small products are XLA's.

    Example:
      >>> import jax.numpy as jnp
      >>> dense(jnp.ones((2, 3, 4)), jnp.ones((4, 5)), (((2,), (0,)), ((), ()))).shape
      (2, 3, 5)
    """
    enough = 2 * x.size * kernel.shape[-1] >= thresholds.here().onednn_product
    if enough and onednn.usable(x, kernel) and onednn.available():
        return _dense(x, kernel, precision)
    return lax.dot_general(x, kernel, dimension_numbers, precision=precision, **options)


def dot_general(library: str) -> Callable[..., jax.Array]:
    """What ``nnx.Linear`` takes as ``dot_general`` for the library of this name.

    Raises:
      ValueError: there is none of this name, or not here.
    """
    return dense if onednn.check_library(library) == "onednn" else lax.dot_general


def _by_heads(x: jax.Array) -> jax.Array:
    return x.transpose(0, 2, 1, 3)


@jax.custom_vjp
def _scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
    def by_onednn(q: jax.Array, k: jax.Array) -> jax.Array:
        return onednn.matmul(_by_heads(q), _by_heads(k), transpose_b=True, layouts=(_HEADS, _HEADS, _PLAIN))

    return onednn.on_cpu(by_onednn, functools.partial(jnp.einsum, "nqhd,nkhd->nhqk"), queries, keys)


def _mixed(weights: jax.Array, values: jax.Array, transpose: bool) -> jax.Array:
    """(N, heads, Q, K) and (N, K, heads, D) to (N, Q, heads, D); transposed, (N, Q, heads, D) to (N, K, heads, D)."""

    def by_onednn(w: jax.Array, v: jax.Array) -> jax.Array:
        mixed = onednn.matmul(w, _by_heads(v), transpose_a=transpose, layouts=(_PLAIN, _HEADS, _HEADS))
        return _by_heads(mixed)

    plain = "nhqk,nqhd->nkhd" if transpose else "nhqk,nkhd->nqhd"
    return onednn.on_cpu(by_onednn, functools.partial(jnp.einsum, plain), weights, values)


@jax.custom_vjp
def _mixture(weights: jax.Array, values: jax.Array) -> jax.Array:
    return _mixed(weights, values, transpose=False)


def _scores_bwd(saved: Any, cotangent: jax.Array) -> Any:
    queries, keys = saved
    return _mixed(cotangent, keys, transpose=False), _mixed(cotangent, queries, transpose=True)


def _mixture_bwd(saved: Any, cotangent: jax.Array) -> Any:
    weights, values = saved
    return _scores(cotangent, values), _mixed(weights, cotangent, transpose=True)


_scores.defvjp(lambda q, k: (_scores(q, k), (q, k)), _scores_bwd)
_mixture.defvjp(lambda w, v: (_mixture(w, v), (w, v)), _mixture_bwd)


def attention_scores(queries: jax.Array, keys: jax.Array, library: str = "xla") -> jax.Array:
    """Products of queries (N, Q, heads, D) and keys (N, K, heads, D) of each head: (N, heads, Q, K).

    Example:
      >>> import jax.numpy as jnp
      >>> attention_scores(jnp.ones((1, 3, 2, 5)), jnp.ones((1, 4, 2, 5))).shape
      (1, 2, 3, 4)
    """
    if library == "onednn" and onednn.usable(queries, keys):
        return _scores(queries, keys)
    return jnp.einsum("nqhd,nkhd->nhqk", queries, keys)


def attention_mixture(weights: jax.Array, values: jax.Array, library: str = "xla") -> jax.Array:
    """Values (N, K, heads, D) mixed by the weights (N, heads, Q, K) of each head: (N, Q, heads, D).

    Example:
      >>> import jax.numpy as jnp
      >>> attention_mixture(jnp.ones((1, 2, 3, 4)), jnp.ones((1, 4, 2, 5)))[0, 0, 0].tolist()
      [4.0, 4.0, 4.0, 4.0, 4.0]
    """
    if library == "onednn" and onednn.usable(weights, values):
        return _mixture(weights, values)
    return jnp.einsum("nhqk,nkhd->nqhd", weights, values)
