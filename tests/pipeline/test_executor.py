import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx

import scpl_jax as scpl
from scpl_jax.stages import initial_state, train_step

OPTIMIZER = optax.adam(1e-2)


@pytest.fixture(scope="module")
def stages(small_vgg, batch):
    return scpl.decouple(small_vgg(), 3, scpl.SupCon(head_dims=(8, 6)), batch[0], nnx.Rngs(1))


def arrays(states):
    return jax.device_get([nnx.to_pure_dict(s.params) for s in states]), jax.device_get(
        [[jax.tree.leaves(s.rest), jax.tree.leaves(s.opt_state), s.totals] for s in states]
    )


def batches(count):
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield rng.normal(size=(8, 16, 16, 3)).astype(np.float32), rng.integers(0, 4, 8).astype(np.int32)


def trained(stages, count=6, **options):
    pipeline = scpl.Pipeline(stages, OPTIMIZER, **options)
    losses = [[m["loss"] for m in pipeline.train_step(*b)] for b in batches(count)]
    return pipeline, jax.device_get(losses)


@pytest.mark.numeric
def test_equals_a_hand_written_loop(stages):
    pipeline, losses = trained(stages, devices=jax.devices()[:1])
    states = [initial_state(stage, OPTIMIZER) for stage in stages]
    steps = [jax.jit(lambda s, m, y, stage=stage: train_step(stage, OPTIMIZER, s, m, y)) for stage in stages]
    expected = []
    for images, labels in batches(6):
        message, row = images, []
        for index, step in enumerate(steps):
            states[index], message, metrics = step(states[index], message, labels)
            row.append(metrics["loss"])
        expected.append(row)
    assert_close(losses, jax.device_get(expected), 1e-5)
    assert_close(arrays(pipeline.states)[0], arrays(states)[0], 1e-5)


@pytest.mark.parametrize("devices", [1, 2, pytest.param(4, marks=pytest.mark.numeric)])
def test_run_ahead_and_devices_change_no_bit(stages, devices):
    synchronous, losses = trained(stages, devices=jax.devices()[:1], max_in_flight=1)
    pipelined, others = trained(stages, devices=jax.devices()[:devices], max_in_flight=8)
    chex.assert_trees_all_equal(losses, others)
    chex.assert_trees_all_equal(arrays(synchronous.states), arrays(pipelined.states))


def test_learns(stages, batch):
    pipeline = scpl.Pipeline(stages, OPTIMIZER, jax.devices()[:1])
    first = [float(m["loss"]) for m in pipeline.train_step(*batch)]
    for _ in range(30):
        last = pipeline.train_step(*batch)
    assert all(float(m["loss"]) < loss for m, loss in zip(last, first, strict=True))
    assert int(last[-1]["correct"]) == 8


def test_stages_stay_usable_after_training(stages):
    """Steps donate their state; what ``decouple`` returned must not be donated with it."""
    trained(stages, 2)
    again, losses = trained(stages, 2)
    assert np.isfinite(losses).all()
    assert again.step == 2


def test_preparation_gets_another_key_every_step(stages, batch):
    def noise(key, images, labels):
        return images * 0 + jax.random.normal(key, images.shape), labels

    def losses(seed):
        pipeline = scpl.Pipeline(stages, optax.sgd(0.0), jax.devices()[:1], prepare=noise, key=jax.random.key(seed))
        return [float(pipeline.train_step(*batch)[0]["loss"]) for _ in range(3)]

    assert len(set(losses(0))) == 3
    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_preparation_may_change_the_number_of_examples(stages, batch):
    def twice(key, images, labels):
        return jnp.concatenate([images, images]), jnp.concatenate([labels, labels])

    pipeline = scpl.Pipeline(stages, OPTIMIZER, jax.devices()[:2], prepare=twice, key=jax.random.key(0))
    pipeline.train_step(*batch)
    assert pipeline.totals()[-1]["examples"] == 16


