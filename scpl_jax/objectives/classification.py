"""Classification losses: the network's own, which is backpropagation, and that of a classifier in every stage."""

import dataclasses
from typing import Any, ClassVar

import jax
from flax import nnx

from scpl_jax.losses import cross_entropy
from scpl_jax.objectives.base import Objective, check_classes, one_array
from scpl_jax.objectives.heads import ProjectionHead


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


class LocalClassification(nnx.Module):
    """A classifier of a stage's features and its cross-entropy."""

    def __init__(self, head: ProjectionHead, detach: bool):
        self.head = head
        self.detach = detach

    def logits(self, features: jax.Array) -> jax.Array:
        """(N, ...) to (N, classes)."""
        return self.head(features)

    def __call__(self, features: jax.Array, labels: jax.Array) -> jax.Array:
        """Features (N, ...) and labels (N,) to a scalar."""
        return cross_entropy(self.head(jax.lax.stop_gradient(features) if self.detach else features), labels)


@dataclasses.dataclass(frozen=True)
class LocalClassifier(Objective):
    """Cross-entropy of a classifier of the stage's own: early exit.

    Pooling, then a linear layer or several, as in :class:`~scpl_jax.objectives.ProjectionHead`.

    Args:
      num_classes: number of classes, at least 1.
      hidden: sizes of hidden layers; none for a linear classifier.
      pool: average a feature map down to this side first; 0 for none.
      detach: train only the classifier: none of its gradient reaches the stage's blocks.
      init, dtype: see :class:`scpl_jax.models.LayerOptions`. The loss is at least float32.

    Raises:
      ValueError: a value out of range, at construction.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = LocalClassifier(5).build(jax.ShapeDtypeStruct((8, 4, 4, 3), jnp.float32), rngs=nnx.Rngs(0))
      >>> loss.logits(jnp.ones((8, 4, 4, 3))).shape
      (8, 5)
    """

    num_classes: int
    hidden: tuple[int, ...] = ()
    pool: int = 2
    detach: bool = False
    init: str = "torch"
    dtype: Any = None

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        if min((*self.hidden, 1)) < 1 or self.pool < 0:
            raise ValueError(f"hidden sizes must be at least 1 and pool at least 0, got {self.hidden}, {self.pool}")

    def build(self, features: Any, *, rngs: nnx.Rngs) -> LocalClassification:
        """The classifier for features of this shape, with its loss."""
        shape, dims = one_array(features, "LocalClassifier").shape[1:], (*self.hidden, self.num_classes)
        kind = "mlp" if self.hidden else "linear"
        head = ProjectionHead(shape, kind, dims, self.pool, rngs=rngs, init=self.init, dtype=self.dtype)
        return LocalClassification(head, self.detach)
