"""Local supervised-contrastive losses, the rule of the paper."""

import dataclasses

from scpl_jax.cli.option_types import Positive, integers
from scpl_jax.cli.rules.learning_rule import LearningRule, Setting, SharedRuleOptions
from scpl_jax.objectives import SupCon


@dataclasses.dataclass(frozen=True)
class ScplOptions(SharedRuleOptions):
    """Options of the contrastive loss."""

    temperature: Positive = 0.1
    """Temperature of the contrastive loss."""
    count_anchor: bool = False
    """Divide the contrastive loss by the positives and the anchor, as the released PyTorch code does."""


def contrastive(options: ScplOptions, setting: Setting) -> SupCon:
    """The contrastive loss of a stage.

    Args:
      options: of the command line.
      setting: what it depends on besides.

    Raises:
      RunError: the sizes of the head are no numbers.
      ValueError: they don't fit the head.

    Example:
      >>> contrastive(ScplOptions(head="linear"), Setting(2, 10, "torch", 2)).head_pool
      2
    """
    return SupCon(
        temperature=options.temperature,
        head=options.head,
        head_dims=integers(options.head_dims, "--head-dims"),
        head_pool=setting.pool,
        count_anchor=options.count_anchor,
        classifier_gradient=options.classifier_gradient,
        **setting.layers,
    )


SCPL = LearningRule(
    "scpl",
    "local supervised-contrastive losses",
    options=ScplOptions,
    term=("supcon", contrastive),
    check=lambda options: integers(options.head_dims, "--head-dims"),
)