@pytest.mark.parametrize(("devices", "data_parallel"), [(slice(0, 1), 1), (slice(2, 4), 1), (slice(1, 7), 2)])
def test_preparation_takes_arrays_of_the_host_and_of_any_device(stages, devices, data_parallel):
    def brighter(key, images, labels):
        return images + 0.1 * jax.random.normal(key, images.shape), labels

    def losses(change):
        places, options = jax.devices()[devices], {"prepare": brighter, "key": jax.random.key(0)}
        pipeline = scpl.Pipeline(stages, OPTIMIZER, places, data_parallel=data_parallel, **options)
        return jax.device_get([[m["loss"] for m in pipeline.train_step(*map(change, b))] for b in batches(3)])

    host = losses(lambda x: x)
    wide = losses(lambda x: x.astype(np.int64) if x.ndim == 1 else x.astype(np.float64))
    placed = losses(lambda x: jax.device_put(x, jax.devices()[-1]))
    for others in (wide, placed):
        chex.assert_trees_all_equal(host, others)


def test_totals_are_the_sums_of_the_metrics(stages):
    pipeline = scpl.Pipeline(stages, OPTIMIZER)
    metrics = jax.device_get([pipeline.train_step(*b) for b in batches(4)])
    totals = pipeline.totals()
    for stage in range(3):
        assert totals[stage]["batches"] == 4
        assert_close(totals[stage]["loss"], sum(m[stage]["loss"].astype(float) for m in metrics), 1e-6)
    assert totals[2]["correct"] == sum(m[2]["correct"] for m in metrics)
    assert totals[2]["examples"] == 32
    pipeline.reset_totals()
    assert pipeline.totals()[0] == {"loss": 0.0, "batches": 0, "skipped": 0}


def test_gradient_norms_only_when_asked_for(stages, batch):
    pipeline = scpl.Pipeline(stages, optax.sgd(0.0), jax.devices()[:1])
    without = pipeline.train_step(*batch)[1]["gradient_norms"]
    with_norms = pipeline.train_step(*batch, with_norms=True)[1]["gradient_norms"]
    assert set(without) == set(with_norms)
    assert all(float(v) == 0 for v in without.values())
    assert all(float(v) > 0 for v in with_norms.values())
    assert any("conv" in name for name in with_norms)


def test_evaluation_counts_every_example_once(stages, batch):
    pipeline = scpl.Pipeline(stages, OPTIMIZER, jax.devices()[:2])
    images, labels = batch
    logits = np.asarray(pipeline.predict(images))
    padded = np.where(np.arange(8) < 5, labels, -1)
    result = pipeline.evaluate([(images, labels), (images, padded)])
    right = logits.argmax(1) == labels
    assert result["examples"] == 13
    assert result["accuracy"] == pytest.approx((right.sum() + right[:5].sum()) / 13)


def test_evaluation_of_nothing_is_an_error(stages):
    with pytest.raises(ValueError, match="no example"):
        scpl.Pipeline(stages, OPTIMIZER).evaluate([])


@pytest.mark.parametrize(
    ("stages_", "options", "message"),
    [
        ((), {}, "at least one stage"),
        (None, {"max_in_flight": 0}, "at least 1, got 0"),
        (None, {"devices": []}, "there are 0"),
        (None, {"data_parallel": 0}, "data_parallel must be at least 1, got 0"),
        (None, {"data_parallel": 5}, "needs 5 devices a stage, there are 4"),
        (None, {"across_hosts": "both"}, "stages or data, got 'both'"),
        (None, {"micro_batches": 0}, "micro_batches must be at least 1"),
        (None, {"micro_batches": 2}, "for backpropagation"),
        (None, {"remat": True}, "for backpropagation"),
    ],
)
def test_bad_arguments_are_named(stages, stages_, options, message):
    with pytest.raises(ValueError, match=message):
        scpl.Pipeline(stages if stages_ is None else stages_, OPTIMIZER, **options)


def test_a_batch_that_the_devices_cannot_share_is_an_error(stages, batch):
    pipeline = scpl.Pipeline(stages, OPTIMIZER, data_parallel=4)
    with pytest.raises(ValueError, match="a batch of 6 can't be split over 4 devices a stage"):
        pipeline.train_step(batch[0][:6], batch[1][:6])
    with pytest.raises(ValueError, match="a batch of 6 can't be split"):
        pipeline.predict(batch[0][:6])


