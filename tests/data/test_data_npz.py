import numpy as np
import pytest

from scpl_jax.data import DataError, load

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def _save(path, **changes):
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:2], "y_test": LABELS[:2]} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_one_file_is_read(tmp_path):
    dataset = load("npz", data_dir=_save(tmp_path / "data.npz"))
    np.testing.assert_array_equal(dataset.train_images, IMAGES)
    np.testing.assert_array_equal(dataset.train_labels, LABELS)
    np.testing.assert_array_equal(dataset.test_images, IMAGES[:2])
    assert dataset.train_labels.dtype == np.int32
    assert dataset.class_names == ("0", "1", "2")
    np.testing.assert_allclose(dataset.mean, IMAGES.mean(axis=(0, 1, 2)) / 255)


def test_a_folder_of_two_files_is_read(tmp_path):
    np.savez(tmp_path / "train.npz", x=IMAGES, y=LABELS.astype(np.uint8))
    np.savez_compressed(tmp_path / "test.npz", x=IMAGES[:1], y=LABELS[:1])
    dataset = load("npz", data_dir=tmp_path)
    np.testing.assert_array_equal(dataset.train_images, IMAGES)
    np.testing.assert_array_equal(dataset.test_images, IMAGES[:1])


def test_grey_images_get_three_channels(tmp_path):
    path = _save(tmp_path / "data.npz", x_train=IMAGES[..., 0], x_test=IMAGES[:2, ..., 0])
    images = load("npz", data_dir=path).train_images
    for channel in range(3):
        np.testing.assert_array_equal(images[..., channel], IMAGES[..., 0])


def test_image_size_resizes(tmp_path):
    assert load("npz", data_dir=_save(tmp_path / "d.npz"), image_size=4).image_shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"y_test": None},
            r"holds no array y_test but x_test, x_train, y_train; save it with x_test and y_test",
        ),
        (
            {"x_train": IMAGES / 255.0},
            r"x_train in .*data\.npz is float64 of shape \(6, 5, 7, 3\), expected uint8",
        ),
        ({"x_train": IMAGES[..., :2]}, r"x_train in .* is uint8 of shape \(6, 5, 7, 2\), expected"),
        ({"x_train": IMAGES[:0], "y_train": LABELS[:0]}, "x_train in .* is empty"),
        (
            {"y_train": LABELS[:5]},
            r"y_train in .* is int64 of shape \(5,\), expected whole numbers or texts of shape \(6,\)",
        ),
        ({"y_train": np.eye(6)}, r"y_train in .* is float64 of shape \(6, 6\), expected whole numbers"),
        ({"y_train": LABELS - 2}, "y_train in .* runs from -2 to 0, expected class numbers from 0"),
        (
            {"x_train": np.array([{}])},
            r"x_train in .*data\.npz cannot be read .*save it again as a plain array",
        ),
    ],
)
def test_unfit_arrays_are_named(tmp_path, changes, complaint):
    with pytest.raises(DataError, match=complaint):
        load("npz", data_dir=_save(tmp_path / "data.npz", **changes))


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(DataError, match="`name` npz needs `data_dir`"):
        load("npz")
    with pytest.raises(DataError, match=r"train\.npz does not exist; set `data_dir` to a \.npz file with x_train"):
        load("npz", data_dir=tmp_path)
    path = _save(tmp_path / "data.npz")
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    for byte, value in ((6, 173), (8, 1), (10, 99)):  # a newer version, encrypted, an unknown method
        other = content.copy()
        other[entry + byte] = value
        path.write_bytes(other)
        with pytest.raises(DataError, match=r"x_train in .*data\.npz cannot be read"):
            load("npz", data_dir=path)
    content[300] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x_train in .*data\.npz cannot be read"):
        load("npz", data_dir=path)
    path.write_bytes(content[:-200])
    with pytest.raises(DataError, match=r"data\.npz is no intact \.npz file"):
        load("npz", data_dir=path)
