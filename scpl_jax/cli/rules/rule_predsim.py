"""Local prediction and similarity matching."""

from scpl_jax.cli.rules.learning_rule import LearningRule, Setting, SharedRuleOptions
from scpl_jax.objectives import PredSim


def _term(options: SharedRuleOptions, setting: Setting) -> PredSim:
    return PredSim(setting.num_classes, **setting.pooled)


PREDSIM = LearningRule("predsim", "local prediction and similarity matching", term=("predsim", _term))
