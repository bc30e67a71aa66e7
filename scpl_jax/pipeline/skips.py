"""What the host learns of a step when it has waited for it: updates left out for bad numbers, labels of no class."""

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

    def wait(self) -> tuple[list[Skip], int]:
        """Wait until the step is done.

        Returns:
          (the updates left out in it by the stages of this process; labels that are none of the classes, as far as this
          process knows of them).
        """
        jax.block_until_ready(self.arrays)
        found, bad_labels = [], 0
        for stage, one in enumerate(self.metrics):
            flag, bad = one.get("skipped"), one.get("bad_labels")
            if flag is not None and len(flag.addressable_shards) and bool(_here(flag)):
                found.append(Skip(self.step, stage, float(_here(one["loss"])) if "loss" in one else None))
            if bad is not None and len(bad.addressable_shards):
                bad_labels = max(bad_labels, int(_here(bad)))  # all stages have the same labels
        return found, bad_labels


def _here(value: jax.Array) -> jax.Array:
    """This process's copy of a scalar that is the same on every device of its stage."""
    return value.addressable_shards[0].data
