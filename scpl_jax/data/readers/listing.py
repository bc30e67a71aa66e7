"""Image files with their classes, and the data set made of them."""

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from scpl_jax.data.cache import cached
from scpl_jax.data.dataset import Dataset
from scpl_jax.data.errors import DataError
from scpl_jax.data.images import channel_statistics, decode_images
from scpl_jax.data.readers.request import Request

_READER = "listing-1"

IMAGE_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings, in lower case, of the files taken for images."""

Listing = list[tuple[str, int]]
"""Image files with their class indices, in the order of the examples."""


def take_turns(files_by_class: Sequence[Sequence[str]]) -> Listing:
    """Order files so that classes take turns: the first of each, the second of each, and so on.

    The first N of them are then a balanced subset.

    Args:
        files_by_class: the files of each class, in the order of the classes.

    Example:
        >>> take_turns([["cat1", "cat2"], ["dog1"]])
        [('cat1', 0), ('dog1', 1), ('cat2', 0)]
    """
    turns = zip_longest(*([(file, label) for file in files] for label, files in enumerate(files_by_class)))
    return [example for turn in turns for example in turn if example is not None]


def is_image(name: str) -> bool:
    """Whether a file name ends as those of images do."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def check_classes(place: Path | str, train_names: Sequence[str], test_names: Sequence[str]) -> None:
    """Check that the test classes are the training classes.

    Args:
        place: where the test images lie, for the error.
        train_names: names of the training classes.
        test_names: names of the test classes.

    Raises:
        DataError: when they differ.
    """
    missing = sorted(set(train_names) - set(test_names))
    extra = sorted(set(test_names) - set(train_names))
    if missing or extra:
        raise DataError(
            f"the classes in {place} differ from those in train (missing: {_some(missing)}; not in train: "
            f"{_some(extra)}); give both splits the same classes."
        )


def decode_listings(
    request: Request,
    *,
    source: str,
    class_names: tuple[str, ...],
    train: Listing,
    test: Listing,
    image_size: int | None,
    files: Iterable[str | Path] | None = None,
    open_image: Callable[[str], Any] = str,
) -> Dataset:
    """Decode the listed images into a data set, through the cache.

    Args:
        request: what was asked for.
        source: where the images came from, for people to read.
        class_names: name of each class.
        train: names and class indices of the training examples.
        test: the same of the test examples.
        image_size: edge in pixels to which all images are resized; None when all have one size.
        files: the files on disk the images depend on; None when the names are their paths.
        open_image: gives, for a name, what Pillow can open.

    Raises:
        DataError: when an image cannot be read or images differ in size.
    """
    names = [name for name, _ in train] + [name for name, _ in test]

    def build() -> Dataset:
        images = decode_images(lambda at: open_image(names[at]), names, image_size)
        train_images, test_images = images[: len(train)], images[len(train) :]
        mean, std = channel_statistics(train_images)
        return Dataset(
            name=request.name,
            source=source,
            train_images=train_images,
            train_labels=np.array([label for _, label in train], np.int32),
            test_images=test_images,
            test_labels=np.array([label for _, label in test], np.int32),
            class_names=class_names,
            mean=mean,
            std=std,
        )

    return cached(
        Dataset,
        build,
        cache_dir=request.cache_dir,
        reader=f"{_READER} {request.name}",
        files=names if files is None else files,
        options=image_size,
    )


def _some(names: Sequence[str], most: int = 5) -> str:
    """The first few of some names."""
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
