"""Colour jitter and grayscale of image batches, one random draw per image.

The operations are those of torchvision's tensor transforms (``ColorJitter``, ``RandomGrayscale``; formulas of
``torchvision/transforms/_functional_tensor.py``) for float images in [0, 1], on a channels-last batch. Every
image of the batch has its own factors and its own order of the operations.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
# All orders of the four operations: one uniform index draws torchvision's ``randperm(4)`` for an image.
ORDERS = np.array(list(permutations(range(4))), dtype=np.int32)

# Red, green and blue plane, (B, H, W) each. On three planes every operation is elementwise over long rows,
# which compilers vectorise; over a last axis of length 3 they do not.
Planes = tuple[jax.Array, jax.Array, jax.Array]


class Jitter(NamedTuple):
    """One colour jitter per image.

    Attributes:
        factors: (B, 3) float32, the factors of brightness, contrast and saturation; 1 changes nothing.
        hue: (B,) float32, the shift of the hue in turns; 0 changes nothing.
        order: (B, 4) int32, each row a permutation of ``BRIGHTNESS, CONTRAST, SATURATION, HUE``; the
            operation named first is applied first.
    """

    factors: Float[Array, "b 3"]
    hue: Float[Array, " b"]
    order: Int[Array, "b 4"]


def draw_jitter(
    key: jax.Array,
    batch: int,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
) -> Jitter:
    """Draw a colour jitter for each of ``batch`` images, as torchvision's ``ColorJitter`` does.

    The factor of an operation of strength x is uniform in [max(0, 1 - x), 1 + x], the hue shift is uniform in
    [-hue, hue], and the order is uniform over the 24 permutations.

    >>> jax.jit(draw_jitter, static_argnums=1)(jax.random.key(0), 5).order.shape
    (5, 4)
    """
    strength = np.array([brightness, contrast, saturation, hue], dtype=np.float32)
    low = np.append(np.maximum(0, 1 - strength[:3]), -strength[3:])
    high = np.append(1 + strength[:3], strength[3:])
    drawn = jax.random.uniform(key, (batch, 5))
    scaled = low + (high - low) * drawn[:, :4]
    orders = jnp.asarray(ORDERS)[(len(ORDERS) * drawn[:, 4]).astype(jnp.int32)]
    return Jitter(factors=scaled[:, :3], hue=scaled[:, 3], order=orders)


def grayscale(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Luma 0.2989 R + 0.587 G + 0.114 B of ITU-R 601-2 in all three channels; (B, H, W, 3) float, same dtype.

    >>> grayscale(jnp.ones((1, 1, 1, 3)))[0, 0, 0].round(4).tolist() == [jnp.float32(0.9999)] * 3
    True
    """
    gray = _luma(_planes(images))
    return jnp.broadcast_to(gray[..., None], images.shape)


def colour_jitter(images: Float[Array, "b h w 3"], jitter: Jitter) -> Float[Array, "b h w 3"]:
    """Apply to each image its four operations in its order.

    With factor f and an image x, brightness is clip(f x), contrast clip(f x + (1 - f) mean(gray(x))) with one
    mean per image, saturation clip(f x + (1 - f) gray(x)) per pixel, where clip is to [0, 1]; the hue h of
    HSV becomes (h + shift) mod 1.

    The hue is the costly operation, so it is computed once: the blends an image has before its hue come
    first, then the hue of all images, then the blends after it. An image whose turn a blend is not has factor
    1 there, which leaves values in [0, 1] exactly as they are.

    Args:
        images: (B, H, W, 3) float32 in [0, 1].
        jitter: factors, hue shifts and orders of the B images.

    Returns:
        (B, H, W, 3) float32 in [0, 1].

    >>> order = jnp.array([[BRIGHTNESS, HUE, CONTRAST, SATURATION]])
    >>> dark = Jitter(factors=jnp.array([[0.5, 1.0, 1.0]]), hue=jnp.zeros(1), order=order)
    >>> jax.jit(colour_jitter)(jnp.array([[[[1.0, 0.5, 0.0]]]]), dark)[0, 0, 0].tolist()
    [0.5, 0.25, 0.0]
    """
    planes = _planes(images)
    position_of_hue = jnp.argmax(jitter.order == HUE, axis=1)
    for position in (0, 1, 2):
        planes = _blend(planes, jitter, position, active=position < position_of_hue)
    planes = _shift_hue(planes, jitter.hue)
    for position in (1, 2, 3):
        planes = _blend(planes, jitter, position, active=position > position_of_hue)
    # Not stacked along the last axis: for each of its three values a compiler would decide which plane to compute.
    return jnp.moveaxis(jnp.stack(planes), 0, -1)


def _planes(images: jax.Array) -> Planes:
    return images[..., 0], images[..., 1], images[..., 2]


def _luma(planes: Planes) -> jax.Array:
    red, green, blue = (weight * plane for weight, plane in zip(GRAY_WEIGHTS, planes, strict=True))
    return red + green + blue


def _per_pixel(values: jax.Array) -> jax.Array:
    return values[:, None, None]


def _blend(planes: Planes, jitter: Jitter, position: int, *, active: Bool[Array, " b"]) -> Planes:
    """Apply the brightness, contrast or saturation at ``position`` of the order to the ``active`` images."""
    operation = jitter.order[:, position]
    # The hue is never active here; any factor will do in its place.
    column = jnp.minimum(operation, SATURATION)[:, None]
    factor = jnp.where(active, jnp.take_along_axis(jitter.factors, column, axis=1)[:, 0], 1.0)
    gray = _luma(planes)
    to_mean = jnp.where(operation == CONTRAST, 1 - factor, 0.0) * gray.mean(axis=(1, 2))
    to_gray = jnp.where(operation == SATURATION, 1 - factor, 0.0)
    other = _per_pixel(to_gray) * gray + _per_pixel(to_mean)
    red, green, blue = (jnp.clip(_per_pixel(factor) * plane + other, 0.0, 1.0) for plane in planes)
    return red, green, blue


def _shift_hue(planes: Planes, shift: Float[Array, " b"]) -> Planes:
    """Turn the hue of each image by ``shift`` turns through HSV.

    With chroma c = max - min and hue h in sixths of a turn, the way back from HSV is
    max - c clip(min(k, 4 - k), 0, 1) with k = (n + h) mod 6 and n = 5, 3, 1 for red, green, blue: the same
    piecewise linear function as the table of six sectors in torchvision's ``_hsv2rgb``, without its selects.
    """
    red, green, blue = planes
    maximum = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = maximum - jnp.minimum(jnp.minimum(red, green), blue)
    # A gray pixel has no hue; its chroma of 0 makes the result gray whatever the hue is.
    divisor = jnp.where(chroma == 0, 1.0, chroma)
    # Compared with each other, not with the maximum: a compiler may compute a channel twice with different
    # rounding, and then none of them would equal the maximum. At a tie both branches give the same colour.
    sixths = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / divisor,
        jnp.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * _per_pixel(shift)

    def channel(n: int) -> jax.Array:
        k = sixths + n
        k = k - 6 * jnp.floor(k * (1 / 6))
        return maximum - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)

    return channel(5), channel(3), channel(1)
