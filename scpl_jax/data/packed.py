"""Text files that may be compressed."""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scpl_jax.data.errors import ZIP_ERRORS, DataError, some
from scpl_jax.data.reading import open_file, readable

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_PACKED: dict[bytes, Callable[[Any], Any]] = {
    rb"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    rb"BZh[1-9]1AY&SY": bz2.BZ2File,
    rb"\xfd7zXZ\0": lzma.LZMAFile,
    rb"PK\x03\x04": lambda file: _only_member(zipfile.ZipFile(file)),
}
_FOREIGN = {
    rb"\xff\xfe|\xfe\xff": "UTF-16 text",
    rb"\x80[\x02-\x05]": "a pickle",
    rb"\x93NUMPY": "a numpy array",
    rb"\xba\x16\x4f\x2f": "a fastText model",
    rb"\x89HDF": "an HDF5 file",
    rb"\x28\xb5\x2f\xfd": "packed by Zstandard",
    rb"(?s).*\0": "a binary file",
}


@contextlib.contextmanager
def unpackable(path: Path | str) -> Iterator[None]:
    """What goes wrong in a block that reads a compressed file, as one sentence.

    Raises:
        DataError: in place of what the file system and unpacking raise.
    """
    try:
        with readable(path):
            yield
    except (*ZIP_ERRORS, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be unpacked ({str(error).rstrip('.')}); fetch it again.") from error


@contextlib.contextmanager
def open_text(path: Path, option: str) -> Iterator[tuple[io.BufferedReader, io.BufferedReader]]:
    """Open a text file that may be compressed by gzip, bzip2 or xz, or lie alone in a zip archive.

    The content tells, not the name. A byte order mark is passed over.

    Args:
        path: the file.
        option: the argument that named it, between backticks, for errors.

    Yields:
        The file as text in bytes, and the file on disk, whose position tells how far reading has got.

    Raises:
        DataError: when the file cannot be opened or is no text in UTF-8, as far as its beginning tells.
    """
    with open_file(path) as disk, contextlib.ExitStack() as opened:
        with unpackable(path):
            start = disk.peek(16)
            unpack = next((unpack for magic, unpack in _PACKED.items() if re.match(magic, start)), None)
            file: Any = disk
            if unpack is not None:
                file = io.BufferedReader(opened.enter_context(unpack(disk)))
            start = file.peek(io.DEFAULT_BUFFER_SIZE)
            if kind := next((kind for magic, kind in _FOREIGN.items() if re.match(magic, start)), None):
                raise DataError(
                    f"{option} {path} is {kind}, expected lines of UTF-8 text, packed by gzip, bzip2, xz or zip or "
                    "not at all; convert it."
                )
            if start.startswith(codecs.BOM_UTF8):
                file.read(len(codecs.BOM_UTF8))
        yield file, disk


def _only_member(archive: zipfile.ZipFile) -> Any:
    names = [member.filename for member in archive.infolist() if not member.is_dir()]
    if len(names) != 1:
        raise DataError(
            f"{archive.filename} holds {len(names)} files ({some(names)}), expected one; unpack the one you mean."
        )
    return archive.open(names[0])
