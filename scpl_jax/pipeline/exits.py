"""Inference that stops at an early exit, example by example: where each would stop, and what that gives and costs."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scpl_jax.losses.labels import is_outside


@dataclasses.dataclass(frozen=True)
class StopRule:
    """When an example goes no further than the exit that it has reached. The last exit always stops it.

    By confidence: the largest probability of a class is at least ``confidence``. By patience (DeInfoReg): the
    probabilities of ``patience`` exits in a row were each like those of the exit before, that is with a cosine
    similarity of at least ``similarity`` and the same class.

    Args:
      confidence: greater than 0, at most 1; None for no such rule.
      patience: at least 1; None for no such rule.
      similarity: greater than 0, at most 1.

    Raises:
      ValueError: a value out of range, or not exactly one of ``confidence`` and ``patience``.

    Example:
      >>> StopRule(confidence=0.9)
      StopRule(confidence=0.9, patience=None, similarity=0.95)
    """

    confidence: float | None = None
    patience: int | None = None
    similarity: float = 0.95

    def __post_init__(self) -> None:
        if (self.confidence is None) == (self.patience is None):
            raise ValueError("a stop rule needs either a confidence or a patience")
        for name in ("confidence", "similarity"):
            value = getattr(self, name)
            if value is not None and not (0 < value <= 1 and math.isfinite(value)):
                raise ValueError(f"{name} must be greater than 0 and at most 1, got {value}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}")

    def exits(self, logits: jax.Array) -> jax.Array:
        """Where each example stops: logits (E, N, classes) of all exits to the index of an exit, (N,), int32.

        Example:
          >>> import jax.numpy as jnp
          >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.5, 0.5]], [[0.9, 0.1], [0.2, 0.8]]]))
          >>> StopRule(confidence=0.85).exits(logits)
          Array([0, 1], dtype=int32)
        """
        probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        if self.confidence is not None:
            stops = jnp.max(probabilities, axis=-1) >= self.confidence
        else:
            stops = self._patient(probabilities, self.patience or 1)
        stops = stops.at[-1].set(True)
        return jnp.argmax(stops, axis=0).astype(jnp.int32)

    def _patient(self, probabilities: jax.Array, patience: int) -> jax.Array:
        unit = probabilities / jnp.linalg.norm(probabilities, axis=-1, keepdims=True)
        alike = jnp.sum(unit[1:] * unit[:-1], axis=-1) >= self.similarity
        alike &= jnp.argmax(probabilities[1:], axis=-1) == jnp.argmax(probabilities[:-1], axis=-1)
        in_a_row, stops = jnp.zeros(probabilities.shape[1], jnp.int32), [jnp.zeros(probabilities.shape[1], bool)]
        for one in alike:
            in_a_row = jnp.where(one, in_a_row + 1, 0)
            stops.append(in_a_row >= patience)
        return jnp.stack(stops)


Totals = dict[str, Any]


def zero(num_exits: int, num_rules: int, num_classes: int) -> Totals:
    """The sums of :func:`count` before the first batch."""
    return {
        "correct": jnp.zeros(num_exits, jnp.int32),
        "joint_correct": jnp.zeros(num_exits, jnp.int32),
        "loss": jnp.float32(0),
        "stopped_correct": jnp.zeros(num_rules, jnp.int32),
        "stopped_at": jnp.zeros((num_rules, num_exits), jnp.int32),
        "confusion": jnp.zeros((num_classes, num_classes), jnp.int32),
        "examples": jnp.int32(0),
        "bad_labels": jnp.int32(0),
    }


def joint(exits: jax.Array) -> jax.Array:
    """Logits of what exits say together: the logarithm of the mean of the probabilities up to each of them.

    Args:
      exits: logits (E, N, classes), from the first exit to the last.

    Returns:
      (E, N, classes), float32.

    Example:
      >>> logits = jnp.log(jnp.array([[[0.9, 0.1]], [[0.3, 0.7]]]))
      >>> [f"{p:.1f}" for p in jnp.exp(joint(logits))[-1, 0]]
      ['0.6', '0.4']
    """
    each = jax.nn.log_softmax(exits.astype(jnp.float32), axis=-1)
    so_far = jax.lax.cumlogsumexp(each, axis=0)
    return so_far - jnp.log(jnp.arange(1, len(each) + 1, dtype=jnp.float32))[:, None, None]


def count(
    rules: Sequence[StopRule],
    totals: Totals,
    exits: Sequence[jax.Array],
    labels: jax.Array,
    *,
    jointly: bool = False,
) -> Totals:
    """Add a batch to the sums.

    Args:
      rules: stop rules (static).
      totals: of :func:`zero`.
      exits: logits (N, classes) of every exit, from the first to the last.
      labels: (N,), integer; -1 for an example to leave out.
      jointly: whether the network's answer is what all exits say together (static), not the last one's.

    Returns:
      The new sums: ``correct`` of every exit, ``joint_correct`` of what the exits up to every one say together,
      ``loss`` and ``confusion`` of the network's answer (rows: the label, columns: the answer), ``stopped_correct`` of
      every rule, ``stopped_at`` of every rule and exit, ``examples``, and ``bad_labels``, the number of labels that are
      none of the classes.
    """
    real = labels >= 0
    logits = jnp.stack([one.astype(jnp.float32) for one in exits])
    together = joint(logits)
    right, right_together = ((jnp.argmax(x, axis=-1) == labels) & real for x in (logits, together))
    answer = (together if jointly else logits)[-1]
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(answer, jnp.maximum(labels, 0))
    new = {
        "correct": totals["correct"] + jnp.sum(right, axis=1, dtype=jnp.int32),
        "joint_correct": totals["joint_correct"] + jnp.sum(right_together, axis=1, dtype=jnp.int32),
        "loss": totals["loss"] + jnp.sum(jnp.where(real, losses, 0)),
        "confusion": totals["confusion"]
        .at[jnp.maximum(labels, 0), jnp.argmax(answer, axis=-1)]
        .add(real.astype(jnp.int32)),
        "examples": totals["examples"] + jnp.sum(real, dtype=jnp.int32),
        "bad_labels": totals["bad_labels"] + jnp.sum(is_outside(labels, logits.shape[-1]), dtype=jnp.int32),
        "stopped_correct": totals["stopped_correct"],
        "stopped_at": totals["stopped_at"],
    }
    if rules:
        stops = jnp.stack([rule.exits(logits) for rule in rules])
        correct = jnp.take_along_axis(right, stops, axis=0)
        new["stopped_correct"] += jnp.sum(correct, axis=1, dtype=jnp.int32)
        at = jax.nn.one_hot(stops, len(exits), dtype=jnp.int32) * real[None, :, None]
        new["stopped_at"] += jnp.sum(at, axis=1)
    return new


def summary(totals: Totals, exits: Sequence[int], costs: Sequence[float]) -> dict[str, Any]:
    """What the sums of an evaluation mean.

    Args:
      totals: of :func:`count`, as Python numbers and lists.
      exits: numbers of the stages that are exits; the last one is the network's last stage.
      costs: cost of every stage of the network, in any unit.

    Returns:
      As :meth:`scpl_jax.Pipeline.evaluate`.

    Raises:
      ValueError: no example was counted, or one whose label is none of the classes.
    """
    examples = totals["examples"]
    if totals["bad_labels"]:
        raise ValueError(
            f"labels must be from 0 to {len(totals['confusion']) - 1}, or be ignored; {totals['bad_labels']} labels of "
            "the evaluation are not"
        )
    if not examples:
        raise ValueError("there is no example to evaluate")
    until = np.cumsum(costs)
    shares = (until / until[-1])[list(exits)]
    found = [
        {
            "stage": stage,
            "accuracy": correct / examples,
            "joint_accuracy": together / examples,
            "share": float(share),
        }
        for stage, correct, together, share in zip(
            exits, totals["correct"], totals["joint_correct"], shares, strict=True
        )
    ]
    stops = [
        {"accuracy": correct / examples, "share": float(np.dot(at, shares)) / examples}
        for correct, at in zip(totals["stopped_correct"], totals["stopped_at"], strict=True)
    ]
    return {
        "accuracy": float(np.trace(totals["confusion"])) / examples,
        "loss": totals["loss"] / examples,
        "examples": examples,
        "confusion": totals["confusion"],
        "exits": found,
        "stops": stops,
    }
