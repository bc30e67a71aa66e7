"""The network's own classification loss: ordinary backpropagation."""

import dataclasses
from typing import Any, ClassVar

from flax import nnx

from scpl_jax.objectives.base import Objective


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Objective):
    """No local loss: minimise the cross-entropy of the network's classifier.

    For all stages this is backpropagation through the whole network, whose stages then hand gradients back. For the
    last stage only, beside local objectives for the others, it trains that stage's blocks.

    Example:
      >>> CrossEntropy().build(None, rngs=None) is None
      True
    """

    classifier_gradient: bool = True
    local: ClassVar[bool] = False

    def build(self, features: Any, *, rngs: nnx.Rngs) -> None:
        """Nothing to build: the classifier is one of the network's blocks."""
        return
