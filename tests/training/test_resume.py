"""Interrupted and resumed equals uninterrupted, to the bit, metrics file included."""

import dataclasses
import json
import signal

import chex
import jax
import numpy as np
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.data import Dataset, make_augment, normalise
from scpl_jax.pipeline.exits import StopRule
from scpl_jax.training import (
    CheckpointStore,
    Plan,
    Reporter,
    RunDirectory,
    RunError,
    build_optimizer,
    cosine_schedule,
    train,
)

EPOCHS, BATCH, STEPS = 3, 8, 4  # four batches an epoch
TIMES = ("train_seconds", "images_per_second")


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (46, 16, 16, 3), dtype=np.uint8)
    labels = (np.arange(46) % 4).astype(np.int32)
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [100, 100, 100]], np.uint8)
    images = images // 5 + colours[labels][:, None, None]
    return Dataset(
        name="colours",
        source="test",
        train_images=images[:35],
        train_labels=labels[:35],
        test_images=images[35:],
        test_labels=labels[35:],
        class_names=("a", "b", "c", "d"),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


class StopAfter:
    """Like :class:`scpl_jax.training.Interrupt`, but the signal comes once the pipeline has done so many steps."""

    def __init__(self, pipeline, step=None):
        self.pipeline, self.step = pipeline, step

    @property
    def received(self):
        return signal.SIGINT if self.step is not None and self.pipeline.step >= self.step else None


SUPCON = scpl.SupCon(head="mlp-bn", head_dims=(8, 6))
QUEUE = scpl.SupCon(head="linear", head_dims=(6,), queue=30)  # longer than a batch, so it goes on from what was saved
RULES = {
    "associated learning": ([scpl.Associated(4, code=8, hidden=6)] * 2, ()),
    "early exit": ([scpl.LocalClassifier(4, (6,)), scpl.CrossEntropy()], ()),
    "stages that join": ([scpl.Mixture(((1.0, SUPCON), (0.5, scpl.LocalClassifier(4, detach=True))))] * 2, (1, 3)),
    "a queue": ([scpl.Mixture(((1.0, QUEUE), (0.5, scpl.LocalClassifier(4))))] * 2, ()),
    "predsim and inforeg": ([scpl.PredSim(4), scpl.InfoReg(4, (8, 6))], ()),
}


def new_pipeline(dataset, small_vgg, objective=SUPCON):
    """As a fresh process would build it. A dropout block gives the stages random state of their own."""
    blocks = small_vgg()
    blocks.insert(1, nnx.Dropout(0.1, rngs=nnx.Rngs(5)))
    example = jax.ShapeDtypeStruct((BATCH, 16, 16, 3), np.float32)
    classifier = not isinstance(objective, list) or objective[0].takes_classifier
    used = blocks if classifier else blocks[:-1]
    stages = scpl.decouple(used, 2, objective, example, nnx.Rngs(1), classifier=classifier)
    schedule = cosine_schedule(1e-2, 1e-4, EPOCHS * STEPS)
    return scpl.Pipeline(
        stages,
        build_optimizer("adam", schedule),
        jax.devices()[:2],
        prepare=make_augment("basic", mean=dataset.mean, std=dataset.std),
        prepare_eval=lambda images: normalise(images, dataset.mean, dataset.std),
        key=jax.random.key(7),
    )


def session(path, dataset, small_vgg, stop=None, save_every=None, rule=(SUPCON, ()), validation=None):
    """One process's part of a run: (result or None, its pipeline)."""
    objective, joins = rule
    pipeline = new_pipeline(dataset, small_vgg, objective)
    store = CheckpointStore(path / "checkpoints", keep=2)
    schedule = cosine_schedule(1e-2, 1e-4, EPOCHS * STEPS)
    rules = (StopRule(confidence=0.4), StopRule(patience=1)) if joins or isinstance(objective, list) else ()
    plan = Plan(0, EPOCHS, BATCH, schedule, save_every, rules=rules, joins=joins)
    reporter = Reporter(progress=False)
    try:
        asked = (plan, store, RunDirectory(path), reporter, StopAfter(pipeline, stop))
        result = train(pipeline, dataset, *asked, validation=validation)
    finally:
        reporter.close()
        store.close()
    return result, pipeline


def outcome(path, pipeline):
    states = [(s.params, s.rest, s.opt_state, s.totals) for s in pipeline.states]
    keys_as_numbers = jax.tree.map(
        lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        jax.tree.leaves(states),
    )
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return jax.device_get(keys_as_numbers), [
        {name: value for name, value in line.items() if name not in TIMES} for line in lines
    ]


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    def small(seed=0):
        layers = [4, "M", 6, "M", 8, "M"]
        return scpl.models.vgg(layers, 4, hidden=8, image_shape=(16, 16, 3), rngs=nnx.Rngs(seed))

    path = tmp_path_factory.mktemp("undisturbed")
    result, pipeline = session(path, dataset, small)
    return result, outcome(path, pipeline)


def stopped(name, stops, save_every=None, *marks):
    return pytest.param(stops, save_every, id=name, marks=marks)


@pytest.mark.parametrize(
    ("stops", "save_every"),
    [
        stopped("in an epoch", [6]),
        stopped("first and last step", [1, 12], 1, pytest.mark.runs),
        stopped("at its end", [4], None, pytest.mark.runs),
        stopped("twice", [2, 7], None, pytest.mark.runs),
        stopped("ends of epochs, saved every 3 steps", [4, 8], 3, pytest.mark.runs),
    ],
)
def test_resumed_equals_uninterrupted(tmp_path, dataset, small_vgg, undisturbed, stops, save_every, capsys):
    for stop in stops:
        result, pipeline = session(tmp_path, dataset, small_vgg, stop, save_every)
        assert result is None
        assert pipeline.step == stop
    result, pipeline = session(tmp_path, dataset, small_vgg, None, save_every)
    expected_result, expected = undisturbed
    chex.assert_trees_all_equal(outcome(tmp_path, pipeline), expected)
    assert result.test_accuracy == expected_result.test_accuracy
    assert (result.best_test_accuracy, result.best_epoch) == (
        expected_result.best_test_accuracy,
        expected_result.best_epoch,
    )


@pytest.mark.parametrize("name", RULES)
@pytest.mark.runs
def test_other_rules_resume_to_the_bit_too(tmp_path, dataset, small_vgg, name):
    rule = RULES[name]
    _, pipeline = session(tmp_path / "undisturbed", dataset, small_vgg, rule=rule)
    expected = outcome(tmp_path / "undisturbed", pipeline)
    for stop in (3, 8):  # in an epoch; where the second stage joins
        assert session(tmp_path / "stopped", dataset, small_vgg, stop, rule=rule)[0] is None
    _, pipeline = session(tmp_path / "stopped", dataset, small_vgg, rule=rule)
    chex.assert_trees_all_equal(outcome(tmp_path / "stopped", pipeline), expected)
    assert len(expected[1][0]["exits"]) == 2


@pytest.mark.runs
def test_lines_written_after_the_last_checkpoint_are_not_doubled(tmp_path, dataset, small_vgg, undisturbed):
    """A process that is killed outright may have written lines that its newest checkpoint does not know of."""
    session(tmp_path, dataset, small_vgg, 6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"seed": 0, "epoch": 2, "step": 8, "test_accuracy": 0.1}\n{"seed": 0, "epo')
    _, pipeline = session(tmp_path, dataset, small_vgg)
    assert outcome(tmp_path, pipeline)[1] == undisturbed[1][1]


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path, dataset, small_vgg):
    result, _ = session(tmp_path, dataset, small_vgg)
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {8, 12, result.best_epoch * STEPS}


def test_a_checkpoint_of_another_network_is_refused(tmp_path, dataset, small_vgg):
    session(tmp_path, dataset, small_vgg, 2)

    def wider(seed=0):
        layers = [4, "M", 7, "M", 8, "M"]
        return scpl.models.vgg(layers, 4, hidden=8, image_shape=(16, 16, 3), rngs=nnx.Rngs(seed))

    with pytest.raises(RunError, match="of another network: in stage"):
        session(tmp_path, dataset, wider)


def test_every_epoch_has_one_line_with_a_loss_for_every_stage(undisturbed):
    lines = undisturbed[1][1]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert all(len(line["train_loss"]) == 2 for line in lines)
    assert lines[-1]["train_loss"][0] < lines[0]["train_loss"][0]


EVALUATE = scpl.Pipeline.evaluate


class Scripted:
    """Evaluations in turn give these accuracies; at the one of which the number is given somebody presses Ctrl-C."""

    def __init__(self, monkeypatch, *accuracies, stop_at=None):
        self.left, self.stop_at, self.stopped = list(accuracies), stop_at, False

        def scripted(pipeline, batches, rules):
            found = EVALUATE(pipeline, batches, rules)
            self.stopped = len(self.left) == self.stop_at
            return {**found, "accuracy": self.left.pop(0)}

        monkeypatch.setattr(scpl.Pipeline, "evaluate", scripted)
        monkeypatch.setattr(StopAfter, "received", property(lambda _: signal.SIGINT if self.stopped else None))


def of_training(dataset):
    """The training examples in place of the test examples."""
    return dataclasses.replace(dataset, test_images=dataset.train_images, test_labels=dataset.train_labels)


def test_the_best_epoch_and_checkpoint_are_those_of_the_validation_examples(monkeypatch, tmp_path, dataset, small_vgg):
    # Test, validation, test, ...
    Scripted(monkeypatch, 0.1, 0.6, 0.3, 0.5, 0.2, 0.6)
    result, _ = session(tmp_path, dataset, small_vgg, validation=of_training(dataset))
    assert (result.best_epoch, result.best_test_accuracy, result.best_validation_accuracy) == (1, 0.1, 0.6)
    assert (result.test_accuracy, result.validation_accuracy) == (0.2, 0.6)
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {4, 8, 12}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation_accuracy"] for line in lines] == [0.6, 0.5, 0.6]
    # One epoch more finds in the checkpoint what was best.
    monkeypatch.setitem(globals(), "EPOCHS", 4)
    Scripted(monkeypatch, 0.9, 0.55)
    again, _ = session(tmp_path, dataset, small_vgg, validation=of_training(dataset))
    assert (again.best_epoch, again.best_test_accuracy, again.best_validation_accuracy) == (1, 0.1, 0.6)
    assert again.validation_accuracy == 0.55


def test_a_run_stopped_while_it_validates_evaluates_the_epoch_once_more(monkeypatch, tmp_path, dataset, small_vgg):
    validation = of_training(dataset)
    Scripted(monkeypatch, 0.1, 0.2, 0.3, 0.4, stop_at=1)
    assert session(tmp_path, dataset, small_vgg, validation=validation)[0] is None
    Scripted(monkeypatch, 0.3, 0.4, 0.5, 0.6)
    result, _ = session(tmp_path, dataset, small_vgg, validation=validation)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation_accuracy"] for line in lines] == [0.2, 0.4, 0.6]
    assert result.best_epoch == 3


def test_validation_examples_change_nothing_in_the_training(tmp_path, dataset, small_vgg, undisturbed):
    _, pipeline = session(tmp_path, dataset, small_vgg, validation=of_training(dataset))
    states, lines = outcome(tmp_path, pipeline)
    chex.assert_trees_all_equal(states, undisturbed[1][0])
    assert [{**line, **undisturbed[1][1][i]} for i, line in enumerate(lines)] == lines


def test_without_validation_examples_a_checkpoint_says_nothing_of_them(tmp_path, dataset, small_vgg):
    session(tmp_path, dataset, small_vgg, 2)
    found = json.loads((tmp_path / "checkpoints" / "2" / "progress.json").read_text())["progress"]
    names = ["epoch", "batch", "seconds", "epoch_seconds", "best_accuracy", "best_epoch", "last_accuracy"]
    assert list(found) == names
