import logging
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from data_archives import cifar10_binary, write_image, write_image_folder, write_tar

from scpl_jax.data import DataError, load
from scpl_jax.data.images import decoding as images_module

FIELDS = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture
def decoded(monkeypatch):
    """Names of the images decoded so far."""
    names = []
    decode = images_module._decode

    def counted(opened, name, size):
        names.append(name)
        return decode(opened, name, size)

    monkeypatch.setattr(images_module, "_decode", counted)
    return names


def _load(tmp_path, **options):
    return load("imagefolder", data_dir=tmp_path / "pets", cache_dir=tmp_path / "cache", **options)


def _cache_file(tmp_path):
    (path,) = (tmp_path / "cache" / "datasets").iterdir()
    return path


def _assert_equal(first, second):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
        assert getattr(first, field).dtype == getattr(second, field).dtype
    blank = {field: first.train_images[:1] for field in FIELDS if "images" in field}
    blank |= {field: first.train_labels[:1] for field in FIELDS if "labels" in field}
    assert str(replace(first, **blank)) == str(replace(second, **blank))


def test_the_second_load_decodes_nothing_and_gives_the_same(tmp_path, decoded):
    write_image_folder(tmp_path / "pets")
    first = _load(tmp_path)
    assert decoded
    decoded.clear()
    second = _load(tmp_path)
    assert not decoded
    _assert_equal(first, second)


@pytest.mark.parametrize("change", ["content", "time", "added", "removed", "renamed", "size option"])
def test_any_change_of_the_files_is_seen(tmp_path, decoded, change):
    root = write_image_folder(tmp_path / "pets")
    path = root / "train" / "cat" / "0.png"
    _load(tmp_path)
    decoded.clear()
    if change == "content":
        write_image(path, 99)
    elif change == "time":
        os.utime(path, ns=(5, 5))
    elif change == "added":
        write_image(root / "train" / "cat" / "new.png")
    elif change == "removed":
        path.unlink()
    elif change == "renamed":
        # The last of its folder, so that nothing but the name changes.
        last = path.with_name("2.png")
        last.rename(path.with_name("3.png"))
    _load(tmp_path, image_size=8 if change == "size option" else None)
    assert decoded


@pytest.mark.parametrize("damage", ["empty", "cut off", "flipped", "encrypted", "newer", "other"])
def test_a_damaged_cache_file_is_built_again(tmp_path, decoded, caplog, damage):
    write_image_folder(tmp_path / "pets")
    first = _load(tmp_path)
    path = _cache_file(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "empty":
        content.clear()
    elif damage == "cut off":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[content.index(first.train_images.tobytes()) + 10] ^= 1
    elif damage == "encrypted":
        content[content.index(b"PK\x01\x02") + 8] ^= 1
    elif damage == "newer":
        content[content.index(b"PK\x01\x02") + 6] = 173
    else:
        np.savez(path.with_suffix(".other.npz"), x=np.zeros(3))
        content = path.with_suffix(".other.npz").read_bytes()
        path.with_suffix(".other.npz").unlink()
    path.write_bytes(content)
    decoded.clear()
    with caplog.at_level(logging.WARNING):
        second = _load(tmp_path)
    assert decoded
    assert "is built again" in caplog.text
    _assert_equal(first, second)
    decoded.clear()
    _load(tmp_path)
    assert not decoded


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    write_image_folder(tmp_path / "pets")
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert len(_load(tmp_path).train_labels) == 6
    assert "The data set is not cached in" in caplog.text


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch, caplog):
    write_image_folder(tmp_path / "pets")

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with caplog.at_level(logging.WARNING):
        _load(tmp_path)
    assert "no space left" in caplog.text
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []


def test_nothing_is_cached_when_reading_fails(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    (root / "test" / "dog" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError):
        _load(tmp_path)
    assert not (tmp_path / "cache").exists()


def test_archives_are_cached_and_made_up_images_are_not(tmp_path):
    write_tar(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", cifar10_binary())
    first = load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert _cache_file(tmp_path).is_file()
    _assert_equal(first, load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache"))
    load("synthetic", cache_dir=tmp_path / "other", image_size=8)
    assert not (tmp_path / "other").exists()


def test_the_digits_need_scikit_learn_once_only(tmp_path):
    program = """
import sys
from pathlib import Path
from scpl_jax.data import load
dataset = load("digits", cache_dir=Path(sys.argv[1]), image_size=8)
print(dataset.train_images.sum(), dataset.test_labels.sum(), "sklearn" in sys.modules)
"""

    def run():
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    first, second = run(), run()
    assert first[2:] == ["True"]
    assert second[2:] == ["False"]
    assert first[:2] == second[:2]
