"""Backpropagation over several stages and devices: naive model parallelism and GPipe."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx

import scpl_jax as scpl
from scpl_jax.losses import cross_entropy
from scpl_jax.stages.variables import split

# SGD at rate 1: the change of the parameters is the gradient.
GRADIENT = optax.sgd(1.0)


def make(blocks, batch, num_stages=3):
    return scpl.decouple(blocks, num_stages, scpl.CrossEntropy(), batch[0], nnx.Rngs(1), cut="even")


@pytest.fixture(scope="module")
def stages(small_vgg, batch):
    return make(small_vgg(), batch)


def inference(stages):
    """Stages whose batch norm stays in inference mode while they are trained."""
    return [dataclasses.replace(stage, train_graph=stage.eval_graph) for stage in stages]


def params(pipeline):
    return jax.device_get([jax.tree.leaves(state.params) for state in pipeline.states])


def statistics(pipeline):
    leaves = [jax.tree_util.tree_leaves_with_path(state.rest) for state in pipeline.states]
    return [np.asarray(leaf) for some in leaves for path, leaf in some if "mean" in str(path) or "var" in str(path)]


def after_one_step(stages, batch, devices=4, optimizer=GRADIENT, **options):
    pipeline = scpl.Pipeline(stages, optimizer, jax.devices()[:devices], **options)
    metrics = jax.device_get(pipeline.train_step(*batch))
    return pipeline, metrics


def by_hand(blocks, batch):
    """The gradient of the whole network and its loss, without any stage; batch norm as of ``blocks``."""
    module = nnx.List(blocks)
    graph, values, rest = split(module)

    def loss(values):
        message = batch[0]
        module = nnx.merge(graph, values, rest, copy=True)
        for block in module:
            message = block(message)
        return cross_entropy(message, batch[1]), split(module)[2]

    (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(values)
    new = jax.tree.map(lambda a, b: a - b, values, gradient)
    return float(value), jax.tree.leaves(new), rest


def flat(nested):
    return sorted((leaf for some in nested for leaf in some), key=lambda x: (x.size, float(x.sum())))


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.numeric), 2, 4])
def test_equals_differentiating_the_whole_network(small_vgg, batch, devices):
    pipeline, metrics = after_one_step(make(small_vgg(), batch), batch, devices)
    loss, new, _ = by_hand(small_vgg(), batch)
    assert_close(metrics[-1]["loss"], loss, 1e-5)
    assert_close(flat(params(pipeline)), flat([jax.device_get(new)]), 1e-5)


@pytest.mark.parametrize(("micro_batches", "remat"), [(1, True), (2, False), (4, True), (8, False)])
def test_any_number_of_micro_batches_gives_the_same_gradient(stages, batch, micro_batches, remat):
    reference, expected = after_one_step(inference(stages), batch, 1)
    pipeline, metrics = after_one_step(inference(stages), batch, 3, micro_batches=micro_batches, remat=remat)
    assert_close(params(pipeline), params(reference), 1e-5)
    assert_close(metrics[-1]["loss"], expected[-1]["loss"], 1e-5)
    assert int(metrics[-1]["correct"]) == int(expected[-1]["correct"])
    assert statistics(pipeline)[0].tolist() == statistics(reference)[0].tolist()


@pytest.mark.parametrize("devices", [1, pytest.param(3, marks=pytest.mark.numeric)])
def test_batch_norm_normalises_each_micro_batch_by_itself(small_vgg, batch, devices):
    pipeline, metrics = after_one_step(make(small_vgg(), batch), batch, devices, micro_batches=2)
    halves = [by_hand(small_vgg(), (batch[0][part], batch[1][part])) for part in (slice(0, 4), slice(4, 8))]
    assert_close(metrics[-1]["loss"], (halves[0][0] + halves[1][0]) / 2, 1e-5)
    mean = [(a + b) / 2 for a, b in zip(halves[0][1], halves[1][1], strict=True)]
    assert_close(flat(params(pipeline)), flat([jax.device_get(mean)]), 1e-5)


@pytest.mark.parametrize("micro_batches", [2, pytest.param(4, marks=pytest.mark.numeric)])
def test_running_averages_move_once_by_the_whole_batch(stages, batch, micro_batches):
    """The first block's input does not depend on the micro-batches, so its averages must be those of one batch."""
    one, _ = after_one_step(stages, batch, 1)
    several, _ = after_one_step(stages, batch, 3, micro_batches=micro_batches)
    assert_close(statistics(several)[:2], statistics(one)[:2], 1e-5)
    later = [np.abs(a - b).max() for a, b in zip(statistics(one)[2:], statistics(several)[2:], strict=True)]
    assert max(later) > 1e-4


@pytest.mark.numeric
def test_remat_and_data_parallel_change_nothing(stages, batch):
    plain, _ = after_one_step(stages, batch, 3, micro_batches=2)
    remat, _ = after_one_step(stages, batch, 3, micro_batches=2, remat=True)
    parallel, _ = after_one_step(stages, batch, 4, micro_batches=2, data_parallel=2)
    for other in (remat, parallel):
        assert_close((params(other), statistics(other)), (params(plain), statistics(plain)), 1e-5)


class Noisy(nnx.Module):
    """Linear layer and dropout; hands on a mask that has no gradient beside the features."""

    def __init__(self, size, out, seed):
        self.linear = nnx.Linear(size, out, rngs=nnx.Rngs(seed))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=seed))

    def __call__(self, message):
        features, mask = message
        return self.dropout(jnp.tanh(self.linear(features))) * mask[:, None], mask


class Last(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(6, 4, rngs=nnx.Rngs(9))

    def __call__(self, message):
        return self.linear(message[0])


@pytest.mark.numeric
def test_remat_repeats_the_same_dropout_and_masks_need_no_gradient():
    rng = np.random.default_rng(0)
    message = (rng.normal(size=(8, 6)).astype(np.float32), np.array([1, 1, 0, 1, 1, 1, 0, 1], np.int32))
    batch = (message, np.arange(8, dtype=np.int32) % 4)
    results = []
    for remat in (False, True):
        stages = make([Noisy(6, 6, seed) for seed in range(3)] + [Last()], batch)
        pipeline, _ = after_one_step(stages, batch, 3, remat=remat, micro_batches=2)
        first = params(pipeline)
        pipeline.train_step(*batch)
        results.append((first, params(pipeline)))
        assert any(np.abs(a - b).max() > 0 for a, b in zip(flat(first), flat(params(pipeline)), strict=True))
    assert_close(results[1], results[0], 1e-5)


def test_trains_evaluates_and_counts(stages, batch):
    pipeline = scpl.Pipeline(stages, optax.adam(1e-2), micro_batches=2)
    losses = []
    for _ in range(30):
        metrics = pipeline.train_step(*batch, with_norms=True)
        losses.append(float(metrics[-1]["loss"]))
    assert "loss" not in metrics[0]
    assert losses[-1] < losses[0] / 2
    assert all(float(v) > 0 for one in metrics for v in one["gradient_norms"].values())
    totals = pipeline.totals()
    assert totals[0] == {"batches": 30, "skipped": 0}
    assert totals[-1]["examples"] == 240
    assert pipeline.evaluate([batch])["examples"] == 8


def test_a_batch_that_micro_batches_do_not_divide_is_an_error(stages, batch):
    pipeline = scpl.Pipeline(stages, GRADIENT, micro_batches=3)
    with pytest.raises(ValueError, match="a batch of 8 can't be split over 3 micro-batches"):
        pipeline.train_step(*batch)
