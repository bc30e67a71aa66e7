"""What a stage costs: by the compiler's own account, which is the same at every start, or by measured times."""

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from scpl_jax.objectives import Objective
from scpl_jax.stages.variables import floating_leaves, split

# One byte of memory traffic weighs as much as this many floating-point operations. On one core of a Xeon the training
# times of VGG8's blocks (batch 64, width 0.25) are 10 ms a GFLOP + 0.1 ms a MB of the forward pass's operands, to 10 %:
# ten operations a byte. Without the second term a block of large images with few channels seems far too cheap.
_OPERATIONS_PER_BYTE = 10
# Adam reads parameter, gradient and two moments and writes three of them, 4 bytes each.
_UPDATE_BYTES = 28


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one module for one batch.

    Attributes:
      operations: floating-point operations of its forward pass.
      traffic: bytes that the operations of its forward pass read and write, before any fusion.
      parameters: number of trained values.
    """

    operations: float
    traffic: float
    parameters: int

    def training(self, *, input_gradient: bool = True) -> float:
        """Cost of forward pass, backward pass and update, in floating-point operations.

        The backward pass takes the forward pass's operations twice: for the parameters and for the input. The first
        block of a stage needs no gradient of its input. After fusion the traffic of all passes is about what that of
        the forward pass would be without.
        """
        passes = 3 if input_gradient else 2
        traffic = self.traffic + self.parameters * _UPDATE_BYTES
        return passes * self.operations + traffic * _OPERATIONS_PER_BYTE


def call_module(module: Any, *inputs: Any) -> Any:
    """``module(*inputs)``."""
    return module(*inputs)


def module_cost(module: nnx.Module, *inputs: Any, call: Callable[..., Any] = call_module) -> Cost:
    """The cost of ``call(module, *inputs)``, from XLA's analysis of the program before optimisation.

    Args:
      module: any NNX module.
      *inputs: pytrees of arrays or ``jax.ShapeDtypeStruct``.
      call: how the module is called.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> cost = module_cost(nnx.Linear(10, 20, rngs=nnx.Rngs(0)), jax.ShapeDtypeStruct((5, 10), jnp.float32))
      >>> cost.operations >= 2 * 5 * 10 * 20, cost.parameters
      (True, 220)

    The body of a ``lax.scan`` counts as often as it is run; that of a ``lax.while_loop`` once.
    """
    graphdef, params, rest = split(module)

    def run(params: Any, rest: Any, inputs: Any) -> Any:
        return call(nnx.merge(graphdef, params, rest, copy=True), *inputs)

    operations, traffic = _analysis(run, params, rest, inputs)
    return Cost(operations, traffic, sum(leaf.size for leaf in jax.tree.leaves(params)))


def _analysis(function: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """Floating-point operations and bytes of a function; XLA counts what is in a loop only once."""
    traced = jax.jit(function).trace(*arguments)
    # Not for the CPU, whose own forms of convolutions and products (loops, calls of a library) hide what is computed:
    # costs, and so the cut, are the same on all devices.
    try:
        analysis = traced.lower(lowering_platforms=("tpu",)).cost_analysis() or {}
    except (NotImplementedError, ValueError):
        # What exists for one kind of device only, such as a call back to the host, is counted for that.
        analysis = traced.lower().cost_analysis() or {}
    operations, traffic = float(analysis.get("flops", 0.0)), float(analysis.get("bytes accessed", 0.0))
    for body, length in _scans(traced.jaxpr.jaxpr):
        once = _analysis(jaxpr_as_fun(body), *body.in_avals)
        operations += (length - 1) * once[0]
        traffic += (length - 1) * once[1]
    return operations, traffic


def _scans(jaxpr: Jaxpr) -> Iterator[tuple[ClosedJaxpr, int]]:
    """The outermost loops of a program: their body and how often it is run."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation.params["jaxpr"], equation.params["length"]
            continue
        for inner in inner_programs(equation):
            yield from _scans(inner)


def inner_programs(equation: Any) -> Iterator[Jaxpr]:
    """The programs that an operation of a program is made of, such as those of a jitted function."""
    for value in equation.params.values():
        if isinstance(value, ClosedJaxpr | Jaxpr):
            yield value.jaxpr if isinstance(value, ClosedJaxpr) else value


@dataclasses.dataclass(frozen=True)
class MeasuredCost:
    """Seconds of one module for one batch on this machine.

    Attributes:
      whole: forward pass, backward pass with the gradient of the input, update.
      first: the same without the gradient of the input.
    """

    whole: float
    first: float

    def training(self, *, input_gradient: bool = True) -> float:
        """Seconds of forward pass, backward pass and update."""
        return self.whole if input_gradient else self.first


