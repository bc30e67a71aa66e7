"""Paths as a user gives them: `~` is the home directory, and there may be none."""

import logging
from pathlib import Path

from scpl_jax.data.errors import DataError

DEFAULT_CACHE_DIR = Path("~/.cache/scpl_jax")

_LOGGER = logging.getLogger(__name__)
_said: set[str] = set()


def expand(path: Path | str, option: str) -> Path:
    """The path with `~` and `~user` replaced by the home directory.

    Args:
        path: as it was given.
        option: what it was given as, for the error: an argument between backticks, or an option of a command.

    Raises:
        DataError: when the home directory is not known.

    Example:
        >>> expand("data/cifar", "`data_dir`")
        PosixPath('data/cifar')
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # neither HOME nor an entry of the user in the system's list
        home = Path(path).parts[0]
        raise DataError(f"{option} {path}: the home directory {home} is not known; give the whole path.") from None


def find_cache_dir(asked: Path | str | None) -> Path | None:
    """The folder for prepared data and compiled programs: the one asked for, by default `~/.cache/scpl_jax`.

    Returns:
        The folder, or None where nobody asked for one and the home directory is not known, as in a container whose
        user has no entry; a warning says so, once.

    Raises:
        DataError: when the one asked for begins with a home directory that is not known.
    """
    if asked is not None:
        return expand(asked, "`cache_dir`")
    try:
        return expand(DEFAULT_CACHE_DIR, "`cache_dir`")
    except DataError:
        say_once("There is no home directory, so nothing is cached; `cache_dir` names a folder for it.")
        return None


def say_once(sentence: str) -> None:
    """Warn, but not of the same thing again."""
    if sentence not in _said:
        _said.add(sentence)
        _LOGGER.warning(sentence)
