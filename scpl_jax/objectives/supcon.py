"""The objective of SCPL: projection head and supervised contrastive loss."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scpl_jax.losses import supervised_contrastive
from scpl_jax.losses.labels import IGNORE, is_kept
from scpl_jax.losses.rows import unit_rows
from scpl_jax.objectives.auxiliary import traced
from scpl_jax.objectives.base import one_array
from scpl_jax.objectives.heads import ProjectionHead, check_head
from scpl_jax.objectives.local import LocalObjective


class Queued(nnx.Variable):
    """What a queue of earlier projections holds; it is not trained, and a checkpoint has it."""


class ProjectionQueue(nnx.Module):
    """The last projections that had a label, of length 1 or 0, and their labels.

    Args:
      size: how many, at least 1.
      like: shape (N, D) and dtype of a batch of projections; the queue is kept in at least float32.

    Example:
      >>> queue = ProjectionQueue(3, jax.ShapeDtypeStruct((2, 4), jnp.bfloat16))
      >>> queue.add(jnp.ones((2, 4)), jnp.array([5, -1]))
      >>> queue()[0].dtype, queue()[1].tolist()  # the first two are empty
      (dtype('float32'), [-1, -1, 5])
    """

    def __init__(self, size: int, like: jax.ShapeDtypeStruct):
        self.rows = Queued(jnp.zeros((size, like.shape[1]), jnp.promote_types(like.dtype, jnp.float32)))
        self.labels = Queued(jnp.full(size, IGNORE, jnp.int32))
        # The name by which ``train()`` and ``eval()`` of Flax find it.
        self.use_running_average = False

    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """(rows (size, D), labels (size,), int32, -1 where an entry is empty), oldest first."""
        return self.rows[...], self.labels[...]

    def add(self, projections: jax.Array, labels: jax.Array) -> None:
        """Put in a batch's projections (N, D) that have a label, in training mode; the oldest entries leave."""
        if self.use_running_average:
            return
        rows, size = self.rows[...], self.rows.shape[0]
        new = unit_rows(jax.lax.stop_gradient(projections).astype(rows.dtype))
        found = jnp.concatenate([self.labels[...], labels.astype(jnp.int32)])
        # Whatever is empty or without a label goes to the front, so that it takes no entry from those with one.
        last = jnp.argsort(is_kept(found), stable=True)[-size:]
        self.rows[...], self.labels[...] = jnp.concatenate([rows, new])[last], found[last]


class SupConLoss(nnx.Module):
    """A projection head and the supervised contrastive loss of its output, perhaps with a queue of earlier ones."""

    def __init__(self, head: ProjectionHead, temperature: float, count_anchor: bool, queue: ProjectionQueue | None):
        self.head = head
        self.temperature = temperature
        self.count_anchor = count_anchor
        self.queue = queue

    def __call__(self, features: jax.Array, labels: jax.Array) -> jax.Array:
        """Features (N, ...) and labels (N,) to a scalar."""
        options: dict[str, Any] = {"count_anchor": self.count_anchor}
        projections = self.head(features)
        if self.queue is not None:
            options["queue"] = self.queue()
            self.queue.add(projections, labels)
        return supervised_contrastive(projections, labels, self.temperature, **options)


@dataclasses.dataclass(frozen=True)
class SupCon(LocalObjective):
    """Supervised contrastive local loss: the objective of SCPL (arXiv 2602.00062).

    Args:
      temperature: T of :func:`scpl_jax.losses.supervised_contrastive`, greater than 0.
      head: kind of projection head, one of ``scpl_jax.objectives.HEADS``.
      head_dims: its layer sizes; None for the kind's own, 512 and 1024.
      head_pool: average a feature map down to this side before the head; 0 for none, as in the paper.
      count_anchor: the loss of the released code, see :func:`scpl_jax.losses.supervised_contrastive`.
      queue: so many of the stage's last projections that had a label are further rows to compare with; 0: none. They
        are from the batches before, and no gradient passes to them. They are a part of the stage's state.
      aux, classifier_gradient: as for :class:`~scpl_jax.objectives.LocalObjective`; the paper has neither.
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
    init: str = "torch"
    dtype: Any = None
    queue: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature}; 0.1 is the usual value")
        if self.queue < 0:
            raise ValueError(f"queue must be at least 0, got {self.queue}; 0 is no queue")
        check_head(self.head, self.head_dims, self.head_pool)

    def build_loss(self, features: Any, *, rngs: nnx.Rngs) -> SupConLoss:
        """The head for features of this shape, with its loss."""
        one, of_head = one_array(features, "SupCon"), (self.head, self.head_dims, self.head_pool)
        head = ProjectionHead(one.shape[1:], *of_head, rngs=rngs, init=self.init, dtype=self.dtype)
        queue = ProjectionQueue(self.queue, traced(head, one)) if self.queue else None
        return SupConLoss(head, self.temperature, self.count_anchor, queue)
