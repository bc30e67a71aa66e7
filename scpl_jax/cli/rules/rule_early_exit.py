"""A classifier in every stage, at which an example may leave the network."""

import dataclasses
from typing import Annotated

from scpl_jax.cli.option_types import default, integers
from scpl_jax.cli.rules.learning_rule import LearningRule, Rule, Setting, SharedRuleOptions
from scpl_jax.objectives import CrossEntropy, LocalClassifier
from scpl_jax.training.run_error import RunError


@dataclasses.dataclass(frozen=True)
class EarlyExitOptions(SharedRuleOptions):
    """Options of local classifiers."""

    exit_hidden: Annotated[str | None, default("none, they are linear")] = None
    """Hidden layer sizes of the local classifiers of early-exit and ce, as 512."""


def local_classifier(options: EarlyExitOptions, setting: Setting) -> LocalClassifier:
    """The classifier of a stage.

    Args:
      options: of the command line.
      setting: what it depends on besides.

    Raises:
      RunError: its hidden sizes are no numbers of at least 1.

    Example:
      >>> local_classifier(EarlyExitOptions(exit_hidden="512,64"), Setting(2, 10, "torch", 2)).hidden
      (512, 64)
    """
    return LocalClassifier(setting.num_classes, _hidden_sizes(options), **setting.pooled)


def _hidden_sizes(options: EarlyExitOptions) -> tuple[int, ...]:
    sizes = integers(options.exit_hidden, "--exit-hidden") or ()
    if min(sizes, default=1) < 1:
        raise RunError(f"--exit-hidden must be sizes of at least 1, got {options.exit_hidden}")
    return sizes


def _objectives(options: EarlyExitOptions, setting: Setting) -> Rule:
    # The last stage has the network's own classifier.
    return Rule((*(local_classifier(options, setting),) * (setting.stages - 1), CrossEntropy()))


EARLY_EXIT = LearningRule(
    "early-exit",
    "a classifier in every stage",
    options=EarlyExitOptions,
    objectives=_objectives,
    check=_hidden_sizes,
    term=("ce", local_classifier),
)
