"""Batch norm is Flax's, in values, running averages and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scpl_jax.models.norm import BatchNorm

OPTIONS = {"momentum": 0.9, "epsilon": 1e-5, "use_fast_variance": False}


def both(**options):
    layers = [kind(5, **OPTIONS, **options, rngs=nnx.Rngs(0)) for kind in (BatchNorm, nnx.BatchNorm)]
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=5) for name in ("scale", "bias", "mean")} | {"var": rng.uniform(1, 2, 5)}
    for layer in layers:
        for name, value in values.items():
            if getattr(layer, name) is not None:
                getattr(layer, name)[...] = jnp.asarray(value, jnp.float32)
    return layers


def step(layer, x):
    """Value, gradients of parameters and input, and everything the layer then holds."""
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    weights = np.random.default_rng(1).normal(size=x.shape)

    @jax.jit
    def run(params, x):
        def loss(params, x):
            module = nnx.merge(graph, params, rest, copy=True)
            y = module(x)
            return jnp.sum(jnp.tanh(y) * weights), (y, nnx.state(module, nnx.BatchStat))

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    return jax.tree.leaves(run(params, x))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 4, 3, 5), (7, 5), (1, 5)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_values_averages_and_gradients_are_those_of_flax(shape, affine, offset):
    x = jnp.asarray(np.random.default_rng(2).normal(size=shape) + offset, jnp.float32)
    ours, theirs = (step(layer, x) for layer in both(use_scale=affine, use_bias=affine))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_types_are_those_of_flax(dtype):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(8, 5)), dtype or jnp.bfloat16)
    ours, theirs = (step(layer, x) for layer in both(dtype=dtype))
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    chex.assert_trees_all_close(ours, theirs, rtol=0.05, atol=0.05)


def test_in_evaluation_and_with_a_mask_it_is_flax_itself():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(8, 5)), jnp.float32)
    mask = jnp.arange(8)[:, None] < 5
    ours, theirs = both()
    np.testing.assert_array_equal(ours(x, mask=mask), theirs(x, mask=mask))
    for layer in (ours, theirs):
        layer.eval()
    np.testing.assert_array_equal(ours(x), theirs(x))
