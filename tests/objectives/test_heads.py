import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import nnx

from scpl_jax.objectives import HEADS, ProjectionHead, SupCon
from scpl_jax.objectives.heads import average_pool

DIMS = {"identity": None, "linear": (5,), "mlp": (6, 5), "mlp-bn": (6, 5), "simsiam": (6, 5)}


def build(in_shape, kind, dims, pool=0, **options):
    """The head as shapes only: nothing is computed."""
    return nnx.eval_shape(lambda: ProjectionHead(in_shape, kind, dims, pool, rngs=nnx.Rngs(0), **options))


def output(head, shape, dtype=jnp.float32):
    return nnx.eval_shape(lambda head, x: head(x), head, jax.ShapeDtypeStruct(shape, dtype))


def kernels(head):
    return [layer.linear.kernel.shape for layer in head.layers]


def test_every_kind_is_covered():
    assert set(DIMS) == set(HEADS)


@pytest.mark.parametrize("pool", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("kind", DIMS)
def test_output_of_a_feature_map(kind, pool):
    head = build((4, 7, 3), kind, DIMS[kind], pool)
    size = 4 * 7 * 3 if pool == 0 else min(pool, 4) * min(pool, 7) * 3
    assert output(head, (2, 4, 7, 3)).shape == (2, 5 if DIMS[kind] else size)
    if DIMS[kind]:
        assert kernels(head)[0][0] == size


@pytest.mark.parametrize("in_shape", [(10,), (6, 4), (2, 2, 2, 2)])
@pytest.mark.parametrize("kind", DIMS)
def test_features_that_are_no_images_are_flattened_and_never_pooled(kind, in_shape):
    head = build(in_shape, kind, DIMS[kind], 2)
    assert output(head, (3, *in_shape)).shape == (3, 5 if DIMS[kind] else math.prod(in_shape))


@pytest.mark.parametrize(
    ("kind", "dims", "expected"),
    [
        ("identity", None, []),
        ("linear", (5,), [(8, 5)]),
        ("mlp", (6, 5), [(8, 6), (6, 5)]),
        ("mlp", (7, 6, 5), [(8, 7), (7, 6), (6, 5)]),
        ("mlp-bn", (7, 6, 5), [(8, 7), (7, 6), (6, 5)]),
        ("simsiam", (6, 5), [(8, 6), (6, 6), (6, 5)]),
    ],
)
def test_layers(kind, dims, expected):
    head = build((8,), kind, dims)
    assert kernels(head) == expected
    has_norm = [len(layer.norm) == 1 for layer in head.layers]
    has_bias = [layer.linear.bias is not None for layer in head.layers]
    assert has_bias == [not norm for norm in has_norm]  # a bias before batch norm would do nothing
    inner = len(expected) - 1
    assert [layer.relu for layer in head.layers] == [True] * inner + [False] * len(expected[inner:])
    if kind == "simsiam":
        assert all(has_norm)
        last = head.layers[-1].norm[0]
        assert last.scale is None
        assert last.bias is None
    else:
        assert has_norm == [kind == "mlp-bn"] * inner + [False] * len(expected[inner:])


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("linear", [1024]), ("mlp", [512, 1024]), ("mlp-bn", [512, 1024]), ("simsiam", [512, 512, 1024])],
)
def test_default_sizes_are_the_papers(kind, sizes):
    assert [shape[1] for shape in kernels(build((8,), kind, None))] == sizes


@pytest.mark.parametrize("kind", DIMS)
def test_dtype_of_the_computation(kind):
    head = build((8,), kind, DIMS[kind], dtype=jnp.bfloat16)
    assert output(head, (3, 8)).dtype == (jnp.bfloat16 if DIMS[kind] else jnp.float32)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(head, nnx.Param)))


