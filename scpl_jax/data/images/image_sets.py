"""Chooses a data set by its name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from scpl_jax.data.dataset import Dataset, check_use
from scpl_jax.data.errors import DataError
from scpl_jax.data.images.readers import bundled, cifar_files, idx, imagefolder, npz, tfds, tiny_imagenet
from scpl_jax.data.images.readers.request import Request
from scpl_jax.data.paths import expand, find_cache_dir
from scpl_jax.data.reading import check_given, readable

_NOTE = (
    "CIFAR-10 was not found, so the digits bundled with scikit-learn are used; `name` cifar10 downloads "
    "it through TensorFlow Datasets, or put the official archive into the folder given by `data_dir`."
)


def _auto(request: Request) -> Dataset:
    """CIFAR-10 from `data_dir` or from what TFDS has prepared, damaged or not, else the digits; never download."""
    as_cifar = replace(request, name="cifar10")
    official = cifar_files.load_official(as_cifar)
    if official is not None:
        return official
    if tfds.find_prepared("cifar10", request.data_dir) is not None:
        return cifar_files.load_prepared(as_cifar)
    return replace(bundled.digits(replace(request, name="digits")), note=_NOTE)


_LOADERS: dict[str, Callable[[Request], Dataset]] = {
    "auto": _auto,
    "cifar10": cifar_files.load,
    "cifar100": cifar_files.load,
    "tiny-imagenet": tiny_imagenet.load,
    "fashion-mnist": idx.load,
    "digits": bundled.digits,
    "imagefolder": imagefolder.load,
    "npz": npz.load,
    "synthetic": bundled.synthetic,
}

DATASETS: tuple[str, ...] = tuple(_LOADERS)
"""Names that `load` knows."""


def load(
    name: str, *, data_dir: Path | str | None = None, cache_dir: Path | str | None = None, image_size: int | None = None
) -> Dataset:
    """Load a data set.

    A data set asked for by name is never replaced by another. Only `auto` chooses: CIFAR-10 where it is at
    hand, else the bundled digits; it never downloads, and says in `Dataset.note` what it did.

    Args:
        name: one of `DATASETS`.
        data_dir: folder (for `npz` also a file) that holds the data. Needed by `imagefolder`, `npz` and
            `tiny-imagenet`; `cifar10`, `cifar100` and `fashion-mnist` fall back on TensorFlow Datasets;
            `digits` and `synthetic` need none.
        cache_dir: where decoded images are kept, `~/.cache/scpl_jax` by default.
        image_size: edge in pixels to which all images are resized, bilinearly.

    Returns:
        The data set, validated; `note` says what was left out or is odd about it.

    Raises:
        DataError: for an unknown name, data that are missing or damaged, training images of one class only, or a
            failed download.

    Example:
        >>> from scpl_jax.data import load
        >>> load("synthetic", image_size=16).train_images.shape
        (2000, 16, 16, 3)
    """
    if name not in _LOADERS:
        raise DataError(f"`name` {name} is unknown, expected one of {', '.join(DATASETS)}; choose one.")
    if image_size is not None and image_size < 1:
        raise DataError(f"`image_size` is {image_size}, expected at least 1 pixel; leave it out to keep sizes.")
    data_path = None if data_dir is None else expand(data_dir, "`data_dir`")
    check_given("`data_dir`", data_path)
    cache_path = find_cache_dir(cache_dir)
    request = Request(name=name, data_dir=data_path, cache_dir=cache_path, image_size=image_size)
    with readable(data_path or name):
        return check_use(_LOADERS[name](request))
