"""What a stage costs, by the compiler's own account: nothing is run, so the answer is the same at every start."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from scpl_jax.stages.variables import split

# One byte of optimizer traffic weighs as much as this many floating-point operations. The ratio of arithmetic to memory
# speed is between 5 and 15 for float32 on the CPUs and GPUs at hand; the cut depends on it only where heads are large.
_OPERATIONS_PER_BYTE = 8
# Adam reads parameter, gradient and two moments and writes three of them, 4 bytes each.
_UPDATE_BYTES = 28


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one module for one batch.

    Attributes:
      operations: floating-point operations of its forward pass.
      parameters: number of trained values.
    """

    operations: float
    parameters: int

    def training(self, *, input_gradient: bool = True) -> float:
        """Cost of forward pass, backward pass and update, in floating-point operations.

        The backward pass takes the forward pass's operations twice: for the parameters and for the input. The first
        block of a stage needs no gradient of its input.
        """
        passes = 3 if input_gradient else 2
        return passes * self.operations + self.parameters * _UPDATE_BYTES * _OPERATIONS_PER_BYTE


def module_cost(module: nnx.Module, *inputs: Any) -> Cost:
    """The cost of calling ``module(*inputs)``, from XLA's analysis of the program before optimisation.

    Args:
      module: any NNX module.
      *inputs: pytrees of arrays or ``jax.ShapeDtypeStruct``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> cost = module_cost(nnx.Linear(10, 20, rngs=nnx.Rngs(0)), jax.ShapeDtypeStruct((5, 10), jnp.float32))
      >>> cost.operations >= 2 * 5 * 10 * 20, cost.parameters
      (True, 220)
    """
    graphdef, params, rest = split(module)

    def call(params: Any, rest: Any, inputs: Any) -> Any:
        return nnx.merge(graphdef, params, rest, copy=True)(*inputs)

    analysis = jax.jit(call).lower(params, rest, inputs).cost_analysis() or {}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Cost(float(analysis.get("flops", 0.0)), parameters)
