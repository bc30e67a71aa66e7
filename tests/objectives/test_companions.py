"""Rules of one's own that send something along with the messages, and have answers that come back."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.objectives import Accompanied
from scpl_jax.stages import gradients

CLASSES = 3


class Halves(nnx.Module):
    """A linear reader of the features that the mask leaves."""

    def __init__(self, features, rngs):
        self.linear = nnx.Linear(features.shape[-1], CLASSES, rngs=rngs)

    def logits(self, features):
        return self.linear(features)

    def __call__(self, features, labels, mask):
        return scpl.cross_entropy(self.logits(jnp.where(mask["kept"], features, 0)), labels)


@dataclasses.dataclass(frozen=True)
class Masked(scpl.Objective):
    """Stage 0 leaves out the first feature, stage 1 the second, and so on; bias of all heads so far goes along."""

    takes_classifier = False

    def accompany(self, message, labels):
        return {"kept": jnp.ones((len(labels), 6), bool).at[:, 0].set(False), "biases": jnp.zeros((CLASSES,))}

    def local_loss(self, module, features, labels, companion):
        loss = module(features, labels, companion)
        biases = companion["biases"] + module.linear.bias[...]
        return loss, {"kept": jnp.roll(companion["kept"], 1, axis=1), "biases": biases}

    def read_back(self, module, answer):
        return answer + module.linear.bias[...]

    def build(self, features, *, rngs, companion=None):
        assert (companion is None) or companion["kept"].shape == (8, 6)
        return Halves(features, rngs)


def blocks():
    return [nnx.Sequential(nnx.Linear(6, 6, rngs=nnx.Rngs(i)), nnx.relu) for i in range(3)]


BATCH = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32), (np.arange(8) % CLASSES).astype(np.int32)


def new_stages():
    return scpl.decouple(blocks(), 3, Masked(), BATCH[0], nnx.Rngs(1), cut=(1, 2), classifier=False)


def test_each_stage_gets_what_the_one_before_made_of_the_companion():
    stages = new_stages()
    message, given = BATCH[0], []
    for stage in stages:
        _, (message, _, _) = gradients(stage, stage.params, stage.rest, message, BATCH[1])
        given.append(message)
    assert all(isinstance(one, Accompanied) for one in given)
    kept = [np.flatnonzero(~np.asarray(one.companion["kept"][0])).tolist() for one in given]
    assert kept == [[1], [2], [3]]
    assert isinstance(stages[1].example, Accompanied)
    assert stages[1].example.companion["biases"].shape == (CLASSES,)
    # Values of parameters, as they were before the step's update.
    biases = sum(np.asarray(stage.params["loss"]["linear"]["bias"][...]) for stage in stages)
    np.testing.assert_array_equal(given[-1].companion["biases"], biases)


@pytest.mark.parametrize("fuse", [False, True])
def test_pipelined_training_has_the_synchronous_bits_and_a_cut_gradient(fuse):
    devices = jax.devices()[: 1 if fuse else 3]
    found = []
    for max_in_flight in (1, 4):
        pipeline = scpl.Pipeline(new_stages(), optax.adam(1e-2), devices, max_in_flight=max_in_flight, fuse=fuse)
        for _ in range(5):
            metrics = pipeline.train_step(*BATCH)
        found.append((pipeline.states, [one["loss"] for one in metrics]))
    chex.assert_trees_all_equal(*found)
    before, after = new_stages(), pipeline.states
    for stage, state in zip(before, after, strict=True):
        kernel = stage.params["loss"]["linear"]["kernel"][...]
        assert not np.array_equal(kernel, state.params["loss"]["linear"]["kernel"][...])


def test_answers_go_back_through_the_stages():
    stages = new_stages()
    pipeline = scpl.Pipeline(stages, optax.adam(1e-2), jax.devices()[:3])
    x, biases, exits = BATCH[0], [], pipeline.predict_exits(BATCH[0])
    for k, stage in enumerate(stages):
        module = nnx.merge(stage.eval_graph, stage.params, stage.rest, copy=True)
        for block in module.blocks:
            x = block(x)
        biases.append(module.loss.linear.bias[...])
        np.testing.assert_allclose(exits[k], module.loss.logits(x) + sum(biases), rtol=1e-5, atol=1e-6)
    assert 0 <= pipeline.evaluate([BATCH])["accuracy"] <= 1


def test_rules_that_send_something_along_are_not_mixed():
    with pytest.raises(ValueError, match="Masked gives answers that go back through the stages and can't be mixed"):
        scpl.Mixture(((1.0, Masked()), (1.0, scpl.LocalClassifier(CLASSES))))
    mixed = [Masked(), scpl.LocalClassifier(CLASSES), Masked()]
    with pytest.raises(ValueError, match="Masked sends something along from stage to stage, so all stages need it"):
        scpl.decouple(blocks(), 3, mixed, BATCH[0], nnx.Rngs(1), classifier=False)
    with pytest.raises(ValueError, match="Masked has no use for the network's classifier"):
        scpl.decouple([*blocks(), nnx.Linear(6, CLASSES, rngs=nnx.Rngs(3))], 3, Masked(), BATCH[0], nnx.Rngs(1))
