# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own model, data and objective
#
# Nothing in the library is about images of ten classes. What it needs is a list of Flax
# NNX modules, each called with what the one before returned, and batches of (inputs,
# labels). This notebook brings a residual network for time series, a learning rule of
# its own, a checkpoint, and the mistakes that are caught.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["svg"]
import dataclasses
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scpl_jax as scpl
from flax import nnx
from scpl_jax.analysis.figures import COLOURS
from scpl_jax.analysis.gradient_paths import gradient_paths

plt.rc("axes.spines", top=False, right=False)
plt.rc("svg", hashsalt="scpl_jax")

# %% [markdown]
# ## Data
#
# Three kinds of pulses, each at an unknown place and strength, in noise: (N, 64, 1)
# with labels 0 to 2.


# %%
def pulses(count, seed):
    rng = np.random.default_rng(seed)
    time, labels = np.arange(64), rng.integers(0, 3, count).astype(np.int32)
    place, strength = rng.uniform(16, 48, (count, 1)), rng.uniform(0.8, 1.6, (count, 1))
    distance = (time - place) / 5
    bell = np.exp(-(distance**2))
    shapes = np.stack(
        [bell, np.where(abs(distance) < 1, 1.0, 0.0), 2 * distance * bell]
    )
    series = strength * shapes[labels, np.arange(count)] + rng.normal(
        0, 0.3, (count, 64)
    )
    return series[..., None].astype(np.float32), labels


train_x, train_y = pulses(2048, seed=0)
test_x, test_y = pulses(512, seed=1)
figure, axes = plt.subplots(1, 3, figsize=(9, 2), sharey=True)
for kind, axis in enumerate(axes):
    for index, colour in zip(
        np.flatnonzero(train_y == kind)[:2], COLOURS, strict=False
    ):
        axis.plot(train_x[index, :, 0], color=colour, linewidth=1)
    axis.set(title=f"class {kind}", xlabel="time")
figure.tight_layout()

# %% [markdown]
# ## Blocks
#
# Batch norm, layer norm, dropout: any `nnx.Variable` belongs to the stage that has the
# block, and random state is drawn from the keys that the modules were built with.