@pytest.mark.parametrize("data_parallel", [2, pytest.param(4, marks=pytest.mark.numeric)])
def test_data_parallel_stages_compute_over_the_whole_batch(stages, data_parallel):
    """Gradients (SGD at rate 1 shows them), batch statistics and losses of a step as on one device a stage."""
    results = []
    for options in ({"devices": jax.devices()[:2]}, {"data_parallel": data_parallel}):
        pipeline = scpl.Pipeline(stages, optax.sgd(1.0), **options)
        losses = [[m["loss"] for m in pipeline.train_step(*b)] for b in batches(1)]
        results.append((jax.device_get(losses), *arrays(pipeline.states)))
        logits = np.asarray(pipeline.predict(next(batches(1))[0]))
        results[-1] = (*results[-1], logits)
    assert_close(results[1], results[0], 1e-5)


def test_a_data_parallel_batch_is_really_split(stages, batch):
    pipeline = scpl.Pipeline(stages, OPTIMIZER, data_parallel=2)
    logits = pipeline.predict(batch[0])
    assert {shard.data.shape for shard in logits.addressable_shards} == {(4, 4)}
    assert [len(mesh.devices) for mesh in pipeline.meshes] == [2, 2, 2]


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.numeric), 2])
def test_fused_stages_compute_the_same(stages, devices):
    separate, losses = trained(stages, 3, devices=jax.devices()[:devices])
    fused, others = trained(stages, 3, devices=jax.devices()[:devices], fuse=True)
    assert len(fused.groups) == devices
    assert len(separate.groups) == 3
    assert_close(others, losses, 1e-5)
    images, _ = next(batches(1))
    assert_close(fused.predict(images), separate.predict(images), 1e-4)


@pytest.mark.parametrize(
    ("handed_on", "groups"),
    [
        ((4, 8, 0), ["0-2"]),
        ((4, 9, 0), ["0-1", "2"]),
        ((13, 1, 0), ["0", "1-2"]),
        ((1, 1, 1, 1, 1, 0), ["0-3", "4-5"]),
    ],
    ids=str,
)
def test_stages_with_small_messages_are_one_program_where_that_is_left_open(handed_on, groups):
    """Messages in MiB of 1024 examples."""
    widths = [max(1, 256 * size) for size in handed_on]
    blocks = [nnx.Linear(a, b, rngs=nnx.Rngs(0)) for a, b in itertools.pairwise((3, *widths, 2))]
    example = jax.ShapeDtypeStruct((1024, 3), jnp.float32)
    stages = scpl.decouple(blocks, len(widths), scpl.SupCon(head="identity"), example, nnx.Rngs(1), cut="even")
    one = jax.devices()[:1]
    assert [group.name for group in scpl.Pipeline(stages, OPTIMIZER, one, fuse=None).groups] == groups
    assert len(scpl.Pipeline(stages, OPTIMIZER, one).groups) == len(stages)
    assert len(scpl.Pipeline(stages[:3], OPTIMIZER, jax.devices()[:3], fuse=None).groups) == 3


def test_never_more_batches_in_flight_than_allowed(stages, monkeypatch):
    pipeline = scpl.Pipeline(stages, OPTIMIZER, max_in_flight=3)
    waited = []
    original = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: (waited.append(tree), original(tree))[1])
    for number, b in enumerate(batches(6)):
        pipeline.train_step(*b)
        assert len(waited) == max(0, number - 2)


def test_equal_stages_on_one_device_are_compiled_once(compilations):
    def count(depth, devices):
        rngs, (x, y) = nnx.Rngs(0), (np.ones((4, 8), np.float32), np.array([0, 1, 2, 0]))
        blocks = [nnx.Linear(8, 8, rngs=rngs) for _ in range(depth)] + [nnx.Linear(8, 3, rngs=rngs)]
        stages = scpl.decouple(blocks, depth, scpl.SupCon(head="linear", head_dims=(4,)), x, nnx.Rngs(1))
        pipeline = scpl.Pipeline(stages, OPTIMIZER, jax.devices()[:devices])
        with compilations() as compiled:
            pipeline.compile(x, y)
        before = arrays(pipeline.states)[0]
        pipeline.train_step(x, y)
        # They share a program, not their values.
        for old, new in zip(before, arrays(pipeline.states)[0], strict=True):
            assert not np.array_equal(old["blocks"][0]["kernel"], new["blocks"][0]["kernel"])
        kernels = [state["blocks"][0]["kernel"] for state in arrays(pipeline.states)[0]]
        assert not any(np.array_equal(kernels[0], other) for other in kernels[1:])
        return len(compiled)

    # The last stage, which has the classifier, is another program.
    assert count(3, 1) == count(6, 1) == 2
    assert count(6, 2) == 3
