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
# # How far a gradient travels
#
# With backpropagation the gradient of the first layer has passed every layer behind it,
# forward and back. With local losses it passes only the rest of its own stage. This
# notebook counts that length, and asks when it matters: where do gradients vanish or
# explode on a long way, do local losses help then, and what do they cost where nothing
# was wrong?

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["png"]
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scpl_jax as scpl
from flax import nnx
from scpl_jax.analysis.features import (
    effective_rank,
    principal_components,
    separability,
)
from scpl_jax.analysis.figures import COLOURS
from scpl_jax.analysis.gradient_paths import gradient_paths
from scpl_jax.analysis.gradients import (
    global_gradients,
    gradient_norms,
    layer_cosines,
    local_gradients,
)
from scpl_jax.data import batches, epoch_order, load

plt.rc("axes.spines", top=False, right=False)
plt.rc("figure", dpi=110)
LOCAL, BACKPROP = {"color": COLOURS[0]}, {"color": COLOURS[6], "linestyle": "--"}

# %% [markdown]
# ## Counting
#
# `gradient_paths` traces the loss and finds the longest chain of operations from each
# layer's parameters to the loss that trains them; operations that only move values are
# not counted. No operation of a chain can begin before the one behind it has ended, so
# its length bounds from below how long a step takes, whatever the machine.

# %%
images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
labels = jax.ShapeDtypeStruct((64,), jnp.int32)
vgg = functools.partial(scpl.models.vgg8, num_classes=10, width=0.125, rngs=nnx.Rngs(0))
cut = [2, 4, 5]
local = gradient_paths(
    scpl.decouple(vgg(), 4, scpl.SupCon(), images, nnx.Rngs(1), cut=cut), images, labels
)
whole = gradient_paths(
    scpl.decouple(vgg(), 4, scpl.CrossEntropy(), images, nnx.Rngs(1), cut=cut),
    images,
    labels,
)


def convolutions(paths):
    return [
        path
        for path in paths
        if path.layer.startswith("blocks") and "conv" in path.layer
    ]


print("VGG8 in four stages: blocks and operations between a convolution and its loss\n")
print("convolution   stage   local losses   backpropagation")
for number, (one, other) in enumerate(
    zip(convolutions(local), convolutions(whole), strict=True)
):
    local_way, whole_way = (
        f"{way.blocks:6} {way.operations:7}" for way in (one, other)
    )
    print(f"{number:11}{one.stage:8}{local_way} {whole_way}")

# %% [markdown]
# A projection head is deeper than the classifier, so near the end of the network a
# local loss can be the longer way. What matters is how the length grows with depth.
# Below, plain networks of equal layers, four to a stage:


# %%
class Layer(nnx.Module):
    """A linear layer and an activation, perhaps with a shortcut around them."""

    def __init__(self, width, activation, gain, rngs, shortcut):
        scale = nnx.initializers.variance_scaling(gain**2, "fan_in", "normal")
        self.linear = nnx.Linear(width, width, kernel_init=scale, rngs=rngs)
        self.activation, self.shortcut = activation, shortcut

    def __call__(self, x):
        y = self.activation(self.linear(x))
        return x + y if self.shortcut else y


def plain(depth, activation=jnp.tanh, gain=1.0, shortcut=False, width=64):
    """``depth`` equal layers and a classifier."""
    rngs = nnx.Rngs(0)
    layers = [Layer(width, activation, gain, rngs, shortcut) for _ in range(depth)]
    # A contrastive loss does not care how large features are; the classifier does.
    return [
        *layers,
        nnx.Sequential(
            nnx.LayerNorm(width, rngs=rngs), nnx.Linear(width, 10, rngs=rngs)
        ),
    ]


def cut_up(blocks, method, example, layers_a_stage=4):
    """Stages of four layers with local losses, or the whole network with one loss."""
    depth = len(blocks) - 1
    if method == "backpropagation":
        return scpl.decouple(blocks, 1, scpl.CrossEntropy(), example, nnx.Rngs(1))
    head = scpl.SupCon(head="mlp", head_dims=(64, 64))
    return scpl.decouple(
        blocks, depth // layers_a_stage, head, example, nnx.Rngs(1), cut="even"
    )


