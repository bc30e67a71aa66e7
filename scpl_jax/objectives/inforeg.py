"""The local loss of DeInfoReg: information regularisation, and a classifier that reads the head's output."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from scpl_jax.losses import cross_entropy, information_regularisation
from scpl_jax.models.layers import batch_norm, linear
from scpl_jax.objectives.base import Objective, check_classes, one_array
from scpl_jax.objectives.heads import ProjectionHead


class InfoRegLoss(nnx.Module):
    """A projection head, the three parts of information regularisation, and a classifier."""

    def __init__(self, head: ProjectionHead, norm: nnx.Module, classifier: nnx.Module, weight: float):
        self.head = head
        self.norm = norm
        self.classifier = classifier
        self.weight = weight

    def _classify(self, projected: jax.Array) -> jax.Array:
        logits: jax.Array = self.classifier(jax.nn.relu(self.norm(projected)))
        return logits

    def logits(self, features: jax.Array) -> jax.Array:
        """(N, ...) to (N, classes)."""
        return self._classify(self.head(features))

    def __call__(self, features: jax.Array, labels: jax.Array) -> jax.Array:
        """Features (N, ...) and labels (N,) to a scalar."""
        projected = self.head(features)
        logits = self._classify(projected)
        parts = information_regularisation(projected, labels, logits.shape[-1])
        return sum(parts) + self.weight * cross_entropy(logits, labels)


@dataclasses.dataclass(frozen=True)
class InfoReg(Objective):
    """Variance, invariance to the label and covariance of the projected features (DeInfoReg).

    A classifier (batch norm, ReLU, linear) reads the head's output; its gradient, weighted by ``classifier_weight``,
    passes on into head and blocks, as in the released code's merged form.

    Args:
      num_classes: number of classes, at least 1.
      dims: layer sizes of the head, linear with batch norm and ReLU between them; two or more.
      pool: average a feature map down to this side before the head; 0 for none.
      classifier_weight: of the classifier's cross-entropy.
      init, dtype: see :class:`scpl_jax.models.LayerOptions`. The losses are at least float32.

    Raises:
      ValueError: a value out of range, at construction.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = InfoReg(5, (16, 8)).build(jax.ShapeDtypeStruct((8, 4, 4, 3), jnp.float32), rngs=nnx.Rngs(0))
      >>> loss.logits(jnp.ones((8, 4, 4, 3))).shape
      (8, 5)
    """

    num_classes: int
    dims: tuple[int, ...] = (512, 1024)
    pool: int = 2
    classifier_weight: float = 1e-3
    init: str = "torch"
    dtype: Any = None

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        if self.classifier_weight < 0:
            raise ValueError(f"classifier_weight must be at least 0, got {self.classifier_weight}")

    def build(self, features: Any, *, rngs: nnx.Rngs) -> InfoRegLoss:
        """Head and classifier for features of this shape, with their losses."""
        common: dict[str, Any] = {"rngs": rngs, "init": self.init, "dtype": self.dtype}
        shape = one_array(features, "InfoReg").shape[1:]
        head = ProjectionHead(shape, "mlp-bn", self.dims, self.pool, **common)
        width = self.dims[-1]
        norm = batch_norm(width, rngs=rngs, dtype=self.dtype)
        return InfoRegLoss(head, norm, linear(width, self.num_classes, **common), self.classifier_weight)
