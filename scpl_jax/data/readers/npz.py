"""Arrays saved by numpy."""

import zipfile
from pathlib import Path

import numpy as np

from scpl_jax.data.dataset import Dataset
from scpl_jax.data.errors import ZIP_ERRORS, DataError
from scpl_jax.data.images import channel_statistics, resize, to_rgb
from scpl_jax.data.readers.request import Request

_LAYOUT = "a .npz file with x_train, y_train, x_test, y_test or a folder with train.npz and test.npz of x, y"


def load(request: Request) -> Dataset:
    """Read one .npz file of both splits, or a folder with one .npz file for each.

    Images are uint8 `(N, H, W, 3)`, or `(N, H, W)` for grey ones, which get three equal channels; labels are
    whole numbers `(N,)` from 0. There are as many classes as the largest label of either split says, and they
    are named by their numbers.

    Raises:
        DataError: when a file or an array is missing, damaged, or of the wrong type or shape.
    """
    path = request.required_dir(_LAYOUT)
    if path.is_dir():
        train = _split(path / "train.npz", "x", "y", request.image_size)
        test = _split(path / "test.npz", "x", "y", request.image_size)
    else:
        train = _split(path, "x_train", "y_train", request.image_size)
        test = _split(path, "x_test", "y_test", request.image_size)
    num_classes = 1 + max(int(train[1].max()), int(test[1].max()))
    mean, std = channel_statistics(train[0])
    return Dataset(
        name=request.name,
        source=f"numpy {'files in' if path.is_dir() else 'file'} {path.name}",
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
        class_names=tuple(str(index) for index in range(num_classes)),
        mean=mean,
        std=std,
    )


def _split(path: Path, images_key: str, labels_key: str, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Images `(N, H, W, 3)` uint8 and labels `(N,)` int32 of one split."""
    images, labels = _arrays(path, (images_key, labels_key))
    grey = images.ndim == 3
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[-1] == 3)):
        raise DataError(
            f"{images_key} in {path} is {images.dtype} of shape {images.shape}, expected uint8 of shape "
            "(N, H, W, 3) or (N, H, W); convert it and save it again."
        )
    if images.size == 0:
        raise DataError(f"{images_key} in {path} is empty (shape {images.shape}); save at least one image.")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise DataError(
            f"{labels_key} in {path} is {labels.dtype} of shape {labels.shape}, expected whole numbers of "
            f"shape ({len(images)},), one for each image in {images_key}; convert it and save it again."
        )
    if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        raise DataError(
            f"{labels_key} in {path} runs from {labels.min()} to {labels.max()}, expected class numbers from "
            "0 on; correct the labels and save it again."
        )
    return resize(to_rgb(images) if grey else images, size), labels.astype(np.int32)


def _arrays(path: Path, keys: tuple[str, str]) -> list[np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path} does not exist; set --data-dir to {_LAYOUT}.")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is no intact .npz file; set --data-dir to {_LAYOUT}.")
    key = keys[0]
    try:
        # A pickled object could run any code, so none is read.
        with np.load(path, allow_pickle=False) as stored:
            found = []
            for key in keys:
                if key not in stored:
                    raise DataError(
                        f"{path} holds no array {key} but {', '.join(sorted(stored)) or 'nothing'}; save it "
                        f"with {keys[0]} and {keys[1]}."
                    )
                found.append(stored[key])
            return found
    except DataError:
        raise
    except (*ZIP_ERRORS, ValueError) as error:
        raise DataError(
            f"{key} in {path} cannot be read ({str(error).rstrip('.')}); save it again as a plain array."
        ) from error
