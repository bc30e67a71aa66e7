"""Examples held out of training: of every class its share, the same ones always, nothing lost and nothing changed."""

import dataclasses

import numpy as np
import pytest

from scpl_jax.data import DataError, Dataset, TextDataset, hold_out
from scpl_jax.data.text.buckets import Texts

COUNTS = {"cat": 40, "dog": 20, "no example": 0, "owl": 10}


def labels():
    found = np.repeat(np.arange(len(COUNTS), dtype=np.int32), list(COUNTS.values()))
    return np.random.default_rng(0).permutation(found)


def images():
    """Each image of one colour, that of its number."""
    numbers = np.arange(70, dtype=np.uint8)[:, None, None, None]
    parts = {"train_images": np.tile(numbers, (1, 4, 4, 3)), "train_labels": labels()}
    parts |= {"test_images": np.zeros((3, 4, 4, 3), np.uint8), "test_labels": np.zeros(3, np.int32)}
    return Dataset("made-up", "a test", **parts, class_names=tuple(COUNTS), mean=(0.5,) * 3, std=(0.25,) * 3)


def texts():
    """Each text begins with its number."""
    written = Texts.of([[number, *[200] * (number % 7)] for number in range(70)])
    parts = {"train_texts": written, "train_labels": labels()}
    parts |= {"test_texts": Texts.of([[1], [2]]), "test_labels": np.zeros(2, np.int32)}
    words = tuple(map(str, range(300)))
    return TextDataset("made-up", "a test", **parts, class_names=tuple(COUNTS), words=words, max_length=9, buckets=(8,))


def numbers_of(dataset, split):
    found = getattr(dataset, f"{split}_{dataset.unit}")
    return found.ids[found.starts[:-1]].tolist() if dataset.unit == "texts" else found[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("make", [images, texts])
def test_of_every_class_its_share_is_held_out_and_nothing_is_lost(make):
    dataset = make()
    rest, validation = hold_out(dataset, 0.1)
    assert np.bincount(validation.test_labels, minlength=4).tolist() == [4, 2, 0, 1]
    kept, held = numbers_of(rest, "train"), numbers_of(validation, "test")
    assert sorted(kept + held) == list(range(70))
    assert (kept, held) == (sorted(kept), sorted(held))
    # Every example has the label that it had.
    np.testing.assert_array_equal(rest.train_labels, dataset.train_labels[kept])
    np.testing.assert_array_equal(validation.test_labels, dataset.train_labels[held])
    assert numbers_of(rest, "test") == numbers_of(dataset, "test")
    firsts = [np.flatnonzero(dataset.train_labels == label)[:count] for label, count in ((0, 4), (1, 2), (3, 1))]
    assert held != sorted(np.concatenate(firsts).tolist())


def test_texts_that_are_held_out_keep_their_tokens():
    dataset = texts()
    rest, validation = hold_out(dataset, 0.3)
    for part, found in (("train", rest.train_texts), ("test", validation.test_texts)):
        numbers = numbers_of(rest if part == "train" else validation, part)
        np.testing.assert_array_equal(
            found.padded(range(len(found)), 9), dataset.train_texts.padded(np.array(numbers), 9)
        )


def test_only_labels_and_share_decide():
    dataset = images()
    other = dataclasses.replace(dataset, name="another", train_images=255 - dataset.train_images)
    first, second = (numbers_of(hold_out(one, 0.2)[1], "test") for one in (dataset, other))
    assert first == [255 - number for number in second]
    assert len(numbers_of(hold_out(dataset, 0.1)[1], "test")) < len(first)


@pytest.mark.parametrize(
    ("share", "complaint"),
    [
        (0.0, "`share` is 0.0, expected more than 0 and less than 1"),
        (1.0, "`share` is 1.0"),
        (float("nan"), "`share` is nan"),
        (0.04, "`share` 0.04 holds out 0 of the 10 training images of the class owl, expected at least 1 held out"),
        (0.96, "`share` 0.96 holds out 10 of the 10 training images of the class owl"),
    ],
)
def test_a_class_keeps_an_example_on_each_side_or_it_is_refused(share, complaint):
    with pytest.raises(DataError, match=complaint):
        hold_out(images(), share)
