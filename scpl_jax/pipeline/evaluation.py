"""The programs of evaluation for batches of one shape: every group forward, and the count of what is right.

Where a rule reads answers back, they then go through the stages from the last one to the first.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from scpl_jax.objectives import Objective
from scpl_jax.pipeline.compilation import Builder, Program, abstract
from scpl_jax.pipeline.exits import StopRule, count, joint, zero
from scpl_jax.pipeline.local_programs import States
from scpl_jax.pipeline.placement import Group, batch_sharding, replicated
from scpl_jax.pipeline.transfer import hand_over, to_devices
from scpl_jax.stages.decouple import Stage
from scpl_jax.stages.step import evaluate, pooled_features, read_back

Prepare = Callable[[Any], Any]


class _Pass:
    """All groups forward in evaluation mode; see :class:`EvaluationPrograms` for the rest.

    ``run`` makes of (stages, their values, message) (message for the next group, what is wanted of these stages);
    ``batched`` says whether the latter is split over the batch or the same on every device; ``outputs`` is its shapes.
    """

    def __init__(
        self,
        builder: Builder,
        groups: Sequence[Group],
        states: States,
        images: Any,
        prepare: Prepare | None,
        run: Callable[..., Any],
        *,
        batched: bool,
    ):
        self._groups, self.outputs = groups, []
        self._steps: list[Program] = []
        self._prepare: Program | None = None
        message = abstract(images, batch_sharding(groups[0].mesh))
        if prepare is not None:
            self._prepare, (message,) = builder.add(lambda x: (prepare(x),), groups[0].mesh, (message,), (True,))
        for group in groups:
            arguments = (_shapes(states, group), abstract(message, batch_sharding(group.mesh)))
            step = functools.partial(run, group.stages)
            program, (message, wanted) = builder.add(step, group.mesh, arguments, (True, batched))
            self._steps.append(program)
            self.outputs.append(wanted)

    def __call__(self, states: States, message: Any) -> list[Any]:
        """What is wanted of each group, for a batch that lies on the first group's devices."""
        if self._prepare is not None:
            (message,) = self._prepare(message)
        found = []
        for group, run in zip(self._groups, self._steps, strict=True):
            message = hand_over(message, batch_sharding(group.mesh))
            message, wanted = run(_values(states, group), message)
            found.append(wanted)
        return found


class EvaluationPrograms:
    """Compiled for batches of one shape; see :meth:`scpl_jax.Pipeline.predict` and ``evaluate``.

    Args:
      groups: the groups, in order.
      states, images: of each stage, and a batch; shapes and dtypes are used.
      prepare: images -> message, or None.
      wanted: when an example may stop at an early exit; and whether the exits answer together.

    Attributes:
      exits: numbers of the stages that can tell classes.
      can_answer: whether the last stage is one of them.
      mesh: where the logits of all exits are gathered: the last group's sub-mesh, or where answers come back the
        first group's.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        states: States,
        images: Any,
        prepare: Prepare | None,
        wanted: tuple[Sequence[StopRule], bool] = ((), False),
    ) -> None:
        rules, jointly = wanted
        self._groups = groups
        objective = groups[0].stages[0].objective
        builder = Builder()
        self._forward = _Pass(builder, groups, states, images, prepare, _forward, batched=True)
        found: list[dict[int, Any]] = self._forward.outputs
        self.exits: list[int] = [index for logits in found for index in logits]
        self.can_answer = groups[-1].stages[-1].index in self.exits
        self._back: list[Program] = []
        outputs = [logits for group in found for logits in group.values()]
        if objective.comes_back:
            outputs = self._add_way_back(builder, states, found)
        self.mesh: Mesh = groups[0 if objective.comes_back else -1].mesh
        self._count: Program | None = None
        self._answer: Program | None = None
        if outputs:
            logits = abstract(outputs, batch_sharding(self.mesh))
            labels = jax.ShapeDtypeStruct(logits[0].shape[:1], jnp.int32, sharding=batch_sharding(self.mesh))
            self._zero = functools.partial(zero, len(self.exits), len(rules), logits[0].shape[-1])
            total = abstract(self._zero(), replicated(self.mesh))
            function = functools.partial(_count, tuple(rules), jointly, objective)
            self._count, _ = builder.add(function, self.mesh, (total, logits, labels), (False,))
            if jointly:
                function = functools.partial(_joint, objective)
                self._answer, _ = builder.add(function, self.mesh, (logits,), (True,))
        builder.compile()

    def _add_way_back(self, builder: Builder, states: States, found: Sequence[dict[int, Any]]) -> list[Any]:
        """Programs that read the answers of all exits back, from the last group to the first; shapes of the results."""
        answers: list[Any] = []
        for group, own in zip(self._groups[::-1], found[::-1], strict=True):
            answers = abstract(answers, batch_sharding(group.mesh))
            arguments = (_shapes(states, group), own, answers)
            program, (answers,) = builder.add(functools.partial(_back, group.stages), group.mesh, arguments, (True,))
            self._back.append(program)
        return answers

    def predict_exits(self, states: States, message: Any) -> list[jax.Array]:
        """Logits of every exit for a batch that lies on the first group's devices, each where it was computed."""
        found = self._forward(states, message)
        if not self._back:
            return [logits[index] for logits in found for index in sorted(logits)]
        answers: list[jax.Array] = []
        for group, own, run in zip(self._groups[::-1], found[::-1], self._back, strict=True):
            answers = hand_over(answers, batch_sharding(group.mesh))
            (answers,) = run(_values(states, group), own, answers)
        return answers

    def answer(self, exits: Sequence[jax.Array]) -> jax.Array:
        """The network's answer (N, classes) for what :meth:`predict_exits` gave."""
        if self._answer is None:
            return exits[-1]
        (together,) = self._answer(hand_over(list(exits), batch_sharding(self.mesh)))
        found: jax.Array = together
        return found

    def zero(self) -> Any:
        """The sums before the first batch, on their devices."""
        return to_devices(self._zero(), replicated(self.mesh))

    def count(self, total: Any, exits: Sequence[jax.Array], labels: Any) -> Any:
        """Add a batch to :meth:`zero`; labels int32 on ``mesh``, -1 for an example to leave out."""
        assert self._count is not None
        (total,) = self._count(total, hand_over(list(exits), batch_sharding(self.mesh)), labels)
        return total


