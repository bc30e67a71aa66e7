"""A module's variables: what is trained, the rest, and that running the module keeps what there is of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# Attributes in which Flax keeps, in every module, how its attributes are seen.
BOOKKEEPING = frozenset(vars(nnx.Module()))


def split(module: nnx.Module) -> tuple[Any, Any, Any]:
    """(static structure, trained parameters, all other variables) of a module.

    Trained is every ``nnx.Param`` of floating or complex numbers; others have no gradient. Intermediates, as ``sow``
    makes them, are left out: they belong to one call.

    Raises:
      ValueError: a variable holds something else than arrays and numbers.

    Example:
      >>> from flax import nnx
      >>> _, params, rest = split(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
      >>> sorted(params), sorted(rest)
      (['bias', 'scale'], ['mean', 'var'])
    """
    if any(isinstance(node, nnx.Intermediate) for _, node in nnx.iter_graph(module)):
        module = nnx.clone(module)
        nnx.pop(module, nnx.Intermediate)
    graphdef, params, *others = nnx.split(module, _is_trained, ...)
    return graphdef, *jax.tree_util.tree_map_with_path(_as_array, (params, others[0]))


def _is_trained(_: Any, variable: Any) -> bool:
    if not isinstance(variable, nnx.Param):
        return False
    values = jax.tree.leaves(variable.get_value())
    return bool(values) and all(jnp.issubdtype(_dtype(value), jnp.inexact) for value in values)


def _dtype(value: Any) -> Any:
    return getattr(value, "dtype", None) or np.result_type(type(value))


def _as_array(path: Any, value: Any) -> Any:
    if isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        return value
    try:
        return jnp.asarray(value, jax.dtypes.canonicalize_dtype(_dtype(value)))
    except TypeError as error:
        raise ValueError(
            f"the variable {_name(path[1:])} holds a {type(value).__name__}; variables hold arrays or numbers, so keep "
            "it as an attribute of the module"
        ) from error


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def floating_leaves(tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The leaves that a gradient can be computed of, and a function that puts others in their place.

    Example:
      >>> leaves, put_back = floating_leaves({"mask": jnp.array([True]), "x": jnp.array([1.0])})
      >>> len(leaves), put_back([2.0])["x"]
      (1, 2.0)
    """
    leaves, structure = jax.tree.flatten(tree)
    floating = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

    def put_back(some: Sequence[Any]) -> Any:
        new = iter(some)
        found = [next(new) if f else leaf for leaf, f in zip(leaves, floating, strict=True)]
        return jax.tree.unflatten(structure, found)

    return [leaf for leaf, f in zip(leaves, floating, strict=True) if f], put_back


def named(state: Any) -> dict[str, Any]:
    """Name -> array, of variables as :func:`split` tells them: a tuple of two trees, or one of them."""
    trees = state if isinstance(state, tuple | list) else (state,)
    return {_name(path): x for tree in trees for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def same_structure(one: Any, other: Any) -> bool:
    """Whether two trees differ in their leaves only."""
    structure: Any = jax.tree.structure(one)
    return bool(structure == jax.tree.structure(other))


def check_kept(before: Any, after: Any, what: str) -> None:
    """Refuse what makes, loses or reshapes variables while it runs: a step is compiled for those that there are.

    Args:
      before: variables by which a module is called, as for :func:`split`; a tree of arrays or their shapes and dtypes.
      after: the same after the call.
      what: name of the module.

    Raises:
      ValueError: they are not alike.
    """
    old, new = ({name: f"{x.dtype}{list(x.shape)}" for name, x in named(tree).items()} for tree in (before, after))
    for name in [*new, *old]:
        if name not in old:
            raise ValueError(
                f"{what} makes the variable {name} while it runs; create it in __init__, or sow it as an "
                "nnx.Intermediate, which is dropped after each step"
            )
        if old[name] != new.get(name):
            raise ValueError(
                f"{what} changes the variable {name} from {old[name]} to {new.get(name, 'nothing')} while it runs; its "
                "shape and dtype must stay"
            )
    if not same_structure(before, after):
        raise ValueError(f"{what} changes types or metadata of its variables while it runs; only values may change")


def changed_attribute(before: nnx.Module, after: nnx.Module) -> str:
    """Of two forms of a module the first attribute, neither variable nor submodule, that is not the same, in words."""
    old, new = _attributes(before), _attributes(after)
    for name in {**new, **old}:
        if old.get(name) != new.get(name):
            return f"its Python attribute {name} from {old.get(name, 'nothing')} to {new.get(name, 'nothing')}"
    return "its structure"


def _attributes(module: nnx.Module) -> dict[str, str]:
    """Path -> what a module and its submodules keep besides variables and submodules, in words."""
    return {
        ".".join(map(str, (*path, name))): repr(value)[:40]
        for path, node in nnx.iter_graph(module)
        if isinstance(node, nnx.Pytree)
        for name, value in vars(node).items()
        if name not in BOOKKEEPING and not nnx.is_data(value)
    }


def data_attributes(module: nnx.Pytree) -> set[str]:
    """Names of the attributes that are a part of the module's state, as Flax guesses or :func:`nnx.data` says.

    Example:
      >>> from flax import nnx
      >>> sorted(data_attributes(nnx.Dropout(0.1, rngs=nnx.Rngs(0))) - BOOKKEEPING)
      ['rngs']
    """
    children = jax.tree_util.tree_flatten_with_path(module, is_leaf=lambda node: node is not module)[0]
    return {jax.tree_util.keystr(path, simple=True) for path, _ in children if path}


def separate_rngs(rest: Any, index: int) -> Any:
    """Random streams that blocks of several stages were built from start equal: make them differ by stage."""

    def fold(variable: Any) -> Any:
        if not isinstance(variable, nnx.RngKey):
            return variable
        # One key, or one for each of the layers that nnx.vmap stacks.
        return variable.replace(jnp.vectorize(lambda key: jax.random.fold_in(key, index))(variable.get_value()))

    return jax.tree.map(fold, rest, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
