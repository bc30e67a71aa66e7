"""Whatever the file system answers while a data set is listed or read is one sentence with the path."""

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
from data_archives import (
    cifar10_binary,
    cifar10_python,
    write_fashion_mnist,
    write_folder,
    write_image,
    write_image_folder,
    write_tar,
)

from scpl_jax.data import DataError, TextRequest, cache, load, load_texts
from scpl_jax.data.reading import is_file, is_folder, open_file, readable
from scpl_jax.data.text.vectors import read_vectors


@pytest.fixture
def place():
    """A folder into which users without rights may look, other than those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def tiny(folder):
    for label, one in enumerate(("n01", "n02")):
        write_image(folder / "train" / one / "images" / f"{one}_0.JPEG", label, (64, 64))
        write_image(folder / "val" / "images" / f"val_{label}.JPEG", label, (64, 64))
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\nval_1.JPEG\tn02\t0\n")


def arrays(folder):
    parts = {f"x_{split}": np.zeros((2, 4, 4, 3), np.uint8) for split in ("train", "test")}
    np.savez(folder / "data.npz", **parts, y_train=np.arange(2), y_test=np.arange(2))


def imdb(folder):
    for split in ("train", "test"):
        for label in ("pos", "neg"):
            write_folder(folder / split / label, {"0_7.txt": b"a film", "1_7.txt": b"the film"})


def sst2(folder):
    write_folder(folder, dict.fromkeys(("train.tsv", "dev.tsv"), b"sentence\tlabel\nfine\t1\ndull\t0\n"))


def ag_news(folder):
    write_folder(folder, dict.fromkeys(("train.csv", "test.csv"), b'"1","a","fine"\n"2","b","dull"\n'))


def own(folder):
    write_folder(folder, dict.fromkeys(("a.csv", "b.csv"), b"text,label\nfine,1\ndull,0\n"))


def image(name, at="."):
    return lambda folder: load(name, data_dir=folder / at, cache_dir=folder.parent / "cache")


def text(name):
    return lambda folder: load_texts(TextRequest(name, folder, cache_dir=folder.parent / "cache"))


def own_text(folder):
    files = {"data_file": folder / "a.csv", "test_file": folder / "b.csv"}
    return load_texts(TextRequest("file", **files, cache_dir=folder.parent / "cache"))


# What makes a data set, what reads it, a file of it, and a folder that is listed, if there is one.
READERS = {
    "image folder": (write_image_folder, image("imagefolder"), "train/cat/0.png", "train/cat"),
    "image folder, test": (write_image_folder, image("imagefolder"), "test/dog/1.png", "test"),
    "Tiny ImageNet": (tiny, image("tiny-imagenet"), "train/n01/images/n01_0.JPEG", "train/n02/images"),
    "Tiny ImageNet, annotations": (tiny, image("tiny-imagenet"), "val/val_annotations.txt", "val"),
    "CIFAR-10": (
        lambda folder: write_folder(folder / "cifar-10-batches-py", cifar10_python()),
        image("cifar10"),
        "cifar-10-batches-py/data_batch_2",
        None,
    ),
    "CIFAR-10, archive": (
        lambda folder: write_tar(folder / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", cifar10_binary()),
        image("cifar10"),
        "cifar-10-binary.tar.gz",
        None,
    ),
    "Fashion-MNIST": (write_fashion_mnist, image("fashion-mnist"), "t10k-labels-idx1-ubyte", None),
    "npz": (arrays, image("npz", "data.npz"), "data.npz", None),
    "IMDB": (imdb, text("imdb"), "train/neg/1_7.txt", "test/pos"),
    "SST-2": (sst2, text("sst2"), "dev.tsv", None),
    "AG News": (ag_news, text("ag-news"), "train.csv", None),
    "own files": (own, own_text, "b.csv", None),
    "word vectors": (
        lambda folder: write_folder(folder, {"v.txt": b"the 1 2\n"}),
        lambda folder: read_vectors(folder / "v.txt", ["the"]),
        "v.txt",
        None,
    ),
}


@contextlib.contextmanager
def without_rights():
    """Give up root's rights for a while: nobody else may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def socket_at(path):
    with socket.socket(socket.AF_UNIX) as opened, contextlib.chdir(path.parent):
        opened.bind(path.name)  # a whole path may be too long for a socket


