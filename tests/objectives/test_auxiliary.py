"""Auxiliary networks: what is read through what, which blocks they are made of, and what they cost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.models.resnet import resnet
from scpl_jax.objectives import Blocks, Conv, Dgl, Place
from scpl_jax.pipeline.exits import StopRule
from scpl_jax.stages import cost, evaluate, gradients
from scpl_jax.stages.cost import build_loss

IMAGES, TOKENS = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.float32), jax.ShapeDtypeStruct((8, 6), jnp.int32)
NETWORKS = {
    "vgg8": (IMAGES, lambda rngs: scpl.models.vgg8(4, width=1 / 32, image_shape=(16, 16, 3), rngs=rngs)),
    "cnn": (IMAGES, lambda rngs: scpl.models.cnn(4, width=1 / 8, image_shape=(16, 16, 3), rngs=rngs)),
    "resnet": (
        IMAGES,
        lambda rngs: resnet((1, 1, 1, 1), 4, bottleneck=True, width=1 / 16, image_shape=(16, 16, 3), rngs=rngs),
    ),
    "lstm": (TOKENS, lambda rngs: scpl.models.lstm(4, vocabulary=9, size=6, hidden=8, rngs=rngs)),
    "transformer": (
        TOKENS,
        lambda rngs: scpl.models.transformer(4, vocabulary=9, size=6, heads=2, hidden=8, dropout=0.0, rngs=rngs),
    ),
}


def arrays(example, seed=0):
    rng = np.random.default_rng(seed)
    if example.dtype == jnp.int32:
        return rng.integers(1, 9, example.shape).astype(np.int32)
    return rng.normal(size=example.shape).astype(np.float32)


def auxiliary_of(stage):
    return nnx.merge(stage.train_graph, stage.params, stage.rest).loss.auxiliary


@pytest.mark.parametrize(("name", "width"), [*((name, 0.5) for name in NETWORKS), ("lstm", 1.0)])
def test_blocks_are_of_the_networks_own_kind_and_other_values(name, width):
    example, make = NETWORKS[name]
    network = make(nnx.Rngs(0))
    objective = scpl.LocalClassifier(4, aux=Blocks(width=width))
    stages = scpl.decouple(network, 3, objective, example, nnx.Rngs(1), cut=(1, 2))
    kinds = [type(block) for block in network[:-1]]
    for stage, depth in zip(stages, (2, min(2, len(kinds) - 2), 0), strict=True):
        made = [layer for layer in auxiliary_of(stage).layers if type(layer) in kinds]
        assert len(made) == depth
        assert all(type(block) is kinds[-1] for block in made[-1:])
    one = auxiliary_of(stages[0]).layers
    values = [jax.tree.leaves(nnx.state(block, nnx.Param)) for block in (network[-2], one[-2])]
    if width == 1:
        assert not any(np.array_equal(a, b) for a, b in zip(*values, strict=True) if a.shape == b.shape and a.ndim > 1)
    else:
        assert sum(leaf.size for leaf in values[1]) < sum(leaf.size for leaf in values[0])


def test_later_blocks_are_sampled_evenly_and_depth_falls_from_stage_to_stage():
    taken = []

    def architecture(number):
        def another(features, *, width, rngs):
            taken.append((number, width))
            return nnx.Linear(6, 6, rngs=rngs)

        return another

    features, later = jax.ShapeDtypeStruct((8, 6), jnp.float32), tuple(architecture(i) for i in range(6))
    blocks = Blocks(depth=3, width=0.5)
    found = []
    for stage in range(4):
        taken.clear()
        blocks.at(Place(stage, 4, later[stage * 2 :]))(features, None, rngs=nnx.Rngs(0))
        found.append([number for number, width in taken if width == 0.5])
    assert found == [[1, 3, 5], [2, 3, 5], [4, 5], []]


def test_a_network_of_ones_own_needs_a_factory():
    blocks = [nnx.Linear(6, 6, rngs=nnx.Rngs(i)) for i in range(3)] + [nnx.Linear(6, 4, rngs=nnx.Rngs(9))]
    example = jax.ShapeDtypeStruct((8, 6), jnp.float32)
    with pytest.raises(ValueError, match=r"no attribute architecture; give Blocks\(factory=...\)"):
        scpl.decouple(blocks, 3, scpl.LocalClassifier(4, aux="blocks"), example, nnx.Rngs(1))

    def factory(features, *, rngs):
        return nnx.Sequential(nnx.Linear(features.shape[-1], 5, rngs=rngs), nnx.relu)

    stages = scpl.decouple(blocks, 3, scpl.LocalClassifier(4, aux=Blocks(factory=factory)), example, nnx.Rngs(1))
    first = auxiliary_of(stages[0])
    assert [layer.layers[0].kernel.shape for layer in first.layers[:2]] == [(6, 5), (5, 5)]


def test_a_builder_of_ones_own_gets_the_message_and_the_labels_and_its_loss_the_summary():
    seen = []

    class Last(nnx.Module):
        def __init__(self, size, rngs):
            self.linear = nnx.Linear(size, 5, rngs=rngs)

        def __call__(self, message):
            return self.linear(message.sequence[:, -1])

    def build(features, targets, *, rngs):
        seen.append((features.sequence.shape, targets.shape, targets.dtype))
        return Last(features.sequence.shape[-1], rngs)

    example, make = NETWORKS["lstm"]
    stages = scpl.decouple(make(nnx.Rngs(0)), 2, scpl.SupCon(head="identity", aux=build), example, nnx.Rngs(1))
    assert ((8, 6, 16), (8,), jnp.int32) in seen
    gradient, (_, _, metrics) = gradients(
        stages[0], stages[0].params, stages[0].rest, arrays(example), np.arange(8) % 4
    )
    assert np.isfinite(metrics["loss"])
    assert float(optax.tree.norm(gradient["loss"]["auxiliary"])) > 0
    with pytest.raises(ValueError, match=r"must be an nnx\.Module or None, got a function"):
        scpl.decouple(make(nnx.Rngs(0)), 2, scpl.SupCon(aux=lambda *_, rngs: lambda x: x), example, nnx.Rngs(1))


@pytest.mark.parametrize("aux", [Dgl(), Conv(), Blocks()])
def test_an_exit_reads_through_it_and_nothing_of_it_is_handed_on(aux):
    example, make = NETWORKS["vgg8"]
    images = arrays(example)
    with_aux, without = (
        scpl.decouple(make(nnx.Rngs(0)), 2, scpl.LocalClassifier(4, aux=one), example, nnx.Rngs(1), cut=(2,))[0]
        for one in (aux, None)
    )
    message, logits = evaluate(with_aux, with_aux.params, with_aux.rest, images)
    plain, others = evaluate(without, without.params, without.rest, images)
    np.testing.assert_array_equal(message, plain)
    module = nnx.merge(with_aux.eval_graph, with_aux.params, with_aux.rest).loss
    np.testing.assert_allclose(module.loss.logits(module.auxiliary(message)), logits, rtol=1e-6)
    assert not np.allclose(logits, others)


def test_each_stages_own_is_in_its_price_and_moves_the_cut():
    example, make = NETWORKS["lstm"]
    blocks = make(nnx.Rngs(0))

    def stages_of(aux, cut="auto"):
        return scpl.decouple(blocks, 3, scpl.LocalClassifier(4, aux=aux), example, nnx.Rngs(1), cut=cut)

    plain, heavy = stages_of(None), stages_of("blocks")
    assert [stage.blocks for stage in plain] != [stage.blocks for stage in heavy]
    assert heavy[0].loss_cost > plain[0].loss_cost
    dearest = [max(stage.cost for stage in stages_of("blocks", cut)) for cut in ((1, 2), (1, 3), (2, 3))]
    assert max(stage.cost for stage in heavy) == min(dearest)


def test_the_gradient_of_the_classifier_reaches_the_last_stage_where_asked_for():
    example, make = NETWORKS["vgg8"]
    images, labels = arrays(example), np.arange(8) % 4
    norms = []
    for through in (False, True):
        # All that the objective itself trains is its own classifier.
        objective = scpl.LocalClassifier(4, detach=True, classifier_gradient=through)
        stage = scpl.decouple(make(nnx.Rngs(0)), 1, objective, example, nnx.Rngs(1))[0]
        gradient, _ = gradients(stage, stage.params, stage.rest, images, labels)
        norms.append(float(optax.tree.norm(gradient["blocks"])))
    assert norms[0] == 0
    assert norms[1] > 0


def test_reconstruction_compares_with_the_averaged_input_and_counts_less_from_stage_to_stage():
    example, make = NETWORKS["vgg8"]
    images, labels = arrays(example), np.array([0, 1, 2, 3, -1, 0, 1, -1])
    mixed = scpl.Mixture(((2.0, scpl.LocalClassifier(4)), (3.0, scpl.Reconstruction(hidden=5))))
    stages = scpl.decouple(make(nnx.Rngs(0)), 2, (mixed, scpl.CrossEntropy()), example, nnx.Rngs(1), cut=(2,))
    stage = stages[0]
    _, (message, _, metrics) = gradients(stage, stage.params, stage.rest, images, labels)
    loss = nnx.merge(stage.train_graph, stage.params, stage.rest).loss
    features = message.features
    decoder = loss.losses[1]
    decoded = decoder.second(decoder.first(features))
    averaged = images.reshape(8, 8, 2, 8, 2, 3).mean((2, 4))
    squares = ((np.asarray(decoded) - averaged) ** 2).mean((1, 2, 3))[labels >= 0].mean()
    expected = 2 * float(scpl.cross_entropy(loss.losses[0].logits(features), labels)) + 3 * 1.0 * squares
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(message.companion[0], images)
    # What is left out may be anything.
    spoiled = images.copy()
    spoiled[7] = np.inf
    alone = scpl.Reconstruction().at(Place(1, 2, (), example))
    assert alone.weight == 0.5
    module = alone.build(features, rngs=nnx.Rngs(0))
    assert np.isfinite(module(features, jnp.array(labels), spoiled))
    whole = scpl.Pipeline(stages, optax.adam(1e-3), jax.devices()[:2])
    assert np.isfinite(float(whole.train_step(images, labels)[1]["loss"]))


def test_stages_that_send_the_same_along_may_differ_in_their_other_terms():
    example, make = NETWORKS["vgg8"]
    images, labels = arrays(example), np.arange(8) % 4
    recon, classifier = (0.5, scpl.Reconstruction(hidden=5)), (1.0, scpl.LocalClassifier(4))
    contrastive = (1.0, scpl.SupCon(head="linear", head_dims=(4,)))
    mixed = [scpl.Mixture(terms) for terms in ((recon, contrastive), (contrastive, classifier, recon), (recon,))]
    stages = scpl.decouple(make(nnx.Rngs(0)), 3, mixed, example, nnx.Rngs(1), cut=(1, 2))
    np.testing.assert_array_equal([len(stage.example.companion) for stage in stages[1:]], [1, 1])
    pipeline = scpl.Pipeline(stages, optax.adam(1e-3), jax.devices()[:2])
    assert np.isfinite([float(one["loss"]) for one in pipeline.train_step(images, labels)]).all()
    mixed[1] = scpl.Mixture((contrastive, classifier))
    with pytest.raises(ValueError, match="all stages need it or none"):
        scpl.decouple(make(nnx.Rngs(0)), 3, mixed, example, nnx.Rngs(1), cut=(1, 2))


def test_what_reconstruction_cannot_use_is_refused():
    example, make = NETWORKS["lstm"]
    with pytest.raises(ValueError, match=r"needs images \(N, H, W, C\) as the network's input, got \[\(8, 6\)\]"):
        scpl.decouple(make(nnx.Rngs(0)), 2, scpl.Reconstruction(), example, nnx.Rngs(1))
    with pytest.raises(ValueError, match=r"conv needs a feature map \(N, H, W, C\)"):
        scpl.decouple(make(nnx.Rngs(0)), 2, scpl.LocalClassifier(4, aux="conv"), example, nnx.Rngs(1))
    with pytest.raises(ValueError, match="depend on the place of their stage"):
        Blocks()(IMAGES, None, rngs=nnx.Rngs(0))
    pair = (scpl.Mixture(((1.0, scpl.Reconstruction()),)), scpl.LocalClassifier(4))
    vgg = NETWORKS["vgg8"][1](nnx.Rngs(0))
    with pytest.raises(ValueError, match="all stages need it or none"):
        scpl.decouple(vgg, 2, pair, IMAGES, nnx.Rngs(1))


def test_descriptions_are_values():
    assert scpl.SupCon(aux="conv") == scpl.SupCon(aux=Conv())
    assert dataclasses.replace(Dgl(), width=0.5) == Dgl(width=0.5)
    assert len({Dgl(), Dgl(), Blocks()}) == 2


@pytest.mark.parametrize("aux", [None, Conv()])
def test_the_share_of_an_exit_counts_the_auxiliary_network_that_it_reads_through(aux):
    example, make = NETWORKS["vgg8"]
    batch = arrays(example), np.arange(8) % 4
    objectives = (scpl.LocalClassifier(4, aux=aux), scpl.LocalClassifier(4, aux=aux))
    stages = scpl.decouple(make(nnx.Rngs(0)), 2, objectives, example, nnx.Rngs(1), cut=(2,))
    pipeline = scpl.Pipeline(stages, optax.adam(1e-3), jax.devices()[:1])
    found = pipeline.evaluate([batch], [StopRule(confidence=1e-6)])
    first, second = stages
    # The last stage answers by the network's classifier.
    paid = first.cost - (0 if aux else first.loss_cost)
    share = paid / (paid + second.cost - second.loss_cost)
    assert [one["share"] for one in found["exits"]] == pytest.approx([share, 1])
    assert found["stops"][0]["share"] == pytest.approx(share)


def test_stages_with_equal_objectives_share_their_costs(monkeypatch):
    example, make = NETWORKS["lstm"]
    asked = []

    def counted(*given):
        asked.append(given)
        return build_loss(*given)

    monkeypatch.setattr(cost, "build_loss", counted)
    each = [scpl.SupCon(temperature=0.2) for _ in range(3)]
    blocks = make(nnx.Rngs(0))
    scpl.decouple(blocks, 3, each, example, nnx.Rngs(1))
    # Behind each block a stage may end; the last one is the classifier.
    assert len(asked) == len(blocks) - 1