vectors = jax.ShapeDtypeStruct((96, 64), jnp.float32)
targets = jax.ShapeDtypeStruct((96,), jnp.int32)
depths = (4, 8, 16, 32, 64)
figure, axis = plt.subplots(figsize=(5.5, 3.2))
for method, style in (("local losses", LOCAL), ("backpropagation", BACKPROP)):
    longest = []
    for depth in depths:
        paths = gradient_paths(cut_up(plain(depth), method, vectors), vectors, targets)
        longest.append(max(path.operations for path in paths))
    axis.plot(depths, longest, marker="o", markersize=4, label=method, **style)
    print(f"{method:16}", dict(zip(depths, longest, strict=True)))
axis.set(
    xlabel="layers",
    ylabel="operations one after the other",
    title="The longest way of a gradient",
)
axis.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# Constant against linear. In a recurrent network the way also goes back in time, which
# no cut between layers shortens:

# %%
objectives = (
    ("local losses", scpl.SupCon(head="linear", head_dims=(32,))),
    ("backpropagation", scpl.CrossEntropy()),
)
for name, objective in objectives:
    for length in (20, 40):
        tokens = jax.ShapeDtypeStruct((8, length), jnp.int32)
        blocks = scpl.models.lstm(
            2, vocabulary=100, layers=4, size=16, hidden=16, rngs=nnx.Rngs(0)
        )
        stages = scpl.decouple(blocks, 4, objective, tokens, nnx.Rngs(1), cut="even")
        paths = gradient_paths(stages, tokens, jax.ShapeDtypeStruct((8,), jnp.int32))
        longest = max(path.operations for path in paths)
        print(
            f"LSTM, embedding and three layers, {length} words, {name:15}: {longest} operations"
        )

# %% [markdown]
# ## When the way is too long
#
# Four networks of the layers above, and what becomes of the gradient:
#
# | network | forward | backward |
# |---|---|---|
# | **sigmoid** | features of all images become alike | shrinks to nothing |
# | **ReLU, weights too large** | grows with every layer, directions stay | huge in every layer |
# | **tanh, weights too large** | saturated, blows up differences | grows towards the first |
# | **shortcuts around small layers** | healthy | healthy |
#
# Gradient norms of every layer before training, at 32 layers:

# %%
data = load("digits")


def vectors_of(images):
    """The digits as they came, 8 x 8 pixels, scaled to mean 0 and variance 1."""
    pixels = images.reshape(-1, 8, 4, 8, 4, 3).mean((2, 4, 5)).reshape(-1, 64)
    return ((pixels - MEAN) / SCALE).astype(np.float32)


MEAN, SCALE = data.train_images.mean(), data.train_images.std()
train_x, train_y = vectors_of(data.train_images), data.train_labels
test_x, test_y = vectors_of(data.test_images), data.test_labels
NETWORKS = {
    "sigmoid": {"activation": jax.nn.sigmoid},
    "ReLU, weights too large": {"activation": jax.nn.relu, "gain": 2.2},
    "tanh, weights too large": {"activation": jnp.tanh, "gain": 2.5},
    "shortcuts around small layers": {
        "activation": jax.nn.relu,
        "gain": 0.25,
        "shortcut": True,
    },
}


def flat(norms):
    return np.array(
        [norm for stage in norms for name, norm in stage.items() if "linear" in name]
    )


def compare_gradients(stages, params, x, y):
    """The stages' local gradients and the global ones, compiled."""
    return jax.jit(
        lambda p: (local_gradients(stages, p, x, y), global_gradients(stages, p, x, y))
    )(params)


figure, axes = plt.subplots(1, 4, figsize=(11, 2.8), sharex=True)
for axis, (name, options) in zip(axes, NETWORKS.items(), strict=True):
    stages = cut_up(plain(32, **options), "local losses", vectors)
    mine, theirs = compare_gradients(
        stages, [stage.params for stage in stages], train_x[:96], train_y[:96]
    )
    for gradient, style, label in (
        (mine, LOCAL, "local losses"),
        (theirs, BACKPROP, "backpropagation"),
    ):
        norms = flat(gradient_norms(gradient))
        axis.semilogy(np.arange(1, 33), np.maximum(norms, 1e-30), label=label, **style)
    axis.set(title=name, xlabel="layer")
    axis.title.set_fontsize(9)
