"""What local objectives have in common that read a stage's features through layers of their own."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from scpl_jax.objectives.auxiliary import AuxiliaryNetwork, named_auxiliary, traced
from scpl_jax.objectives.base import Exit, Objective, Place, summary_of

Auxiliary = str | Callable[..., nnx.Module | None]


class ReadThrough(nnx.Module):
    """A local loss that reads features through an auxiliary network."""

    def __init__(self, auxiliary: nnx.Module, loss: nnx.Module):
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
        :class:`scpl_jax.objectives.Blocks`, or a function (features, targets, *, rngs) to a module, or to None for a
        stage without. Features are shapes and dtypes of what the stage hands on, a message as a whole; targets are
        those of the labels. The module is called with the features, and what it returns, or its ``summary``, is what
        the objective reads. It is trained with the stage and never handed on; an exit reads through it.
      classifier_gradient: let the gradient of the network's classifier into the last stage.
    """

    aux: Auxiliary | None = dataclasses.field(default=None, kw_only=True)
    classifier_gradient: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.aux, str):
            object.__setattr__(self, "aux", named_auxiliary(self.aux))
        if self.aux is not None and not callable(self.aux):
            raise ValueError(f"aux must be a name, a function or None, got {self.aux!r}")

    @abc.abstractmethod
    def build_loss(self, features: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The local loss of what the auxiliary network returns; as :meth:`build` where there is none."""

    def at(self, place: Place) -> "LocalObjective":
        """The objective with the auxiliary network of a stage at this place."""
        return dataclasses.replace(self, aux=self.aux.at(place)) if isinstance(self.aux, AuxiliaryNetwork) else self

    def seen(self, features: Any) -> Any:
        """All of a message where there is an auxiliary network, else its summary."""
        return summary_of(features) if self.aux is None else features

    def build(self, features: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The local loss for features of this shape, behind its auxiliary network if it has one."""
        if self.aux is None:
            return self.build_loss(features, rngs=rngs)
        assert not isinstance(self.aux, str)
        targets = jax.ShapeDtypeStruct(jax.tree.leaves(features)[0].shape[:1], "int32")
        auxiliary = self.aux(features, targets, rngs=rngs)
        if auxiliary is None:
            auxiliary = nnx.Sequential(summary_of)
        if not isinstance(auxiliary, nnx.Module):
            raise ValueError(f"an auxiliary network must be an nnx.Module or None, got a {type(auxiliary).__name__}")
        loss = self.build_loss(summary_of(traced(auxiliary, features)), rngs=rngs)
        return (ReadThroughExit if isinstance(loss, Exit) else ReadThrough)(auxiliary, loss)
