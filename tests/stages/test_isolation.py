"""No gradient crosses a stage boundary: the property the whole method rests on."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx

import scpl_jax as scpl
from scpl_jax.stages import gradients


def make_stages(small_vgg, batch, objectives):
    return scpl.decouple(small_vgg(), 3, objectives, batch[0], nnx.Rngs(1))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_loss_of_a_stage_has_no_gradient_in_any_other_stage(small_vgg, batch, which):
    stages = make_stages(small_vgg, batch, scpl.SupCon(head_dims=(8, 6)))

    def loss(all_params):
        """The loss of one stage as a function of the parameters of all, through the real chain of messages."""
        message, values = batch[0], []
        for stage, params in zip(stages, all_params, strict=True):
            _, (message, _, metrics) = gradients(stage, params, stage.rest, message, batch[1])
            values.append(metrics["loss"])
        return values[which]

    result = jax.jit(jax.grad(loss))([stage.params for stage in stages])
    norms = [float(optax.tree.norm(gradient)) for gradient in result]
    assert [norm == 0 for norm in norms] == [index != which for index in range(3)]


@dataclasses.dataclass(frozen=True)
class NoisySupCon(scpl.SupCon):
    """A local loss drowned in a huge term that depends on the features."""

    def build(self, features, *, rngs):
        inner = super().build(features, rngs=rngs)

        class Noisy(nnx.Module):
            def __init__(self):
                self.inner = inner

            def __call__(self, features, labels):
                noise = jax.random.normal(jax.random.key(0), features.shape)
                return self.inner(features, labels) + 1e6 * jnp.sum(noise * features)

        return Noisy()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_huge_noise_in_one_loss_moves_no_other_stage(small_vgg, batch, which):
    clean = scpl.SupCon(head_dims=(8, 6))
    noisy = NoisySupCon(head_dims=(8, 6))

    def gradients_with(objectives):
        stages = make_stages(small_vgg, batch, objectives)
        message, result = batch[0], []
        for stage in stages:
            step = jax.jit(lambda p, m, y, stage=stage: gradients(stage, p, stage.rest, m, y))
            gradient, (message, _, _) = step(stage.params, message, batch[1])
            result.append(nnx.to_pure_dict(gradient))
        return result

    before = gradients_with(clean)
    after = gradients_with([noisy if index == which else clean for index in range(3)])
    for index in range(3):
        if index != which:
            chex.assert_trees_all_equal(before[index], after[index])
    # the noisy objective has one more level of modules around its head, so only the blocks are compared
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), before[which]["blocks"], after[which]["blocks"])
    assert max(jax.tree.leaves(change)) > 1e3


@pytest.mark.numeric
def test_the_classifier_is_detached_unless_asked_for(small_vgg, batch):
    """Scaling the labels' loss away from the features: the blocks' gradient is that of the local loss alone."""

    def block_gradient(classifier_gradient):
        objective = scpl.SupCon(head_dims=(8, 6), classifier_gradient=classifier_gradient)
        (stage,) = scpl.decouple(small_vgg(), 1, objective, batch[0], nnx.Rngs(1))
        gradient, _ = jax.jit(lambda p, x, y: gradients(stage, p, stage.rest, x, y))(stage.params, *batch)

        def local(params):
            module = nnx.merge(stage.train_graph, params, stage.rest, copy=True)
            x = batch[0]
            for block in module.blocks:
                x = block(x)
            return module.loss(x, batch[1])

        expected = jax.jit(jax.grad(local))(stage.params)
        return gradient["blocks"], expected["blocks"]

    assert_close(*map(nnx.to_pure_dict, block_gradient(False)), 1e-5)
    with_classifier, local = block_gradient(True)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, with_classifier, local))) > 1e-3
