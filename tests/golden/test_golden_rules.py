"""PredSim and information regularisation of the released codes, number for number."""

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
    assert_gradients,
    assert_losses,
    assert_outputs,
    block_layers,
    head_layers,
    images_here,
    images_there,
    is_buffer,
    load,
    statistics_to_torch,
    to_torch,
)

from scpl_jax import InfoReg, Pipeline, PredSim, decouple
from scpl_jax.losses import adjusted_cosine, information_regularisation, spatial_deviation
from scpl_jax.models.vgg import VGGBlock


@pytest.mark.parametrize("name", ["predsim", "predsim_flat"])
def test_predsim(name):
    golden = Golden(name)
    x, y = images_here(golden["in/h"]), golden["in/y"].astype(np.int32)
    _, height, width, channels = x.shape
    kernel = golden.meta["avg_pool_kernel"] or (1, 1)
    pool = (height // kernel[0], width // kernel[1])
    objective = PredSim(golden.meta["num_classes"], pool=pool)
    module = objective.build(jax.ShapeDtypeStruct(x.shape, x.dtype), rngs=nnx.Rngs(0))
    layers = [
        Layer(("matched",), "conv_loss"),
        Layer(("classifier", "layers", 0, "linear"), "decoder_y", (*pool, channels)),
    ]
    graph, params = nnx.split(module)
    params = load(params, layers, golden.section("before"))

    @jax.jit
    def run(params, x):
        module = nnx.merge(graph, params, copy=True)
        similarity = adjusted_cosine(spatial_deviation(module.matched(x)))
        return module.logits(x), similarity, adjusted_cosine(jax.nn.one_hot(y, objective.num_classes))

    logits, similarity, wanted = run(params, x)
    assert_outputs("logits", logits, golden["out/logits"])
    assert_outputs("Rh", similarity, golden["out/Rh"])
    assert_outputs("Ry", wanted, golden["out/Ry"])

    def loss(params, x, weights):
        module = nnx.merge(graph, params, copy=True)
        module.weights = weights
        return module(x, y)

    for part, weights in (("_pred_weighted", (0.01, 0.0)), ("_sim_weighted", (0.0, 0.99)), ("", objective.weights)):
        assert_losses(part, loss(params, x, weights), golden[f"out/loss{part}"])
    to_params, to_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x, objective.weights)
    assert_all_gradients(to_torch(to_params, layers), golden.section("grad"))
    assert_gradients("h", images_there(to_x), golden["grad_in/h"])


def test_information_regularisation():
    golden = Golden("deinforeg")
    x, y = golden["in/x"], golden["in/y"].astype(np.int32)
    parts = information_regularisation(x, y, golden.meta["n_classes"])
    check_information(golden, parts, sum(parts))
    for name, index in (("_var", 0), ("_invar", 1), ("_cov", 2)):
        gradient = jax.grad(lambda x, i=index: information_regularisation(x, y, golden.meta["n_classes"])[i])(x)
        assert_gradients(name, gradient, golden[f"grad_in/x{name}"])
    gradient = jax.grad(lambda x: sum(information_regularisation(x, y, golden.meta["n_classes"])))(x)
    assert_gradients("x", gradient, golden["grad_in/x"])


def check_information(golden, parts, loss):
    assert_losses("var", parts.variance, golden["out/var_loss"])
    assert_losses("invar", parts.invariance, golden["out/invar_loss"])
    assert_losses("cov", parts.covariance, golden["out/cov_loss"])
    assert_losses("loss", loss, golden["out/loss"])


def dims_of(golden):
    return tuple(map(int, golden.meta["mlp"].split("-")))


def without_biases(arrays):
    """Torch's linear layers before a batch norm have a bias, which the running mean takes up; ours have none."""
    arrays = dict(arrays)
    for name in list(arrays):
        if name.endswith("running_mean") and "projector" in name:
            *start, number, _ = name.split(".")
            arrays[name] = arrays[name] - arrays[".".join([*start, str(int(number) - 1), "bias"])]
    return arrays


def idle_biases(arrays):
    """The biases that batch norm cancels, whose gradient is noise."""
    return [
        name.replace(f"{number}.running_mean", f"{int(number) - 1}.bias")
        for name in arrays
        if name.endswith("running_mean") and "projector" in name
        for number in [name.split(".")[-2]]
    ]


