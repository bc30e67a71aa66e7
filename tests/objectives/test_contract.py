"""What every objective must do; add yours to OBJECTIVES to have it checked."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx

import scpl_jax as scpl
from scpl_jax.objectives import Blocks, Dgl
from scpl_jax.stages import gradients
from scpl_jax.training import CheckpointStore
from scpl_jax.training.checkpoints import Progress

CLASSES = 4
HEAD = {"head_dims": (8, 6), "head_pool": 2}
OBJECTIVES = {
    "supcon": scpl.SupCon(**HEAD),
    "supcon with a queue": scpl.SupCon(**HEAD, queue=12),
    "linear classifier": scpl.LocalClassifier(CLASSES),
    "classifier with a hidden layer": scpl.LocalClassifier(CLASSES, hidden=(8,), pool=1),
    "predsim": scpl.PredSim(CLASSES),
    "inforeg": scpl.InfoReg(CLASSES, dims=(8, 6)),
    "associated": scpl.Associated(CLASSES, code=6, hidden=8),
    "mixture": scpl.Mixture(((1.0, scpl.SupCon(**HEAD)), (0.5, scpl.LocalClassifier(CLASSES)))),
    "supcon through blocks": scpl.SupCon(**HEAD, aux=Blocks(width=0.5, side=4)),
    "classifier through dgl": scpl.LocalClassifier(CLASSES, aux=Dgl(depth=1), classifier_gradient=True),
    "mixture through conv": scpl.Mixture(
        ((1.0, scpl.SupCon(**HEAD)), (0.5, scpl.LocalClassifier(CLASSES)), (1.0, scpl.Reconstruction())), aux="conv"
    ),
    "reconstruction": scpl.Reconstruction(),
}
# Those whose stages, but for the last one with its classifier, can't tell classes.
NO_EXIT = {"supcon", "supcon with a queue", "supcon through blocks", "reconstruction"}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def stages_of(small_vgg, batch, objective, dtype=np.float32):
    classifier = objective.takes_classifier
    blocks = small_vgg() if classifier else small_vgg()[:-1]
    example = jax.ShapeDtypeStruct(batch[0].shape, dtype)
    return scpl.decouple(blocks, 2, objective, example, nnx.Rngs(1), cut=(1,), classifier=classifier)


def pipeline_of(small_vgg, batch, name, max_in_flight=4, devices=2):
    stages = stages_of(small_vgg, batch, OBJECTIVES[name])
    return scpl.Pipeline(stages, optax.adam(3e-3), jax.devices()[:devices], max_in_flight=max_in_flight)


def losses_of(metrics):
    return [float(values["loss"]) for values in metrics]


@every_objective
def test_learns_the_same_pipelined_and_synchronous_compiles_once_and_survives_a_checkpoint(
    small_vgg, batch, name, tmp_path
):
    piped, synchronous = pipeline_of(small_vgg, batch, name), pipeline_of(small_vgg, batch, name, 1, devices=1)
    found, compiled = [], None
    for _ in range(25):
        found.append(piped.train_step(*batch))
        synchronous.train_step(*batch)
        compiled = compiled or piped.compile_seconds
    # From the third step on: with every pair that a queue has more the loss is larger, until it is full.
    first, last = losses_of(found[2]), losses_of(found[-1])
    assert np.isfinite(last).all()
    assert all(after < before for before, after in zip(first, last, strict=True))
    assert piped.compile_seconds == compiled
    chex.assert_trees_all_equal(*(jax.device_get(one.states) for one in (piped, synchronous)))
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(piped, Progress())
    store.wait()
    synchronous.train_step(*batch)  # what is restored is not what is there already
    store.restore(synchronous)
    store.close()
    chex.assert_trees_all_equal(*(jax.device_get(pipeline.states) for pipeline in (piped, synchronous)))
    predicted = piped.predict(batch[0])
    assert predicted.shape == (8, CLASSES)
    np.testing.assert_array_equal(predicted, synchronous.predict(batch[0]))
    exits = piped.predict_exits(batch[0])
    assert sorted(exits) == ([1] if name in NO_EXIT else [0, 1])
    np.testing.assert_array_equal(exits[1], predicted)


@every_objective
def test_no_stage_gets_a_gradient_of_another(small_vgg, batch, name):
    stages = stages_of(small_vgg, batch, OBJECTIVES[name])

    def losses(all_params):
        message, values = batch[0], []
        for stage, params in zip(stages, all_params, strict=True):
            _, (message, _, metrics) = gradients(stage, params, stage.rest, message, batch[1])
            values.append(metrics["loss"])
        return jnp.stack(values)

    # For each stage a gradient of both losses, one behind the other along the first axis.
    found = jax.jit(jax.jacrev(losses))([stage.params for stage in stages])
    for which in range(2):
        norms = [float(optax.tree.norm(jax.tree.map(lambda x, loss=which: x[loss], one))) for one in found]
        assert np.isfinite(norms).all()
        assert [norm == 0 for norm in norms] == [index != which for index in range(2)]


@every_objective
def test_value_and_gradient_are_finite(small_vgg, batch, name):
    stage = stages_of(small_vgg, batch, OBJECTIVES[name])[0]
    run = jax.jit(lambda params, x, labels: gradients(stage, params, stage.rest, x, labels))
    for what, scale, labels in [
        ("zero input", 0.0, [0, 1, 2, 3] * 2),
        ("huge input", 1e4, [0, 1, 2, 3] * 2),
        ("one class", 1.0, [2] * 8),
    ]:
        gradient, (_, _, metrics) = run(stage.params, batch[0] * np.float32(scale), np.array(labels, np.int32))
        assert np.isfinite(float(metrics["loss"])), what
        assert np.isfinite(float(optax.tree.norm(gradient))), what


@every_objective
def test_keeps_its_dtypes_in_bfloat16(small_vgg, batch, name):
    stages = stages_of(small_vgg, batch, OBJECTIVES[name], jnp.bfloat16)
    for stage in stages[:1]:
        message = jax.ShapeDtypeStruct(batch[0].shape, jnp.bfloat16)
        gradient, (_, rest, metrics) = jax.eval_shape(
            lambda params, rest, x, stage=stage: gradients(stage, params, rest, x, batch[1]),
            stage.params,
            stage.rest,
            message,
        )
        assert metrics["loss"].dtype == jnp.float32
        chex.assert_trees_all_equal_shapes_and_dtypes(gradient, stage.params)
        chex.assert_trees_all_equal_shapes_and_dtypes(rest, stage.rest)


class NotOneArray(nnx.Module):
    def __call__(self, x):
        return {"features": x, "mask": x > 0}


@every_objective
def test_a_message_that_it_cannot_use_is_refused_in_one_sentence(batch, name):
    objective = OBJECTIVES[name]
    with pytest.raises(ValueError, match=r"needs (features that are one array|a feature map)"):
        scpl.decouple([NotOneArray()], 1, objective, batch[0], nnx.Rngs(0), classifier=False)


def test_values_out_of_range_are_refused():
    for make, what in [
        (lambda: scpl.LocalClassifier(0), "number of classes must be at least 1, got 0"),
        (lambda: scpl.LocalClassifier(3, hidden=(0,)), "hidden sizes"),
        (lambda: scpl.PredSim(3, weights=(-1.0, 1.0)), "weights must be at least 0"),
        (lambda: scpl.InfoReg(3, classifier_weight=-1.0), "classifier_weight must be at least 0"),
        (lambda: scpl.Associated(3, code=0), "code must be at least 1 and hidden 0 or more, got 0"),
        (lambda: scpl.Associated(3, bounded="no"), "bounded must be one of all, first, none, got 'no'"),
        (lambda: scpl.Mixture(()), "at least one term"),
        (lambda: scpl.Mixture(((0.0, scpl.SupCon()),)), "greater than 0, got 0"),
        (lambda: scpl.Mixture(((1.0, scpl.CrossEntropy()),)), "no local loss"),
        (
            lambda: scpl.Mixture(((1.0, scpl.SupCon(aux="conv")),)),
            "SupCon in a mixture has aux; give it to the mixture",
        ),
        (lambda: scpl.Mixture(((1.0, scpl.Associated(3)),)), "go back through the stages and can't be mixed"),
        (lambda: scpl.Reconstruction(hidden=0), "hidden must be at least 1, got 0"),
        (lambda: scpl.SupCon(aux="mlp"), "unknown auxiliary network 'mlp'; choose one of dgl, conv, blocks"),
        (lambda: scpl.SupCon(aux=3), "aux must be a name, a function or None, got 3"),
        (lambda: Blocks(depth=0), "depth at least 1, got None and 0"),
        (lambda: Blocks(width=0), "width must be a number greater than 0, got 0"),
        (lambda: Blocks(factory=nnx.Linear, width=0.5), "a factory makes blocks of its own width, got width 0.5"),
    ]:
        with pytest.raises(ValueError, match=what):
            make()


def test_all_stages_or_none_hand_codes_on(small_vgg, batch):
    pair = [scpl.Associated(CLASSES), scpl.SupCon(**HEAD)]
    with pytest.raises(ValueError, match="all stages need it or none"):
        scpl.decouple(small_vgg()[:-1], 2, pair, batch[0], nnx.Rngs(0), classifier=False)
    with pytest.raises(ValueError, match="classifier=False"):
        scpl.decouple(small_vgg(), 2, scpl.Associated(CLASSES), batch[0], nnx.Rngs(0))


def test_every_exported_objective_is_checked_here():
    exported = {
        value
        for value in vars(scpl).values()
        if isinstance(value, type) and issubclass(value, scpl.Objective) and dataclasses.is_dataclass(value)
    }
    assert exported - {scpl.CrossEntropy} == {type(objective) for objective in OBJECTIVES.values()}


def test_an_objective_of_ones_own_may_name_its_fields_as_it_likes(batch, small_vgg):
    # A field named as an attribute of the base class that can't be set would fail in the dataclass's own constructor.
    @dataclasses.dataclass(frozen=True)
    class Own(scpl.Objective):
        classes: int

        def build(self, features, *, rngs):
            return scpl.LocalClassifier(self.classes).build(features, rngs=rngs)

    pipeline = scpl.Pipeline(scpl.decouple(small_vgg(), 2, Own(CLASSES), batch[0], nnx.Rngs(0)), optax.sgd(0.1))
    chex.assert_tree_all_finite(losses_of(pipeline.train_step(*batch)))


@pytest.mark.numeric
def test_a_mixture_is_the_weighted_sum_of_its_terms():
    head = scpl.SupCon(head="identity")
    features, labels = jax.random.normal(jax.random.key(0), (8, 6)), jnp.arange(8) % 3
    mixed = scpl.Mixture(((2.0, head), (0.5, scpl.LocalClassifier(CLASSES)))).build(features, rngs=nnx.Rngs(0))
    contrastive, classifier = (loss(features, labels) for loss in mixed.losses)
    assert_close(mixed(features, labels), 2.0 * contrastive + 0.5 * classifier, 1e-5)
    np.testing.assert_array_equal(mixed.logits(features), mixed.losses[1].logits(features))
