"""Running averages of batch norm in a pipeline: one update a step, none for a step that is left out."""

import jax
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx

import scpl_jax as scpl
from scpl_jax.kernels.norm import BatchNorm

SUPCON = scpl.SupCon(head="mlp-bn", head_dims=(8, 6))
# Without a change of parameters the first block's statistics depend on its images only.
STILL = optax.sgd(0.0)


def batches(count):
    rng = np.random.default_rng(0)
    labels = (np.arange(8) % 4).astype(np.int32)
    return [((rng.normal(size=(8, 16, 16, 3)) * (1 + i)).astype(np.float32), labels) for i in range(count)]


class Theirs(nnx.Module):
    """A block with Flax's own batch norm."""

    def __init__(self, momentum=0.9):
        self.norm = nnx.BatchNorm(3, momentum=momentum, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(x)


def pipeline_of(blocks, objective, devices=1, **options):
    example = jax.ShapeDtypeStruct((8, 16, 16, 3), np.float32)
    stages = scpl.decouple(blocks, 2, objective, example, nnx.Rngs(1), cut="even")
    return scpl.Pipeline(stages, options.pop("optimizer", STILL), jax.devices()[:devices], **options)


def norms(pipeline):
    """The batch norms of all stages, in order."""
    modules = [
        nnx.merge(stage.train_graph, state.params, state.rest, copy=True)
        for stage, state in zip(pipeline.stages, pipeline.states, strict=True)
    ]
    return [node for module in modules for _, node in nnx.iter_graph(module) if isinstance(node, nnx.BatchNorm)]


def first(pipeline):
    module = nnx.merge(pipeline.stages[0].train_graph, pipeline.states[0].params, pipeline.states[0].rest, copy=True)
    return module.blocks[0].norm


def counts(pipeline):
    return [norm.updates[...].item() for norm in norms(pipeline)]


def train(pipeline, data):
    for batch in data:
        pipeline.train_step(*batch)
    return pipeline


WAYS = {
    "scpl": (SUPCON, {}),
    "scpl, two devices": (SUPCON, {"devices": 2}),
    "bp": (scpl.CrossEntropy(), {}),
    "bp, two devices": (scpl.CrossEntropy(), {"devices": 2}),
    "gpipe": (scpl.CrossEntropy(), {"micro_batches": 4}),
    "gpipe, two devices": (scpl.CrossEntropy(), {"micro_batches": 4, "devices": 2}),
    "gpipe, computed again": (scpl.CrossEntropy(), {"micro_batches": 2, "remat": True}),
    "scpl, data-parallel": (SUPCON, {"devices": 4, "data_parallel": 2}),
    "gpipe, data-parallel": (scpl.CrossEntropy(), {"micro_batches": 2, "devices": 4, "data_parallel": 2}),
}


def assert_near(actual, expected):
    assert_close(actual, expected, 1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_every_method_moves_them_once_a_step_by_the_whole_batch(small_vgg, way):
    objective, options = WAYS[way]
    data = batches(3)
    pipeline = train(pipeline_of(small_vgg(), objective, **options), data)
    assert counts(pipeline) == [3] * len(norms(pipeline))
    block = small_vgg()[0]
    for images, _ in data:
        block(images)
    assert_near(first(pipeline).mean[...], block.norm.mean[...])
    assert_near(first(pipeline).var[...], block.norm.var[...])


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_flaxs_own_batch_norms_stay_as_flax_defines_them(small_vgg, micro_batches):
    data = batches(2)
    pipeline = pipeline_of([Theirs(), *small_vgg()], scpl.CrossEntropy(), micro_batches=micro_batches)
    train(pipeline, data)
    alone = Theirs()
    for images, _ in data:
        alone(images)
    norm = first(pipeline)
    assert not isinstance(norm, BatchNorm)
    assert_near(norm.mean[...], alone.norm.mean[...])
    assert_near(norm.var[...], alone.norm.var[...])


@pytest.mark.parametrize("way", ["scpl, two devices", "gpipe"])
def test_a_step_that_is_left_out_moves_and_counts_nothing(small_vgg, way):
    objective, options = WAYS[way]
    good, bad = batches(1), [(np.full((8, 16, 16, 3), np.nan, np.float32), batches(1)[0][1])]
    pipeline, undisturbed = (pipeline_of(small_vgg(), objective, **options) for _ in range(2))
    train(pipeline, bad + good + bad)
    train(undisturbed, good)
    assert counts(pipeline) == [1] * len(norms(pipeline))
    for a, b in zip(norms(pipeline), norms(undisturbed), strict=True):
        np.testing.assert_array_equal(a.mean[...], b.mean[...])
        np.testing.assert_array_equal(a.var[...], b.var[...])


@pytest.mark.parametrize("way", ["scpl", "bp"])
def test_after_one_step_evaluation_sees_what_training_saw(small_vgg, way):
    """With a start of 0 and 1 the logits would be far from those of training."""
    objective, options = WAYS[way]
    ((images, labels),) = batches(1)
    images = images * 0.1 + 5
    pipeline = pipeline_of(small_vgg(), objective, **options)
    metrics = pipeline.train_step(images, labels)
    logits = np.asarray(pipeline.predict(images), np.float64)
    log_likelihood = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss = -log_likelihood[np.arange(8), labels].mean()
    assert loss == pytest.approx(float(metrics[-1]["classifier_loss"]), rel=1e-4)
