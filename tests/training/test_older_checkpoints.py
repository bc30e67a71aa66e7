"""Checkpoints from before batch norms counted their updates are resumed, with a word of it."""

import functools
import logging
import re

import chex
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.kernels.norm import BatchNorm
from scpl_jax.models import layers
from scpl_jax.training import CheckpointStore, RunError, checkpoints
from scpl_jax.training.checkpoints import Progress, _check_same

STEPS = 2
BATCH = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32), (np.arange(8) % 2).astype(np.int32)


@pytest.fixture
def batch_norm(monkeypatch):
    """A function that decides of which batch norm networks are made from then on."""

    def choose(corrected):
        norm = functools.partial(BatchNorm, bias_correction=corrected)
        monkeypatch.setattr("scpl_jax.models.layers.BatchNorm", norm)

    return choose


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.norm = nnx.Linear(6, 6, rngs=rngs), layers.batch_norm(6, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.linear(x)))


def new_pipeline():
    blocks = [Block(nnx.Rngs(0)), nnx.Linear(6, 2, rngs=nnx.Rngs(0))]
    stages = scpl.decouple(blocks, 1, scpl.SupCon(head="mlp-bn", head_dims=(5, 4)), BATCH[0], nnx.Rngs(1))
    return scpl.Pipeline(stages, optax.adam(1e-2), jax.devices()[:1])


def save(pipeline, root):
    store = CheckpointStore(root)
    for _ in range(STEPS):
        pipeline.train_step(*BATCH)
    store.save(pipeline, Progress(batch=STEPS))
    store.close()


def restore(pipeline, root):
    store = CheckpointStore(root)
    try:
        store.restore(pipeline)
    finally:
        store.close()


def arrays(pipeline):
    flat = [jax.tree_util.tree_flatten_with_path(state)[0] for state in pipeline.states]
    return {(k, jax.tree_util.keystr(path)): np.asarray(x) for k, one in enumerate(flat) for path, x in one}


def counts(pipeline):
    return {name: x.item() for name, x in arrays(pipeline).items() if "updates" in name[1]}


def test_their_averages_go_on_as_after_the_steps_that_were_saved(tmp_path, batch_norm, caplog):
    batch_norm(corrected=False)
    old = new_pipeline()
    save(old, tmp_path)
    batch_norm(corrected=True)
    pipeline = new_pipeline()
    with caplog.at_level(logging.WARNING):
        restore(pipeline, tmp_path)
    assert caplog.text.count("saved before the running averages of batch norm were corrected for their start") == 1
    before, after = arrays(old), arrays(pipeline)
    chex.assert_trees_all_equal(before, {name: after[name] for name in before})
    assert set(after) - set(before) == set(counts(pipeline))
    assert set(counts(pipeline).values()) == {STEPS}
    pipeline.train_step(*BATCH)
    assert set(counts(pipeline).values()) == {STEPS + 1}


def test_what_is_counted_is_restored_without_a_word(tmp_path, caplog):
    old, pipeline = (new_pipeline() for _ in range(2))
    # A count that is not that of the steps, as after steps that were left out.
    old.train_step(np.full_like(BATCH[0], np.nan), BATCH[1])
    save(old, tmp_path)
    with caplog.at_level(logging.WARNING):
        restore(pipeline, tmp_path)
    assert "running averages" not in caplog.text
    assert pipeline.step == STEPS + 1
    assert set(counts(pipeline).values()) == {STEPS}
    chex.assert_trees_all_equal(arrays(old), arrays(pipeline))


def test_names_from_when_loss_and_classifier_were_in_lists_are_known(tmp_path, monkeypatch, caplog):
    old = new_pipeline()
    name = checkpoints._name
    with monkeypatch.context() as before:
        before.setattr(checkpoints, "_name", lambda path: re.sub(r"(^|/)(loss|classifier)/", r"\1\2/0/", name(path)))
        save(old, tmp_path)
    stored = (tmp_path / str(STEPS) / "progress.json").read_text()
    assert "params/loss/0/head/" in stored
    assert "opt_state/0/mu/classifier/0/kernel" in stored
    pipeline = new_pipeline()
    with caplog.at_level(logging.WARNING):
        restore(pipeline, tmp_path)
    assert not caplog.records
    chex.assert_trees_all_equal(arrays(old), arrays(pipeline))


def test_counts_that_only_the_checkpoint_has_are_of_another_network(tmp_path, batch_norm):
    save(new_pipeline(), tmp_path)
    batch_norm(corrected=False)
    with pytest.raises(RunError, match=r"of another network: .*/updates/value is int32.* there and missing"):
        restore(new_pipeline(), tmp_path)


NORM = {"rest/norm/mean/value": "float32[6]", "rest/norm/var/value": "float32[6]"}
COUNT = {"rest/norm/updates/value": "int32[]"}


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({}, NORM | COUNT),
        ({}, COUNT),
        (NORM, NORM | {"rest/updates/value": "int32[]"}),
        (NORM, NORM | {"rest/norm/updates/value": "int32[6]"}),
        (NORM, NORM | {"rest/norm/other/value": "int32[]"}),
    ],
)
def test_only_a_batch_norms_count_may_be_missing(saved, expected):
    assert _check_same([NORM], [NORM | COUNT]) == [set(COUNT)]
    with pytest.raises(RunError, match="the checkpoint is of another network: in stage 0"):
        _check_same([saved], [expected])
