"""A step of associated learning, and its inference, of two released codes, number for number."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from stage_probe import loaded, merged, output_shape, recorder
from torch_layout import (
    Golden,
    Layer,
    assert_after,
    assert_all_gradients,
    assert_losses,
    assert_outputs,
    block_layers,
    images_here,
    images_there,
    load,
    statistics_to_torch,
    to_torch,
)

from scpl_jax import Associated, Pipeline, decouple
from scpl_jax.models.layers import conv
from scpl_jax.models.vgg import VGGBlock


class PlainBlock(nnx.Module):
    """Convolution and ReLU."""

    def __init__(self, channels, width, stride):
        self.conv = conv(channels, width, 3, stride=stride, use_bias=True, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return jax.nn.relu(self.conv(x))


def network(name, golden):
    """Blocks of each component, its name in torch, the names of its parts, and the objective."""
    classes, channels, stages = golden.meta["n_classes"], 3, []
    if name == "pal_vgg_step":
        for layers in golden.meta["cfg"]:
            blocks = []
            for width in layers[:-1]:
                pool = width == layers[-2]
                blocks.append(VGGBlock(channels, width, pool=pool, rngs=nnx.Rngs(0)))
                channels = width
            stages.append(blocks)
        sizes = {"code": golden.meta["y_out"], "hidden": golden.meta["hid_dim"]}
    else:
        for width, stride in golden.meta["convs"]:
            plain = name == "al_step"
            one = (
                PlainBlock(channels, width, stride) if plain else VGGBlock(channels, width, pool=True, rngs=nnx.Rngs(0))
            )
            stages.append([one])
            channels = width
        sizes = {"code": golden.meta["hidden"], "hidden": 5 * golden.meta["hidden"]}
    bounded = "none" if name == "al_step" else "all"
    return stages, Associated(classes, pool=0, activation="sigmoid", bounded=bounded, first_loss="mse", **sizes)


def block_names(name, stage, position):
    if name == "pal_vgg_step":
        return f"seq.{stage}.enc.f.seq.{position}.seq"
    return f"{stage}.f.0" if name == "al_step_vgg" else f"{stage}.f"


def loss_layers(name, stage, shape):
    flattened = shape[1:]
    bridge, g, h = (
        (f"seq.{stage}.enc.b", f"seq.{stage}.ae.g", f"seq.{stage}.ae.h")
        if name == "pal_vgg_step"
        else (f"{stage}.b", f"{stage}.g", f"{stage}.inv")
    )
    return [
        Layer(("loss", "bridge", "layers", 0, "linear"), f"{bridge}.1", flattened),
        Layer(("loss", "bridge", "layers", 1, "linear"), f"{bridge}.3"),
        Layer(("loss", "encoder"), f"{g}.0"),
        Layer(("loss", "decoder"), f"{h}.0"),
    ]


@pytest.mark.parametrize("name", ["al_step", "al_step_vgg", "pal_vgg_step"])
def test_step(name):
    golden = Golden(name)
    x = images_here(golden["in/x"])
    y = golden["in/y_onehot"].argmax(axis=1).astype(np.int32)
    per_stage, objective = network(name, golden)
    blocks = [block for blocks in per_stage for block in blocks]
    cut = tuple(np.cumsum([len(blocks) for blocks in per_stage])[:-1].tolist())
    stages = decouple(blocks, len(per_stage), objective, x, nnx.Rngs(0), cut=cut, classifier=False)
    tables, shape = [], x.shape
    for k, stage in enumerate(stages):
        layers = []
        for position, block in enumerate(merged(stage).blocks):
            torch_name = block_names(name, k, position)
            if name == "al_step":
                layers.append(Layer(("blocks", position, "conv"), f"{torch_name}.0"))
            else:
                layers += block_layers(block, shape, ("blocks", position), torch_name)
            shape = output_shape(block, shape)
        tables.append(layers + loss_layers(name, k, shape))
    before = golden.section("before")
    stages = [loaded(stage, layers, before) for stage, layers in zip(stages, tables, strict=True)]
    pipeline = Pipeline(stages, optax.chain(recorder(), optax.adam(golden.meta["adam"]["lr"])))
    assert_outputs("inference_before", pipeline.predict(x), golden["out/inference_before"])

    handed_on = []
    pipeline.record = lambda task, group, given, values: handed_on.append(given)
    metrics = pipeline.train_step(x, y)
    for k, (features, code) in enumerate(handed_on[1:]):
        assert_outputs(f"s_{k}", images_there(features), golden[f"out/s_{k}"])
        assert_outputs(f"t_{k}", code, golden[f"out/t_{k}"])
    associated = golden["out/loss_enc" if name == "pal_vgg_step" else "out/loss_b"]
    losses = [float(values["loss"]) for values in metrics]
    assert_losses("loss", losses, associated + golden["out/loss_ae"])

    gradients, params, statistics = {}, {}, {}
    for state, layers in zip(pipeline.states, tables, strict=True):
        gradients |= to_torch(state.opt_state[0], layers)
        params |= to_torch(state.params, layers)
        statistics |= statistics_to_torch(state.rest, layers, before)
    assert_all_gradients(gradients, golden.section("grad"))
    assert_after(golden, params, statistics)

    # As the reference numbers were made: from the parameters that are stored, not from those of the step above.
    after = golden.section("after")
    for state, layers in zip(pipeline.states, tables, strict=True):
        state.params, state.rest = load(state.params, layers, after), load(state.rest, layers, after)
    assert_outputs("inference_after", pipeline.predict(x), golden["out/inference_after"])
