"""Start several local processes of one command and watch over them.

``python -m scpl_jax.launch --processes 2 [--pin] -- python -m scpl_jax.experiments.cifar --stages 4``

Each process learns from ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` which one it is. They
end together: when one fails the others are stopped, and Ctrl-C or SIGTERM lets all of them finish the step and save.
"""

import argparse
import contextlib
import itertools
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Sequence
from typing import NoReturn

POLL = 0.05  # seconds between two looks at the processes
SETTLE = 0.5  # after a failure, until the process that caused it must have shown up
AGREE = 2.0  # after a mistake in the input, for the others to find it too
PATIENCE = 30.0  # after one process has ended well, for the others to do so
ECHO = 0.2  # within this time a second signal is the first one, sent again by a shell or a wrapper

# What a process does before it becomes the command. A preexec_fn would not be safe beside the threads of JAX.
_STUB = """
import ctypes, os, signal, sys
parent, cores, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG: end with the launcher
    if os.getppid() != int(parent):
        os._exit(1)
if cores:
    os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and the command would inherit that
signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in what a shell starts in the background, but we pass it on
try:
    os.execvp(command[0], command)
except OSError as error:
    print(f"error: {command[0]} can't be started: {error.strerror}", file=sys.stderr)
    sys.exit(2)
"""


class _LaunchError(ValueError):
    """A mistake in the command line, in one sentence."""


_lost: set[int] = set()  # 1 or 2, once it could not be written


def _write(target: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(target, data) :]
        except BlockingIOError:
            time.sleep(POLL)
        except OSError as error:  # our reader has gone, or the disk is full; the processes must still be able to save
            if target not in _lost:
                _lost.add(target)
                name = ("standard output", "standard error")[target - 1]
                _write(3 - target, f"{name} can't be written ({error.strerror}); the run goes on without\n".encode())
            return


class _Output:
    """One stream of one process, passed on line by line; a terminal for process 0 if the launcher has one."""

    def __init__(self, rank: int, target: int, said: dict[bytes, int]) -> None:
        self._rank, self._target, self._said, self._rest = rank, target, said, b""
        self.only: bytes | None = b""  # how a line that is shown begins; None: nothing is shown
        self._terminal, self._last = rank == 0 and os.isatty(target), b""
        self.source, self.inside = os.openpty() if self._terminal else os.pipe()
        os.set_blocking(self.source, False)
        if self._terminal:
            tty.setraw(self.inside)  # the real terminal translates line ends
            termios.tcsetwinsize(self.inside, termios.tcgetwinsize(target))

    def read(self) -> bool:
        """Pass a piece on; False if there was none."""
        try:
            piece = os.read(self.source, 65536)
        except OSError:  # nothing yet; or how a terminal says that its other side is closed
            return False
        *lines, self._rest = (self._rest + piece).split(b"\n")
        shown = b"".join(self._to_show(line + b"\n") for line in lines)
        if self._terminal and not self._rest.startswith(b"error"):  # a progress bar has no line end
            shown += self._to_show(self._rest)
            self._rest = b""
        _write(self._target, shown)
        self._last = shown[-1:] or self._last
        return bool(piece)

    def drain(self) -> None:
        """Pass on all that is there, and end the last line."""
        while self.read():
            pass
        bar = self._terminal and self._last not in (b"", b"\n")
        _write(self._target, self._to_show(self._rest + b"\n") if self._rest else b"\n" * bar)

    def _to_show(self, line: bytes) -> bytes:
        if self.only is None or not line.startswith(self.only):
            return b""
        mistake = self._target == 2 and line.startswith(b"error: ")
        if mistake and self._said.setdefault(line.strip(), self._rank) != self._rank:
            return b""  # every process finds the same one; once is enough
        return b"[%d] %s" % (self._rank, line) if self._rank else line


