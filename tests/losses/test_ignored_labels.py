"""Labels that are to be ignored, labels of no class, and the shapes and dtypes that labels may have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

from scpl_jax.losses import cross_entropy, information_regularisation, similarity_matching, supervised_contrastive
from scpl_jax.losses.contrastive_loss import blockwise_loss, plain_loss
from scpl_jax.losses.labels import class_indices
from scpl_jax.losses.rows import unit_rows

CLASSES = 5
LOSSES = {
    "cross_entropy": cross_entropy,
    "supervised_contrastive": supervised_contrastive,
    "supervised_contrastive, released": lambda x, y, **o: supervised_contrastive(x, y, count_anchor=True, **o),
    "supervised_contrastive, cold": lambda x, y, **o: supervised_contrastive(x, y, 0.02, **o),
    "in blocks": lambda x, y, ignore=-1: blockwise_loss(unit_rows(x), y, 0.1, False, 4, ignore),
    "in blocks, released": lambda x, y, ignore=-1: blockwise_loss(unit_rows(x), y, 0.1, True, 5, ignore),
    "in blocks, cold": lambda x, y, ignore=-1: blockwise_loss(unit_rows(x), y, 0.02, False, 3, ignore),
    "similarity_matching": lambda x, y, **o: similarity_matching(x, y, CLASSES, **o),
    "information_regularisation": lambda x, y, **o: sum(information_regularisation(x, y, CLASSES, **o)),
}
KNOW_CLASSES = ("cross_entropy", "similarity_matching", "information_regularisation")
every_loss = pytest.mark.parametrize("name", LOSSES)


def loss_and_gradient(name, x, y, **options):
    loss, gradient = jax.jit(jax.value_and_grad(lambda x, y: LOSSES[name](x, y, **options)))(x, y)
    return np.asarray(loss), np.asarray(gradient)


def batch(n=13):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, CLASSES)).astype(np.float32), rng.integers(0, CLASSES, n).astype(np.int32)


@every_loss
@pytest.mark.parametrize(
    ("ignored", "value"), [([0, 4, 12], -1), (list(range(1, 13)), 255)], ids=["some", "all but one"]
)
def test_ignored_examples_are_as_if_they_were_not_there(name, ignored, value):
    x, y = batch()
    left = np.setdiff1d(np.arange(len(y)), ignored)
    wanted, slopes = loss_and_gradient(name, x[left], y[left])
    y[ignored] = value
    x[ignored] *= 100
    loss, gradient = loss_and_gradient(name, x, y, ignore=value)
    assert_close((loss, gradient[left]), (wanted, slopes), 1e-5, scale=0.1)
    assert not gradient[ignored].any()


@every_loss
def test_nothing_but_ignored_examples_gives_no_gradient(name):
    x, y = batch()
    loss, gradient = loss_and_gradient(name, x, np.full_like(y, -1))
    assert np.isfinite(loss)
    assert not gradient.any()


def test_the_two_forms_of_the_contrastive_loss_ignore_alike():
    x, y = batch(40)
    y[::3] = -1
    unit = unit_rows(jnp.asarray(x))
    plain = jax.jit(jax.value_and_grad(lambda u: plain_loss(u, jnp.asarray(y), 0.1, False)))(unit)
    blocks = jax.jit(jax.value_and_grad(lambda u: blockwise_loss(u, jnp.asarray(y), 0.1, False, 7)))(unit)
    assert_close(plain, blocks, 1e-5)


@pytest.mark.parametrize("name", KNOW_CLASSES)
@pytest.mark.parametrize("label", [CLASSES, -2, 1000])
def test_a_label_of_no_class_gives_no_number(name, label):
    x, y = batch()
    y[4] = label
    assert np.isnan(loss_and_gradient(name, x, y)[0])


@pytest.mark.parametrize("name", KNOW_CLASSES)
def test_where_nothing_is_ignored_minus_one_is_no_class(name):
    x, y = batch()
    y[4] = -1
    assert np.isnan(loss_and_gradient(name, x, y, ignore=None)[0])


@pytest.mark.parametrize("name", [name for name in LOSSES if "blocks" not in name])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_columns_and_other_integers_give_the_same_loss(name, dtype):
    x, y = batch()
    assert_close(loss_and_gradient(name, x, y[:, None].astype(dtype)), loss_and_gradient(name, x, y), 1e-6, scale=1)


def test_labels_of_two_classes_may_be_booleans():
    x, y = batch()
    assert float(cross_entropy(x, y > 2)) == float(cross_entropy(x, (y > 2).astype(int)))


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.uint64])
def test_a_large_label_is_not_taken_for_one_to_be_ignored(dtype):
    x, y = batch()
    y = y.astype(dtype)
    y[4] = 2**32 - 1
    with pytest.raises(ValueError, match="labels must fit into 32 bits, got 4294967295"):
        cross_entropy(x, y)
    if dtype == np.uint32:
        assert np.isnan(float(cross_entropy(x, jnp.asarray(y))))


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros(3),
        np.zeros((3, 2), int),
        np.zeros((1, 3), int),
        np.zeros((), int),
        np.array(["a"]),
        [[1], [2, 3]],
        [1.5],
    ],
    ids=["floating", "one-hot", "row", "number", "strings", "ragged", "fractions"],
)
def test_what_are_no_class_indices_is_refused_in_one_sentence(labels):
    with pytest.raises(ValueError, match=r"^labels must be [^\n]*$"):
        class_indices(labels)
