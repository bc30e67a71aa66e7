"""A training step of stages with local losses, for batches of one shape: one program a group, forward only."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from scpl_jax.pipeline.groups import Builder, Group, Pacer, Program, abstract
from scpl_jax.pipeline.placement import batch_sharding, replicated
from scpl_jax.pipeline.transfer import hand_over
from scpl_jax.stages.decouple import Stage
from scpl_jax.stages.step import StageState, train_step

# record(name of the task, stages, what it took, what it gave): for timelines
Record = Callable[[str, Group, Any, Any], None]
States = tuple[StageState, ...]
Metrics = list[dict[str, Any]]


def flag_of(group: Group) -> Any:
    """Shape and place of the flag that asks for gradient norms."""
    return abstract(False, replicated(group.mesh))


def _local_step(
    stages: Sequence[Stage],
    optimizer: optax.GradientTransformation,
    skip_non_finite: bool,
    states: States,
    message: Any,
    labels: jax.Array,
    with_norms: Any,
) -> tuple[States, Any, Metrics]:
    """One step of neighbouring stages, one behind the other; their updates do not depend on one another."""
    new, metrics = [], []
    for stage, state in zip(stages, states, strict=True):
        state, message, values = train_step(stage, optimizer, state, message, labels, with_norms, skip_non_finite)
        new.append(state)
        metrics.append(values)
    return tuple(new), message, metrics


class LocalPrograms:
    """A training step of stages that are trained by local losses: one program a group, forward only."""

    def __init__(
        self,
        builder: Builder,
        groups: Sequence[Group],
        optimizer: optax.GradientTransformation,
        states: States,
        message: Any,
        labels: Any,
        skip_non_finite: bool,
    ):
        self._groups, self._pacer = groups, Pacer(groups)
        self._steps: list[Program] = []
        for group in groups:
            message, labels = abstract((message, labels), batch_sharding(group.mesh))
            program, (_, message, _) = builder.add(
                functools.partial(_local_step, group.stages, optimizer, skip_non_finite),
                group.mesh,
                (abstract(states[group.members], replicated(group.mesh)), message, labels, flag_of(group)),
                (False, True, False),
                donate=(0,),
            )
            self._steps.append(program)

    @property
    def temporary_bytes(self) -> list[int]:
        """What each group's program needs beside arguments and results, by the compiler's account."""
        return [program.temporary_bytes for program in self._steps]

    def __call__(
        self,
        states: States,
        message: Any,
        labels: Any,
        flags: Sequence[Any],
        record: Record | None,
        active: int | None = None,
    ) -> tuple[States, Metrics]:
        """Dispatch a step of the first ``active`` stages (None: of all); the others keep their states.

        ``flags`` says for each group whether gradient norms are wanted.
        """
        new: list[StageState] = []
        metrics: Metrics = []
        for group, program, flag in zip(self._groups, self._steps, flags, strict=True):
            if active is not None and group.stages[0].index >= active:
                new.extend(states[group.members])
                metrics.extend({"gradient_norms": {}} for _ in group.stages)
                continue
            message, labels = hand_over((message, labels), batch_sharding(group.mesh))
            given = message
            self._pacer.before(group)
            states_of_group, message, values = program(states[group.members], message, labels, flag)
            self._pacer.after(group, values)
            new.extend(states_of_group)
            metrics.extend(values)
            if record is not None:
                record("step", group, given, values)
        return tuple(new), metrics
