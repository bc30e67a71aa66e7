from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpl_jax.data import DataError, Dataset, add_label_noise, limit
from scpl_jax.data.images.decoding import channel_statistics


def _dataset(num_train=20, num_test=6, num_classes=5):
    generator = np.random.default_rng(0)
    return Dataset(
        name="made-up",
        source="a test",
        train_images=generator.integers(0, 256, (num_train, 4, 6, 3), dtype=np.uint8),
        train_labels=(np.arange(num_train) % num_classes).astype(np.int32),
        test_images=generator.integers(0, 256, (num_test, 4, 6, 3), dtype=np.uint8),
        test_labels=(np.arange(num_test) % num_classes).astype(np.int32),
        class_names=tuple("abcdefghij"[:num_classes]),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


def test_properties():
    dataset = _dataset()
    assert dataset.num_classes == 5
    assert dataset.image_shape == (4, 6, 3)


IMAGES = np.zeros((20, 4, 6, 3), np.uint8)
LABELS = np.zeros(20, np.int32)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"train_images": IMAGES.astype(np.float32)}, "train images are float32 of shape"),
        ({"train_images": IMAGES[..., :1]}, r"train images are uint8 of shape \(20, 4, 6, 1\), expected"),
        ({"test_images": IMAGES[:6, 0]}, r"test images are uint8 of shape \(6, 6, 3\), expected"),
        ({"train_images": IMAGES[:0], "train_labels": LABELS[:0]}, "the train split holds no images"),
        ({"test_images": IMAGES[:0], "test_labels": LABELS[:0]}, "the test split holds no images"),
        ({"train_labels": LABELS.astype(np.int64)}, "train labels are int64"),
        ({"train_labels": LABELS[:19]}, r"train labels are int32 of shape \(19,\), expected int32 .*\(20,\)"),
        ({"train_labels": LABELS - 1}, "train labels run from -1 to -1, expected 0 to 4"),
        ({"train_labels": LABELS + 5}, "train labels run from 5 to 5, expected 0 to 4"),
        ({"test_images": IMAGES[:6, :3]}, r"training images are \(4, 6, 3\) but test images are \(3, 6, 3\)"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(changes, complaint):
    with pytest.raises(DataError, match=complaint):
        replace(_dataset(), **changes)


def test_limit_keeps_the_first_examples_and_leaves_the_statistics():
    dataset = _dataset()
    limited = limit(dataset, 7, 2)
    np.testing.assert_array_equal(limited.train_images, dataset.train_images[:7])
    np.testing.assert_array_equal(limited.train_labels, dataset.train_labels[:7])
    np.testing.assert_array_equal(limited.test_images, dataset.test_images[:2])
    np.testing.assert_array_equal(limited.test_labels, dataset.test_labels[:2])
    assert limited.mean == dataset.mean


def test_limit_beyond_the_examples_or_none_keeps_all():
    dataset = _dataset()
    assert len(limit(dataset, 10_000, None).train_images) == 20
    assert len(limit(dataset, None, 10_000).test_images) == 6


@pytest.mark.parametrize("value", [0, -1])
def test_limit_below_one_is_refused(value):
    with pytest.raises(DataError, match=f"`limit_train` is {value}, expected at least 1"):
        limit(_dataset(), value)
    with pytest.raises(DataError, match=f"`limit_test` is {value}, expected at least 1"):
        limit(_dataset(), None, value)


@given(rate=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_label_noise_changes_at_most_its_share_of_the_training_labels(rate, seed):
    dataset = _dataset(num_train=200)
    before = dataset.train_labels.copy()
    noisy = add_label_noise(dataset, rate, seed)
    assert (noisy.train_labels != before).sum() <= round(rate * 200)
    np.testing.assert_array_equal(dataset.train_labels, before)
    np.testing.assert_array_equal(noisy.test_labels, dataset.test_labels)
    np.testing.assert_array_equal(noisy.train_labels, add_label_noise(dataset, rate, seed).train_labels)


def test_label_noise_draws_uniformly_from_all_classes_the_true_one_included():
    dataset = _dataset(num_train=20_000)
    noisy = add_label_noise(dataset, 1.0, seed=1)
    for label in range(5):
        drawn = noisy.train_labels[dataset.train_labels == label]
        shares = np.bincount(drawn, minlength=5) / len(drawn)
        # Five standard deviations of a share of 1/5 among 4000.
        np.testing.assert_allclose(shares, 0.2, atol=5 * np.sqrt(0.2 * 0.8 / 4000))


def test_label_noise_takes_the_share_it_was_told():
    dataset = _dataset(num_train=20_000)
    changed = (add_label_noise(dataset, 0.4, seed=2).train_labels != dataset.train_labels).mean()
    assert abs(changed - 0.4 * 0.8) < 0.02


def test_label_noise_differs_between_seeds():
    dataset = _dataset(num_train=200)
    first, second = (add_label_noise(dataset, 0.5, seed).train_labels for seed in (0, 1))
    assert (first != second).any()


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_label_noise_outside_zero_to_one_is_refused(rate):
    with pytest.raises(DataError, match=f"`rate` is {rate}, expected a share from 0 to 1"):
        add_label_noise(_dataset(), rate, seed=0)


def test_label_noise_with_a_negative_seed_is_refused():
    with pytest.raises(DataError, match="`seed` is -1"):
        add_label_noise(_dataset(), 0.5, seed=-1)


def test_channel_statistics_agree_with_numpy():
    images = np.random.default_rng(0).integers(0, 256, (9000, 2, 3, 3), dtype=np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255.0).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255.0).std(axis=(0, 1, 2)), rtol=1e-10)


def test_channel_statistics_of_one_colour_can_be_divided_by():
    mean, std = channel_statistics(np.full((2, 2, 2, 3), 51, np.uint8))
    assert mean == (0.2, 0.2, 0.2)
    assert min(std) > 0
