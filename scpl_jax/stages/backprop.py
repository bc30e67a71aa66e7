"""Backpropagation through several stages, piece by piece: forward, backward, update as pure functions.

One global cross-entropy; a stage hands its message on and gets the gradient of the message back. The batch is worked
through in micro-batches, whose gradients are summed up before one update. Nothing here knows of devices; a group is one
or more neighbouring stages that are compiled into one program.

Batch norm normalises by the statistics of each micro-batch. Its running averages are deferred as in torchgpipe (Kim et
al. 2020): they move once a step, by mean and variance of the whole batch. With one micro-batch all of this is ordinary
backpropagation.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from scpl_jax.kernels.norm import move_averages
from scpl_jax.losses import cross_entropy
from scpl_jax.losses.labels import indices_on_device, is_kept, is_outside
from scpl_jax.stages.decouple import Stage, StageModule
from scpl_jax.stages.step import StageState, apply_gradient
from scpl_jax.stages.variables import check_kept, floating_leaves, split

Group = Sequence[Stage]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Carry:
    """What goes from one micro-batch of a group to the next.

    Attributes:
      rest: the other variables of each stage (random state and so on) as the last micro-batch left them.
      moments: for each stage, path of a batch norm -> (mean, sum of squared deviations) over the micro-batches so far.
      count: micro-batches so far, int32.
    """

    rest: tuple[Any, ...]
    moments: tuple[dict[str, tuple[jax.Array, jax.Array]], ...]
    count: jax.Array


def _norms(module: nnx.Module) -> dict[str, nnx.BatchNorm]:
    """The batch norms of a module that move their running averages, by path."""
    return {
        "/".join(map(str, path)): node
        for path, node in nnx.iter_graph(module)
        if isinstance(node, nnx.BatchNorm) and not node.use_running_average
    }


def _module(stage: Stage, params: Any, rest: Any) -> StageModule:
    module: StageModule = nnx.merge(stage.train_graph, params, rest, copy=True)
    return module


def initial_carry(group: Group, rest: Sequence[Any]) -> Carry:
    """The carry before the first micro-batch."""
    moments = []
    for stage in group:
        norms = _norms(_module(stage, stage.params, stage.rest))
        moments.append({p: (jnp.zeros_like(n.mean[...]), jnp.zeros_like(n.var[...])) for p, n in norms.items()})
    return Carry(tuple(rest), tuple(moments), jnp.int32(0))


def _merge_moments(
    moments: dict[str, tuple[jax.Array, jax.Array]], norms: dict[str, nnx.BatchNorm], count: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Add a micro-batch's mean and variance (Chan et al. 1979); exact for the first one."""
    merged = {}
    for path, (mean, squares) in moments.items():
        new_mean, new_variance = norms[path].mean[...], norms[path].var[...]
        delta = new_mean - mean
        merged[path] = (mean + delta / count, squares + new_variance + delta**2 * ((count - 1) / count))
    return merged


def _blocks(
    group: Group, params: Sequence[Any], carry: Carry, message: Any, labels: jax.Array | None
) -> tuple[Any, Carry, dict[str, jax.Array]]:
    """All blocks of a group: (message, or with labels the loss; carry; metrics)."""
    rests, moments = [], []
    metrics: dict[str, jax.Array] = {}
    for stage, values, rest, old in zip(group, params, carry.rest, carry.moments, strict=True):
        module = _module(stage, values, rest)
        norms = _norms(module)
        for norm in norms.values():
            norm.momentum = 0.0  # its "running average" is then the micro-batch's own
        for block in module.blocks:
            message = block(message)
        if module.classifier is not None and labels is not None:
            logits = module.classifier(message)
            message = metrics["loss"] = metrics["classifier_loss"] = cross_entropy(logits, labels)
            kept = is_kept(labels)
            metrics["correct"] = jnp.sum((jnp.argmax(logits, axis=-1) == labels) & kept)
            metrics["examples"] = jnp.sum(kept, dtype=jnp.int32)
            metrics["bad_labels"] = jnp.sum(is_outside(labels, logits.shape[-1]), dtype=jnp.int32)
        moments.append(_merge_moments(old, norms, carry.count + 1))
        rests.append(split(module)[2])
        check_kept(rest, rests[-1], "a block")  # decouple has seen it, but not with a batch of this size
    return message, Carry(tuple(rests), tuple(moments), carry.count + 1), metrics


def _linearise(group: Group, params: Sequence[Any], carry: Carry, message: Any, first: bool) -> Any:
    """(message, function from its gradient to those of parameters and input, carry) of a group before the last."""
    inputs, put_back = floating_leaves(message)

    def outputs(params: Any, inputs: Any) -> Any:
        result, new_carry, _ = _blocks(group, params, carry, put_back(inputs), None)
        return floating_leaves(result)[0], (result, new_carry)

    if first:  # nobody wants the gradient of the network's input
        _, vjp, (result, carry) = jax.vjp(lambda p: outputs(p, inputs), tuple(params), has_aux=True)
    else:
        _, vjp, (result, carry) = jax.vjp(outputs, tuple(params), inputs, has_aux=True)
    return result, vjp, carry


