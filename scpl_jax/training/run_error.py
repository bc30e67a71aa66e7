"""Errors that a user can cause."""


class RunError(ValueError):
    """A run can't be started or continued; the message is one sentence that says why and what to do."""
