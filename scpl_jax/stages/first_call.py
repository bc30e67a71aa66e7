"""What a module returns, found out without computing it; state that it makes at its first call is made by that.

A step is compiled for the variables that there are: afterwards a call changes nothing of a module but their values.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Jaxpr, Literal, jaxpr_as_fun

from scpl_jax.stages.cost import call_module
from scpl_jax.stages.nnx_private import created_variables
from scpl_jax.stages.variables import BOOKKEEPING, changed_attribute, check_kept, data_attributes, named, split


def output_of(what: str, module: nnx.Module, *inputs: Any, call: Callable[..., Any] = call_module) -> Any:
    """Shapes and dtypes of ``call(module, *inputs)``.

    Variables and submodules that the module makes while it runs are put into it, with the values that they are created
    with; so it may be changed in place.

    Args:
      what: name of the module.
      module: any NNX module.
      *inputs: shapes and dtypes.
      call: how the module is called.

    Raises:
      ValueError: the module can't be called with them, or it changes more than the values of its variables.
    """
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Variable) and (node.hijax or node.ref):
            raise ValueError(
                f"{what} has the variable {'.'.join(map(str, path))} made with hijax or ref; stages need plain ones"
            )
    graph, params, rest = split(module)

    def run(params: Any, rest: Any, inputs: Any) -> Any:
        called = nnx.merge(graph, params, rest, copy=True)
        output = _called(what, called, inputs, call)
        graph_after, *after = split(called)
        if not made and set(named(after)) - set(named((params, rest))):
            made.append(True)
            return None
        check_kept((params, rest), tuple(after), what)
        if graph_after != graph:
            raise ValueError(
                f"{what} changes {changed_attribute(module, called)} while it runs, and each step would begin with the "
                "old one; keep what changes in an nnx.Variable"
            )
        return output

    made: list[bool] = []
    output = jax.eval_shape(run, params, rest, inputs)
    if made:
        _make_state(what, module, inputs, call)
        graph, params, rest = split(module)
        output = jax.eval_shape(run, params, rest, inputs)
    return output


def _called(what: str, module: nnx.Module, inputs: Any, call: Callable[..., Any]) -> Any:
    try:
        return call(module, *inputs)
    except Exception as error:
        told = " ".join(str(error).split())
        linen = any(isinstance(node, nnx.bridge.ToNNX) for _, node in nnx.iter_graph(module))
        hint = "; initialise Linen modules first, by their lazy_init" if linen else ""
        given = ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(inputs))
        raise ValueError(f"{what} can't be called with {given}, {type(error).__name__}: {told[:300]}{hint}") from error


def _make_state(what: str, module: nnx.Module, inputs: Any, call: Callable[..., Any]) -> None:
    """Put into a module what it makes at its first call."""
    graph, *old = split(module)
    grown: Any = None

    def run(old: Any, inputs: Any) -> Any:
        nonlocal grown
        fresh = nnx.merge(graph, *old, copy=True)
        with created_variables() as created:
            _called(what, fresh, inputs, call)
        for variable, value in created:
            variable.set_value(value)  # not yet what the call made of it
        grown, *state = split(fresh)
        return state

    program, shapes = jax.make_jaxpr(run, return_shape=True)(old, inputs)
    known = named(old)
    values = [jnp.zeros(x.shape, x.dtype) for x in jax.tree.leaves(inputs)]
    count = len(program.jaxpr.invars) - len(values)
    tainted = _depends(program.jaxpr, set(program.jaxpr.invars[count:]))
    for name, depends in zip(named(shapes), tainted, strict=True):
        if depends and name not in known:
            raise ValueError(
                f"{what} makes the variable {name} of its input's values while it runs; create it in __init__, call it "
                "once on real data before, or sow an nnx.Intermediate, which is dropped after each step"
            )
    made = jax.jit(jaxpr_as_fun(program))(*jax.tree.leaves(old), *values)
    leaves = [known.get(name, value) for name, value in zip(named(shapes), made, strict=True)]
    _graft(module, nnx.merge(grown, *jax.tree.unflatten(jax.tree.structure(shapes), leaves)))


def _depends(program: Jaxpr, sources: set[Any]) -> list[bool]:
    """For each output of a program whether it may depend on one of these variables."""
    reached = set(sources)
    for equation in program.eqns:
        if any(not isinstance(x, Literal) and x in reached for x in equation.invars):
            reached |= set(equation.outvars)
    return [not isinstance(x, Literal) and x in reached for x in program.outvars]


def _graft(module: nnx.Module, grown: nnx.Module) -> None:
    """Give a module the attributes that a later form of it has more, or has changed."""
    nodes = dict(nnx.iter_graph(grown))
    for path, node in list(nnx.iter_graph(module)):
        if not isinstance(node, nnx.Pytree):
            continue
        own, later = vars(node), vars(nodes[path])
        is_data = data_attributes(nodes[path])
        for name in set(later) - BOOKKEEPING:
            if name not in own or (name not in is_data and own[name] != later[name]):
                setattr(node, name, nnx.data(later[name]) if name in is_data else later[name])
