"""Augmentation of image batches on the device, inside the compiled training step.

``none`` only normalises. ``basic`` is the usual augmentation of CIFAR and Tiny ImageNet: torchvision's
``RandomCrop(size, padding=4)`` and ``RandomHorizontalFlip()``. ``strong`` gives two views of each image, the second
with the colour jitter and grayscale of SimCLR (Chen et al. 2020, arXiv:2002.05709, appendix A) at the strengths of the
reference code of SupCon (Khosla et al. 2020, arXiv:2004.11362; HobbitLong/SupContrast, ``main_supcon.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from scpl_jax.data.images.colour import colour_jitter, draw_jitter, grayscale

AUGMENTATIONS = ("none", "basic", "strong")
PADDING = 4
JITTER_PROBABILITY = 0.8
GRAYSCALE_PROBABILITY = 0.2

Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def make_augment(kind: str, *, mean: Sequence[float], std: Sequence[float], dtype: Any = jnp.float32) -> Augment:
    """Make the augmentation ``kind``: a pure function to be compiled by the caller.

    Args:
        kind: one of ``AUGMENTATIONS``.
        mean: mean of each of the 3 channels, for images in [0, 1].
        std: standard deviation of each of the 3 channels.
        dtype: dtype of the images that come out; the arithmetic is in float32.

    Returns:
        A function of a key, images (B, H, W, 3) uint8 and labels (B,) int32 that returns images (B', H, W, 3) of
        ``dtype`` and labels (B',). B' = B for ``none`` and ``basic``. For ``strong`` B' = 2 B: first all B images with
        crop and flip, then all B again with another crop and flip and with colour, and the labels twice.

    Raises:
        ValueError: if ``kind`` is not the name of an augmentation.

    >>> augment = jax.jit(make_augment("strong", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
    >>> images, labels = jnp.zeros((2, 8, 6, 3), jnp.uint8), jnp.array([3, 7])
    >>> views, labels = augment(jax.random.key(0), images, labels)
    >>> views.shape, labels.tolist()
    ((4, 8, 6, 3), [3, 7, 3, 7])
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"augmentation {kind!r} is not one of {', '.join(AUGMENTATIONS)}")

    def none(key: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        del key
        return normalise(images, mean, std, dtype), labels

    def basic(key: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        return normalise(_random_crop_flip(key, images), mean, std, dtype), labels

    def strong(key: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_first, key_second, key_colour = jax.random.split(key, 3)
        first = normalise(_random_crop_flip(key_first, images), mean, std, dtype)
        coloured = _random_colour(key_colour, _unit_range(_random_crop_flip(key_second, images)))
        second = _standardise(coloured, mean, std, dtype)
        return jnp.concatenate([first, second]), jnp.concatenate([labels, labels])

    return {"none": none, "basic": basic, "strong": strong}[kind]


def normalise(
    images: UInt8[Array, "b h w 3"], mean: Sequence[float], std: Sequence[float], dtype: Any = jnp.float32
) -> Float[Array, "b h w 3"]:
    """Scale to [0, 1] and standardise: (images / 255 - mean) / std per channel.

    Args:
        images: (B, H, W, 3) uint8.
        mean: mean of each of the 3 channels, for images in [0, 1].
        std: standard deviation of each of the 3 channels.
        dtype: dtype of the result; the arithmetic is in float32.

    Returns:
        (B, H, W, 3) of ``dtype``.

    >>> normalise(jnp.full((1, 1, 1, 3), 255, jnp.uint8), (0.5, 0.0, 1.0), (0.25, 1.0, 2.0))[0, 0, 0].tolist()
    [2.0, 1.0, 0.0]
    """
    return _standardise(_unit_range(images), mean, std, dtype)


def _random_crop_flip(key: jax.Array, images: UInt8[Array, "b h w 3"]) -> UInt8[Array, "b h w 3"]:
    """Cut a random H x W window of each image padded with 4 zeros on every side; mirror it with p = 1/2."""
    # One draw for all: of a small batch each draw takes as long as an operation on the images.
    top, left, flip = jax.random.uniform(key, (3, images.shape[0]))
    places = 2 * PADDING + 1
    top, left = ((places * drawn).astype(jnp.int32) for drawn in (top, left))
    return _crop_flip(images, top, left, flip < 0.5)


def _crop_flip(
    images: Shaped[Array, "b h w c"], top: Int[Array, " b"], left: Int[Array, " b"], flip: Bool[Array, " b"]
) -> Shaped[Array, "b h w c"]:
    """Cut the window at row ``top``, column ``left``, 0 to 8, of each zero-padded image, mirrored where ``flip``."""
    _, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    along = jnp.arange(width)
    rows = top[:, None] + jnp.arange(height)
    columns = left[:, None] + jnp.where(flip[:, None], width - 1 - along, along)
    # One gather per axis copies whole rows first and, as indices of the columns, serves the mirror as well. A
    # dynamic slice per image is a loop over the images on a CPU.
    windows = jnp.take_along_axis(padded, rows[:, :, None, None], axis=1, mode="promise_in_bounds")
    return jnp.take_along_axis(windows, columns[:, None, :, None], axis=2, mode="promise_in_bounds")


def _random_colour(key: jax.Array, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Jitter the colours of images in [0, 1] with probability 0.8, then make them gray with probability 0.2."""
    key_jitter, key_chances = jax.random.split(key)
    batch = images.shape[0]
    jittered = colour_jitter(images, draw_jitter(key_jitter, batch))
    apply, gray = jax.random.uniform(key_chances, (2, batch, 1, 1, 1))
    images = jnp.where(apply < JITTER_PROBABILITY, jittered, images)
    return jnp.where(gray < GRAYSCALE_PROBABILITY, grayscale(images), images)


def _unit_range(images: jax.Array) -> jax.Array:
    return images.astype(jnp.float32) / 255


def _standardise(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: Any) -> jax.Array:
    return ((images - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).astype(dtype)
