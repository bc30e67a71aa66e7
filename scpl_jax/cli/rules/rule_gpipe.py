"""Backpropagation pipelined by micro-batches, as in GPipe."""

import dataclasses
from typing import Annotated

from scpl_jax.cli.option_types import Count, default
from scpl_jax.cli.rules.learning_rule import LearningRule
from scpl_jax.cli.rules.rule_bp import BpOptions, objectives


@dataclasses.dataclass(frozen=True)
class GpipeOptions(BpOptions):
    """Options of GPipe."""

    micro_batches: Annotated[Count | None, default("4")] = None
    """gpipe: parts that a batch is worked through in."""


GPIPE = LearningRule(
    "gpipe",
    "backpropagation pipelined by micro-batches",
    options=GpipeOptions,
    own=("micro_batches", "remat"),
    objectives=objectives,
    pipeline=lambda options: {"micro_batches": options.micro_batches or 4, "remat": options.remat},
    end_to_end=True,
)
