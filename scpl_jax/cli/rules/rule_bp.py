"""Backpropagation through all stages."""

import dataclasses

from scpl_jax.cli.rules.learning_rule import LearningRule, Rule, Setting, SharedRuleOptions
from scpl_jax.objectives import CrossEntropy


@dataclasses.dataclass(frozen=True)
class BpOptions(SharedRuleOptions):
    """Options of backpropagation."""

    remat: bool = False
    """bp, gpipe: compute activations again in the backward pass instead of keeping them (not for the last device);
    with local losses a stage keeps none."""


def objectives(options: BpOptions, setting: Setting) -> Rule:
    """The network's own loss alone.

    Args:
      options: of the command line.
      setting: what it depends on besides.

    Example:
      >>> len(objectives(BpOptions(), Setting(2, 10, "torch", 2)).objectives)
      2
    """
    return Rule((CrossEntropy(),) * setting.stages)


BP = LearningRule(
    "bp",
    "backpropagation; over several devices naive model parallelism",
    options=BpOptions,
    own=("remat",),
    objectives=objectives,
    pipeline=lambda options: {"remat": options.remat},
    end_to_end=True,
)
