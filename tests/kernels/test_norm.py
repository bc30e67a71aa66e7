"""Batch norm is Flax's, in values and gradients, and in running averages without the correction for their start."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import nnx

from scpl_jax.kernels.norm import BatchNorm
from scpl_jax.kernels.pooling import max_pool_2x2

OPTIONS = {"momentum": 0.9, "epsilon": 1e-5, "use_fast_variance": False}


def both(**options):
    ours = BatchNorm(5, bias_correction=False, **OPTIONS, **options, rngs=nnx.Rngs(0))
    layers = [ours, nnx.BatchNorm(5, **OPTIONS, **options, rngs=nnx.Rngs(0))]
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=5) for name in ("scale", "bias", "mean")} | {"var": rng.uniform(1, 2, 5)}
    for layer in layers:
        for name, value in values.items():
            if getattr(layer, name) is not None:
                getattr(layer, name)[...] = jnp.asarray(value, jnp.float32)
    return layers


def plain(layer, x):
    return layer(x)


def step(layer, x, apply=plain):
    """Value, gradients of parameters and input, and everything the layer then holds."""
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    @jax.jit
    def run(params, x):
        def loss(params, x):
            module = nnx.merge(graph, params, rest, copy=True)
            y = apply(module, x)
            weights = np.random.default_rng(1).normal(size=y.shape)
            return jnp.sum(jnp.tanh(y) * weights), (y, nnx.state(module, nnx.BatchStat))

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    return jax.tree.leaves(run(params, x))


@pytest.mark.numeric
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 4, 3, 5), (7, 5), (1, 5)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_values_averages_and_gradients_are_those_of_flax(shape, affine, offset):
    x = jnp.asarray(np.random.default_rng(2).normal(size=shape) + offset, jnp.float32)
    ours, theirs = (step(layer, x) for layer in both(use_scale=affine, use_bias=affine))
    assert_close(ours, theirs, 1e-6 * max(10, offset), scale=1)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_types_are_those_of_flax(dtype):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(8, 5)), dtype or jnp.bfloat16)
    ours, theirs = (step(layer, x) for layer in both(dtype=dtype))
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    assert_close(ours, theirs, 0.05, scale=1)


def test_in_evaluation_and_with_a_mask_it_is_flax_itself():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(8, 5)), jnp.float32)
    mask = jnp.arange(8)[:, None] < 5
    ours, theirs = both()
    np.testing.assert_array_equal(ours(x, mask=mask), theirs(x, mask=mask))
    for layer in (ours, theirs):
        layer.eval()
    np.testing.assert_array_equal(ours(x), theirs(x))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("size", [(8, 6), (5, 7)])
@pytest.mark.parametrize("rows_at_a_time", [None, 1, 2])
def test_pooled_it_is_the_pool_of_its_result(set_thresholds, size, affine, rows_at_a_time):
    """Also where scales are negative, so that the smallest value of a window is the largest behind them."""
    x = jnp.asarray(np.random.default_rng(2).normal(size=(6, *size, 5)), jnp.float32)
    layers = both(use_scale=affine, use_bias=affine)
    if affine:
        assert 0 < np.sum(np.asarray(layers[0].scale[...]) < 0) < 5
    if rows_at_a_time is not None:
        set_thresholds(pooled_bytes=rows_at_a_time * 2 * x.nbytes // size[0])
    ours = step(layers[0], x, lambda layer, x: layer.and_max_pool(x))
    theirs = step(layers[1], x, lambda layer, x: max_pool_2x2(layer(x)))
    assert_close(ours, theirs, 1e-5)


def test_pooled_the_type_is_kept():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(6, 4, 4, 5)), jnp.bfloat16)
    ours, theirs = both(dtype=jnp.bfloat16)
    ours = step(ours, x, lambda layer, x: layer.and_max_pool(x))
    theirs = step(theirs, x, lambda layer, x: max_pool_2x2(layer(x)))
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)


def test_in_evaluation_it_pools_what_flax_makes():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(6, 4, 4, 5)), jnp.float32)
    ours, theirs = both()
    for layer in (ours, theirs):
        layer.eval()
    np.testing.assert_array_equal(ours.and_max_pool(x), max_pool_2x2(theirs(x)))