def forward(
    group: Group, first: bool, remat: bool, params: Sequence[Any], carry: Carry, message: Any
) -> tuple[Any, Any, Carry]:
    """One micro-batch forward through a group before the last.

    Args:
      group: its stages (static).
      first: whether it is the first group (static).
      remat: keep only the input and compute the activations again in :func:`backward` (static).
      params: parameters of each stage.
      carry: from the micro-batch before, or :func:`initial_carry`.
      message: what the group before handed on.

    Returns:
      (message for the next group, what :func:`backward` needs, carry).
    """
    if remat:
        result, new_carry, _ = _blocks(group, params, carry, message, None)
        return result, (carry, message), new_carry
    result, vjp, new_carry = _linearise(group, params, carry, message, first)
    return result, vjp, new_carry


def _sum(total: Any, new: Any) -> Any:
    return new if total is None else jax.tree.map(jnp.add, total, new)


def backward(
    group: Group, first: bool, remat: bool, params: Sequence[Any], saved: Any, cotangent: list[Any], total: Any
) -> tuple[list[Any], Any]:
    """One micro-batch backward through a group before the last.

    Args:
      group, first, remat, params: as for :func:`forward`; the first group hands nothing back.
      saved: from :func:`forward`.
      cotangent: gradient of the message that the group handed on: a list, one array for each floating leaf.
      total: sum of the gradients so far, or None.

    Returns:
      (gradient of the message that the group was given, sum of the gradients of its parameters).
    """
    if remat:
        carry, message = saved
        vjp = _linearise(group, params, carry, message, first)[1]
    else:
        vjp = saved
    gradient, *inputs = vjp(cotangent)
    return (inputs[0] if inputs else []), _sum(total, gradient)


def forward_backward(
    group: Group,
    first: bool,
    params: Sequence[Any],
    carry: Carry,
    message: Any,
    labels: jax.Array,
    labelled: jax.Array | None,
    total: Any,
) -> tuple[list[Any], Any, Carry]:
    """One micro-batch through the last group, loss included, forward and backward in one.

    Args:
      group: its stages, the last one with the classifier (static).
      first, params, carry, message: as for :func:`forward`.
      labels: class indices, shape (n,) or (n, 1), integer; -1 for examples that the loss leaves out.
      labelled: number of examples of the whole batch that it does not leave out; None where this is all of it. The
        step's loss is the mean over them.
      total: (sum of the gradients, sum of the metrics) so far, or None.

    Returns:
      (gradient of the message, (sum of the gradients, sum of the metrics), carry).
    """
    inputs, put_back = floating_leaves(message)
    labels = indices_on_device(labels)
    share: Any = 1
    if labelled is not None:
        share = jnp.sum(is_kept(labels)) / jnp.maximum(labelled, 1)

    def loss(params: Any, inputs: Any) -> Any:
        value, new_carry, metrics = _blocks(group, params, carry, put_back(inputs), labels)
        return value * share, (new_carry, metrics)

    arguments = 0 if first else (0, 1)
    (_, (carry, metrics)), gradient = jax.value_and_grad(loss, arguments, has_aux=True)(tuple(params), inputs)
    of_params, of_message = (gradient, []) if first else gradient
    parts = {name: value * share if name.endswith("loss") else value for name, value in metrics.items()}
    return of_message, _sum(total, (of_params, parts)), carry


def update(
    group: Group,
    optimizers: Sequence[optax.GradientTransformation],
    states: Sequence[StageState],
    carry: Carry,
    gradient: Sequence[Any],
    metrics: dict[str, jax.Array],
    with_norms: jax.Array | bool,
    skip_non_finite: bool = True,
    objective: jax.Array | None = None,
) -> tuple[tuple[StageState, ...], list[dict[str, Any]]]:
    """The step's one update of a group.

    Args:
      group: its stages (static).
      optimizers: of each stage (static).
      states: their states at the start of the step.
      carry: after the last micro-batch.
      gradient: of each stage's parameters, summed over the micro-batches.
      metrics: of the last group: loss and so on; else empty.
      with_norms: compute the gradient norm of every layer, else they are 0.
      skip_non_finite: as for :func:`scpl_jax.stages.step.apply_gradient`, for each stage by itself (static).
      objective: the loss, for groups without metrics; None where the optimizer does not ask for it.

    Returns:
      (the new states, metrics of each stage as for :func:`scpl_jax.stages.train_step`).
    """
    new, reported = [], []
    objective = metrics.get("loss", objective)
    for index, (stage, state) in enumerate(zip(group, states, strict=True)):
        module = _module(stage, state.params, carry.rest[index])
        old = _norms(_module(stage, state.params, state.rest))
        for path, norm in _norms(module).items():
            mean, squares = carry.moments[index][path]
            move_averages(norm, mean, squares / carry.count, start=old[path])
        rest = split(module)[2]
        own = metrics if index == len(group) - 1 else {}
        own = own if objective is None else {**own, "objective": objective}
        one, values = apply_gradient(
            optimizers[index], state, gradient[index], rest, own, with_norms, skip_non_finite=skip_non_finite
        )
        new.append(one)
        reported.append(values)
    return tuple(new), reported
