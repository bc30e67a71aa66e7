"""Local and global gradients side by side: what each stage follows, and what backpropagation would follow."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scpl_jax.losses import cross_entropy
from scpl_jax.stages import Stage, gradients, layer_norms
from scpl_jax.stages.decouple import StageModule
from scpl_jax.stages.step import layer_name


def local_gradients(stages: Sequence[Stage], params: Sequence[Any], inputs: Any, labels: jax.Array) -> list[Any]:
    """The gradient of each stage's own loss, in training mode.

    Args:
      stages: of :func:`scpl_jax.decouple`, with local objectives.
      params: the parameters of each stage, as in :class:`scpl_jax.StageState`.
      inputs: a batch as the network takes it.
      labels: its labels, (N,), integer.

    Returns:
      A tree like ``params`` for each stage.
    """
    found, message = [], inputs
    for stage, values in zip(stages, params, strict=True):
        gradient, (message, _, _) = gradients(stage, values, stage.rest, message, labels)
        found.append(gradient)
    return found


def global_gradients(stages: Sequence[Stage], params: Sequence[Any], inputs: Any, labels: jax.Array) -> list[Any]:
    """The gradient of the network's classification loss through all stages: what backpropagation follows.

    Arguments and result are as for :func:`local_gradients`, but that the last stage has a classifier and local losses
    are left out: the gradients of their parameters are 0.

    Raises:
      ValueError: the network has no classifier.
    """

    def loss(params: Sequence[Any]) -> jax.Array:
        message = inputs
        for stage, values in zip(stages, params, strict=True):
            module: StageModule = nnx.merge(stage.train_graph, values, stage.rest, copy=True)
            for block in module.blocks:
                message = block(message)
        if module.classifier is None:
            raise ValueError("the network has no classifier, so it has no global loss")
        return cross_entropy(module.classifier(message), labels)

    return list(jax.grad(loss)(list(params)))


def layer_cosines(first: Sequence[Any], second: Sequence[Any]) -> list[dict[str, float]]:
    """Cosine between two gradients, layer by layer, of the blocks.

    Args:
      first: a gradient for each stage.
      second: likewise.

    Returns:
      For each stage: name of the layer -> cosine, from -1 to 1; 0 where one of them vanishes.

    Example:
      >>> from scpl_jax.stages.variables import split
      >>> block = nnx.Dict(blocks=nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(0))]))
      >>> state = split(block)[1]
      >>> {name: round(value, 3) for name, value in layer_cosines([state], [state])[0].items()}
      {'blocks.0': 1.0}
    """
    found = []
    for one, other in zip(first, second, strict=True):
        products: dict[str, float] = {}
        for (path, a), (_, b) in zip(nnx.to_flat_state(one), nnx.to_flat_state(other), strict=True):
            if path[0] == "blocks":
                name = layer_name(path)
                products[name] = products.get(name, 0.0) + float(jnp.vdot(a[...], b[...]))
        norms = [layer_norms(tree) for tree in (one, other)]
        lengths = {name: float(norms[0][name]) * float(norms[1][name]) for name in products}
        found.append({name: products[name] / length if length else 0.0 for name, length in lengths.items()})
    return found


def gradient_norms(gradient: Sequence[Any]) -> list[dict[str, float]]:
    """Euclidean norm of each layer of the blocks: for each stage, name of the layer -> norm."""
    return [
        {name: float(norm) for name, norm in layer_norms(tree).items() if name.startswith("blocks.")}
        for tree in gradient
    ]
