"""What the reference numbers of a whole stage are compared with."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from torch_layout import Layer, load

from scpl_jax.stages import Stage


def loaded(stage: Stage, layers: Sequence[Layer], arrays: Mapping[str, np.ndarray]) -> Stage:
    """The stage with torch's values."""
    return dataclasses.replace(stage, params=load(stage.params, layers, arrays), rest=load(stage.rest, layers, arrays))


def merged(stage: Stage) -> Any:
    """The stage's module, to look at its structure."""
    return nnx.merge(stage.train_graph, stage.params, stage.rest, copy=True)


def output_shape(block: nnx.Module, in_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of what a block returns for a float32 array of shape ``in_shape``."""
    example = jax.ShapeDtypeStruct(in_shape, np.float32)
    return jax.eval_shape(lambda x: nnx.clone(block)(x), example).shape


def inner_results(stages: Sequence[Stage], params: Sequence[Any], rest: Sequence[Any], images: Any) -> Any:
    """What the blocks, heads and classifier return in training mode, before the first step; to be jitted."""
    message, results = images, {"blocks": [], "z": [], "logits": None}
    for stage, own_params, own_rest in zip(stages, params, rest, strict=True):
        module = nnx.merge(stage.train_graph, own_params, own_rest, copy=True)
        for block in module.blocks:
            message = block(message)
            results["blocks"].append(message)
        if module.loss is not None:
            results["z"].append(module.loss.head(message))
        if module.classifier is not None:
            results["logits"] = module.classifier(message)
    return results


def recorder() -> optax.GradientTransformation:
    """Hands gradients on unchanged; its state is the last one."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (updates, updates),
    )