def measured_cost(
    module: nnx.Module, *inputs: Any, call: Callable[..., Any] = call_module, repeats: int = 5
) -> MeasuredCost:
    """The time of training ``module`` on inputs of these shapes by Adam, on the default device.

    Args:
      module: any NNX module.
      *inputs: pytrees of arrays or ``jax.ShapeDtypeStruct``; the first one is what a gradient is computed of. Only
        shapes and dtypes are used.
      call: how the module is called, as for :func:`module_cost`.
      repeats: measurements, of which the median counts; at least 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> cost = measured_cost(nnx.Linear(10, 20, rngs=nnx.Rngs(0)), jax.ShapeDtypeStruct((5, 10), jnp.float32))
      >>> cost.whole > 0 and cost.first > 0
      True
    """
    graphdef, params, rest = split(module)
    key = jax.random.key(0)

    def fill(x: Any) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jax.random.normal(key, x.shape, x.dtype)
        return jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) % 2

    first, *others = (jax.tree.map(fill, tree) for tree in inputs)
    floating, put_back = floating_leaves(first)

    def loss(params: Any, floating: list[jax.Array]) -> jax.Array:
        outputs = call(nnx.merge(graphdef, params, rest, copy=True), put_back(floating), *others)
        values, _ = floating_leaves(outputs)
        # Not linear in the outputs: XLA would do without them otherwise.
        return sum((jnp.sum(jnp.square(x.astype(jnp.float32))) for x in values), jnp.float32(0))

    def step(which: tuple[int, ...], params: Any, moments: Any, floating: list[jax.Array]) -> Any:
        gradient, *of_input = jax.grad(loss, which)(params, floating)
        moments = (
            jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradient),
            jax.tree.map(lambda m, g: 0.999 * m + 0.001 * g * g, moments[1], gradient),
        )
        params = jax.tree.map(lambda p, m, v: p - 1e-3 * m / (jnp.sqrt(v) + 1e-8), params, *moments)
        return params, moments, of_input

    seconds = []
    for which in ((0, 1), (0,)):
        run = jax.jit(step, static_argnums=0)
        moments = (jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))
        jax.block_until_ready(run(which, params, moments, floating))
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            jax.block_until_ready(run(which, params, moments, floating))
            times.append(time.perf_counter() - began)
        seconds.append(statistics.median(times))
    return MeasuredCost(*seconds)


def build_loss(objective: Objective, features: Any, rngs: nnx.Rngs, companion: Any) -> nnx.Module | None:
    """The local loss of a stage whose blocks return ``features``; arguments as for :meth:`scpl_jax.Objective.build`.

    ``companion`` is what comes along from the stage before, shapes and dtypes; None: nothing, or there is none before.
    """
    extra: dict[str, Any] = {} if companion is None or objective.sends is None else {"companion": companion}
    return objective.build(objective.seen(features), rngs=rngs, **extra)


class Prices:
    """Costs of stages from those of their parts, each of which is estimated or measured once.

    Args:
      blocks: of the network, without its classifier.
      classifier: the last block, or None.
      inputs: shapes and dtypes of what each block and the classifier are given.
      end_to_end: whether stages hand gradients back.
      measured: in seconds on this machine instead of the compiler's estimate.

    Attributes:
      labels: shape and dtype of a batch's labels.
    """

    def __init__(
        self,
        blocks: Sequence[nnx.Module],
        classifier: nnx.Module | None,
        inputs: Sequence[Any],
        *,
        end_to_end: bool,
        measured: bool,
    ):
        self.labels = jax.ShapeDtypeStruct((jax.tree.leaves(inputs[0])[0].shape[0],), "int32")
        self._cost_of: Any = measured_cost if measured else module_cost
        self._inputs, self._end_to_end = inputs, end_to_end
        self._blocks = [self._cost_of(block, x) for block, x in zip(blocks, inputs[:-1], strict=True)]
        # Its input is detached or not; the difference is one product of many.
        self._classifier = 0.0 if classifier is None else self._cost_of(classifier, inputs[-1]).training()
        # Objectives are compared, as one of one's own need not be hashable: stages with equal ones share the work.
        self._losses: dict[tuple[int, int], list[tuple[Objective, float]]] = collections.defaultdict(list)

    def of_loss(self, stop: int, objective: Objective, index: int, companion: Any) -> float:
        """A training step of the local loss behind block ``stop`` - 1, as that of stage ``index``."""
        known = self._losses[stop, 0 if companion is None else index]
        found = next((cost for other, cost in known if other == objective), None)
        if found is not None:
            return found
        features = objective.seen(self._inputs[stop])
        loss = build_loss(objective, features, nnx.Rngs(0), companion if index else None)
        given = (features, self.labels, companion)
        cost = 0.0 if loss is None else self._cost_of(loss, *given, call=objective.local_loss).training()
        known.append((objective, cost))
        return cost

    def of_stage(self, start: int, stop: int, objective: Objective, index: int, companion: Any) -> float:
        """A training step of the stage with the blocks from ``start`` to ``stop`` - 1, local loss included."""
        # The first block of a stage needs no gradient of its input, unless it has to be handed back.
        handed_back = self._end_to_end and start > 0
        costs = enumerate(self._blocks[start:stop])
        total: float = sum(c.training(input_gradient=index > 0 or handed_back) for index, c in costs)
        total += self.of_loss(stop, objective, index, companion)
        return total + (self._classifier if stop == len(self._blocks) else 0.0)
