"""Batches of texts: every text where it belongs, short ones together, the same after resuming."""

import itertools

import numpy as np
import pytest

from scpl_jax.data import DataError
from scpl_jax.data.text.buckets import Texts, bucket_lengths, eval_text_batches, text_batches


@pytest.fixture
def texts():
    """100 texts of 1 to 40 tokens; the first token of each is its number and 1."""
    rng = np.random.default_rng(0)
    return Texts.of([[number + 1, *[500] * rng.integers(0, 40)] for number in range(100)])


def labels_of(texts):
    return np.arange(len(texts), dtype=np.int32)


def padding(lengths, buckets):
    return sum(next(b for b in buckets if b >= min(n, buckets[-1])) for n in lengths)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("seed", range(3))
def test_buckets_need_as_little_padding_as_possible(seed, count):
    lengths = np.random.default_rng(seed).integers(1, 60, 50)
    found = bucket_lengths(lengths, 53, count)
    sizes = sorted({min(-(-n // 8) * 8, 53) for n in lengths})
    choices = [[*some, sizes[-1]] for r in range(count) for some in itertools.combinations(sizes[:-1], r)]
    assert padding(lengths, found) == min(padding(lengths, choice) for choice in choices)
    assert len(found) <= count
    assert list(found) == sorted(set(found))


def test_buckets_of_equal_texts_are_one():
    assert bucket_lengths(np.full(9, 5), 400, 4) == (8,)
    assert bucket_lengths(np.full(9, 500), 350, 4) == (350,)
    with pytest.raises(DataError, match="`buckets` is 0"):
        bucket_lengths(np.array([1]), 10, 0)


def test_an_epoch_has_every_text_at_most_once_and_as_many_batches_as_fit(texts):
    found = list(text_batches(texts, labels_of(texts), 8, (8, 24, 40), seed=0, epoch=1))
    assert len(found) == 12
    seen = np.concatenate([labels for _, labels in found])
    assert len(set(seen.tolist())) == 96
    for tokens, labels in found:
        assert tokens.dtype == labels.dtype == np.int32
        assert tokens.shape[1] in (8, 24, 40)
        assert tokens.shape[1] >= texts.lengths[labels].max()
        np.testing.assert_array_equal(tokens[:, 0], labels + 1)
        np.testing.assert_array_equal((tokens != 0).sum(1), texts.lengths[labels])
    # Most batches are of one bucket, only what is left over is mixed.
    assert sum(tokens.size for tokens, _ in found) < 0.75 * 96 * 40


def test_order_depends_on_seed_and_epoch_only_and_can_be_entered_anywhere(texts):
    def order(**changed):
        options = {"seed": 0, "epoch": 1, **changed}
        return [labels.tolist() for _, labels in text_batches(texts, labels_of(texts), 8, (8, 40), **options)]

    assert order() == order()
    assert order() != order(epoch=2) != order(seed=1)
    assert order(start=5) == order()[5:]
    assert order(start=12) == []


def test_evaluation_counts_every_text_once(texts):
    found = list(eval_text_batches(texts, labels_of(texts), 16, (8, 24, 40)))
    assert {tokens.shape for tokens, _ in found} <= {(16, 8), (16, 24), (16, 40)}
    labels = np.concatenate([labels for _, labels in found])
    assert sorted(labels[labels >= 0].tolist()) == list(range(100))
    assert (labels < 0).sum() == 16 * len(found) - 100
    for tokens, labels in found:
        np.testing.assert_array_equal(tokens[labels < 0], 0)
        np.testing.assert_array_equal(tokens[labels >= 0, 0], labels[labels >= 0] + 1)


def test_evaluation_pads_a_batch_no_further_than_its_bucket(texts):
    lengths = np.sort(texts.lengths)
    expected = [padding(lengths[at : at + 8][-1:], (8, 24, 40)) for at in range(0, 100, 8)]
    found = eval_text_batches(texts, labels_of(texts), 8, (8, 24, 40))
    assert sorted(tokens.shape[1] for tokens, _ in found) == expected


def test_long_and_short_batches_come_in_another_order_in_every_epoch(texts):
    orders = {
        tuple(tokens.shape[1] for tokens, _ in text_batches(texts, labels_of(texts), 4, (8, 40), seed=0, epoch=epoch))
        for epoch in range(5)
    }
    assert len(orders) == 5
    positions = {tuple(length == 8 for length in order[:6]) for order in orders}
    assert len(positions) > 2


def test_long_texts_are_cut_off():
    texts = Texts.of([[1, 2, 3, 4, 5], [6]])
    assert texts.padded([0, 1], 3).tolist() == [[1, 2, 3], [6, 0, 0]]
    (tokens, _), *_ = text_batches(texts, labels_of(texts), 2, (2,), seed=0, epoch=1)
    assert sorted(tokens.tolist()) == [[1, 2], [6, 0]]


def test_too_large_a_batch_is_named(texts):
    with pytest.raises(DataError, match="`batch_size` is 101 but there are only 100 training examples"):
        text_batches(texts, labels_of(texts), 101, (40,), seed=0, epoch=1)
    with pytest.raises(DataError, match="`batch_size` is 0"):
        eval_text_batches(texts, labels_of(texts), 0, (40,))