axes[0].set_ylabel("gradient norm (at least 1e-30)")
axes[-1].legend(frameon=False, fontsize=8)
figure.tight_layout()

# %% [markdown]
# The saw teeth of the local losses are the stages: inside each, the same thing happens
# on a way of four layers.
#
# ## What training makes of it
#
# Ten epochs of Adam at 4, 16 and 32 layers. The gradient norm of every layer is kept at
# the start of each epoch.

# %%
EPOCHS = 10


def epoch_batches(epoch):
    return batches(
        train_x, train_y, 96, order=epoch_order(len(train_x), seed=0, epoch=epoch)
    )


def train(stages):
    """(test accuracy, gradient norm of each epoch and layer, the pipeline)"""
    pipeline = scpl.Pipeline(stages, optax.adam(1e-3))
    history = []
    for epoch in range(EPOCHS):
        for number, batch in enumerate(epoch_batches(epoch)):
            metrics = pipeline.train_step(*batch, with_norms=number == 0)
            if number == 0:
                history.append([stage["gradient_norms"] for stage in metrics])
    answers = np.asarray(pipeline.predict(test_x)).argmax(axis=1)
    return (
        float((answers == test_y).mean()),
        np.array([flat(jax.device_get(norms)) for norms in history]),
        pipeline,
    )


results = {}
print(f"{'test accuracy':30}{'layers':>7}{'local losses':>14}{'backpropagation':>17}")
for name, options in NETWORKS.items():
    for depth in (4, 16, 32):
        for method in ("local losses", "backpropagation"):
            accuracy, norms, _ = train(cut_up(plain(depth, **options), method, vectors))
            results[name, depth, method] = accuracy, norms
        one, other = (
            results[name, depth, method][0]
            for method in ("local losses", "backpropagation")
        )
        print(f"{name:30}{depth:7}{one:14.3f}{other:17.3f}")

# %%
figure, axes = plt.subplots(2, 4, figsize=(11, 4.6), sharex=True, sharey=True)
for column, name in enumerate(NETWORKS):
    for row, method in enumerate(("local losses", "backpropagation")):
        accuracy, norms = results[name, 32, method]
        shown = np.log10(
            np.clip(np.nan_to_num(norms, nan=1e6, posinf=1e6), 1e-6, 1e6)
        ).T
        grid = axes[row, column].imshow(
            shown,
            aspect="auto",
            origin="lower",
            cmap="cividis",
            vmin=-6,
            vmax=6,
            extent=(0.5, EPOCHS + 0.5, 0.5, 32.5),
        )
        axes[row, column].set_title(
            f"{name}\n{method}, accuracy {accuracy:.2f}", fontsize=8
        )
        axes[row, column].spines[["top", "right"]].set_visible(True)
for axis in axes[:, 0]:
    axis.set_ylabel("layer")
for axis in axes[1]:
    axis.set_xlabel("epoch")
figure.tight_layout()
bar = figure.colorbar(grid, ax=axes, shrink=0.8, pad=0.01)
bar.set_label("gradient norm, power of ten")

# %% [markdown]
# Local losses helped in one of these four networks:
#
# * **They help where the forward pass keeps the images apart and the gradient explodes
#   on its way back** (tanh): at 16 and 32 layers they are ahead, because the way of
#   each gradient is four layers at any depth. They do not make a bad start good: with 4
#   layers the same network is far better, by either method.
# * **They do not help where the forward pass itself loses the images** (sigmoid): the
#   first stage gets a gradient, but the stages behind it are given features that no
#   longer differ. No local loss brings back what has been lost before it.
# * **They are not needed where the gradient is only large** (ReLU): Adam and the
#   classifier's norm take the scale out, and backpropagation is as good or better.
# * **They cost where nothing was wrong** (shortcuts): each stage does what its own loss
#   asks for and no more, and the deeper the network, the more such steps follow one
#   another.
#
# ## Do local gradients point the way of the global one?
#
# The cosine between a layer's local gradient and the gradient of the classification
# loss through the whole network, for a healthy network of eight layers in four stages,
# while it is trained by local losses. 1 is the same direction, 0 says nothing about one
# another.

