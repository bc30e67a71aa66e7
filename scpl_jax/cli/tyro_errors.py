"""What tyro says of a command line that it refuses, as one sentence.

tyro draws a box of several lines and ends the process. Its public interface has no other way, so this module uses the
hook of ``tyro._errors``, which is documented but private; no other module uses anything private of tyro. Where the
hook is not as expected, in another version of tyro, the box is left as it is: the user still learns what is wrong, and
the status is still 2.
"""

import contextlib
import difflib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from scpl_jax.cli.option_types import listed
from scpl_jax.training.run_error import RunError

_LOGGER = logging.getLogger(__name__)
_HELP = "--help lists every option"


@contextlib.contextmanager
def in_one_sentence(options: Sequence[str]) -> Iterator[None]:
    """Let tyro refuse a command line by one sentence.

    Args:
      options: all that the command has, such as ``--epochs``, of which one may have been meant.

    Raises:
      RunError: tyro refuses the command line.

    Example:
      >>> import dataclasses, tyro
      >>> @dataclasses.dataclass
      ... class Options:
      ...     epochs: int = 1
      >>> with in_one_sentence(["--epochs"]):
      ...     tyro.cli(Options, args=["--epoch", "3"])
      Traceback (most recent call last):
      scpl_jax.training.run_error.RunError: unrecognized options: --epoch; perhaps you meant --epochs; --help ...
    """
    try:
        from tyro import _errors as events

        hooked: contextlib.AbstractContextManager[None] = events.on_parse_error(lambda event: _refuse(event, options))
    except (ImportError, AttributeError, TypeError):
        version = getattr(tyro, "__version__", "of an unknown version")
        _LOGGER.warning("tyro %s has no hook for errors, so they are shown as tyro shows them.", version)
        hooked = contextlib.nullcontext()
    with hooked:
        yield


def _refuse(event: Any, options: Sequence[str]) -> None:
    """Raise what an event says; return where that is not known, so that tyro says it."""
    try:
        said = _sentence(event, options)
    except (AttributeError, TypeError, ValueError, IndexError):  # an event of another version of tyro
        return
    if said is not None:
        raise RunError(said)


def _sentence(event: Any, options: Sequence[str]) -> str | None:
    """What an event says; None for an event that is not known."""
    kind = type(event).__name__
    said = None
    if kind == "UnrecognizedArgs":
        said = _unrecognized(event.tokens, options)
    elif kind == "MissingArgs":
        said = f"missing options: {', '.join(one.arg.display_name() for one in event.missing_arguments)}"
    elif kind == "InvalidChoice":  # as for choices that are checked later
        return f"{event.argument.display_name()} {event.value} is unknown; choose {listed(event.choices)}"
    elif kind == "BadValue":
        what = "needs a value" if event.offending_value is None else "takes no value"
        said = f"{event.argument.display_name()} {what}"
    elif kind == "InstantiationFailure":
        where = "the command line" if event.argument is None else event.argument.display_name()
        said = f"error parsing {where}: {' '.join(event.message.split()).rstrip('.')}"
    return None if said is None else f"{said}; {_HELP}"


def _unrecognized(tokens: Sequence[str], options: Sequence[str]) -> str:
    """What was not recognized: the options alone, whose values follow them; and what may have been meant."""
    unknown = [token.partition("=")[0] for token in tokens if token.startswith("--")] or list(tokens)
    said = f"unrecognized options: {', '.join(unknown)}"
    near = (difflib.get_close_matches(token, options, n=1, cutoff=0.7) for token in unknown)
    meant = list(dict.fromkeys(option for found in near for option in found))
    return f"{said}; perhaps you meant {' and '.join(meant)}" if meant else said
