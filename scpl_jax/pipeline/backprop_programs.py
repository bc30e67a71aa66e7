"""A training step of stages that are trained together by the classifier's loss, after a GPipe schedule.

Naive model parallelism is the case of one micro-batch, and ordinary backpropagation that of one group: forward,
backward and update are then one program, or the update is another (see
:func:`~scpl_jax.pipeline.step_parts.is_apart`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scpl_jax.losses.labels import is_kept
from scpl_jax.pipeline import step_parts
from scpl_jax.pipeline.compilation import Builder, Program, abstract
from scpl_jax.pipeline.placement import Group, batch_sharding, replicated
from scpl_jax.pipeline.schedule import gpipe
from scpl_jax.pipeline.step_parts import Metrics, Record, States, StepPrograms, StepSettings, flag_of
from scpl_jax.pipeline.transfer import hand_over, to_devices
from scpl_jax.stages import backprop
from scpl_jax.stages.decouple import Stage
from scpl_jax.stages.optimizer import uses_loss
from scpl_jax.stages.step import StageState

# A state taken apart, so that what the saved activations may share memory with is not donated.
Parts = tuple[Any, Any, Any, Any]


def _split(micro_batches: int, message: Any, labels: Any, _: jax.Array) -> tuple[list[Any], list[Any], jax.Array]:
    """A batch as equal micro-batches, in order, and how many of its examples have a label.

    The last argument is of the step before: over several devices this program has collectives, which must not run
    beside those of another program of the same devices.
    """
    size = labels.shape[0] // micro_batches

    def part(tree: Any, m: int) -> Any:
        return jax.tree.map(lambda x: jax.lax.slice_in_dim(x, m * size, (m + 1) * size), tree)

    messages, targets = ([part(tree, m) for m in range(micro_batches)] for tree in (message, labels))
    return messages, targets, jnp.sum(is_kept(labels), dtype=jnp.int32)


def _parts(states: Sequence[StageState]) -> Parts:
    params, rest, opt_state, totals = zip(*((s.params, s.rest, s.opt_state, s.totals) for s in states), strict=True)
    return params, rest, opt_state, totals


@dataclasses.dataclass(frozen=True)
class _Group:
    """A group's backward passes and update: pure functions of what is settled once; the last one has the classifier."""

    stages: tuple[Stage, ...]
    first: bool
    last: bool
    settings: StepSettings

    def work(self, begins: bool, ends: bool, *arguments: Any) -> tuple[Any, Any, Any]:
        """A micro-batch's backward pass; for the last group with its forward pass; if it ``ends`` with the update.

        ``arguments`` are, in this order: a :data:`Parts`, spread out; the carry; what the pass is given and what is
        wanted of it (the message and (labels, their number), or what was saved and the message's gradient); the sums of
        the micro-batches before, or where the step ``begins`` at most memory for them; the flag that asks for norms;
        the whole batch's loss, if the update of a group before the last asks for it, else None.

        Returns:
          (gradient of the message, sums so far or the new states, carry or metrics).
        """
        *parts, carry, given, wanted, total, flag, loss = arguments
        total = None if begins else total
        if self.last:
            labels, labelled = wanted
            cotangent, sums, carry = backprop.forward_backward(
                self.stages, self.first, parts[0], carry, given, labels, labelled, total
            )
        else:
            remat = self.settings.remat
            cotangent, sums = backprop.backward(self.stages, self.first, remat, parts[0], given, wanted, total)
        if not ends:
            return cotangent, sums, carry
        return cotangent, *self.update(tuple(parts), carry, *self.gradient(sums), flag, loss)

    def update(self, parts: Parts, carry: Any, gradient: Any, metrics: Any, flag: Any, loss: Any) -> Any:
        """The step's update: (the new states, metrics of each stage)."""
        states = [StageState(*values) for values in zip(*parts, strict=True)]
        settings = self.settings
        optimizers = [settings.optimizers[stage.index] for stage in self.stages]
        outcome = (states, carry, gradient, metrics, flag, settings.skip_non_finite, loss)
        return backprop.update(self.stages, optimizers, *outcome)

    def gradient(self, sums: Any) -> tuple[Any, dict[str, Any]]:
        """(gradient, metrics) from the group's sums; only the last group has metrics."""
        return sums if self.last else (sums, {})


