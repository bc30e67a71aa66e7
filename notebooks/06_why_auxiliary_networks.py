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
# # Why a stage needs an auxiliary network
#
# A stage learns features for whatever reads them. This notebook shows what that means
# on a task that no single layer can solve: two digits side by side, whose label is the
# last digit of their sum. It trains one network by four rules, and then asks each
# stage three things: what a linear classifier reads out of its features, what a deeper
# one reads out of them, and whether its gradient points where backpropagation's does.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["svg"]
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import scpl_jax as scpl
from flax import nnx
from scpl_jax.analysis.figures import COLOURS
from scpl_jax.analysis.gradients import global_gradients, layer_cosines, local_gradients
from scpl_jax.models.layers import Classifier
from scpl_jax.models.vgg import VGGBlock
from scpl_jax.training import probe_stages
from sklearn.datasets import load_digits

plt.rc("axes.spines", top=False, right=False)
plt.rc("svg", hashsalt="scpl_jax")
# Readers of one shape share a program.
compiled = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# %% [markdown]
# ## The task
#
# scikit-learn's digits, 8 x 8 pixels, are divided first, so that no handwriting of the
# test pairs was seen in training.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.images))


def pairs(members, count, seed):
    chosen = np.random.default_rng(seed).choice(members, (2, count))
    left, right = digits.images[chosen] / 16
    images = np.concatenate((left, right), axis=2)[..., None]
    labels = digits.target[chosen].sum(axis=0) % 10
    return (images.astype(np.float32) - 0.3) / 0.38, labels.astype(np.int32)


class Pairs:
    """Training and test pairs, in batches as the library's probes take them."""

    train, test = pairs(order[:1437], 6400, seed=1), pairs(order[1437:], 1000, seed=2)

    def every(self, part, size, count=None):
        images, labels = getattr(self, part)
        for start in range(0, count or len(images), size):
            yield images[start : start + size], labels[start : start + size]


data = Pairs()
example, labels = data.train[0][:64], data.train[1][:64]
figure, axes = plt.subplots(1, 4, figsize=(6, 1.8))
for axis, image, label in zip(axes, example, labels, strict=False):
    axis.imshow(image[..., 0], cmap="gray_r")
    axis.set_title(f"label {label}", fontsize=9)
    axis.set_axis_off()

# %% [markdown]
# ## Four rules
#
# The same VGG8 in four stages: backpropagation through all of them, a linear classifier
# behind each (early exit), the paper's contrastive loss (SCPL), and a classifier behind
# an auxiliary network of up to three blocks like the network's own, at half the width.

# %%
EPOCHS = 4
RULES = {
    "backpropagation": scpl.CrossEntropy(),
    "early exit": scpl.LocalClassifier(10),
    "scpl": scpl.SupCon(head_pool=2),
    "auxiliary blocks": scpl.LocalClassifier(
        10, aux=scpl.objectives.Blocks(depth=3, width=0.5, side=0)
    ),
}


def pipeline_of(objective):
    rngs = nnx.Rngs(0)
    network = [
        VGGBlock(1, 16, pool=False, rngs=rngs),
        VGGBlock(16, 32, pool=True, rngs=rngs),
        VGGBlock(32, 32, pool=False, rngs=rngs),
        VGGBlock(32, 64, pool=True, rngs=rngs),
        VGGBlock(64, 64, pool=False, rngs=rngs),
        VGGBlock(64, 64, pool=True, rngs=rngs),
        Classifier((1, 2, 64), 10, hidden=128, rngs=rngs),
    ]
    stages = scpl.decouple(network, 4, objective, example, nnx.Rngs(100), cut=(1, 2, 4))
    return scpl.Pipeline(stages, optax.adam(1e-3))


BATCH = tuple(part[:256] for part in data.train)


def agreement_of(stages):
    """A function of a pipeline: cosines of stages 1 to 3, mean over a stage's layers."""

    @jax.jit
    def both(params):
        return (
            local_gradients(stages, params, *BATCH),
            global_gradients(stages, params, *BATCH),
        )

    def cosines(pipeline):
        found = layer_cosines(*both([state.params for state in pipeline.states]))
        # The last stage of all rules has the global loss, among others.
        return [np.mean(list(layers.values())) for layers in found[:-1]]

    return cosines


def train(pipeline, images, labels, epoch):
    order = np.random.default_rng(epoch).permutation(len(labels))
    for start in range(0, len(order), 64):
        index = order[start : start + 64]
        pipeline.train_step(images[index], labels[index])


trained, curves, agreement = {}, {}, {}
for name, objective in RULES.items():
    trained[name] = pipeline = pipeline_of(objective)
    cosines = agreement_of(pipeline.stages) if objective.local else None
    agreement[name], curves[name] = [cosines(pipeline)] if cosines else [], []
    for epoch in range(EPOCHS):
        train(pipeline, *data.train, epoch)
        if cosines:
            agreement[name].append(cosines(pipeline))
        accuracy = pipeline.evaluate(data.every("test", 100))["accuracy"]
        curves[name].append(accuracy)
    print(f"{name:20}", *(f"{value:.3f}" for value in curves[name]))

# %%
STYLE = dict(zip(RULES, (COLOURS[6], COLOURS[1], COLOURS[2], COLOURS[0]), strict=True))
figure, axis = plt.subplots(figsize=(5.5, 3))
for name, values in curves.items():
    axis.plot(range(1, EPOCHS + 1), values, "o-", color=STYLE[name], label=name)
