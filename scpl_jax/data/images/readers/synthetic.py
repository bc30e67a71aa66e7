"""Made-up images, for trying things out where the data do not matter."""

import numpy as np

from scpl_jax.data.dataset import Dataset
from scpl_jax.data.images.readers.request import Request

_NUM_CLASSES = 10
_NUM_TRAIN = 2000
_NUM_TEST = 500
_DEFAULT_SIZE = 32
_SEED = 20240
_NOISE = 24.0


def load(request: Request) -> Dataset:
    """Make 2000 training and 500 test images of 10 classes, the same at every call.

    A class is a stripe pattern of its own direction, spacing and colour; each image shifts it at random and
    adds noise. Images are 32 x 32, or `image_size`.
    """
    size = request.image_size or _DEFAULT_SIZE
    generator = np.random.Generator(np.random.PCG64(_SEED))
    colours = generator.uniform(0.2, 1.0, size=(_NUM_CLASSES, 3))
    balanced = (np.arange(count) % _NUM_CLASSES for count in (_NUM_TRAIN, _NUM_TEST))
    train, test = ((_images(labels, colours, size, generator), labels) for labels in balanced)
    class_names = [f"stripes-{index}" for index in range(_NUM_CLASSES)]
    return request.dataset("synthetic stripes (made by scpl_jax)", train, test, class_names)


def _images(labels: np.ndarray, colours: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Striped images `(N, size, size, 3)` uint8 of the given classes."""
    images = np.empty((len(labels), size, size, 3), np.uint8)
    axis = np.arange(size) / size
    for at, label in enumerate(labels):
        angle = np.pi * label / _NUM_CLASSES
        stripes = 2.0 + label % 3
        across = axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle)
        brightness = 0.5 + 0.5 * np.sin(2.0 * np.pi * (stripes * across + generator.uniform()))
        picture = 255.0 * brightness[..., None] * colours[label]
        picture += generator.normal(0.0, _NOISE, size=picture.shape)
        images[at] = np.clip(picture, 0.0, 255.0)
    return images
