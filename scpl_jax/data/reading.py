"""The only place where readers meet the file system: whatever it answers is a :class:`DataError` with the path.

Links are followed. A link that leads nowhere or round in circles is an error wherever something could lie behind it,
and never passed over: what is missing would be missing from the data set without a word.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from scpl_jax.data.errors import DataError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextlib.contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """What the file system refuses in a block, as one sentence.

    Args:
        path: what is read; the path that the file system names goes before it.

    Raises:
        DataError: in place of any `OSError`.

    Example:
        >>> with readable("pictures"):
        ...     raise OSError(5, "Input/output error")
        Traceback (most recent call last):
        scpl_jax.data.errors.DataError: pictures cannot be read (Input/output error); check it.
    """
    try:
        yield
    except OSError as error:
        refused = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else path
        reason, remedy = error.strerror or str(error) or type(error).__name__, "check it"
        with contextlib.suppress(OSError, ValueError):
            reason += f", it is a link to {os.readlink(refused)}"
            remedy = "restore what the link leads to, or remove the link"
        raise DataError(f"{refused} cannot be read ({reason}); {remedy}.") from error


def check_given(option: str, path: Path | None) -> None:
    """Check that a path that a user gave is there.

    Raises:
        DataError: when it is not, or may not be read.
    """
    try:
        there = path is None or os.access(path, os.R_OK)
    except ValueError:  # a NUL, or half a character
        there = False
    if not there:
        raise DataError(f"{option} {path} does not exist or cannot be read; name an existing one.")


def is_there(path: Path) -> bool:
    """Whether anything is there; see the module for links and errors."""
    return _mode(path) != 0


def is_file(path: Path) -> bool:
    """Whether a regular file is there; see the module for links and errors."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether a folder is there; see the module for links and errors."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """The kind of file and its permissions; 0 where there is nothing."""
    with readable(path):
        try:
            return os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
            if not os.path.exists(there):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(there)) from None
            return 0


def names_in(folder: Path) -> list[str]:
    """Names of what lies in a folder, sorted, without the hidden; see the module for errors."""
    with readable(folder):
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without the hidden; see the module for links and errors."""
    return [name for name in names_in(folder) if is_folder(folder / name)]


def open_file(path: Path | str) -> BufferedReader:
    """Open a regular file; anything else is refused, as a pipe or a device could be waited for without end.

    Raises:
        DataError: when it cannot be opened or read, or is no regular file.
    """
    with readable(path):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for matches, name in _KINDS if matches(mode)), "something else")
            raise DataError(f"{path} is {kind}, expected a file; remove it or name another one.")
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))


def read_file(path: Path) -> bytes:
    """The content of a regular file; see :func:`open_file`."""
    with open_file(path) as file, readable(path):
        return file.read()


def real_path(path: Path) -> Path:
    """The absolute path without links, but for circles of them."""
    return Path(os.path.realpath(path))