def test_head_and_information_regularisation():
    golden = Golden("deinforeg_vision")
    x, y = images_here(golden["in/x"]), golden["in/y"].astype(np.int32)
    classes = golden.meta["n_classes"]
    objective = InfoReg(classes, dims_of(golden), pool=0)
    module = objective.build(jax.ShapeDtypeStruct(x.shape, x.dtype), rngs=nnx.Rngs(0))
    layers = head_layers(module.head, x.shape, (), "projector")
    layers = [Layer(layer.path, shifted(layer.name), layer.flattened, layer.count) for layer in layers]
    before = golden.section("before")
    idle = idle_biases(before)
    graph, params, rest = nnx.split(module.head, nnx.Param, ...)
    params, rest = load(params, layers, before), load(rest, layers, without_biases(before))

    @jax.jit
    def run(params, x, rest):
        head = nnx.merge(graph, params, rest, copy=True)
        projected = head(x)
        return projected, information_regularisation(projected, y, classes), nnx.split(head, nnx.Param, ...)[2]

    projected, parts, statistics = run(params, x, rest)
    assert_outputs("features", projected, golden["out/features"])
    check_information(golden, parts, sum(parts))
    found = statistics_to_torch(statistics, layers, without_biases(before))
    expected = {k: v for k, v in golden.section("buffers_after").items() if not k.endswith("num_batches_tracked")}
    assert all(map(is_buffer, expected))
    for name, value in expected.items():
        if name.endswith("running_mean"):
            value = value - before[name.replace(name.split(".")[-2] + ".running_mean", before_bias(name))]
        assert_outputs(name, found[name], value)
    to_params, to_x = jax.jit(jax.grad(lambda p, x, r: sum(run(p, x, r)[1]), argnums=(0, 1)))(params, x, rest)
    expected = {name: value for name, value in golden.section("grad").items() if name not in idle}
    assert_all_gradients(to_torch(to_params, layers), expected)
    assert_gradients("x", images_there(to_x), golden["grad_in/x"])


def before_bias(name):
    """Of a running mean's name the end that the bias before it has."""
    return f"{int(name.split('.')[-2]) - 1}.bias"


def shifted(name):
    """The projector's first layer is the flattening."""
    start, number = name.rsplit(".", 1)
    return f"{start}.{int(number) + 1}"


def vgg_blocks(golden):
    """The blocks of each stage; layers are those of meta's lists."""
    channels, stages = 3, []
    for layers in golden.meta["cfg"]:
        blocks = []
        for index, width in enumerate(layers):
            if width == "M":
                continue
            pool = index + 1 < len(layers) and layers[index + 1] == "M"
            blocks.append(VGGBlock(channels, width, pool=pool, rngs=nnx.Rngs(0)))
            channels = width
        stages.append(blocks)
    return stages


def test_a_step_of_information_regularisation():
    golden = Golden("deinforeg_vgg_step")
    x, y = images_here(golden["in/x"]), golden["in/y"].astype(np.int32)
    per_stage = vgg_blocks(golden)
    blocks = [block for blocks in per_stage for block in blocks]
    cut = tuple(np.cumsum([len(blocks) for blocks in per_stage])[:-1].tolist())
    objective = InfoReg(golden.meta["n_classes"], dims_of(golden), pool=0)
    stages = decouple(blocks, len(per_stage), objective, x, nnx.Rngs(0), cut=cut, classifier=False)
    before = golden.section("before")
    tables, shape = [], x.shape
    for k, stage in enumerate(stages):
        layers, module = [], merged(stage)
        for position, block in enumerate(module.blocks):
            layers += block_layers(block, shape, ("blocks", position), f"layer.{k}.{position}")
            shape = output_shape(block, shape)
        head = head_layers(module.loss.head, shape, ("loss", "head"), f"loss.{k}.projector")
        layers += [Layer(layer.path, shifted(layer.name), layer.flattened, layer.count) for layer in head]
        name = f"classifier.{k}.classifier"
        layers += [Layer(("loss", "norm"), f"{name}.0", count=len(x)), Layer(("loss", "classifier"), f"{name}.2")]
        tables.append(layers)
    stages = [loaded(stage, layers, without_biases(before)) for stage, layers in zip(stages, tables, strict=True)]
    pipeline = Pipeline(stages, optax.chain(recorder(), optax.adam(golden.meta["adam"]["lr"])))
    metrics = pipeline.train_step(x, y)
    cross_entropies = golden["out/classifier_ce"]
    total = golden["out/local_loss"] + 1e-3 * cross_entropies
    assert_losses("loss", [float(one["loss"]) for one in metrics], total)
    assert_losses("loss_total", sum(float(one["loss"]) for one in metrics), golden["out/loss_total"])

    idle = idle_biases(before)
    gradients, params, statistics = {}, {}, {}
    for state, layers in zip(pipeline.states, tables, strict=True):
        gradients |= to_torch(state.opt_state[0], layers)
        params |= to_torch(state.params, layers)
        statistics |= statistics_to_torch(state.rest, layers, without_biases(before))
    expected = {name: value for name, value in golden.section("grad").items() if name not in idle}
    assert_all_gradients(gradients, expected)
    # The running means take the mean of the product without the bias that torch has there before the step.
    for name in statistics:
        if name.endswith("running_mean") and "projector" in name:
            bias = before[name.replace(name.split(".")[-2] + ".running_mean", before_bias(name))]
            statistics[name] = statistics[name] + bias
    for name in idle:
        del golden.arrays[f"after/{name}"], golden.arrays[f"stable/{name}"]
    assert_after(golden, params, statistics)
