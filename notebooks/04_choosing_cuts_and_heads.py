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
# # Where to cut, and what to put behind a stage
#
# Two choices decide what decoupled training costs and what it gives: the cut (how many
# stages, and where they begin) and the head (what stands between a stage's features and
# its contrastive loss). This notebook looks at both on scikit-learn's digits, scaled to
# 16 x 16 pixels, in a few minutes. The tables under `experiments/` ask the same of
# CIFAR-10.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["svg"]
import functools
import tempfile

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
# Each network is trained from several seeds; its programs are compiled for the first only.
compiled = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

data = load("digits", image_size=16)
example = jax.ShapeDtypeStruct((96, 16, 16, 3), "float32")


def vgg(seed):
    return scpl.models.vgg8(
        num_classes=10, width=0.125, image_shape=(16, 16, 3), rngs=nnx.Rngs(seed)
    )


def staged(count, objective, seed=0, cut="auto"):
    return scpl.decouple(
        vgg(seed), count, objective, example, nnx.Rngs(100 + seed), cut=cut
    )


# %% [markdown]
# ## Where
#
# A pipeline is as fast as its dearest stage. `cut="auto"` makes that one as cheap as
# possible, by the compiler's count of operations and memory traffic, projection heads
# included; `"even"` counts blocks. The bound on the speed is what all stages cost
# together, divided by the dearest one: with four devices at best 4.

# %%
HEAD = scpl.SupCon(head_pool=2)
print("stages  cut    blocks begin at      dearest stage   times one device, at most")
for count in range(1, 7):
    for cut in ("even", "auto"):
        stages = staged(count, HEAD, cut=cut)
        dearest, total = (
            max(stage.cost for stage in stages),
            sum(stage.cost for stage in stages),
        )
        begin = ", ".join(str(stage.blocks[0]) for stage in stages)
        print(
            f"{count:6}  {cut:5}  {begin:20} {dearest / total:12.0%} {total / dearest:18.2f}"
        )

# %% [markdown]
# Blocks can't be divided, so stages are never quite equal: six stages can be 3.9 times
# as fast as one device, not six times.
#
# ## How many
#
# More stages mean shorter gradients and more devices, but also that each stage has less
# to say about what the stages before it keep. One stage is supervised contrastive
# learning end to end: no cut at all, only another loss than backpropagation has. Each
# point is trained twice, from other initial values and in another order.

# %%
EPOCHS, SEEDS = 3, (0, 1)
SCALED = {"mean": data.mean, "std": data.std}


def accuracy(stages, seed):
    pipeline = scpl.Pipeline(
        stages,
        optax.adam(1e-3),
        prepare=make_augment("none", **SCALED),
        prepare_eval=functools.partial(normalise, **SCALED),
        key=jax.random.key(seed),
    )
    for epoch in range(EPOCHS):
        for batch in data.train_batches(96, seed=seed, epoch=epoch):
            pipeline.train_step(*batch)
    return pipeline.evaluate(data.every("test", 96))["accuracy"]


counts = (1, 2, 4, 6)
local = np.array(
    [[accuracy(staged(count, HEAD, seed), seed) for seed in SEEDS] for count in counts]
)
whole = np.array(
    [accuracy(staged(1, scpl.CrossEntropy(), seed), seed) for seed in SEEDS]
)
for count, values in zip(counts, local, strict=True):
    print(
        f"{count} stages: {values.mean():.3f} ({', '.join(f'{value:.3f}' for value in values)})"
    )
print(
    f"backpropagation: {whole.mean():.3f} ({', '.join(f'{value:.3f}' for value in whole)})"
)

# %%
figure, axis = plt.subplots(figsize=(5.5, 3.2))
axis.plot(counts, local.mean(axis=1), color=COLOURS[0], label="local losses, mean")
for seed, marker in zip(SEEDS, "os", strict=True):
    axis.plot(
        counts,
        local[:, seed],
        marker,
        color=COLOURS[1],
        markersize=5,
        label=f"seed {seed}",
    )
axis.axhline(
    whole.mean(), color=COLOURS[6], linestyle="--", label="backpropagation, mean"
)
axis.set(
    xlabel="stages",
    ylabel=f"test accuracy after {EPOCHS} epochs",
    title="Accuracy by number of stages",
)
axis.legend(frameon=False, fontsize=8)
figure.tight_layout()

# %% [markdown]
# After three epochs one, two and four stages stay within 0.03 of backpropagation here;
# six fall behind by 0.033.
#
# ## Which head
#
# The head is thrown away after training, but it is paid for in every step. `head_pool`
# averages the feature map before the head; without it (`head_pool=0`, as in the paper)
# an early stage's head is by far the largest part of the network.

# %%
CHOICES = {
    "no head": scpl.SupCon(head="identity"),
    "linear, pooled to 2 x 2": scpl.SupCon(head="linear", head_pool=2),
    "mlp, pooled to 2 x 2": scpl.SupCon(head="mlp", head_pool=2),
    "mlp, not pooled": scpl.SupCon(head="mlp"),
    "mlp, 2 x 2, + 0.5 cross-entropy": scpl.Mixture(
        ((1.0, scpl.SupCon(head="mlp", head_pool=2)), (0.5, scpl.LocalClassifier(10)))
    ),
}
print(f"{'head':34}{'parameters':>12}{'share of work':>15}{'accuracy':>11}")
for name, objective in CHOICES.items():
    stages = staged(4, objective, cut=(1, 2, 4))
    network = sum(
        leaf.size
        for block in vgg(0)
        for leaf in jax.tree.leaves(nnx.state(block, nnx.Param))
    )
    heads = sum(stage.num_parameters for stage in stages) - network
    share = sum(stage.loss_cost for stage in stages) / sum(
        stage.cost for stage in stages
    )
    found = np.mean(
        [accuracy(staged(4, objective, seed, cut=(1, 2, 4)), seed) for seed in SEEDS]
    )
    print(f"{name:34}{heads:12,}{share:15.0%}{found:11.3f}")

# %% [markdown]
# Read such a table by differences that are larger than those between seeds: with 360
# test images one image is 0.003, and the seeds above lie up to 0.011 apart. What it
# tells is the price, up to 63 % of the work, and that on easy data after three epochs a
# head need not pay: a linear one and none at all are ahead. On harder data ask
# again: `--table heads` below.
#
# `python -m scpl_jax.experiments.reproduce --table NAME --data-dir FOLDER` asks CIFAR-10
# the same: `stages` and `heads`, and also `temperature`, `batch` and `noise`.
