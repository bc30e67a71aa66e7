"""What every objective has."""

import abc
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import jax
from flax import nnx


class Accompanied(NamedTuple):
    """A message with what an objective sends along, from one stage to the next; a pytree.

    Attributes:
      features: what the stage's blocks return, as without a companion.
      companion: a pytree of arrays with at least one axis; over data-parallel devices it is split along the first.
    """

    features: Any
    companion: Any


class Place(NamedTuple):
    """Where a stage is in its network.

    Attributes:
      stage: its number, from 0.
      num_stages: number of stages.
      later: how blocks like those behind it, classifier not counted, are made: their attribute ``architecture``, see
        :class:`scpl_jax.objectives.Blocks`; None of a block that has none.
      input: shapes and dtypes of the network's input.
    """

    stage: int
    num_stages: int
    later: tuple[Callable[..., nnx.Module] | None, ...] = ()
    input: Any = None


@runtime_checkable
class Exit(Protocol):
    """A local loss that can tell classes: its stage is an exit, whose accuracy is measured."""

    def logits(self, features: Any) -> jax.Array:
        """Features (N, ...) to (N, classes)."""


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
    #: Whether in a mixture it reads the stage's features themselves, never through an auxiliary network.
    direct: ClassVar[bool] = False
    #: Whether the network's own classifier is trained beside it, by the cross-entropy of its logits.
    takes_classifier: ClassVar[bool] = True

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
          only. If the module is an :class:`Exit`, its stage's accuracy is measured, and inference may stop there.
          Where :meth:`accompany` adds something to the message, ``build`` gets shapes and dtypes of it as
          ``companion=``, too, but for the network's first stage.

        Raises:
          ValueError: the objective can't use such features.
        """

    def at(self, place: Place) -> Self:
        """This objective as that of a stage at a place; it is the same everywhere unless it says otherwise."""
        return self

    def seen(self, features: Any) -> Any:
        """What a stage's local loss gets of what its blocks return: the ``summary`` of a message that has one."""
        return summary_of(features)

    # What follows is for rules that send something along with the messages, as associated learning does.

    def accompany(self, message: Any, labels: jax.Array) -> Any:
        """What the network's first stage adds to its message: a pytree of arrays, or None.

        Args:
          message: the network's input.
          labels: (N,), int32.
        """
        return None

    def local_loss(self, module: Any, features: Any, labels: jax.Array, companion: Any) -> tuple[jax.Array, Any]:
        """What a stage minimises, and what it makes of the companion.

        Args:
          module: of :meth:`build`, with the step's parameters.
          features: what the stage's blocks return.
          labels: (N,), int32; -1 for examples that must not contribute.
          companion: what came along with the message, or None.

        Returns:
          (scalar, the companion for the next stage). The next stage's gradient does not reach this one.
        """
        return module(features, labels), companion

    def answer(self, module: Any, features: Any) -> Any:
        """What a stage answers in evaluation: logits (N, classes), None where it is no exit."""
        return module.logits(features) if isinstance(module, Exit) else None

    def read_back(self, module: Any, answer: Any) -> Any:
        """What comes back: an answer of this stage, or of the next as that has read it, as the stage before sees it.

        Where a rule overrides this, the answers of all exits go back through the stages, and the first one's are the
        network's.
        """
        return answer

    def as_logits(self, answer: jax.Array) -> jax.Array:
        """The network's answer (N, classes) as logits, whose softmax is the probability of each class."""
        return answer

    @property
    def comes_back(self) -> bool:
        """Whether answers go back through the stages."""
        return type(self).read_back is not Objective.read_back

    @property
    def sends(self) -> Any:
        """What it sends along with messages, as a value that is equal for objectives that understand one another.

        None: nothing goes along or comes back; its module is all there is to it.
        """
        names = ("accompany", "local_loss", "answer", "read_back")
        plain = all(getattr(type(self), name) is getattr(Objective, name) for name in names)
        return None if plain else type(self).__name__


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
        raise ValueError(
            f"{who} needs features that are one array of shape (batch, ...), got {shapes_of(features)}; "
            "reduce the message in the block before, or write an objective of your own"
        )
    return leaves[0]


def is_map(features: Any) -> bool:
    """Whether features are one feature map, (N, H, W, C).

    Example:
      >>> import jax.numpy as jnp
      >>> is_map(jnp.ones((2, 4, 4, 3))), is_map(jnp.ones((2, 3)))
      (True, False)
    """
    return getattr(features, "ndim", 0) == 4


def shapes_of(features: Any) -> list[tuple[int, ...]]:
    """Shapes of the arrays of a pytree, for an error.

    Example:
      >>> shapes_of({"x": jax.ShapeDtypeStruct((8, 6), "float32")})
      [(8, 6)]
    """
    return [tuple(leaf.shape) for leaf in jax.tree.leaves(features)]


def check_classes(num_classes: int) -> None:
    """Refuse a number of classes below 1, by a ValueError."""
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
