"""How far a gradient travels: the longest chain of operations between each parameter and the loss that trains it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Jaxpr, Literal

from scpl_jax.stages import Stage, stage_loss
from scpl_jax.stages.cost import inner_programs
from scpl_jax.stages.step import layer_name

# They move values or change how they are stored; a gradient passes them unchanged.
_NAMES = (
    "broadcast_in_dim concatenate convert_element_type copy dynamic_slice dynamic_update_slice expand_dims gather pad "
    "reshape rev select_n slice split squeeze transpose"
)
_MOVES = frozenset(_NAMES.split())
_BLOCKED = -math.inf


@dataclasses.dataclass(frozen=True)
class GradientPath:
    """The way of one layer's gradient.

    Attributes:
      stage: number of the stage.
      layer: name of the layer within it.
      blocks: number of blocks that the gradient passes, its own and, where it has one, that of the loss included.
      operations: length of the longest chain of operations from the parameters to the loss. None of them can begin
        before the one behind it has ended, in the backward pass as in the forward pass.
    """

    stage: int
    layer: str
    blocks: int
    operations: int


def longest_path(function: Callable[..., jax.Array], argument: Any, *others: Any) -> Any:
    """The longest chain of operations between each array of ``argument`` and a function's scalar result.

    Operations that only move values do not count, those behind ``jax.lax.stop_gradient`` are no way for a gradient. A
    loop counts as often as it runs.

    Args:
      function: takes ``(argument, *others)`` and returns a scalar.
      argument: a pytree of floating arrays or ``jax.ShapeDtypeStruct``.
      *others: further arguments.

    Returns:
      A tree like ``argument`` of ints; None where no gradient arrives.

    Raises:
      ValueError: the function has more than one result, or one that is no scalar.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> longest_path(lambda p: jnp.sum(jnp.tanh(p["a"] * 2) + p["b"]), {"a": jnp.ones(3), "b": jnp.ones(3)})
      {'a': 4, 'b': 2}
    """
    closed = jax.make_jaxpr(function)(argument, *others)
    if len(closed.out_avals) != 1 or closed.out_avals[0].shape:
        raise ValueError(f"expected a function with one scalar result, got results of {closed.out_avals}")
    distances = _before(closed.jaxpr, [0])
    leaves, structure = jax.tree.flatten(argument)
    found = [None if distance == _BLOCKED else int(distance) for distance in distances[: len(leaves)]]
    return jax.tree.unflatten(structure, found)


def _before(jaxpr: Jaxpr, after: Sequence[float]) -> list[float]:
    """Distances of a program's inputs from the end, given those of its outputs."""
    distance: dict[Any, float] = {}

    def arrive(variable: Any, value: float) -> None:
        if not isinstance(variable, Literal) and jnp.issubdtype(variable.aval.dtype, jnp.inexact):
            distance[variable] = max(distance.get(variable, _BLOCKED), value)

    for variable, value in zip(jaxpr.outvars, after, strict=True):
        arrive(variable, value)
    for equation in reversed(jaxpr.eqns):
        behind = [distance.get(variable, _BLOCKED) for variable in equation.outvars]
        if max(behind, default=_BLOCKED) == _BLOCKED:
            continue
        for variable, value in zip(equation.invars, _through(equation, behind), strict=True):
            arrive(variable, value)
    return [distance.get(variable, _BLOCKED) for variable in jaxpr.invars]


def _through(equation: Any, behind: list[float]) -> list[float]:
    """Distances of an operation's inputs, given those of its outputs."""
    name = equation.primitive.name
    if name == "stop_gradient":
        return [_BLOCKED] * len(equation.invars)
    if name == "scan":
        return _loop(equation.params, behind)
    if name == "cond":
        ways = [_before(branch.jaxpr, behind) for branch in equation.params["branches"]]
        return [_BLOCKED, *(max(way) for way in zip(*ways, strict=True))]
    for inner in inner_programs(equation):
        if len(inner.invars) == len(equation.invars) and len(inner.outvars) == len(behind):
            return _before(inner, behind)
    return [max(behind) + (name not in _MOVES)] * len(equation.invars)


def _loop(params: dict[str, Any], behind: list[float]) -> list[float]:
    """A ``lax.scan``: its body as often as it runs, from the last time to the first."""
    consts, carries, body = params["num_consts"], params["num_carry"], params["jaxpr"].jaxpr
    carry, stacked = behind[:carries], behind[carries:]
    outside = [_BLOCKED] * (len(body.invars) - carries)  # constants and what is scanned over
    for _ in range(params["length"]):
        inputs = _before(body, [*carry, *stacked])
        carry = inputs[consts : consts + carries]
        outside = [max(pair) for pair in zip(outside, [*inputs[:consts], *inputs[consts + carries :]], strict=True)]
    return [*outside[:consts], *carry, *outside[consts:]]


def gradient_paths(stages: Sequence[Stage], inputs: Any, labels: Any) -> list[GradientPath]:
    """The way of every layer's gradient, for stages with local losses or with one global loss.

    Args:
      stages: of :func:`scpl_jax.decouple`.
      inputs: a batch as the network takes it, arrays or ``jax.ShapeDtypeStruct``.
      labels: its labels, likewise.

    Returns:
      One :class:`GradientPath` a layer, from the first stage to the last; layers that get no gradient are left out.
    """
    messages = [inputs]
    for stage in stages[:-1]:
        messages.append(jax.eval_shape(functools.partial(_hand_on, stage), messages[-1], labels))
    found = []
    for index, stage in enumerate(stages):
        trained = list(stages[index:]) if stage.end_to_end else [stage]
        steps = longest_path(functools.partial(_loss, trained), stage.params, messages[index], labels)
        for layer, operations in _by_layer(steps).items():
            found.append(GradientPath(stage.index, layer, _blocks_to_loss(trained, layer), operations))
    return found


def _hand_on(stage: Stage, message: Any, labels: Any) -> Any:
    return stage_loss(stage, stage.params, stage.rest, message, labels)[1][0]


def _loss(stages: Sequence[Stage], params: Any, message: Any, labels: Any) -> jax.Array:
    """The loss at the end of some stages, as a function of the parameters of the first of them."""
    for index, stage in enumerate(stages):
        values = stage.params if index else params
        loss, (message, _, _) = stage_loss(stage, values, stage.rest, message, labels)
    return loss


def _by_layer(steps: Any) -> dict[str, int]:
    """The longest of each layer's parameters' paths, by the layer's name."""
    found: dict[str, int] = {}
    for path, leaf in nnx.to_flat_state(steps):
        value = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        if value is not None:
            name = layer_name(path)
            found[name] = max(found.get(name, 0), value)
    return found


def _blocks_to_loss(trained: Sequence[Stage], layer: str) -> int:
    """Blocks from a layer to the loss that trains it; head and classifier count as one more."""
    kind, _, rest = layer.partition(".")
    if kind != "blocks":
        return 1
    own = int(rest.partition(".")[0])
    return trained[-1].blocks[1] - trained[0].blocks[0] - own + 1
