"""Keeps the arrays of data sets that are slow to decode or to clean."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from scpl_jax.data.errors import ZIP_ERRORS
from scpl_jax.data.reading import open_file, readable

_LOGGER = logging.getLogger(__name__)
# Goes up whenever the file's layout or the decoding of any reader changes.
_FORMAT = 1


@runtime_checkable
class _Storable(Protocol):
    """A data set that a cache file can hold; `unpacked` meets missing parts with a KeyError or TypeError."""

    def packed(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...

    @classmethod
    def unpacked(cls, arrays: dict[str, np.ndarray], texts: dict[str, Any]) -> Any: ...


AnyDataset = TypeVar("AnyDataset", bound=_Storable)


def cached(
    kind: type[AnyDataset],
    build: Callable[[], AnyDataset],
    *,
    cache_dir: Path | None,
    reader: str,
    files: Iterable[str | Path],
    options: Any,
) -> AnyDataset:
    """Give a data set from the cache, or build it and put it there.

    Args:
        kind: class of the data set.
        build: makes the data set.
        cache_dir: the file lies in `datasets/` below this folder; None for no cache.
        reader: name and version of the reader; another one has another cache file.
        files: absolute paths of every file the data set is made of. A change of a name, size or modification
            time leads to another cache file.
        options: what the data set depends on besides, as JSON can hold it; part of the cache file's identity too.

    Returns:
        The data set. A damaged cache file is built again; a cache that cannot be written costs a warning.

    Raises:
        DataError: what `build` raises, or when one of the files is not there; nothing is cached then.
    """
    if cache_dir is None:
        return build()
    path = cache_dir / "datasets" / f"{_digest(reader, files, options)}.npz"
    found = _read(kind, path)
    if found is not None:
        return found
    dataset = build()
    _write(path, dataset)
    return dataset


def _digest(reader: str, files: Iterable[str | Path], options: Any) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, reader, options]).encode())
    for file in sorted(os.fspath(file) for file in files):
        with readable(file):
            status = os.stat(file)
        digest.update(f"\0{file}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _read(kind: type[AnyDataset], path: Path) -> AnyDataset | None:
    """The data set in a cache file, or None when there is none or it is damaged."""
    if not os.path.lexists(path):
        return None
    try:
        # A zip member carries a checksum, which numpy verifies as it reads: damage does not go unseen.
        with open_file(path) as file, np.load(file, allow_pickle=False) as stored:
            texts = json.loads(stored["texts"].item())
            arrays = {name: stored[name] for name in stored.files if name != "texts"}
        texts = {name: tuple(value) if isinstance(value, list) else value for name, value in dict(texts).items()}
        return kind.unpacked(arrays, texts)
    except (*ZIP_ERRORS, ValueError, KeyError, TypeError) as error:  # a DataError is a ValueError
        _LOGGER.warning("The cached data set %s cannot be read (%s) and is built again.", path, error)
        return None


def _write(path: Path, dataset: _Storable) -> None:
    arrays, texts = dataset.packed()
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and moved there at once, so that no other run ever sees half a file.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, texts=np.array(json.dumps(texts)), **arrays)
        os.replace(temporary, path)
    except OSError as error:
        _LOGGER.warning("The data set is not cached in %s (%s); it will be read again.", path.parent, error)
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
