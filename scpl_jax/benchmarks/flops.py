"""How many floating-point operations a training step needs: those of its matrix products and convolutions."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr
from jax.interpreters import partial_eval

from scpl_jax.stages.cost import inner_programs


def matrix_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of all matrix products and convolutions of a function, a multiplication and an addition being two.

    They are counted in the program as JAX traces it, before any compiler changes it, but without what no result needs,
    as the gradient of a stage's inputs, which derivatives of our own give unasked. What a loop does counts as often as
    it is done; of the branches of a condition the most expensive one counts. Zeros that a strided convolution's
    gradient is given between the pixels don't count.

    Args:
      function: to be traced.
      *arguments: pytrees of arrays or ``jax.ShapeDtypeStruct``.

    Example:
      >>> import jax.numpy as jnp
      >>> matrix_flops(lambda a, b: jnp.tanh(a @ b), jnp.ones((3, 4)), jnp.ones((4, 5)))
      120.0
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _of(needed)


def _of(jaxpr: Jaxpr) -> float:
    return sum((_operation(equation) for equation in jaxpr.eqns), 0.0)


def _operation(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, parameters["dimension_numbers"].rhs_spec
        each = math.prod(kernel) / kernel[numbers[0]]  # products for each value of the output
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * each / math.prod(parameters["lhs_dilation"])
    if name == "cond":
        return max(_of(branch.jaxpr) for branch in parameters["branches"])
    times = parameters["length"] if name == "scan" else 1
    return float(times * sum((_of(inner) for inner in inner_programs(equation)), 0.0))
