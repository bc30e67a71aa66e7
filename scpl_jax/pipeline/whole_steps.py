"""The states of stages, always those of a whole step: what is under way, what a step left out, what broke."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from scpl_jax.pipeline import processes
from scpl_jax.pipeline.placement import batch_sharding, is_local, replicated
from scpl_jax.pipeline.placement import processes as processes_of
from scpl_jax.pipeline.signals import held_back
from scpl_jax.pipeline.transfer import hand_over, to_devices
from scpl_jax.stages.decouple import Stage
from scpl_jax.stages.inputs import labels_must_be
from scpl_jax.stages.step import StageState, initial_state, zero_totals


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


class PipelineBrokenError(RuntimeError):
    """A step failed while it ran, so that states are lost; the message says which one and what was saved last."""


class WholeSteps:
    """The part of a :class:`scpl_jax.Pipeline` that has the states; arguments and attributes are explained there."""

    def __init__(
        self,
        stages: Sequence[Stage],
        meshes: tuple[Mesh, ...],
        optimizers: Sequence[optax.GradientTransformation],
        ignore: Any,
    ):
        self.stages, self.meshes = tuple(stages), meshes
        self.step = 0
        self.saved: str | None = None
        self.skipped: list[Skip] = []
        self._ignored = () if ignore is None else (ignore,)
        self._broken: str | None = None
        self._states: tuple[StageState, ...] = tuple(
            to_devices(initial_state(stage, optimizer), replicated(mesh))
            for stage, optimizer, mesh in zip(self.stages, optimizers, meshes, strict=True)
        )
        self._in_flight: collections.deque[StepSigns] = collections.deque()
        self._first = batch_sharding(meshes[0])
        # The process of the first stage learns only from the last one how far the others are.
        self._needs_token = processes_of(meshes[0]) != processes_of(meshes[-1])
        self._programs: dict[Any, Any] = {}

    def _signs(self, *values: jax.Array) -> list[jax.Array]:
        """What this process must wait for to know that a step is done, here and (the last value) at the last stage."""
        signs = [value for value in values if len(value.addressable_shards)]
        if self._needs_token:
            token = hand_over(values[-1], replicated(self.meshes[0]))
            signs += [token] if is_local(self.meshes[0]) else []
        return signs

    def _bound(self, limit: int) -> None:
        """Wait until at most so many steps are under way."""
        while len(self._in_flight) > limit:
            oldest = self._in_flight[0]
            try:
                skipped, bad_labels = oldest.wait()
            except Exception as error:
                raise self._break(oldest.step, error) from error
            with held_back():
                self._in_flight.popleft()
                self.skipped += skipped
            if bad_labels:
                raise ValueError(
                    f"{labels_must_be(self.stages[0].classes, self._ignored)}; {bad_labels} labels of step "
                    f"{oldest.step + 1} are not, and its updates were left out"
                )

    @property
    def states(self) -> tuple[StageState, ...]:
        """The state of each stage."""
        return self._states

    @states.setter
    def states(self, states: Sequence[StageState]) -> None:
        self._states = tuple(states)
        if self._broken is not None:
            self._broken = None
            self._in_flight.clear()

    def _break(self, step: int, error: BaseException) -> PipelineBrokenError:
        """Mark the pipeline as broken by an error in a step, and say so."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # Of a traceback in an error the last line tells.
        reason = " ... ".join(line[:250] for line in dict.fromkeys((lines[0], lines[-1])))
        saved = "nothing was saved before" if self.saved is None else f"what was saved last is {self.saved}"
        self._broken = (
            f"the pipeline is broken: step {step + 1} failed while it ran ({reason}), and states are lost; "
            f"{saved}; assign states of a whole step, such as those of a checkpoint, or build the pipeline again"
        )
        self._programs.clear()  # their memory for gradients may be lost, too
        return PipelineBrokenError(self._broken)

    def check_whole(self) -> None:
        """Raise a :class:`PipelineBrokenError` if states were lost."""
        if self._broken is not None:
            raise PipelineBrokenError(self._broken)

    def take_skipped(self) -> list[Skip]:
        """The updates left out that have become known since the last call."""
        skipped, self.skipped = self.skipped, []
        return skipped

    def wait(self) -> None:
        """Wait until every step that was dispatched is done.

        Raises:
          PipelineBrokenError: one of them failed, now or before.
          ValueError: labels of one of them, on a device, were none of the classes.
        """
        self.check_whole()
        self._bound(0)
        try:
            jax.block_until_ready(self._states)
        except Exception as error:
            raise self._break(self.step - 1, error) from error

    def totals(self) -> list[dict[str, float]]:
        """The sums since :meth:`reset_totals`, one dict a stage, in every process; waits for them."""
        self.check_whole()
        self._bound(0)
        return read_everywhere([state.totals for state in self.states], self.meshes)

    def reset_totals(self) -> None:
        """Start the running sums of loss and accuracy afresh, as at the start of an epoch."""
        self.check_whole()
        self._states = tuple(
            dataclasses.replace(state, totals=to_devices(zero_totals(stage), replicated(mesh)))
            for stage, state, mesh in zip(self.stages, self._states, self.meshes, strict=True)
        )


def read_everywhere(trees: Sequence[Any], meshes: Sequence[Mesh]) -> list[Any]:
    """Dicts of arrays, each on its sub-mesh, as Python numbers and lists in every process; waits for them."""
    own = [
        jax.tree.map(lambda x: x.tolist(), jax.device_get(tree)) if is_local(mesh) else None
        for tree, mesh in zip(trees, meshes, strict=True)
    ]
    gathered = processes.gather(own)
    return [gathered[processes_of(mesh)[0]][index] for index, mesh in enumerate(meshes)]
