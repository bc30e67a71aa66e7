"""The error that every function of this package raises for a mistake a user can make, and what archives raise."""

import re
import zipfile
import zlib
from collections.abc import Iterable

# What reading a damaged zip archive raises; RuntimeError: members that look encrypted, of a newer version or compressed
# in an unknown way.
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, OSError, RuntimeError, zlib.error)

_BREAKS = re.compile("[ \t]*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\\s*")
# What a terminal obeys instead of showing it, and halves of characters, which no stream takes.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""A text in one line that any terminal shows: line breaks as blanks, other control characters spelled out.

    Bytes of a file's name that are no UTF-8 are spelled out, too.

    Example:
        >>> printable("of what\nkind"), printable("caf\udce9\x1b")
        ('of what kind', 'caf\\xe9\\x1b')
    """
    return _UNPRINTABLE.sub(_spelled, _BREAKS.sub(" ", text))


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else found[0].encode("unicode_escape").decode()


def reason(error: Exception) -> str:
    """The error's text without line breaks and full stop, or its kind when it has none, to fit into one sentence.

    Example:
        >>> reason(OSError("no such\\nfile.")), reason(KeyError())
        ('no such file', 'KeyError')
    """
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of some names, for a sentence.

    Example:
        >>> some("abc", most=2)
        'a, b and 1 more'
    """
    first, rest = (all_names := list(names))[:most], len(all_names) - most
    return (", ".join(first) or "none") + (f" and {rest:,} more" if rest > 0 else "")


class DataError(ValueError):
    """A data set cannot be used as asked for.

    The message is one sentence: what is wrong, with which file or argument, what was found and what was expected, and
    how to put it right. Arguments stand between backticks, which a command line turns into its options. A program can
    show it to its user as it stands: names and contents of files that it quotes are made printable.

    Args:
        message: the sentence.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
