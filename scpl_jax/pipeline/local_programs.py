"""A training step of stages with local losses, for batches of one shape: forward only."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from scpl_jax.pipeline import step_parts
from scpl_jax.pipeline.compilation import Builder, Program, abstract
from scpl_jax.pipeline.placement import Group, batch_sharding, replicated
from scpl_jax.pipeline.step_parts import Metrics, Record, States, StepPrograms, StepSettings, flag_of
from scpl_jax.pipeline.transfer import hand_over
from scpl_jax.stages.decouple import Stage
from scpl_jax.stages.step import StageState, apply_gradient, gradients


def _local_step(
    stages: Sequence[Stage], settings: StepSettings, states: States, message: Any, labels: jax.Array, with_norms: Any
) -> tuple[States, Any, Metrics]:
    """One step of neighbouring stages, one behind the other; their updates do not depend on one another."""
    params, rests = _read(states)
    found, message, outcomes = _gradients(stages, params, rests, None, message, labels)
    new, metrics = _update(stages, settings, states, found, outcomes, with_norms)
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
    stages: Sequence[Stage],
    settings: StepSettings,
    states: States,
    found: Sequence[Any],
    outcomes: Sequence[Any],
    with_norms: Any,
) -> tuple[States, Metrics]:
    """Each stage's update by what :func:`_gradients` returns."""
    new, metrics = [], []
    for stage, state, gradient, (rest, values) in zip(stages, states, found, outcomes, strict=True):
        outcome = (settings.optimizers[stage.index], state, gradient, rest, values, with_norms)
        state, values = apply_gradient(*outcome, skip_non_finite=settings.skip_non_finite)
        new.append(state)
        metrics.append(values)
    return tuple(new), metrics


class LocalPrograms(StepPrograms):
    """A training step of stages with local losses: a program a group, or two, see :func:`.step_parts.is_apart`."""

    def __init__(
        self,
        builder: Builder,
        groups: Sequence[Group],
        settings: StepSettings,
        states: States,
        message: Any,
        labels: Any,
    ):
        super().__init__(groups)
        self._steps: list[Program] = []
        for group in groups:
            message, labels = abstract((message, labels), batch_sharding(group.mesh))
            own = abstract(states[group.members], replicated(group.mesh))
            params, rests = _read(own)
            update: Program | None = None
            if step_parts.is_apart(params, group.mesh):
                program, (found, message, outcomes) = builder.add(
                    functools.partial(_gradients, group.stages),
                    group.mesh,
                    (params, rests, params, message, labels),
                    (False, True, False),
                    donate=(2,),
                )
                run = functools.partial(_update, group.stages, settings)
                update = self._add_update(builder, group, run, own, found, outcomes, flag_of(group))
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
            self.memory.append(None if update is None else step_parts.zeros_of(params))

    @property
    def temporary_bytes(self) -> list[int]:
        """What each group's larger program needs beside arguments and results, and the memory of its gradients."""
        grouped = zip(self._steps, self._updates, self.memory, strict=True)
        return [step_parts.needed_bytes(programs, memory) for *programs, memory in grouped]

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
            self._before(group)
            if update is None:
                updated, message, values = step(own, message, labels, flags[index])
                gave: Any = values
            else:
                found, message, outcomes = step(*_read(own), self.memory[index], message, labels)
                gave = [values for _, values in outcomes]
            self._after(record, "step", group, given, gave)
            if index + 1 < len(trained):
                # Before an update of its own: the next stage waits for its message, nobody for the update.
                message, labels = hand_over((message, labels), batch_sharding(trained[index + 1].mesh))
            if update is not None:
                self._before(group)
                updated, values = update(own, found, outcomes, flags[index])
                self._after(record, "update", group, (), values)
                self.memory[index] = found
            new.extend(updated)
            metrics.extend(values)
        metrics.extend({"gradient_norms": {}} for _ in states[len(new) :])
        return (*new, *states[len(new) :]), metrics


def _read(states: States) -> tuple[Any, Any]:
    """What the gradients depend on: parameters and other variables of each stage."""
    return tuple(state.params for state in states), tuple(state.rest for state in states)
