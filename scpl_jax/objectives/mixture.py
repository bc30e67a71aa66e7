"""A weighted sum of objectives."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from scpl_jax.objectives.base import Exit, Objective, Place, classes_of, common_classes, summary_of
from scpl_jax.objectives.local import LocalObjective


class MixedLoss(nnx.Module):
    """Weighted sum of the losses of several modules, each with parameters of its own.

    Args:
      weights: of the losses.
      losses: the modules.
      direct: of each, whether it reads the stage's features themselves and not through the auxiliary network.
      auxiliary: what the others read through; None: nothing.
    """

    def __init__(
        self,
        weights: tuple[float, ...],
        losses: Sequence[nnx.Module],
        direct: tuple[bool, ...],
        auxiliary: nnx.Module | None,
    ):
        self.weights, self.direct = weights, direct
        self.losses = nnx.List(losses)
        self.auxiliary = auxiliary

    def given(self, features: Any) -> list[Any]:
        """What each of the losses reads of what the stage hands on."""
        read = features if self.auxiliary is None else self.auxiliary(features)
        return [summary_of(features if direct else read) for direct in self.direct]

    def __call__(self, features: Any, labels: jax.Array) -> jax.Array:
        """Features and labels (N,) to a scalar."""
        total = jnp.float32(0)
        for weight, loss, read in zip(self.weights, self.losses, self.given(features), strict=True):
            total = total + weight * loss(read, labels)
        return total


class MixedExit(MixedLoss):
    """The same where at least one of the losses can classify: the first of them is the stage's exit."""

    def logits(self, features: Any) -> jax.Array:
        """Features to (N, classes)."""
        both = zip(self.losses, self.given(features), strict=True)
        return next(loss.logits(read) for loss, read in both if isinstance(loss, Exit))


@dataclasses.dataclass(frozen=True)
class Mixture(LocalObjective):
    """A weighted sum of local objectives, each with a head of its own on the same features.

    Args:
      terms: pairs of a weight, greater than 0, and an objective with a local loss.
      aux: an auxiliary network that all terms share but those that read features ``directly``; a term has none of its
        own. Otherwise as for :class:`~scpl_jax.objectives.LocalObjective`, and ``classifier_gradient``, too.

    Raises:
      ValueError: no term, a weight that is not a number greater than 0, an objective without a local loss, or one that
        answers otherwise than by logits or has an auxiliary network, at construction.

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
            name = type(objective).__name__
            if not (weight > 0 and math.isfinite(weight)):
                raise ValueError(f"a mixture's weights must be numbers greater than 0, got {weight}")
            if not objective.local:
                raise ValueError(f"{name} has no local loss to be mixed; LocalClassifier has")
            if objective.comes_back or not objective.takes_classifier:
                raise ValueError(f"{name} gives answers that go back through the stages and can't be mixed")
            if getattr(objective, "aux", None) is not None:
                raise ValueError(f"{name} in a mixture has aux; give it to the mixture, whose terms share one")
        common_classes(classes_of(one) for _, one in self.terms)

    @property
    def num_classes(self) -> int | None:
        """That of the terms that know it; None where no term does."""
        return common_classes(classes_of(objective) for _, objective in self.terms)

    @property
    def sends(self) -> Any:
        """What those terms send along that send something, in order; stages may differ in the others."""
        return tuple(objective.sends for objective in self._senders) or None

    @property
    def _senders(self) -> list[Objective]:
        return [objective for _, objective in self.terms if objective.sends is not None]

    def _part_of_each(self, companion: Any) -> list[Any]:
        """What came along for each term; None for those that nothing is sent to."""
        parts = iter(companion or (None,) * len(self._senders))
        return [None if objective.sends is None else next(parts) for _, objective in self.terms]

    def at(self, place: Place) -> Self:
        """The mixture of a stage at this place."""
        terms = tuple((weight, objective.at(place)) for weight, objective in self.terms)
        return dataclasses.replace(super().at(place), terms=terms)

    def build(self, features: Any, *, rngs: nnx.Rngs, companion: Any = None) -> MixedLoss:
        """The losses of all terms for features of this shape."""
        auxiliary, read = self.auxiliary(features, rngs)
        losses = []
        for (_, objective), part in zip(self.terms, self._part_of_each(companion), strict=True):
            extra = {} if part is None else {"companion": part}
            loss = objective.build(summary_of(features if objective.direct else read), rngs=rngs, **extra)
            assert loss is not None
            losses.append(loss)
        kind = MixedExit if any(isinstance(loss, Exit) for loss in losses) else MixedLoss
        direct = tuple(objective.direct for _, objective in self.terms)
        return kind(tuple(weight for weight, _ in self.terms), losses, direct, auxiliary)

    build_loss = build

    def accompany(self, message: Any, labels: jax.Array) -> Any:
        """What the terms add that send something, each its own; None where none adds anything."""
        parts = tuple(objective.accompany(message, labels) for objective in self._senders)
        return parts if any(part is not None for part in parts) else None

    def local_loss(self, module: Any, features: Any, labels: jax.Array, companion: Any) -> tuple[jax.Array, Any]:
        """The weighted sum, and what the terms make of what came along for them."""
        if companion is None:
            return module(features, labels), None
        total, carried = jnp.float32(0), []
        given = zip(self.terms, module.losses, module.given(features), self._part_of_each(companion), strict=True)
        for (weight, objective), loss, read, part in given:
            value, new = objective.local_loss(loss, read, labels, part)
            total = total + weight * value
            carried += [] if objective.sends is None else [new]
        return total, tuple(carried)
