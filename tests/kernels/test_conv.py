"""The convolution that is fast on the CPU is the plain one, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import nnx
from jax import lax

from scpl_jax.kernels import conv, onednn, winograd

pytestmark = pytest.mark.usefixtures("onednn_at_any_size")
NEEDS_ONEDNN = pytest.mark.skipif(not onednn.available(), reason="no oneDNN in this jaxlib")
LIBRARIES = ["xla", pytest.param("onednn", marks=NEEDS_ONEDNN)]
NUMBERS = ("NHWC", "HWIO", "NHWC")
# batch, side, channels, features, side of the kernel, strides, padding
SHAPES = {
    "Winograd": (3, 8, 48, 40, 3, (1, 1), "SAME"),
    "Winograd of one tile": (2, 2, 64, 64, 3, (1, 1), "SAME"),
    "Winograd, explicit padding": (1, 16, 64, 64, 3, (1, 1), [(1, 1), (1, 1)]),
    "odd side": (2, 9, 64, 64, 3, (1, 1), "SAME"),
    "no padding": (2, 10, 64, 64, 3, (1, 1), "VALID"),
    "few channels": (4, 16, 3, 40, 3, (1, 1), "SAME"),
    "stride 2": (3, 16, 40, 64, 3, (2, 2), "SAME"),
    "stride 2, padded on both sides": (3, 16, 40, 64, 3, (2, 2), [(1, 1), (1, 1)]),
    "stride 2, a row left over": (2, 10, 16, 16, 3, (2, 2), "VALID"),
    "strides that differ": (3, 16, 8, 16, 3, (2, 1), "SAME"),
    "1 x 1": (3, 8, 40, 64, 1, (1, 1), "SAME"),
    "1 x 1, stride 2": (3, 16, 40, 64, 1, (2, 2), "SAME"),
    "5 x 5": (2, 8, 40, 40, 5, (1, 1), "SAME"),
    "padding on one side": (2, 8, 40, 40, 3, (1, 1), [(2, 0), (0, 2)]),
    "small image": (2, 4, 8, 8, 3, (2, 2), "SAME"),
    "kernel as large as the image": (2, 4, 8, 8, 4, (1, 1), "VALID"),
    "more padding than kernel": (2, 8, 8, 8, 3, (1, 1), [(3, 0), (1, 4)]),
    "cut off": (2, 8, 8, 8, 3, (1, 1), [(-1, 1), (1, -2)]),
    "other height than width": (2, 8, 8, 16, (3, 5), (1, 1), [(1, 0), (2, 1)]),
}

# One of each form, for the tests that are repeated in many settings.
PORTABLE = {"Winograd", "few channels", "stride 2", "5 x 5"}
PARAMETERS = [
    pytest.param(shape, id=name, marks=[pytest.mark.numeric] if name in PORTABLE else [])
    for name, shape in SHAPES.items()
]


def both(shape, dtype=np.float32, library="xla", **options):
    """Value and gradients of our convolution and of the plain one."""
    batch, side, channels, features, size, strides, padding = shape
    sizes = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch, side, side, channels)), dtype)
    kernel = rng.normal(size=(*sizes, channels // options.get("feature_group_count", 1), features))
    kernel = jnp.asarray(kernel / sizes[0] / np.sqrt(channels), dtype)
    found = []
    for function in (conv.convolution_of(library), lax.conv_general_dilated):

        def apply(x, w, function=function):
            return function(x, w, strides, padding, dimension_numbers=NUMBERS, **options)

        value, pull = jax.vjp(jax.jit(apply), images, kernel)
        cotangent = jnp.asarray(np.random.default_rng(1).normal(size=value.shape), dtype)
        found.append((value, *pull(cotangent)))
    return found


@pytest.mark.parametrize("shape", PARAMETERS)
@pytest.mark.parametrize("memory", ["one image at a time", "all at once"])
@pytest.mark.parametrize("library", [*LIBRARIES, pytest.param("onednn by products", marks=NEEDS_ONEDNN)])
def test_value_and_gradients_are_those_of_the_plain_one(shape, memory, library, monkeypatch, set_thresholds):
    limit = 1 if memory == "one image at a time" else 1 << 40
    monkeypatch.setattr(onednn, "has_avx512", lambda: True)
    # The forms are also right where they would not be chosen for their speed.
    set_thresholds(
        winograd_bytes=limit,
        copied_bytes=limit,
        convolved_bytes=limit,
        convolved_channels=1 << 40 if library.endswith("by products") else 1,
        few_into=0,
        convolved_pixels=1,
        patches_pixels=16,
        shifts_pixels=16,
        winograd_work=0,
        winograd_always=48 * 40,
        winograd_kernel_work=0,
    )
    assert_close(*both(shape, library=library.split()[0]), 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"rhs_dilation": (2, 2)},
        {"feature_group_count": 2},
        {"lhs_dilation": (2, 2)},
        {"precision": lax.Precision.HIGHEST},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("library", LIBRARIES)
def test_options_of_the_plain_one_are_kept(options, library):
    assert_close(*both((1, 16, 64, 64, 3, (1, 1), [(1, 1), (1, 1)]), library=library, **options), 1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_in_bfloat16_the_value_is_that_of_the_plain_one_to_the_bit(library):
    ours, plain = both((1, 16, 64, 64, 3, (1, 1), "SAME"), jnp.bfloat16, library)
    np.testing.assert_array_equal(np.asarray(ours[0], np.float32), np.asarray(plain[0], np.float32))
    assert_close(ours, plain, 2e-2)


@pytest.mark.numeric
def test_winograd_in_float32_is_as_exact_as_the_direct_form():
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(2, 16, 16, 256)), rng.normal(size=(3, 3, 256, 64))
    exact = np.zeros((2, 16, 16, 64))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i in range(3):
        for j in range(3):
            exact += padded[:, i : i + 16, j : j + 16] @ kernel[i, j]
    images, kernel = np.float32(images), np.float32(kernel)
    direct = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS)

    def error(found):
        return np.sqrt(np.mean((np.asarray(found, np.float64) - exact) ** 2))

    assert error(winograd.forward(images, kernel)) < 3 * error(direct)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_layer_uses_it_under_vmap_and_checkpointing(library):
    function = conv.convolution_of(library)
    layer = nnx.Conv(32, 32, (3, 3), conv_general_dilated=function, rngs=nnx.Rngs(0))
    plain = nnx.Conv(32, 32, (3, 3), rngs=nnx.Rngs(0))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 32, 32, 32)), jnp.float32)

    def total(module, images):
        return jnp.sum(jax.vmap(jax.checkpoint(lambda x: module(x)))(images) ** 2)

    found = [jax.grad(lambda x, module=module: total(module, x))(images) for module in (layer, plain)]
    assert_close(*found, 1e-5)
