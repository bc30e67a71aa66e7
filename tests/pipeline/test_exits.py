"""Early exits: which examples stop where, and what is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx

import scpl_jax as scpl
from scpl_jax.pipeline.exits import StopRule, count, summary, zero

# three exits, four examples, two classes
PROBABILITIES = np.array(
    [
        [[0.95, 0.05], [0.60, 0.40], [0.45, 0.55], [0.50, 0.50]],
        [[0.10, 0.90], [0.90, 0.10], [0.40, 0.60], [0.45, 0.55]],
        [[0.20, 0.80], [0.10, 0.90], [0.30, 0.70], [0.40, 0.60]],
    ]
)
LOGITS = np.log(PROBABILITIES).astype(np.float32)


def test_confidence_stops_at_the_first_exit_that_is_sure_and_at_the_last_anyhow():
    assert StopRule(confidence=0.85).exits(jnp.asarray(LOGITS)).tolist() == [0, 1, 2, 2]
    assert StopRule(confidence=1.0).exits(jnp.asarray(LOGITS)).tolist() == [2] * 4
    assert StopRule(confidence=0.5).exits(jnp.asarray(LOGITS)).tolist() == [0] * 4


def test_patience_stops_where_exits_agreed_often_enough():
    rule = StopRule(patience=1, similarity=0.85)
    # example 0 changes its class, then agrees; 1 never twice the same; 2 agrees at once; 3 changes from a tie
    assert rule.exits(jnp.asarray(LOGITS)).tolist() == [2, 1, 1, 2]
    assert StopRule(patience=2, similarity=0.85).exits(jnp.asarray(LOGITS)).tolist() == [2] * 4


def test_counts_every_example_once_and_leaves_out_those_without_a_label():
    rules = [StopRule(confidence=0.85)]
    labels = jnp.array([0, 0, 1, -1])
    totals = count(rules, zero(3, 1, 2), list(LOGITS), labels)
    totals = count(rules, totals, list(LOGITS[:, ::-1]), labels[::-1])
    found = summary(jax.tree.map(lambda x: x.tolist(), totals), [0, 1, 3], [1.0, 1.0, 1.0, 1.0])
    assert found["examples"] == 6
    assert [one["stage"] for one in found["exits"]] == [0, 1, 3]
    assert [one["share"] for one in found["exits"]] == [0.25, 0.5, 1.0]
    np.testing.assert_allclose([one["accuracy"] for one in found["exits"]], [1.0, 2 / 3, 1 / 3])
    # Of the mean of the probabilities so far: the first example has 0.95, 0.525, 0.42 for its class, the second
    # 0.6, 0.75, 0.53, though its last exit alone is wrong.
    np.testing.assert_allclose([one["joint_accuracy"] for one in found["exits"]], [1.0, 1.0, 2 / 3])
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["stops"][0]["accuracy"] == 1.0
    assert found["stops"][0]["share"] == pytest.approx((0.25 + 0.5 + 1.0) / 3)
    assert found["confusion"] == [[0, 4], [0, 2]]
    expected = -np.log([0.2, 0.1, 0.7]).mean()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "either a confidence or a patience"),
        ({"confidence": 0.5, "patience": 1}, "either a confidence or a patience"),
        ({"confidence": 0.0}, "confidence must be greater than 0"),
        ({"confidence": 1.5}, "at most 1, got 1.5"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"patience": 1, "similarity": 0.0}, "similarity must be greater than 0"),
    ],
)
def test_wrong_rules_are_refused(options, what):
    with pytest.raises(ValueError, match=what):
        StopRule(**options)


@pytest.mark.parametrize(
    ("kind", "devices"), [("classifiers", 1), ("classifiers", 2), ("associated", 2), ("associated by squares", 1)]
)
def test_the_pipeline_counts_what_its_exits_say(small_vgg, batch, kind, devices):
    """Against the logits of each exit; associated learning's answers come back through the stages."""
    images, labels = batch
    if kind.startswith("associated"):
        sums = (
            {"first_loss": "mse", "bounded": "all", "activation": "sigmoid"} if kind == "associated by squares" else {}
        )
        objective, blocks, classifier = scpl.Associated(4, code=6, hidden=8, **sums), small_vgg()[:-1], False
    else:
        objective, blocks, classifier = scpl.LocalClassifier(4), small_vgg(), True
    stages = scpl.decouple(blocks, 3, objective, images, nnx.Rngs(1), classifier=classifier)
    pipeline = scpl.Pipeline(stages, optax.adam(1e-3), jax.devices()[:devices])
    pipeline.train_step(images, labels)
    exits = pipeline.predict_exits(images)
    assert sorted(exits) == [0, 1, 2]
    rules = [StopRule(confidence=0.3), StopRule(patience=1)]
    found = pipeline.evaluate([(images, labels)] * 2, rules)
    assert found["examples"] == 16
    for one in found["exits"]:
        right = np.argmax(np.asarray(exits[one["stage"]]), axis=1) == labels
        assert one["accuracy"] == pytest.approx(right.mean())
    last = found["exits"][-1]
    assert (last["stage"], last["accuracy"], last["share"]) == (2, found["accuracy"], 1.0)
    stacked = jnp.stack([jnp.asarray(np.asarray(exits[k])) for k in range(3)])
    if kind == "associated by squares":  # scores, to be normalised
        stacked = jnp.log(jnp.maximum(stacked, 1e-6))
    probabilities = np.asarray(jax.nn.softmax(stacked, axis=-1))
    for until, one in enumerate(found["exits"], 1):
        right = probabilities[:until].mean(axis=0).argmax(axis=1) == labels
        assert one["joint_accuracy"] == pytest.approx(right.mean())
    # The same network answering by all exits together.
    pipeline.joint_answer = True
    together = probabilities.mean(axis=0)
    assert_close(np.exp(pipeline.predict(images)), together, 1e-5)
    jointly = pipeline.evaluate([(images, labels)] * 2, rules)
    assert jointly["accuracy"] == pytest.approx(found["exits"][-1]["joint_accuracy"])
    assert jointly["loss"] == pytest.approx(-np.log(together[np.arange(8), labels]).mean(), rel=1e-4)
    assert np.trace(jointly["confusion"]) == 2 * (together.argmax(axis=1) == labels).sum()
    assert (jointly["exits"], jointly["stops"]) == (found["exits"], found["stops"])
    shares = np.array([one["share"] for one in found["exits"]])
    assert (np.diff(shares) > 0).all()
    for rule, stop in zip(rules, found["stops"], strict=True):
        at = np.asarray(rule.exits(stacked))
        right = np.argmax(np.asarray(stacked)[at, np.arange(8)], axis=1) == labels
        assert stop["accuracy"] == pytest.approx(right.mean())
        assert stop["share"] == pytest.approx(shares[at].mean())


@pytest.mark.numeric
def test_shortcuts_of_associated_learning_decode_by_the_stages_before(small_vgg, batch):
    """Exit k is h_0(... h_k(b_k(features of stage k)))."""
    images, _ = batch
    objective = scpl.Associated(4, code=6, hidden=8)
    stages = scpl.decouple(small_vgg()[:-1], 3, objective, images, nnx.Rngs(1), classifier=False)
    pipeline = scpl.Pipeline(stages, optax.adam(1e-3), jax.devices()[:1])
    modules = [nnx.merge(stage.eval_graph, stage.params, stage.rest, copy=True) for stage in stages]
    features, exits = images, pipeline.predict_exits(images)
    for k, module in enumerate(modules):
        for block in module.blocks:
            features = block(features)
        code = module.loss.predict_code(features)
        for earlier in reversed(modules[: k + 1]):
            code = earlier.loss.decode(code)
        assert_close(exits[k], code, 1e-5)
