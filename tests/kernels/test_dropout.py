"""Dropout drops the share that it should, again each time, and keeps the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scpl_jax.kernels.dropout import Dropout, dropout


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_the_share_is_dropped_and_the_mean_stays(rate, impl):
    x = jnp.full((301, 333, 7), 2.0)
    y = np.asarray(dropout(jax.random.key(3, impl=impl), rate, x))
    spread = np.sqrt(rate * (1 - rate) / x.size)
    assert abs(np.mean(y == 0) - rate) < 5 * spread + 2**-17
    assert abs(y.mean() / 2 - 1) < 5 * spread / (1 - rate)
    assert len(np.unique(y)) == 2


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0)])
def test_any_shape_and_type(shape):
    for dtype in (jnp.float32, jnp.bfloat16):
        y = dropout(jax.random.key(0), 0.5, jnp.ones(shape, dtype))
        assert (y.shape, y.dtype) == (shape, dtype)


def test_values_that_lie_together_are_dropped_independently():
    dropped = np.asarray(dropout(jax.random.key(1), 0.5, jnp.ones(100_000))) == 0
    for distance in (1, 2, 50_000):  # two of one word, two of neighbouring words, two of one call of the generator
        both = np.mean(dropped[:-distance] & dropped[distance:])
        assert abs(both - 0.25) < 5 * np.sqrt(3 / 16 / len(dropped))


def test_the_same_key_drops_the_same_and_another_one_other_values():
    x = jnp.ones(1000)
    first, again, other = (np.asarray(dropout(jax.random.key(seed), 0.5, x)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert 400 < np.sum(first != other) < 600


def test_a_layer_drops_again_each_time_in_training_and_nothing_in_evaluation():
    layer, x = Dropout(0.5, rngs=nnx.Rngs(0)), jnp.ones(1000)
    first, second = layer(x), layer(x)
    assert 400 < np.sum(np.asarray(first != second)) < 600
    layer.eval()
    np.testing.assert_array_equal(layer(x), x)
    assert jax.tree.leaves(nnx.state(Dropout(0.0, rngs=nnx.Rngs(0)))) == []