class FeaturePrograms:
    """The features of every stage, compiled for batches of one shape; see :meth:`scpl_jax.Pipeline.features`.

    The arguments are those of :class:`EvaluationPrograms`; feature maps are averaged down to ``side`` x ``side``.
    """

    def __init__(
        self, groups: Sequence[Group], states: States, images: Any, prepare: Prepare | None, side: int
    ) -> None:
        builder, run = Builder(), functools.partial(_features, side)
        # Every device gets all examples, so that each process that has the stage can read them.
        self._forward = _Pass(builder, groups, states, images, prepare, run, batched=False)
        builder.compile()

    def __call__(self, states: States, message: Any) -> list[jax.Array]:
        """(N, D) of every stage for a batch that lies on the first group's devices."""
        return [features for group in self._forward(states, message) for features in group]


def _values(states: States, group: Group) -> list[tuple[Any, Any]]:
    return [(state.params, state.rest) for state in states[group.members]]


def _shapes(states: States, group: Group) -> Any:
    return abstract(_values(states, group), replicated(group.mesh))


def _count(
    rules: tuple[StopRule, ...], jointly: bool, objective: Objective, total: Any, exits: Any, labels: jax.Array
) -> tuple[Any]:
    return (count(rules, total, [objective.as_logits(one) for one in exits], labels, jointly=jointly),)


def _joint(objective: Objective, exits: Sequence[jax.Array]) -> tuple[jax.Array]:
    return (joint(jnp.stack([objective.as_logits(one).astype(jnp.float32) for one in exits]))[-1],)


def _forward(stages: Sequence[Stage], values: Sequence[Any], message: Any) -> tuple[Any, dict[int, Any]]:
    """(message for the next group, logits or other answers by the number of the stage that can tell)."""
    found = {}
    for stage, (params, rest) in zip(stages, values, strict=True):
        message, logits = evaluate(stage, params, rest, message)
        if logits is not None:
            found[stage.index] = logits
    return message, found


def _features(side: int, stages: Sequence[Stage], values: Sequence[Any], message: Any) -> tuple[Any, list[jax.Array]]:
    found = []
    for stage, (params, rest) in zip(stages, values, strict=True):
        message, _ = evaluate(stage, params, rest, message)
        found.append(pooled_features(message, side))
    return message, found


def _back(
    stages: Sequence[Stage], values: Sequence[Any], own: dict[int, jax.Array], answers: list[jax.Array]
) -> tuple[list[jax.Array]]:
    """Answers of the exits behind these stages, and their own, as the stage before them sees them."""
    for stage, (params, rest) in zip(stages[::-1], values[::-1], strict=True):
        if stage.index in own:
            answers = [own[stage.index], *answers]
        answers = [read_back(stage, params, rest, answer) for answer in answers]
    return (answers,)
