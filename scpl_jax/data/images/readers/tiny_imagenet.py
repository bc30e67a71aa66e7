"""Tiny ImageNet (200 classes, 64 x 64) as published, zipped or not, or sorted into class folders."""

import io
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from scpl_jax.data.dataset import Dataset
from scpl_jax.data.errors import ZIP_ERRORS, DataError
from scpl_jax.data.images.readers import listing
from scpl_jax.data.images.readers.listing import Listing
from scpl_jax.data.images.readers.request import Request
from scpl_jax.data.reading import is_file, is_folder, is_there, names_in, open_file, read_file, real_path
from scpl_jax.data.text.words import composed

_NAME = "tiny-imagenet-200"
_LAYOUT = f"a folder that holds {_NAME}.zip or the folder {_NAME} extracted from it"
_ANNOTATIONS = "val/val_annotations.txt"
_FLAT = "val/images"
_DEFAULT_SIZE = 32


def load(request: Request) -> Dataset:
    """Read Tiny ImageNet; its labelled `val` split is the test split.

    `data_dir` is or holds the extracted folder, or is or holds `tiny-imagenet-200.zip`, which is read without
    extracting it. Training images lie in `train/<class>/images/` or `train/<class>/`; test images in
    `val/images/` with their classes in `val/val_annotations.txt`, or in `val/<class>/` like those of train.
    Images are resized to 32 x 32 unless `image_size` says otherwise. Classes take turns, so that the first N
    examples are a balanced subset; class names are WordNet ids.

    Raises:
        DataError: when a split, an annotation or an image is missing or damaged, or the classes of the splits differ.
    """
    request = replace(request, image_size=request.image_size or _DEFAULT_SIZE)
    data_dir = real_path(request.required_dir(_LAYOUT))
    archive = data_dir if is_file(data_dir) else data_dir / f"{_NAME}.zip"
    for folder in (data_dir, data_dir / _NAME):
        if is_folder(folder / "train"):
            return _load_folder(request, folder)
    if is_file(archive):
        return _load_archive(request, archive)
    raise DataError(
        f"`data_dir` {data_dir} holds neither a train folder nor {archive.name}, expected {_LAYOUT}; name "
        "such a folder."
    )


def _load_folder(request: Request, folder: Path) -> Dataset:
    names = [name for split in ("train", "val") if is_folder(folder / split) for name in _images_below(folder, split)]
    annotations = folder / _ANNOTATIONS
    # What is no UTF-8 is no name of an image either, and named as one that does not match.
    text = read_file(annotations).decode(errors="replace") if is_there(annotations) else None
    class_names, train, test = _listings(folder, names, text)
    return listing.decode_listings(
        request,
        source=f"Tiny ImageNet, folder {folder.name}",
        class_names=class_names,
        train=[(f"{folder}/{name}", label) for name, label in train],
        test=[(f"{folder}/{name}", label) for name, label in test],
        # Sizes and times of the images do not show a change of the annotations.
        files=[*(f"{folder}/{name}" for name, _ in train + test), *([annotations] if text is not None else [])],
    )


def _load_archive(request: Request, archive: Path) -> Dataset:
    try:
        with open_file(archive) as file, zipfile.ZipFile(file) as opened:
            members = {name.removeprefix(f"{_NAME}/"): name for name in opened.namelist()}
            text = opened.read(members[_ANNOTATIONS]).decode(errors="replace") if _ANNOTATIONS in members else None
            class_names, train, test = _listings(archive, members, text)
            return listing.decode_listings(
                request,
                source=f"Tiny ImageNet, archive {archive.name}",
                class_names=class_names,
                train=train,
                test=test,
                files=[archive],
                open_image=lambda name: io.BytesIO(opened.read(members[name])),
            )
    except ZIP_ERRORS as error:
        raise DataError(f"{archive} is damaged ({str(error).rstrip('.')}); fetch the archive again.") from error


def _images_below(folder: Path, inside: str, levels: int = 2) -> Iterator[str]:
    """Images in a folder and some levels below it, by their paths relative to `folder`; links are followed."""
    for name in names_in(folder / inside):
        path = f"{inside}/{name}"
        if listing.is_image(name):
            yield path
        elif levels and is_folder(folder / path):
            yield from _images_below(folder, path, levels - 1)


def _listings(place: Path, names: Iterable[str], annotations: str | None) -> tuple[tuple[str, ...], Listing, Listing]:
    """Class names and the training and test images among the names of all files.

    Args:
        place: the folder or archive, for errors.
        names: names of all files, relative to the folder that holds `train`.
        annotations: content of the file that holds the classes of `val/images`; None when there is none.
    """
    images = sorted(name for name in names if listing.is_image(name) and not name.rpartition("/")[2].startswith("."))
    test = _by_class(images, "val") if annotations is None else _annotated(place, images, annotations)
    splits = {"train": _by_class(images, "train"), "val": test}
    for split, found in splits.items():
        if not found:
            raise DataError(f"{place} holds no images in {split}, expected the published folders; fetch it again.")
    folders = {split: listing.class_folders(f"{place}/{split}", found) for split, found in splits.items()}
    listing.check_classes(f"{place}/val", list(folders["train"]), list(folders["val"]))
    ordered = {split: [found[folder] for folder in folders[split].values()] for split, found in splits.items()}
    return tuple(folders["train"]), listing.take_turns(ordered["train"]), listing.take_turns(ordered["val"])


def _by_class(images: list[str], split: str) -> dict[str, list[str]]:
    """Images of `split/<class>/` and `split/<class>/images/`, by class."""
    found: dict[str, list[str]] = {}
    for name in images:
        parts = name.split("/")
        if parts[0] == split and (len(parts) == 3 or (len(parts) == 4 and parts[2] == "images")):
            found.setdefault(parts[1], []).append(name)
    return found


def _annotated(place: Path, images: list[str], annotations: str) -> dict[str, list[str]]:
    """Images of `val/images`, by the class that the annotations give them."""
    rows = [line.split("\t") for line in annotations.splitlines() if line.strip()]
    classes = {f"{_FLAT}/{row[0]}": composed(row[1].strip()) for row in rows if len(row) > 1}
    flat = [name for name in images if name.startswith(f"{_FLAT}/")]
    if not flat:
        # Some sort the images into class folders and leave the annotations where they were.
        return _by_class(images, "val")
    unmatched = sorted(set(flat) ^ set(classes))
    if unmatched:
        raise DataError(
            f"{place}/{_ANNOTATIONS} and the images in {_FLAT} do not match, {unmatched[0]} is in one only; "
            "fetch the archive again."
        )
    found: dict[str, list[str]] = {}
    for name in flat:
        found.setdefault(classes[name], []).append(name)
    return found
