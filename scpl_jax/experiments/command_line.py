"""From a command line to options, and from errors to one sentence and exit status 2."""

import contextlib
import io
import itertools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro

from scpl_jax.experiments.machine import avoid_fusion_emitters, keep_freed_memory
from scpl_jax.experiments.run_options import AnyOptions, contradiction, from_json
from scpl_jax.pipeline import processes
from scpl_jax.training.errors import RunError
from scpl_jax.training.run_dir import RunDirectory

T = TypeVar("T")

# Options that name a file for results.
_WRITTEN = ("output", "figure", "timeline")


def _peek(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option, before the command line is parsed."""
    for index, argument in enumerate(arguments):
        if argument in (option, option.replace("-", "_").replace("__", "--", 1)):
            return arguments[index + 1] if index + 1 < len(arguments) else None
        if argument.startswith(option + "="):
            return argument.partition("=")[2]
    return None


def parse_options(kind: type[T], arguments: Sequence[str], experiment: str, default: T) -> T:
    """Parse a command line into a dataclass of options.

    Args:
      kind: the dataclass.
      arguments: without the program's name.
      experiment: the program's name, in ``scpl_jax.experiments`` unless it has a dot.
      default: what holds where nothing is given.

    Raises:
      RunError: an unknown option or a value that can't be read (tyro's own box, in one sentence), or a file that is to
        be written at the end and can't be.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            program = f"python -m {experiment if '.' in experiment else f'scpl_jax.experiments.{experiment}'}"
            options = tyro.cli(kind, args=list(arguments), prog=program, default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # A title, the reason, more: each behind a rule, in a box or not, as the terminal can draw it.
        lines = [line.strip(" │|╭╮╰╯─-+") for line in said.getvalue().splitlines()]
        _, *rest = lines or [""]
        reason = " ".join(itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, rest)))
        reason = reason.rstrip(".") or "the command line can't be read"
        raise RunError(f"{reason[0].lower()}{reason[1:]}; --help lists every option") from None
    for name in _WRITTEN:
        if isinstance(path := getattr(options, name, None), Path):
            _check_writable(f"--{name}", path)
    return options


def _check_writable(option: str, path: Path) -> None:
    """Refuse before a long measurement what could not be written after it."""
    if path.is_dir():
        raise RunError(f"{option} {path} is a folder; give a file")
    if not path.parent.is_dir():
        raise RunError(f"{option} {path} can't be written, as there is no folder {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise RunError(f"{option} {path} can't be written (permission denied); give another place")


def join(arguments: Sequence[str]) -> None:
    """Join the other processes of the run, if the options or the environment tell of any.

    Raises:
      ValueError: they can't be joined; the message says why.
    """
    if jax.distributed.is_initialized():
        return
    address = _peek(arguments, "--coordinator-address")
    count, index = (_number(arguments, option) for option in ("--num-processes", "--process-id"))
    if (address, count, index) != (None, None, None):
        processes.initialise(address, count, index)
    elif "--cluster" in arguments:
        processes.initialise()
    elif (found := processes.from_environment()) is not None:
        processes.initialise(*found)


def _number(arguments: Sequence[str], option: str) -> int | None:
    text = _peek(arguments, option)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise RunError(f"{option} must be a whole number, got {text!r}") from None


def parse(
    kind: type[AnyOptions], arguments: Sequence[str], experiment: str
) -> tuple[AnyOptions, dict[str, Any] | None]:
    """Parse a command line; a resumed run's own options are the defaults.

    Args:
      kind: the dataclass of its options.
      arguments: without the program's name.
      experiment: its name, for the default run directory.

    Returns:
      (options, checked; ``config.json`` of the run to be resumed, or None for a new run).

    Raises:
      RunError: a bad value, a run directory in use, or options that contradict the run to be resumed.
    """
    join(arguments)
    given = _peek(arguments, "--out-dir")
    config = processes.decided_by_first(lambda: RunDirectory.config_of(Path(given)) if given else None)
    resuming = config is not None and "--resume" in arguments
    saved = from_json(kind, config["options"]) if config is not None and resuming else kind()
    options = parse_options(kind, arguments, experiment, saved)
    options.check()
    if config is not None and not resuming:
        raise RunError(f"--out-dir {given} holds a run already; add --resume to continue it, or choose another")
    if options.resume and options.out_dir is None:
        raise RunError("--resume needs --out-dir, the directory of the run to be resumed")
    if resuming and (problem := contradiction(options, saved)) is not None:
        raise RunError(problem)
    if options.out_dir is None:
        now = processes.from_first(datetime.now().strftime("%Y-%m-%d-%H%M%S-%f")[:-3])
        options.out_dir = Path("runs") / experiment / now
    return options, config if resuming else None


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Run an experiment's main function; an error that a user can cause becomes one sentence and status 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)
    keep_freed_memory()
    avoid_fusion_emitters()
    try:
        status = main(sys.argv[1:] if arguments is None else arguments)
        processes.leave()
        return status
    except ValueError as error:
        # RunError, DataError and the library's own checks; anything unforeseen is a bug and keeps its traceback.
        if not _is_user_error(error):
            traceback.print_exc()
            return _leave_at_once(1)
        print(f"error: {error}", file=sys.stderr)
        return _leave_at_once(2)
    except KeyboardInterrupt:
        print("stopped at once; what was saved before stays as it is", file=sys.stderr)
        return _leave_at_once(130)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _leave_at_once(1)
    except Exception:
        if jax.distributed.is_initialized():
            traceback.print_exc()
            return _leave_at_once(1)
        raise


def _leave_at_once(status: int) -> int:
    """In a run of several processes end here: JAX's own exit would wait for peers that wait for this process."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _is_user_error(error: ValueError) -> bool:
    """Whether the error was raised by a check of this package and not somewhere inside a library."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    # A module that is the command itself is called __main__; its specification knows its name.
    names = trace.tb_frame.f_globals
    name = getattr(names.get("__spec__"), "name", None) or names.get("__name__", "")
    return str(name).startswith("scpl_jax.")
