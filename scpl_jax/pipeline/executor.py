"""Run stages asynchronously: each stage's step is dispatched to its device as soon as its message is.

    batch t + 2 -> stage 0 | batch t + 1 -> stage 1 | batch t -> stage 2 | batch t - 1 -> stage 3 + classifier

The host never waits for a result in the loop. It only waits when ``max_in_flight`` batches are under way, so that the
memory of messages in flight stays bounded. Every stage sees exactly the messages and weights of a sequential run.

States are always those of a whole step: what would interrupt a step while it is dispatched waits until it is, and what
fails in it marks the pipeline as broken.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scpl_jax.losses.labels import IGNORE, class_indices
from scpl_jax.pipeline import processes
from scpl_jax.pipeline.backprop_programs import BackpropPrograms
from scpl_jax.pipeline.compilation import Builder, Program, abstract, signature
from scpl_jax.pipeline.evaluation import EvaluationPrograms, FeaturePrograms
from scpl_jax.pipeline.exits import StopRule, summary
from scpl_jax.pipeline.groups import group_stages
from scpl_jax.pipeline.local_programs import LocalPrograms
from scpl_jax.pipeline.placement import batch_sharding, is_local, place, replicated, sub_meshes
from scpl_jax.pipeline.placement import processes as processes_of
from scpl_jax.pipeline.signals import held_back
from scpl_jax.pipeline.skips import Skip, StepSigns
from scpl_jax.pipeline.step_parts import Record, StepSettings
from scpl_jax.pipeline.transfer import hand_over, to_devices, to_program
from scpl_jax.stages.decouple import Stage
from scpl_jax.stages.inputs import admit_inputs, admit_labels, labels_must_be, traced_for
from scpl_jax.stages.step import StageState, initial_state, zero_totals

Prepare = Callable[[jax.Array, Any, jax.Array], tuple[Any, jax.Array]]


class PipelineBrokenError(RuntimeError):
    """A step failed while it ran, so that states are lost; the message says which one and what was saved last."""


class Pipeline:
    """Stages, their states and their optimizers on devices.

    Args:
      stages: from :func:`scpl_jax.decouple`. With local objectives every stage is updated on its own; with
        :class:`~scpl_jax.CrossEntropy` for all of them a step is a backpropagation through all stages (GPipe).
      optimizer: an Optax optimizer; each stage has a state of its own.
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
      settings: how a training step is made: optimizer, whether updates by bad numbers are left out, micro-batches.
      skipped: updates that stages of this process left out, oldest first, until :meth:`take_skipped`. A step's are
        known when the host has waited for it: at most ``max_in_flight`` steps later, or after :meth:`wait`.
      compile_seconds: time spent on compilation so far, in seconds.
      record: called with (task, group, what it took, what it gave) for everything that is dispatched in a training
        step, if set; see :class:`scpl_jax.pipeline.Timeline`. What it raises is raised when the step is dispatched.

    A signal such as Ctrl-C that arrives while a step is dispatched is handled when that is done; what fails before, in
    ``prepare`` or a compilation, leaves all states as they were. If a step fails while it runs, as for want of memory,
    its states are lost. From then on every call raises a :class:`PipelineBrokenError`, until ``states`` are replaced.

    Raises:
      ValueError: ``max_in_flight`` or ``micro_batches`` below 1, no stage, no device, options that do not serve stages
        of this kind, or a placement between whose devices messages can't move.

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
        optimizer: optax.GradientTransformation,
        devices: Sequence[jax.Device] | None = None,
        *,
        data_parallel: int = 1,
        across_hosts: str = "stages",
        fuse: bool | None = False,
        micro_batches: int = 1,
        remat: bool = False,
        prepare: Prepare | None = None,
        prepare_eval: Callable[[Any], Any] | None = None,
        key: jax.Array | None = None,
        ignore: int | None = IGNORE,
        skip_non_finite: bool = True,
        max_in_flight: int = 8,
    ):
        if not stages:
            raise ValueError("a pipeline needs at least one stage, got none")
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight must be at least 1, got {max_in_flight}")
        if micro_batches < 1:
            raise ValueError(f"micro_batches must be at least 1, got {micro_batches}")
        self.end_to_end = stages[0].end_to_end
        if not self.end_to_end and (micro_batches > 1 or remat):
            raise ValueError("micro_batches and remat are for backpropagation; stages with local losses need neither")
        self.stages = tuple(stages)
        available = sub_meshes(processes.devices() if devices is None else devices, data_parallel, across_hosts)
        self.meshes = place([s.cost for s in stages], available)
        self.groups = group_stages(self.stages, self.meshes, self.end_to_end or fuse)
        self.settings = StepSettings(optimizer, skip_non_finite, micro_batches, remat)
        # Collectives of the CPU backend block threads that programs of another step need to get on with.
        blocking = jax.process_count() > 1 and data_parallel > 1 and micro_batches > 1
        self.max_in_flight = 1 if blocking and self.meshes[0].devices.flat[0].platform == "cpu" else max_in_flight
        self.step = 0
        self.saved: str | None = None
        self._ignored = () if ignore is None else (ignore,)
        self._broken: str | None = None
        self.active: int | None = None
        self.compile_seconds = 0.0
        self.record: Record | None = None
        self.skipped: list[Skip] = []
        self._states: tuple[StageState, ...] = tuple(
            to_devices(initial_state(stage, optimizer), replicated(mesh))
            for stage, mesh in zip(self.stages, self.meshes, strict=True)
        )
        self._in_flight: collections.deque[StepSigns] = collections.deque()
        self._first = batch_sharding(self.meshes[0])
        # The process of the first stage learns only from the last one how far the others are.
        self._needs_token = processes_of(self.meshes[0]) != processes_of(self.meshes[-1])
        self._key = None if key is None else to_devices(key, replicated(self.meshes[0]))
        self._prepare, self._prepare_eval = prepare, prepare_eval
        self._programs: dict[Any, Any] = {}
        self._flags = {
            wanted: [to_devices(np.array(wanted), replicated(group.mesh)) for group in self.groups]
            for wanted in (False, True)
        }

    # Training

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

    def _signs(self, *values: jax.Array) -> list[jax.Array]:
        """What this process must wait for to know that a step is done, here and (the last value) at the last stage."""
        signs = [value for value in values if len(value.addressable_shards)]
        if self._needs_token:
            token = hand_over(values[-1], replicated(self.meshes[0]))
            signs += [token] if is_local(self.meshes[0]) else []
        return signs

    def _bound(self, limit: int) -> None:
        while len(self._in_flight) > limit:
            oldest = self._in_flight[0]
            try:
                skipped, bad_labels = oldest.wait()
            except Exception as error:
                raise self._break(oldest.step, error) from error
            with held_back():
                self._in_flight.popleft()
                self.skipped += skipped
            if bad_labels:
                raise ValueError(
                    f"{labels_must_be(self.stages[0].classes, self._ignored)}; {bad_labels} labels of step "
                    f"{oldest.step + 1} are not, and its updates were left out"
                )

    @property
    def states(self) -> tuple[StageState, ...]:
        """The state of each stage."""
        return self._states

    @states.setter
    def states(self, states: Sequence[StageState]) -> None:
        self._states = tuple(states)
        if self._broken is not None:
            self._broken = None
            self._in_flight.clear()

    def _break(self, step: int, error: BaseException) -> PipelineBrokenError:
        """Mark the pipeline as broken by an error in a step, and say so."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # Of a traceback in an error the last line tells.
        reason = " ... ".join(line[:250] for line in dict.fromkeys((lines[0], lines[-1])))
        saved = "nothing was saved before" if self.saved is None else f"what was saved last is {self.saved}"
        self._broken = (
            f"the pipeline is broken: step {step + 1} failed while it ran ({reason}), and states are lost; "
            f"{saved}; assign states of a whole step, such as those of a checkpoint, or build the pipeline again"
        )
        self._programs.clear()  # their memory for gradients may be lost, too
        return PipelineBrokenError(self._broken)

    def check_whole(self) -> None:
        """Raise a :class:`PipelineBrokenError` if states were lost."""
        if self._broken is not None:
            raise PipelineBrokenError(self._broken)

    def take_skipped(self) -> list[Skip]:
        """The updates left out that have become known since the last call."""
        skipped, self.skipped = self.skipped, []
        return skipped

    def wait(self) -> None:
        """Wait until every step that was dispatched is done.

        Raises:
          PipelineBrokenError: one of them failed, now or before.
          ValueError: labels of one of them, on a device, were none of the classes.
        """
        self.check_whole()
        self._bound(0)
        try:
            jax.block_until_ready(self._states)
        except Exception as error:
            raise self._break(self.step - 1, error) from error

    def compile(self, images: Any, labels: Any) -> float:
        """Compile the training step for batches of this shape now instead of at the first step.

        Args:
          images: as for :meth:`train_step`; only shapes and dtypes are used.
          labels: likewise.

        Returns:
          The seconds it took; 0 if it was compiled already.
        """
        before = self.compile_seconds
        self._training_programs(*self._admit_shapes(images, labels))
        return self.compile_seconds - before

    def temporary_bytes(self, images: Any, labels: Any) -> list[int]:
        """Memory that each group's step needs beside its state and its messages, by the compiler's account.

        Args:
          images: as for :meth:`train_step`; only shapes and dtypes are used.
          labels: likewise.
        """
        needed: list[int] = self._training_programs(*self._admit_shapes(images, labels))[1].temporary_bytes
        return needed

    def _training_programs(self, images: Any, labels: Any) -> tuple[Program | None, Any]:
        """(preparation or None, the step), compiled once for batches of this shape."""
        key = ("train", signature((images, labels)))
        if key not in self._programs:
            self._programs[key] = self._compile_training(images, labels)
        programs: tuple[Program | None, Any] = self._programs[key]
        return programs

    def _compile_training(self, images: Any, labels: Any) -> tuple[Program | None, Any]:
        began = time.perf_counter()
        self._check_batch(labels.shape[0], 1)
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

    def _check_batch(self, size: int, micro_batches: int) -> None:
        parts = micro_batches * self._first.mesh.shape["data"]
        if size % parts:
            what = f"{micro_batches} micro-batches on " if micro_batches > 1 else ""
            raise ValueError(
                f"a batch of {size} can't be split over {what}{self._first.mesh.shape['data']} devices a stage; "
                f"choose a batch size that {parts} divides"
            )

    # Evaluation

    def predict(self, images: Any) -> jax.Array:
        """Logits (N, classes) of a batch in evaluation mode, without waiting for them: those of the last stage.

        (Associated learning gives scores of the classes instead.)

        Raises:
          ValueError: the last stage can't tell classes, or the devices of a stage can't share the batch.
        """
        images = self._admit_images(images)
        programs = self._evaluation_programs(images)
        if not programs.exits or programs.exits[-1] != len(self.stages) - 1:
            raise ValueError("the network has no classifier, so there are no logits")
        return programs.predict_exits(self.states, to_devices(images, self._first))[-1]

    def predict_exits(self, images: Any) -> dict[int, jax.Array]:
        """Logits (N, classes) of every stage that can tell classes, by its number; otherwise as :meth:`predict`."""
        images = self._admit_images(images)
        programs = self._evaluation_programs(images)
        logits = programs.predict_exits(self.states, to_devices(images, self._first))
        return dict(zip(programs.exits, logits, strict=True))

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
          >>> from scpl_jax import SupCon, decouple
          >>> blocks = [nnx.Linear(8, n, rngs=nnx.Rngs(0)) for n in (8, 3)]
          >>> stages = decouple(blocks, 1, SupCon(head="identity"), jnp.ones((4, 8)), nnx.Rngs(1))
          >>> [x.shape for x in Pipeline(stages, optax.adam(1e-3)).features(jnp.ones((4, 8)))]
          [(4, 8)]
        """
        images = self._admit_images(images)
        key = ("features", signature(images), side)
        if key not in self._programs:
            self._check_batch(jax.tree.leaves(images)[0].shape[0], 1)
            with traced_for(images, None if self._prepare_eval else self.stages[0].example):
                self._programs[key] = FeaturePrograms(self.groups, self.states, images, self._prepare_eval, side)
        found: list[jax.Array] = self._programs[key](self.states, to_devices(images, self._first))
        return found

    def _evaluation_programs(self, images: Any, rules: Sequence[StopRule] = ()) -> EvaluationPrograms:
        key = ("eval", signature(images), tuple(rules))
        if key not in self._programs:
            self._check_batch(jax.tree.leaves(images)[0].shape[0], 1)
            with traced_for(images, None if self._prepare_eval else self.stages[0].example):
                self._programs[key] = EvaluationPrograms(self.groups, self.states, images, self._prepare_eval, rules)
        programs: EvaluationPrograms = self._programs[key]
        return programs

    def evaluate(self, batches: Iterable[tuple[Any, Any]], rules: Sequence[StopRule] = ()) -> dict[str, Any]:
        """Accuracy and loss over batches of (images, labels); examples labelled ``ignore``, or -1, are left out.

        Batches run through the stages one behind the other like in training.

        Args:
          batches: images as the network (or ``prepare_eval``) takes them, and class indices (N,) or (N, 1), integer.
          rules: when an example may stop at an early exit.

        Returns:
          ``accuracy``, a fraction, and ``loss``, mean cross-entropy, of the last stage; ``examples``, their number;
          ``confusion``: how many examples of each class (row) got each answer (column) from the last stage;
          ``exits``: a dict of ``stage``, ``accuracy`` and ``share`` for each stage that can tell classes, where share
          is the part of the network's cost up to there, local losses left out; ``stops``: for each rule the
          ``accuracy``, and the mean ``share`` of the network that was needed. Every process gets them.

        Raises:
          ValueError: no example, a batch or labels that are not as they should be, or a network without classifier.
        """
        self.check_whole()
        self._bound(0)  # so that what fails in a step is not said of the evaluation
        total: Any = None
        programs: EvaluationPrograms | None = None
        pending: collections.deque[Any] = collections.deque()
        for images, labels in batches:
            images = self._admit_images(images)
            programs = self._evaluation_programs(images, rules)
            if not programs.exits or programs.exits[-1] != len(self.stages) - 1:
                raise ValueError("the network has no classifier, so there is no accuracy")
            # Whatever else is ignored, -1 says that an example only fills a batch up.
            examples, classes = jax.tree.leaves(images)[0].shape[0], self.stages[0].classes
            labels = admit_labels(labels, examples, classes, {IGNORE, *self._ignored})
            labels = to_devices(labels, batch_sharding(programs.mesh))
            exits = programs.predict_exits(self.states, to_devices(images, self._first))
            total = programs.count(programs.zero() if total is None else total, exits, labels)
            pending.append(self._signs(total["examples"]))
            if len(pending) > self.max_in_flight:
                jax.block_until_ready(pending.popleft())
        if programs is None:
            raise ValueError("there is no example to evaluate")
        costs = [stage.cost - stage.loss_cost for stage in self.stages]
        return summary(self._read(total, programs.mesh), programs.exits, costs)

    def _admit_images(self, images: Any) -> Any:
        """A batch to be evaluated at the door."""
        self.check_whole()
        return admit_inputs(images, None if self._prepare_eval else self.stages[0].example)

    def _read(self, tree: Any, mesh: Any) -> Any:
        """Values on one sub-mesh as Python numbers and lists, in every process."""
        owner = processes_of(mesh)[0]
        leaves, structure = jax.tree.flatten(tree)
        own = [value.tolist() for value in jax.device_get(leaves)] if is_local(mesh) else None
        return jax.tree.unflatten(structure, processes.gather(own)[owner])

    # State

    def totals(self) -> list[dict[str, float]]:
        """The sums since :meth:`reset_totals`, one dict a stage, in every process; waits for them."""
        self.check_whole()
        self._bound(0)
        own = [
            {name: value.item() for name, value in jax.device_get(state.totals).items()} if is_local(mesh) else None
            for state, mesh in zip(self.states, self.meshes, strict=True)
        ]
        gathered = processes.gather(own)
        return [gathered[processes_of(mesh)[0]][index] for index, mesh in enumerate(self.meshes)]

    def reset_totals(self) -> None:
        """Start the running sums of loss and accuracy afresh, as at the start of an epoch."""
        self.check_whole()
        self._states = tuple(
            dataclasses.replace(state, totals=to_devices(zero_totals(stage), replicated(mesh)))
            for stage, state, mesh in zip(self.stages, self._states, self.meshes, strict=True)
        )


def _call(record: Record, failed: list[Exception], *about: Any) -> None:
    """Call ``record``; what it raises must not end a step half way."""
    try:
        record(*about)
    except Exception as error:
        failed.append(error)


def _prepare_step(prepare: Prepare, key: jax.Array, step: jax.Array, images: Any, labels: jax.Array) -> Any:
    return prepare(jax.random.fold_in(key, step), images, labels)
