"""Associated learning."""

import dataclasses
from typing import Literal

from scpl_jax.cli.rules.learning_rule import LearningRule, Rule, Setting, SharedRuleOptions
from scpl_jax.objectives import Associated


@dataclasses.dataclass(frozen=True)
class AlOptions(SharedRuleOptions):
    """Options of associated learning."""

    al_codes: Literal["plain", "released"] = "plain"
    """al: how codes of the label are learned: plain (tanh, cross-entropy of the label) or released (as in its authors'
    code, for images by sigmoids and squares, which takes much longer to learn)."""


def _objectives(options: AlOptions, setting: Setting) -> Rule:
    released = setting.associated if options.al_codes == "released" else {}
    objective = Associated(setting.num_classes, **setting.pooled, **released)
    return Rule((objective,) * setting.stages, classifier=False)


AL = LearningRule("al", "associated learning", options=AlOptions, own=("al_codes",), objectives=_objectives)
