"""Image files with their classes, and the data set made of them."""

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from scpl_jax.data.dataset import Dataset
from scpl_jax.data.errors import DataError, some
from scpl_jax.data.images.decoding import decode_images
from scpl_jax.data.images.readers.request import Request
from scpl_jax.data.reading import open_file
from scpl_jax.data.text.words import composed

_READER = "listing-2"

_TURNED = (
    "{:,} images are to be turned or mirrored according to their EXIF data, which is ignored, as torchvision's "
    "ImageFolder does; turn the images themselves if that matters."
)

IMAGE_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings, in lower case, of the files taken for images."""

Listing = list[tuple[str, int]]
"""Image files with their class indices, in the order of the examples."""


def take_turns(files_by_class: Sequence[Sequence[str]]) -> Listing:
    """Order the files of all classes so that these take turns: the first of each, the second of each, and so on.

    The first N of them are then a balanced subset.

    Example:
        >>> take_turns([["cat1", "cat2"], ["dog1"]])
        [('cat1', 0), ('dog1', 1), ('cat2', 0)]
    """
    turns = zip_longest(*([(file, label) for file in files] for label, files in enumerate(files_by_class)))
    return [example for turn in turns for example in turn if example is not None]


def is_image(name: str) -> bool:
    """Whether a file name ends as those of images do."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def class_folders(place: Path | str, folders: Iterable[str]) -> dict[str, str]:
    r"""The folder of each class, in the order of the classes, from the names of the folders in `place`.

    A class is named after its folder, in Unicode's composed form: file systems differ in the form that they keep, so
    that two splits may spell one class in two ways.

    Raises:
        DataError: when two folders are one class.

    Example:
        >>> class_folders("train", ["dog", "cafe\u0301"]) == {"caf\u00e9": "cafe\u0301", "dog": "dog"}
        True
    """
    found: dict[str, str] = {}
    for folder in folders:
        name = composed(folder)
        if name in found:
            raise DataError(
                f"{place} holds two folders of the class {name}, {found[name]!a} and {folder!a}, which differ only in "
                "how Unicode composes their characters; move the images of one into the other."
            )
        found[name] = folder
    return dict(sorted(found.items()))


def check_classes(place: Path | str, train_names: Sequence[str], test_names: Sequence[str]) -> None:
    """Check that the test classes, of images in `place`, are the training classes.

    Raises:
        DataError: when they differ.
    """
    missing = sorted(set(train_names) - set(test_names))
    extra = sorted(set(test_names) - set(train_names))
    if missing or extra:
        raise DataError(
            f"the classes in {place} differ from those in train (missing: {some(missing)}; not in train: "
            f"{some(extra)}); give both splits the same classes."
        )


def decode_listings(
    request: Request,
    *,
    source: str,
    class_names: tuple[str, ...],
    train: Listing,
    test: Listing,
    files: Iterable[str | Path] | None = None,
    open_image: Callable[[str], Any] = open_file,
) -> Dataset:
    """Decode the listed images into a data set, through the cache.

    An orientation in an image's EXIF data is ignored, as it is by torchvision's ImageFolder, and the note says in how
    many images. (TIFF files are turned as they say, as Pillow does so.)

    Args:
        request: what was asked for; without `image_size` all images must be of one size.
        source: where the images came from, for people to read.
        class_names: name of each class.
        train: names and class indices of the training examples.
        test: the same of the test examples.
        files: the files on disk the images depend on; None when the names are their paths.
        open_image: gives, for a name, a binary file with the image.

    Raises:
        DataError: when an image cannot be read or images differ in size.
    """
    names = [name for name, _ in train + test]

    def build() -> Dataset:
        images, turned = decode_images(lambda at: open_image(names[at]), names, request.image_size)
        train_labels, test_labels = (np.array([label for _, label in split], np.int32) for split in (train, test))
        parts = (images[: len(train)], train_labels), (images[len(train) :], test_labels)
        return request.dataset(source, *parts, class_names, note=_TURNED.format(turned) if turned else "")

    return request.cached(build, _READER, names if files is None else files)
