"""Fashion-MNIST in its published idx files, or through TFDS."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from scpl_jax.data.dataset import Dataset
from scpl_jax.data.errors import DataError
from scpl_jax.data.images.decoding import resize, to_rgb
from scpl_jax.data.images.readers import tfds
from scpl_jax.data.images.readers.request import Arrays, Request
from scpl_jax.data.reading import is_file, read_file

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_EDGE = 28
_MARGIN = 2
_UNSIGNED_BYTES = 8


def load(request: Request) -> Dataset:
    """Read Fashion-MNIST from its four idx files in `data_dir`, gzipped or not, else through TFDS.

    The 28 x 28 grey images get a black margin of 2 pixels on each side, to be 32 x 32 as other data sets are,
    and three equal channels; `image_size` resizes them after that.

    Raises:
        DataError: when a file is missing or damaged, or TFDS can neither read nor prepare the data set.
    """
    found = {name: _find(request.data_dir, name) for name in _FILES}
    if not any(found.values()):
        return tfds.load(
            request, "fashion_mnist", lambda train, test, _: _dataset(request, "TensorFlow Datasets", train, test)
        )
    for name, path in found.items():
        if path is None:
            raise DataError(
                f"`data_dir` {request.data_dir} holds no {name} (nor {name}.gz) beside the other idx files; add it."
            )
    train_images, train_labels, test_images, test_labels = (
        _read_idx(path, 3 if "images" in name else 1) for name, path in found.items() if path is not None
    )
    return _dataset(request, "official idx files", (train_images, train_labels), (test_images, test_labels))


def _find(data_dir: Path | None, name: str) -> Path | None:
    if data_dir is None:
        return None
    candidates = (data_dir / name, data_dir / f"{name}.gz")
    return next((path for path in candidates if is_file(path)), None)


def _read_idx(path: Path, num_axes: int) -> np.ndarray:
    """Array of unsigned bytes in an idx file: a magic number, the length of each axis, the bytes."""
    content = read_file(path)
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked ({str(error).rstrip('.')}); fetch it again.") from error
    header = 4 * (1 + num_axes)
    magic = bytes((0, 0, _UNSIGNED_BYTES, num_axes))
    if len(content) < header or content[:4] != magic:
        raise DataError(
            f"{path} begins with {content[:4].hex() or 'nothing'}, expected {magic.hex()} for an idx file of "
            f"{num_axes} axes; fetch it again."
        )
    shape = tuple(np.frombuffer(content, ">u4", num_axes, offset=4).tolist())
    if len(content) != header + math.prod(shape):
        raise DataError(
            f"{path} is {len(content)} bytes long unpacked, expected {header + math.prod(shape)} for its "
            f"shape {shape}; it is cut off or damaged, so fetch it again."
        )
    if num_axes == 3 and shape[1:] != (_EDGE, _EDGE):
        raise DataError(
            f"{path} holds images of {shape[1]} x {shape[2]} pixels, expected {_EDGE} x {_EDGE}; fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _dataset(request: Request, source: str, train: Arrays, test: Arrays) -> Dataset:
    train, test = ((_finished(images, request.image_size), labels) for images, labels in (train, test))
    return request.dataset(source, train, test, _CLASSES)


def _finished(images: np.ndarray, size: int | None) -> np.ndarray:
    """Grey images `(N, 28, 28)` or `(N, 28, 28, 1)` with their margin and three channels."""
    grey = images.reshape(-1, _EDGE, _EDGE)
    margin = (_MARGIN, _MARGIN)
    return resize(to_rgb(np.pad(grey, ((0, 0), margin, margin))), size)