ANSWERS = {
    "a link that leads nowhere": lambda path: path.symlink_to("../.git/annex/objects/not-here"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a name too long": lambda path: path.symlink_to("x" * 300),
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a socket": socket_at,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "an error of the disk": lambda path: path.symlink_to("/proc/self/mem"),  # nothing can be read at its beginning
}


@pytest.mark.parametrize("answer", [*ANSWERS, "no permission"])
@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_is_none_is_named(place, reader, answer):
    make, read, file, _ = READERS[reader]
    folder = place / "data"
    folder.mkdir()
    make(folder)
    path = folder / file
    if answer == "no permission":
        read(folder)  # what is imported late is imported now, and nothing of what is kept may help
        shutil.rmtree(place / "cache", ignore_errors=True)
        path.chmod(0)
        refused = without_rights()
    else:
        path.unlink()
        ANSWERS[answer](path)
        refused = contextlib.nullcontext()
    with refused, pytest.raises(DataError, match=path.name) as found:
        read(folder)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("answer", ["a link that leads nowhere", "a link to itself", "no permission"])
@pytest.mark.parametrize("reader", [name for name, row in READERS.items() if row[3]])
def test_a_folder_that_cannot_be_listed_is_named(place, reader, answer):
    make, read, _, listed = READERS[reader]
    folder = place / "data"
    folder.mkdir()
    make(folder)
    path = folder / listed
    if answer == "no permission":
        read(folder)
        shutil.rmtree(place / "cache", ignore_errors=True)
        path.chmod(0)
        refused = without_rights()
    else:
        shutil.rmtree(path)
        ANSWERS[answer](path)
        refused = contextlib.nullcontext()
    try:
        with refused, pytest.raises(DataError, match=rf"{listed}.*cannot be read \("):
            read(folder)
    finally:
        if not path.is_symlink():
            path.chmod(0o755)


def test_a_link_that_leads_nowhere_is_never_taken_for_nothing(tmp_path):
    """Neither a class nor a whole split may be missing without a word, nor another split be taken in its place."""
    root = write_image_folder(tmp_path / "pets")
    write_image_folder(tmp_path / "pets", test="val")
    shutil.rmtree(root / "test")
    (root / "test").symlink_to("/mnt/not/mounted")
    with pytest.raises(DataError, match=r"test cannot be read .*it is a link to /mnt/not/mounted\); restore what"):
        load("imagefolder", data_dir=root, cache_dir=tmp_path)
    (root / "test").unlink()
    for split in ("train", "val"):
        (root / split / "emu").symlink_to("/mnt/not/mounted")
    with pytest.raises(DataError, match="train/emu cannot be read"):
        load("imagefolder", data_dir=root, cache_dir=tmp_path)


def test_links_that_lead_somewhere_are_followed(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    shutil.move(root / "train" / "cat", tmp_path / "cats")
    (root / "train" / "cat").symlink_to(tmp_path / "cats")
    shutil.move(root / "test" / "dog" / "0.png", tmp_path / "dog.png")
    (root / "test" / "dog" / "0.png").symlink_to("../../../dog.png")
    dataset = load("imagefolder", data_dir=root, cache_dir=tmp_path)
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (6, 4)
    tiny(tmp_path / "tiny")
    shutil.move(tmp_path / "tiny" / "train" / "n01", tmp_path / "n01")
    (tmp_path / "tiny" / "train" / "n01").symlink_to(tmp_path / "n01")
    assert len(load("tiny-imagenet", data_dir=tmp_path / "tiny", cache_dir=tmp_path).train_labels) == 2


@pytest.mark.parametrize("late", [False, True])
def test_a_file_that_vanishes_after_it_was_listed_is_named(tmp_path, monkeypatch, late):
    root = write_image_folder(tmp_path / "pets")
    path, digest = root / "train" / "cat" / "1.png", cache._digest

    def vanishing(*arguments):
        if late:
            found = digest(*arguments)
        path.unlink()
        return found if late else digest(*arguments)

    monkeypatch.setattr(cache, "_digest", vanishing)
    with pytest.raises(DataError, match=r"train/cat/1\.png cannot be read \(No such file"):
        load("imagefolder", data_dir=root, cache_dir=tmp_path)


def test_names_that_are_no_utf8_or_break_lines_are_read_and_printable(tmp_path):
    root = tmp_path / os.fsdecode(b"p\xe9ts")
    write_image_folder(root, classes=(os.fsdecode(b"c\xe2t"), "d\nog\x1b[2J"))
    dataset = load("imagefolder", data_dir=root, cache_dir=tmp_path)
    assert dataset.class_names == ("c\\xe2t", "d og\\x1b[2J")
    assert dataset.source == "ImageFolder p\\xe9ts"
    again = load("imagefolder", data_dir=root, cache_dir=tmp_path)
    assert again.class_names == dataset.class_names
    (root / "test" / "d\nog\x1b[2J" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"p\\xe9ts/test/d og\\x1b\[2J/0\.png cannot be read as an image"):
        load("imagefolder", data_dir=root, cache_dir=tmp_path)


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 5000])
def test_paths_that_no_file_can_have_are_refused(path):
    for refused in (
        lambda: load("imagefolder", data_dir=path),
        lambda: load_texts(TextRequest("file", data_file=Path(path))),
        lambda: read_vectors(Path(path), ["a"]),
    ):
        with pytest.raises(DataError, match="does not exist or cannot be read; name an existing one"):
            refused()


