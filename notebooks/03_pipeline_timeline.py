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
# # Stages at work: timelines, bubbles, and machines that are not here
#
# A pipeline is as good as the share of time in which its devices compute. This notebook
# draws who works when: first for ideal stages, then measured on four emulated devices,
# then for more devices than there are here.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["png"]
import os

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4"  # before JAX is imported
)

import dataclasses

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import scpl_jax as scpl
from flax import nnx
from scpl_jax.analysis.figures import COLOURS
from scpl_jax.analysis.timeline_figure import chart
from scpl_jax.pipeline import Span, Timeline, idle_shares
from scpl_jax.simulation import Link, StageTimes, simulate, speedup_table

plt.rc("axes.spines", top=False, right=False)
plt.rc("figure", dpi=110)

# %% [markdown]
# ## Four equal stages
#
# A forward pass of 1 ms and a backward pass of 2 for each stage, messages that take no
# time. One lane is a device, one colour a batch; what is pale is a backward pass.


# %%
def shown(spans):
    """A simulated step as the chart takes it."""
    return [
        Span(
            s.kind,
            str(s.stage),
            f"device {s.device}",
            s.batch,
            s.micro_batch,
            s.start,
            s.end,
        )
        for s in spans
    ]


equal = [
    StageTimes(
        forward=1e-3,
        backward=2e-3,
        activation_bytes=8e6,
        message_bytes=1e6,
        state_bytes=4e6,
    )
] * 4
METHODS = {
    "SCPL": {"method": "scpl"},
    "backpropagation": {"method": "bp"},
    "GPipe, 4 micro-batches": {"method": "gpipe", "micro_batches": 4},
    "1F1B, 4 micro-batches": {"method": "1f1b", "micro_batches": 4},
}
found = {
    name: simulate(equal, devices=4, **options) for name, options in METHODS.items()
}
chart({name: shown(one.spans) for name, one in found.items()}, milliseconds=30)

# %% [markdown]
# SCPL's devices wait only while the first batches come in. Backpropagation keeps three
# of four devices waiting: that is the *bubble*. Micro-batches make it smaller,
# `(K - 1) / (K + M - 1)` of the time for K stages and M micro-batches, but never 0:

# %%
for micro_batches in (1, 2, 4, 8, 16, 32):
    simulated = simulate(
        equal, "gpipe", devices=4, micro_batches=micro_batches
    ).mean_idle_share
    formula = 3 / (3 + micro_batches)
    print(
        f"GPipe, {micro_batches:2} micro-batches: idle {simulated:.4f}, formula {formula:.4f}"
    )
print(f"SCPL: idle {found['SCPL'].mean_idle_share:.4f}")

# %% [markdown]
# With a device a stage all of them need about the same memory. On one device they do
# not: backpropagation keeps the activations of all stages until the gradient comes
# back, SCPL needs those of one stage at a time. Bytes of activations and state:

# %%
for count in (4, 16, 64):
    peaks = {
        name: simulate(equal[:1] * count, devices=1, method=name).peak_bytes[0]
        for name in ("scpl", "bp")
    }
    local, whole = peaks["scpl"] / 1e6, peaks["bp"] / 1e6
    print(
        f"{count:2} stages on one device: SCPL {local:4.0f} MB, backpropagation {whole:4.0f} MB"
    )

# %% [markdown]
# ## The slowest stage sets the pace
#
# The pipeline can't be faster than its dearest stage, so the cut decides. One stage of
# four takes 1.0, 1.5 and 2 times as long:

# %%
for factor in (1.0, 1.5, 2.0):
    uneven = [dataclasses.replace(stage) for stage in equal]
    uneven[1] = dataclasses.replace(
        equal[1], forward=factor * 1e-3, backward=factor * 2e-3
    )
    one = simulate(uneven, "scpl", devices=4)
    work = sum(stage.forward + stage.backward for stage in uneven)
    seconds, idle = (
        one.step_seconds,
        ", ".join(f"{share:.2f}" for share in one.idle_share),
    )
    faster = work / seconds
    print(
        f"{factor} times: {seconds * 1e3:.1f} ms a step, {faster:.2f} times one device, idle {idle}"
    )

# %% [markdown]
# And batches must be under way in all stages at once. `max_in_flight` bounds how many;
# below the number of devices it costs speed:

