"""Matrix products by oneDNN are XLA's, in value and gradient, and are oneDNN's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import nnx

from scpl_jax.kernels import onednn, products
from scpl_jax.models import build_model, lstm, transformer
from scpl_jax.models.layers import linear

pytestmark = pytest.mark.usefixtures("onednn_at_any_size")
needs_onednn = pytest.mark.skipif(not onednn.available(), reason="no oneDNN in this jaxlib")


CALL = "__onednn$"


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def value_and_gradients(function, *arguments):
    value, pull = jax.vjp(jax.jit(function), *arguments)
    return value, pull(normal(*value.shape, seed=7))


@needs_onednn
@pytest.mark.parametrize("features", [5, 600], ids=["few outputs", "many outputs"])
@pytest.mark.parametrize("leading", [(), (3,), (3, 4), (2, 3, 4)], ids=str)
def test_a_linear_layer_is_the_same(leading, features):
    layers = [linear(6, features, rngs=nnx.Rngs(0), library=library) for library in ("xla", "onednn")]
    x = normal(*leading, 6)

    def loss(layer, x):
        return jnp.sum(jnp.sin(layer(x)))

    found = [nnx.jit(nnx.value_and_grad(loss, argnums=(0, 1)))(layer, x) for layer in layers]
    assert_close(found[1], found[0], 1e-5, scale=1e-2)


@pytest.mark.numeric
@needs_onednn
@pytest.mark.parametrize("keys", [4, 9])
def test_attention_is_the_same(keys):
    arrays = normal(2, 4, 3, 5), normal(2, keys, 3, 5, seed=1), normal(2, keys, 3, 5, seed=2)

    def attention(library):
        def apply(q, k, v):
            scores = products.attention_scores(q, k, library)
            return products.attention_mixture(jax.nn.softmax(scores), v, library)

        return apply

    assert_close(*(value_and_gradients(attention(library), *arrays) for library in ("onednn", "xla")), 1e-5)


@needs_onednn
@pytest.mark.parametrize(
    "model",
    ["vgg8", "resnet18", "lstm", *(pytest.param(name, marks=pytest.mark.numeric) for name in ("cnn", "transformer"))],
)
def test_a_network_by_onednn_is_the_same_and_has_its_calls_in_forward_and_backward_pass(model):
    if model in ("lstm", "transformer"):
        build = lstm if model == "lstm" else transformer
        sizes = {"vocabulary": 20, "size": 12, "hidden": 8, "dropout": 0.0} | (
            {"heads": 3} if build is not lstm else {}
        )
        inputs = jnp.asarray(np.random.default_rng(0).integers(0, 20, (3, 7)), jnp.int32)
        made = [build(2, **sizes, library=library, rngs=nnx.Rngs(0)) for library in ("xla", "onednn")]
    else:
        inputs = normal(2, 16, 16, 3)
        size = {"width": 0.125, "image_shape": (16, 16, 3)}
        made = [build_model(model, 10, **size, library=library, rngs=nnx.Rngs(0)) for library in ("xla", "onednn")]

    def loss(params, graph, rest):
        x = inputs
        for block in nnx.merge(graph, params, rest, copy=True):
            x = block(x)
        return jnp.sum(jnp.sin(x))

    found, texts = [], []
    for blocks in made:
        graph, state, rest = nnx.split(nnx.List(blocks), nnx.Param, ...)
        value = functools.partial(loss, graph=graph, rest=rest)
        programs = [jax.jit(function).lower(state) for function in (value, jax.value_and_grad(value))]
        found.append(programs[1].compile()(state))
        texts.append([program.as_text() for program in programs])
    assert_close(found[1], found[0], 1e-5, scale=1e-2)
    assert CALL not in texts[0][1]
    calls = [text.count(CALL) for text in texts[1]]
    assert 0 < calls[0] < calls[1]


@needs_onednn
def test_products_in_bfloat16_are_those_of_xla():
    x, w = normal(3, 4).astype(jnp.bfloat16), normal(4, 5).astype(jnp.bfloat16)
    numbers = (((1,), (0,)), ((), ()))
    program = jax.jit(lambda x, w: products.dense(x, w, numbers)).lower(x, w)
    assert CALL not in program.as_text()
    np.testing.assert_array_equal(program.compile()(x, w), jax.lax.dot_general(x, w, numbers))


@pytest.mark.numeric
@needs_onednn
def test_under_vmap_products_are_the_same():
    x, w = normal(3, 2, 4), normal(4, 5)
    numbers = (((1,), (0,)), ((), ()))
    assert_close(jax.vmap(lambda x: products.dense(x, w, numbers))(x), x @ w, 1e-5)


def test_a_library_that_is_unknown_or_not_here_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="unknown library 'mkl'; choose xla or onednn"):
        linear(2, 3, rngs=nnx.Rngs(0), library="mkl")
    monkeypatch.setattr(onednn, "available", lambda: False)
    for build in (
        lambda: linear(2, 3, rngs=nnx.Rngs(0), library="onednn"),
        lambda: build_model("vgg8", 10, width=0.1, library="onednn", rngs=nnx.Rngs(0)),
        lambda: lstm(2, vocabulary=5, size=2, hidden=2, library="onednn", rngs=nnx.Rngs(0)),
        lambda: transformer(2, vocabulary=5, size=2, heads=1, hidden=2, library="onednn", rngs=nnx.Rngs(0)),
    ):
        with pytest.raises(ValueError, match=r"the library onednn needs Linux on x86-64 .*; choose xla"):
            build()
