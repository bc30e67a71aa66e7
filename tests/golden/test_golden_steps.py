"""Whole training steps of the released code, decoupled and by backpropagation, number for number."""

import functools
import itertools

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from stage_probe import inner_results, loaded, merged, output_shape, recorder
from torch_layout import (
    Golden,
    assert_after,
    assert_all_gradients,
    assert_losses,
    assert_outputs,
    block_layers,
    classifier_layers,
    head_layers,
    images_here,
    images_there,
    statistics_to_torch,
    to_torch,
)

from scpl_jax import CrossEntropy, Pipeline, SupCon, decouple
from scpl_jax.models.layers import Classifier
from scpl_jax.models.resnet import Residual, Stem
from scpl_jax.models.vgg import VGG8_LAYERS, vgg

# Blocks at which the reference's stages begin, and torch's names of the blocks of each stage.
NETWORKS = {
    "vgg": ((2, 4, 5), [["layer.0", "layer.1"], ["layer.0", "layer.1"], ["layer.0"], ["layer.0"]]),
    "resnet": ((3, 5, 7), [["head", "layer.0", "layer.1"]] + [["layer.0", "layer.1"]] * 3),
}


def vgg_blocks(golden):
    channels = golden.meta["channel_map"]
    _, colours, height, width = golden["in/x"].shape
    return vgg(
        [layer if layer == "M" else channels[str(layer)] for layer in VGG8_LAYERS],
        golden.meta["n_classes"],
        hidden=golden.meta["predictor_hidden"],
        image_shape=(height, width, colours),
        rngs=nnx.Rngs(0),
    )


def resnet_blocks(golden):
    common = {"init": "torch", "dtype": None, "rngs": nnx.Rngs(0)}
    widths = [golden.meta["channel_map"][name] for name in ("64", "128", "256", "512")]
    channels, side = widths[0], golden.meta["image"]
    blocks = [Stem(golden["in/x"].shape[1], channels, **common)]
    for group, width in enumerate(widths):
        for stride in (1 if group == 0 else 2, 1):
            unit = {"kernels": (3, 3), "stride": stride, "expansion": 1, "shortcut": "3x3"}
            blocks.append(Residual(channels, width, **unit, **common))
            channels, side = width, -(-side // stride)
    return [*blocks, Classifier((side, side, channels), golden.meta["n_classes"], pool=True, **common)]


def torch_name(network, stage, block):
    name = NETWORKS[network][1][stage][block]
    return "model.head.layer" if name == "head" else f"model.backbone-{stage}.{name}"


def describe(network, stages, x):
    """The tables of layers of all stages, however many of the reference's stages each holds."""
    names = [(k, j) for k, blocks in enumerate(NETWORKS[network][1]) for j in range(len(blocks))]
    tables, shape = [], x.shape
    for index, stage in enumerate(stages):
        layers, module = [], merged(stage)
        for position, block in enumerate(module.blocks):
            name = torch_name(network, *names[stage.blocks[0] + position])
            layers += block_layers(block, shape, ("blocks", position), name)
            shape = output_shape(block, shape)
        if module.loss is not None:
            name = f"model.backbone-{index}.loss.projector.layer.1"
            layers += head_layers(module.loss.head, shape, ("loss", "head"), name)
        if module.classifier is not None:
            parts = ["layer.1", "layer.3"] if network == "vgg" else ["layer"]
            parts = [f"model.predictor.{part}" for part in parts]
            layers += classifier_layers(module.classifier, shape, ("classifier",), parts)
        tables.append(layers)
    return tables


def every_stage(convert, trees, tables, *rest):
    """One dict of the values of all stages."""
    values = {}
    for tree, layers in zip(trees, tables, strict=True):
        values |= convert(tree, layers, *rest)
    return values


@pytest.mark.parametrize(
    ("network", "rule"),
    [
        pytest.param("vgg", "scpl", marks=pytest.mark.numeric),
        *itertools.product(["vgg"], ["bp", "bp over stages"]),
        *itertools.product(["resnet"], ["scpl", "bp", "bp over stages"]),
    ],
)
def test_step(network, rule):
    golden = Golden(f"{network}_{rule.split()[0]}_step")
    x, y = images_here(golden["in/x"]), golden["in/y"].astype(np.int32)
    blocks = (vgg_blocks if network == "vgg" else resnet_blocks)(golden)
    cut = NETWORKS[network][0]
    last = len(cut)
    if rule == "scpl":
        # The reference's ResNets average over the image before the last stage's local loss.
        objective = [SupCon(**golden.head(pooled=network == "resnet" and k == last)) for k in range(last + 1)]
        stages = decouple(blocks, last + 1, objective, x, nnx.Rngs(0), cut=cut)
    else:
        trained_in = cut if rule == "bp over stages" else ()
        stages = decouple(blocks, len(trained_in) + 1, CrossEntropy(), x, nnx.Rngs(0), cut=trained_in)
    tables = describe(network, stages, x)
    before = golden.section("before")
    stages = [loaded(stage, layers, before) for stage, layers in zip(stages, tables, strict=True)]

    params, rest = [stage.params for stage in stages], [stage.rest for stage in stages]
    results = jax.jit(functools.partial(inner_results, stages))(params, rest, x)
    outputs = results["blocks"]
    for k, stop in enumerate([*cut, len(outputs)]):
        features = outputs[stop - 1]
        if network == "resnet" and k == last:
            features = features.mean(axis=(1, 2), keepdims=True)
        name = f"out/feature_{k}" if rule == "scpl" else f"out/y_{k}"
        assert_outputs(name, images_there(features), golden[name])
    if network == "resnet":
        assert_outputs("out/y_head", images_there(outputs[0]), golden["out/y_head"])
    for k, z in enumerate(results["z"]):
        assert_outputs(f"out/z_{k}", z, golden[f"out/z_{k}"])
    assert_outputs("out/logits", results["logits"], golden["out/logits"])

    pipeline = Pipeline(stages, optax.chain(recorder(), optax.adam(golden.meta["adam"]["lr"])))
    metrics = pipeline.train_step(x, y)
    losses = [float(values["loss"]) for values in metrics if "loss" in values]
    classifier_loss = float(metrics[-1]["classifier_loss"])
    assert_losses("predictor_loss", classifier_loss, golden["out/predictor_loss"])
    if rule == "scpl":
        assert_losses("local_loss", losses, golden["out/local_loss"])
        losses[-1] += classifier_loss
    assert_losses("stage_loss", losses, golden["out/stage_loss"])
    assert_losses("loss_all", sum(losses), golden["out/loss_all"])
    states = pipeline.states
    gradient = every_stage(to_torch, [state.opt_state[0] for state in states], tables)
    assert_all_gradients(gradient, golden.section("grad"))
    assert_after(
        golden,
        every_stage(to_torch, [state.params for state in states], tables),
        every_stage(statistics_to_torch, [state.rest for state in states], tables, before),
    )

    after = golden.section("after")
    stages = [loaded(stage, layers, after) for stage, layers in zip(stages, tables, strict=True)]
    for state, stage in zip(pipeline.states, stages, strict=True):
        state.params, state.rest = stage.params, stage.rest
    assert_outputs("logits_eval_after", pipeline.predict(x), golden["out/logits_eval_after"])
