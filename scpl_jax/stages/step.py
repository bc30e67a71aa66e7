"""One stage's step as pure functions: forward, local loss, gradient, update. Nothing here knows of devices."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from scpl_jax.losses import cross_entropy
from scpl_jax.losses.labels import indices_on_device, is_kept, is_outside, not_a_number_if
from scpl_jax.objectives.base import Accompanied, summary_of
from scpl_jax.objectives.heads import average_pool
from scpl_jax.stages.decouple import Stage, StageModule
from scpl_jax.stages.optimizer import apply_optimizer, initial_optimizer_state
from scpl_jax.stages.variables import check_kept, split


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class StageState:
    """Everything of a stage that training changes.

    Attributes:
      params: parameters (``nnx.State`` of ``nnx.Param``).
      rest: batch statistics, random state and all other variables.
      opt_state: state of the stage's Optax optimizer.
      totals: sums since :func:`zero_totals`, scalars: ``loss`` (where the stage has one) and, in the last stage,
        ``classifier_loss`` (sums of batch means), ``correct`` and ``examples`` (counts of labelled examples),
        ``batches``, and ``skipped``, the updates left out by :func:`apply_gradient`, whose batches are in none of the
        others.
    """

    params: Any
    rest: Any
    opt_state: Any
    totals: dict[str, jax.Array]


def zero_totals(stage: Stage) -> dict[str, jax.Array]:
    """The running sums at the start of an epoch."""
    module: StageModule = nnx.merge(stage.train_graph, stage.params, stage.rest, copy=True)
    has_classifier = module.classifier is not None
    totals = {"batches": jnp.int32(0), "skipped": jnp.int32(0)}
    if not stage.end_to_end or has_classifier:
        totals["loss"] = jnp.float32(0)
    if has_classifier:
        totals |= {"classifier_loss": jnp.float32(0), "correct": jnp.int32(0), "examples": jnp.int32(0)}
    return totals


def initial_state(stage: Stage, optimizer: optax.GradientTransformation) -> StageState:
    """The state before the first step.

    The arrays are copies: steps donate their state, and the stage must stay usable.

    Raises:
      ValueError: the optimizer needs more than gradients, parameters and the loss's value.
    """
    params, rest = jax.tree.map(jnp.copy, (stage.params, stage.rest))
    return StageState(params, rest, initial_optimizer_state(optimizer, params), zero_totals(stage))


def _forward(module: StageModule, message: Any) -> Any:
    for block in module.blocks:
        message = block(message)
    return message


def stage_loss(stage: Stage, params: Any, rest: Any, message: Any, labels: jax.Array) -> tuple[jax.Array, Any]:
    """What the stage minimises, in training mode.

    Args:
      stage: the stage.
      params: its parameters.
      rest: its other variables.
      message: what the stage before handed on.
      labels: class indices, shape (N,) or (N, 1), integer; -1 for examples that losses and accuracy leave out.

    Returns:
      (scalar; (message for the next stage, other variables after the step, metrics as for :func:`gradients`)).
    """
    module: StageModule = nnx.merge(stage.train_graph, params, rest, copy=True)
    labels = indices_on_device(labels)
    outside, kept = is_outside(labels, stage.classes), is_kept(labels)
    total = jnp.float32(0)
    metrics: dict[str, jax.Array] = {"bad_labels": jnp.sum(outside, dtype=jnp.int32)}
    first = not isinstance(message, Accompanied)
    message, companion = (message, stage.objective.accompany(labels)) if first else message
    features = _forward(module, message)
    if module.loss is not None:
        own, companion = stage.objective.local_loss(module.loss, summary_of(features), labels, companion)
        # A label that is none of the classes must not train: the update is left out like any other by bad numbers.
        metrics["loss"] = total = not_a_number_if(outside, own)
    if module.classifier is not None:
        through = stage.objective.classifier_gradient
        logits = module.classifier(features if through else jax.lax.stop_gradient(features))
        metrics["classifier_loss"] = cross_entropy(logits, labels)
        metrics["correct"] = jnp.sum((jnp.argmax(logits, axis=-1) == labels) & kept)
        metrics["examples"] = jnp.sum(kept, dtype=jnp.int32)
        total = total + metrics["classifier_loss"]
        metrics.setdefault("loss", metrics["classifier_loss"])
    _, _, rest = split(module)
    return total, (features if companion is None else Accompanied(features, companion), rest, metrics)


def gradients(
    stage: Stage, params: Any, rest: Any, message: Any, labels: jax.Array
) -> tuple[Any, tuple[Any, Any, dict[str, jax.Array]]]:
    """Gradient of the stage's loss with respect to its own parameters.

    Args:
      stage, params, rest, labels: as for :func:`stage_loss`.
      message: what the stage before handed on (for stage 0 the network's input). It is detached here: whatever computed
        it gets no gradient.

    Returns:
      (gradient, a tree like ``params``; (message for the next stage, other variables after the step, metrics)). Metrics
      are scalars: ``loss``; with a classifier ``classifier_loss``, ``correct`` and ``examples`` (counts of labelled
      examples); ``bad_labels``, the number of labels that are none of the classes (where there is one, the loss is
      NaN); and ``objective``, the sum that the gradient is of.

    Raises:
      ValueError: shapes of other variables depend on the size of the batch.
    """
    message = jax.lax.stop_gradient(message)
    (total, (features, new_rest, metrics)), gradient = jax.value_and_grad(stage_loss, argnums=1, has_aux=True)(
        stage, params, rest, message, labels
    )
    check_kept(rest, new_rest, "a block")  # decouple has seen it, but not with a batch of this size
    return gradient, (features, new_rest, {**metrics, "objective": total})


def layer_name(path: Sequence[Any]) -> str:
    """The name of the module that holds the parameter with this path."""
    return ".".join(map(str, path[:-1]))


def layer_norms(tree: Any) -> dict[str, jax.Array]:
    """Euclidean norm of each layer of a tree of parameters or gradients: name of the layer -> scalar, float32.

    A layer is a module; the norm runs over all its parameters.
    """
    squares: dict[str, jax.Array] = {}
    for path, variable in nnx.to_flat_state(tree):
        name = layer_name(path)
        for leaf in jax.tree.leaves(variable):
            size = jnp.abs(leaf) if jnp.iscomplexobj(leaf) else leaf
            squares[name] = squares.get(name, jnp.float32(0)) + jnp.sum(jnp.square(size.astype(jnp.float32)))
    return {name: jnp.sqrt(value) for name, value in squares.items()}


def train_step(
    stage: Stage,
    optimizer: optax.GradientTransformation,
    state: StageState,
    message: Any,
    labels: jax.Array,
    with_norms: jax.Array | bool = False,
    skip_non_finite: bool = True,
) -> tuple[StageState, Any, dict[str, Any]]:
    """One step of one stage: forward, local loss, gradient, update.

    Args:
      stage: the stage (static).
      optimizer: the stage's Optax optimizer (static).
      state: the stage's state.
      message: what the stage before handed on.
      labels: class indices, as for :func:`stage_loss`.
      with_norms: compute the gradient norm of every layer; may be traced, so that a program that is asked for them now
        and then is compiled only once. Otherwise they are 0.
      skip_non_finite: as for :func:`apply_gradient` (static).

    Returns:
      (new state, message for the next stage as computed before the update, metrics as for :func:`gradients`, with those
      of :func:`apply_gradient` added).
    """
    gradient, (features, rest, metrics) = gradients(stage, state.params, state.rest, message, labels)
    outcome = (gradient, rest, metrics, with_norms)
    state, metrics = apply_gradient(optimizer, state, *outcome, skip_non_finite=skip_non_finite)
    return state, features, metrics


def apply_gradient(
    optimizer: optax.GradientTransformation,
    state: StageState,
    gradient: Any,
    rest: Any,
    metrics: dict[str, jax.Array],
    with_norms: jax.Array | bool,
    *,
    skip_non_finite: bool = True,
) -> tuple[StageState, dict[str, Any]]:
    """Update a stage by its gradient and add the metrics to the running sums.

    Bad numbers: where the loss or the Euclidean norm of the whole gradient is NaN or infinite, the stage stays as it
    was before the step, batch statistics, random state and optimizer included, and the update is counted as skipped.
    The norm is also infinite where only squares overflow (entries of about 1e19 in float32), which would leave Adam's
    second moment infinite for ever.

    Args:
      optimizer: the stage's Optax optimizer (static).
      state: the stage's state at the start of the step.
      gradient: a tree like its parameters.
      rest: the other variables after the step.
      metrics: scalars of the step; ``objective``, for optimizers that want it, is what the gradient is of.
      with_norms: as for :func:`train_step`.
      skip_non_finite: leave out updates by bad numbers (static). Unlike ``optax.apply_if_finite`` this keeps batch
        statistics clean too, looks at the loss, and never gives up.

    Returns:
      (new state, metrics without ``objective``, but with ``gradient_norms`` and, where bad numbers are looked for,
      ``skipped``: bool).
    """
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(layer_norms, gradient))
    norms = jax.lax.cond(with_norms, layer_norms, lambda _: zeros, gradient)

    def update(state: StageState, gradient: Any, rest: Any, metrics: dict[str, jax.Array]) -> StageState:
        value = metrics.get("objective", jnp.float32(jnp.nan))
        params, opt_state = apply_optimizer(optimizer, state.params, state.opt_state, gradient, value)
        totals = {name: total + metrics[name] for name, total in state.totals.items() if name in metrics}
        totals["batches"] = state.totals["batches"] + 1
        return StageState(params, rest, opt_state, {"skipped": state.totals["skipped"], **totals})

    outcome = (gradient, rest, metrics)
    metrics = {name: value for name, value in metrics.items() if name != "objective"}
    if not skip_non_finite:
        return update(state, *outcome), {**metrics, "gradient_norms": norms}
    losses = [value for name, value in metrics.items() if name in ("loss", "classifier_loss")]
    finite = jnp.isfinite(sum(losses, optax.tree.norm(gradient, squared=True)))
    new = _if_finite(finite, update, state, *outcome)
    new.totals["skipped"] += jnp.int32(~finite)
    return new, {**metrics, "gradient_norms": norms, "skipped": ~finite}


def _if_finite(finite: jax.Array, update: Callable[..., StageState], state: StageState, *outcome: Any) -> StageState:
    """``update(state, *outcome)`` where ``finite``, else the state.

    On a CPU by a branch: a choice between arrays would need the moments before the update beside those after it, which
    XLA then copies. On a GPU the host would wait for the branch's condition, so there it is a choice.
    """

    def branch(finite: jax.Array, state: StageState, *outcome: Any) -> StageState:
        new: StageState = jax.lax.cond(finite, update, lambda state, *_: state, state, *outcome)
        return new

    def choice(finite: jax.Array, state: StageState, *outcome: Any) -> StageState:
        new: StageState = jax.tree.map(functools.partial(jnp.where, finite), update(state, *outcome), state)
        return new

    new: StageState = jax.lax.platform_dependent(finite, state, *outcome, cpu=branch, default=choice)
    return new


def evaluate(stage: Stage, params: Any, rest: Any, message: Any) -> tuple[Any, jax.Array | None]:
    """Forward pass in evaluation mode.

    Args:
      stage, params, rest: as for :func:`stage_loss`.
      message: features that the stage before handed on; never with a companion, which training only knows.

    Returns:
      (features for the next stage, logits (N, classes) of the stage's classifier, or else what its objective's
      :meth:`~scpl_jax.Objective.answer` makes of its local loss: logits as a rule, None if it can't tell classes).
    """
    module: StageModule = nnx.merge(stage.eval_graph, params, rest, copy=True)
    features = _forward(module, message)
    if module.classifier is not None:
        return features, module.classifier(features)
    if module.loss is None:
        return features, None
    return features, stage.objective.answer(module.loss, summary_of(features))


def pooled_features(features: Any, side: int) -> jax.Array:
    """What a stage hands on as one vector an example: any pytree of arrays (N, ...) to (N, D), float32.

    Args:
      features: arrays, batch first; those that are not floating (masks, lengths) are left out.
      side: feature maps (N, H, W, C) are averaged down to side x side first; 0: not at all.

    Example:
      >>> pooled_features({"x": jnp.ones((2, 8, 8, 3)), "mask": jnp.ones((2, 8), bool)}, 2).shape
      (2, 12)
    """
    parts = [x for x in jax.tree.leaves(summary_of(features)) if jnp.issubdtype(x.dtype, jnp.floating)]
    parts = [average_pool(x, side) if side and x.ndim == 4 else x for x in parts]
    return jnp.concatenate([x.reshape(x.shape[0], -1).astype(jnp.float32) for x in parts], axis=1)


def read_back(stage: Stage, params: Any, rest: Any, answer: Any) -> Any:
    """An answer of this stage, or of the next as that has read it back, as the stage before sees it.

    Args:
      stage, params, rest: as for :func:`stage_loss`; the objective is one whose answers come back, see
        :meth:`scpl_jax.Objective.read_back`.
      answer: of :func:`evaluate` with this stage, or of this function with the next one.
    """
    module: StageModule = nnx.merge(stage.eval_graph, params, rest, copy=True)
    return stage.objective.read_back(module.loss, answer)
