"""The programs of evaluation for batches of one shape: every group forward, and the count of what is right.

With codes of the label the answer then goes back through the stages, from the last one to the first.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from scpl_jax.pipeline.exits import StopRule, count, zero
from scpl_jax.pipeline.groups import Builder, Group, Program, abstract
from scpl_jax.pipeline.local_programs import States
from scpl_jax.pipeline.placement import batch_sharding, replicated
from scpl_jax.pipeline.transfer import hand_over, to_devices
from scpl_jax.stages.decouple import Stage
from scpl_jax.stages.step import decode, evaluate, pooled_features


class EvaluationPrograms:
    """Compiled for batches of one shape; see :meth:`scpl_jax.Pipeline.predict` and ``evaluate``.

    Args:
      groups: the groups, in order.
      states: state of each stage; shapes and dtypes are used.
      images: a batch; likewise.
      prepare: images -> message, or None.
      rules: when an example may stop at an early exit.

    Attributes:
      exits: numbers of the stages that can tell classes.
      mesh: where the logits of all exits are gathered: the last group's sub-mesh, with codes the first group's.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        states: States,
        images: Any,
        prepare: Callable[[Any], Any] | None,
        rules: Sequence[StopRule] = (),
    ) -> None:
        self._groups, self._rules = groups, tuple(rules)
        self._coded = groups[0].stages[0].coded
        builder = Builder()
        message = abstract(images, batch_sharding(groups[0].mesh))
        self._prepare: Program | None = None
        if prepare is not None:
            function = functools.partial(_tuple_of, prepare)
            self._prepare, (message,) = builder.add(function, groups[0].mesh, (message,), (True,))
        self._steps: list[Program] = []
        found: list[dict[int, Any]] = []
        for group in groups:
            arguments = (_shapes(states, group), abstract(message, batch_sharding(group.mesh)))
            run = functools.partial(_forward, group.stages)
            program, (message, logits) = builder.add(run, group.mesh, arguments, (True, True))
            self._steps.append(program)
            found.append(logits)
        self.exits: list[int] = [index for logits in found for index in logits]
        self._back: list[Program] = []
        outputs = [logits for group in found for logits in group.values()]
        if self._coded:
            outputs = self._add_way_back(builder, states, found)
        self.mesh: Mesh = groups[0 if self._coded else -1].mesh
        self._count: Program | None = None
        self._classes = 0
        if outputs:
            logits = abstract(outputs, batch_sharding(self.mesh))
            labels = jax.ShapeDtypeStruct(logits[0].shape[:1], jnp.int32, sharding=batch_sharding(self.mesh))
            self._classes = logits[0].shape[-1]
            total = abstract(self._zero(), replicated(self.mesh))
            function = functools.partial(_count, self._rules, groups[0].stages[0].scores)
            self._count, _ = builder.add(function, self.mesh, (total, logits, labels), (False,))
        builder.compile()

    def _add_way_back(self, builder: Builder, states: States, found: Sequence[dict[int, Any]]) -> list[Any]:
        """Programs that decode the codes of all exits, from the last group to the first; shapes of the scores."""
        codes: list[Any] = []
        for group, own in zip(self._groups[::-1], found[::-1], strict=True):
            codes = abstract(codes, batch_sharding(group.mesh))
            arguments = (_shapes(states, group), own, codes)
            program, (codes,) = builder.add(functools.partial(_back, group.stages), group.mesh, arguments, (True,))
            self._back.append(program)
        return codes

    def predict_exits(self, states: States, message: Any) -> list[jax.Array]:
        """Logits of every exit for a batch that lies on the first group's devices, each where it was computed."""
        if self._prepare is not None:
            (message,) = self._prepare(message)
        found = []
        for group, run in zip(self._groups, self._steps, strict=True):
            message = hand_over(message, batch_sharding(group.mesh))
            message, logits = run(_values(states, group), message)
            found.append(logits)
        if not self._coded:
            return [logits[index] for logits in found for index in sorted(logits)]
        codes: list[jax.Array] = []
        for group, own, run in zip(self._groups[::-1], found[::-1], self._back, strict=True):
            codes = hand_over(codes, batch_sharding(group.mesh))
            (codes,) = run(_values(states, group), own, codes)
        return codes

    def zero(self) -> Any:
        """The sums before the first batch, on their devices."""
        return to_devices(self._zero(), replicated(self.mesh))

    def _zero(self) -> Any:
        return zero(len(self.exits), len(self._rules), self._classes)

    def count(self, total: Any, exits: Sequence[jax.Array], labels: Any) -> Any:
        """Add a batch to :meth:`zero`; labels int32 on ``mesh``, -1 for an example to leave out."""
        assert self._count is not None
        (total,) = self._count(total, hand_over(list(exits), batch_sharding(self.mesh)), labels)
        return total


