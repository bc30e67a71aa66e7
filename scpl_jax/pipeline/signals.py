"""Hold signals back while what they would interrupt must be done as a whole."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

# Without the module signal's conversion to enumerations, which takes longer than the rest of a call: the private module
# behind it, where there is one.
try:
    import _signal as _raw
except ImportError:
    _raw = signal

# Those that a handler in Python may be set for, but for faults of the program itself, which must not go on.
_FAULTS = {"SIGSEGV", "SIGFPE", "SIGILL", "SIGBUS", "SIGABRT", "SIGKILL", "SIGSTOP"}
_SIGNALS = sorted(int(number) for number in signal.valid_signals() if getattr(number, "name", "") not in _FAULTS)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let no handler of a signal, such as that of Ctrl-C, run before the block has ended; then it runs.

    A second signal of the same kind does not wait: whoever presses Ctrl-C twice means it. Handlers run in the main
    thread only, so in other threads there is nothing to hold back.

    Example:
      >>> seen = []
      >>> before = signal.signal(signal.SIGUSR1, lambda *_: seen.append("handled"))
      >>> with held_back():
      ...     signal.raise_signal(signal.SIGUSR1)
      ...     seen.append("done")
      >>> seen, _ = (seen, signal.signal(signal.SIGUSR1, before))
      >>> seen
      ['done', 'handled']
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Any] = {}
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if number in received:
            _raw.signal(number, handlers[number])
            signal.raise_signal(number)
        else:
            received.append(number)

    try:
        for number in _SIGNALS:
            handler = _raw.getsignal(number)
            if callable(handler):  # not where a signal ends the process, is ignored, or is handled outside of Python
                handlers[number] = handler
                _raw.signal(number, note)
        yield
    finally:
        _put_back(list(handlers.items()))
        for number in received:
            signal.raise_signal(number)


def _put_back(handlers: list[tuple[int, Any]]) -> None:
    """Set all handlers, even if one of those that are set already raises meanwhile."""
    try:
        while handlers:
            _raw.signal(*handlers[-1])
            handlers.pop()
    finally:
        if handlers:
            _put_back(handlers)
