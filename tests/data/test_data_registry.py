import subprocess
import sys

import numpy as np
import pytest
from data_archives import cifar10_binary, write_folder, write_image_folder

from scpl_jax.data import DATASETS, DataError, load


@pytest.fixture(autouse=True)
def no_prepared_data(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-tfds"))


def test_the_names():
    assert DATASETS == (
        "auto",
        "cifar10",
        "cifar100",
        "tiny-imagenet",
        "fashion-mnist",
        "digits",
        "imagefolder",
        "npz",
        "synthetic",
    )


def test_an_unknown_name_is_refused_with_the_choices():
    with pytest.raises(DataError, match=r"`name` mnist is unknown, expected one of auto, cifar10, .*synthetic"):
        load("mnist")


def test_unfit_options_are_refused(tmp_path):
    with pytest.raises(DataError, match="`image_size` is 0, expected at least 1 pixel"):
        load("digits", image_size=0)
    with pytest.raises(DataError, match=r"`data_dir` .*nowhere does not exist"):
        load("cifar10", data_dir=tmp_path / "nowhere")


def test_every_error_is_one_sentence():
    for name in ("imagefolder", "npz", "tiny-imagenet", "unknown"):
        with pytest.raises(DataError) as caught:
            load(name)
        text = str(caught.value)
        assert text.endswith(".")
        assert "\n" not in text
        assert ". " not in text


def test_digits_are_split_the_same_every_time(tmp_path):
    dataset = load("digits", cache_dir=tmp_path / "one")
    assert dataset.train_images.shape == (1437, 32, 32, 3)
    assert dataset.test_images.shape == (360, 32, 32, 3)
    shares = np.bincount(dataset.test_labels) / np.bincount(np.r_[dataset.train_labels, dataset.test_labels])
    np.testing.assert_allclose(shares, 0.2, atol=0.005)
    # The labels' beginning stands for the split: it may not change from one release to the next.
    assert dataset.test_labels[:12].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]
    assert dataset.train_images.max() == 255
    again = load("digits", cache_dir=tmp_path / "two")
    np.testing.assert_array_equal(dataset.test_images, again.test_images)


def test_digits_of_another_size_are_made_from_the_originals():
    from sklearn.datasets import load_digits

    grey = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    small = load("digits", image_size=8)
    assert small.image_shape == (8, 8, 3)
    np.testing.assert_array_equal(
        np.sort(np.r_[small.train_images, small.test_images][..., 0].sum(axis=(1, 2))),
        np.sort(grey.sum(axis=(1, 2))),
    )


def test_synthetic_images_can_be_learnt_and_never_change():
    from sklearn.linear_model import RidgeClassifier

    dataset = load("synthetic", image_size=16)
    assert dataset.train_images.shape == (2000, 16, 16, 3)
    assert np.bincount(dataset.test_labels).tolist() == [50] * 10
    np.testing.assert_array_equal(dataset.train_images, load("synthetic", image_size=16).train_images)
    pixels = dataset.train_images.reshape(2000, -1) / 255
    model = RidgeClassifier().fit(pixels, dataset.train_labels)
    assert model.score(dataset.test_images.reshape(500, -1) / 255, dataset.test_labels) > 0.5
    assert load("synthetic").image_shape == (32, 32, 3)


def test_auto_takes_cifar10_where_it_is_at_hand(tmp_path):
    write_folder(tmp_path / "cifar-10-batches-bin", cifar10_binary())
    dataset = load("auto", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert dataset.name == "cifar10"
    assert "not found" not in dataset.note


@pytest.mark.parametrize("with_dir", [False, True])
def test_auto_falls_back_on_the_digits_and_says_so(tmp_path, with_dir):
    data_dir = write_image_folder(tmp_path / "pets") if with_dir else None
    dataset = load("auto", data_dir=data_dir, cache_dir=tmp_path / "cache")
    assert dataset.name == "digits"
    for part in ("digits", "`name` cifar10 downloads it", "`data_dir`"):
        assert part in dataset.note
    assert "\n" not in dataset.note


def test_auto_does_not_pass_over_a_damaged_cifar10(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged"):
        load("auto", data_dir=tmp_path, cache_dir=tmp_path / "cache")


def test_importing_the_package_loads_nothing_heavy_and_auto_no_tensorflow(tmp_path):
    program = """
import sys
import scpl_jax.data.images.image_sets as registry
heavy = {"PIL", "sklearn", "tensorflow", "tensorflow_datasets"} & set(sys.modules)
assert not heavy, heavy
registry.load("auto", cache_dir=sys.argv[1])
heavy = {"tensorflow", "tensorflow_datasets"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)
