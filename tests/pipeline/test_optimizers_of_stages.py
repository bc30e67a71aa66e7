"""One optimizer for all stages, or one for each."""

import chex
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.training.checkpoints import CheckpointStore, Progress

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
Y = np.arange(8) % 2
SUPCON = scpl.SupCon(head="linear", head_dims=(3,))
EACH = [optax.sgd(0.1), optax.adam(1e-2), optax.sgd(0.3, momentum=0.9)]
KINDS = {
    "local, one program a stage": (SUPCON, 3, {}),
    "local, fused": (SUPCON, 1, {"fuse": True}),
    "local, over devices": (SUPCON, 4, {"data_parallel": 2}),
    "backpropagation": (scpl.CrossEntropy(), 1, {}),
    "backpropagation over stages": (scpl.CrossEntropy(), 3, {"micro_batches": 2}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
# With updates in the step's program, and in one of their own, of which there are two forms.
every_update = pytest.mark.parametrize(
    ("kind", "apart"),
    [*((kind, False) for kind in KINDS), ("local, fused", True), ("backpropagation over stages", True)],
)


def new_pipeline(kind, optimizer, **more):
    objective, devices, options = KINDS[kind]
    blocks = [nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(i)), nnx.tanh) for i in range(3)]
    blocks.append(nnx.Linear(4, 2, rngs=nnx.Rngs(3)))
    stages = scpl.decouple(blocks, 3, objective, X, nnx.Rngs(4))
    return scpl.Pipeline(stages, optimizer, jax.devices()[:devices], **{**options, **more})


def trained(pipeline, steps=3):
    for _ in range(steps):
        pipeline.train_step(X, Y)
    return jax.device_get(pipeline.states)


@every_update
def test_one_for_each_is_to_the_bit_the_same_one_for_all(kind, apart, set_thresholds):
    if apart:
        set_thresholds(update_parameters=0)
    one = optax.adam(1e-2)
    chex.assert_trees_all_equal(trained(new_pipeline(kind, [one] * 3)), trained(new_pipeline(kind, one)))


@every_update
def test_each_stage_has_its_own(kind, apart, set_thresholds):
    if apart:
        set_thresholds(update_parameters=0)
    still = [optax.sgd(0.0) if index == 1 else one for index, one in enumerate(EACH)]
    pipeline = new_pipeline(kind, still)
    moved = [
        any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (stage.params, state.params)), strict=True))
        for stage, state in zip(pipeline.stages, trained(pipeline), strict=True)
    ]
    assert moved == [True, False, True]


def test_with_local_losses_each_stage_is_as_with_its_optimizer_for_all():
    # Behind the first stage only its features count, which are alike if its own optimizer is.
    mixed = trained(new_pipeline("local, fused", EACH))
    chex.assert_trees_all_equal(mixed[0], trained(new_pipeline("local, fused", EACH[0]))[0])
    other = trained(new_pipeline("local, fused", [EACH[0], EACH[1], EACH[1]]))
    chex.assert_trees_all_equal(mixed[:2], other[:2])


@every_kind
def test_pipelined_and_synchronous_are_the_same_compiled_once(kind):
    piped, synchronous = new_pipeline(kind, EACH), new_pipeline(kind, EACH, max_in_flight=1)
    trained(piped, 1)
    compiled = piped.compile_seconds
    trained(synchronous, 1)
    chex.assert_trees_all_equal(trained(piped), trained(synchronous))
    assert piped.compile_seconds == compiled


@pytest.mark.parametrize("kind", ["local, fused", "local, over devices", "backpropagation over stages"])
def test_states_of_different_optimizers_are_saved_and_go_on(kind, tmp_path):
    undisturbed = trained(new_pipeline(kind, EACH), 4)
    one, other = new_pipeline(kind, EACH), new_pipeline(kind, EACH)
    trained(one, 2)
    store = CheckpointStore(tmp_path)
    store.save(one, Progress(batch=2))
    store.wait()
    store.restore(other)
    store.close()
    chex.assert_trees_all_equal(trained(other, 2), undisturbed)


@every_kind
@pytest.mark.parametrize("number", [0, 2, 4])
def test_another_number_is_refused(kind, number):
    said = f"^optimizer must be one for all or one for each of 3 stages, got {number}$"
    with pytest.raises(ValueError, match=said):
        new_pipeline(kind, [EACH[0]] * number)


@every_kind
def test_each_is_checked_before_training(kind):
    with pytest.raises(ValueError, match=r"the optimizer can't be used.*value_fn"):
        new_pipeline(kind, (EACH[0], EACH[0], optax.lbfgs()))
