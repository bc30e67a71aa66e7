"""Whole training steps of the released text networks, decoupled and by backpropagation, number for number."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from stage_probe import loaded, merged, recorder
from torch_layout import (
    Golden,
    Layer,
    assert_after,
    assert_all_gradients,
    assert_losses,
    assert_outputs,
    load,
    to_torch,
)

from scpl_jax import Associated, CrossEntropy, Pipeline, SupCon, decouple
from scpl_jax.models import lstm, transformer
from scpl_jax.models.sequence import Embedding, TextClassifier


class UnbiasedNorm(nnx.Module):
    """a (x - mean) / (deviation + eps) + b, with the unbiased deviation, as the released code has it."""

    def __init__(self, size, *, rngs):
        self.a, self.b = nnx.Param(jnp.ones(size)), nnx.Param(jnp.zeros(size))

    def __call__(self, x):
        mean = x.mean(-1, keepdims=True)
        return self.a * (x - mean) / (x.std(-1, keepdims=True, ddof=1) + 1e-6) + self.b


def network(name, golden, **options):
    """The blocks of a released network."""
    meta = golden.meta
    common = {"vocabulary": meta["vocab"], "size": meta["emb"], "masked": False, "dropout": 0.0, "rngs": nnx.Rngs(0)}
    classes = meta.get("ncls") or meta["n_classes"]
    if name == "lstm":
        return lstm(classes, layers=4, hidden=meta["h"], **common, **options)
    heads, hidden = (meta.get("heads") or meta["nheads"]), meta.get("h") or meta["d_ff"]
    return transformer(
        classes, layers=4, heads=heads, hidden=hidden, positions="none", norm=UnbiasedNorm, **common, **options
    )


def block_layers(network, block, path, name):
    """Layers of one block; ``name`` is torch's of its function."""
    if isinstance(block, Embedding):
        return [Layer(path, name)]
    if network == "lstm":
        return [Layer(path, name, lstm=True)]
    layers = [Layer((*path, "norm"), f"{name}.encoder.norm")]
    for index in range(len(block.layers)):
        here, there = (*path, "layers", index), f"{name}.encoder.layers.{index}"
        for number, part in enumerate(("query", "key", "value", "out")):
            layers.append(Layer((*here, "attention", part), f"{there}.self_attn.linears.{number}"))
        for number, part in enumerate(("first", "second"), start=1):
            layers.append(Layer((*here, part), f"{there}.feed_forward.w_{number}"))
        for number in range(2):
            layers.append(Layer((*here, "norms", number), f"{there}.sublayer.{number}.norm"))
    return layers


def describe(network, stages):
    """The tables of layers of all stages, however many of the reference's stages each holds."""
    tables = []
    for stage in stages:
        module, layers = merged(stage), []
        for position, block in enumerate(module.blocks):
            name = f"model.backbone-{stage.blocks[0] + position}"
            layers += block_layers(network, block, ("blocks", position), f"{name}.layer.f")
        if module.loss is not None:
            for index in range(len(module.loss.head.layers)):
                path = ("loss", "head", "layers", index, "linear")
                layers.append(Layer(path, f"{name}.loss.projector.layer.{2 * index}"))
        if module.classifier is not None:
            assert isinstance(module.classifier, TextClassifier)
            layers.append(Layer(("classifier", "hidden"), "model.predictor.layer.0"))
            layers.append(Layer(("classifier", "out"), "model.predictor.layer.2"))
        tables.append(layers)
    return tables


def live(arrays):
    """Without the released Transformer's copies that nothing uses."""
    dead = (".f.multi_headed_attention.", ".f.feed_forward.", ".f.encoder_layer.")
    return {name: value for name, value in arrays.items() if not any(part in name for part in dead)}


def check_messages(golden, network, messages, prefix):
    """Sequences and states that stages hand on."""
    for k, message in enumerate(messages):
        assert_outputs(f"{prefix}_{k}", message.sequence, golden[f"out/{prefix}_{k}"])
        if network == "lstm" and k > 0:
            for name, value in zip("hc", message.state, strict=True):
                assert_outputs(f"{name}_{k}", value, golden[f"out/{name}_{k}"])


def check_step(golden, network, pipeline, tables, metrics):
    """Gradients and parameters after one step."""
    states = pipeline.states
    gradients, params = {}, {}
    for state, layers in zip(states, tables, strict=True):
        gradients |= to_torch(state.opt_state[0], layers)
        params |= to_torch(state.params, layers)

    # The gradient of the keys' bias is zero but for rounding, whatever the reference calls stable.
    noise = "self_attn.linears.1.bias"
    golden.arrays |= {
        name: np.zeros_like(value)
        for name, value in golden.arrays.items()
        if name.startswith("stable/") and noise in name
    }

    assert_all_gradients(gradients, golden.section("grad"))
    golden.arrays = {
        **{key: value for key, value in golden.arrays.items() if not key.startswith("after/")},
        **{f"after/{name}": value for name, value in live(golden.section("after")).items()},
    }
    assert_after(golden, params, {})
    after = golden.section("after")
    for state, layers in zip(states, tables, strict=True):
        state.params = load(state.params, layers, after)


