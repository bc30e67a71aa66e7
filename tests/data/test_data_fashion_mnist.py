import gzip

import numpy as np
import pytest
from data_archives import idx_bytes, write_fashion_mnist

from scpl_jax.data import DataError, load


def _load(data_dir, tmp_path, **options):
    return load("fashion-mnist", data_dir=data_dir, cache_dir=tmp_path / "cache", **options)


@pytest.mark.parametrize("zipped", [False, True])
def test_the_four_files_are_read_and_padded(tmp_path, zipped):
    images, labels = write_fashion_mnist(tmp_path / "data", zipped=zipped)
    dataset = _load(tmp_path / "data", tmp_path)
    assert dataset.train_images.shape == (5, 32, 32, 3)
    assert dataset.test_images.shape == (3, 32, 32, 3)
    for channel in range(3):
        np.testing.assert_array_equal(dataset.train_images[:, 2:30, 2:30, channel], images)
    assert dataset.train_images.sum(dtype=np.int64) == 3 * images.sum(dtype=np.int64), "the margin is black"
    np.testing.assert_array_equal(dataset.train_labels, labels)
    assert dataset.class_names[9] == "Ankle boot"
    np.testing.assert_allclose(dataset.mean, dataset.train_images.mean(axis=(0, 1, 2)) / 255)


def test_image_size_resizes(tmp_path):
    write_fashion_mnist(tmp_path / "data")
    assert _load(tmp_path / "data", tmp_path, image_size=16).image_shape == (16, 16, 3)


def test_a_missing_file_is_named(tmp_path):
    write_fashion_mnist(tmp_path / "data")
    (tmp_path / "data" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"holds no t10k-labels-idx1-ubyte \(nor t10k-labels-idx1-ubyte\.gz\)"):
        _load(tmp_path / "data", tmp_path)


IMAGES = np.zeros((5, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"<html>", "begins with 3c68746d, expected 00000803 for an idx file of 3 axes"),
        (b"", "begins with nothing, expected 00000803"),
        (idx_bytes(IMAGES)[:10], "begins with 00000803"),
        (idx_bytes(IMAGES.reshape(5, -1)), "begins with 00000802, expected 00000803"),
        (idx_bytes(IMAGES)[:-7], r"is 3929 bytes long unpacked, expected 3936 for its shape \(5, 28, 28\)"),
        (idx_bytes(IMAGES) + b"\0", "is 3937 bytes long unpacked, expected 3936"),
        (idx_bytes(IMAGES[:, :20]), "holds images of 20 x 28 pixels, expected 28 x 28"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, complaint):
    write_fashion_mnist(tmp_path / "data")
    (tmp_path / "data" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte {complaint}"):
        _load(tmp_path / "data", tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-20],
        lambda packed: b"no gzip",
        lambda packed: packed[:10] + b"\xff" + packed[11:],
    ],
)
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    write_fashion_mnist(tmp_path / "data", zipped=True)
    path = tmp_path / "data" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(gzip.compress(gzip.decompress(path.read_bytes()))))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz cannot be unpacked \(.+\); fetch it again"):
        _load(tmp_path / "data", tmp_path)


def test_labels_that_do_not_match_the_images_are_refused(tmp_path):
    write_fashion_mnist(tmp_path / "data")
    (tmp_path / "data" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    with pytest.raises(DataError, match=r"train labels are int32 of shape \(4,\), expected int32 of shape \(5,\)"):
        _load(tmp_path / "data", tmp_path)
