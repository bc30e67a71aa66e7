"""CIFAR-10 and CIFAR-100 in the archives published by their authors, or through TFDS."""

import io
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scpl_jax.data.dataset import Dataset
from scpl_jax.data.errors import DataError, reason
from scpl_jax.data.images.decoding import resize
from scpl_jax.data.images.readers import tfds
from scpl_jax.data.images.readers.request import Arrays, Request
from scpl_jax.data.reading import is_file, is_folder, open_file, read_file, real_path

_READER = "cifar-1"
_PIXELS = 3 * 32 * 32
_CHANNELS_FIRST = (-1, 3, 32, 32)


@dataclass(frozen=True)
class _Archive:
    """One published archive, `name`.tar.gz, and what is read from it."""

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    names_key: str = ""
    labels_key: str = ""
    label_bytes: int = 1

    @property
    def is_pickled(self) -> bool:
        return bool(self.labels_key)


_FIVE = tuple(f"data_batch_{number}" for number in range(1, 6))
_FIVE_BINARY = tuple(f"{name}.bin" for name in _FIVE)
_ARCHIVES = {
    "cifar10": (
        _Archive(
            "cifar-10-python", "cifar-10-batches-py", _FIVE, "test_batch", "batches.meta", "label_names", "labels"
        ),
        _Archive("cifar-10-binary", "cifar-10-batches-bin", _FIVE_BINARY, "test_batch.bin", "batches.meta.txt"),
    ),
    "cifar100": (
        _Archive("cifar-100-python", "cifar-100-python", ("train",), "test", "meta", "fine_label_names", "fine_labels"),
        _Archive(
            "cifar-100-binary", "cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", label_bytes=2
        ),
    ),
}
_MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
_STD = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2673, 0.2564, 0.2762)}
# A pickle may call whatever it names, so only what rebuilds arrays may be named. numpy moved its `core` to
# `_core` in 2.0; files written by either are in use.
_ALLOWED = frozenset(
    {
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
    }
)


@dataclass(frozen=True)
class _Members:
    """The files of some base names that lie together in a folder or a tar archive, which is the place."""

    place: Path
    wanted: tuple[str, ...]

    @property
    def is_archive(self) -> bool:
        """Whether the files lie in a tar archive."""
        return is_file(self.place)

    @property
    def files(self) -> list[Path]:
        """The files on disk that the content depends on."""
        return [self.place] if self.is_archive else [self.place / name for name in self.wanted]

    def read(self) -> dict[str, bytes]:
        """Content of each wanted file; a tar archive is read as it is, and nothing is written to disk."""
        if self.is_archive:
            found = self._read_archive()
        else:
            found = {name: read_file(file) for name in self.wanted if is_file(file := self.place / name)}
        for name in self.wanted:
            if name not in found:
                raise DataError(f"{self.place} holds no {name}; fetch the official archive again.")
        return found

    def _read_archive(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        reading = "its first member"
        try:
            # Members come one after another, so a compressed archive is unpacked once only.
            with open_file(self.place) as file, tarfile.open(fileobj=file, mode="r|gz") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if name not in self.wanted or not member.isfile():
                        continue
                    reading = f"its member {name}"
                    content = archive.extractfile(member)
                    assert content is not None  # a regular file has content
                    found[name] = content.read()
                    if len(found[name]) != member.size:
                        raise EOFError("the file ends too early")
                    reading = f"what follows its member {name}"
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise DataError(
                f"{self.place} is damaged at {reading} ({str(error).rstrip('.')}); fetch the official archive again."
            ) from error
        return found


def _find_members(data_dir: Path, archive: _Archive) -> _Members | None:
    """Files of a published archive: in the folder extracted from it if there is one, else in itself, else None.

    `data_dir` holds the archive or the folder, or is one of the two itself.
    """
    packed, folder = f"{archive.name}.tar.gz", archive.folder
    wanted = (*archive.train, archive.test, archive.names)
    if is_file(data_dir):
        return _Members(data_dir, wanted) if data_dir.name == packed else None
    if is_folder(data_dir / folder):
        return _Members(data_dir / folder, wanted)
    if data_dir.name == folder or any(is_file(data_dir / name) for name in wanted):
        return _Members(data_dir, wanted)
    return _Members(data_dir / packed, wanted) if is_file(data_dir / packed) else None


def load(request: Request) -> Dataset:
    """Read CIFAR-10 or CIFAR-100 (fine labels) from `data_dir`, else through TFDS.

    In `data_dir` the python and then the binary version are looked for, extracted or as the archive, which is
    read without extracting it. Mean and standard deviation are the published ones. The order of the examples
    is the official one, whatever they are read from.

    Raises:
        DataError: when a file is missing or damaged, or TFDS can neither read nor prepare the data set.
    """
    official = load_official(request)
    return official if official is not None else load_prepared(request)


def load_official(request: Request) -> Dataset | None:
    """Read the official files in `data_dir`, or give None when there are none.

    Raises:
        DataError: when a file is missing or damaged.
    """
    if request.data_dir is None:
        return None
    for archive in _ARCHIVES[request.name]:
        if (members := _find_members(real_path(request.data_dir), archive)) is not None:
            return _read(request, archive, members)
    return None


def load_prepared(request: Request) -> Dataset:
    """Read what TFDS has prepared; where it has not, download and prepare it first.

    Raises:
        DataError: as `scpl_jax.data.images.readers.tfds.load`.
    """
    return tfds.load(request, request.name, partial(_dataset, request, "TensorFlow Datasets"))


def _read(request: Request, archive: _Archive, members: _Members) -> Dataset:
    def build() -> Dataset:
        contents = members.read()
        place = members.place
        train = [_batch(contents[name], place / name, archive) for name in archive.train]
        test = _batch(contents[archive.test], place / archive.test, archive)
        class_names = _class_names(contents[archive.names], place / archive.names, archive)
        images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
        return _dataset(request, f"official files {place.name}", (images, labels), test, class_names)

    return request.cached(build, _READER, members.files) if members.is_archive else build()


def _dataset(request: Request, source: str, train: Arrays, test: Arrays, class_names: tuple[str, ...]) -> Dataset:
    train, test = ((resize(images, request.image_size), labels) for images, labels in (train, test))
    return request.dataset(source, train, test, class_names, mean=_MEAN[request.name], std=_STD[request.name])


def _batch(content: bytes, path: Path, archive: _Archive) -> Arrays:
    if archive.is_pickled:
        pixels, labels = _pickled(content, path, archive.labels_key)
    else:
        pixels, labels = _binary(content, path, archive.label_bytes)
    images = pixels.reshape(_CHANNELS_FIRST).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int32)