def blocks_outputs(stages, x):
    """What every block of stages hands on, in training mode, before the first step."""
    message, messages, features, logits = x, [], [], None
    for stage in stages:
        module = merged(stage)
        for block in module.blocks:
            message = block(message)
            messages.append(message)
        features += [] if module.loss is None else [module.loss.head(message.summary)]
        if module.classifier is not None:
            logits = module.classifier(message)
    return messages, features, logits


@pytest.mark.parametrize(
    "rule", [pytest.param("scpl identity", marks=pytest.mark.numeric), "scpl mlp", "bp over stages"]
)
@pytest.mark.parametrize("model", ["lstm", "transformer"])
def test_step(model, rule):
    suffix = {"scpl identity": "scpl_step_i", "scpl mlp": "scpl_step_m"}.get(rule, "bp_step")
    golden = Golden(f"{model}_{suffix}")
    x, y = golden["in/x"].astype(np.int32), golden["in/y"].astype(np.int32)
    blocks = network(model, golden)
    if rule.startswith("scpl"):
        size = golden.meta["emb"] if model == "transformer" else golden.meta["h"]
        head = {"head": "identity"} if rule == "scpl identity" else {"head": "mlp", "head_dims": (size, size)}
        objective = SupCon(temperature=golden.meta["temp"], count_anchor=True, **head)
        stages = decouple(blocks, 4, objective, x, nnx.Rngs(0))
    else:
        stages = decouple(blocks, 4, CrossEntropy(), x, nnx.Rngs(0), cut=(1, 2, 3))
    tables = describe(model, stages)
    before = golden.section("before")
    stages = [loaded(stage, layers, before) for stage, layers in zip(stages, tables, strict=True)]

    messages, features, logits = blocks_outputs(stages, x)
    check_messages(golden, model, messages, "seq")
    for k, z in enumerate(features):
        assert_outputs(f"feature_{k}", messages[k].summary, golden[f"out/feature_{k}"])
        assert_outputs(f"z_{k}", z, golden[f"out/z_{k}"])
    assert_outputs("logits", logits, golden["out/logits"])

    pipeline = Pipeline(stages, optax.chain(recorder(), optax.adam(1e-3)))
    metrics = pipeline.train_step(x, y)
    losses = [float(values["loss"]) for values in metrics if "loss" in values]
    classifier_loss = float(metrics[-1]["classifier_loss"])
    assert_losses("predictor_loss", classifier_loss, golden["out/predictor_loss"])
    if rule.startswith("scpl"):
        assert_losses("local_loss", losses, golden["out/local_loss"])
        losses[-1] += classifier_loss
    assert_losses("stage_loss", losses, golden["out/stage_loss"])
    assert_losses("loss_all", sum(losses), golden["out/loss_all"])
    check_step(golden, model, pipeline, tables, metrics)
    assert_outputs("logits_eval_after", pipeline.predict(x), golden["out/logits_eval_after"])


@pytest.mark.parametrize("model", ["lstm", "transformer"])
def test_associated_learning(model):
    golden = Golden(f"pal_{model}_step")
    x = golden["in/x"].astype(np.int32)
    y = golden["in/y_onehot"].argmax(axis=1).astype(np.int32)
    blocks = network(model, golden, **({"summary": "sum"} if model == "lstm" else {}))[:-1]
    classes = golden["in/y_onehot"].shape[1]
    objective = Associated(
        classes, code=golden.meta["y_out"], hidden=0, activation="tanh", bounded="first", first_loss="cross-entropy"
    )
    stages = decouple(blocks, 4, objective, x, nnx.Rngs(0), classifier=False)
    tables = []
    for k, stage in enumerate(stages):
        layers = block_layers(model, merged(stage).blocks[0], ("blocks", 0), f"seq.{k}.enc.f")
        layers.append(Layer(("loss", "bridge", "layers", 0, "linear"), f"seq.{k}.enc.b.0"))
        layers.append(Layer(("loss", "encoder"), f"seq.{k}.ae.g.0"))
        layers.append(Layer(("loss", "decoder"), f"seq.{k}.ae.h.0"))
        tables.append(layers)
    before = golden.section("before")
    stages = [loaded(stage, layers, before) for stage, layers in zip(stages, tables, strict=True)]
    pipeline = Pipeline(stages, optax.chain(recorder(), optax.adam(1e-3)))
    assert_outputs("inference_before", pipeline.predict(x), golden["out/inference_before"])

    handed_on = []
    pipeline.record = lambda task, group, given, values: handed_on.append(given)
    metrics = pipeline.train_step(x, y)
    check_messages(golden, model, [features for features, _ in handed_on[1:]], "s")
    for k, (_, code) in enumerate(handed_on[1:]):
        assert_outputs(f"t_{k}", code, golden[f"out/t_{k}"])
    losses = [float(values["loss"]) for values in metrics]
    assert_losses("loss", losses, golden["out/loss_enc"] + golden["out/loss_ae"])
    check_step(golden, model, pipeline, tables, metrics)
    assert_outputs("inference_after", pipeline.predict(x), golden["out/inference_after"])
