"""Data sets without files: the digits that scikit-learn brings along, and images made up where data do not matter."""

import importlib.metadata

import numpy as np

from scpl_jax.data.cache import cached
from scpl_jax.data.dataset import Dataset
from scpl_jax.data.images.decoding import resize, to_rgb
from scpl_jax.data.images.readers.request import Request

_DEFAULT_SIZE = 32
_READER = "digits 1"
_BRIGHTEST = 16
# Of the images that are made up.
_NUM_CLASSES = 10
_NUM_TRAIN = 2000
_NUM_TEST = 500
_SEED = 20240
_NOISE = 24.0


def digits(request: Request) -> Dataset:
    """Read the 1797 digits of `sklearn.datasets.load_digits`.

    Their 8 x 8 grey values of 0 to 16 are scaled to 0 to 255, resized bilinearly to 32 x 32 (or `image_size`) and
    repeated over three channels. A stratified fifth, the same whatever the seed of a run, is held out for testing.
    """
    size = request.image_size or _DEFAULT_SIZE
    # Importing scikit-learn takes longer than everything else here; from the second time on nothing needs it.
    return cached(
        Dataset,
        lambda: _digits(request, size),
        cache_dir=request.cache_dir,
        reader=_READER,
        files=[],
        options=[size, importlib.metadata.version("scikit-learn")],
    )


def _digits(request: Request, size: int) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    grey = np.rint(found.images * (255.0 / _BRIGHTEST)).astype(np.uint8)
    images, labels = resize(to_rgb(grey), size), found.target
    parts = train_test_split(np.arange(len(labels)), stratify=labels, test_size=0.2, random_state=0)
    train, test = ((images[part], labels[part]) for part in parts)
    return request.dataset("scikit-learn load_digits (bundled)", train, test, map(str, range(10)))


def synthetic(request: Request) -> Dataset:
    """Make 2000 training and 500 test images of 10 classes, the same at every call.

    A class is a stripe pattern of its own direction, spacing and colour; each image shifts it at random and
    adds noise. Images are 32 x 32, or `image_size`.
    """
    size = request.image_size or _DEFAULT_SIZE
    generator = np.random.Generator(np.random.PCG64(_SEED))
    colours = generator.uniform(0.2, 1.0, size=(_NUM_CLASSES, 3))
    balanced = (np.arange(count) % _NUM_CLASSES for count in (_NUM_TRAIN, _NUM_TEST))
    train, test = ((_stripes(labels, colours, size, generator), labels) for labels in balanced)
    class_names = [f"stripes-{index}" for index in range(_NUM_CLASSES)]
    return request.dataset("synthetic stripes (made by scpl_jax)", train, test, class_names)


def _stripes(labels: np.ndarray, colours: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
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
