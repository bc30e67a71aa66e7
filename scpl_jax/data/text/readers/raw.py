"""Labelled raw texts, and reading files line by line, packed ones too, without trust in what they hold."""

import bz2
import codecs
import contextlib
import dataclasses
import gzip
import io
import itertools
import lzma
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scpl_jax.data.errors import ZIP_ERRORS, DataError, some
from scpl_jax.data.reading import is_file, open_file, readable

# Far longer than any text of the known data sets; a longer line is no text, and would not fit into memory.
MAX_LINE_BYTES = 10_000_000
_REPLACEMENT = "\ufffd"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

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


@dataclasses.dataclass
class Replaced:
    """Counts the characters that were no UTF-8 and were replaced."""

    characters: int = 0

    def decode(self, data: bytes) -> str:
        r"""Bytes as text; what is no UTF-8 becomes the replacement character and is counted.

        Example:
            >>> counter = Replaced()
            >>> counter.decode(b"caf\xe9"), counter.characters
            ('caf�', 1)
        """
        try:
            return data.decode()
        except UnicodeDecodeError:
            text = data.decode(errors="replace")
            self.characters += text.count(_REPLACEMENT) - data.count(_REPLACEMENT.encode())
            return text


@dataclasses.dataclass(frozen=True)
class RawTexts:
    """Texts with their labels, as a reader found them.

    Attributes:
        texts: the texts.
        labels: class index of each.
    """

    texts: Sequence[str]
    labels: Sequence[int]


@dataclasses.dataclass(frozen=True)
class RawDataset:
    """What a reader gives.

    Attributes:
        source: where the texts came from, for people to read.
        class_names: name of each class.
        train: training texts.
        test: test texts.
        replaced: characters that were no UTF-8.
        note: what a user should know about how the data set was chosen or read; empty when nothing.
    """

    source: str
    class_names: tuple[str, ...]
    train: RawTexts
    test: RawTexts
    replaced: int = 0
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set was found, before anything of it is read.

    Attributes:
        files: all files that it is made of; none where it is made by rules.
        read: reads it.
    """

    files: Sequence[Path]
    read: Callable[[], RawDataset]


@contextlib.contextmanager
def _unpackable(path: Path | str) -> Iterator[None]:
    """What goes wrong in a block that reads a compressed file, as one sentence: a :class:`DataError`."""
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
        with _unpackable(path):
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


def byte_lines(file: io.BufferedReader, path: Path, most: int, holds: str) -> Iterator[bytes]:
    """The lines of a file with their line ends, none of them longer than `most` bytes.

    Args:
        file: the file; it may be unpacked while it is read.
        path: its path, for errors.
        most: longest line, a multiple of a million bytes.
        holds: what a line should be, for the error.

    Raises:
        DataError: when the file cannot be read or unpacked, or has a longer line.
    """
    for number in itertools.count(1):
        with _unpackable(path):
            line = file.readline(most + 1)
        if not line:
            return
        if len(line) > most:
            raise DataError(
                f"line {number} of {path} is longer than {most // 1_000_000} MB, expected {holds}; check that this is "
                "the right file."
            )
        yield line


def lines(path: Path, replaced: Replaced) -> Iterator[str]:
    """The lines of a file with their line ends, a byte order mark left out.

    Raises:
        DataError: when the file cannot be read, is UTF-16, or has a line longer than 10 MB.
    """
    with open_file(path) as file:
        for number, line in enumerate(byte_lines(file, path, MAX_LINE_BYTES, "a text a line")):
            if number == 0 and line.startswith(_UTF_16):
                raise DataError(f"{path} is UTF-16, expected UTF-8; save it as UTF-8.")
            yield replaced.decode(line if number else line.removeprefix(codecs.BOM_UTF8))


def find_file(folders: Sequence[Path], name: str) -> Path | None:
    """A file of this name in the first folder that has one."""
    return next((folder / name for folder in folders if is_file(folder / name)), None)
