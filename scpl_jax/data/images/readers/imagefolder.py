"""Images in one folder for each class, the layout of torchvision's ImageFolder."""

import os
from pathlib import Path

from scpl_jax.data.dataset import Dataset
from scpl_jax.data.errors import DataError
from scpl_jax.data.images.readers import listing
from scpl_jax.data.images.readers.request import Request
from scpl_jax.data.reading import folders_in, is_folder, names_in, real_path

_LAYOUT = "a folder that holds train/<class>/* and test/<class>/* (or val/<class>/*)"


def load(request: Request) -> Dataset:
    """Read `train/<class>/*` and `test/<class>/*`, or `val/<class>/*` where there is no `test`.

    Both lie in `data_dir` itself or in the only folder in it that holds a `train`. Classes are the sorted
    folder names, see `class_folders`. Hidden files and files that are no images by their extension are passed over.
    Examples take turns: the first image of each class, the second of each, and so on, so that the first N are a
    balanced subset. Images become RGB; `image_size` resizes them, without it all must be of one size. Pixels stay as
    they are stored, whatever orientation EXIF data give; `note` says of how many images.

    Raises:
        DataError: for a missing folder or split, a class folder without images, test classes that differ
            from the training classes, a link that leads nowhere, an unreadable image, or images of several sizes.
    """
    root = real_path(_root(request.required_dir(_LAYOUT)))
    class_names, train = _list_split(root / "train")
    test_dir = root / "test" if is_folder(root / "test") else root / "val"
    if not is_folder(test_dir):
        raise DataError(
            f"`data_dir` {root} has a train folder but neither test nor val, expected one of them; add test "
            "images or split some off the training images."
        )
    test_names, test = _list_split(test_dir)
    listing.check_classes(test_dir, class_names, test_names)
    source = f"ImageFolder {root.name}"
    return listing.decode_listings(request, source=source, class_names=class_names, train=train, test=test)


def _root(data_dir: Path) -> Path:
    """The folder that holds `train`: `data_dir` itself or the only folder in it that does."""
    if not is_folder(data_dir):
        raise DataError(f"`data_dir` {data_dir} is a file, expected {_LAYOUT}; name the folder.")
    if is_folder(data_dir / "train"):
        return data_dir
    # Folders that can't be looked into may be anything, as the user named the one above them.
    candidates = [name for name in names_in(data_dir) if os.path.isdir(data_dir / name / "train")]
    if len(candidates) == 1:
        return data_dir / candidates[0]
    if candidates:
        raise DataError(
            f"`data_dir` {data_dir} holds {len(candidates)} folders with a train folder ({', '.join(candidates)}), "
            "expected one; name the one you mean."
        )
    raise DataError(f"`data_dir` {data_dir} holds no train folder, expected {_LAYOUT}; name such a folder.")


def _list_split(split_dir: Path) -> tuple[tuple[str, ...], listing.Listing]:
    """Sorted class names and the images of one split."""
    folders = listing.class_folders(split_dir, folders_in(split_dir))
    if not folders:
        raise DataError(f"{split_dir} holds no class folders, expected {_LAYOUT}; sort the images by class.")
    return tuple(folders), listing.take_turns([_class_files(split_dir / folder) for folder in folders.values()])


def _class_files(folder: Path) -> list[str]:
    """Sorted paths of the images directly in a folder."""
    found = [str(folder / name) for name in names_in(folder) if listing.is_image(name)]
    if not found:
        raise DataError(
            f"class folder {folder} holds no images, expected at least one file ending in "
            f"{', '.join(listing.IMAGE_EXTENSIONS)}; add images or remove the folder."
        )
    return found
