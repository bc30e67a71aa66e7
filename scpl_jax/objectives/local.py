"""What local objectives have in common that may read a stage's features through layers of their own."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
from flax import nnx

from scpl_jax.objectives.auxiliary import AuxiliaryNetwork, named_auxiliary, traced
from scpl_jax.objectives.base import Exit, Objective, Place, summary_of

Auxiliary = Callable[..., nnx.Module | None]


class ReadThrough(nnx.Module):
    """A local loss that reads features through an auxiliary network."""

    def __init__(self, auxiliary: nnx.Module, loss: Any):
        self.auxiliary = auxiliary
        self.loss = loss

    def _read(self, features: Any) -> Any:
        return summary_of(self.auxiliary(features))

    def __call__(self, features: Any, labels: jax.Array) -> jax.Array:
        """What the stage hands on, batch first, and labels (N,) to a scalar."""
        value: jax.Array = self.loss(self._read(features), labels)
        return value


class ReadThroughExit(ReadThrough):
    """The same of a local loss that can tell classes."""

    def logits(self, features: Any) -> jax.Array:
        """What the stage hands on to (N, classes)."""
        logits: jax.Array = self.loss.logits(self._read(features))
        return logits


@dataclasses.dataclass(frozen=True)
class LocalObjective(Objective):
    """A local objective that may read features through an auxiliary network.

    Args:
      aux: the auxiliary network: a name of ``scpl_jax.objectives.AUXILIARIES``, a description such as
        :class:`scpl_jax.objectives.Blocks`, or a function ``(features, targets, *, rngs)`` to a module, or to None for
        a stage without. Features are shapes and dtypes of what the stage hands on, a message as a whole; targets are
        those of the labels. The module is called with the features, and what it returns, or its ``summary``, is what
        the objective reads. It is trained with the stage and never handed on; an exit reads through it.
      classifier_gradient: let the gradient of the network's classifier into the last stage.

    Raises:
      ValueError: ``aux`` is none of these, at construction.

    Example:
      >>> import jax.numpy as jnp
      >>> from scpl_jax.objectives import LocalClassifier
      >>> features = jax.ShapeDtypeStruct((8, 4, 4, 3), jnp.float32)
      >>> loss = LocalClassifier(5, aux="conv").build(features, rngs=nnx.Rngs(0))
      >>> loss.logits(jnp.ones((8, 4, 4, 3))).shape
      (8, 5)
    """

    aux: str | Auxiliary | None = dataclasses.field(default=None, kw_only=True)
    classifier_gradient: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.aux, str):
            object.__setattr__(self, "aux", named_auxiliary(self.aux))
        if self.aux is not None and not callable(self.aux):
            raise ValueError(f"aux must be a name, a function or None, got {self.aux!r}")

    @abc.abstractmethod
    def build_loss(self, features: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The local loss of what the auxiliary network returns; of the stage's features where there is none.

        Args:
          features: shapes and dtypes, batch first.
          rngs: source of randomness for the initial parameters.
        """

    def at(self, place: Place) -> Self:
        """The objective with the auxiliary network of a stage at this place."""
        return dataclasses.replace(self, aux=self.aux.at(place)) if isinstance(self.aux, AuxiliaryNetwork) else self

    def seen(self, features: Any) -> Any:
        """All of a message where there is an auxiliary network, else its summary."""
        return summary_of(features) if self.aux is None else features

    def auxiliary(self, features: Any, rngs: nnx.Rngs) -> tuple[nnx.Module | None, Any]:
        """(auxiliary network of features of this shape or None, shapes and dtypes of what it makes of them).

        Raises:
          ValueError: ``aux`` made something that is no module, or it can't use such features.
        """
        if self.aux is None or isinstance(self.aux, str):
            return None, features
        targets = jax.ShapeDtypeStruct(jax.tree.leaves(features)[0].shape[:1], "int32")
        made = self.aux(features, targets, rngs=rngs)
        if made is None:
            return None, features
        if not isinstance(made, nnx.Module):
            raise ValueError(f"an auxiliary network must be an nnx.Module or None, got a {type(made).__name__}")
        return made, traced(made, features)

    def build(self, features: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The local loss for features of this shape, behind its auxiliary network if it has one."""
        if self.aux is None:
            return self.build_loss(features, rngs=rngs)
        auxiliary, read = self.auxiliary(features, rngs)
        loss = self.build_loss(summary_of(read), rngs=rngs)
        kind = ReadThroughExit if isinstance(loss, Exit) else ReadThrough
        return kind(nnx.Sequential(summary_of) if auxiliary is None else auxiliary, loss)