def _pickled(content: bytes, path: Path, labels_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `(N, 3072)` uint8 and labels `(N,)` of a batch of the python version."""
    batch = _load_arrays(content, str(path))
    pixels, labels = _entry(batch, "data", path), np.asarray(_entry(batch, labels_key, path))
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(
            f"{path} holds data of {found}, expected uint8 (N, {_PIXELS}); fetch the official archive again."
        )
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds {len(pixels)} images but labels of {labels.dtype} {labels.shape}, expected one "
            "whole number for each image; fetch the official archive again."
        )
    return pixels, labels


def _binary(content: bytes, path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `(N, 3072)` and labels `(N,)`, uint8, of a batch of the binary version."""
    length = label_bytes + _PIXELS
    if not content or len(content) % length:
        raise DataError(
            f"{path} is {len(content)} bytes long, expected a multiple of {length}; it is damaged, "
            "so fetch the official archive again."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    # CIFAR-100 has the coarse label before the fine one.
    return records[:, label_bytes:], records[:, label_bytes - 1]


def _class_names(content: bytes, path: Path, archive: _Archive) -> tuple[str, ...]:
    if not archive.is_pickled:
        return tuple(content.decode(errors="replace").split())
    names = _entry(_load_arrays(content, str(path)), archive.names_key, path)
    if not isinstance(names, list | tuple):
        raise DataError(f"{path} holds no list of class names; fetch the official archive again.")
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names)


def _entry(batch: object, key: str, path: Path) -> object:
    """Entry of a pickled dict; its keys are bytes when Python 2 wrote it."""
    if isinstance(batch, dict):
        for spelling in (key.encode(), key):
            if spelling in batch:
                return batch[spelling]
    raise DataError(f"{path} has no entry {key}; fetch the official archive again.")


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for `codecs.encode`, a call of which is how Python 3 writes bytes for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if module.startswith("numpy.core"):
            module = module.replace("numpy.core", "numpy._core", 1)
        return super().find_class(module, name)


def _load_arrays(content: bytes, name: str) -> Any:
    """Unpickle arrays, numbers and strings in dicts, lists and tuples, nothing else; those of Python 2 are bytes."""
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    # A damaged pickle makes the unpickler raise nearly anything.
    except Exception as error:
        raise DataError(
            f"{name} is no intact pickle of arrays ({reason(error)}); fetch the official archive again."
        ) from error
