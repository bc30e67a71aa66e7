"""PyTorch's side of the speed comparison computes what ours does: the same losses from the same parameters."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx

from scpl_jax.benchmarks import measure
from scpl_jax.benchmarks.single import measure_single, memory_of
from scpl_jax.benchmarks.throughput_options import Options
from scpl_jax.pipeline import Pipeline

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

CASES = {
    "vgg8": Options(model="vgg8", width=0.05, batch_size=6, image_size=16, stages=4, cut="paper"),
    "vgg8, unpooled": Options(model="vgg8", width=0.05, batch_size=6, image_size=16, stages=2, head_pool=0),
    "resnet18": Options(model="resnet18", width=0.1, batch_size=6, image_size=16, stages=3),
    "lstm": Options(model="lstm", width=0.03, length=7, vocabulary=20, embedding_size=6, batch_size=5, stages=3),
    "transformer": Options(
        model="transformer", width=0.03, length=7, vocabulary=20, embedding_size=12, heads=3, batch_size=5, stages=2
    ),
}


def values(*shape: int) -> np.ndarray:
    """Numbers that depend on the shape only, of the size of usual parameters."""
    size = math.prod(shape)
    fan_in = max(1, size // shape[-1])
    return (np.random.default_rng(shape).normal(size=shape) / math.sqrt(fan_in)).astype(np.float32)


def fill_here(params):
    def fill(path, leaf):
        name, shape = path[-1], leaf[...].shape
        if name == "scale":
            return leaf.replace(1 + 0.1 * values(*shape))
        if name in ("kernel", "recurrent") and len(shape) == 3:  # an LSTM's two directions
            return leaf.replace(np.stack([values(*shape[1:])] * 2))
        if name in ("bias", "recurrent_bias") and len(shape) == 2:
            return leaf.replace(np.stack([values(*shape[1:])] * 2))
        return leaf.replace(values(*shape))

    flat = [(path, fill(path, leaf)) for path, leaf in nnx.to_flat_state(params)]
    return jax.tree.map(np.asarray, nnx.from_flat_state(flat))


def fill_torch(stages):
    nn = torch.nn
    with torch.no_grad():
        for module in (module for stage in stages for module in stage.modules()):
            own = dict(module.named_parameters(recurse=False))
            for name, parameter in own.items():
                shape = tuple(parameter.shape)
                if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)) and name == "weight":
                    found = 1 + 0.1 * values(*shape)
                elif isinstance(module, nn.Conv2d) and name == "weight":
                    out, channels, kh, kw = shape
                    found = values(kh, kw, channels, out).transpose(3, 2, 0, 1)
                elif isinstance(module, nn.Embedding):
                    found = values(*shape)
                elif len(shape) == 2:
                    found = values(*shape[::-1]).T
                else:
                    found = values(*shape)
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(found)))
        for stage in stages:
            norms = [module for module in stage.blocks.modules() if isinstance(module, nn.BatchNorm2d)]
            if stage.head is not None and norms:  # flattened by channels first there, last here
                first = next(module for module in stage.head if isinstance(module, nn.Linear))
                channels = norms[-1].num_features
                by_pixel = first.weight.reshape(first.out_features, -1, channels).clone()
                first.weight.copy_(by_pixel.transpose(1, 2).reshape(first.out_features, -1))


def losses_here(stages, inputs, labels):
    filled = [
        dataclasses.replace(stage, params=fill_here(stage.params), train_graph=train_graph)
        for stage in stages
        # Without dropout, which texts have; batch norm, which images have, stays in training mode.
        for train_graph in [stage.train_graph if inputs.ndim == 4 else stage.eval_graph]
    ]
    pipeline = Pipeline(filled, optax.adam(1e-3), jax.devices()[:1])
    steps = [pipeline.train_step(inputs, labels) for _ in range(3)]
    return [[float(one["loss"]) for one in step if "loss" in one] for step in steps]


@pytest.mark.runs
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("local", [True, False], ids=["scpl", "bp"])
def test_three_steps_have_the_same_losses(case, local):
    from scpl_jax.benchmarks import torch_networks, torch_steps

    options = CASES[case]
    network = measure.network(options)
    stages = network.local if local else network.end_to_end
    ours = losses_here(stages, network.inputs, network.labels)

    cut = [stage.blocks[0] for stage in stages[1:]]
    theirs = torch_steps._torch_stages(options, cut, local=local)
    assert [sum(p.numel() for p in stage.parameters()) for stage in theirs] == [s.num_parameters for s in stages]
    fill_torch(theirs)
    if network.inputs.ndim == 2:
        theirs = [stage.eval() for stage in theirs]
    optimizers = [torch_networks.adam(stage) for stage in theirs]
    step = torch_networks.scpl_step if local else torch_networks.bp_step
    batch = torch_steps._batch(options)
    found = [[float(loss) for loss in step(theirs, optimizers, *batch)] for _ in range(3)]
    # Adam divides each gradient by its size, small ones too: sums in another order show from the second step on.
    for mine, other, tolerance in zip(ours, found, (2e-5, 2e-2, 4e-2), strict=True):
        assert_close(other, mine, tolerance)
    assert ours[0] != ours[2]  # there was something to learn


@pytest.mark.runs
def test_memory_of_a_network_in_one_stage_is_measured():
    options = dataclasses.replace(CASES["lstm"], stages=1, steps=1, only_memory_of="PyTorch scpl")
    found = memory_of(options)
    assert found["peak_memory_bytes"] >= found["memory_before_bytes"] > 0


@pytest.mark.runs
def test_the_peak_is_the_best_of_all_libraries_at_hand():
    found = measure_single(dataclasses.replace(CASES["lstm"], single=True, steps=1, repeats=1, memory=False))
    rates = found["products_flops_per_second"]
    assert {"product by XLA", "product by PyTorch"} <= rates.keys()
    assert found["peak_flops_per_second"] == max(rates.values())
    for row in found["methods"].values():
        rate = row["flops_a_step"] / row["seconds_a_step"]["median"]
        assert row["share_of_peak"] == pytest.approx(rate / max(rates.values()))
