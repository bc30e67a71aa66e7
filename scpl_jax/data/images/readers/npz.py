"""Arrays saved by numpy."""

import zipfile
from pathlib import Path

import numpy as np

from scpl_jax.data.class_names import LabelReader, class_numbers, in_order
from scpl_jax.data.dataset import Dataset
from scpl_jax.data.errors import ZIP_ERRORS, DataError, some
from scpl_jax.data.images.decoding import resize, to_rgb
from scpl_jax.data.images.readers.request import Request
from scpl_jax.data.reading import is_folder, is_there, open_file

_LAYOUT = "a .npz file with x_train, y_train, x_test, y_test or a folder with train.npz and test.npz of x, y"
_MOST_CLASSES = 100_000  # more are no classes, and no memory would hold a classifier of them


def load(request: Request) -> Dataset:
    """Read one .npz file of both splits, or a folder with one .npz file for each.

    Images are uint8 `(N, H, W, 3)`, or `(N, H, W)` for grey ones, which get three equal channels. Labels are `(N,)` or
    `(N, 1)`: class numbers from 0 of any type that holds whole numbers, or texts that name the classes. There are as
    many classes as the largest number of either split says, named by their numbers; or one for each text in the
    training labels. Images without a label are left out, and `note` says how many: those with -1, not-a-number, or a
    text that `class_of` takes for missing.

    Raises:
        DataError: when a file or an array is missing, damaged, or of the wrong type or shape.
    """
    path = request.required_dir(_LAYOUT)
    apart, splits = is_folder(path), ("train", "test")
    places = [(path / f"{split}.npz", "x", "y") if apart else (path, f"x_{split}", f"y_{split}") for split in splits]
    reader, parts = LabelReader(), []
    class_names: list[str] = []
    for place, images_key, labels_key in places:
        images, found = _arrays(place, (images_key, labels_key))
        _check_images(images, f"{images_key} in {place}")
        where = f"{labels_key} in {place}"
        labels, class_names = _labels(found, len(images), where, class_names, reader)
        labelled = labels >= 0
        if not labelled.any():
            raise DataError(f"{where} holds no label ({reader.missing('images')}); label some images.")
        images = images if labelled.all() else images[labelled]
        images = resize(to_rgb(images) if images.ndim == 3 else images, request.image_size)
        parts.append((images, labels[labelled]))
    source = f"numpy {'files in' if apart else 'file'} {path.name}"
    train, test = parts
    return request.dataset(source, train, test, class_names, note=reader.note("images"))


def _check_images(images: np.ndarray, where: str) -> None:
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)):
        raise DataError(
            f"{where} is {images.dtype} of shape {images.shape}, expected uint8 of shape (N, H, W, 3) or (N, H, W); "
            "convert it and save it again."
        )
    if images.size == 0:
        raise DataError(f"{where} is empty (shape {images.shape}); save at least one image.")


def _labels(
    labels: np.ndarray, count: int, where: str, names: list[str], reader: LabelReader
) -> tuple[np.ndarray, list[str]]:
    """Class indices, `(N,)` with -1 for missing labels, and the classes: those known before, with what is new."""
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape == (count,) and labels.dtype.kind in "US":
        texts = [text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in labels]
        classes = [reader.read(text) for text in texts]
        known = names or in_order({name for name in classes if name is not None})
        index = {None: -1} | {name: at for at, name in enumerate(known)}
        for text, name in zip(texts, classes, strict=True):
            if name not in index:
                raise DataError(f"{where} has the label {text!r:.100}, expected one of {some(known, 20)}; correct it.")
        return np.array([index[name] for name in classes]), known
    numbers = class_numbers(labels) if labels.shape == (count,) else None
    if numbers is None:
        raise DataError(
            f"{where} is {labels.dtype} of shape {labels.shape}, expected whole numbers or texts of shape ({count},), "
            "one for each image; convert it and save it again."
        )
    if numbers.min() < -1 or numbers.max() >= _MOST_CLASSES:
        raise DataError(
            f"{where} runs from {labels.min()} to {labels.max()}, expected class numbers from 0 on, at most "
            f"{_MOST_CLASSES - 1}, and -1 for images without a label; correct the labels and save it again."
        )
    if missing := int((numbers < 0).sum()):
        reader.leave_out("-1 or not a number", missing)
    if names and not all(name == str(at) for at, name in enumerate(names)):
        raise DataError(f"{where} holds numbers, but the training labels are texts; save both alike.")
    return numbers, [str(index) for index in range(max(len(names), 1 + int(numbers.max())))]


def _arrays(path: Path, keys: tuple[str, str]) -> list[np.ndarray]:
    if not is_there(path):
        raise DataError(f"{path} does not exist; set `data_dir` to {_LAYOUT}.")
    key = keys[0]
    try:
        # A pickled object could run any code, so none is read.
        with open_file(path) as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"{path} is no intact .npz file; set `data_dir` to {_LAYOUT}.")
            file.seek(0)
            stored = np.load(file, allow_pickle=False)
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