# %%
stages = cut_up(
    plain(8, activation=jax.nn.relu, gain=2**0.5),
    "local losses",
    vectors,
    layers_a_stage=2,
)
pipeline = scpl.Pipeline(stages, optax.adam(1e-3))
compare = jax.jit(
    lambda params, x, y: (
        local_gradients(stages, params, x, y),
        global_gradients(stages, params, x, y),
    )
)
rows, measures, kept = [], [], {}
for epoch in range(EPOCHS + 1):
    if epoch in (0, 1, 5, EPOCHS):
        cosines = []
        for start in range(0, 960, 96):
            part, params = (
                slice(start, start + 96),
                [state.params for state in pipeline.states],
            )
            pair = compare(params, train_x[part], train_y[part])
            cosines.append(
                [value for stage in layer_cosines(*pair) for value in stage.values()]
            )
        rows.append((epoch, np.mean(cosines, axis=0)))
        kept[epoch] = [np.asarray(x) for x in pipeline.features(test_x)]
        measures.append(
            [(effective_rank(x), separability(x, test_y)) for x in kept[epoch]]
        )
    if epoch < EPOCHS:
        for batch in epoch_batches(epoch):
            pipeline.train_step(*batch)

figure, axis = plt.subplots(figsize=(6, 3.2))
for (epoch, cosines), colour in zip(rows, COLOURS, strict=False):
    axis.plot(
        np.arange(1, 9),
        cosines,
        color=colour,
        marker="o",
        markersize=4,
        label=f"after {epoch} epochs",
    )
axis.axhline(0, color="#777777", linewidth=0.8)
for boundary in (2.5, 4.5, 6.5):
    axis.axvline(boundary, color="#cccccc", linewidth=0.8, linestyle=":")
axis.set(
    xlabel="layer (dotted: gradient boundaries)",
    ylabel="cosine",
    title="Local against global gradient",
)
axis.legend(frameon=False, fontsize=8, ncols=2)
figure.tight_layout()

# %% [markdown]
# ## What the stages' features look like
#
# Two numbers for each stage: the *effective rank* (how many directions the features
# use, at most 64 here; Roy and Vetterli 2007), and the *separability* (the part of the
# variance that lies between classes).

# %%
print("effective rank and separability")
print("epochs   " + "".join(f"stage {index:<9}" for index in range(4)))
for (epoch, _), values in zip(rows, measures, strict=True):
    print(
        f"{epoch:6}   "
        + "".join(f"{rank:4.1f}, {part:4.2f}     " for rank, part in values)
    )

# %% [markdown]
# And a map: each stage's features of the test images, projected to their two first
# principal components.

# %%
figure, axes = plt.subplots(2, 4, figsize=(10, 5))
for row, epoch in enumerate((0, EPOCHS)):
    for index, (axis, features) in enumerate(zip(axes[row], kept[epoch], strict=True)):
        points = principal_components(features)
        for digit in range(10):
            chosen = points[test_y == digit]
            axis.scatter(
                *chosen.T,
                s=5,
                color=COLOURS[digit],
                marker="os^DvPX<>*"[digit],
                label=str(digit),
            )
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"stage {index}, after {epoch} epochs", fontsize=9)
figure.legend(
    *axes[0, 0].get_legend_handles_labels(),
    loc="center right",
    frameon=False,
    title="digit",
    markerscale=2,
)
figure.tight_layout(rect=(0, 0, 0.93, 1))

# %% [markdown]
# Every stage draws the classes further apart than the one before and throws away what
# does not help its own loss: between-class variance rises with depth, the effective
# rank falls. That is what a stage is asked for, and also the reason why a later stage
# can't ask an earlier one to keep something for it.
#
# The functions are in `scpl_jax.analysis`: `gradient_paths`, `gradients`, `features`.
# They take the stages of any model of yours; how to bring one is in
# `05_your_own_model`.
