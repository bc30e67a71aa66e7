import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close, numerical_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from scpl_jax.losses import supervised_contrastive
from scpl_jax.losses.contrastive_loss import blockwise_loss
from scpl_jax.losses.rows import unit_rows

# Of the largest similarity, which is one over the temperature.
ROUNDING = 2e-6

loss_only = jax.jit(supervised_contrastive, static_argnames=("temperature", "count_anchor"))
loss_and_gradient = jax.jit(jax.value_and_grad(supervised_contrastive), static_argnames=("temperature", "count_anchor"))


def published(features, labels, temperature, count_anchor):
    """Equation 2 of arXiv 2004.11362, averaged over all rows, term by term in double precision."""
    n = len(labels)
    unit = np.zeros(features.shape)
    for i, row in enumerate(features.astype(np.float64)):
        if row.any():
            row = row / max(abs(row))  # so that no square overflows
            unit[i] = row / math.sqrt(sum(value * value for value in row))
    total = 0.0
    for i in range(n):
        others = [k for k in range(n) if k != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            continue
        denominator = sum(math.exp(unit[i] @ unit[k] / temperature) for k in others)
        terms = [math.log(math.exp(unit[i] @ unit[p] / temperature) / denominator) for p in positives]
        total -= sum(terms) / (len(positives) + count_anchor)
    return total / n


def batch(n, d, classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.integers(0, classes, n).astype(np.int32)


@pytest.mark.numeric
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 9),
    d=st.integers(1, 5),
    classes=st.integers(1, 9),
    temperature=st.sampled_from([0.05, 0.1, 1.0]),
    count_anchor=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_published_formula(n, d, classes, temperature, count_anchor, seed):
    x, y = batch(n, d, classes, seed)
    expected = published(x, y, temperature, count_anchor)
    loss = loss_only(x, y, temperature, count_anchor=count_anchor)
    assert_close(loss, expected, ROUNDING, scale=1 / temperature)


@pytest.mark.numeric
@pytest.mark.parametrize("count_anchor", [False, True])
def test_gradient_is_that_of_the_published_formula_in_double_precision(count_anchor):
    x, y = batch(7, 3, 3)
    x = x.astype(np.float64)
    with jax.enable_x64(True):
        loss, gradient = loss_and_gradient(x, y, 0.2, count_anchor=count_anchor)
        assert loss.dtype == jnp.float64
        gradient = np.asarray(gradient)
    assert_close(loss, published(x, y, 0.2, count_anchor), 1e-12)
    assert_close(gradient, numerical_gradient(lambda moved: published(moved, y, 0.2, count_anchor), x), 1e-7)


@pytest.mark.numeric
def test_equals_ntxent_where_every_label_occurs_twice():
    x, _ = batch(10, 6, 1)
    y = np.repeat(np.arange(5, dtype=np.int32), 2)
    expected = jax.jit(optax.losses.ntxent)(x, y, 0.1)
    assert_close(loss_only(x, y, 0.1), expected, ROUNDING, scale=10)


@pytest.mark.numeric
@pytest.mark.parametrize("count_anchor", [False, True])
def test_lengths_order_and_names_of_classes_do_not_matter(count_anchor):
    x, y = batch(8, 4, 3)
    options = {"temperature": 0.1, "count_anchor": count_anchor}
    loss, gradient = loss_and_gradient(x, y, **options)

    scale = np.float32([1e-3, 0.5, 1, 2, 3, 7, 100, 1e4])[:, None]
    scaled, to_scaled = loss_and_gradient(x * scale, y, **options)
    assert_close((scaled, to_scaled * scale), (loss, gradient), 1e-5)

    order = np.random.default_rng(1).permutation(8)
    permuted, to_permuted = loss_and_gradient(x[order], y[order], **options)
    assert_close((permuted, to_permuted), (loss, gradient[order]), 1e-5)

    renamed, _ = loss_and_gradient(x, np.int32([41, -7, 1000])[y], **options)
    assert_close(renamed, loss, 1e-5)


@pytest.mark.numeric
def test_count_anchor_weighs_rows_by_positives_over_positives_plus_one():
    x, _ = batch(9, 4, 1)
    y = np.int32([0, 1, 2] * 3)  # two positives each
    one = loss_only(x, y, 0.1)
    other = loss_only(x, y, 0.1, count_anchor=True)
    assert_close(other, one * 2 / 3, 1e-5)


N, D = 6, 4
LABELS = {
    "singletons": [0, 0, 0, 1, 1, 2],
    "one class": [3] * N,
    "all different": list(range(N)),
    "negative": [-1, -1, 0, 0, -5, -5],
}
FEATURES = {
    "ordinary": lambda x: x,
    "zero row": lambda x: np.where(np.arange(N)[:, None] == 2, 0, x),
    "zeros": np.zeros_like,
    "equal rows": lambda x: np.broadcast_to(x[:1], x.shape),
    "opposite rows": lambda x: x[:1] * np.where(np.arange(N) % 2, 1, -1)[:, None],
    "huge": lambda x: x * 1e30,
    "tiny": lambda x: x * 1e-20,
    "huge and tiny": lambda x: x * np.logspace(-30, 30, N)[:, None],
    "largest": lambda x: np.sign(x) * np.finfo(np.float32).max,
    "subnormal": lambda x: x * 1e-40,
    "one hot": lambda x: np.eye(N, D) * 1e30,
}


@pytest.mark.parametrize("count_anchor", [False, True])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("labels", LABELS)
def test_value_and_gradient_are_finite(labels, features, count_anchor):
    x = np.float32(FEATURES[features](batch(N, D, 1)[0]))
    y = np.int32(LABELS[labels])
    loss, gradient = loss_and_gradient(x, y, temperature=0.1, count_anchor=count_anchor)
    assert np.isfinite(loss)
    assert loss >= 0
    assert np.isfinite(gradient).all()
    if labels == "all different":
        assert loss == 0
        assert not gradient.any()
    if features == "zero row":
        assert not gradient[2].any()


@pytest.mark.parametrize("root", [1, 2, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16, jnp.float16])
def test_huge_features_up_to_the_largest_number(dtype, root):
    x, y = batch(N, D, 2)
    with jax.enable_x64(dtype is np.float64):
        limit = float(jnp.finfo(dtype).max) ** (1 / root)
        x = jnp.asarray(x / np.float64(np.abs(x).max()) * limit, dtype)
        loss, gradient = loss_and_gradient(x, y, temperature=0.1)
        x, loss, gradient = (np.asarray(value, np.float64) for value in (x, loss, gradient))
    assert np.isfinite(x).all()
    assert_close(loss, published(x, y, 0.1, False), ROUNDING, scale=10)
    assert np.isfinite(gradient).all()


def test_a_zero_row_is_similar_to_nothing():
    x, y = batch(N, D, 2)
    x[2] = 0
    expected = published(x, y, 0.1, False)
    assert_close(loss_and_gradient(x, y, temperature=0.1)[0], expected, ROUNDING, scale=10)


@pytest.mark.parametrize("count_anchor", [False, True])
def test_a_batch_of_one_gives_zero(count_anchor):
    x, y = batch(1, D, 1)
    loss, gradient = loss_and_gradient(x, y, temperature=0.1, count_anchor=count_anchor)
    assert loss == 0
    assert gradient.shape == x.shape
    assert not gradient.any()


@pytest.mark.parametrize("scale", [1, 1e4, 1e-4])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_features_are_computed_in_float32(dtype, scale):
    x, y = batch(N, D, 2)
    x = jnp.asarray(x * scale, dtype)
    loss, gradient = loss_and_gradient(x, y, temperature=0.1)
    assert loss.dtype == jnp.float32
    assert gradient.dtype == dtype
    assert np.isfinite(gradient.astype(np.float32)).all()
    assert_close(loss, published(np.asarray(x, np.float64), y, 0.1, False), ROUNDING, scale=10)


@pytest.mark.parametrize("temperature", [0, 0.0, -0.1, float("nan")])
def test_temperature_must_be_positive(temperature):
    x, y = map(jnp.asarray, batch(N, D, 2))
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        supervised_contrastive(x, y, temperature)


# The form that computes the matrix of similarities in blocks


def in_blocks(x, y, temperature, *, count_anchor, columns):
    return blockwise_loss(unit_rows(jnp.asarray(x)), jnp.asarray(y), temperature, count_anchor, columns)


blockwise = jax.jit(jax.value_and_grad(in_blocks), static_argnames=("temperature", "count_anchor", "columns"))


@pytest.mark.parametrize("count_anchor", [False, True])
@pytest.mark.parametrize("temperature", [0.01, 0.034, 0.1, 5.0])
@pytest.mark.parametrize(("n", "columns"), [(7, 1), (7, 3), (7, 7), (64, 16), (65, 16), (2, 2)])
def test_blocks_give_value_and_gradient_of_the_plain_form(n, columns, temperature, count_anchor):
    x, y = batch(n, 5, 3)
    options = {"temperature": temperature, "count_anchor": count_anchor}
    loss, gradient = blockwise(x, y, **options, columns=columns)
    expected, to_expected = loss_and_gradient(x, y, **options)
    assert_close(loss, expected, ROUNDING, scale=1 / temperature)
    assert_close(gradient, to_expected, 1e-5)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("temperature", [0.01, 0.034])
def test_blocks_are_finite_where_the_plain_form_is(labels, features, temperature):
    x = np.float32(FEATURES[features](batch(N, D, 1)[0]))
    y = np.int32(LABELS[labels])
    options = {"temperature": temperature, "count_anchor": False}
    loss, gradient = blockwise(x, y, **options, columns=4)
    expected, to_expected = loss_and_gradient(x, y, **options)
    assert_close(loss, expected, ROUNDING, scale=1 / temperature)
    lengths = np.abs(x).max(axis=1, keepdims=True)  # gradients are as small as rows are large
    assert_close(gradient * lengths, to_expected * lengths, 1e-5, scale=1 / temperature)


@pytest.mark.numeric
def test_blocks_in_double_precision():
    x, y = batch(9, 3, 3)
    with jax.enable_x64(True):
        options = {"temperature": 0.2, "count_anchor": True}
        loss, gradient = blockwise(x.astype(np.float64), y, **options, columns=4)
        expected, to_expected = loss_and_gradient(x.astype(np.float64), y, **options)
        assert loss.dtype == jnp.float64
        assert_close((loss, gradient), (expected, to_expected), 1e-13)


@pytest.mark.numeric
def test_blocks_of_a_batch_that_is_spread_over_devices():
    x, y = batch(64, 8, 5)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    options = {"temperature": 0.1, "count_anchor": False, "columns": 24}
    loss, gradient = blockwise(jax.device_put(x, place), jax.device_put(y, place), **options)
    expected, to_expected = blockwise(x, y, **options)
    assert_close((loss, gradient), (expected, to_expected), 1e-5)


def largest_array(n):
    """Elements of the largest array in the program of loss and gradient."""

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (math.prod(v.aval.shape) for v in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from sizes(inner)

    arguments = jax.ShapeDtypeStruct((n, 128), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    return max(sizes(jax.make_jaxpr(jax.value_and_grad(supervised_contrastive))(*arguments).jaxpr))


def test_large_batches_never_hold_the_whole_matrix():
    assert largest_array(1024) == 1024**2
    assert largest_array(8192) < 8192**2 / 4
    n = 32768
    assert largest_array(n) <= n * 256
    arguments = jax.ShapeDtypeStruct((n, 128), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(supervised_contrastive)).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 300e6
