"""Ctrl-C, SIGTERM and a closed terminal: finish the step, save, stop."""

import os
import signal
import types
from typing import Any, Self

import jax

from scpl_jax.pipeline import processes


class Interrupt:
    """Remembers the first SIGINT or SIGTERM instead of ending the process; the second one ends it as usual.

    A closed terminal (SIGHUP) counts as asked to stop, too, unless the process was told to ignore it, as by ``nohup``;
    what it would have printed from then on is dropped, since writing to a terminal that is gone is an error.

    Example:
      >>> with Interrupt() as interrupt:
      ...     interrupt.received is None
      True
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, signal._HANDLER] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._hang_up)
        self._terminals = [number for number in (1, 2) if os.isatty(number)]  # later nobody could tell
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

    def _hang_up(self, number: int, _: types.FrameType | None) -> None:
        # Shell and kernel may both send it, and a SIGTERM may follow at once: none of these is a second wish to stop.
        if self.received is None:
            self.received = number
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for terminal in self._terminals:
            os.dup2(nowhere, terminal)
        os.close(nowhere)

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM; 0 without one."""
        return 0 if self.received is None else 128 + self.received


class Agreement:
    """When to stop. Processes that train together must stop before the same step, whichever of them got the signal.

    The host code of one process is at most ``2 * max_in_flight`` steps ahead of another's, because each waits for the
    steps that many before, here and at the last stage. The first process that is asked to stop announces a step beyond
    that, so all the others read the announcement before they get there.

    Args:
      interrupt: tells whether this process was asked to stop.
      max_in_flight: as for the pipeline.

    Attributes:
      cause: why to stop, where it is not a signal; the same in every process once they stop.
    """

    def __init__(self, interrupt: Interrupt, max_in_flight: int):
        self._interrupt, self._ahead = interrupt, 2 * max_in_flight + 1
        self._announced = False
        self._stop: tuple[int, int | None, Any] | None = None
        self.cause: Any = None

    def ask(self, cause: Any) -> None:
        """Stop as soon as all processes can, for a cause, a JSON value, that this process has found."""
        self.cause = cause

    def reached(self, step: int) -> bool:
        """Whether to stop before this step."""
        asked = self._interrupt.received is not None or self.cause is not None
        if jax.process_count() == 1:
            return asked
        if asked and not self._announced:
            self._announced = True
            processes.publish("stop/step", [step + self._ahead, self._interrupt.received, self.cause])
        if self._stop is None:
            for announced in processes.collect("stop", remove=False).values():
                self._stop = (announced[0], announced[1], announced[2])
        if self._stop is None or step < self._stop[0]:
            return False
        self._interrupt.received, self.cause = self._stop[1:]
        return True
