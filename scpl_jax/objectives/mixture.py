"""A weighted sum of objectives."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scpl_jax.objectives.base import Exit, Objective, classes_of, common_classes


class MixedLoss(nnx.Module):
    """Weighted sum of the losses of several modules, each with parameters of its own."""

    def __init__(self, weights: tuple[float, ...], losses: list[nnx.Module]):
        self.weights = weights
        self.losses = nnx.List(losses)

    def __call__(self, features: Any, labels: jax.Array) -> jax.Array:
        """Features and labels (N,) to a scalar."""
        total = jnp.float32(0)
        for weight, loss in zip(self.weights, self.losses, strict=True):
            total = total + weight * loss(features, labels)
        return total


class MixedExit(MixedLoss):
    """The same where at least one of the losses can classify: the first of them is the stage's exit."""

    def logits(self, features: Any) -> jax.Array:
        """Features to (N, classes)."""
        return next(loss for loss in self.losses if isinstance(loss, Exit)).logits(features)


@dataclasses.dataclass(frozen=True)
class Mixture(Objective):
    """A weighted sum of local objectives, each with a head of its own on the same features.

    Args:
      terms: pairs of a weight, greater than 0, and an objective with a local loss.
      classifier_gradient: let the network's classifier's gradient into the last stage.

    Raises:
      ValueError: no term, a weight that is not a number greater than 0, or an objective without a local loss, at
        construction.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from scpl_jax.objectives import LocalClassifier, SupCon
      >>> both = Mixture(((1.0, SupCon(head="identity")), (0.5, LocalClassifier(5))))
      >>> loss = both.build(jax.ShapeDtypeStruct((8, 6), jnp.float32), rngs=nnx.Rngs(0))
      >>> loss(jnp.eye(8, 6), jnp.arange(8) % 5).shape, loss.logits(jnp.eye(8, 6)).shape
      ((), (8, 5))
    """

    terms: tuple[tuple[float, Objective], ...]
    classifier_gradient: bool = False

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("a mixture needs at least one term")
        for weight, objective in self.terms:
            if not (weight > 0 and math.isfinite(weight)):
                raise ValueError(f"a mixture's weights must be numbers greater than 0, got {weight}")
            if not objective.local:
                raise ValueError(f"{type(objective).__name__} has no local loss to be mixed; LocalClassifier has")
            if not objective.is_plain:
                raise ValueError(f"{type(objective).__name__} sends something along with messages and can't be mixed")
        common_classes(classes_of(one) for _, one in self.terms)

    @property
    def num_classes(self) -> int | None:
        """That of the terms that know it; None where no term does."""
        return common_classes(classes_of(objective) for _, objective in self.terms)

    def build(self, features: Any, *, rngs: nnx.Rngs) -> MixedLoss:
        """The losses of all terms for features of this shape."""
        losses = [objective.build(features, rngs=rngs) for _, objective in self.terms]
        modules = [loss for loss in losses if loss is not None]
        kind = MixedExit if any(isinstance(loss, Exit) for loss in modules) else MixedLoss
        return kind(tuple(weight for weight, _ in self.terms), modules)
