"""A convolution that is fast on the CPU.

Kernels of 3 x 3 over many channels take fewer products in Winograd's form (:mod:`scpl_jax.kernels.winograd`). Of the
others XLA's CPU backend computes the kernel's gradient over large images at a tenth of the speed of its forward pass;
as matrix products over shifted copies (:mod:`scpl_jax.kernels.kernel_gradients`) it is several times faster. With the
library oneDNN (:mod:`scpl_jax.kernels.onednn`) convolutions forward and to the images are its own, and the kernel's
gradient is one of its convolutions, too, or takes its products.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from scpl_jax.kernels import kernel_gradients, onednn, thresholds, winograd

_NHWC = ("NHWC", "HWIO", "NHWC")


def plain_convolution(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, precision: Any) -> jax.Array:
    """XLA's own convolution, in the layout that all networks here have."""
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=_NHWC, precision=precision)


def _winograd_fits(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> bool:
    (_, height, width, channels), (*size, _, features) = images.shape, kernel.shape
    fits = size == [3, 3] and strides == (1, 1) and padding == ((1, 1), (1, 1)) and height % 2 == width % 2 == 0
    return fits and min(channels, features) >= thresholds.here().winograd_channels and images.dtype == jnp.float32


def _own_forward(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, by_onednn: bool) -> bool:
    """Whether Winograd's form is used forward and to the images."""
    if not _winograd_fits(images, kernel, strides, padding):
        return False
    least, work = thresholds.here(), min(kernel.shape[2:]) * images.shape[1] * images.shape[2]
    return math.prod(kernel.shape[2:]) >= least.winograd_always or (not by_onednn and work >= least.winograd_work)


def _own_kernel_gradient(
    images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, by_onednn: bool
) -> str | None:
    """The form of the kernel's gradient on the CPU; None: XLA's."""
    least, (*size, channels, features) = thresholds.here(), kernel.shape
    work = channels * features * images.shape[1] * images.shape[2]
    enough = work >= (least.winograd_kernel_work_onednn if by_onednn else least.winograd_kernel_work)
    if (enough or channels * features >= least.winograd_always) and _winograd_fits(images, kernel, strides, padding):
        return "winograd"
    pixels = _pixels_out(images, kernel, strides, padding)
    few_from_few = channels < least.shifted_channels and features <= least.few_into
    convolved = math.prod(size) > 1 and (few_from_few or min(channels, features) >= least.convolved_channels)
    if by_onednn and convolved and pixels >= least.convolved_pixels:
        return "convolution"
    shifts = strides == (1, 1) and min(channels, features) >= least.shifted_channels
    if pixels < (least.shifts_pixels if shifts and by_onednn else least.patches_pixels):
        return None
    return "shifts" if shifts else "patches"


def _pixels_out(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> int:
    return math.prod(
        (size + lo + hi - k) // s + 1
        for size, (lo, hi), k, s in zip(images.shape[1:3], padding, kernel.shape[:2], strides, strict=True)
    )


def _by_onednn(library: str, strides: Any, padding: Any, kernel: jax.Array, images: jax.Array) -> bool:
    """Whether oneDNN computes this convolution: it pads, but does not cut off, and small ones do not pay."""
    inside = all(
        0 <= before < k and 0 <= after < k for (before, after), k in zip(padding, kernel.shape[:2], strict=True)
    )
    if library != "onednn" or not inside or not onednn.usable(images, kernel):
        return False
    operations = 2 * images.shape[0] * _pixels_out(images, kernel, strides, padding) * kernel.size
    least = thresholds.here()
    return operations >= least.onednn_convolution or min(kernel.shape[2:]) < least.onednn_few_channels


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _conv(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, precision: Any, library: str) -> jax.Array:
    plain = functools.partial(plain_convolution, strides=strides, padding=padding, precision=precision)
    by_onednn = _by_onednn(library, strides, padding, kernel, images)
    cpu: Callable[..., jax.Array] = plain
    if _own_forward(images, kernel, strides, padding, by_onednn):
        cpu = functools.partial(winograd.forward, precision=precision)
    elif by_onednn:
        cpu = functools.partial(onednn.convolution, strides=strides, padding=padding)
    return onednn.on_cpu(cpu, plain, images, kernel)


def _conv_bwd(strides: Any, padding: Any, precision: Any, library: str, saved: Any, cotangent: jax.Array) -> Any:
    images, kernel = saved
    plain = functools.partial(plain_convolution, strides=strides, padding=padding, precision=precision)
    by_onednn = _by_onednn(library, strides, padding, kernel, images)

    def xla_images(g: jax.Array, w: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: plain(x, w), images)[1](g)[0]

    def xla_kernel(x: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda w: plain(x, w), kernel)[1](g)[0]

    def onednn_images(g: jax.Array, w: jax.Array) -> jax.Array:
        # The convolution of the cotangent with the kernel turned round, as much wider as the other was narrower.
        around = tuple((k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(kernel.shape[:2], padding, strict=True))
        return onednn.convolution(g, jnp.swapaxes(w[::-1, ::-1], 2, 3), (1, 1), around)

    to_images: Callable[..., jax.Array] = xla_images
    if _own_forward(images, kernel, strides, padding, by_onednn):
        to_images = functools.partial(winograd.image_gradient, precision=precision)
    elif by_onednn and strides == (1, 1):
        to_images = onednn_images

    product: winograd.Product = functools.partial(winograd.transposed_product, precision=precision)
    if by_onednn:
        product = functools.partial(onednn.matmul, transpose_a=True)

    to_kernel: Callable[..., jax.Array] = xla_kernel
    sizes: dict[str, Any] = {"kernel_shape": kernel.shape, "padding": padding}
    match _own_kernel_gradient(images, kernel, strides, padding, by_onednn):
        case "winograd":
            to_kernel = functools.partial(winograd.kernel_gradient, product=product)
        case "convolution":
            by_convolution = kernel_gradients.by_convolution
            to_kernel = functools.partial(by_convolution, strides=strides, convolution=onednn.convolution, **sizes)
        case "shifts":
            to_kernel = functools.partial(kernel_gradients.by_shifts, product=product, **sizes)
        case "patches":
            to_kernel = functools.partial(kernel_gradients.by_patches, strides=strides, product=product, **sizes)

    return (
        onednn.on_cpu(to_images, xla_images, cotangent, kernel),
        onednn.on_cpu(to_kernel, xla_kernel, images, cotangent),
    )


_conv.defvjp(lambda images, kernel, *static: (_conv(images, kernel, *static), (images, kernel)), _conv_bwd)


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, *, library: str = "xla", **options: Any
) -> jax.Array:
    """Drop-in for :func:`jax.lax.conv_general_dilated` in ``nnx.Conv(conv_general_dilated=...)``.

    Values and gradients are those of the original up to rounding. On the CPU two-dimensional convolutions over large
    images, not grouped and not dilated, have forms of their own: those of 3 x 3 over many channels in float32
    Winograd's, others a faster kernel gradient; or oneDNN computes them, float32 likewise. Everything else, and other
    platforms, are XLA's.
    Forward-mode differentiation (``jax.jvp``) is not supported, as with every ``jax.custom_vjp``.

    Args:
      lhs: images, shape (B, H, W, C), floating.
      rhs: kernel, shape (kh, kw, C, F), same dtype.
      window_strides: two strides, in pixels.
      padding: "SAME", "VALID" or two pairs (before, after), in pixels.
      library: what computes it on the CPU, one of ``scpl_jax.models.LIBRARIES``.
      **options: as for :func:`jax.lax.conv_general_dilated`.

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
        by_onednn = _by_onednn(library, strides, padding, rhs, lhs)
        own_gradient = _own_kernel_gradient(lhs, rhs, strides, padding, by_onednn) is not None
        if by_onednn or own_gradient or _own_forward(lhs, rhs, strides, padding, by_onednn):
            return _conv(lhs, rhs, strides, padding, options.get("precision"), library)
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def convolution_of(library: str) -> Callable[..., jax.Array]:
    """What ``nnx.Conv`` takes as ``conv_general_dilated`` for the library of this name.

    Raises:
      ValueError: there is none of this name, or not here.
    """
    return functools.partial(conv_general_dilated, library=onednn.check_library(library))