axis.set(xlabel="epoch", ylabel="test accuracy", xticks=range(1, EPOCHS + 1))
axis.axhline(0.1, color="0.7", linewidth=0.8)
axis.legend(frameon=False, fontsize=8)
figure.tight_layout()

# %% [markdown]
# After four epochs the network with auxiliary blocks is level with backpropagation, early
# exit has come half the way, and SCPL is still at chance.
#
# ## What can be read out of a stage
#
# The features of each stage stay as they are. A linear probe is fitted to them, averaged
# to 2 x 2; and of stages 2 and 3 a deeper reader, two convolution blocks and a
# classifier, is trained on all of them. Both see 2,000 training pairs. For comparison,
# the same of a network that was never trained.

# %%
READ, DEEPER = 2000, (2, 3)


def reader(features):
    rngs, channels = nnx.Rngs(7), features.shape[-1]
    blocks = [
        VGGBlock(channels, 64, pool=True, rngs=rngs),
        VGGBlock(64, 64, pool=False, rngs=rngs),
    ]
    last = (features.shape[1] // 2, features.shape[2] // 2, 64)
    return [*blocks, Classifier(last, 10, hidden=128, rngs=rngs)]


def features_of(pipeline, part, count=None):
    found = [[] for _ in pipeline.stages]
    for images, _ in data.every(part, 200, count):
        for parts, features in zip(found, pipeline.features(images, 0), strict=True):
            parts.append(np.asarray(features))
    return [np.concatenate(parts) for parts in found]


def deeper(pipeline):
    accuracies = []
    known, asked = features_of(pipeline, "train", READ), features_of(pipeline, "test")
    # Stage 1 is one convolution, and stage 4 hands on few values, which a linear probe
    # reads as they are.
    for number in DEEPER:
        shape = pipeline.stages[number].example.shape[1:]
        features, test = (x[number - 1].reshape(-1, *shape) for x in (known, asked))
        scale = features.std()
        stages = scpl.decouple(
            reader(features), 1, scpl.CrossEntropy(), features[:64], nnx.Rngs(8)
        )
        one = scpl.Pipeline(stages, optax.adam(1e-3))
        for epoch in range(5):
            train(one, features / scale, data.train[1][:READ], epoch)
        accuracies.append(one.evaluate([(test / scale, data.test[1])])["accuracy"])
    return accuracies


linear, deep = {}, {}
for name, pipeline in {
    **trained,
    "untrained": pipeline_of(scpl.CrossEntropy()),
}.items():
    linear[name] = [
        found["linear_accuracy"] for found in probe_stages(pipeline, data, READ, 200)
    ]
    deep[name] = deeper(pipeline)
    print(f"{name:20}linear", *(f"{value:.3f}" for value in linear[name]), end="   ")
    print("deeper", *(f"{value:.3f}" for value in deep[name]))

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3), sharey=True)
STYLE["untrained"] = "0.6"
for axis, found, what in zip(
    axes, (linear, deep), ("linear probe", "deeper reader"), strict=True
):
    stages = range(1, 5) if found is linear else DEEPER
    for name, values in found.items():
        axis.plot(stages, values, "o-", color=STYLE[name], label=name)
    axis.set(xlabel="stage", title=what, xticks=range(1, 5))
axes[0].set_ylabel("test accuracy of the reader")
axes[0].legend(frameon=False, fontsize=8)
figure.tight_layout()

# %% [markdown]
# Look at stage 3. A linear probe can't tell the three that learn apart: 0.47 to 0.50. A
# deeper reader can: it gets 0.95 out of the features of backpropagation, 0.90 out of
# those behind auxiliary blocks, but 0.62 out of early exit's, no more than early exit's
# own last stage makes of them. So its third stage is not worse at its own task. It has
# learned what a linear classifier can use, and has let go of what the next stage would
# have needed. A stage that is read by blocks like those behind it keeps that.
#
# ## Where a stage is pulled
#
# The cosine between the gradient of a stage's own loss and that of the classifier's loss
# through all later stages, at the same parameters, before training and after each epoch.
# It is taken layer by layer on one batch of 256 training pairs. 1 is backpropagation's
# direction, 0 has nothing to do with it.

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 2.8), sharey=True)
for stage, axis in enumerate(axes):
    axis.axhline(0, color="0.7", linewidth=0.8)
    for name in list(RULES)[1:]:
        values = [found[stage] for found in agreement[name]]
        axis.plot(range(EPOCHS + 1), values, "o-", color=STYLE[name], label=name)
    axis.set(xlabel="epochs so far", title=f"stage {stage + 1}")
axes[0].set_ylabel("cosine with backpropagation")
axes[0].legend(frameon=False, fontsize=8)
figure.tight_layout()
print("cosine, mean over the four epochs' ends, stages 1 to 3")
for name in list(RULES)[1:]:
    print(f"{name:20}", *(f"{x:.2f}" for x in np.mean(agreement[name][1:], axis=0)))

# %% [markdown]
# A local gradient is not a noisy copy of the global one. In stages 1 and 2 all rules are
# close to a right angle to it, auxiliary blocks included. Only in stage 3, where their
# reader is nearly the rest of the network, they follow it more than early exit does:
# 0.32 against 0.22. They reach backpropagation's accuracy by another way, not by
# following its gradient.
#
# This is one seed of one small task, chosen so that depth matters: it shows what happens,
# not how much. `experiments/aux` has VGG8 and ResNet-18 on CIFAR-10's images, each rule
# at its best learning rate.
