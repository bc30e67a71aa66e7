"""The loop of the LSTM layers has the derivative of the loop differentiated step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

from scpl_jax.kernels import onednn
from scpl_jax.kernels.recurrence import recurrence

LENGTH, ROWS, FEATURES, HIDDEN = 5, 3, 4, 6


@pytest.fixture(params=["few rows", "many rows"], autouse=True)
def form(request, set_thresholds):
    """Inputs go through their product before the loop, or in it."""
    set_thresholds(lstm_rows=ROWS + 1 if request.param == "few rows" else 1)


@pytest.fixture(params=["xla", "onednn"])
def library(request, onednn_at_any_size):
    if request.param == "onednn" and not onednn.available():
        pytest.skip("no oneDNN in this jaxlib")
    return request.param


def step_by_step(directions):
    found = []
    for x, kernel, recurrent, bias, h, c, real in directions:
        outputs = []
        for inputs, there in zip(x, real[..., None], strict=True):
            i, f, g, o = jnp.split(inputs @ kernel + h @ recurrent + bias, 4, axis=-1)
            new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
            h, c = jnp.where(there, new_h, h), jnp.where(there, new_c, c)
            outputs.append(jnp.where(there, new_h, 0))
        found.append((jnp.stack(outputs), h, c))
    return found


@pytest.fixture(
    params=["words first", "padding first", pytest.param("padding between", marks=pytest.mark.numeric), "no words"]
)
def directions(request):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    real = {
        "words first": [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]],
        "padding first": [[0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]],
        "padding between": [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0], [1, 1, 0, 1, 1]],
        "no words": [[0] * 5] * 3,
    }[request.param]
    real = jnp.array(real, bool).T
    weights = ((FEATURES, 4 * HIDDEN), (HIDDEN, 4 * HIDDEN), (4 * HIDDEN,), (ROWS, HIDDEN), (ROWS, HIDDEN))
    one = [(normal(LENGTH, ROWS, FEATURES), *(normal(*shape) for shape in weights), real) for _ in range(2)]
    return [one[0], (*one[1][:-1], real[::-1])]


def test_values_are_those_of_the_loop_step_by_step(directions, library):
    assert_close(recurrence(directions, library), step_by_step(directions), 1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_gradients_are_those_of_the_loop_step_by_step(directions, jit, library):
    rng = np.random.default_rng(1)
    weights = [jax.tree.map(lambda y: rng.normal(size=y.shape), one) for one in step_by_step(directions)]
    reals = [one[-1] for one in directions]

    def gradient(function):
        def loss(floats):
            found = function([(*one, real) for one, real in zip(floats, reals, strict=True)])
            return sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(weights), strict=True))

        of = jax.grad(loss)
        return (jax.jit(of) if jit else of)([one[:-1] for one in directions])

    mine = gradient(lambda directions: recurrence(directions, library))
    assert_close(mine, gradient(step_by_step), 1e-5)


def test_in_bfloat16_values_and_gradients_keep_their_type():
    one = [jnp.ones((2, 1, 3)), jnp.ones((3, 8)), jnp.ones((2, 8)), jnp.ones(8), jnp.ones((1, 2)), jnp.ones((1, 2))]
    one = [x.astype(jnp.bfloat16) for x in one]
    real = jnp.ones((2, 1), bool)
    found, pull = jax.vjp(lambda *floats: recurrence([(*floats, real)]), *one)
    assert {leaf.dtype for leaf in jax.tree.leaves((found, pull(found)))} == {jnp.dtype(jnp.bfloat16)}
