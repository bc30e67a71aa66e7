import io
import os
import zipfile

import numpy as np
import pytest
from data_archives import write_image
from PIL import Image

from scpl_jax.data import DataError, load

CLASSES = ("n01", "n02")


def _published(root):
    """Two classes as published, grey values 100 * class + index; val in an order of its own."""
    for label, name in enumerate(CLASSES):
        for index in range(3):
            write_image(root / "train" / name / "images" / f"{name}_{index}.JPEG", 100 * label + index, (64, 64))
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
    rows = []
    for index, label in enumerate((1, 0, 0, 1)):
        write_image(root / "val" / "images" / f"val_{index}.JPEG", 100 * label + 50 + index, (64, 64))
        rows.append(f"val_{index}.JPEG\t{CLASSES[label]}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    write_image(root / "test" / "images" / "test_0.JPEG", 0, (64, 64))
    return root


def _zipped(path, root):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, f"tiny-imagenet-200/{file.relative_to(root)}")
    return path


def _load(data_dir, tmp_path, **options):
    return load("tiny-imagenet", data_dir=data_dir, cache_dir=tmp_path / "cache", **options)


def _check(dataset):
    assert dataset.class_names == CLASSES
    assert dataset.image_shape == (32, 32, 3)
    assert dataset.train_labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert dataset.test_labels.tolist() == [0, 1, 0, 1]
    # JPEG keeps a one-coloured image to within a step or two.
    found = dataset.train_images.mean(axis=(1, 2, 3)).tolist() + dataset.test_images.mean(axis=(1, 2, 3)).tolist()
    np.testing.assert_allclose(found, [0, 100, 1, 101, 2, 102, 51, 150, 52, 153], atol=2)


def test_the_published_folder_is_read(tmp_path):
    root = _published(tmp_path / "data" / "tiny-imagenet-200")
    _check(_load(root, tmp_path))
    _check(_load(root.parent, tmp_path))


def test_the_published_archive_is_read_without_extracting_it(tmp_path):
    root = _published(tmp_path / "made")
    (tmp_path / "data").mkdir()
    archive = _zipped(tmp_path / "data" / "tiny-imagenet-200.zip", root)
    _check(_load(archive.parent, tmp_path))
    _check(_load(archive, tmp_path))
    assert [path.name for path in archive.parent.iterdir()] == ["tiny-imagenet-200.zip"]


@pytest.mark.parametrize("keep_annotations", [False, True])
def test_val_sorted_into_class_folders_is_read(tmp_path, keep_annotations):
    root = _published(tmp_path / "tiny-imagenet-200")
    for index, label in enumerate((1, 0, 0, 1)):
        (root / "val" / CLASSES[label]).mkdir(exist_ok=True)
        (root / "val" / "images" / f"val_{index}.JPEG").rename(root / "val" / CLASSES[label] / f"{index}.JPEG")
    (root / "val" / "images").rmdir()
    if not keep_annotations:
        (root / "val" / "val_annotations.txt").unlink()
    _check(_load(root, tmp_path))


def test_image_size_goes_before_the_default(tmp_path):
    assert _load(_published(tmp_path / "t"), tmp_path, image_size=64).image_shape == (64, 64, 3)


def test_changed_annotations_are_seen_past_the_cache(tmp_path):
    root = _published(tmp_path / "t")
    _load(root, tmp_path)
    annotations = root / "val" / "val_annotations.txt"
    swapped = annotations.read_text().replace("n01", "n0x").replace("n02", "n01").replace("n0x", "n02")
    annotations.write_text(swapped)
    os.utime(annotations, ns=(1, 1))
    found = _load(root, tmp_path).test_images.mean(axis=(1, 2, 3)).tolist()
    np.testing.assert_allclose(found, [150, 51, 153, 52], atol=2)


def test_an_image_without_annotation_is_named(tmp_path):
    root = _published(tmp_path / "t")
    write_image(root / "val" / "images" / "extra.JPEG")
    with pytest.raises(DataError, match=r"do not match, val/images/extra\.JPEG is in one only"):
        _load(root, tmp_path)


def test_a_class_of_one_split_only_is_named(tmp_path):
    root = _published(tmp_path / "t")
    (root / "train" / "n02").rename(root / "train" / "n03")
    with pytest.raises(DataError, match=r"t/val differ from those in train \(missing: n03; not in train: n02\)"):
        _load(root, tmp_path)


def test_splits_without_images_are_named(tmp_path):
    (tmp_path / "t" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no images in train"):
        _load(tmp_path / "t", tmp_path)
    write_image(tmp_path / "t" / "train" / "n01" / "0.JPEG")
    with pytest.raises(DataError, match="holds no images in val"):
        _load(tmp_path / "t", tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="`name` tiny-imagenet needs `data_dir`"):
        load("tiny-imagenet")
    with pytest.raises(DataError, match=r"holds neither a train folder nor tiny-imagenet-200\.zip"):
        _load(tmp_path, tmp_path)


def test_damage_in_the_archive_is_named(tmp_path):
    root = _published(tmp_path / "made")
    archive = _zipped(tmp_path / "tiny-imagenet-200.zip", root)
    content = archive.read_bytes()
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), (101, 101, 101)).save(picture, "JPEG")
    at = content.index((root / "train" / "n02" / "images" / "n02_1.JPEG").read_bytes())
    archive.write_bytes(content[: at + 300] + bytes([content[at + 300] ^ 255]) + content[at + 301 :])
    with pytest.raises(DataError, match=r"n02_1\.JPEG"):
        _load(tmp_path, tmp_path)
    archive.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"tiny-imagenet-200\.zip is damaged \(.+\); fetch the archive again"):
        _load(tmp_path, tmp_path)