def test_identity_returns_the_features():
    x = np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3)
    head = ProjectionHead((2, 2, 3), "identity", rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(head(jnp.asarray(x)), x.reshape(2, -1))


WRONG = [
    ("resnet", None, 0, "unknown head 'resnet'.*identity, linear, mlp"),
    ("", None, 0, "unknown head"),
    ("linear", (5, 6), 0, "one layer size, got 5,6"),
    ("linear", (), 0, "one layer size, got none"),
    ("mlp", (5,), 0, "two or more layer sizes, got 5"),
    ("mlp-bn", (), 0, "two or more layer sizes, got none"),
    ("simsiam", (5,), 0, "two layer sizes, got 5"),
    ("simsiam", (5, 6, 7), 0, "two layer sizes, got 5,6,7"),
    ("mlp", (5, 0), 0, "at least 1, got 5,0"),
    ("linear", (-1,), 0, "at least 1, got -1"),
    ("mlp", None, -1, "pool must be.*got -1"),
    ("identity", None, -2, "pool must be.*got -2"),
]


@pytest.mark.parametrize(("kind", "dims", "pool", "message"), WRONG)
def test_wrong_options(kind, dims, pool, message):
    with pytest.raises(ValueError, match=message):
        ProjectionHead((4, 4, 3), kind, dims, pool, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):  # and as early as at the description
        SupCon(head=kind, head_dims=dims, head_pool=pool)


def adaptive_average(images, side):
    """torch's adaptive average pooling, window by window."""
    _, height, width, _ = images.shape
    out_h, out_w = min(side, height), min(side, width)
    rows = []
    for i in range(out_h):
        top, bottom = math.floor(i * height / out_h), math.ceil((i + 1) * height / out_h)
        cells = []
        for j in range(out_w):
            left, right = math.floor(j * width / out_w), math.ceil((j + 1) * width / out_w)
            cells.append(images[:, top:bottom, left:right].mean(axis=(1, 2)))
        rows.append(np.stack(cells, axis=1))
    return np.stack(rows, axis=1)


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(4, 4, 2), (6, 9, 3), (5, 5, 1), (5, 5, 2), (7, 7, 4), (7, 3, 5), (8, 5, 3), (3, 8, 3), (4, 6, 4)],
)
def test_average_pool_has_the_windows_of_adaptive_average_pooling(height, width, side):
    images = np.random.default_rng(0).normal(size=(2, height, width, 3))
    pooled = jax.jit(average_pool, static_argnums=1)(np.float32(images), side)
    expected = adaptive_average(images, side)
    assert pooled.shape == expected.shape
    assert_close(pooled, expected, 1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (3, 5)])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_pooling_to_the_size_or_more_changes_nothing(height, width, dtype):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, height, width, 3)), dtype)
    for side in (max(height, width), max(height, width) + 3):
        pooled = average_pool(images, side)
        assert pooled.dtype == dtype
        np.testing.assert_array_equal(pooled, images)


@pytest.mark.parametrize("side", [2, 3])
def test_pooling_keeps_the_dtype(side):
    pooled = jax.eval_shape(lambda x: average_pool(x, side), jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.bfloat16))
    assert pooled.dtype == jnp.bfloat16
    assert pooled.shape == (2, side, side, 3)


@pytest.mark.parametrize("features", [jnp.zeros(4), (jnp.zeros((2, 3)), jnp.zeros((2, 3)))])
def test_objective_names_features_that_it_cannot_use(features):
    with pytest.raises(ValueError, match="SupCon needs features that are one array"):
        SupCon().build(features, rngs=nnx.Rngs(0))


def test_objective_gives_head_and_loss_its_options():
    example = jax.ShapeDtypeStruct((4, 6, 6, 3), jnp.float32)
    options = {"head": "linear", "head_dims": (5,), "head_pool": 2, "temperature": 0.5, "count_anchor": True}
    loss = nnx.eval_shape(lambda: SupCon(**options).build(example, rngs=nnx.Rngs(0)))
    assert kernels(loss.head) == [(2 * 2 * 3, 5)]
    assert (loss.temperature, loss.count_anchor) == (0.5, True)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_objective_checks_its_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        SupCon(temperature=temperature)