# %%
for number in (1, 2, 3, 4, 8):
    seconds = simulate(equal, "scpl", devices=4, max_in_flight=number).step_seconds
    print(f"{number} in flight: {seconds * 1e3:5.2f} ms a step")

# %% [markdown]
# ## Measured
#
# Now real programs: a small VGG in four stages on four devices. `Timeline` notes when
# each program began and ended while the pipeline runs. These devices are emulated and
# share the cores of this machine, so look at the order of things, not at the speed:
# where lanes overlap, programs slow each other down. On real devices each lane has a
# chip of its own.

# %%
rng = np.random.default_rng(0)
images = rng.normal(size=(64, 32, 32, 3)).astype(np.float32)
labels = (np.arange(64) % 10).astype(np.int32)


def staged(objective, cut="auto"):
    blocks = scpl.models.vgg8(num_classes=10, width=0.125, rngs=nnx.Rngs(0))
    return scpl.decouple(blocks, 4, objective, images, nnx.Rngs(1), cut=cut)


def measured(stages, steps=6, **options):
    pipeline = scpl.Pipeline(stages, optax.adam(1e-3), jax.devices(), **options)
    for _ in range(2):
        pipeline.train_step(images, labels)
    pipeline.wait()
    timeline = Timeline(pipeline)
    for _ in range(steps):
        pipeline.train_step(images, labels)
    pipeline.wait()
    return timeline.stop()


local = staged(scpl.SupCon(head_pool=2))
whole = staged(scpl.CrossEntropy(), cut=[stage.blocks[0] for stage in local[1:]])
runs = {
    "SCPL": measured(local),
    "SCPL, one batch at a time": measured(local, max_in_flight=1),
    "backpropagation": measured(whole),
    "GPipe, 4 micro-batches": measured(whole, micro_batches=4),
}
chart(runs)

# %%
for name, spans in runs.items():
    shares = idle_shares(spans, skip=1)
    print(
        f"{name:28} idle: "
        + "  ".join(f"{device} {share:.2f}" for device, share in shares.items())
    )

# %% [markdown]
# `--timeline` of the experiments writes such a chart and a trace for Perfetto; to
# measure speed on a CPU give each stage a process and a core of its own (`python -m
# scpl_jax.launch --processes 2 --pin -- ...`).
#
# ## More devices than there are here
#
# The same simulation with up to 64 devices. A network of fixed size is cut into as many
# stages as there are devices; a message takes 1 % of the forward pass of the whole
# network, and every program 0.05 % to start.

# %%
WHOLE = StageTimes(forward=1.0, backward=2.0, message_bytes=1.0)


def cut_into(count):
    return [
        dataclasses.replace(WHOLE, forward=1 / count, backward=2 / count, local=0.02)
    ] * count


counts = [1, 2, 4, 8, 16, 32, 64]
rows = speedup_table(
    cut_into, counts, [4, 16], link=Link(bandwidth=100.0), overhead=5e-4
)
styles = {
    "scpl": "-",
    "bp": "--",
    "gpipe 4": "-.",
    "gpipe 16": ":",
    "1f1b 16": (0, (5, 1, 1, 1, 1, 1)),
}
figure, axis = plt.subplots(figsize=(6, 3.6))
alone = rows[0]["bp"]
for (name, dashes), colour in zip(
    styles.items(), COLOURS[::2] + COLOURS[1::2], strict=False
):
    axis.loglog(
        counts,
        [alone / row[name] for row in rows],
        label=name,
        color=colour,
        linestyle=dashes,
        base=2,
    )
axis.loglog(
    counts,
    counts,
    color="#bbbbbb",
    linewidth=0.8,
    base=2,
    label="as many times as devices",
)
axis.set(
    xlabel="devices, as many stages",
    ylabel="times one device with bp",
    title="Simulated speed",
)
axis.set_xticks(counts, [str(count) for count in counts])
axis.set_yticks([0.5, 1, 2, 4, 8, 16, 32], ["0.5", "1", "2", "4", "8", "16", "32"])
axis.legend(frameon=False, fontsize=8)
figure.tight_layout()

# %% [markdown]
# SCPL starts a little below 1: its local losses are extra work (2 % of a forward pass a
# stage here). They stay while the stages shrink, which is why its line bends too; GPipe
# bends earlier, by its bubble and by the many small programs. How the loss of accuracy
# grows with the number of stages is the other half of the answer: see
# `04_choosing_cuts_and_heads`.
