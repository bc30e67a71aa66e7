"""Which updates were left out for bad numbers, as the host learns of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax


class Skip(NamedTuple):
    """An update that a stage left out, see :func:`scpl_jax.stages.step.apply_gradient`.

    Attributes:
      step: number of the training step, from 0.
      stage: number of the stage.
      loss: the stage's loss in that step; None for a stage without a loss of its own. A finite loss means that the
        gradient was not.
    """

    step: int
    stage: int
    loss: float | None


class StepSigns(NamedTuple):
    """What the host keeps of a step under way.

    Attributes:
      step: its number.
      arrays: they are there when the step is done.
      metrics: one dict a stage.
    """

    step: int
    arrays: list[jax.Array]
    metrics: Sequence[dict[str, Any]]

    def wait(self) -> list[Skip]:
        """Wait until the step is done.

        Returns:
          The updates left out in it by the stages of this process.
        """
        jax.block_until_ready(self.arrays)
        found = []
        for stage, one in enumerate(self.metrics):
            flag = one.get("skipped")
            if flag is not None and len(flag.addressable_shards) and bool(_here(flag)):
                found.append(Skip(self.step, stage, float(_here(one["loss"])) if "loss" in one else None))
        return found


def _here(value: jax.Array) -> jax.Array:
    """This process's copy of a scalar that is the same on every device of its stage."""
    return value.addressable_shards[0].data
