"""Batches and labels at the door of a pipeline."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx

import scpl_jax as scpl
from scpl_jax.stages.inputs import admit_inputs

N, WIDTH, CLASSES = 12, 6, 4
IGNORED = [0, 5, 6]


def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, WIDTH)).astype(np.float32), np.arange(N) % CLASSES


def pipeline_of(objective=None, classifier=True, **options):
    blocks = [nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(i)) for i in range(2)]
    blocks += [nnx.Linear(WIDTH, CLASSES, rngs=nnx.Rngs(2))] * classifier
    objective = objective or scpl.SupCon(head="identity")
    stages = scpl.decouple(blocks, 2, objective, batch()[0], nnx.Rngs(1), cut=(1,), classifier=classifier)
    return scpl.Pipeline(stages, optax.sgd(1e-2), jax.devices()[:2], **options)


RULES = {
    "scpl": {},
    "fused": {"fuse": True},
    "classifiers": {"objective": scpl.LocalClassifier(CLASSES)},
    "associated": {"objective": scpl.Associated(CLASSES, code=5, hidden=0), "classifier": False},
    "mixture": {"objective": scpl.Mixture(((1.0, scpl.SupCon(head="identity")), (0.5, scpl.LocalClassifier(CLASSES))))},
    "backprop": {"objective": scpl.CrossEntropy()},
    "gpipe": {"objective": scpl.CrossEntropy(), "micro_batches": 2},
    "gpipe, recomputing": {"objective": scpl.CrossEntropy(), "micro_batches": 4, "remat": True},
}
every_rule = pytest.mark.parametrize("rule", RULES)


def trained(rule, x, y, **options):
    """(losses, totals, parameters) after two steps."""
    pipeline = pipeline_of(**{**RULES[rule], **options})
    for _ in range(2):
        metrics = pipeline.train_step(x, y)
    losses = [float(one["loss"]) for one in metrics if "loss" in one]
    return losses, pipeline.totals(), jax.device_get([nnx.to_pure_dict(state.params) for state in pipeline.states])


@every_rule
def test_ignored_examples_train_as_if_they_were_not_there(rule):
    x, y = batch()
    left = np.setdiff1d(np.arange(N), IGNORED)
    alone = {**RULES[rule], "micro_batches": 1, "remat": False} if "gpipe" in rule else {}
    wanted = trained(rule, x[left], y[left], **alone)
    for value, options in ((-1, {}), (200, {"ignore": 200})):
        y[IGNORED] = value
        found = trained(rule, x, y, **options)
        assert_close(found, wanted, 1e-5, scale=1)
    if "examples" in found[1][-1]:
        assert found[1][-1]["examples"] == 2 * len(left)


def test_ignored_examples_do_not_count_in_an_evaluation():
    x, y = batch()
    pipeline = pipeline_of(ignore=200)
    right = np.argmax(np.asarray(pipeline.predict(x)), axis=1)
    y = np.where(np.arange(N) < 8, right, (right + 1) % CLASSES)
    y[:3], y[11] = 200, -1  # -1 says that an example only fills a batch up, whatever is ignored
    for labels in (y, jnp.asarray(y), y[:, None]):
        found = pipeline.evaluate([(x, labels)])
        assert (found["examples"], found["accuracy"]) == (8, 5 / 8)


@every_rule
@pytest.mark.parametrize("label", [CLASSES, -2])
def test_a_label_of_no_class_is_refused_at_the_call_and_changes_nothing(rule, label):
    x, y = batch()
    y[7] = label
    pipeline = pipeline_of(**RULES[rule])
    before = jax.device_get(pipeline.states)
    wanted = "labels must be from 0 to 3, or -1, which is ignored, got "
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^{wanted}{label} at position 7 "):
            pipeline.train_step(x, y)
    assert pipeline.step == 0
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(pipeline.states))
    if RULES[rule].get("classifier", True):
        with pytest.raises(ValueError, match=rf"^{wanted}{label} at position 7 "):
            pipeline.evaluate([(x, y)])


@every_rule
@pytest.mark.parametrize("label", [CLASSES])
def test_a_label_of_no_class_on_a_device_is_said_when_its_step_is_done(rule, label):
    x, y = batch()
    pipeline = pipeline_of(**RULES[rule], max_in_flight=4)
    before = jax.device_get([(state.params, state.opt_state) for state in pipeline.states])
    bad = jnp.asarray(y).at[7].set(label)
    metrics = pipeline.train_step(x, bad)  # nothing waits for the values
    assert {int(one["bad_labels"]) for one in metrics if "bad_labels" in one} == {1}
    with pytest.raises(ValueError, match="1 labels of step 1 are not, and its updates were left out"):
        pipeline.wait()
    after = jax.device_get([(state.params, state.opt_state) for state in pipeline.states])
    jax.tree.map(np.testing.assert_array_equal, before, after)
    pipeline.train_step(x, y)
    pipeline.wait()
    assert pipeline.step == 2
    if RULES[rule].get("classifier", True):
        with pytest.raises(ValueError, match="1 labels of the evaluation are not"):
            pipeline.evaluate([(x, bad)])


def test_where_nothing_is_ignored_minus_one_is_refused():
    x, y = batch()
    y[2] = -1
    pipeline = pipeline_of(ignore=None)
    with pytest.raises(ValueError, match="labels must be from 0 to 3, got -1 at position 2"):
        pipeline.train_step(x, y)
    pipeline.train_step(x, jnp.asarray(y))
    with pytest.raises(ValueError, match="1 labels of step 1 are not"):
        pipeline.wait()


def test_a_compilation_looks_at_no_label():
    x, y = batch()
    pipeline = pipeline_of()
    assert pipeline.compile(x, np.full_like(y, 999)) > 0
    assert pipeline.temporary_bytes(x, np.full_like(y, -999)) == pipeline.temporary_bytes(x, y)
    assert pipeline.compile(x, y) == 0


def test_without_classes_any_label_from_0_on_will_do():
    x, y = batch()
    pipeline = pipeline_of(classifier=False)
    pipeline.train_step(x, y * 100_000)
    with pytest.raises(ValueError, match="labels must be 0 or more, or -1, which is ignored, got -4 at position 0"):
        pipeline.train_step(x, y - 4)


@pytest.mark.parametrize("rule", ["scpl", "backprop"])
def test_labels_of_other_forms_train_the_same(rule):
    x, y = batch()
    wanted = trained(rule, x, y)
    for convert in (lambda y: y[:, None], list, lambda y: y.astype(np.uint8), jnp.asarray):
        jax.tree.map(np.testing.assert_array_equal, wanted, trained(rule, x, convert(y)))


ODD = {
    "floating labels": (lambda x, y: (x, y.astype(np.float32)), "labels must be integers"),
    "one-hot labels": (lambda x, y: (x, np.eye(CLASSES, dtype=int)[y]), "labels.argmax"),
    "too few labels": (lambda x, y: (x, y[:-1]), "got 11 labels for 12 examples"),
    "strings": (lambda x, y: (x.astype(str), y), "arrays of numbers"),
    "objects": (lambda x, y: (np.array([None] * N), y), "arrays of numbers"),
    "whole numbers for inputs": (lambda x, y: (x.astype(int), y), "made for batches like float32"),
    "another width": (
        lambda x, y: (x[:, 1:], y),
        r"made for batches like float32 \(12, 6\) and can't take float32 \(12, 5\)",
    ),
    "another axis": (lambda x, y: (x[:, None], y), "made for batches like float32"),
    "a dict": (lambda x, y: ({"x": x}, y), "made for batches like float32"),
    "two arrays": (lambda x, y: ({"x": x, "y": x[1:]}, y), "made for batches like float32"),
    "a number": (lambda x, y: (1.0, y), "first axis"),
    "nothing": (lambda x, y: ((), y), "no array"),
    "no example": (lambda x, y: (x[:0], y[:0]), "at least one example"),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_batches_are_refused_in_one_sentence(odd):
    change, message = ODD[odd]
    x, y = change(*batch())
    pipeline = pipeline_of()
    calls = [lambda: pipeline.train_step(x, y), lambda: pipeline.evaluate([(x, y)]), lambda: pipeline.compile(x, y)]
    if "label" not in odd:
        calls += [lambda: pipeline.predict(x), lambda: pipeline.predict_exits(x), lambda: pipeline.features(x)]
    for call in calls:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_batches_of_float64_are_taken_and_lists_are_arrays():
    x, y = batch()
    wanted, *others = (trained("scpl", inputs, y)[0] for inputs in (x, x.astype(np.float64), x.tolist()))
    assert all(other == wanted for other in others)


@pytest.mark.parametrize(
    ("example", "message"),
    [([["a"]], "arrays of numbers"), (1.0, "first axis"), (np.ones((0, WIDTH)), "at least one example")],
)
def test_odd_examples_are_refused_by_decouple(example, message):
    blocks = [nnx.Linear(WIDTH, CLASSES, rngs=nnx.Rngs(i)) for i in range(2)]
    with pytest.raises(ValueError, match=message):
        scpl.decouple(blocks, 1, scpl.CrossEntropy(), example, nnx.Rngs(1))


def test_arrays_of_a_batch_have_as_many_examples_as_each_other():
    example = {"x": np.ones((4, 2), np.float32), "state": np.ones((2, 4), np.float32), "y": np.ones(4, np.float32)}
    with pytest.raises(ValueError, match="same number of examples, got state "):
        admit_inputs(example)
    # By the example it is known which arrays have no batch axis in front.
    example = {"a": example["x"], **example}
    admit_inputs({**example, "state": np.ones((2, 4), np.float32)}, example)
    with pytest.raises(ValueError, match="same number of examples, got a "):
        admit_inputs({**example, "y": np.ones(3, np.float32)}, example)


def test_numbers_of_classes_that_differ_are_refused():
    blocks = [nnx.Linear(WIDTH, n, rngs=nnx.Rngs(0)) for n in (WIDTH, CLASSES)]
    example = batch()[0]
    with pytest.raises(ValueError, match="the same number of classes, got 4, 7"):
        scpl.decouple(blocks, 1, scpl.LocalClassifier(7), example, nnx.Rngs(1))
    with pytest.raises(ValueError, match="the same number of classes, got 4, 7"):
        scpl.Mixture(((1.0, scpl.LocalClassifier(7)), (1.0, scpl.PredSim(4))))
    with pytest.raises(ValueError, match=r"must be a classifier that returns logits \(N, classes\)"):
        scpl.decouple([*blocks[:1], lambda_block()], 1, scpl.SupCon(head="identity"), example, nnx.Rngs(1))


def lambda_block():
    class Maps(nnx.Module):
        def __call__(self, x):
            return x[:, None, None]

    return Maps()
