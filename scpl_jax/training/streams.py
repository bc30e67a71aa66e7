"""Standard output and standard error such that nothing that is said can end a run.

A log file may lie on a disk that is full, the reader of a pipe may have gone, a daemon may have started the process
without any stream, and a stream may not know the letters of a name. What can't be written is dropped, and that is said
once, on the other stream.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from scpl_jax.training.writing import reason_of


class LostOutputError(Exception):
    """Output that is the result of a command could not be written."""


class LastingStream:
    r"""A text stream that takes everything; all else it leaves to the stream that it writes to.

    Args:
      stream: what it writes to; None, as in a process that was started without it, for nowhere.
      name: what it is called where it fails.

    Attributes:
      is_result: whether what is written is all that the command gives: then a failure is raised.
      failed: the first failure, or None.

    Example:
      >>> import io
      >>> file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
      >>> stream = LastingStream(file)
      >>> print("Zoë", file=stream, flush=True)
      >>> file.buffer.getvalue()
      b'Zo\\xeb\n'
      >>> file.close()
      >>> print("more", file=stream, flush=True)
      >>> stream.failed
      ValueError('I/O operation on closed file.')
    """

    def __init__(self, stream: Any, name: str = "a stream"):
        self._own = open(os.devnull, "w") if stream is None else None  # noqa: SIM115
        self._stream: Any = self._own if stream is None else stream
        self._name = name
        self.is_result = False
        self.failed: OSError | ValueError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def absent(self) -> bool:
        """Whether there is nothing to write to."""
        return self._own is not None

    def isatty(self) -> bool:
        """Whether it is a terminal; a closed stream is none."""
        try:
            return bool(self._stream.isatty())
        except (OSError, ValueError):
            return False

    def write(self, text: str) -> int:
        """Write a text, or as much of it as can be."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                code = getattr(self._stream, "encoding", None) or "ascii"
                self._stream.write(text.encode(code, "backslashreplace").decode(code))
        except (OSError, ValueError) as error:  # ValueError: somebody has closed it
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Bring what was written to its place."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def _fail(self, error: OSError | ValueError) -> None:
        first, self.failed = self.failed is None, self.failed or error
        if self.is_result:
            raise LostOutputError(f"{self._name} can't be written ({reason_of(error)})") from error
        other = sys.stderr if self is sys.stdout else sys.stdout
        if first and isinstance(other, LastingStream) and not other.is_result:
            print(
                f"{self._name} can't be written ({reason_of(error)}); the run goes on without", file=other, flush=True
            )

    def finish(self) -> None:
        """Write what is left. What can't be is dropped, or Python would fail with it at its end."""
        self.is_result = False
        self.flush()
        with contextlib.suppress(OSError, ValueError, AttributeError):  # no number: a stream of Python's alone
            if self.failed is not None and (number := self._stream.fileno()) in (1, 2):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)
                self._stream.flush()
        if self._own is not None:
            self._own.close()


def lasting(stream: Any) -> Any:
    """The stream as one that takes everything; the same one if it does.

    Example:
      >>> print("said", file=lasting(sys.stdout))
      said
    """
    return stream if isinstance(stream, LastingStream) else LastingStream(stream)


@contextlib.contextmanager
def lasting_streams() -> Iterator[LastingStream]:
    """For the time of the block both streams take everything; gives standard output."""
    # Open nothing under the numbers of standard streams that are closed: whatever C code prints would go into it.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    before = sys.stdout, sys.stderr
    output, errors = LastingStream(sys.stdout, "standard output"), LastingStream(sys.stderr, "standard error")
    sys.stdout, sys.stderr = output, errors
    try:
        yield output
    finally:
        output.finish()
        errors.finish()
        sys.stdout, sys.stderr = before
