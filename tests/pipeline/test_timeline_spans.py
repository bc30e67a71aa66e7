"""Spans of a timeline are as long as what they show: with the idle time they add up to the time that has passed."""

import time

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.kernels import onednn
from scpl_jax.pipeline import Timeline

STEPS = 4


SUPCON = scpl.SupCon(head_pool=2, head_dims=(32, 32))


@pytest.mark.parametrize(
    ("objective", "apart", "library"),
    [
        pytest.param(SUPCON, False, "xla", id="scpl together xla", marks=pytest.mark.runs),
        pytest.param(SUPCON, True, "onednn", id="scpl apart onednn"),
        pytest.param(scpl.CrossEntropy(), True, "xla", id="bp apart xla"),
        pytest.param(scpl.CrossEntropy(), False, "onednn", id="bp together onednn", marks=pytest.mark.runs),
    ],
)
def test_one_device_is_at_work_all_the_time(objective, apart, library, monkeypatch, set_thresholds):
    if library == "onednn" and not onednn.available():
        pytest.skip(onednn.requirement())
    if apart:
        set_thresholds(update_parameters=0)
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
    else:
        monkeypatch.setenv("XLA_FLAGS", "")
    images = np.random.default_rng(0).normal(size=(32, 32, 32, 3)).astype(np.float32)
    labels = np.arange(32) % 10
    blocks = scpl.models.vgg8(10, width=0.125, library=library, rngs=nnx.Rngs(0))
    stages = scpl.decouple(blocks, 2, objective, images, nnx.Rngs(1))
    pipeline = scpl.Pipeline(stages, optax.adam(1e-3), jax.devices()[:1])
    pipeline.train_step(images, labels)
    pipeline.wait()
    shares = []
    for _ in range(3):  # a machine that does other things meanwhile makes gaps
        timeline = Timeline(pipeline)
        began = time.perf_counter()
        for _ in range(STEPS):
            pipeline.train_step(images, labels)
        pipeline.wait()
        wall = time.perf_counter() - began
        spans = timeline.stop()
        assert any(span.task == "update" for span in spans) == apart
        shares.append(sum(span.end - span.start for span in spans) / wall)
        if 0.8 <= shares[-1] <= 1.2:
            return
    pytest.fail(f"spans are {shares} of the time that has passed")
