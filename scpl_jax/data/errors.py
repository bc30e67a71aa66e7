"""The error that every function of this package raises for a mistake a user can make."""


class DataError(ValueError):
    """A data set cannot be used as asked for.

    The message is one sentence: what is wrong, with which file or option, what was found and what was
    expected, and how to put it right. A program can show it to its user as it stands.
    """