class BackpropPrograms(StepPrograms):
    """The programs of one step, compiled for batches of one shape.

    Args:
      builder: what compiles them.
      groups: neighbouring stages; the last group has the classifier.
      settings: of the step.
      states: state of each stage.
      message, labels: what the first stage is given, shapes and dtypes.
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
        super().__init__(groups)
        micro_batches, remat, final = settings.micro_batches, settings.remat, len(groups) - 1
        self._micro_batches = micro_batches
        self._schedule = gpipe(len(groups), micro_batches)
        self._parts = [_Group(group.stages, i == 0, i == final, settings) for i, group in enumerate(groups)]
        self._carries = [_first_carry(group) for group in groups]
        # Whether the loss goes back from group to group, for their updates.
        self._hands_loss = any(
            uses_loss(settings.optimizers[stage.index], stage.params) for group in groups[:-1] for stage in group.stages
        )
        loss_of = [
            abstract(np.float32(0), replicated(group.mesh)) if self._hands_loss else None for group in groups[:-1]
        ] + [None]
        parts_of = [abstract(_parts(states[group.members]), replicated(group.mesh)) for group in groups]
        carry_of = [abstract(self._carry(i, states), replicated(group.mesh)) for i, group in enumerate(groups)]

        first = groups[0].mesh
        self._split: Program | None = None
        labelled: Any = None
        if micro_batches > 1:
            split = functools.partial(_split, micro_batches)
            self._split, (messages, targets, _) = builder.add(
                split,
                first,
                (*abstract((message, labels), batch_sharding(first)), abstract(np.int32(0), replicated(first))),
                (True, True, False),
            )
            message, labels = messages[0], targets[0]
            labelled = abstract(np.int32(0), replicated(groups[-1].mesh))

        # Forward passes first: where XLA leaves what they save is known once they are compiled.
        self._forward: list[Program] = []
        for index, group in enumerate(groups[:-1]):
            message = abstract(message, batch_sharding(group.mesh))
            step = functools.partial(backprop.forward, group.stages, index == 0, remat)
            arguments = (parts_of[index][0], carry_of[index], message)
            program, (message, _, _) = builder.add(step, group.mesh, arguments, (True, None, False))
            self._forward.append(program)
        builder.compile()

        self._backward: list[dict[tuple[bool, bool], Program]] = []
        cotangent: Any = None
        for index in reversed(range(len(groups))):
            group, place = groups[index], batch_sharding(groups[index].mesh)
            if index == len(groups) - 1:
                given = (abstract(message, place), (abstract(labels, place), labelled))
            else:
                given = (self._forward[index].outputs[1], abstract(cotangent, place))
            apart = step_parts.is_apart(parts_of[index][0], group.mesh)
            kinds = {(m == 0, m == micro_batches - 1 and not apart) for m in range(micro_batches)}
            programs: dict[tuple[bool, bool], Program] = {}
            total: Any = self._sums_of(index, (*parts_of[index], carry_of[index], *given)) if apart else None
            self.memory.insert(0, step_parts.zeros_of(total))
            # In the order first, middle, last: the first one's output tells the shape of the sums.
            for begins, ends in sorted(kinds, key=lambda kind: (kind[1], not kind[0])):
                loss = loss_of[index] if ends else None
                arguments = (*parts_of[index], carry_of[index], *given, total, flag_of(group), loss)
                # Parameters may share memory with saved activations of the stage.
                donated = (2, 3, 7) if index < len(groups) - 1 and not remat else (0, 2, 3)
                programs[begins, ends], (cotangent, sums, carry) = builder.add(
                    functools.partial(self._parts[index].work, begins, ends),
                    group.mesh,
                    arguments,
                    (True, False, False),
                    donate=donated if ends else (7,),
                )
                total = total if ends else sums
            update: Program | None = None
            if apart:
                outcome = (carry, *self._parts[index].gradient(total), flag_of(group), loss_of[index])
                update = self._add_update(builder, group, self._parts[index].update, parts_of[index], *outcome)
            self._backward.insert(0, programs)
            self._updates.insert(0, update)

    def _sums_of(self, index: int, arguments: tuple[Any, ...]) -> Any:
        """Shapes and places of a group's sums of gradients and metrics."""
        run = functools.partial(self._parts[index].work, True, False)
        sums = jax.eval_shape(run, *arguments, None, False, None)[1]
        return abstract(sums, replicated(self._groups[index].mesh))

    @property
    def temporary_bytes(self) -> list[int]:
        """What the largest program of each group needs beside arguments and results, and the memory of its sums."""
        grouped = zip([*self._forward, None], self._updates, self._backward, self.memory, strict=True)
        return [step_parts.needed_bytes((*some, *backward.values()), memory) for *some, backward, memory in grouped]

    def _carry(self, index: int, states: States) -> backprop.Carry:
        """What the first micro-batch of a group begins with."""
        moments, count = self._carries[index]
        return backprop.Carry(tuple(state.rest for state in states[self._groups[index].members]), moments, count)

    def __call__(
        self, states: States, message: Any, labels: Any, flags: Sequence[Any], record: Record | None
    ) -> tuple[States, Metrics]:
        """Dispatch a step: walk through the schedule; ``flags`` says for each group whether norms are wanted."""
        groups, final = self._groups, self._micro_batches - 1
        messages, targets, labelled = [message], [labels], None  # type: tuple[list[Any], list[Any], Any]
        if self._split is not None:
            messages, targets, labelled = self._split(message, labels, states[0].totals["batches"])
            labelled = hand_over(labelled, replicated(groups[-1].mesh))
        given = {(0, m): part for m, part in enumerate(messages)}
        carries = [self._carry(index, states) for index in range(len(groups))]
        parts = [_parts(states[group.members]) for group in groups]
        saved: dict[tuple[int, int], Any] = {}
        sums = list(self.memory)
        outcomes: list[Any] = [None] * len(groups)
        loss: Any = None
        for task in self._schedule:
            index, m = task.stage, task.micro_batch
            place, taken = batch_sharding(groups[index].mesh), given.pop((index, m))
            if task.kind == "forward":
                self._before(groups[index])
                message, saved[index, m], carries[index] = self._forward[index](parts[index][0], carries[index], taken)
                self._after(record, f"forward {m}", groups[index], taken, message)
                given[index + 1, m] = hand_over(message, batch_sharding(groups[index + 1].mesh))
            else:
                if task.kind == "forward_backward":
                    pair = (taken, (hand_over(targets[m], place), labelled))
                else:
                    pair = (saved.pop((index, m)), taken)
                self._before(groups[index])
                update = self._updates[index]
                program = self._backward[index][m == 0, m == final and update is None]
                told = loss if m == final else None
                more = (sums[index], flags[index], told if update is None else None)
                gave, sums[index], rest = program(*parts[index], carries[index], *pair, *more)
                if m == final and update is None:
                    outcomes[index] = (sums[index], rest)
                elif task.kind == "forward_backward":
                    carries[index] = rest
                gave = gave or rest
                self._after(record, f"{task.kind} {m}", groups[index], taken, gave)
                if index:
                    given[index - 1, m] = hand_over(gave, batch_sharding(groups[index - 1].mesh))
                if index and m == final and self._hands_loss:
                    if task.kind == "forward_backward":
                        loss = (rest[-1] if update is None else sums[index][1])["loss"]
                    loss = hand_over(loss, replicated(groups[index - 1].mesh))
                if m == final and update is not None:
                    # Behind the message: the group before waits for that, nobody for the update.
                    self._before(groups[index])
                    self.memory[index] = sums[index]
                    own = self._parts[index].gradient(sums[index])
                    outcomes[index] = update(parts[index], rest, *own, flags[index], told)
                    self._after(record, f"update {m}", groups[index], (), outcomes[index][1])
        new = tuple(state for some, _ in outcomes for state in some)
        return new, [values for _, some in outcomes for values in some]


def _first_carry(group: Group) -> tuple[Any, Any]:
    """Sums of nothing, on the group's devices."""
    carry = backprop.initial_carry(group.stages, [stage.rest for stage in group.stages])
    return to_devices((carry.moments, jnp.int32(0)), replicated(group.mesh))
