"""Word vectors in the text format of GloVe and fastText."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from scpl_jax.data.errors import DataError
from scpl_jax.data.text_readers.raw import byte_lines

_MAX_LINE_BYTES = 1_000_000


def read_vectors(
    path: Path, words: Sequence[str], size: int | None = None, progress: Callable[[int], None] = lambda done: None
) -> dict[str, np.ndarray]:
    """The vectors of some words, from a file that is read line by line.

    A line holds a word and its values, parted by blanks; fastText's first line, which tells how many there are, is
    passed over. Of a word that occurs twice the first line counts.

    Args:
        path: the file.
        words: the words wanted.
        size: length that the vectors must have; None for that of the first one.
        progress: called with the number of bytes read since the last call.

    Returns:
        The words that were found, each with its `(D,)` float32 vector.

    Raises:
        DataError: when the file cannot be read, a line is no vector, or vectors are of another length.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "vectors.txt")
        ...     _ = path.write_text("the 1 2\\ncat 3 4\\n")
        ...     read_vectors(path, ["cat", "dog"])
        {'cat': array([3., 4.], dtype=float32)}
    """
    if not os.access(path, os.R_OK):
        raise DataError(f"--word-vectors {path} cannot be read; name an existing file.")
    wanted = {word.encode(): word for word in words}
    found: dict[str, np.ndarray] = {}
    for number, line in enumerate(byte_lines(path, _MAX_LINE_BYTES, "a word and its values"), start=1):
        progress(len(line))
        word, *values = line.rstrip(b" \r\n").split(b" ")
        if number == 1 and len(values) == 1 and word.isdigit() and values[0].isdigit():
            continue
        if not word and not values:
            continue
        # A few words of GloVe's largest file hold blanks; none of them is wanted.
        size = size or len(values)
        if len(values) < size or (number < 3 and len(values) != size):
            raise DataError(
                f"line {number} of {path} has {len(values)} values, expected {size}; give --embedding-size "
                "the length of the vectors, or another file."
            )
        if word not in wanted or wanted[word] in found or len(values) != size:
            continue
        try:
            vector = np.array(values, np.float32)
        except ValueError as error:
            raise DataError(f"line {number} of {path} is no word with {size} numbers; check it.") from error
        if not np.isfinite(vector).all():
            raise DataError(f"line {number} of {path} has values that are not finite; correct it.")
        found[wanted[word]] = vector
    if size is None:
        raise DataError(f"--word-vectors {path} holds no vectors, expected a word and its values a line.")
    return found