class FeaturePrograms:
    """The features of every stage, compiled for batches of one shape; see :meth:`scpl_jax.Pipeline.features`.

    Args:
      groups: the groups, in order.
      states: state of each stage; shapes and dtypes are used.
      images: a batch; likewise.
      prepare: images -> message, or None.
      side: feature maps are averaged down to side x side.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        states: States,
        images: Any,
        prepare: Callable[[Any], Any] | None,
        side: int,
    ) -> None:
        self._groups = groups
        builder = Builder()
        message = abstract(images, batch_sharding(groups[0].mesh))
        self._prepare: Program | None = None
        if prepare is not None:
            function = functools.partial(_tuple_of, prepare)
            self._prepare, (message,) = builder.add(function, groups[0].mesh, (message,), (True,))
        self._steps: list[Program] = []
        for group in groups:
            arguments = (_shapes(states, group), abstract(message, batch_sharding(group.mesh)))
            run = functools.partial(_features, group.stages, side)
            # Every device gets all examples, so that each process that has the stage can read them.
            program, (message, _) = builder.add(run, group.mesh, arguments, (True, False))
            self._steps.append(program)
        builder.compile()

    def __call__(self, states: States, message: Any) -> list[jax.Array]:
        """(N, D) of every stage for a batch that lies on the first group's devices."""
        if self._prepare is not None:
            (message,) = self._prepare(message)
        found: list[jax.Array] = []
        for group, run in zip(self._groups, self._steps, strict=True):
            message = hand_over(message, batch_sharding(group.mesh))
            message, features = run(_values(states, group), message)
            found += features
        return found


def _values(states: States, group: Group) -> list[tuple[Any, Any]]:
    return [(state.params, state.rest) for state in states[group.members]]


def _shapes(states: States, group: Group) -> Any:
    return abstract(_values(states, group), replicated(group.mesh))


def _tuple_of(function: Callable[[Any], Any], images: Any) -> tuple[Any]:
    return (function(images),)


def _count(rules: tuple[StopRule, ...], scores: bool, total: Any, exits: Any, labels: jax.Array) -> tuple[Any]:
    if scores:
        # Scores from 0 to 1, divided by their sum, serve as probabilities: the softmax of their logarithms.
        exits = [jnp.log(jnp.maximum(one.astype(jnp.float32), 1e-6)) for one in exits]
    return (count(rules, total, exits, labels),)


def _forward(stages: Sequence[Stage], values: Sequence[Any], message: Any) -> tuple[Any, dict[int, Any]]:
    """(message for the next group, logits or codes by the number of the stage that can tell)."""
    found = {}
    for stage, (params, rest) in zip(stages, values, strict=True):
        message, logits = evaluate(stage, params, rest, message)
        if logits is not None:
            found[stage.index] = logits
    return message, found


def _features(stages: Sequence[Stage], side: int, values: Sequence[Any], message: Any) -> tuple[Any, list[jax.Array]]:
    found = []
    for stage, (params, rest) in zip(stages, values, strict=True):
        message, _ = evaluate(stage, params, rest, message)
        found.append(pooled_features(message, side))
    return message, found


def _back(
    stages: Sequence[Stage], values: Sequence[Any], own: dict[int, jax.Array], codes: list[jax.Array]
) -> tuple[list[jax.Array]]:
    """Codes of the exits behind these stages, and their own, back to what the stage before them understands."""
    for stage, (params, rest) in zip(stages[::-1], values[::-1], strict=True):
        codes = [decode(stage, params, rest, code) for code in [own[stage.index], *codes]]
    return (codes,)
