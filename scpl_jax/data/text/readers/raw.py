"""Labelled raw texts, and reading them line by line without trust in what a file holds."""

import codecs
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path

from scpl_jax.data.errors import DataError
from scpl_jax.data.packed import UTF_16, unpackable
from scpl_jax.data.reading import is_file, open_file

# Far longer than any text of the known data sets; a longer line is no text, and would not fit into memory.
MAX_LINE_BYTES = 10_000_000
_REPLACEMENT = "\ufffd"


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


def byte_lines(file: BufferedReader, path: Path, most: int, holds: str) -> Iterator[bytes]:
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
        with unpackable(path):
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
            if number == 0 and line.startswith(UTF_16):
                raise DataError(f"{path} is UTF-16, expected UTF-8; save it as UTF-8.")
            yield replaced.decode(line if number else line.removeprefix(codecs.BOM_UTF8))


def find_file(folders: Sequence[Path], name: str) -> Path | None:
    """A file of this name in the first folder that has one."""
    return next((folder / name for folder in folders if is_file(folder / name)), None)
