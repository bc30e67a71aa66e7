import unicodedata
from pathlib import Path

import numpy as np
import pytest
from data_archives import write_image, write_image_folder
from PIL import Image

from scpl_jax.data import DataError, limit, load

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def _load(root, tmp_path, **options):
    return load("imagefolder", data_dir=root, cache_dir=tmp_path / "cache", **options)


def test_classes_are_sorted_and_take_turns(tmp_path):
    root = write_image_folder(tmp_path / "pets", classes=("dog", "cat", "ant"), per_class=2)
    write_image(root / "train" / "dog" / "9.png", 200)
    dataset = _load(root, tmp_path)
    assert dataset.class_names == ("ant", "cat", "dog")
    assert dataset.train_labels.tolist() == [0, 1, 2, 0, 1, 2, 2]
    assert dataset.train_images[:, 0, 0, 0].tolist() == [20, 10, 0, 21, 11, 1, 200]
    assert dataset.test_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.source == "ImageFolder pets"
    assert np.bincount(limit(dataset, 6).train_labels).tolist() == [2, 2, 2]


def test_statistics_are_those_of_the_training_images(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    write_image(root / "test" / "dog" / "white.png", 255)
    dataset = _load(root, tmp_path)
    np.testing.assert_allclose(dataset.mean, dataset.train_images.mean(axis=(0, 1, 2)) / 255)
    np.testing.assert_allclose(dataset.std, dataset.train_images.std(axis=(0, 1, 2)) / 255)


def test_val_stands_in_for_test_and_test_goes_before_it(tmp_path):
    root = write_image_folder(tmp_path / "pets", test="val")
    assert len(_load(root, tmp_path).test_labels) == 4
    write_image_folder(root)
    write_image(root / "test" / "cat" / "9.png", 1)
    assert len(_load(root, tmp_path).test_labels) == 5


def test_the_only_folder_with_a_train_folder_is_entered(tmp_path):
    write_image_folder(tmp_path / "data" / "pets")
    (tmp_path / "data" / "other").mkdir()
    assert _load(tmp_path / "data", tmp_path).source == "ImageFolder pets"


def test_several_folders_with_a_train_folder_are_refused(tmp_path):
    for name in ("b", "a"):
        write_image_folder(tmp_path / "data" / name)
    with pytest.raises(DataError, match=r"holds 2 folders with a train folder \(a, b\), expected one"):
        _load(tmp_path / "data", tmp_path)


def test_hidden_and_other_files_are_passed_over(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    (root / "train" / "cat" / ".hidden.png").write_bytes(b"no image")
    (root / "train" / "cat" / "notes.txt").write_bytes(b"no image")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "list.csv").write_bytes(b"no image")
    assert len(_load(root, tmp_path).train_labels) == 6


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    root = write_image_folder(tmp_path / "pets")
    (root / "train" / "cat" / "0.png").unlink()
    path = root / "train" / "cat" / ("0.tif" if mode == "CMYK" else "0.png")
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    assert _load(root, tmp_path).train_images[0].tolist() == np.full((8, 8, 3), 255).tolist()


def test_pixels_wider_than_eight_bits_are_refused(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(root / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"cat/0\.png has pixels of mode I;16, expected 8 bits a channel"):
        _load(root, tmp_path)


def test_image_size_brings_all_to_one_size(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    write_image(root / "train" / "dog" / "1.png", 50, size=(5, 9))
    assert _load(root, tmp_path, image_size=6).image_shape == (6, 6, 3)


def test_several_sizes_without_image_size_are_refused(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    write_image(root / "train" / "dog" / "1.png", 50, size=(5, 9))
    with pytest.raises(DataError, match=r"dog/1\.png is 5 x 9 pixels but .*cat/0\.png is 8 x 8; give `image_size`"):
        _load(root, tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_image_cut_off_is_named(tmp_path, suffix):
    root = write_image_folder(tmp_path / "pets")
    path = write_image(root / "train" / "dog" / f"broken{suffix}", size=(64, 64))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(DataError, match=rf"dog/broken\{suffix} cannot be read as an image \(.+\); replace it"):
        _load(root, tmp_path, image_size=8)


def test_a_file_that_is_no_image_is_named(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    (root / "test" / "dog" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"test/dog/0\.png cannot be read as an image"):
        _load(root, tmp_path)


def test_a_class_folder_without_images_is_named(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    (root / "train" / "emu").mkdir()
    with pytest.raises(DataError, match=r"class folder .*train/emu holds no images"):
        _load(root, tmp_path)


def test_test_classes_that_differ_are_named(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    (root / "test" / "cat").rename(root / "test" / "kitten")
    with pytest.raises(DataError, match=r"differ from those in train \(missing: cat; not in train: kitten\)"):
        _load(root, tmp_path)


def test_missing_splits_are_named(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    (root / "test").rename(tmp_path / "gone")
    with pytest.raises(DataError, match="has a train folder but neither test nor val"):
        _load(root, tmp_path)
    (root / "train").rename(tmp_path / "gone too")
    with pytest.raises(DataError, match="holds no train folder, expected a folder that holds train/<class>"):
        _load(root, tmp_path)


def test_a_split_without_class_folders_is_named(tmp_path):
    write_image(tmp_path / "pets" / "train" / "0.png")
    with pytest.raises(DataError, match="train holds no class folders"):
        _load(tmp_path / "pets", tmp_path)


def test_data_dir_is_needed_and_is_a_folder(tmp_path):
    with pytest.raises(DataError, match="`name` imagefolder needs `data_dir`"):
        load("imagefolder")
    with pytest.raises(DataError, match="is a file, expected a folder"):
        _load(write_image(tmp_path / "0.png"), tmp_path)


def test_cifar10_as_jpeg_is_the_cifar10_of_the_exact_copy(tmp_path):
    archive, exact = SHARED / "cifar10-jpeg.tar.xz", SHARED / "cifar10-exact-6k.npz"
    if not (archive.is_file() and exact.is_file()):
        pytest.skip(f"needs {archive.name} and {exact.name} in {SHARED}")
    import tarfile

    # A few images of each class suffice, and unpacking all of them would take most of the test's time.
    kept = tuple(f"{number:04d}.jpg" for number in range(12))
    with tarfile.open(archive) as opened:
        members = [member for member in opened if member.name.endswith(kept)]
        opened.extractall(tmp_path, members, filter="data")
    jpeg = _load(tmp_path / "cifar10", tmp_path)
    original = load("npz", data_dir=exact)
    assert jpeg.image_shape == original.image_shape == (32, 32, 3)
    assert jpeg.num_classes == original.num_classes
    np.testing.assert_allclose(jpeg.mean, original.mean, atol=0.1)
    np.testing.assert_allclose(original.mean, (0.4914, 0.4822, 0.4465), atol=0.01)
    # Re-encoding costs about 6 of 255 per pixel; unrelated images differ by some 60.
    pixels = original.test_images.reshape(len(original.test_images), -1).astype(np.int32)
    found = 0
    for image, label in zip(jpeg.test_images, jpeg.test_labels, strict=True):
        distances = np.abs(pixels - image.ravel()).mean(axis=1)
        nearest = int(distances.argmin())
        if distances[nearest] < 12:
            found += 1
            assert original.test_labels[nearest] == label
    assert found > 0


def turn(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).convert("RGB").save(path, exif=exif)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_orientations_are_ignored_and_told(tmp_path, suffix):
    root = write_image_folder(tmp_path / "pets")
    for split, orientation in (("train", 6), ("train", 1), ("test", 3)):
        turn(write_image(root / split / "cat" / f"{orientation}{suffix}", 90, (8, 8)), orientation)
    turn(write_image(root / "train" / "dog" / f"wide{suffix}", 90, (8, 8)), 8)
    dataset = _load(root, tmp_path)
    assert "3 images are to be turned or mirrored according to their EXIF data, which is ignored" in dataset.note
    assert _load(root, tmp_path).note == dataset.note
    Image.new("RGB", (8, 6)).save(root / "train" / "dog" / f"wide{suffix}")
    turn(root / "train" / "dog" / f"wide{suffix}", 6)
    with pytest.raises(DataError, match=rf"wide\{suffix} is 8 x 6 pixels"):
        _load(root, tmp_path)


def test_upright_images_and_broken_exif_data_are_no_news(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    Image.new("RGB", (8, 8)).save(root / "train" / "cat" / "7.png", exif=b"Exif\0\0no byte order")
    turn(write_image(root / "train" / "dog" / "8.tif"), 3)  # Pillow turns it
    assert _load(root, tmp_path).note == ""


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_a_class_may_be_composed_in_another_way_in_each_split(tmp_path, forms):
    root = write_image_folder(tmp_path / "pets", classes=("cafe", "zoo"))
    for split, form in zip(("train", "test"), forms, strict=True):
        (root / split / "cafe").rename(root / split / unicodedata.normalize(form, "café"))
    dataset = _load(root, tmp_path)
    assert dataset.class_names == ("caf\u00e9", "zoo")
    assert dataset.test_labels.tolist() == [0, 1] * 2


def test_two_folders_of_one_class_are_refused(tmp_path):
    root = write_image_folder(tmp_path / "pets", classes=("caf\u00e9", "cafe\u0301"))
    with pytest.raises(
        DataError, match=r"train holds two folders of the class café, 'cafe\\u0301' and 'caf\\xe9', which"
    ):
        _load(root, tmp_path)


def test_a_single_class_is_refused(tmp_path):
    root = write_image_folder(tmp_path / "pets", classes=("cat",))
    with pytest.raises(DataError, match="all 3 training images are of the class cat, expected at least 2 classes"):
        _load(root, tmp_path)
