"""Text networks: padding changes nothing, states are handed on, positions matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import nnx

from scpl_jax.models import TextMessage, lstm, transformer
from scpl_jax.models.lstm import BiLSTM
from scpl_jax.models.sequence import Embedding, masked_mean
from scpl_jax.stages.cost import module_cost

SIZES = {"vocabulary": 30, "size": 12, "hidden": 8}
MODELS = {"lstm": lstm, "transformer": lambda *a, **k: transformer(*a, heads=3, **k)}
TOKENS = np.array([[3, 4, 5, 6, 0, 0], [7, 8, 0, 0, 0, 0], [2, 3, 4, 5, 6, 7]], np.int32)


def forward(blocks, tokens):
    message = tokens
    for block in blocks:
        block.eval()
        message = block(message)
    return message


@pytest.mark.parametrize("extra", [0, 1, 50])
@pytest.mark.parametrize("name", MODELS)
def test_padding_never_changes_a_result(name, extra):
    blocks = MODELS[name](3, **SIZES, rngs=nnx.Rngs(0))
    expected = forward(blocks, TOKENS)
    padded = forward(blocks, np.pad(TOKENS, ((0, 0), (0, extra))))
    assert_close(padded, expected, 1e-5)
    alone = forward(blocks, TOKENS[1:2, :2])
    assert_close(alone, expected[1:2], 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_unmasked_padding_counts(name):
    blocks = MODELS[name](3, masked=False, **SIZES, rngs=nnx.Rngs(0))
    messages = [forward(blocks[:1], tokens).summary for tokens in (TOKENS, np.pad(TOKENS, ((0, 0), (0, 5))))]
    assert np.abs(messages[0] - messages[1]).max() > 1e-2


@pytest.mark.parametrize("name", MODELS)
def test_a_text_without_a_word_is_finite(name):
    blocks = MODELS[name](3, dropout=0.0, **SIZES, rngs=nnx.Rngs(0))
    graph, state = nnx.split(blocks[0])

    def loss(state):
        first = nnx.merge(graph, state, copy=True)
        return jnp.sum(forward([first, *blocks[1:]], np.zeros((2, 4), np.int32)) ** 2)

    value, gradient = jax.value_and_grad(loss)(state)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.numeric
def test_lstm_equals_a_loop_over_words_and_takes_over_the_state():
    layer = BiLSTM(5, 4, rngs=nnx.Rngs(1))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5)).astype(np.float32)
    mask = np.array([[True, True, True], [True, True, False]])
    state = tuple(rng.normal(size=(2, 2, 4)).astype(np.float32) for _ in range(2))
    found = layer(TextMessage(jnp.asarray(x), jnp.asarray(mask), jnp.zeros((2, 4)), state))

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    for row, length in enumerate((3, 2)):
        outputs = []
        for direction in range(2):
            h, c = (part[direction, row] for part in state)
            seen = {}
            for t in range(length) if direction == 0 else reversed(range(length)):
                gates = x[row, t] @ layer.kernel[...][direction] + h @ layer.recurrent[...][direction]
                gates = gates + layer.bias[...][direction] + layer.recurrent_bias[...][direction]
                i, f, g, o = np.split(np.asarray(gates), 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
                seen[t] = h
            outputs.append(seen)
            assert_close([part[direction, row] for part in found.state], [h, c], 1e-5)
        for t in range(3):
            expected = np.concatenate([outputs[0][t], outputs[1][t]]) if t < length else np.zeros(8)
            assert_close(found.sequence[row, t], expected.astype(np.float64), 1e-5)
        assert_close(found.summary[row], found.state[0][:, row].mean(0), 1e-6)


def test_positions_tell_the_order_of_words():
    swapped = TOKENS[:, [1, 0, 2, 3, 4, 5]]
    for positions, differ in (("none", False), ("sinusoidal", True)):
        blocks = transformer(3, heads=3, positions=positions, **SIZES, rngs=nnx.Rngs(0))
        # Only the last row is free of padding, so that its words stay where words are.
        difference = np.abs(forward(blocks, TOKENS)[2] - forward(blocks, swapped)[2]).max()
        assert (difference > 1e-4) == differ


@pytest.mark.parametrize("name", MODELS)
def test_every_block_drops_values_of_its_own(name):
    blocks = MODELS[name](3, dropout=0.5, **SIZES, rngs=nnx.Rngs(0))
    for block in blocks[:-1]:
        block.eval()
    message = TOKENS
    for block in blocks[:-1]:
        plain = block(message)
        block.train()
        dropped = block(message)
        block.eval()
        assert np.abs(dropped.sequence - plain.sequence).max() > 0
        np.testing.assert_array_equal(dropped.mask, plain.mask)
        message = plain


@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_of_training_only_and_bfloat16_stays(name):
    blocks = MODELS[name](3, dropout=0.5, dtype=jnp.bfloat16, **SIZES, rngs=nnx.Rngs(0))
    first, second = forward(blocks, TOKENS), forward(blocks, TOKENS)
    np.testing.assert_array_equal(first, second)
    for block in blocks[:-1]:
        block.train()
    trained = [blocks[1](blocks[0](TOKENS)) for _ in range(2)]
    assert np.abs(trained[0].sequence - trained[1].sequence).max() > 0
    assert trained[0].sequence.dtype == trained[0].summary.dtype == jnp.bfloat16


def test_the_embedding_of_padding_gets_no_gradient():
    graph, state = nnx.split(Embedding(10, 4, rngs=nnx.Rngs(0)))

    def loss(state):
        message = nnx.merge(graph, state, copy=True)(TOKENS)
        return jnp.sum(message.summary**2) + jnp.sum(message.sequence**2)

    gradient = jax.grad(loss)(state).vectors[...]
    assert np.abs(gradient[0]).max() == 0
    assert np.abs(gradient[3]).max() > 0


def test_mean_without_words_is_zero():
    np.testing.assert_array_equal(masked_mean(jnp.ones((1, 2, 3)), jnp.zeros((1, 2), bool)), np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lstm(2, layers=1, rngs=nnx.Rngs(0)), "at least 2 layers"),
        (lambda: transformer(2, layers=1, rngs=nnx.Rngs(0)), "at least 2 layers"),
        (lambda: transformer(2, size=10, heads=3, vocabulary=9, rngs=nnx.Rngs(0)), "3 attention heads can't share 10"),
        (lambda: Embedding(5, 4, positions="learned", rngs=nnx.Rngs(0)), "positions must be none or sinusoidal"),
        (lambda: Embedding(5, 4, dropout=1.0, rngs=nnx.Rngs(0)), r"dropout must be in \[0, 1\)"),
        (lambda: BiLSTM(5, 4, summary="max", rngs=nnx.Rngs(0)), "summary must be mean or sum"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_cost_of_a_loop_grows_with_its_length():
    layer = BiLSTM(16, 16, rngs=nnx.Rngs(0))

    def operations(length):
        x = jax.ShapeDtypeStruct((4, length, 16), jnp.float32)
        mask = jax.ShapeDtypeStruct((4, length), jnp.bool_)
        return module_cost(layer, TextMessage(x, mask, jax.ShapeDtypeStruct((4, 16), jnp.float32))).operations

    assert operations(10) == pytest.approx(10 * 2 * 4 * 2 * (16 * 64 + 16 * 64), rel=0.3)
    assert operations(40) == pytest.approx(4 * operations(10), rel=0.05)
