"""The programs of evaluation for batches of one shape: every group forward, then the count of what is right."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from scpl_jax.pipeline.groups import Builder, Group, Program, abstract
from scpl_jax.pipeline.local_programs import States
from scpl_jax.pipeline.placement import batch_sharding, replicated
from scpl_jax.pipeline.transfer import hand_over
from scpl_jax.stages.decouple import Stage
from scpl_jax.stages.step import evaluate


class EvaluationPrograms:
    """Compiled for batches of one shape; see :meth:`scpl_jax.Pipeline.predict` and ``evaluate``.

    Args:
      groups: the groups, in order.
      states: state of each stage; shapes and dtypes are used.
      images: a batch; likewise.
      prepare: images -> message, or None.
    """

    def __init__(
        self, groups: Sequence[Group], states: States, images: Any, prepare: Callable[[Any], Any] | None
    ) -> None:
        self._groups = groups
        builder = Builder()
        message = abstract(images, batch_sharding(groups[0].mesh))
        self._prepare: Program | None = None
        if prepare is not None:
            function = functools.partial(_tuple_of, prepare)
            self._prepare, (message,) = builder.add(function, groups[0].mesh, (message,), (True,))
        self._steps: list[Program] = []
        logits: Any = None
        for group in groups:
            values = abstract(_values(states, group), replicated(group.mesh))
            arguments = (values, abstract(message, batch_sharding(group.mesh)))
            run = functools.partial(_forward, group.stages)
            program, (message, logits) = builder.add(run, group.mesh, arguments, (True, True))
            self._steps.append(program)
        mesh = groups[-1].mesh
        self._count: Program | None = None
        if logits is not None:
            labels = jax.ShapeDtypeStruct(logits.shape[:1], jnp.int32, sharding=batch_sharding(mesh))
            counted = (abstract(zero(), replicated(mesh)), logits, labels)
            self._count, _ = builder.add(_count, mesh, counted, (False, False, False))
        builder.compile()

    def predict(self, states: States, message: Any) -> Any:
        """Logits of a batch that lies on the first group's devices, or None without a classifier."""
        if self._prepare is not None:
            (message,) = self._prepare(message)
        logits = None
        for group, run in zip(self._groups, self._steps, strict=True):
            message = hand_over(message, batch_sharding(group.mesh))
            message, logits = run(_values(states, group), message)
        return logits

    def count(self, total: Any, logits: Any, labels: Any) -> Any:
        """Add a batch to :func:`zero`; labels int32 on the last group's devices, -1 for an example to leave out."""
        assert self._count is not None
        return self._count(total, logits, labels)


def zero() -> tuple[jax.Array, jax.Array, jax.Array]:
    """(examples that are right, sum of their losses, their number) before the first batch."""
    return jnp.int32(0), jnp.float32(0), jnp.int32(0)


def _values(states: States, group: Group) -> list[tuple[Any, Any]]:
    return [(state.params, state.rest) for state in states[group.members]]


def _tuple_of(function: Callable[[Any], Any], images: Any) -> tuple[Any]:
    return (function(images),)


def _forward(stages: Sequence[Stage], values: Sequence[Any], message: Any) -> tuple[Any, Any]:
    logits = None
    for stage, (params, rest) in zip(stages, values, strict=True):
        message, logits = evaluate(stage, params, rest, message)
    return message, logits


def _count(total: Any, logits: jax.Array, labels: jax.Array) -> Any:
    correct, loss, examples = total
    real = labels >= 0
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), jnp.maximum(labels, 0))
    return (
        correct + jnp.sum(real & (jnp.argmax(logits, axis=-1) == labels), dtype=jnp.int32),
        loss + jnp.sum(jnp.where(real, losses, 0)),
        examples + jnp.sum(real, dtype=jnp.int32),
    )
