"""NaN and infinity in one stage: its update is left out, counted and said; too many in a row end the run, saved."""

import dataclasses
import logging
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx

import scpl_jax as scpl
from scpl_jax.pipeline.whole_steps import Skip
from scpl_jax.stages.step import apply_gradient, gradients, initial_state
from scpl_jax.training.bad_numbers import BadNumbersError, SkipWatch, stop_run
from scpl_jax.training.run_dir import RunDirectory

OPTIMIZER = optax.adam(1e-2)
BAD_CLASS = 3


class _FragileLoss(nnx.Module):
    def __init__(self, inner, factor, added, bad_class):
        self.inner, self.factor, self.added, self.bad_class = inner, factor, added, bad_class

    def __call__(self, features, labels):
        bad = (labels == self.bad_class).any()
        return jnp.where(bad, self.factor, 1.0) * self.inner(features, labels) + jnp.where(bad, self.added, 0.0)


@dataclasses.dataclass(frozen=True)
class Fragile(scpl.SupCon):
    """Not finite wherever a batch has an example of one class."""

    factor: float = float("nan")
    added: float = 0.0
    bad_class: int = BAD_CLASS

    def build(self, features, *, rngs):
        return _FragileLoss(super().build(features, rngs=rngs), self.factor, self.added, self.bad_class)


GOOD = scpl.SupCon(head="mlp-bn", head_dims=(8, 6))


def batches(bad_steps, count=5):
    rng = np.random.default_rng(0)
    for step in range(count):
        labels = np.arange(8) % (4 if step in bad_steps else 3)
        yield rng.normal(size=(8, 16, 16, 3)).astype(np.float32), labels.astype(np.int32)


def values(state):
    leaves = jax.tree.leaves((state.params, state.rest, state.opt_state))
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in leaves]


def blocks(small_vgg):
    made = small_vgg()
    made.insert(1, nnx.Dropout(0.1, rngs=nnx.Rngs(5)))
    return made


def pipeline_of(small_vgg, objective, **options):
    example = jax.ShapeDtypeStruct((8, 16, 16, 3), np.float32)
    stages = scpl.decouple(blocks(small_vgg), 2, objective, example, nnx.Rngs(1))
    return scpl.Pipeline(stages, OPTIMIZER, **options)


@pytest.mark.parametrize(
    ("bad", "fuse"),
    [
        ({"factor": float("nan")}, False),
        ({"factor": float("inf")}, True),
        ({"factor": 1e25}, False),
        ({"factor": 1.0, "added": float("inf")}, False),
        ({"factor": 1.0, "added": float("inf")}, True),
    ],
    ids=["NaN", "infinite, fused", "squares overflow", "only the loss", "only the loss, fused"],
)
def test_a_bad_stage_keeps_its_state_and_no_other_stage_is_affected(small_vgg, bad, fuse):
    devices = jax.devices()[: 1 if fuse else 2]
    # The same program but for the class, which no batch has: so the other stage's values are equal to the last bit.
    fragile, sound = (
        pipeline_of(
            small_vgg,
            [Fragile(head="mlp-bn", head_dims=(8, 6), bad_class=one, **bad), GOOD],
            devices=devices,
        )
        for one in (BAD_CLASS, BAD_CLASS + 1)
    )
    *before, last = batches({4})
    for batch in before:
        fragile.train_step(*batch)
        sound.train_step(*batch)
    kept = values(fragile.states[0])
    fragile.train_step(*last)
    sound.train_step(*last)
    fragile.wait()
    chex.assert_trees_all_equal(values(fragile.states[0]), kept)
    chex.assert_trees_all_equal(values(fragile.states[1]), values(sound.states[1]))
    first, second = fragile.totals()
    assert (first["skipped"], first["batches"], second["skipped"], second["batches"]) == (1, 4, 0, 5)
    assert np.isfinite(first["loss"])
    (skip,) = fragile.take_skipped()
    assert (skip.step, skip.stage) == (4, 0)
    assert np.isfinite(skip.loss) == (bad["factor"] == 1e25)
    assert fragile.take_skipped() == []
    # and on it goes
    fragile.train_step(*before[0])
    fragile.wait()
    assert any((x != y).any() for x, y in zip(values(fragile.states[0]), kept, strict=True))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_backpropagation_leaves_the_step_out_in_every_stage_its_gradient_reaches(small_vgg, micro_batches):
    options = {"devices": jax.devices()[:2], "micro_batches": micro_batches}
    pipeline = pipeline_of(small_vgg, scpl.CrossEntropy(), **options)
    (images, labels), (more, _) = batches(set(), 2)
    pipeline.train_step(images, labels)
    kept = [values(state) for state in pipeline.states]
    pipeline.train_step(np.where(np.arange(8)[:, None, None, None] == 5, np.nan, more), labels)
    pipeline.wait()
    chex.assert_trees_all_equal([values(state) for state in pipeline.states], kept)
    assert [(skip.step, skip.stage) for skip in pipeline.take_skipped()] == [(1, 0), (1, 1)]
    assert [total["skipped"] for total in pipeline.totals()] == [1, 1]


