"""What every objective has."""

import abc
from collections.abc import Iterable
from typing import Any, ClassVar

import jax
from flax import nnx


class Objective(abc.ABC):
    """The description of what one stage minimises: a value object without arrays, usually a frozen dataclass.

    :func:`scpl_jax.decouple` calls :meth:`build` once for each stage; what it returns belongs to the stage: its
    parameters are trained by the stage's optimizer, its batch statistics and random state are the stage's. An objective
    with a field ``num_classes`` trains by no label outside of them: such labels are refused.

    A minimal objective of one's own:

      >>> import dataclasses
      >>> from flax import nnx
      >>> @dataclasses.dataclass(frozen=True)
      ... class Shrink(Objective):
      ...     weight: float = 1.0
      ...     def build(self, features, *, rngs):
      ...         class Loss(nnx.Module):
      ...             def __call__(self, features, labels):
      ...                 return (features**2).mean()
      ...         return Loss()
    """

    #: Whether the gradient of the network's classifier reaches the last stage's blocks. It never goes further back.
    classifier_gradient: bool = False
    #: Whether a stage without the classifier has something to minimise.
    local: ClassVar[bool] = True
    #: Whether a code of the label accompanies the message from stage to stage, as in associated learning.
    coded: ClassVar[bool] = False

    @property
    def scores(self) -> bool:
        """Whether its answers are no logits but scores from 0 to 1, which divided by their sum are probabilities."""
        return False

    @abc.abstractmethod
    def build(self, features: Any, *, rngs: nnx.Rngs) -> nnx.Module | None:
        """The local loss of one stage.

        Args:
          features: what the stage hands on, a pytree of ``jax.ShapeDtypeStruct``, batch first. Of a message with an
            attribute ``summary``, such as :class:`scpl_jax.models.TextMessage`, it is that.
          rngs: source of randomness for the initial parameters.

        Returns:
          A module to be called with (features, labels (N,) integer), which returns a scalar loss, to which examples
          with the label -1 must not contribute; or None, if the stage minimises the network's own classification loss
          only. If the module has a method ``logits`` (features to (N, classes)), the stage is an exit: its accuracy is
          measured, and inference may stop there.

        Raises:
          ValueError: the objective can't use such features.
        """


def summary_of(features: Any) -> Any:
    """What local losses see of what a block hands on: its attribute ``summary`` if it has one, else all of it.

    Example:
      >>> summary_of(3)
      3
    """
    return getattr(features, "summary", features)


def one_array(features: Any, who: str) -> jax.ShapeDtypeStruct:
    """The only array of ``features``, which must have a batch axis and at least one more.

    Raises:
      ValueError: there are several arrays, or it has one axis only.
    """
    leaves: list[jax.ShapeDtypeStruct] = jax.tree.leaves(features)
    if len(leaves) != 1 or leaves[0].ndim < 2:
        shapes = [tuple(leaf.shape) for leaf in leaves]
        raise ValueError(
            f"{who} needs features that are one array of shape (batch, ...), got {shapes}; "
            "reduce the message in the block before, or write an objective of your own"
        )
    return leaves[0]


def check_classes(num_classes: int) -> None:
    """Refuse a number of classes below 1.

    Raises:
      ValueError: it is.
    """
    if num_classes < 1:
        raise ValueError(f"the number of classes must be at least 1, got {num_classes}")


def classes_of(objective: Objective) -> int | None:
    """Number of classes that an objective's labels may have: its ``num_classes``; None where it has none.

    A function, not an attribute of every objective, so that one of one's own is free to use the name for a field.

    Example:
      >>> from scpl_jax.objectives import LocalClassifier, SupCon
      >>> classes_of(LocalClassifier(10)), classes_of(SupCon())
      (10, None)
    """
    return getattr(objective, "num_classes", None)


def common_classes(numbers: Iterable[int | None]) -> int | None:
    """The one number of classes that all give that know one; None where nobody does.

    Raises:
      ValueError: they differ.

    Example:
      >>> common_classes([None, 10, 10])
      10
    """
    known = sorted({number for number in numbers if number is not None})
    if len(known) > 1:
        raise ValueError(
            f"objectives and classifier must have the same number of classes, got {', '.join(map(str, known))}"
        )
    return known[0] if known else None
