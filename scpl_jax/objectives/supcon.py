"""The objective of SCPL: projection head and supervised contrastive loss."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from scpl_jax.losses import supervised_contrastive
from scpl_jax.objectives.base import Objective, one_array
from scpl_jax.objectives.heads import ProjectionHead, check_head


class SupConLoss(nnx.Module):
    """A projection head and the supervised contrastive loss of its output."""

    def __init__(self, head: ProjectionHead, temperature: float, count_anchor: bool):
        self.head = head
        self.temperature = temperature
        self.count_anchor = count_anchor

    def __call__(self, features: jax.Array, labels: jax.Array) -> jax.Array:
        """Features (N, ...) and labels (N,) to a scalar."""
        return supervised_contrastive(self.head(features), labels, self.temperature, count_anchor=self.count_anchor)


@dataclasses.dataclass(frozen=True)
class SupCon(Objective):
    """Supervised contrastive local loss: the objective of SCPL (arXiv 2602.00062).

    Args:
      temperature: T of :func:`scpl_jax.losses.supervised_contrastive`, greater than 0.
      head: kind of projection head, one of ``scpl_jax.objectives.HEADS``.
      head_dims: its layer sizes; None for the kind's own, 512 and 1024.
      head_pool: average a feature map down to this side before the head; 0 for none, as in the paper.
      count_anchor: the loss of the released code, see :func:`scpl_jax.losses.supervised_contrastive`.
      classifier_gradient: let the classifier's gradient into the last stage (the paper does not).
      init, dtype: of the head, see :class:`scpl_jax.models.LayerOptions`. The loss is at least float32.

    Raises:
      ValueError: a value out of range, at construction.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> loss = SupCon(head_dims=(32, 16)).build(jax.ShapeDtypeStruct((8, 4, 4, 3), jnp.float32), rngs=nnx.Rngs(0))
      >>> loss(jnp.ones((8, 4, 4, 3)), jnp.arange(8) % 2).shape
      ()
    """

    temperature: float = 0.1
    head: str = "mlp"
    head_dims: tuple[int, ...] | None = None
    head_pool: int = 0
    count_anchor: bool = False
    classifier_gradient: bool = False
    init: str = "torch"
    dtype: Any = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature}; 0.1 is the usual value")
        check_head(self.head, self.head_dims, self.head_pool)

    def build(self, features: Any, *, rngs: nnx.Rngs) -> SupConLoss:
        """The head for features of this shape, with its loss."""
        shape, of_head = one_array(features, "SupCon").shape[1:], (self.head, self.head_dims, self.head_pool)
        head = ProjectionHead(shape, *of_head, rngs=rngs, init=self.init, dtype=self.dtype)
        return SupConLoss(head, self.temperature, self.count_anchor)