def test_switched_off_nothing_is_looked_for(small_vgg):
    pipeline = pipeline_of(small_vgg, [Fragile(head="mlp-bn", head_dims=(8, 6)), GOOD], skip_non_finite=False)
    for batch in batches({1}, 2):
        metrics = pipeline.train_step(*batch)
    pipeline.wait()
    assert "skipped" not in metrics[0]
    assert pipeline.take_skipped() == []
    assert np.isnan(np.concatenate([value.ravel() for value in values(pipeline.states[0])]).astype(float)).any()


@pytest.mark.numeric
def test_good_steps_are_the_same_with_and_without_looking(small_vgg):
    seen, blind = (pipeline_of(small_vgg, GOOD, skip_non_finite=look) for look in (True, False))
    for batch in batches(set()):
        seen.train_step(*batch)
        blind.train_step(*batch)
    for one, other in zip(seen.states, blind.states, strict=True):
        assert_close(values(one), values(other), 1e-5)


def test_a_gradient_alone_is_enough(small_vgg):
    """Finite loss, infinite gradient in a single entry."""
    example = jax.ShapeDtypeStruct((8, 16, 16, 3), np.float32)
    stage = scpl.decouple(small_vgg(), 1, GOOD, example, nnx.Rngs(1))[0]
    state = initial_state(stage, OPTIMIZER)
    (batch,) = batches(set(), 1)
    step = jax.jit(lambda params, rest, *batch: gradients(stage, params, rest, *batch))
    gradient, (_, rest, metrics) = step(state.params, state.rest, *batch)
    leaves, structure = jax.tree.flatten(gradient)
    leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].set(-jnp.inf)
    gradient = jax.tree.unflatten(structure, leaves)
    update = jax.jit(lambda *given: apply_gradient(OPTIMIZER, *given, False))
    new, reported = update(state, gradient, rest, metrics)
    assert bool(reported["skipped"])
    chex.assert_trees_all_equal(values(new), values(state))


def test_rows_are_counted_for_each_stage_by_itself():
    watch = SkipWatch(3, steps_per_epoch=4)
    nan = float("nan")
    assert watch.look([Skip(5, 0, nan), Skip(6, 1, nan), Skip(6, 0, nan)]) is None
    assert watch.look([Skip(8, 0, nan)]) is None  # step 7 was good
    assert watch.look([Skip(9, 0, nan), Skip(10, 0, nan)]) == Skip(10, 0, nan)
    unlimited = SkipWatch(None, steps_per_epoch=4)
    assert unlimited.look(Skip(step, 0, nan) for step in range(50)) is None


def test_every_skip_is_said_until_there_are_too_many_lines(caplog):
    watch = SkipWatch(None, steps_per_epoch=4)
    with caplog.at_level(logging.WARNING):
        watch.look([Skip(5, 1, float("nan")), Skip(6, 2, 0.25), Skip(7, 0, None)])
        watch.look(Skip(step, 3, float("inf")) for step in range(100))
    first, second, third, *others = [record.getMessage() for record in caplog.records]
    assert first == "stage 1 left out its update at step 6 (epoch 2, batch 2): its loss is nan"
    assert second.endswith("(epoch 2, batch 3): its gradient is not finite")
    assert third.endswith("(epoch 2, batch 4): its gradient is not finite")
    assert len(others) == 10
    assert others[-1].endswith("further ones of this stage are only counted, in metrics.jsonl")


@pytest.mark.parametrize("inputs", [np.ones((2, 3), np.uint8), {"ids": np.ones((2, 3), np.int32)}])
def test_the_batch_is_written_as_the_data_set_gave_it(tmp_path, inputs):
    def train_batches(batch_size, *, seed, epoch, start):
        assert (batch_size, seed, epoch, start) == (2, 7, 2, 1)
        yield inputs, np.array([0, 1], np.int32)

    dataset = SimpleNamespace(train_labels=np.zeros(9), train_batches=train_batches)
    with pytest.raises(
        BadNumbersError, match=r"stage 1 .* step 6 \(epoch 2, batch 2\); the run is saved, its batch is"
    ):
        stop_run(5, 1, dataset, 7, 2, RunDirectory(tmp_path))
    with np.load(tmp_path / "bad_batches" / "seed-7-step-6.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["labels"], [0, 1])
        name = "ids" if isinstance(inputs, dict) else "images"
        np.testing.assert_array_equal(file[name], jax.tree.leaves(inputs)[0])
