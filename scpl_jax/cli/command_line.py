"""From a command line to options, and from errors to one sentence and exit status 2."""

import dataclasses
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jax

from scpl_jax.cli.option_types import as_options
from scpl_jax.cli.parsing import parse_options as parse_options
from scpl_jax.cli.recipes import with_recipe
from scpl_jax.cli.run_options import AnyOptions, contradiction, from_json
from scpl_jax.data.paths import expand
from scpl_jax.kernels.glibc import keep_freed_memory
from scpl_jax.kernels.xla_flags import avoid_fusion_emitters
from scpl_jax.pipeline import PipelineBrokenError, processes
from scpl_jax.training.run_dir import RunDirectory
from scpl_jax.training.run_error import RunError
from scpl_jax.training.streams import LostOutputError, lasting_streams

# Variables that say which devices JAX is to have.
_DEVICES = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "CUDA_VISIBLE_DEVICES")


def _peek(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option, before the command line is parsed."""
    for index, argument in enumerate(arguments):
        if argument in (option, option.replace("-", "_").replace("__", "--", 1)):
            return arguments[index + 1] if index + 1 < len(arguments) else None
        if argument.startswith(option + "="):
            return argument.partition("=")[2]
    return None


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
) -> tuple[AnyOptions, Path, dict[str, Any] | None]:
    """Parse a command line; a resumed run's own options are the defaults.

    Args:
      kind: the dataclass of its options.
      arguments: without the program's name.
      experiment: its name, for the default run directory.

    Returns:
      (options, checked; the run directory; ``config.json`` of the run to be resumed, or None for a new run).

    Raises:
      RunError: a bad value, a run directory in use, or options that contradict the run to be resumed.
    """
    module = f"scpl_jax.experiments.{experiment}"
    if {"--help", "-h"} & set(arguments):  # needs neither the other processes nor a device
        parse_options(kind, arguments, module, kind())
    join(arguments)
    _check_devices()
    asked = _peek(arguments, "--out-dir")
    given = expand(asked, "--out-dir") if asked else None
    config = processes.decided_by_first(lambda: RunDirectory.config_of(given) if given else None)
    resuming = config is not None and "--resume" in arguments
    saved = from_json(kind, config["options"]) if config is not None and resuming else kind()
    if not resuming:
        saved = with_recipe(saved, _peek(arguments, "--recipe"))
    options = parse_options(kind, arguments, module, saved)
    options.check()
    if config is not None and not resuming:
        raise RunError(f"--out-dir {given} holds a run already; add --resume to continue it, or choose another")
    if options.resume and options.out_dir is None:
        raise RunError("--resume needs --out-dir, the directory of the run to be resumed")
    if resuming and (problem := contradiction(options, saved)) is not None:
        raise RunError(problem)
    out_dir = options.out_dir
    if out_dir is None:
        now = processes.from_first(datetime.now().strftime("%Y-%m-%d-%H%M%S-%f")[:-3])
        out_dir = Path("runs") / experiment / now
        options = dataclasses.replace(options, out_dir=out_dir)
    return options, out_dir, config if resuming else None


def _check_devices() -> None:
    """Refuse to go on where JAX does not have the devices that the environment asks for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an AssertionError where the plugin of the platform is missing
        asked = [name for name in _DEVICES if os.environ.get(name)]
        what = " and ".join(f"{name}={os.environ[name]}" for name in asked) or "its default"
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        remedy = f"unset {' and '.join(asked)}" if asked else "set JAX_PLATFORMS=cpu"
        raise RunError(
            f"JAX can't have the devices that {what} asks for{f' ({reason})' if reason else ''}; "
            f"{remedy}, or, for a GPU, install its driver and jax[cuda13]"
        ) from error


class _AsOptions(logging.Formatter):
    """Warnings of this package name options where the library names its arguments."""

    def format(self, record: logging.LogRecord) -> str:
        said = super().format(record)
        return as_options(said) if record.name.startswith("scpl_jax.") else said


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Run an experiment's main function; an error that a user can cause becomes one sentence and status 2.

    What can't be printed does not end it, unless the print is all that the command gives: that is status 1.
    """
    with lasting_streams() as output:
        handler = logging.StreamHandler()
        handler.setFormatter(_AsOptions("%(message)s"))
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
        logging.getLogger("absl").setLevel(logging.ERROR)
        keep_freed_memory()
        avoid_fusion_emitters()
        try:
            status = _status_of(main, sys.argv[1:] if arguments is None else arguments)
            if status == 0:
                output.flush()  # where it is the result, it must be there
        except LostOutputError as error:
            output.is_result = False
            if not isinstance(error.__cause__, BrokenPipeError):  # a reader that has enough, as head
                print(f"error: {error}", file=sys.stderr)
            status = 1
        return _leave_at_once(status) if status else status


def _status_of(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """The exit status of a main function."""
    try:
        status = main(arguments)
        if jax.distributed.is_initialized():
            processes.leave()
        return status
    except SystemExit as stop:
        if stop.code not in (0, None):
            raise
        return 0  # --help
    except KeyboardInterrupt:
        print("stopped at once; what was saved before stays as it is", file=sys.stderr)
        return 130
    except LostOutputError:
        raise
    except PipelineBrokenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if (sentence := _sentence(error)) is not None:
            print(f"error: {sentence}", file=sys.stderr)
            return 2
        if isinstance(error, ValueError) or jax.distributed.is_initialized():
            traceback.print_exc()
            return 1
        raise


def _sentence(error: Exception) -> str | None:
    """What a user gets of an error; None for what is unforeseen, a bug, which keeps its traceback."""
    if isinstance(error, ValueError):  # RunError, DataError and the library's own checks
        if not _is_user_error(error):
            return None
        # A command's own RunError quotes what a user gave, and names options; errors of the library name arguments.
        own = isinstance(error, RunError) and not _raised_in(error).startswith("scpl_jax.training.")
        return str(error) if own else as_options(str(error))
    if isinstance(error, FileNotFoundError) and "usable temporary directory" in str(error):
        return f"{error.strerror}; set TMPDIR to a folder that can be written"
    if isinstance(error, RuntimeError | AssertionError):
        try:
            _check_devices()  # a command that does not ask for them at its start
        except RunError as problem:
            return str(problem)
    return None


def _leave_at_once(status: int) -> int:
    """In a run of several processes end here: JAX's own exit would wait for peers that wait for this process."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _is_user_error(error: ValueError) -> bool:
    """Whether the error was raised by a check of this package and not somewhere inside a library."""
    return _raised_in(error).startswith("scpl_jax.")


def _raised_in(error: ValueError) -> str:
    """The name of the module whose code raised the error; empty where nobody knows."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames:
        return ""
    # A module that is the command itself is called __main__; its specification knows its name.
    names = frames[-1].f_globals
    return str(getattr(names.get("__spec__"), "name", None) or names.get("__name__", ""))
