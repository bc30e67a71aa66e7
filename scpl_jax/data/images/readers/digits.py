"""The handwritten digits that scikit-learn brings along: no download, seconds to train on."""

import importlib.metadata

import numpy as np

from scpl_jax.data.cache import cached
from scpl_jax.data.dataset import Dataset
from scpl_jax.data.images.decoding import resize, to_rgb
from scpl_jax.data.images.readers.request import Request

_DEFAULT_SIZE = 32
_BRIGHTEST = 16
_READER = "digits 1"


def load(request: Request) -> Dataset:
    """Read the 1797 digits of `sklearn.datasets.load_digits`.

    Their 8 x 8 grey values of 0 to 16 are scaled to 0 to 255, resized bilinearly to 32 x 32 (or `image_size`) and
    repeated over three channels. A stratified fifth, the same whatever the seed of a run, is held out for testing.
    """
    size = request.image_size or _DEFAULT_SIZE
    # Importing scikit-learn takes longer than everything else here; from the second time on nothing needs it.
    return cached(
        Dataset,
        lambda: _build(request, size),
        cache_dir=request.cache_dir,
        reader=_READER,
        files=[],
        options=[size, importlib.metadata.version("scikit-learn")],
    )


def _build(request: Request, size: int) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = np.rint(digits.images * (255.0 / _BRIGHTEST)).astype(np.uint8)
    images, labels = resize(to_rgb(grey), size), digits.target
    parts = train_test_split(np.arange(len(labels)), stratify=labels, test_size=0.2, random_state=0)
    train, test = ((images[part], labels[part]) for part in parts)
    return request.dataset("scikit-learn load_digits (bundled)", train, test, map(str, range(10)))
