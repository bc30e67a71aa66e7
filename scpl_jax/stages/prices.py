"""What the stages of a network would cost, at any cut."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from scpl_jax.objectives import Objective
from scpl_jax.objectives.base import summary_of
from scpl_jax.stages.cost import measured_cost, module_cost


def build_loss(objective: Objective, features: Any, rngs: nnx.Rngs, companion: Any) -> nnx.Module | None:
    """A stage's local loss.

    Args:
      objective: of the stage.
      features: what its blocks return, shapes and dtypes.
      rngs: source of randomness for the initial parameters.
      companion: what comes along from the stage before, shapes and dtypes; None: nothing, or there is none before.
    """
    extra: dict[str, Any] = {} if companion is None else {"companion": companion}
    return objective.build(summary_of(features), rngs=rngs, **extra)


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
        self._losses: dict[tuple[int, int], float] = {}

    def of_loss(self, stop: int, objective: Objective, index: int, companion: Any) -> float:
        """A training step of the local loss behind block ``stop`` - 1, as that of stage ``index``."""
        if (stop, index) not in self._losses:
            features = summary_of(self._inputs[stop])
            loss = build_loss(objective, features, nnx.Rngs(0), companion if index else None)
            given = (features, self.labels, companion)
            cost = 0.0 if loss is None else self._cost_of(loss, *given, call=objective.local_loss).training()
            self._losses[stop, index] = cost
        return self._losses[stop, index]

    def of_stage(self, start: int, stop: int, objective: Objective, index: int, companion: Any) -> float:
        """A training step of the stage with the blocks from ``start`` to ``stop`` - 1, local loss included."""
        # The first block of a stage needs no gradient of its input, unless it has to be handed back.
        handed_back = self._end_to_end and start > 0
        costs = enumerate(self._blocks[start:stop])
        total: float = sum(c.training(input_gradient=index > 0 or handed_back) for index, c in costs)
        total += self.of_loss(stop, objective, index, companion)
        return total + (self._classifier if stop == len(self._blocks) else 0.0)
