"""Errors that a user can cause."""


class RunError(ValueError):
    """A run can't be started or continued; the message is one sentence that says why and what to do.

    In this room it names arguments between backticks, which a command line turns into its options; commands name the
    options themselves.
    """