class _Child(subprocess.Popen[bytes]):
    """One process. Its session is its own, so that a signal from the terminal reaches only the launcher."""

    def __init__(self, rank: int, command: Sequence[str], environment: dict[str, str], said: dict[bytes, int]) -> None:
        self.rank = rank
        self.outputs = [_Output(rank, target, said) for target in (1, 2)]
        stdout, stderr = (output.inside for output in self.outputs)
        stdin = None if rank == 0 else subprocess.DEVNULL
        env = {**environment, "JAX_PROCESS_ID": str(rank)}
        super().__init__(command, stdin=stdin, stdout=stdout, stderr=stderr, env=env, start_new_session=True)
        os.close(stdout)
        os.close(stderr)

    def end(self) -> None:
        """End the process and what it started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: not permitted once it has ended
            os.killpg(self.pid, signal.SIGKILL)

    def fate(self) -> tuple[int, str]:
        """The exit status as a shell would tell it, and a sentence."""
        code = self.returncode
        if code >= 0:
            return code, f"process {self.rank} ended with status {code}"
        name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
        return 128 - code, f"process {self.rank} was ended by {name}"


class _Watch:
    """Passes output and signals on until all processes have ended, and finds the one that failed."""

    def __init__(self, children: list[_Child], said: dict[bytes, int], hint: str) -> None:
        self._children, self._said, self._hint = children, said, hint
        self._running = list(children)
        self._selector = selectors.DefaultSelector()
        self._outputs = [output for child in children for output in child.outputs]
        for output in self._outputs:
            self._selector.register(output.source, selectors.EVENT_READ, output)
        self._signal: tuple[int, float] | None = None  # what all were told, and when
        self._failed: list[_Child] = []
        self._judge_at = self._end_at = float("inf")
        self._verdict: tuple[int, str] | None = None  # the exit status and a sentence

    def handle(self, number: int, _: object) -> None:
        """Handle a signal; at once, as a full pipe behind us may hold everything else up."""
        number = signal.SIGTERM if number == signal.SIGHUP else number
        if self._signal is None:
            self._signal = number, time.monotonic()
            for child in self._running:
                child.send_signal(number)  # not to what it started: that is its own affair
        elif time.monotonic() - self._signal[1] > ECHO:
            self._verdict = self._verdict or (128 + number, "stopped at once; what was saved before stays as it is")
            self._end_all()

    def run(self) -> int:
        """Watch until all have ended; returns the exit status."""
        while self._running:
            ready = self._selector.select(POLL)
            self._look(time.monotonic())
            if self._failed and self._verdict is None:
                time.sleep(POLL)  # what the others write now may be about the lost peer: leave it unread
                continue
            for key, _ in ready:
                if not key.data.read():
                    self._selector.unregister(key.fd)
        for output in self._outputs:
            output.drain()
        # Where all ended well, process 0 speaks for them.
        status, sentence = self._verdict or (next(filter(None, (child.fate()[0] for child in self._children)), 0), "")
        if sentence and not (status == 2 and self._said):  # a mistake that the processes have explained
            _write(2, f"{sentence}\n".encode())
        return status

    def _look(self, now: float) -> None:
        """See which have ended, and end the others when that is due."""
        for child in [child for child in self._running if child.poll() is not None]:
            self._running.remove(child)
            child.end()
            as_told = self._signal is not None and child.returncode == -self._signal[0]
            if as_told or child.returncode in (0, 130, 143):
                self._end_at = min(self._end_at, now + PATIENCE)
            elif self._verdict is None:
                self._failed.append(child)
                self._judge_at = min(self._judge_at, now + SETTLE)
        if self._failed and self._verdict is None and (now >= self._judge_at or not self._running):
            self._judge(now)
        if now >= self._end_at and self._running and (self._verdict or not self._failed):
            names = ", ".join(str(child.rank) for child in self._running)
            sentence = f"error: process {names} did not end within {PATIENCE:g} s of the others and was stopped"
            stopped = (child.fate()[0] for child in self._children if child not in self._running)
            self._verdict = self._verdict or (next(filter(None, stopped), 137), f"{sentence}; {self._hint}")
            self._end_all()

    def _judge(self, now: float) -> None:
        """Choose the process that failed by itself; end the others, or let them find the same mistake."""
        # A signal from outside explains a status, and either explains an abort: that is how JAX's client loses a peer.
        culprit = min(self._failed, key=lambda child: (child.returncode == -signal.SIGABRT, child.returncode >= 0))
        status, sentence = culprit.fate()
        for child in self._running + self._failed:
            for output in child.outputs if child is not culprit else []:
                output.only = b"error: " if status == 2 else None
        others = "; the other processes were stopped" if len(self._children) > 1 else ""
        self._verdict = status, f"error: {sentence}{others}" + ("" if status == 2 else f"; {self._hint}")
        self._end_at = now + (AGREE if status == 2 else 0)

    def _end_all(self) -> None:
        for child in self._running:
            child.end()


def _launch(command: Sequence[str], processes: int, pin: bool) -> int:
    """Run a command in several processes until all have ended; to be called from the main thread.

    Returns 0 if all ended with 0, else the status of the one that failed; 128 + its number if a signal ended it.
    """
    if processes < 1:
        raise _LaunchError(f"--processes must be at least 1, got {processes}")
    if not command:
        raise _LaunchError("there is no command; give it behind --, as in --processes 2 -- python train.py")
    if shutil.which(command[0]) is None:
        raise _LaunchError(f"command not found: {command[0]}")
    cores = _shares(processes) if pin else [""] * processes
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    # Python would write into a pipe late, after a crash never; JAX by itself would listen on every network interface.
    environment = {"PYTHONUNBUFFERED": "1", **os.environ, "JAX_NUM_PROCESSES": str(processes)}
    environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_COORDINATOR_BIND_ADDRESS": address}
    again = "run the same command again" if "--resume" in command else "add --resume"
    stub = [sys.executable, "-I", "-S", "-c", _STUB, str(os.getpid())]
    said: dict[bytes, int] = {}  # lines about mistakes, with the process that said them first
    children: list[_Child] = []
    previous = {}
    try:
        for rank, share in enumerate(cores):
            children.append(_Child(rank, [*stub, share, *command], environment, said))
        watch = _Watch(children, said, f"{again} to continue from the last checkpoint")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                previous[number] = signal.signal(number, watch.handle)
        return watch.run()
    finally:
        for child in children:
            if child.poll() is None:
                child.end()
                child.wait()
            for output in child.outputs:
                os.close(output.source)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _shares(processes: int) -> list[str]:
    """The cores of each process: contiguous shares whose sizes differ by one at most."""
    if not hasattr(os, "sched_setaffinity"):
        raise _LaunchError("--pin is not possible here: this system can't bind a process to cores")
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
    if len(cores) < processes:
        raise _LaunchError(f"--pin needs a core for each of the {processes} processes, and there are {len(cores)}")
    cuts = [len(cores) * index // processes for index in range(processes + 1)]
    return [",".join(cores[start:stop]) for start, stop in itertools.pairwise(cuts)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _LaunchError(f"{message}; --help lists every option")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read a command line, start its processes and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _Parser(prog="python -m scpl_jax.launch", usage="%(prog)s --processes N [--pin] -- COMMAND ...")
    parser.add_argument("--processes", type=int, required=True, metavar="N", help="how many processes to start")
    parser.add_argument("--pin", action="store_true", help="give each process its own share of the cores")
    _lost.clear()
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # or a pipe would get the number of a closed stream
        os.set_inheritable(number, True)
    os.close(number)
    try:
        options = parser.parse_args(arguments[:end])
        return _launch(arguments[end + 1 :], options.processes, options.pin)
    except _LaunchError as error:
        _write(2, f"error: {error}\n".encode(errors="replace"))
        return 2


if __name__ == "__main__":
    sys.exit(main())
