"""Decoding, resizing and measuring images."""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from scpl_jax.data.errors import DataError, reason

_STATISTICS_CHUNK = 4096
# Converting these modes to RGB clips all but the lowest 8 bits, which would turn most pictures white.
_WIDE_MODES = ("I", "F")
_ORIENTATION = 0x0112  # the tag in EXIF data; 1 is upright


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each colour channel, of pixels scaled to [0, 1].

    Args:
        images: `(N, H, W, 3)` uint8, N at least 1.

    Returns:
        The three means and the three (population) standard deviations. Sums are kept as whole numbers and
        the rest is float64, so the result does not depend on the order of the images. A channel that never
        changes gets a deviation of 1/255, so that dividing by it is safe.

    Example:
        >>> mean, std = channel_statistics(np.array([0, 255], np.uint8).repeat(3).reshape(1, 1, 2, 3))
        >>> mean, std
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    total, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for at in range(0, len(images), _STATISTICS_CHUNK):
        pixels = images[at : at + _STATISTICS_CHUNK].reshape(-1, 3)
        for channel in range(3):
            counts = np.bincount(pixels[:, channel], minlength=256)
            total[channel] += counts @ np.arange(256)
            squares[channel] += counts @ np.arange(256) ** 2
    count = images.size // 3
    mean = total / count
    std = np.maximum(np.sqrt(np.maximum(squares / count - mean**2, 0.0)), 1.0)
    red, green, blue = (mean / 255.0).tolist()
    red_std, green_std, blue_std = (std / 255.0).tolist()
    return (red, green, blue), (red_std, green_std, blue_std)


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Repeat the grey values of `(N, H, W)` images over three channels: `(N, H, W, 3)`."""
    return np.repeat(images[..., None], 3, axis=-1)


def resize(images: np.ndarray, size: int | None) -> np.ndarray:
    """Bring images to `size` x `size` pixels, bilinearly.

    Args:
        images: `(N, H, W, 3)` uint8.
        size: edge in pixels; None leaves the images as they are.

    Returns:
        `(N, size, size, 3)` uint8; the given array itself when it has that size already.
    """
    if size is None or images.shape[1:3] == (size, size):
        return images
    from PIL import Image

    def resized(at: int) -> np.ndarray:
        picture = Image.fromarray(images[at])
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))

    return _in_parallel(resized, len(images), (size, size, 3))


def decode_images(open_image: Callable[[int], Any], names: Sequence[str], size: int | None) -> tuple[np.ndarray, int]:
    """Decode images from anywhere into one array.

    Args:
        open_image: gives, for an index, a binary file with the image, which is closed.
        names: what to call each image in an error; as many as there are images, at least one.
        size: edge in pixels to which all are resized; None takes the size of the first.

    Returns:
        `(N, H, W, 3)` uint8, and how many images have an orientation in their EXIF data, which is ignored.

    Raises:
        DataError: when an image cannot be opened or decoded, or, with `size` None, is not as large as the first.
    """
    first, _ = _decode(open_image(0), names[0], size)
    turned = []

    def decoded(at: int) -> np.ndarray:
        image, is_turned = _decode(open_image(at), names[at], size)
        if is_turned:
            turned.append(at)
        if image.shape != first.shape:
            raise DataError(
                f"{names[at]} is {image.shape[1]} x {image.shape[0]} pixels but {names[0]} is "
                f"{first.shape[1]} x {first.shape[0]}; give `image_size` to bring all images to one size."
            )
        return image

    return _in_parallel(decoded, len(names), first.shape), len(turned)


def _decode(opened: Any, name: str, size: int | None) -> tuple[np.ndarray, bool]:
    from PIL import Image

    try:
        with opened, Image.open(opened) as picture:
            if picture.mode.startswith(_WIDE_MODES):
                raise DataError(
                    f"{name} has pixels of mode {picture.mode}, expected 8 bits a channel; convert it first."
                )
            rgb = picture.convert("RGB")
            turned = _is_turned(picture)
    except DataError:
        raise
    # Pillow's plugins raise nearly anything on a broken file: OSError, SyntaxError, ValueError, struct.error.
    except Exception as error:
        raise DataError(
            f"{name} cannot be read as an image ({reason(error)}); replace it by an intact file."
        ) from error
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb), turned


def _is_turned(picture: Any) -> bool:
    with contextlib.suppress(Exception):  # whatever Pillow raises on broken EXIF data, which nothing needs
        return picture.getexif().get(_ORIENTATION, 1) in range(2, 9)
    return False


def _in_parallel(make: Callable[[int], np.ndarray], count: int, shape: tuple[int, ...], chunk: int = 256) -> np.ndarray:
    """Array of `make(0)`, `make(1)`, ...; Pillow lets go of the interpreter's lock, so threads help."""
    images = np.empty((count, *shape), np.uint8)

    def fill(start: int) -> None:
        for at in range(start, min(start + chunk, count)):
            images[at] = make(at)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(0, count, chunk)):
            pass
    return images
