"""The supervised contrastive loss of a batch that is also compared to a queue of earlier rows."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close, numerical_gradient

from scpl_jax.losses import supervised_contrastive
from scpl_jax.losses.contrastive_loss import blockwise_loss, plain_loss
from scpl_jax.losses.rows import unit_rows

N, M, D = 9, 13, 5
IN_BLOCKS = [1, 4, 9, 10, 22, 30]


def published(features, labels, rows, theirs, temperature, count_anchor):
    """Term by term in double precision: anchors are the batch, pairs are the batch and the queue; -1 is not there."""
    unit = [row / math.sqrt(row @ row) for row in features.astype(np.float64)]
    columns, all_labels = [*unit, *rows.astype(np.float64)], [*labels, *theirs]
    total, count = 0.0, 0
    for i, row in enumerate(unit):
        if labels[i] == -1:
            continue
        count += 1
        others = [k for k, label in enumerate(all_labels) if k != i and label != -1]
        positives = [p for p in others if all_labels[p] == labels[i]]
        if positives:
            denominator = sum(math.exp(row @ columns[k] / temperature) for k in others)
            terms = [math.log(math.exp(row @ columns[p] / temperature) / denominator) for p in positives]
            total -= sum(terms) / (len(positives) + count_anchor)
    return total / max(count, 1)


def example(seed=0, n=N, m=M):
    """A batch and a queue, each with rows that don't count; of class 3 the batch has one row, of class 4 the queue."""
    rng = np.random.default_rng(seed)
    x, rows = rng.normal(size=(n, D)), rng.normal(size=(m, D))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    y, theirs = rng.integers(0, 3, n), rng.integers(0, 4, m)
    y[[2, -1]], theirs[:4], theirs[-2] = [3, -1], -1, -1
    return x, y.astype(np.int32), rows, theirs.astype(np.int32)


def in_form(columns, x, y, rows, theirs, temperature=0.1, count_anchor=False):
    """The loss in one piece, or in blocks of so many columns."""
    queue, unit = (jnp.asarray(rows), jnp.asarray(theirs)), unit_rows(jnp.asarray(x))
    if columns is None:
        return plain_loss(unit, jnp.asarray(y), temperature, count_anchor, queue=queue)
    return blockwise_loss(unit, jnp.asarray(y), temperature, count_anchor, columns, queue=queue)


def loss_and_gradient(columns, *given, **options):
    return jax.jit(jax.value_and_grad(functools.partial(in_form, columns, **options)))(*given)


@pytest.mark.numeric
@pytest.mark.parametrize("count_anchor", [False, True])
@pytest.mark.parametrize("columns", [None, *IN_BLOCKS])
def test_is_the_formula_in_double_precision_and_so_is_the_gradient(columns, count_anchor):
    x, y, rows, theirs = example()
    options = {"temperature": 0.2, "count_anchor": count_anchor}
    with jax.enable_x64(True):
        loss, gradient = map(np.asarray, loss_and_gradient(columns, x, y, rows, theirs, **options))
    assert_close(loss, published(x, y, rows, theirs, **options), 1e-12)
    assert_close(gradient, numerical_gradient(lambda moved: published(moved, y, rows, theirs, **options), x), 1e-7)
    assert not gradient[-1].any()  # it has no label


@pytest.mark.numeric
@pytest.mark.parametrize("temperature", [0.005, 0.034, 0.1, 5.0])
@pytest.mark.parametrize("columns", IN_BLOCKS)
def test_blocks_give_value_and_gradient_of_the_plain_form(columns, temperature):
    given = [array.astype(np.float32) if array.dtype == np.float64 else array for array in example(1)]
    given[2][5] = given[0][0] / np.linalg.norm(given[0][0])  # as similar as can be
    found, wanted = (loss_and_gradient(form, *given, temperature=temperature) for form in (columns, None))
    assert_close(found, wanted, 1e-5, scale=1 / temperature)


@pytest.mark.numeric
def test_what_does_not_count_in_a_queue_is_as_if_it_were_not_there():
    x, y, rows, theirs = example()
    kept = theirs != -1
    with_all = supervised_contrastive(x, y, queue=(rows * np.where(kept, 1, 1e3)[:, None], theirs))
    assert_close(with_all, supervised_contrastive(x, y, queue=(rows[kept], theirs[kept])), 1e-6)
    empty = supervised_contrastive(x, y, queue=(rows, np.full_like(theirs, -1)))
    assert_close(empty, supervised_contrastive(x, y), 1e-6)
    assert abs(float(with_all) - float(empty)) > 0.1


def test_a_queue_gets_no_gradient():
    x, y, rows, theirs = map(jnp.asarray, example())
    gradient = jax.grad(lambda rows: supervised_contrastive(x, y, queue=(rows, theirs)))(rows)
    assert not gradient.any()
    gradient = jax.grad(lambda rows: in_form(4, x, y, rows, theirs))(rows)
    assert not gradient.any()


def test_one_row_has_a_queue_to_compare_with():
    x, y, rows, theirs = example()
    x, y = x[:1], np.full(1, 2, np.int32)
    loss, gradient = jax.value_and_grad(supervised_contrastive)(jnp.asarray(x), y, queue=(rows, theirs))
    assert_close(loss, published(x, y, rows, theirs, 0.1, False), 1e-5)
    assert gradient.any()
    assert float(supervised_contrastive(x[:0], y[:0], queue=(rows, theirs))) == 0


def test_a_long_queue_never_has_the_whole_matrix(set_thresholds):
    set_thresholds(contrastive_rows=16, contrastive_columns=4, contrastive_elements=32)
    x, y, rows, theirs = example(m=40)

    def sizes(n, m):
        given = x[:n], y[:n], rows[:m], theirs[:m]
        jaxpr = jax.make_jaxpr(lambda x, y, *queue: supervised_contrastive(x, y, queue=queue))(*given)
        return {v.aval.shape for equation in jaxpr.eqns for v in equation.outvars}

    assert (8, 23) in sizes(8, 15)  # few enough
    assert (8, 48) not in sizes(8, 40)
    wanted = published(x, y, rows, theirs, 0.1, False)
    assert_close(supervised_contrastive(x, y, queue=(rows, theirs)), wanted, 1e-5)


@pytest.mark.numeric
@pytest.mark.parametrize("columns", [None, 7])
def test_a_batch_that_is_spread_over_devices_has_a_queue_on_each(columns):
    x, y, rows, theirs = example(n=8)
    x, rows = x.astype(np.float32), rows.astype(np.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("data",), ()))
    placed = (*jax.device_put((x, y), split), *jax.device_put((rows, theirs), whole))
    assert_close(loss_and_gradient(columns, *placed), loss_and_gradient(columns, x, y, rows, theirs), 1e-5)
