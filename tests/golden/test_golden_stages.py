"""Single stages of the released code, number for number."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from stage_probe import loaded, merged, output_shape
from torch_layout import (
    Golden,
    assert_after,
    assert_all_gradients,
    assert_gradients,
    assert_losses,
    assert_outputs,
    block_layers,
    head_layers,
    images_here,
    images_there,
    statistics_to_torch,
    to_torch,
)

from scpl_jax import SupCon, decouple
from scpl_jax.models.resnet import Residual
from scpl_jax.models.vgg import vgg
from scpl_jax.stages import evaluate


def vgg_blocks(golden):
    _, channels, height, width = golden["in/x"].shape
    image = (height, width, channels)
    return vgg(golden.meta["cfg"], hidden=1, image_shape=image, rngs=nnx.Rngs(0))[:-1]


def residual_blocks(golden, *, kernels, expansion, shortcut):
    if "cfg" in golden.meta:
        channels, width, strides = golden.meta["cfg"]
    else:
        channels, width, count, stride = golden.meta["cfg_in_out_blocks_stride"]
        strides = [stride] + [1] * (count - 1)
    common = {
        "kernels": kernels,
        "expansion": expansion,
        "shortcut": shortcut,
        "init": "torch",
        "dtype": None,
    }
    blocks = []
    for stride in strides:
        blocks.append(Residual(channels, width, stride=stride, rngs=nnx.Rngs(0), **common))
        channels = width * expansion
    return blocks


STAGES = {
    "vgg_stage": vgg_blocks,
    "resnet_stage": lambda golden: residual_blocks(golden, kernels=(3, 3), expansion=1, shortcut="3x3"),
    "resnet_pool_stage": lambda golden: residual_blocks(golden, kernels=(3, 3), expansion=1, shortcut="3x3"),
    "resnet_bottleneck_stage": lambda golden: residual_blocks(golden, kernels=(1, 3, 1), expansion=4, shortcut="1x1"),
    "resnet_basic1x1_stage": lambda golden: residual_blocks(golden, kernels=(3, 3), expansion=1, shortcut="1x1"),
}


@pytest.mark.parametrize("name", STAGES)
def test_stage(name):
    golden = Golden(name)
    pooled = golden.meta.get("avg_pool", False)  # over the image, behind the last block
    x, y = images_here(golden["in/x"]), golden["in/y"].astype(np.int32)
    blocks = STAGES[name](golden)
    objective = SupCon(**golden.head(pooled=pooled))
    (stage,) = decouple(blocks, 1, objective, x, nnx.Rngs(0), cut="even", classifier=False)

    layers, shape = [], x.shape
    for index, block in enumerate(blocks):
        layers += block_layers(block, shape, ("blocks", index), f"layer.{index}")
        shape = output_shape(block, shape)
    head = merged(stage).loss.head
    layers += head_layers(head, shape, ("loss", "head"), "loss.projector.layer.1")
    before = golden.section("before")
    stage = loaded(stage, layers, before)
    optimizer = optax.adam(golden.meta["adam"]["lr"])

    @jax.jit
    def run(params, rest, x):
        def loss(params, x):
            module = nnx.merge(stage.train_graph, params, rest, copy=True)
            features = x
            for block in module.blocks:
                features = block(features)
            results = {"y_train": features, "z": module.loss.head(features)}
            # The head's batch statistics are not part of these files, so calling it twice does no harm.
            value = module.loss(features, y)
            return value, {**results, "loss": value, "rest": nnx.split(module, nnx.Param, ...)[2]}

        gradients, results = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        updates, _ = optimizer.update(gradients[0], optimizer.init(params), params)
        return *gradients, results, optax.apply_updates(params, updates)

    gradient, to_x, results, params = run(stage.params, stage.rest, x)

    def features_there(features):
        return images_there(features.mean(axis=(1, 2), keepdims=True) if pooled else features)

    assert_outputs("y_train", features_there(results["y_train"]), golden["out/y_train"])
    assert_outputs("z", results["z"], golden["out/z"])
    assert_losses("loss", results["loss"], golden["out/loss"])
    assert_gradients("grad_in/x", images_there(to_x), golden["grad_in/x"])
    assert_all_gradients(to_torch(gradient, layers), golden.section("grad"))
    assert_after(golden, to_torch(params, layers), statistics_to_torch(results["rest"], layers, before))

    after = loaded(stage, layers, golden.section("after"))
    features, _ = jax.jit(lambda params, rest, x: evaluate(stage, params, rest, x))(after.params, after.rest, x)
    assert_outputs("y_eval_after", features_there(features), golden["out/y_eval_after"])
