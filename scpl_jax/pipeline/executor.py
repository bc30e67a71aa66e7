"""Run stages asynchronously: each stage's step is dispatched to its device as soon as its message is.

    batch t + 2 -> stage 0 | batch t + 1 -> stage 1 | batch t -> stage 2 | batch t - 1 -> stage 3 + classifier

The host never waits for a result in the loop. It only waits when ``max_in_flight`` batches are under way, so that the
memory of messages in flight stays bounded. Every stage sees exactly the messages and weights of a sequential run.

States are always those of a whole step: what would interrupt a step while it is dispatched waits until it is, and what
fails in it marks the pipeline as broken.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scpl_jax.losses.labels import IGNORE, class_indices
from scpl_jax.pipeline import processes
from scpl_jax.pipeline.backprop_programs import BackpropPrograms
from scpl_jax.pipeline.compilation import Builder, Program, abstract, signature
from scpl_jax.pipeline.inference import Inference
from scpl_jax.pipeline.local_programs import LocalPrograms
from scpl_jax.pipeline.placement import group_stages, place, replicated, sub_meshes
from scpl_jax.pipeline.signals import held_back
from scpl_jax.pipeline.step_parts import Record, StepSettings
from scpl_jax.pipeline.transfer import to_devices, to_program
from scpl_jax.pipeline.whole_steps import StepSigns
from scpl_jax.stages.decouple import Stage
from scpl_jax.stages.inputs import admit_inputs, admit_labels, traced_for
from scpl_jax.stages.optimizer import one_each

Prepare = Callable[[jax.Array, Any, jax.Array], tuple[Any, jax.Array]]


class Pipeline(Inference):
    """Stages, their states and their optimizers on devices.

    Args:
      stages: from :func:`scpl_jax.decouple`. With local objectives every stage is updated on its own; with
        :class:`~scpl_jax.CrossEntropy` for all of them a step is a backpropagation through all stages (GPipe).
      optimizer: an Optax optimizer, or a sequence with one for each stage, also for backpropagation; each stage has a
        state of its own.
      devices: devices to use; default: all. Stages are laid out over them by their estimated cost.
      data_parallel: devices a stage, over which its batch is split; losses and batch statistics are over the whole
        batch.
      across_hosts: what is spread over the processes of a multi-process run, "stages" or "data"; see
        :func:`scpl_jax.pipeline.sub_meshes`.
      fuse: compile neighbouring stages that share devices into one program (backpropagation always does). None: where
        it is faster and takes little memory, which is on CPUs up to four stages that hand on at most 12 MiB to one
        another (for the example that the stages were made with).
      micro_batches: for backpropagation: parts that a batch is worked through in; it must divide the batch.
      remat: for backpropagation over several devices: compute activations again in the backward pass instead of
        keeping them.
      prepare: a pure function (key, images, labels) -> (message, labels), such as an augmentation, compiled and run
        on the first stage's devices before the first stage. Without it the first stage gets the images as they are.
      prepare_eval: the same for evaluation: images -> message.
      joint_answer: answer with the mean of the probabilities of all stages that can tell classes, an ensemble that
        training gives for nothing, not with the last stage alone. An answer then needs the exits' auxiliary networks.
      key: ``jax.random.key`` that ``prepare`` gets, folded with the number of the step.
      ignore: the label of an example that losses and accuracies leave out, in training and in evaluation; None for
        none. Any other label that is none of the classes is refused: of arrays on the host at the call, of arrays on a
        device by leaving the step's updates out, and by a ValueError once the host has waited for the step, so that
        nothing waits for their values.
      skip_non_finite: a stage whose loss or gradient in a step is NaN or infinite keeps its state in that step; the
        others are not affected. See :func:`scpl_jax.stages.step.apply_gradient`.
      max_in_flight: batches that may be under way before :meth:`train_step` waits for the oldest, at least 1. 1 is
        synchronous. The results do not depend on it.

    Attributes:
      stages: the stages.
      states: the state of each stage, always that of a whole step; may be replaced as a whole, for example by that of a
        checkpoint. In a run of several processes the arrays of other processes' stages are there without values.
      step: number of training steps so far.
      saved: what was saved last and where, in words, as whoever saves says; None before.
      active: how many stages take part in training, from the first; None for all. The others keep their values until
        they join. A group of fused stages joins with its first one.
      meshes: the sub-mesh of each stage.
      groups: the stages that one program runs.
      settings: how a training step is made: optimizers, whether updates by bad numbers are left out, micro-batches.
      skipped: updates that stages of this process left out, oldest first, until :meth:`take_skipped`. A step's are
        known when the host has waited for it: at most ``max_in_flight`` steps later, or after :meth:`wait`.
      compile_seconds: time spent on compilation so far, in seconds.
      record: called with (task, group, what it took, what it gave) for everything that is dispatched in a training
        step, if set; see :class:`scpl_jax.pipeline.Timeline`. What it raises is raised when the step is dispatched.

    A signal such as Ctrl-C that arrives while a step is dispatched is handled when that is done; what fails before, in
    ``prepare`` or a compilation, leaves all states as they were. If a step fails while it runs, as for want of memory,
    its states are lost. From then on every call raises a :class:`PipelineBrokenError`, until ``states`` are replaced.

    Raises:
      ValueError: ``max_in_flight`` or ``micro_batches`` below 1, no stage, no device, another number of optimizers than
        of stages, options that do not serve stages of this kind, or a placement between whose devices messages can't
        move.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> from scpl_jax import SupCon, decouple
      >>> blocks = [nnx.Linear(8, 8, rngs=nnx.Rngs(i)) for i in range(2)] + [nnx.Linear(8, 3, rngs=nnx.Rngs(2))]
      >>> x, y = jnp.ones((4, 8)), jnp.array([0, 1, 2, 0])
      >>> stages = decouple(blocks, 2, SupCon(head="identity"), x, nnx.Rngs(3))
      >>> pipeline = Pipeline(stages, optax.adam(1e-3))
      >>> metrics = pipeline.train_step(x, y)  # returns at once
      >>> sorted(metrics[0]), pipeline.step
      (['bad_labels', 'gradient_norms', 'loss', 'skipped'], 1)
      >>> pipeline.predict(x).shape
      (4, 3)
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        optimizer: optax.GradientTransformation | Sequence[optax.GradientTransformation],
        devices: Sequence[jax.Device] | None = None,
        *,
        data_parallel: int = 1,
        across_hosts: str = "stages",
        fuse: bool | None = False,
        micro_batches: int = 1,
        remat: bool = False,
        prepare: Prepare | None = None,
        prepare_eval: Callable[[Any], Any] | None = None,
        joint_answer: bool = False,
        key: jax.Array | None = None,
        ignore: int | None = IGNORE,
        skip_non_finite: bool = True,
        max_in_flight: int = 8,
    ):
        if not stages:
            raise ValueError("a pipeline needs at least one stage, got none")
        for name, number in (("max_in_flight", max_in_flight), ("micro_batches", micro_batches)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.end_to_end = stages[0].end_to_end
        if not self.end_to_end and (micro_batches > 1 or remat):
            raise ValueError("micro_batches and remat are for backpropagation; stages with local losses need neither")
        available = sub_meshes(processes.devices() if devices is None else devices, data_parallel, across_hosts)
        optimizers = one_each(optimizer, len(stages))
        super().__init__(stages, place([s.cost for s in stages], available), optimizers, ignore)
        self.groups = group_stages(self.stages, self.meshes, self.end_to_end or fuse)
        self.settings = StepSettings(optimizers, skip_non_finite, micro_batches, remat)
        # Collectives of the CPU backend block threads that programs of another step need to get on with.
        blocking = jax.process_count() > 1 and data_parallel > 1 and micro_batches > 1
        self.max_in_flight = 1 if blocking and self.meshes[0].devices.flat[0].platform == "cpu" else max_in_flight
        self.joint_answer = joint_answer
        self.active: int | None = None
        self.compile_seconds = 0.0
        self.record: Record | None = None
        self._key = None if key is None else to_devices(key, replicated(self.meshes[0]))
        self._prepare, self._prepare_eval = prepare, prepare_eval
        self._flags = {
            wanted: [to_devices(np.array(wanted), replicated(group.mesh)) for group in self.groups]
            for wanted in (False, True)
        }

    def train_step(self, images: Any, labels: Any, *, with_norms: bool = False) -> list[dict[str, Any]]:
        """Dispatch one training step of every stage and return without waiting for it.

        Args:
          images: a batch for the network (or for ``prepare``): any pytree of arrays, host or device, batch first. In a
            run of several processes each of them must give the same batch.
          labels: class indices, shape (N,) or (N, 1), integer.
          with_norms: also compute the gradient norm of every layer.

        Returns:
          One dict a stage of scalars that are still being computed: ``loss`` (with backpropagation only the last
          stage's), with a classifier ``classifier_loss``, ``correct`` and ``examples`` (those that are not ignored);
          ``bad_labels``, how many labels are none of the classes (with backpropagation the last stage's);
          ``gradient_norms``, a dict by layer, 0 unless asked for; ``skipped``, whether the update was left out
          (only with ``skip_non_finite``). Reading a value waits for it; only a process that has the stage can read it.

        Raises:
          ValueError: the batch or its labels are not as they should be, here or in a step before; states and ``step``
            stay as they were.
          PipelineBrokenError: a step before failed while it ran.
        """
        images, labels = self._admit(images, labels)
        self._bound(self.max_in_flight - 1)
        prepare, run = self._training_programs(images, labels)
        if prepare is None:
            message, targets = to_devices((images, labels), self._first)
        else:
            batch = to_program((images, labels), self._first)
            message, targets = prepare(self._key, np.int32(self.step), *batch)
        some = {} if self.active is None else {"active": self.active}
        failed: list[Exception] = []
        record = None if self.record is None else functools.partial(_call, self.record, failed)
        with held_back():
            try:
                states, metrics = run(self._states, message, targets, self._flags[with_norms], record, **some)
                losses = [one["loss"] for one in metrics if "loss" in one]
                # With backpropagation an update ends long after the loss is known.
                ends = metrics if self.end_to_end else []
                updates = [value for one in ends for value in jax.tree.leaves(one["gradient_norms"])[:1]]
                signs = StepSigns(self.step, self._signs(*losses[:-1], *updates, losses[-1]), metrics)
            except BaseException as error:
                if not any(x.is_deleted() for x in jax.tree.leaves((self._states, run.memory))):
                    raise  # nothing was taken from the states yet
                broken = self._break(self.step, error)
                if isinstance(error, Exception):
                    raise broken from error
                raise
            self._states = states
            self._in_flight.append(signs)
            self.step += 1
        if failed:
            raise failed[0]
        return metrics

    def _admit(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """A training batch at the door."""
        self.check_whole()
        images = admit_inputs(images, None if self._prepare else self.stages[0].example)
        examples = jax.tree.leaves(images)[0].shape[0]
        return images, admit_labels(labels, examples, self.stages[0].classes, self._ignored)

    def _admit_shapes(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """The same of a batch of which only shapes and dtypes count, not the values of its labels."""
        labels = class_indices(labels)
        return self._admit(images, jax.ShapeDtypeStruct(labels.shape, labels.dtype))

    def compile(self, images: Any, labels: Any) -> float:
        """Compile the training step for batches of this shape now instead of at the first step.

        Args:
          images, labels: as for :meth:`train_step`; only shapes and dtypes are used.

        Returns:
          The seconds it took; 0 if it was compiled already.
        """
        before = self.compile_seconds
        self._training_programs(*self._admit_shapes(images, labels))
        return self.compile_seconds - before

    def temporary_bytes(self, images: Any, labels: Any) -> list[int]:
        """Memory that each group's step needs beside its state and its messages, by the compiler's account.

        Args:
          images, labels: as for :meth:`train_step`; only shapes and dtypes are used.
        """
        needed: list[int] = self._training_programs(*self._admit_shapes(images, labels))[1].temporary_bytes
        return needed

    def _training_programs(self, images: Any, labels: Any) -> tuple[Program | None, Any]:
        """(preparation or None, the step), compiled once for batches of this shape."""
        key = signature((images, labels))
        if key not in self._programs:
            self._programs[key] = self._compile_training(images, labels)
        programs: tuple[Program | None, Any] = self._programs[key]
        return programs

    def _compile_training(self, images: Any, labels: Any) -> tuple[Program | None, Any]:
        began = time.perf_counter()
        self._check_batch(labels.shape[0])
        builder = Builder()
        message, targets = abstract((images, labels), self._first)
        prepare: Program | None = None
        example = None if self._prepare else self.stages[0].example
        if self._prepare is not None:
            arguments = (abstract(self._key, replicated(self.meshes[0])), jnp.int32(0), message, targets)
            function = functools.partial(_prepare_step, self._prepare)
            prepare, (message, targets) = builder.add(function, self.meshes[0], arguments, (True, True))
        self._check_batch(targets.shape[0], self.settings.micro_batches)
        kind: Any = BackpropPrograms if self.end_to_end else LocalPrograms
        with traced_for(images, example):
            step = kind(builder, self.groups, self.settings, self.states, message, targets)
        builder.compile()
        self.compile_seconds += time.perf_counter() - began
        return prepare, step


def _call(record: Record, failed: list[Exception], *about: Any) -> None:
    """Call ``record``; what it raises must not end a step half way."""
    try:
        record(*about)
    except Exception as error:
        failed.append(error)


def _prepare_step(prepare: Prepare, key: jax.Array, step: jax.Array, images: Any, labels: jax.Array) -> Any:
    return prepare(jax.random.fold_in(key, step), images, labels)
