import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from scpl_jax.losses import cross_entropy

value_and_gradient = jax.jit(jax.value_and_grad(cross_entropy))


def by_definition(logits, labels):
    """Minus the mean log-probability of the labels, term by term in double precision."""
    total = 0.0
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        top = max(row)
        total += top + math.log(sum(math.exp(value - top) for value in row)) - row[label]
    return total / len(labels)


def batch(n, classes, seed=0):
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=(n, classes)).astype(np.float32), rng.integers(0, classes, n).astype(np.int32)


@pytest.mark.numeric
@settings(max_examples=8, deadline=None, derandomize=True)
@given(n=st.integers(1, 8), classes=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_equals_its_definition(n, classes, seed):
    logits, labels = batch(n, classes, seed)
    expected = by_definition(logits, labels)
    assert_close(jax.jit(cross_entropy)(logits, labels), expected, 1e-6, scale=np.abs(logits).max())


@pytest.mark.numeric
def test_gradient_is_probability_minus_label():
    logits, labels = batch(5, 4)
    _, gradient = value_and_gradient(logits, labels)
    powers = np.exp(logits.astype(np.float64))
    expected = powers / powers.sum(axis=1, keepdims=True)
    expected[np.arange(5), labels] -= 1
    assert_close(gradient, expected / 5, 1e-5)


@pytest.mark.parametrize("scale", [0, 1e-20, 1e4, 1e30])
def test_finite_for_any_logits(scale):
    logits, labels = batch(5, 4)
    loss, gradient = value_and_gradient(np.float32(logits * scale), labels)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_logits_are_computed_in_float32(dtype):
    logits, labels = batch(5, 4)
    logits = jnp.asarray(logits, dtype)
    loss, gradient = value_and_gradient(logits, labels)
    assert loss.dtype == jnp.float32
    assert gradient.dtype == dtype
    assert_close(loss, by_definition(np.asarray(logits, np.float64), labels), 1e-5)


@pytest.mark.numeric
def test_double_precision_is_kept():
    logits, labels = batch(5, 4)
    with jax.enable_x64(True):
        loss = jax.jit(cross_entropy)(logits.astype(np.float64), labels)
        assert loss.dtype == jnp.float64
    assert_close(loss, by_definition(logits, labels), 1e-12)
