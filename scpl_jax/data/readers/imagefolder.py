"""Images in one folder for each class, the layout of torchvision's ImageFolder."""

from pathlib import Path

from scpl_jax.data.dataset import Dataset
from scpl_jax.data.errors import DataError
from scpl_jax.data.readers.listing import (
    IMAGE_EXTENSIONS,
    Listing,
    check_classes,
    decode_listings,
    is_image,
    take_turns,
)
from scpl_jax.data.readers.request import Request

_LAYOUT = "a folder that holds train/<class>/* and test/<class>/* (or val/<class>/*)"


def load(request: Request) -> Dataset:
    """Read `train/<class>/*` and `test/<class>/*`, or `val/<class>/*` where there is no `test`.

    Both lie in `data_dir` itself or in the only folder in it that holds a `train`. Classes are the sorted
    folder names. Hidden files and files that are no images by their extension are passed over. Examples take
    turns: the first image of each class, the second of each, and so on, so that the first N are a balanced
    subset. Images become RGB; `image_size` resizes them, without it all must be of one size.

    Raises:
        DataError: for a missing folder or split, a class folder without images, test classes that differ
            from the training classes, an unreadable image, or images of several sizes.
    """
    root = _root(request.required_dir(_LAYOUT)).resolve()
    class_names, train = _list_split(root / "train")
    test_dir = root / "test" if (root / "test").is_dir() else root / "val"
    if not test_dir.is_dir():
        raise DataError(
            f"--data-dir {root} has a train folder but neither test nor val, expected one of them; add test "
            "images or split some off the training images."
        )
    test_names, test = _list_split(test_dir)
    check_classes(test_dir, class_names, test_names)
    return decode_listings(
        request,
        source=f"ImageFolder {root.name}",
        class_names=class_names,
        train=train,
        test=test,
        image_size=request.image_size,
    )


def _root(data_dir: Path) -> Path:
    """The folder that holds `train`: `data_dir` itself or the only folder in it that does."""
    if not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir} is a file, expected {_LAYOUT}; name the folder.")
    if (data_dir / "train").is_dir():
        return data_dir
    candidates = sorted(entry for entry in _visible(data_dir) if (entry / "train").is_dir())
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(candidate.name for candidate in candidates)
        raise DataError(
            f"--data-dir {data_dir} holds {len(candidates)} folders with a train folder ({names}), expected "
            "one; name the one you mean."
        )
    raise DataError(f"--data-dir {data_dir} holds no train folder, expected {_LAYOUT}; name such a folder.")


def _list_split(split_dir: Path) -> tuple[tuple[str, ...], Listing]:
    """Sorted class names and the images of one split."""
    class_names = tuple(sorted(entry.name for entry in _visible(split_dir) if entry.is_dir()))
    if not class_names:
        raise DataError(f"{split_dir} holds no class folders, expected {_LAYOUT}; sort the images by class.")
    return class_names, take_turns([_class_files(split_dir / name) for name in class_names])


def _class_files(folder: Path) -> list[str]:
    """Sorted paths of the images directly in a folder."""
    found = sorted(str(entry) for entry in _visible(folder) if is_image(entry.name))
    if not found:
        raise DataError(
            f"class folder {folder} holds no images, expected at least one file ending in "
            f"{', '.join(IMAGE_EXTENSIONS)}; add images or remove the folder."
        )
    return found


def _visible(folder: Path) -> list[Path]:
    """Entries of a folder whose names do not begin with a dot."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