def test_hidden_files_are_no_texts(tmp_path):
    imdb(tmp_path)
    (tmp_path / "train" / "neg" / "._0_7.txt").write_bytes(b"\0\5\26\7 of a file system without resource forks")
    assert len(load_texts(TextRequest("imdb", tmp_path, cache_dir=tmp_path / "cache")).train_texts) == 4


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_cache_file_that_is_none_costs_a_warning(tmp_path, caplog, answer):
    root = write_image_folder(tmp_path / "pets")
    first = load("imagefolder", data_dir=root, cache_dir=tmp_path / "cache")
    (kept,) = (tmp_path / "cache" / "datasets").iterdir()
    kept.unlink()
    ANSWERS[answer](kept)
    with caplog.at_level(logging.WARNING):
        again = load("imagefolder", data_dir=root, cache_dir=tmp_path / "cache")
    assert "is built again" in caplog.text
    np.testing.assert_array_equal(again.train_images, first.train_images)


def test_what_a_file_system_answers_in_a_block_is_one_sentence():
    with pytest.raises(DataError, match=r"^data cannot be read \(Stale file handle\); check it\.$"), readable("data"):
        raise OSError(116, "Stale file handle")
    with pytest.raises(DataError, match=r"^data/x cannot be read \(Stale file handle\)"), readable("data"):
        raise OSError(116, "Stale file handle", "data/x")


def test_files_and_folders_are_told_apart_and_from_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    names = ("file", "pipe", ".", "none", "file/below", "none/below")
    assert [is_file(tmp_path / name) for name in names] == [True, False, False, False, False, False]
    assert [is_folder(tmp_path / name) for name in names] == [False, False, True, False, False, False]
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("link", "link/below"):
        with pytest.raises(DataError, match=r"link cannot be read \(No such file.*, it is a link to nowhere"):
            is_folder(tmp_path / name)
    with open_file(tmp_path / "file") as file:
        assert file.read() == b"x"
