"""What stages answer in evaluation: logits of the network and of its exits, features, accuracies."""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from scpl_jax.losses.labels import IGNORE
from scpl_jax.pipeline.compilation import signature
from scpl_jax.pipeline.evaluation import EvaluationPrograms, FeaturePrograms
from scpl_jax.pipeline.exits import StopRule, summary
from scpl_jax.pipeline.placement import Group, batch_sharding
from scpl_jax.pipeline.transfer import to_devices
from scpl_jax.pipeline.whole_steps import WholeSteps, read_everywhere
from scpl_jax.stages import Stage
from scpl_jax.stages.inputs import admit_inputs, admit_labels, traced_for


class Inference(WholeSteps):
    """The part of a :class:`scpl_jax.Pipeline` that answers; arguments and attributes are explained there."""

    groups: tuple[Group, ...]
    max_in_flight: int
    joint_answer: bool
    _prepare_eval: Callable[[Any], Any] | None

    def predict(self, images: Any) -> jax.Array:
        """Logits (N, classes) of a batch in evaluation mode, without waiting for them: those of the last stage.

        With ``joint_answer``: the logarithm of the mean of the probabilities of all exits. (Without it associated
        learning gives scores of the classes instead.)

        Raises:
          ValueError: the last stage can't tell classes, or the devices of a stage can't share the batch.
        """
        programs, images = self._ready(EvaluationPrograms, images, ((), self.joint_answer))
        if not programs.can_answer:
            raise ValueError("the network has no classifier, so there are no logits")
        answer: jax.Array = programs.answer(programs.predict_exits(self.states, images))
        return answer

    def predict_exits(self, images: Any) -> dict[int, jax.Array]:
        """Logits (N, classes) of every stage that can tell classes, by its number; otherwise as :meth:`predict`."""
        programs, images = self._ready(EvaluationPrograms, images, ((), self.joint_answer))
        return dict(zip(programs.exits, programs.predict_exits(self.states, images), strict=True))

    def features(self, images: Any, side: int = 2) -> list[jax.Array]:
        """What each stage hands on, in evaluation mode, as one vector an example; without waiting for it.

        Args:
          images: a batch; otherwise as :meth:`predict`.
          side: feature maps are averaged down to side x side, in pixels; 0: not at all.

        Returns:
          One array (N, D) a stage, float32. Only processes that have the stage can read it.

        Example:
          >>> import jax.numpy as jnp, optax
          >>> from flax import nnx
          >>> from scpl_jax import Pipeline, SupCon, decouple
          >>> blocks = [nnx.Linear(8, n, rngs=nnx.Rngs(0)) for n in (8, 3)]
          >>> stages = decouple(blocks, 1, SupCon(head="identity"), jnp.ones((4, 8)), nnx.Rngs(1))
          >>> [x.shape for x in Pipeline(stages, optax.adam(1e-3)).features(jnp.ones((4, 8)))]
          [(4, 8)]
        """
        programs, images = self._ready(FeaturePrograms, images, side)
        found: list[jax.Array] = programs(self.states, images)
        return found

    def evaluate(self, batches: Iterable[tuple[Any, Any]], rules: Sequence[StopRule] = ()) -> dict[str, Any]:
        """Accuracy and loss over batches of (images, labels); examples labelled ``ignore``, or -1, are left out.

        Batches run through the stages one behind the other like in training.

        Args:
          batches: images as the network (or ``prepare_eval``) takes them, and class indices (N,) or (N, 1), integer.
          rules: when an example may stop at an early exit.

        Returns:
          ``accuracy``, a fraction, and ``loss``, mean cross-entropy, of the last stage, with ``joint_answer`` of all
          exits together; ``examples``, their number;
          ``confusion``: how many examples of each class (row) got each answer (column);
          ``exits``: a dict of ``stage``, ``accuracy``, ``joint_accuracy`` and ``share`` for each stage that can tell
          classes: joint accuracy is that of the mean of its and all earlier exits' probabilities, and share
          is the part of the network's cost up to there, local losses left out but for those that are exits and
          read through an auxiliary network, which count in the whole, too; ``stops``: for each rule the
          ``accuracy``, and the mean ``share`` of the network that was needed. Every process gets them.

        Raises:
          ValueError: no example, a batch or labels that are not as they should be, or a network without classifier.
        """
        self.check_whole()
        self._bound(0)  # so that what fails in a step is not said of the evaluation
        total: Any = None
        programs: Any = None
        pending: collections.deque[Any] = collections.deque()
        for images, labels in batches:
            programs, images = self._ready(EvaluationPrograms, images, (tuple(rules), self.joint_answer))
            if not programs.can_answer:
                raise ValueError("the network has no classifier, so there is no accuracy")
            # Whatever else is ignored, -1 says that an example only fills a batch up.
            examples, classes = jax.tree.leaves(images)[0].shape[0], self.stages[0].classes
            labels = admit_labels(labels, examples, classes, {IGNORE, *self._ignored})
            labels = to_devices(labels, batch_sharding(programs.mesh))
            exits = programs.predict_exits(self.states, images)
            total = programs.count(programs.zero() if total is None else total, exits, labels)
            pending.append(self._signs(total["examples"]))
            if len(pending) > self.max_in_flight:
                jax.block_until_ready(pending.popleft())
        if programs is None:
            raise ValueError("there is no example to evaluate")
        costs = [_inference_cost(stage, stage.index in programs.exits) for stage in self.stages]
        return summary(read_everywhere([total], [programs.mesh])[0], programs.exits, costs)

    def _ready(self, kind: type, images: Any, option: Any) -> tuple[Any, Any]:
        """(programs for batches of this shape, compiled once; the batch on the first stage's devices)."""
        self.check_whole()
        example = None if self._prepare_eval else self.stages[0].example
        images = admit_inputs(images, example)
        key = (kind, signature(images), option)
        if key not in self._programs:
            self._check_batch(jax.tree.leaves(images)[0].shape[0])
            with traced_for(images, example):
                self._programs[key] = kind(self.groups, self.states, images, self._prepare_eval, option)
        return self._programs[key], to_devices(images, self._first)

    def _check_batch(self, size: int, micro_batches: int = 1) -> None:
        devices = self.meshes[0].shape["data"]
        parts = micro_batches * devices
        if size % parts:
            what = f"{micro_batches} micro-batches on " if micro_batches > 1 else ""
            raise ValueError(
                f"a batch of {size} can't be split over {what}{devices} devices a stage; "
                f"choose a batch size that {parts} divides"
            )


def _inference_cost(stage: Stage, is_exit: bool) -> float:
    """What a stage counts for in the cost of an answer."""
    # Next to the blocks a linear classifier costs nothing to speak of, an auxiliary network does.
    through = is_exit and getattr(stage.objective, "aux", None) is not None and "classifier" not in stage.params
    return stage.cost if through else stage.cost - stage.loss_cost
