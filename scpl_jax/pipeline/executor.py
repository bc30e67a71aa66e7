"""Run stages asynchronously: each stage's step is dispatched to its device as soon as its message is.

    batch t + 2 -> stage 0 | batch t + 1 -> stage 1 | batch t -> stage 2 | batch t - 1 -> stage 3 + classifier

The host never waits for a result in the loop. It only waits when ``max_in_flight`` batches are under way, so that the
memory of messages in flight stays bounded. Every stage sees exactly the messages and weights of a sequential run.
"""

import collections
import concurrent.futures
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scpl_jax.pipeline.placement import place
from scpl_jax.pipeline.transfer import to_device
from scpl_jax.stages.decouple import Stage
from scpl_jax.stages.step import StageState, evaluate, initial_state, train_step, zero_totals

Prepare = Callable[[jax.Array, Any, jax.Array], tuple[Any, jax.Array]]


def _abstract(tree: Any, device: jax.Device) -> Any:
    """Shapes, dtypes and placement of arrays: what a compilation needs to know."""
    sharding = jax.sharding.SingleDeviceSharding(device)

    def describe(x: Any) -> jax.ShapeDtypeStruct:
        dtype = getattr(x, "dtype", None) or np.result_type(x)
        return jax.ShapeDtypeStruct(np.shape(x), dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def _signature(tree: Any) -> Any:
    return tuple((x.shape, x.dtype) for x in jax.tree.leaves(tree))


class Pipeline:
    """Stages, their states and their optimizers on devices.

    Args:
      stages: from :func:`scpl_jax.decouple`.
      optimizer: an Optax optimizer; each stage has a state of its own.
      devices: devices to use; default: all. Stages are laid out over them by their estimated cost.
      prepare: a pure function (key, images, labels) -> (message, labels), such as an augmentation, compiled and run
        on the first stage's device before the first stage. Without it the first stage gets the images as they are.
      prepare_eval: the same for evaluation: images -> message.
      key: ``jax.random.key`` that ``prepare`` gets, folded with the number of the step.
      max_in_flight: batches that may be under way before :meth:`train_step` waits for the oldest, at least 1. 1 is
        synchronous. The results do not depend on it.

    Attributes:
      stages: the stages.
      states: the state of each stage; may be replaced as a whole, for example by that of a checkpoint.
      step: number of training steps so far.
      devices: the device of each stage.
      compile_seconds: time spent on compilation so far, in seconds.

    Raises:
      ValueError: ``max_in_flight`` below 1, no stage, or no device.

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
      (['gradient_norms', 'loss'], 1)
      >>> pipeline.predict(x).shape
      (4, 3)
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        optimizer: optax.GradientTransformation,
        devices: Sequence[jax.Device] | None = None,
        *,
        prepare: Prepare | None = None,
        prepare_eval: Callable[[Any], Any] | None = None,
        key: jax.Array | None = None,
        max_in_flight: int = 8,
    ):
        if not stages:
            raise ValueError("a pipeline needs at least one stage, got none")
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight must be at least 1, got {max_in_flight}")
        self.stages = tuple(stages)
        self.optimizer = optimizer
        self.devices = place([s.cost for s in stages], jax.devices() if devices is None else devices)
        self.max_in_flight = max_in_flight
        self.step = 0
        self.compile_seconds = 0.0
        self.states: tuple[StageState, ...] = tuple(
            to_device(initial_state(stage, optimizer), device)
            for stage, device in zip(self.stages, self.devices, strict=True)
        )
        self._in_flight: collections.deque[Any] = collections.deque()
        self._key = None if key is None else to_device(key, self.devices[0])
        self._prepare, self._prepare_eval = prepare, prepare_eval
        self._programs: dict[Any, list[Any]] = {}
        self._flags = {
            device: tuple(to_device(jnp.array(flag), device) for flag in (False, True)) for device in self.devices
        }

    # Training

    def train_step(self, images: Any, labels: Any, *, with_norms: bool = False) -> list[dict[str, Any]]:
        """Dispatch one training step of every stage and return without waiting for it.

        Args:
          images: a batch for the network (or for ``prepare``): any pytree of arrays, host or device, batch first.
          labels: class indices, shape (N,), integer.
          with_norms: also compute the gradient norm of every layer.

        Returns:
          One dict a stage of scalars that are still being computed: ``loss``, with a classifier ``classifier_loss`` and
          ``correct``; ``gradient_norms``, a dict by layer, 0 unless asked for. Reading a value waits for it.
        """
        self._bound(self.max_in_flight - 1)
        images, labels = jax.tree.map(_as_array, (images, labels))
        prepare, steps = self._training_programs(images, labels)
        message, labels = to_device((images, labels), self.devices[0])
        if prepare is not None:
            message, labels = prepare(self._key, np.int32(self.step), message, labels)
        states, metrics = [], []
        for state, device, run in zip(self.states, self.devices, steps, strict=True):
            message, labels = to_device((message, labels), device)
            state, message, values = run(state, message, labels, self._flags[device][with_norms])
            states.append(state)
            metrics.append(values)
        self.states = tuple(states)
        self._in_flight.append([values["loss"] for values in metrics])
        self.step += 1
        return metrics

    def _bound(self, limit: int) -> None:
        while len(self._in_flight) > limit:
            jax.block_until_ready(self._in_flight.popleft())

    def wait(self) -> None:
        """Wait until every step that was dispatched is done."""
        self._bound(0)
        jax.block_until_ready(self.states)

    def compile(self, images: Any, labels: Any) -> float:
        """Compile the training step for batches of this shape now instead of at the first step.

        Args:
          images: as of :meth:`train_step`; only shapes and dtypes are used.
          labels: likewise.

        Returns:
          The seconds it took; 0 if it was compiled already.
        """
        before = self.compile_seconds
        self._training_programs(*jax.tree.map(_as_array, (images, labels)))
        return self.compile_seconds - before

    def _training_programs(self, images: Any, labels: Any) -> list[Any]:
        """(preparation or None, one step a stage), compiled once for batches of this shape."""
        key = ("train", _signature((images, labels)))
        if key not in self._programs:
            self._programs[key] = self._compile_training(images, labels)
        return self._programs[key]

    def _compile_training(self, images: Any, labels: Any) -> list[Any]:
        """Trace the chain of stages once for its shapes, then compile all of them at the same time."""
        began = time.perf_counter()
        message, labels = _abstract((images, labels), self.devices[0])
        jobs = []
        if self._prepare is not None:
            function = jax.jit(functools.partial(_prepare_step, self._prepare))
            traced = function.trace(_abstract(self._key, self.devices[0]), jnp.int32(0), message, labels)
            jobs.append(traced.lower())
            message, labels = traced.out_info
        for stage, state, device in zip(self.stages, self.states, self.devices, strict=True):
            function = jax.jit(functools.partial(train_step, stage, self.optimizer), donate_argnums=0)
            message, labels = _abstract((message, labels), device)
            flag = jax.ShapeDtypeStruct((), bool, sharding=jax.sharding.SingleDeviceSharding(device))
            traced = function.trace(_abstract(state, device), message, labels, flag)
            jobs.append(traced.lower())
            message = traced.out_info[1]
        programs = _compile_all(jobs)
        self.compile_seconds += time.perf_counter() - began
        return [None if self._prepare is None else programs[0], programs[-len(self.stages) :]]

    # Evaluation

    def predict(self, images: Any) -> jax.Array:
        """Logits (N, classes) of a batch in evaluation mode, without waiting for them.

        Raises:
          ValueError: the network has no classifier.
        """
        logits = self._forward(jax.tree.map(_as_array, images))
        if logits is None:
            raise ValueError("the network has no classifier, so there are no logits; use features()")
        return logits

    def _forward(self, images: Any) -> Any:
        key = ("eval", _signature(images))
        if key not in self._programs:
            self._programs[key] = self._compile_evaluation()
        prepare, *steps = self._programs[key]
        message = to_device(images, self.devices[0])
        if self._prepare_eval is not None:
            message = prepare(message)
        logits = None
        for state, device, run in zip(self.states, self.devices, steps, strict=True):
            message, logits = run(state.params, state.rest, to_device(message, device))
        return logits

    def _compile_evaluation(self) -> list[Any]:
        steps = [jax.jit(functools.partial(evaluate, stage)) for stage in self.stages]
        return [jax.jit(self._prepare_eval) if self._prepare_eval is not None else None, *steps]

    def evaluate(self, batches: Iterable[tuple[Any, Any]]) -> dict[str, float]:
        """Accuracy and loss of the classifier over batches of (images, labels); a label of -1 is left out.

        Batches run through the stages one behind the other like in training.

        Returns:
          ``accuracy``, a fraction; ``loss``, mean cross-entropy; ``examples``, their number.

        Raises:
          ValueError: no example, or a network without classifier.
        """
        device = self.devices[-1]
        count = jax.jit(_count)
        total = to_device((jnp.int32(0), jnp.float32(0), jnp.int32(0)), device)
        pending: collections.deque[Any] = collections.deque()
        for images, labels in batches:
            logits = self.predict(images)
            total = count(total, logits, to_device(_as_array(labels), device))
            pending.append(total[0])
            if len(pending) > self.max_in_flight:
                jax.block_until_ready(pending.popleft())
        correct, loss, examples = (value.item() for value in total)
        if not examples:
            raise ValueError("there is no example to evaluate")
        return {"accuracy": correct / examples, "loss": loss / examples, "examples": examples}

    # State

    def totals(self) -> list[dict[str, float]]:
        """The sums since :meth:`reset_totals`, one dict a stage; waits for them."""
        fetched = jax.device_get([state.totals for state in self.states])
        return [{name: value.item() for name, value in totals.items()} for totals in fetched]

    def reset_totals(self) -> None:
        """Start the running sums of loss and accuracy afresh, as at the start of an epoch."""
        for stage, state, device in zip(self.stages, self.states, self.devices, strict=True):
            state.totals = to_device(zero_totals(stage), device)


def _as_array(x: Any) -> Any:
    return x if isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct) else np.asarray(x)


def _prepare_step(prepare: Prepare, key: jax.Array, step: jax.Array, images: Any, labels: jax.Array) -> Any:
    return prepare(jax.random.fold_in(key, step), images, labels)


def _count(total: Any, logits: jax.Array, labels: jax.Array) -> Any:
    correct, loss, examples = total
    real = labels >= 0
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), jnp.maximum(labels, 0))
    return (
        correct + jnp.sum(real & (jnp.argmax(logits, axis=-1) == labels), dtype=jnp.int32),
        loss + jnp.sum(jnp.where(real, losses, 0)),
        examples + jnp.sum(real, dtype=jnp.int32),
    )


def _compile_all(jobs: list[Any]) -> list[Any]:
    """XLA compiles outside Python's lock, so the stages' programs can be compiled at the same time."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(jobs)) as pool:
        return list(pool.map(lambda job: job.compile(), jobs))
