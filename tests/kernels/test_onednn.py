"""oneDNN computes what is large enough to be worth a call."""

import jax
import jax.numpy as jnp
import pytest

from scpl_jax.kernels import conv, onednn, products

pytestmark = pytest.mark.skipif(not onednn.available(), reason="no oneDNN in this jaxlib")
CALL = "__onednn$"


def by_onednn(function, *shapes):
    """Whether value or gradient call it."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def total(*arrays):
        return jnp.sum(function(*arrays) ** 2)

    return CALL in jax.jit(jax.value_and_grad(total, range(len(arrays)))).lower(*arrays).as_text()


@pytest.mark.parametrize(
    ("images", "kernel", "expected"),
    [
        ((8, 8, 8, 16), (3, 3, 16, 16), False),
        ((64, 8, 8, 16), (3, 3, 16, 16), True),
        ((8, 16, 16, 3), (3, 3, 3, 8), True),
    ],
    ids=["small", "large", "small, few channels"],
)
def test_small_convolutions_are_those_of_xla_but_over_few_channels(images, kernel, expected):
    def convolve(x, w):
        return conv.convolution_of("onednn")(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert by_onednn(convolve, images, kernel) is expected


@pytest.mark.parametrize(("rows", "expected"), [((8,), False), ((16, 64), True)], ids=["small", "large"])
def test_small_products_are_those_of_xla(rows, expected):
    def multiply(x, w):
        return products.dense(x, w, (((x.ndim - 1,), (0,)), ((), ())))

    assert by_onednn(multiply, (*rows, 64), (64, 64)) is expected


@pytest.mark.parametrize("wide", [True, False], ids=["with AVX-512", "without"])
def test_kernel_gradients_are_convolutions_where_that_is_faster(wide, monkeypatch):
    monkeypatch.setattr(onednn, "has_avx512", lambda: wide)

    def to_kernel(x, w):
        def convolve(w):
            return conv.convolution_of("onednn")(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        return jax.grad(lambda w: jnp.sum(convolve(w) ** 2))(w)

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 16, 16, 32), (3, 3, 32, 32))]
    text = jax.jit(to_kernel).lower(*arrays).as_text()
    over_three_axes = "1x1x3x96x32xf32"
    assert (over_three_axes in text) is wide
