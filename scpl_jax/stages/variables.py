"""A module's variables: what is trained, and the rest."""

from typing import Any

import jax
from flax import nnx


def split(module: nnx.Module) -> tuple[Any, Any, Any]:
    """(static structure, parameters, all other variables) of a module.

    Example:
      >>> from flax import nnx
      >>> _, params, rest = split(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
      >>> sorted(params), sorted(rest)
      (['bias', 'scale'], ['mean', 'var'])
    """
    graphdef, params, *others = nnx.split(module, nnx.Param, ...)
    return graphdef, params, others[0]


def separate_rngs(rest: Any, index: int) -> Any:
    """Random streams that blocks of several stages were built from start equal: make them differ by stage."""

    def fold(variable: Any) -> Any:
        if isinstance(variable, nnx.RngKey):
            return variable.replace(jax.random.fold_in(variable.get_value(), index))
        return variable

    return jax.tree.map(fold, rest, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
