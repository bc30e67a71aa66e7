"""The contrastive rule with a classifier that reads every stage, and stages that join one after another."""

import dataclasses
from typing import Annotated, Any

from scpl_jax.cli.option_types import default, integers
from scpl_jax.cli.rules.learning_rule import LearningRule, Rule, Setting
from scpl_jax.cli.rules.rule_early_exit import EarlyExitOptions, local_classifier
from scpl_jax.cli.rules.rule_scpl import ScplOptions, contrastive
from scpl_jax.objectives import Mixture
from scpl_jax.training.run_error import RunError


@dataclasses.dataclass(frozen=True)
class DascplOptions(EarlyExitOptions, ScplOptions):
    """Options of the rule whose stages join one after another."""

    join_epochs: Annotated[str | None, default("spread over the first half")] = None
    """dascpl: the epoch from which each stage is trained, as 1,3,5,7."""


def _objectives(options: DascplOptions, setting: Setting) -> Rule:
    read = dataclasses.replace(local_classifier(options, setting), detach=not options.classifier_gradient)
    terms = ((1.0, contrastive(options, setting)), (1.0, read))
    return Rule((Mixture(terms, options.classifier_gradient),) * setting.stages)


def _check(options: Any) -> None:
    joins = integers(options.join_epochs, "--join-epochs")
    if joins is None:
        return
    if len(joins) != options.stages or joins[0] != 1 or list(joins) != sorted(joins):
        raise RunError(
            f"--join-epochs must be {options.stages} ascending epochs from 1, one a stage, got {options.join_epochs}"
        )


def _joins(options: Any, epochs: int) -> tuple[int, ...]:
    spread = tuple(1 + index * epochs // (2 * options.stages) for index in range(options.stages))
    joins = integers(options.join_epochs, "--join-epochs") or spread
    if joins[-1] > epochs:
        raise RunError(f"--join-epochs {options.join_epochs}: a stage would join after the {epochs} epochs")
    return joins


DASCPL = LearningRule(
    "dascpl",
    "scpl with a classifier that reads every stage, and stages that join one after another",
    options=DascplOptions,
    own=("join_epochs",),
    objectives=_objectives,
    check=_check,
    joins=_joins,
)