# %%
class Residual(nnx.Module):
    """(N, T, C) to (N, T / stride, F)."""

    def __init__(self, inputs, outputs, stride, rngs):
        self.conv = nnx.Conv(inputs, outputs, (5,), strides=stride, rngs=rngs)
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)
        self.shortcut = nnx.Conv(inputs, outputs, (1,), strides=stride, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.shortcut(x) + self.dropout(jax.nn.relu(self.norm(self.conv(x))))


class MeanLinear(nnx.Module):
    """The classifier: mean over time, then logits."""

    def __init__(self, inputs, classes, rngs):
        self.linear = nnx.Linear(inputs, classes, rngs=rngs)

    def __call__(self, x):
        return self.linear(x.mean(axis=1))


def network(rngs):
    sizes = [
        (1, 16, 1),
        (16, 16, 1),
        (16, 32, 2),
        (32, 32, 1),
        (32, 64, 2),
        (64, 64, 1),
    ]
    return [*(Residual(*size, rngs) for size in sizes), MeanLinear(64, 3, rngs)]


# %% [markdown]
# ## A learning rule of your own
#
# An objective is a frozen dataclass with one method, `build`: it is told the shape of
# what the stage hands on, and returns a module from (features, labels) to a scalar.
# Below, features are drawn to a learned centre of their class. With `logits`, each
# stage also has an exit: its accuracy is reported, and inference may stop there.


# %%
class CentreLoss(nnx.Module):
    def __init__(self, size, classes, rngs):
        self.centres = nnx.Param(jax.random.normal(rngs.params(), (classes, size)))

    def logits(self, features):
        mean = features.mean(axis=1).astype(jnp.float32)
        return -((mean[:, None] - self.centres[...]) ** 2).sum(axis=-1)

    def __call__(self, features, labels):
        return scpl.cross_entropy(self.logits(features), labels)


@dataclasses.dataclass(frozen=True)
class Centres(scpl.Objective):
    """Distances to learned centres tell the class."""

    classes: int

    def build(self, features, *, rngs):
        if len(features.shape) != 3:
            raise ValueError(f"Centres needs features (N, T, C), got {features.shape}")
        return CentreLoss(features.shape[-1], self.classes, rngs)


# %% [markdown]
# ## Training, and a comparison
#
# The same blocks, cut, data and order by four rules; `Mixture` adds two of them up.

# %%
EPOCHS, BATCH = 5, 128
example = jax.ShapeDtypeStruct((BATCH, 64, 1), jnp.float32)
RULES = {
    "contrastive": scpl.SupCon(head="mlp", head_dims=(64, 64), head_pool=4),
    "centres": Centres(3),
    "both": scpl.Mixture(
        (
            (1.0, scpl.SupCon(head="mlp", head_dims=(64, 64), head_pool=4)),
            (0.5, Centres(3)),
        )
    ),
    "backpropagation": scpl.CrossEntropy(),
}


def batches(epoch):
    order = np.random.default_rng(epoch).permutation(len(train_x))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        yield train_x[chosen], train_y[chosen]


def tests():
    return (
        (test_x[start : start + BATCH], test_y[start : start + BATCH])
        for start in range(0, len(test_x), BATCH)
    )


def build(objective):
    stages = scpl.decouple(
        network(nnx.Rngs(0)), 3, objective, example, nnx.Rngs(1), cut=(2, 4)
    )
    return scpl.Pipeline(stages, optax.adam(2e-3))


curves, pipelines = {}, {}
for name, objective in RULES.items():
    pipelines[name], curves[name] = build(objective), []
    for epoch in range(EPOCHS):
        for batch in batches(epoch):
            pipelines[name].train_step(*batch)
        curves[name].append(pipelines[name].evaluate(tests())["accuracy"])

figure, axis = plt.subplots(figsize=(5.5, 3.2))
for (name, values), colour, marker in zip(
    curves.items(), (0, 3, 4, 6), "os^D", strict=True
):
    axis.plot(
        range(1, EPOCHS + 1),
        values,
        color=COLOURS[colour],
        marker=marker,
        markersize=4,
        label=name,
    )
axis.set(xlabel="epoch", ylabel="test accuracy", title="Four rules on the same blocks")
axis.set_xticks(range(1, EPOCHS + 1))
axis.legend(frameon=False, fontsize=8)
figure.tight_layout()

# %% [markdown]
# Stages with an exit tell how good each of them is:

# %%
for name in ("centres", "both"):
    exits = pipelines[name].evaluate(tests())["exits"]
    print(
        f"{name:12}",
        "  ".join(f"exit {one['stage']}: {one['accuracy']:.3f}" for one in exits),
    )

# %% [markdown]
# ## Was the gradient really cut?
#
# `gradient_paths` counts how far each layer's gradient travels: with local losses never
# past the end of its own stage.

# %%
for name in ("contrastive", "backpropagation"):
    paths = gradient_paths(
        pipelines[name].stages, example, jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    )
    lengths = {}
    for path in paths:
        if path.layer.startswith("blocks"):
            lengths[path.stage] = max(lengths.get(path.stage, 0), path.operations)
    print(f"{name:16} longest way by stage: {lengths}")

# %% [markdown]
# ## Save and go on
#
# A pipeline's `states` are a pytree and its `step` a number, so any way to store arrays
# serves. `CheckpointStore` is the one that the experiments use: written in the
# background, a folder a stage, complete or not there at all.

# %%
from scpl_jax.training import CheckpointStore
from scpl_jax.training.checkpoints import Progress

with tempfile.TemporaryDirectory() as folder:
    store = CheckpointStore(pathlib.Path(folder))
    store.save(pipelines["both"], Progress(epoch=EPOCHS))
    store.wait()
    again = build(RULES["both"])
    progress = store.restore(again)
    store.close()
batch = next(batches(EPOCHS))
losses = [
    [float(stage["loss"]) for stage in one.train_step(*batch)]
    for one in (pipelines["both"], again)
]
print(f"restored at epoch {progress.epoch}, step {again.step - 1}")
print(f"the next step's losses are equal: {losses[0] == losses[1]}")

# %% [markdown]
# ## Mistakes that are caught
#
# What can't work is refused when the stages are made, in one sentence.


# %%
def try_to(what, function):
    try:
        function()
    except ValueError as error:
        print(f"{what}:\n    {error}\n")


vectors, rngs = jax.ShapeDtypeStruct((BATCH, 8), jnp.float32), nnx.Rngs(0)
layers = [nnx.Linear(8, 8, rngs=rngs) for _ in range(4)]
contrastive = scpl.SupCon()
twice = [layers[0], layers[1], layers[0], layers[3]]
try_to(
    "a block in two stages",
    lambda: scpl.decouple(twice, 2, contrastive, vectors, rngs, cut=[1]),
)
try_to(
    "more stages than blocks",
    lambda: scpl.decouple(layers, 6, contrastive, vectors, rngs),
)
try_to(
    "a cut out of order",
    lambda: scpl.decouple(layers, 3, contrastive, vectors, rngs, cut=[2, 1]),
)
try_to(
    "features of another kind",
    lambda: scpl.decouple(layers, 2, Centres(8), vectors, rngs),
)
try_to("an unknown head", lambda: scpl.SupCon(head="deep"))
