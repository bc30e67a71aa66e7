"""Whole networks: pipelined over four devices and synchronous give the same bits."""

import chex
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.models import build_model

STEPS = 50


@pytest.mark.parametrize(
    ("model", "width", "side"),
    [("vgg8", 1 / 32, 16), pytest.param("resnet18", 1 / 32, 8, marks=pytest.mark.runs)],
)
def test_fifty_steps_pipelined_equal_synchronous_to_the_bit(model, width, side):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(STEPS, 8, side, side, 3)).astype(np.float32)
    labels = rng.integers(0, 4, (STEPS, 8)).astype(np.int32)
    blocks = build_model(model, 4, width=width, image_shape=(side, side, 3), rngs=nnx.Rngs(0))
    objective = scpl.SupCon(head_pool=2, head_dims=(16, 8))
    stages = scpl.decouple(blocks, 4, objective, images[0], nnx.Rngs(1), cut="even")
    results = []
    for devices, max_in_flight in ((4, 1), (4, 8)):
        pipeline = scpl.Pipeline(stages, optax.adam(1e-3), jax.devices()[:devices], max_in_flight=max_in_flight)
        assert len({mesh.devices.flat[0] for mesh in pipeline.meshes}) == devices
        losses = [[m["loss"] for m in pipeline.train_step(*b)] for b in zip(images, labels, strict=True)]
        states = [[state.params, state.rest, state.opt_state, state.totals] for state in pipeline.states]
        leaves = [x for x in jax.tree.leaves(states) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]
        results.append((jax.device_get(losses), jax.device_get(leaves)))
    chex.assert_trees_all_equal(*results)
    assert np.isfinite(results[0][0]).all()
