import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpl_jax.data import DataError, batches, epoch_order, eval_batches

sizes = st.integers(1, 60)
seeds = st.integers(0, 2**31)


def _examples(count):
    """Images whose pixels are their labels."""
    labels = np.arange(count, dtype=np.int32)
    return np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (count, 2, 2, 3)), labels


@given(count=sizes, seed=seeds, epoch=st.integers(0, 500))
def test_epoch_order_is_a_permutation_fixed_by_seed_and_epoch(count, seed, epoch):
    order = epoch_order(count, seed=seed, epoch=epoch)
    assert sorted(order) == list(range(count))
    np.testing.assert_array_equal(order, epoch_order(count, seed=seed, epoch=epoch))


def test_epoch_order_differs_between_epochs_and_seeds():
    orders = {tuple(epoch_order(1000, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_epoch_order_stays_what_it_is():
    # Fixed here so that a change of the generator, which would break resuming, is seen.
    assert epoch_order(8, seed=3, epoch=1).tolist() == [2, 1, 4, 0, 5, 7, 6, 3]


@given(count=sizes, batch_size=sizes, seed=seeds)
def test_batches_follow_the_order_and_drop_the_rest(count, batch_size, seed):
    images, labels = _examples(count)
    order = epoch_order(count, seed=seed, epoch=0)
    if batch_size > count:
        with pytest.raises(DataError, match=f"`batch_size` is {batch_size} but there are only {count} training"):
            batches(images, labels, batch_size, order=order)
        return
    given_batches = list(batches(images, labels, batch_size, order=order))
    assert len(given_batches) == count // batch_size
    seen = np.concatenate([batch_labels for _, batch_labels in given_batches])
    np.testing.assert_array_equal(seen, order[: len(seen)])
    for batch_images, batch_labels in given_batches:
        assert batch_images.shape == (batch_size, 2, 2, 3)
        assert (batch_images.dtype, batch_labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(batch_images[:, 0, 0, 0], batch_labels)


@given(count=sizes, batch_size=st.integers(1, 10), start=st.integers(0, 70))
def test_batches_resumed_within_an_epoch_go_on_where_they_stopped(count, batch_size, start):
    images, labels = _examples(max(count, batch_size))
    order = epoch_order(len(labels), seed=0, epoch=0)
    whole = [batch.tolist() for _, batch in batches(images, labels, batch_size, order=order)]
    rest = [batch.tolist() for _, batch in batches(images, labels, batch_size, order=order, start=start)]
    assert rest == whole[start:]


@given(count=sizes, batch_size=sizes)
@settings(deadline=None)
def test_eval_batches_hold_every_example_once_and_pad_the_last(count, batch_size):
    images, labels = _examples(count)
    given_batches = list(eval_batches(images, labels, batch_size))
    assert {batch_images.shape for batch_images, _ in given_batches} == {(batch_size, 2, 2, 3)}
    all_images = np.concatenate([batch_images for batch_images, _ in given_batches])
    all_labels = np.concatenate([batch_labels for _, batch_labels in given_batches])
    np.testing.assert_array_equal(all_labels[:count], labels)
    np.testing.assert_array_equal(all_images[:count], images)
    assert (all_labels[count:] == -1).all()
    assert not all_images[count:].any()
    assert len(all_labels) - count < batch_size
    assert (all_images.dtype, all_labels.dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_size_below_one_is_refused(batch_size):
    images, labels = _examples(4)
    with pytest.raises(DataError, match=f"`batch_size` is {batch_size}, expected at least 1"):
        batches(images, labels, batch_size, order=np.arange(4))
    with pytest.raises(DataError, match=f"`batch_size` is {batch_size}, expected at least 1"):
        eval_batches(images, labels, batch_size)


def test_negative_numbers_are_refused():
    images, labels = _examples(4)
    with pytest.raises(DataError, match="`seed` is -1"):
        epoch_order(4, seed=-1, epoch=0)
    with pytest.raises(DataError, match="epoch is -1"):
        epoch_order(4, seed=0, epoch=-1)
    with pytest.raises(DataError, match="the first batch is -1"):
        batches(images, labels, 2, order=np.arange(4), start=-1)
