"""Information regularisation."""

from scpl_jax.cli.option_types import integers
from scpl_jax.cli.rules.learning_rule import LearningRule, Setting, SharedRuleOptions
from scpl_jax.objectives import InfoReg


def _term(options: SharedRuleOptions, setting: Setting) -> InfoReg:
    sizes = integers(options.head_dims, "--head-dims") or (512, 1024)
    return InfoReg(setting.num_classes, sizes, **setting.pooled)


INFOREG = LearningRule("inforeg", "information regularisation", term=("inforeg", _term))
