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
# # First steps: training a network in stages
#
# Backpropagation updates the first layer of a network only after the last one has seen
# the batch and the gradient has come all the way back. *Supervised Contrastive Parallel
# Learning* (SCPL; arXiv 2602.00062) cuts the network into stages instead. Each stage
# has a loss of its own, which draws features of the same class together, and no
# gradient passes from one stage to the one before. A stage can be updated as soon as it
# has handed its features on, so stages on different devices work at the same time, each
# on another batch.
#
# This notebook trains one network both ways on scikit-learn's digits and looks at what
# comes out. It needs no download and no GPU.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["svg"]
import functools

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import scpl_jax as scpl
from flax import nnx
from scpl_jax.analysis.figures import COLOURS
from scpl_jax.data import load, make_augment, normalise

plt.rc("axes.spines", top=False, right=False)
plt.rc("svg", hashsalt="scpl_jax")
data = load("digits")
train_size, test_size = len(data.train_images), len(data.test_images)
print(f"{train_size} training and {test_size} test images of shape {data.image_shape}")

# %% [markdown]
# ## A network is a list of blocks
#
# Any list of Flax NNX modules will do; the last one is the classifier. Here it is the
# paper's VGG8, an eighth as wide. `decouple` cuts it into stages and gives each stage a
# contrastive loss behind a projection head, which sees the feature map averaged to 2 x
# 2 pixels. Where to cut is decided by the compiler's estimate of each block's work, so
# that no stage is much slower than the others.

# %%
example = jax.ShapeDtypeStruct((96, *data.image_shape), "float32")


def vgg():
    return scpl.models.vgg8(num_classes=data.num_classes, width=0.125, rngs=nnx.Rngs(0))


local = scpl.decouple(
    vgg(), 4, scpl.SupCon(temperature=0.1, head_pool=2), example, nnx.Rngs(1)
)
for stage in local:
    first, end = stage.blocks
    share = stage.cost / sum(one.cost for one in local)
    size = f"{stage.num_parameters:7,} parameters, {share:4.0%} of the work"
    print(f"stage {stage.index}: blocks {first} to {end - 1}, {size}")

# %% [markdown]
# The same blocks with `CrossEntropy` for an objective are trained by backpropagation:
# no local loss, one gradient through all of them. Nothing else changes, which is what
# makes the comparison fair.

# %%
whole = scpl.decouple(
    vgg(),
    4,
    scpl.CrossEntropy(),
    example,
    nnx.Rngs(1),
    cut=[stage.blocks[0] for stage in local[1:]],
)

# %% [markdown]
# ## Training
#
# A `Pipeline` puts stages on devices and gives each an optimizer state of its own.
# `train_step` returns at once: its values are still being computed, and the next batch
# can be sent after it. Reading a value waits for it, so we collect the losses and read
# them at the end of the epoch. `prepare` is what becomes of a batch before the first
# stage, on its device: here the pixels are only scaled; `make_augment("basic", ...)`
# would crop and mirror them.

# %%
EPOCHS = 6


def train(stages, seed=0):
    scaled = {"mean": data.mean, "std": data.std}
    pipeline = scpl.Pipeline(
        stages,
        optax.adam(1e-3),
        prepare=make_augment("none", **scaled),
        prepare_eval=functools.partial(normalise, **scaled),
        key=jax.random.key(seed),
    )
    pipeline.compile(*data.shapes(96)[0])
    losses, accuracies = [], []
    for epoch in range(EPOCHS):
        metrics = [
            pipeline.train_step(*batch)
            for batch in data.train_batches(96, seed=seed, epoch=epoch)
        ]
        losses.append(
            np.mean(
                [[stage.get("loss", np.nan) for stage in step] for step in metrics],
                axis=0,
            )
        )
        accuracies.append(pipeline.evaluate(data.every("test", 96))["accuracy"])
    print(f"test accuracy {accuracies[-1]:.3f} after {EPOCHS} epochs")
    return pipeline, np.array(losses), accuracies


print("local losses:    ", end="")
decoupled, losses, accuracies = train(local)
print("backpropagation: ", end="")
backprop, _, reference = train(whole)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
epochs = np.arange(1, EPOCHS + 1)
for stage, colour in zip(local, COLOURS, strict=False):
    left.plot(
        epochs,
        losses[:, stage.index],
        color=colour,
        marker="o",
        markersize=3,
        label=f"stage {stage.index}",
    )
left.set(xlabel="epoch", ylabel="contrastive loss", title="Every stage's own loss")
left.legend(frameon=False)
right.plot(
    epochs,
    accuracies,
    color=COLOURS[0],
    marker="o",
    markersize=3,
    label="local losses, 4 stages",
)
right.plot(
    epochs,
    reference,
    color=COLOURS[6],
    marker="s",
    markersize=3,
    linestyle="--",
    label="backpropagation",
)
right.set(
    xlabel="epoch", ylabel="test accuracy", title="The whole network", ylim=(0, 1.02)
)
right.legend(frameon=False, loc="lower right")
figure.tight_layout()

# %% [markdown]
# Later stages begin where earlier ones stopped: their loss is lower from the start of
# an epoch on, because what they are given is already sorted by class to a part. Compare
# the losses with care, though: a contrastive loss over a batch of 96 has no fixed
# smallest value that would be the same for all temperatures and batches.
#
# ## What a stage knows
#
# Stages trained by a contrastive loss have no classifier, but their features can be
# asked: how many of the test images have a nearest training image of the same class?


# %%
def features(pipeline, images):
    """What each stage hands on, averaged to 2 x 2 pixels, for a multiple of 96 images."""
    parts = [pipeline.features(images[i : i + 96]) for i in range(0, len(images), 96)]
    return [np.concatenate(stage) for stage in zip(*parts, strict=True)]


def nearest_neighbour(train, test):
    scaled = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    found = data.train_labels[(scaled[1] @ scaled[0].T).argmax(axis=1)]
    return float((found == data.test_labels[: len(test)]).mean())


known, asked = data.train_images[:960], data.test_images[:288]
for name, pipeline in (("local losses", decoupled), ("backpropagation", backprop)):
    pairs = zip(features(pipeline, known), features(pipeline, asked), strict=True)
    found = [nearest_neighbour(*pair) for pair in pairs]
    print(
        f"{name:16}",
        "  ".join(
            f"stage {index}: {accuracy:.3f}" for index, accuracy in enumerate(found)
        ),
    )

# %% [markdown]
# ## The same from the command line
#
# ```sh
# python -m scpl_jax.experiments.cifar --stages 4 --dataset digits --out-dir runs/first
# python -m scpl_jax.experiments.cifar --stages 4 --dataset digits --method bp --out-dir runs/bp
# python -m scpl_jax.report runs/first runs/bp
# ```
#
# adds augmentation, checkpoints that continue to the bit (`--resume`), other learning
# rules (`--method`), and a page that compares the runs. How far a gradient travels, and
# when that matters, is what `02_gradient_flow_length` is about; `03_pipeline_timeline`
# shows the stages at work on several devices.
