"""Convolutions and matrix products by the copy of oneDNN that is inside jaxlib for Linux on x86-64.

XLA's CPU backend has calls of its own for oneDNN's primitives, which its compiler puts into a program only where it is
built to; a program may contain them all the same. They are faster than what XLA generates, for products of many small
matrices with permuted axes and for convolutions over few channels by several times. What they cost: XLA can't serialise
a program with such a call, so no compilation cache can keep it: it is compiled in every process, and JAX, if it is to
keep programs, warns unless they are those of a :class:`scpl_jax.Pipeline`.

The calls have no derivative, and XLA does not split them over devices. What is differentiable and chooses between the
two is in :mod:`scpl_jax.kernels.conv` and :mod:`scpl_jax.kernels.products`.
"""

import functools
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
from jax import lax

_LOG = logging.getLogger(__name__)
# Who computes convolutions and matrix products on the CPU; on other platforms it is always XLA.
LIBRARIES = ("xla", "onednn")
_CALL = "__onednn$"
_CONVOLUTION, _PRODUCT = f"{_CALL}convolution", f"{_CALL}matmul"
# What the calls are configured by is no public interface, and a wrong configuration ends the process: only releases of
# the kind that was tested, from the first to before the second.
_JAXLIB = ((0, 10, 2), (0, 11, 0))
# Values of ONEDNN_MAX_CPU_ISA.
_WITHOUT_AVX512 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")


def on_cpu(cpu: Callable[..., jax.Array], default: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """``cpu`` of the arrays in a program for the CPU, ``default`` of them in one for other platforms."""
    if cpu is default:
        return default(*arrays)
    chosen: jax.Array = lax.platform_dependent(*arrays, cpu=cpu, default=default)
    return chosen


@functools.cache
def is_tested_jaxlib() -> bool:
    """Whether what is no public interface of jaxlib, and differs from release to release, was tested with this one.

    If it was not, a line of warning says so, once.

    Example:
      >>> is_tested_jaxlib() in (True, False)
      True
    """
    oldest, newest = _JAXLIB
    tested = oldest <= jaxlib.version.__version_info__[:3] < newest
    if not tested:
        _LOG.warning(
            "jaxlib %s was not tested: programs for CPUs are compiled in XLA's usual way, and without oneDNN",
            jaxlib.version.__version__,
        )
    return tested


@functools.cache
def available() -> bool:
    """Whether this machine's jaxlib has oneDNN, in a form known here.

    Example:
      >>> available() in (True, False)
      True
    """
    return sys.platform == "linux" and platform.machine() == "x86_64" and is_tested_jaxlib()


@functools.cache
def has_avx512() -> bool:
    """Whether oneDNN has AVX-512 here, with which some of its primitives gain more than others.

    The processor must have it, and ``ONEDNN_MAX_CPU_ISA`` of the environment must not hide it.

    Example:
      >>> has_avx512() in (True, False)
      True
    """
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_AVX512:
        return False
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def is_called_in(text: str) -> bool:
    """Whether a program, by its text, calls oneDNN, so that XLA can't serialise it.

    Example:
      >>> is_called_in(jax.jit(jnp.sin).lower(1.0).as_text())
      False
    """
    return _CALL in text


def requirement() -> str:
    """What oneDNN needs and what is here instead, as the beginning of a sentence."""
    oldest, newest = (".".join(map(str, version)) for version in _JAXLIB)
    return (
        f"the library onednn needs Linux on x86-64 with jaxlib from {oldest} to before {newest}, here are "
        f"{sys.platform}, {platform.machine()} and jaxlib {jaxlib.version.__version__}"
    )


def check_library(library: str) -> str:
    """The name, if it is one of :data:`LIBRARIES` and can be had here.

    Raises:
      ValueError: it is not.

    Example:
      >>> check_library("xla")
      'xla'
    """
    if library not in LIBRARIES:
        raise ValueError(f"unknown library {library!r}; choose {' or '.join(LIBRARIES)}")
    if library == "onednn" and not available():
        raise ValueError(f"{requirement()}; choose xla")
    return library


def usable(*arrays: jax.Array) -> bool:
    """Whether the calls are for arrays of these dtypes: float32 only, which oneDNN has on every processor."""
    return all(array.dtype == jnp.float32 for array in arrays)


def _call(target: str, config: dict[str, Any], shape: Sequence[int], *operands: Any, **layouts: Any) -> jax.Array:
    result = jax.ShapeDtypeStruct(tuple(shape), operands[0].dtype)
    call = jax.ffi.ffi_call(
        target,
        result,
        custom_call_api_version=2,
        legacy_backend_config=json.dumps(config),
        vmap_method="sequential",
        **layouts,
    )
    called: jax.Array = call(*operands)
    return called


def convolution(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, dilation: Any = None) -> jax.Array:
    """The convolution of images (B, ..., C) with a kernel (..., C, F): (B, ..., F), all float32.

    Args:
      images: float32, of one, two or three axes besides batch and channels.
      kernel: float32, of as many.
      strides: one an axis, in pixels.
      padding: a pair (before, after) an axis, in pixels, none negative.
      dilation: distance of the kernel's entries along each axis, in pixels. Default: 1.
    """
    sizes, axes = kernel.shape[:-2], len(strides)
    dilation = (1,) * axes if dilation is None else dilation
    out = [
        (n + sum(p) - (k - 1) * d - 1) // s + 1
        for n, p, k, d, s in zip(images.shape[1:-1], padding, sizes, dilation, strides, strict=True)
    ]
    before, after = zip(*padding, strict=True)
    data = {"data": {"batch_dim": 0, "feature_dim": axes + 1, "spatial_dims": list(range(1, axes + 1))}}
    places = {"input_feature_dim": axes, "output_feature_dim": axes + 1, "spatial_dims": list(range(axes))}
    config = {
        "dims": axes + 2,
        "input": data,
        "kernel": {"filter": places},
        "output": data,
        "window": {
            "size": list(sizes),
            "pad_left": list(before),
            "pad_right": list(after),
            "strides": list(strides),
            "window_dilations": list(dilation),
        },
        "feature_groups": 1,
    }
    shape = (images.shape[0], *out, kernel.shape[-1])
    return _call(_CONVOLUTION, {"onednn_conv_config": config}, shape, images, kernel)


def matmul(
    a: jax.Array,
    b: jax.Array,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    layouts: tuple[Sequence[int], Sequence[int], Sequence[int]] | None = None,
) -> jax.Array:
    """Products of matrices, float32, in the last two axes, the axes before them being those of a batch.

    Args:
      a: (..., M, K), or (..., K, M) if ``transpose_a``.
      b: (..., K, N), or (..., N, K) if ``transpose_b``.
      transpose_a, transpose_b: see ``a`` and ``b``.
      layouts: the order in which the axes of a, b and the result lie in memory, the one whose values lie together last.
        Default: as in NumPy, that of the axes.

    Returns:
      (..., M, N).
    """
    shape = (*a.shape[:-2], a.shape[-1] if transpose_a else a.shape[-2], b.shape[-2] if transpose_b else b.shape[-1])
    config = {"onednn_matmul_config": {"transpose_a": transpose_a, "transpose_b": transpose_b}}
    placed = {} if layouts is None else {"input_layouts": layouts[:2], "output_layouts": layouts[2]}
    return _call(_PRODUCT, config, shape, a, b, **placed)
