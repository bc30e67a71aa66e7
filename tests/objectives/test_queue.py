"""A queue of earlier projections: what it holds, when it moves, and that it is a part of the stage."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx

import scpl_jax as scpl
from scpl_jax.losses.rows import unit_rows
from scpl_jax.objectives.supcon import ProjectionQueue

CLASSES, SIZE = 3, 12
X = np.random.default_rng(0).normal(size=(4, 8, 6)).astype(np.float32)
Y = (np.arange(8) % CLASSES).astype(np.int32)


def new_pipeline(objective=None, devices=1, num_stages=2, **options):
    blocks = [nnx.Sequential(nnx.Linear(6, 6, rngs=nnx.Rngs(i)), nnx.relu) for i in range(num_stages)]
    blocks.append(nnx.Linear(6, CLASSES, rngs=nnx.Rngs(9)))
    objective = scpl.SupCon(head="linear", head_dims=(5,), queue=SIZE) if objective is None else objective
    stages = scpl.decouple(blocks, num_stages, objective, X[0], nnx.Rngs(1))
    return scpl.Pipeline(stages, optax.adam(1e-2), jax.devices()[:devices], **options)


def queue_of(state):
    held = state.rest["loss"]["queue"]
    return np.asarray(held["rows"][...]), np.asarray(held["labels"][...])


def queues(pipeline):
    return [queue_of(state) for state in pipeline.states]


def test_it_has_the_last_rows_with_a_label_in_order():
    queue, rng = ProjectionQueue(5, jax.ShapeDtypeStruct((4, 3), jnp.float32)), np.random.default_rng(0)
    batches = [(rng.normal(size=(n, 3)), rng.integers(0, 9, n)) for n in (3, 1, 4, 8, 2)]
    for count, (rows, labels) in enumerate(batches, start=1):
        labels[::3] = -1
        queue.add(jnp.asarray(rows, jnp.float32), jnp.asarray(labels))
        everything = [np.concatenate(parts) for parts in zip(*batches[:count], strict=True)]
        last = np.flatnonzero(everything[1] != -1)[-5:]
        held, found = queue()
        assert found.tolist() == [-1] * (5 - len(last)) + everything[1][last].tolist()
        wanted = everything[0][last] / np.linalg.norm(everything[0][last], axis=1, keepdims=True)
        assert_close(held[5 - len(last) :], wanted, 1e-6)


def test_it_moves_in_training_mode_only():
    queue = ProjectionQueue(5, jax.ShapeDtypeStruct((4, 3), jnp.float32))
    queue.eval()
    queue.add(jnp.ones((4, 3)), jnp.arange(4))
    assert queue()[1].tolist() == [-1] * 5
    queue.train()
    queue.add(jnp.ones((4, 3)), jnp.arange(4))
    assert queue()[1].tolist() == [-1, 0, 1, 2, 3]


@pytest.mark.numeric
def test_a_stage_compares_to_what_its_head_made_of_the_batches_before():
    pipeline = new_pipeline()
    labels = Y.copy()
    labels[3] = -1
    rows, theirs = [], []
    for x in X:
        stage, state = pipeline.stages[0], pipeline.states[0]
        module = nnx.merge(stage.train_graph, state.params, state.rest, copy=True)
        projections = module.loss.head(module.blocks[0](x))
        last = slice(-SIZE, None)
        queue = (jnp.concatenate([jnp.zeros((0, 5)), *rows])[last], np.concatenate([Y[:0], *theirs])[last])
        wanted = scpl.supervised_contrastive(projections, labels, queue=queue)
        assert_close(pipeline.train_step(x, labels)[0]["loss"], wanted, 1e-5)
        rows.append(unit_rows(projections)[labels != -1])
        theirs.append(labels[labels != -1])
    held, found = queue_of(pipeline.states[0])
    assert found.tolist() == np.concatenate(theirs)[-SIZE:].tolist()
    assert_close(held, jnp.concatenate(rows)[-SIZE:], 1e-5)


def test_without_a_queue_a_stage_is_as_it_was():
    plain = new_pipeline(scpl.SupCon(head="linear", head_dims=(5,)))
    assert not jax.tree.leaves(plain.states[0].rest)
    first = [float(pipeline.train_step(X[0], Y)[0]["loss"]) for pipeline in (plain, new_pipeline())]
    assert_close(first[1], first[0], 1e-6)  # nothing is in the queue yet
    second = [float(pipeline.train_step(X[1], Y)[0]["loss"]) for pipeline in (plain, new_pipeline())]
    assert second[0] != second[1]


@pytest.mark.parametrize("bad", ["input", "label on the device"])
def test_an_update_that_is_left_out_leaves_the_queue(bad):
    pipeline = new_pipeline()
    pipeline.train_step(X[0], Y)
    before = jax.device_get(pipeline.states[0].rest)
    if bad == "input":
        pipeline.train_step(np.full_like(X[1], np.inf), Y)
    else:
        pipeline.train_step(X[1], jnp.asarray(Y).at[2].set(CLASSES))
        with pytest.raises(ValueError, match="labels of step 2 are not"):
            pipeline.wait()
    chex.assert_trees_all_equal(jax.device_get(pipeline.states[0].rest), before)
    pipeline.train_step(X[1], Y)
    pipeline.wait()
    assert (queue_of(pipeline.states[0])[1] != -1).all()


def test_fused_or_not_and_in_flight_or_not_it_has_the_same_bits():
    found = []
    for fuse, in_flight in ((False, 1), (False, 4), (True, 4)):
        pipeline = new_pipeline(num_stages=3, fuse=fuse, max_in_flight=in_flight)
        for x in X:
            pipeline.train_step(x, Y)
        found.append(jax.device_get(pipeline.states))
    chex.assert_trees_all_equal(found[1], found[0])
    chex.assert_trees_all_equal(found[2], found[0])


@pytest.mark.numeric
def test_over_data_parallel_devices_it_is_the_same_queue():
    one, two = new_pipeline(), new_pipeline(devices=4, data_parallel=2)
    for x in X:
        losses = [pipeline.train_step(x, Y) for pipeline in (one, two)]
    for a, b in zip(*losses, strict=True):
        assert_close(a["loss"], b["loss"], 1e-5)
    for (rows, labels), (others, theirs) in zip(queues(one), queues(two), strict=True):
        np.testing.assert_array_equal(labels, theirs)
        assert_close(rows, others, 1e-5)


def test_terms_of_a_mixture_and_losses_behind_an_auxiliary_network_have_one():
    supcon = scpl.SupCon(head="linear", head_dims=(5,), queue=SIZE)
    mixture = scpl.Mixture(((1.0, supcon), (0.5, scpl.LocalClassifier(CLASSES))))
    through = scpl.SupCon(head="linear", head_dims=(5,), queue=SIZE, aux=lambda f, t, rngs: nnx.Linear(6, 4, rngs=rngs))
    pipeline = new_pipeline([mixture, through])
    for x in X[:2]:
        pipeline.train_step(x, Y)
    mixed, read = (state.rest["loss"] for state in pipeline.states)
    for held in (mixed["losses"][0]["queue"], read["loss"]["queue"]):
        assert held["labels"][...].tolist() == [*Y[-4:], *Y]


@pytest.mark.parametrize(("given", "kept"), [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32)])
def test_it_is_kept_in_at_least_float32(given, kept):
    loss = scpl.SupCon(head="identity", queue=4).build(jax.ShapeDtypeStruct((8, 6), given), rngs=nnx.Rngs(0))
    assert loss(jnp.ones((8, 6), given), jnp.arange(8) % 2).dtype == kept
    assert loss.queue()[0].dtype == kept


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match=r"^queue must be at least 0, got -1; 0 is no queue$"):
        scpl.SupCon(queue=-1)
