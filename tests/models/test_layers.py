"""Layers that the networks share: pooling against XLA's window reduction, initial values against Flax's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import nnx
from jax import lax

from scpl_jax.kernels.pooling import max_pool_2x2
from scpl_jax.models.layers import INITIALISERS, kernel_init, uniform


def of_windows(images):
    return lax.reduce_window(images, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_max_pool_is_the_largest_of_each_window(size):
    """Value, gradient and directional derivative; an odd last row or column is dropped."""
    keys = jax.random.split(jax.random.key(0), 3)
    images, direction = (jax.random.normal(key, (3, *size, 5)) for key in keys[:2])
    cotangent = jax.random.normal(keys[2], of_windows(images).shape)
    (here, to_here), (there, to_there) = jax.vjp(max_pool_2x2, images), jax.vjp(of_windows, images)
    chex.assert_trees_all_equal(here, there)
    chex.assert_trees_all_equal(to_here(cotangent), to_there(cotangent))
    _, along = jax.jvp(max_pool_2x2, (images,), (direction,))
    assert_close(jnp.vdot(along, cotangent), jnp.vdot(direction, to_here(cotangent)[0]), 1e-5, scale=1)


def test_of_equal_values_in_a_window_the_first_gets_the_gradient():
    images = jax.random.randint(jax.random.key(3), (4, 8, 8, 5), 0, 3).astype(jnp.float32)
    cotangent = jax.random.normal(jax.random.key(4), (4, 4, 4, 5))
    gradients = [jax.vjp(pool, images)[1](cotangent) for pool in (max_pool_2x2, of_windows)]
    chex.assert_trees_all_equal(*gradients)


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (1, 1, 4, 6), (5, 7), (700, 400)])
@pytest.mark.parametrize("name", INITIALISERS)
def test_initial_values_are_flaxs(name, shape):
    there = {
        "torch": nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        "lecun": nnx.initializers.lecun_normal(),
        "he": nnx.initializers.he_normal(),
    }[name]
    key = jax.random.key(1)
    chex.assert_trees_all_equal(kernel_init(name)(key, shape, jnp.float32), there(key, shape, jnp.float32))


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (6, 5), (2**18 + 1,)], ids=str)
def test_uniform_numbers_are_those_of_jax(shape):
    key = jax.random.key(7)
    expected = jax.random.uniform(key, shape, minval=-0.3, maxval=0.7)
    chex.assert_trees_all_equal(uniform(key, shape, -0.3, 0.7), expected)
    chex.assert_trees_all_equal(uniform(jax.random.PRNGKey(7), shape, -0.3, 0.7), expected)
    chex.assert_trees_all_equal(uniform(key, shape, -0.3, 0.7, factor=np.float32(0.1)), expected * np.float32(0.1))
    traced = jax.jit(lambda key: uniform(key, shape, -0.3, 0.7))(key)
    chex.assert_trees_all_equal(
        traced, jax.jit(lambda key: jax.random.uniform(key, shape, minval=-0.3, maxval=0.7))(key)
    )


def test_other_generators_and_dtypes_draw_as_jax_does():
    other = jax.random.key(7, impl="rbg")
    chex.assert_trees_all_equal(uniform(other, (6, 5), 0, 1), jax.random.uniform(other, (6, 5)))
    key = jax.random.key(7)
    drawn = uniform(key, (6, 5), 0, 1, jnp.bfloat16)
    chex.assert_trees_all_equal(drawn, jax.random.uniform(key, (6, 5), jnp.bfloat16))
    with jax.threefry_partitionable(False):
        chex.assert_trees_all_equal(uniform(key, (6, 5), 0, 1), jax.random.uniform(key, (6, 5)))


def test_few_programs_draw_many_shapes(compilations):
    uniform(jax.random.key(0), (3,), -0.3, 0.7)
    with compilations() as compiled:
        for size in range(4, 60):
            uniform(jax.random.key(size), (size, 3), -0.3, 0.7, factor=size)
    assert not compiled
