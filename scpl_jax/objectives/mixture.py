"""A weighted sum of objectives."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scpl_jax.objectives.base import Exit, Objective, Place, classes_of, common_classes, summary_of
from scpl_jax.objectives.local import LocalObjective, ReadThrough


class MixedLoss(nnx.Module):
    """Weighted sum of the losses of several modules, each with parameters of its own."""

    def __init__(self, weights: tuple[float, ...], losses: list[nnx.Module]):
        self.weights = weights
        self.losses = nnx.List(losses)

    def __call__(self, features: Any, labels: jax.Array) -> jax.Array:
        """Features and labels (N,) to a scalar."""
        total = jnp.float32(0)
        for weight, loss in zip(self.weights, self.losses, strict=True):
            total = total + weight * loss(_given(loss, features), labels)
        return total


class MixedExit(MixedLoss):
    """The same where at least one of the losses can classify: the first of them is the stage's exit."""

    def logits(self, features: Any) -> jax.Array:
        """Features to (N, classes)."""
        exit_ = next(loss for loss in self.losses if isinstance(loss, Exit))
        return exit_.logits(_given(exit_, features))


def _given(loss: nnx.Module, features: Any) -> Any:
    return features if isinstance(loss, ReadThrough) else summary_of(features)


@dataclasses.dataclass(frozen=True)
class Mixture(LocalObjective):
    """A weighted sum of local objectives, each with a head of its own on the same features.

    Args:
      terms: pairs of a weight, greater than 0, and an objective with a local loss.
      aux: an auxiliary network that all terms share; a term may have one of its own, which then reads what this one
        returns. Otherwise as for :class:`~scpl_jax.objectives.LocalObjective`, and ``classifier_gradient``, too.

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

    def __post_init__(self) -> None:
        super().__post_init__()
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

    def at(self, place: Place) -> "Mixture":
        """The mixture with the auxiliary networks, its own and those of the terms, of a stage at this place."""
        terms = tuple((weight, objective.at(place)) for weight, objective in self.terms)
        return dataclasses.replace(super().at(place), terms=terms)

    def seen(self, features: Any) -> Any:
        """All of a message where there is an auxiliary network, else its summary."""
        whole = self.aux is not None or any(getattr(one, "aux", None) is not None for _, one in self.terms)
        return features if whole else summary_of(features)

    def build_loss(self, features: Any, *, rngs: nnx.Rngs) -> MixedLoss:
        """The losses of all terms for features of this shape."""
        losses = [objective.build(objective.seen(features), rngs=rngs) for _, objective in self.terms]
        modules = [loss for loss in losses if loss is not None]
        kind = MixedExit if any(isinstance(loss, Exit) for loss in modules) else MixedLoss
        return kind(tuple(weight for weight, _ in self.terms), modules)
