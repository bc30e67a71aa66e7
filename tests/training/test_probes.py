"""Features of the stages, and what simple classifiers make of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx

import scpl_jax as scpl
from scpl_jax.data import Dataset
from scpl_jax.stages.step import pooled_features
from scpl_jax.training import probe_stages


def blobs(count, spread, seed=0):
    """Images of three classes that differ in colour, and the labels."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 3).astype(np.int32)
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
    noise = rng.normal(size=(count, 8, 8, 3)) * spread
    return np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8), labels


@pytest.fixture
def dataset():
    train, test = blobs(150, 20), blobs(31, 20, 1)
    return Dataset("blobs", "test", *train, *test, ("r", "g", "b"), (0.5,) * 3, (0.25,) * 3)


class Forget(nnx.Module):
    """A block after which nothing of the image is left."""

    def __call__(self, x):
        return jnp.zeros_like(x) + 0.0 * x


class Keep(nnx.Module):
    def __call__(self, x):
        return x


def pipeline_of(blocks, example, **options):
    stages = scpl.decouple(blocks, len(blocks) - 1, scpl.SupCon(head="linear", head_dims=(4,)), example, nnx.Rngs(1))
    prepare = lambda images: jnp.asarray(images, jnp.float32) / 255 - 0.5  # noqa: E731
    return scpl.Pipeline(stages, optax.adam(1e-3), prepare_eval=prepare, **options)


def network(blocks):
    flat = jax.ShapeDtypeStruct((7, 8, 8, 3), jnp.float32)

    class Classifier(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(192, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.linear(x.reshape(x.shape[0], -1))

    return [*blocks, Classifier()], flat


@pytest.mark.parametrize("fuse", [False, True])
def test_features_are_those_of_each_stage_in_order(dataset, fuse):
    blocks, example = network([Keep(), Forget()])
    pipeline = pipeline_of(blocks, example, fuse=fuse, devices=jax.devices()[:1])
    images = dataset.test_images[:7]
    first, second = pipeline.features(images, side=2)
    expected = (images / 255 - 0.5).reshape(7, 2, 4, 2, 4, 3).mean(axis=(2, 4)).reshape(7, -1)
    assert_close(first, expected, 1e-5)
    np.testing.assert_array_equal(second, np.zeros((7, 12)))
    assert pipeline.features(images, side=0)[0].shape == (7, 192)


def test_probes_find_what_the_features_hold_and_count_every_test_image(dataset):
    blocks, example = network([Keep(), Forget()])
    kept, forgotten = probe_stages(pipeline_of(blocks, example), dataset, 90, batch_size=7)
    assert kept == {"stage": 0, "neighbours_accuracy": 1.0, "linear_accuracy": 1.0}
    share = [np.mean(dataset.test_labels == c) for c in range(3)]
    assert any(forgotten["linear_accuracy"] == pytest.approx(s) for s in share)


def test_probes_use_only_the_training_images_that_were_asked_for(dataset):
    blocks, example = network([Keep()])
    wrong = np.where(np.arange(150) < 75, dataset.train_labels, (dataset.train_labels + 1) % 3)
    mixed = dataclasses.replace(dataset, train_labels=wrong.astype(np.int32))
    pipeline = pipeline_of(blocks, example)
    assert probe_stages(pipeline, mixed, 75, 7)[0]["neighbours_accuracy"] == 1.0
    assert probe_stages(pipeline, mixed, 1000, 7)[0]["neighbours_accuracy"] < 1.0


def test_probes_of_one_class_are_its_share(dataset):
    one = dataclasses.replace(dataset, train_labels=np.zeros(150, np.int32))
    blocks, example = network([Keep()])
    found = probe_stages(pipeline_of(blocks, example), one, 60, 8)[0]
    assert found["linear_accuracy"] == pytest.approx(np.mean(dataset.test_labels == 0))


def test_with_data_parallelism_the_probes_are_the_same(dataset):
    blocks, example = network([Keep(), Forget()])
    example = jax.ShapeDtypeStruct((8, 8, 8, 3), jnp.float32)
    found = probe_stages(pipeline_of(blocks, example, data_parallel=2), dataset, 90, batch_size=8)
    assert found[0]["linear_accuracy"] == 1.0
    assert len(found) == 2


def test_masks_are_no_features():
    message = {"x": jnp.ones((2, 5, 3)), "mask": jnp.ones((2, 5), bool), "length": jnp.array([5, 5])}
    assert pooled_features(message, 2).shape == (2, 15)


class Times(nnx.Module):
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_probes_of_tiny_and_huge_features_are_those_of_usual_ones(dataset, factor):
    blocks, example = network([Times(factor)])
    (found,) = probe_stages(pipeline_of(blocks, example), dataset, 90, batch_size=7)
    assert found == {"stage": 0, "neighbours_accuracy": 1.0, "linear_accuracy": 1.0}


def test_probes_of_features_that_are_not_finite_are_the_most_frequent_class(dataset):
    blocks, example = network([Keep(), Times(float("nan"))])
    kept, lost = probe_stages(pipeline_of(blocks, example), dataset, 88, batch_size=7)  # one of class 0 more
    share = float(np.mean(dataset.test_labels == 0))
    assert kept["linear_accuracy"] == 1.0
    assert lost == {"stage": 1, "neighbours_accuracy": share, "linear_accuracy": share}
