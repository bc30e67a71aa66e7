"""A training step of stages with local losses, for batches of one shape: forward only."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from scpl_jax.pipeline.compilation import Builder, Program, abstract
from scpl_jax.pipeline.groups import Group
from scpl_jax.pipeline.pacing import Pacer
from scpl_jax.pipeline.placement import batch_sharding, replicated
from scpl_jax.pipeline.step_parts import (
    UPDATE_OPTIONS,
    Metrics,
    Record,
    States,
    StepSettings,
    flag_of,
    is_apart,
    needed_bytes,
    zeros_of,
)
from scpl_jax.pipeline.transfer import hand_over
from scpl_jax.stages.decouple import Stage
from scpl_jax.stages.step import StageState, apply_gradient, gradients


def _local_step(
    stages: Sequence[Stage],
    settings: StepSettings,
    states: States,
    message: Any,
    labels: jax.Array,
    with_norms: Any,
) -> tuple[States, Any, Metrics]:
    """One step of neighbouring stages, one behind the other; their updates do not depend on one another."""
    params, rests = _read(states)
    found, message, outcomes = _gradients(stages, params, rests, None, message, labels)
    new, metrics = _update(settings, states, found, outcomes, with_norms)
    return new, message, metrics


def _gradients(
    stages: Sequence[Stage], params: Sequence[Any], rests: Sequence[Any], _: Any, message: Any, labels: jax.Array
) -> tuple[Any, Any, Any]:
    """The same without the updates. The fourth argument is memory for the gradients."""
    found, outcomes = [], []
    for stage, own, rest in zip(stages, params, rests, strict=True):
        gradient, (message, rest, metrics) = gradients(stage, own, rest, message, labels)
        message, labels = _boundary((message, labels))
        found.append(gradient)
        outcomes.append((rest, metrics))
    return tuple(found), message, tuple(outcomes)


def _boundary(message: Any) -> Any:
    """Between stages of one program, so that no code is made of two of them: each has the same bits in any group."""
    return jax.lax.platform_dependent(message, cpu=_kept_barrier, default=jax.lax.optimization_barrier)


def _kept_barrier(message: Any) -> Any:
    # On CPUs XLA drops barriers before it fuses operations, but not a call that may not be inlined: what goes through
    # it, exists. Nothing is copied, and nothing waits.
    with set_xla_metadata(inlineable="false"):
        return jax.jit(jax.lax.optimization_barrier)(message)


def _update(
    settings: StepSettings,
    states: States,
    found: Sequence[Any],
    outcomes: Sequence[Any],
    with_norms: Any,
) -> tuple[States, Metrics]:
    """Each stage's update by what :func:`_gradients` returns."""
    new, metrics = [], []
    for state, gradient, (rest, values) in zip(states, found, outcomes, strict=True):
        outcome = (state, gradient, rest, values, with_norms)
        state, values = apply_gradient(settings.optimizer, *outcome, skip_non_finite=settings.skip_non_finite)
        new.append(state)
        metrics.append(values)
    return tuple(new), metrics


class LocalPrograms:
    """A training step of stages that are trained by local losses: a program a group, or two.

    See :func:`~scpl_jax.pipeline.step_parts.is_apart`.

    Attributes:
      memory: of the gradients of each group whose update is a program of its own; a step donates it and gives it back.
    """

    def __init__(
        self,
        builder: Builder,
        groups: Sequence[Group],
        settings: StepSettings,
        states: States,
        message: Any,
        labels: Any,
    ):
        self._groups, self._pacer = groups, Pacer(groups)
        self._steps: list[Program] = []
        self._updates: list[Program | None] = []
        # Gradients lie in the same memory in every step; batches under way would each take as much otherwise.
        self.memory: list[Any] = []
        for group in groups:
            message, labels = abstract((message, labels), batch_sharding(group.mesh))
            own = abstract(states[group.members], replicated(group.mesh))
            params, rests = _read(own)
            update: Program | None = None
            if is_apart(params, group.mesh):
                program, (found, message, outcomes) = builder.add(
                    functools.partial(_gradients, group.stages),
                    group.mesh,
                    (params, rests, params, message, labels),
                    (False, True, False),
                    donate=(2,),
                )
                update, _ = builder.add(
                    functools.partial(_update, settings),
                    group.mesh,
                    (own, found, outcomes, flag_of(group)),
                    (False, False),
                    donate=(0,),
                    options=UPDATE_OPTIONS,
                )
            else:
                program, (_, message, _) = builder.add(
                    functools.partial(_local_step, group.stages, settings),
                    group.mesh,
                    (own, message, labels, flag_of(group)),
                    (False, True, False),
                    donate=(0,),
                )
            self._steps.append(program)
            self._updates.append(update)
            self.memory.append(None if update is None else zeros_of(params))

    @property
    def temporary_bytes(self) -> list[int]:
        """What each group's larger program needs beside arguments and results, and the memory of its gradients."""
        return [
            needed_bytes(some, memory) for *some, memory in zip(self._steps, self._updates, self.memory, strict=True)
        ]

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
        trained = [group for group in self._groups if active is None or group.stages[0].index < active]
        message, labels = hand_over((message, labels), batch_sharding(trained[0].mesh))
        for index, group in enumerate(trained):
            own = states[group.members]
            given, step, update = message, self._steps[index], self._updates[index]
            self._pacer.before(group)
            if update is None:
                updated, message, values = step(own, message, labels, flags[index])
                gave: Any = values
            else:
                found, message, outcomes = step(*_read(own), self.memory[index], message, labels)
                gave = [values for _, values in outcomes]
            self._pacer.after(group, message)
            if record is not None:  # before anything can wait: who watches must be there when it begins
                record("step", group, given, gave)
            if index + 1 < len(trained):
                # Before an update of its own: the next stage waits for its message, nobody for the update.
                message, labels = hand_over((message, labels), batch_sharding(trained[index + 1].mesh))
            if update is not None:
                self._pacer.before(group)
                updated, values = update(own, found, outcomes, flags[index])
                self._pacer.after(group, values)
                if record is not None:
                    record("update", group, (), values)
                self.memory[index] = found
            new.extend(updated)
            metrics.extend(values)
        metrics.extend({"gradient_norms": {}} for _ in states[len(new) :])
        return (*new, *states[len(new) :]), metrics


def _read(states: States) -> tuple[Any, Any]:
    """What the gradients depend on: parameters and other variables of each stage."""
    return tuple(state.params for state in states), tuple(state.rest for state in states)
