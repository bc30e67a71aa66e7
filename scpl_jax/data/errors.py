"""The error that every function of this package raises for a mistake a user can make, and what archives raise."""

import zipfile
import zlib

# What reading a damaged zip archive raises; RuntimeError: members that look encrypted, of a newer version or compressed
# in an unknown way.
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, OSError, RuntimeError, zlib.error)


class DataError(ValueError):
    """A data set cannot be used as asked for.

    The message is one sentence: what is wrong, with which file or option, what was found and what was
    expected, and how to put it right. A program can show it to its user as it stands.
    """
