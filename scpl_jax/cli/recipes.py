"""Recipes of ``--recipe``: sets of options under one name; an option that is given wins over the recipe's."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from scpl_jax.cli.option_types import flag, listed
from scpl_jax.training.run_error import RunError

T = TypeVar("T")


# Field -> value; what an experiment does not have is left out.
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper": {
            "method": "scpl",
            "count_anchor": True,
            "head_pool": 0,
            "cut": "paper",
            "shortcut": "3x3",
            "positions": "none",
            "unmasked": True,
            "lr_every": "epoch",
        },
        "fast": {"method": "early-exit", "aux": "blocks", "aux_side": 4, "joint_answer": True},
        "accurate": {"method": "early-exit", "aux": "blocks", "aux_side": 8, "joint_answer": True},
    }
)


def with_recipe(options: T, name: str | None) -> T:
    """Options with those of a recipe in place of the defaults.

    Args:
      options: a dataclass of options as they are where nothing is given.
      name: of the recipe; None for none.

    Raises:
      RunError: there is no such recipe.

    Example:
      >>> from scpl_jax.cli.run_options import RunOptions
      >>> with_recipe(RunOptions(), "fast").aux
      'blocks'
    """
    if name is None:
        return options
    if name not in RECIPES:
        raise RunError(f"--recipe {name} is unknown; choose {listed(list(RECIPES))}")
    fields = {field.name for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    found = {key: value for key, value in RECIPES[name].items() if key in fields}
    return dataclasses.replace(options, recipe=name, **found)  # type: ignore[type-var]


def check_recipe(options: Any) -> None:
    """Refuse a ``--method`` that is not the recipe's; every other option may differ from it.

    Raises:
      RunError: it is another one.

    Example:
      >>> from scpl_jax.cli.run_options import RunOptions
      >>> check_recipe(RunOptions(recipe="fast", method="bp"))
      Traceback (most recent call last):
      scpl_jax.training.run_error.RunError: --recipe fast is --method early-exit, got --method bp; leave one of them out
    """
    if options.recipe is None:
        return
    method = RECIPES[options.recipe]["method"]
    if options.method != method:
        raise RunError(
            f"{flag('recipe')} {options.recipe} is --method {method}, got --method {options.method}; "
            "leave one of them out"
        )
