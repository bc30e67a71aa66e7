"""Word vectors in the text format of GloVe and fastText."""

import os
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path

import numpy as np

from scpl_jax.data.errors import DataError
from scpl_jax.data.reading import check_given
from scpl_jax.data.text.readers.raw import byte_lines, open_text
from scpl_jax.data.text.words import composed

_MAX_LINE_BYTES = 1_000_000


def read_vectors(
    path: Path, words: Sequence[str], size: int | None = None, progress: Callable[[int], None] = lambda done: None
) -> dict[str, np.ndarray]:
    """The vectors of some words, from a file that is read line by line.

    A line holds a word and its values, parted by blanks or tabs; fastText's first line, which tells how many vectors of
    how many values there are, is checked. The file may be packed by gzip, bzip2, xz or zip and begin with a byte order
    mark. Words are equal however Unicode composes their characters. Of a word that occurs twice the first line counts.

    Args:
        path: the file.
        words: the words wanted.
        size: length that the vectors must have; None for that of the first one.
        progress: called with the number of bytes of the file, packed as it is, read since the last call.

    Returns:
        The words that were found, each with its `(D,)` float32 vector.

    Raises:
        DataError: when the file cannot be read, is no text, or holds none of the words; when a line is no vector,
            vectors are of another length, or there are fewer than the first line says.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "vectors.txt")
        ...     _ = path.write_text("the 1 2\\ncat 3 4\\n")
        ...     read_vectors(path, ["cat", "dog"])
        {'cat': array([3., 4.], dtype=float32)}
    """
    check_given("`path`", path)
    with open_text(path, "`path`") as (file, disk):
        numbered = enumerate(_told(byte_lines(file, path, _MAX_LINE_BYTES, "a word and its values"), disk, progress), 1)
        return _found(path, numbered, {_composed(word): word for word in words}, size)


def _found(
    path: Path, numbered: Iterator[tuple[int, bytes]], wanted: dict[bytes, str], size: int | None
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    promised, count = 0, 0
    for number, line in numbered:
        word, _, rest = line.rstrip(b" \t\r\n").replace(b"\t", b" ").partition(b" ")
        values = rest.split()
        if number == 1 and len(values) == 1 and word.isdigit() and values[0].isdigit():
            promised, length = int(word[:18]), int(values[0][:18])
            if size not in (None, length):
                raise DataError(
                    f"{path} has vectors of {length} values by its first line, expected {size}; give "
                    f"`size` {length}, or another file."
                )
            size = length
            continue
        if not word and not values:
            continue
        count += 1
        size = size or len(values) or 1
        # A few words of GloVe's largest file hold blanks; none of them is wanted.
        if len(values) < size or (count < 3 and len(values) != size):
            raise DataError(
                f"line {number} of {path} has {len(values)} values, expected {size}; give `size` "
                "the length of the vectors, or another file."
            )
        key = word if word.isascii() else _composed(word.decode(errors="replace"))
        if key not in wanted or wanted[key] in found or len(values) != size:
            continue
        try:
            vector = np.array(values, np.float32)
        except ValueError as error:
            raise DataError(f"line {number} of {path} is no word with {size} numbers; check it.") from error
        if not np.isfinite(vector).all():
            raise DataError(f"line {number} of {path} has values that are not finite; correct it.")
        found[wanted[key]] = vector
    if count == 0:
        raise DataError(f"`path` {path} holds no vectors, expected a word and its values a line.")
    if count < promised:
        raise DataError(
            f"{path} holds {count:,} vectors but {promised:,} by its first line, so it was cut off; fetch it again, or "
            "correct that line."
        )
    if wanted and not found:
        raise DataError(
            f"`path` {path} has a vector for none of the {len(wanted):,} words of the texts; give vectors of "
            "their language, of words in lower case."
        )
    return found


def _composed(word: str) -> bytes:
    return composed(word).encode(errors="replace")


def _told(lines: Iterator[bytes], disk: BufferedReader, progress: Callable[[int], None]) -> Iterator[bytes]:
    """The same lines; how far the file on disk was read is told now and then, and at the end."""
    done = 0
    for number, line in enumerate(lines):
        yield line
        # Where an archive keeps its table at the end, the position is there at first.
        if number % 256 == 255 and (at := disk.tell()) > done:
            progress(at - done)
            done = at
    progress(os.fstat(disk.fileno()).st_size - done)
