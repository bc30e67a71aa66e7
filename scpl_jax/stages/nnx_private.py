"""The variables that a Flax module makes while it runs, each with the value that it is made with.

A module that makes its state at the first call also changes it then. What belongs into the module is the state before
that, and of it Flax tells nobody: a variable's hooks are given by whoever makes it. So for a while
``nnx.Variable.create_value``, which every new variable calls, is one of ours.
"""

import contextlib
import importlib.metadata
import logging
from collections.abc import Iterator
from typing import Any

from flax import nnx

_LOG = logging.getLogger(__name__)
_HOOK = "create_value"


@contextlib.contextmanager
def created_variables() -> Iterator[list[tuple[Any, Any]]]:
    """Pairs of a variable and its first value, one for each variable that is made in the block.

    With a Flax that has no such method there is a line of warning and no pair: variables then keep what the first call
    makes of them.

    Example:
      >>> with created_variables() as created:
      ...     variable = nnx.Variable(1)
      ...     variable.set_value(2)
      >>> [(one is variable, value) for one, value in created]
      [(True, 1)]
    """
    created: list[tuple[Any, Any]] = []
    original = getattr(nnx.Variable, _HOOK, None)
    if original is None:
        _LOG.warning(
            "Flax %s has no Variable.%s: variables that a module makes at its first call begin with what the call "
            "makes of them",
            importlib.metadata.version("flax"),
            _HOOK,
        )
        yield created
        return

    def note(variable: Any, value: Any) -> Any:
        created.append((variable, value))
        return original(variable, value)

    setattr(nnx.Variable, _HOOK, note)
    try:
        yield created
    finally:
        setattr(nnx.Variable, _HOOK, original)
