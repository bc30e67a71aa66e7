"""Ctrl-C and SIGTERM: finish the step, save, stop."""

import signal
import types
from typing import Self


class Interrupt:
    """Remembers the first SIGINT or SIGTERM instead of ending the process; the second one ends it as usual.

    Example:
      >>> with Interrupt() as interrupt:
      ...     interrupt.received is None
      True
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, _: types.FrameType | None) -> None:
        self.received = number
        # Not what was there before: a process started in the background may have been told to ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM; 0 without one."""
        return 0 if self.received is None else 128 + self.received
