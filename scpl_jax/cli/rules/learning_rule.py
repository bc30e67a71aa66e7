"""What a learning rule consists of on the command line."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from scpl_jax.cli.option_types import Certainty, Count, OneOf, Unset, default
from scpl_jax.cli.parsing import Group
from scpl_jax.objectives import HEADS, Objective


@dataclasses.dataclass(frozen=True)
class SharedRuleOptions(Group):
    """How the stages learn."""

    title: ClassVar[str] = "rule"

    method: str = "scpl"
    head: Annotated[str, OneOf(HEADS)] = "mlp"
    """Projection head."""
    head_dims: Annotated[str | None, default("512,1024; linear: 1024")] = None
    """Layer sizes of the head, as 512,1024."""
    classifier_gradient: bool = False
    """Let the classifier's gradient into the last stage; dascpl: that of every local classifier into its stage."""
    exit_threshold: Unset[Certainty] = None
    """At evaluation an example stops at the first exit whose confidence is at least this, from 0 to 1."""
    exit_patience: Unset[Count] = None
    """At evaluation an example stops when this many exits in a row agreed with the one before."""
    exit_similarity: Certainty = 0.95
    """Cosine similarity of the probabilities from which on two exits agree."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What objectives depend on besides the options of their rule.

    Args:
      stages: their number.
      num_classes: of the data set.
      init: initial distribution, one of ``scpl_jax.models.INITIALISERS``.
      pool: side to which a feature map is averaged before a head; 0: not at all.
      dtype: of the computation; None for float32.
      associated: options of associated learning as in its authors' code, for ``--al-codes released``.

    Example:
      >>> Setting(stages=2, num_classes=10, init="torch", pool=2).pooled
      {'pool': 2, 'init': 'torch', 'dtype': None}
    """

    stages: int
    num_classes: int
    init: str
    pool: int
    dtype: Any = None
    associated: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def layers(self) -> dict[str, Any]:
        """Arguments of objectives that have layers of their own."""
        return {"init": self.init, "dtype": self.dtype}

    @property
    def pooled(self) -> dict[str, Any]:
        """The same, of objectives that average feature maps."""
        return {"pool": self.pool, **self.layers}


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the stages of a run learn.

    Attributes:
      objectives: one for each stage.
      classifier: whether the network's own classifier is part of it.
    """

    objectives: tuple[Objective, ...]
    classifier: bool = True


@dataclasses.dataclass(frozen=True)
class LearningRule:
    """A row of the table of rules; every function gets all options of the command line.

    Attributes:
      name: as for ``--method``.
      help: says in a few words what it is; empty where the name says it.
      options: dataclass of the options that the rule brings, a :class:`scpl_jax.cli.parsing.Group`; None for none.
      own: fields of the options that no other rule reads; they are refused with another ``--method``.
      objectives: (options, setting) to objectives; None for a rule that is a mixture of its own term alone.
      term: (name in mixtures, function of options and setting to its objective); None where it is no part of mixtures.
      check: refuses the rule's options, whatever the ``--method``, that can't be read or contradict one another.
      joins: (options, epochs) to the epoch from which each stage is trained; None where all are from the start.
      pipeline: options to arguments of :class:`scpl_jax.Pipeline`.
      end_to_end: whether one loss trains all stages.

    Example:
      >>> from scpl_jax.objectives import CrossEntropy
      >>> row = LearningRule("bp", objectives=lambda options, setting: Rule((CrossEntropy(),) * setting.stages))
      >>> len(row.objectives(SharedRuleOptions(), Setting(3, 10, "torch", 2)).objectives)
      3
    """

    name: str
    help: str = ""
    options: type[Group] | None = None
    own: tuple[str, ...] = ()
    objectives: Callable[[Any, Setting], Rule] | None = None
    term: tuple[str, Callable[[Any, Setting], Objective]] | None = None
    check: Callable[[Any], object] = lambda options: None
    joins: Callable[[Any, int], tuple[int, ...]] | None = None
    pipeline: Callable[[Any], dict[str, Any]] = lambda options: {}
    end_to_end: bool = False
