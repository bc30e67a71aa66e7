import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from data_archives import CIFAR10_NAMES, cifar10_binary, write_folder, write_tar

from scpl_jax.data import DataError, TextRequest, load, load_texts
from scpl_jax.data.images.readers import tfds

ARCHIVE = "cifar-10-binary.tar.gz"

# Runs where TensorFlow is installed: TFDS fetches the archive from this machine, not from its authors' host.
PREPARE = """
    import sys
    from pathlib import Path

    from tensorflow_datasets.image_classification.cifar import Cifar10

    from scpl_jax.data.images.readers import tfds

    url, tfds_dir = sys.argv[1:]
    published = Cifar10._cifar_info.fget
    Cifar10._cifar_info = property(lambda self: published(self)._replace(url=url))
    tfds.prepare("cifar10", Path(tfds_dir), url)
"""

# The same for the text sets, each from an archive of the layout that its authors publish.
PREPARE_TEXTS = """
    import sys
    from pathlib import Path

    from tensorflow_datasets.datasets.ag_news_subset import ag_news_subset_dataset_builder as ag_news
    from tensorflow_datasets.datasets.imdb_reviews import imdb_reviews_dataset_builder as imdb
    from tensorflow_datasets.text import glue

    from scpl_jax.data.images.readers import tfds

    host, tfds_dir = sys.argv[1:]
    imdb._DOWNLOAD_URL = f"{host}/aclImdb_v1.tar.gz"
    ag_news._DOWNLOAD_URL = f"{host}/ag_news_csv.tar.gz"
    for config in glue.Glue.BUILDER_CONFIGS:
        config.data_url = f"{host}/SST-2.zip"
    for name in ("imdb_reviews/plain_text", "ag_news_subset", "glue/sst2"):
        tfds.prepare(name, Path(tfds_dir), host)
"""

# Makes TensorFlow look not installed. A None in sys.modules would not do: TFDS takes it for an import done.
HIDE_TENSORFLOW = """
    import sys

    class Hiding:
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "tensorflow":
                return None
            return self.finder.find_spec(name, path, target)

        def __getattr__(self, attribute):
            return getattr(self.finder, attribute)

    sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""

# One program for all that is read without TensorFlow, as starting it takes longer than all the rest.
READ = """
    import json
    import os

    import numpy as np

    from scpl_jax.data import DataError, load

    cache_dir, jobs = sys.argv[1:]
    for name, data_dir, tfds_dir, saved in json.loads(jobs):
        os.environ["TFDS_DATA_DIR"] = tfds_dir
        try:
            dataset = load(name, data_dir=data_dir, cache_dir=cache_dir)
        except DataError as error:
            np.savez(saved, error=str(error))
        else:
            fields = ("name", "source", "note", "class_names", "mean")
            fields += ("train_images", "train_labels", "test_images", "test_labels")
            np.savez(saved, **{field: np.array(getattr(dataset, field)) for field in fields})
    assert "tensorflow" not in sys.modules
"""


def _run(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        # This machine serves the archive itself, whatever proxy its user has.
        env=os.environ | {"no_proxy": "127.0.0.1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """TFDS folder with a small CIFAR-10, downloaded from this machine and prepared by TFDS itself."""
    pytest.importorskip("tensorflow", reason="TFDS needs TensorFlow to prepare a data set")
    root = tmp_path_factory.mktemp("tfds")
    (root / "www").mkdir()
    write_tar(root / "www" / ARCHIVE, "cifar-10-batches-bin", cifar10_binary())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=root / "www"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _run(PREPARE, f"http://127.0.0.1:{server.server_port}/{ARCHIVE}", root / "prepared")
    server.shutdown()
    server.server_close()
    return root / "prepared"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The same images, read from the official files."""
    folder = tmp_path_factory.mktemp("official")
    write_folder(folder / "cifar-10-batches-bin", cifar10_binary())
    return load("cifar10", data_dir=folder)


@pytest.fixture(scope="module")
def readings(prepared, tmp_path_factory):
    """What `load` gives where TensorFlow is not installed, by the situation."""
    root = tmp_path_factory.mktemp("read")
    shutil.copytree(prepared / "cifar10", root / "damaged" / "cifar10")
    (path,) = (root / "damaged").glob("*/*/*train.array_record*")
    path.write_bytes(path.read_bytes()[:100])
    nowhere = root / "nowhere"
    situations = {
        "data_dir": ("cifar10", prepared, nowhere),
        "environment": ("auto", None, prepared),
        "damaged": ("cifar10", None, root / "damaged"),
        "unprepared": ("cifar100", None, nowhere),
    }
    jobs = [
        (name, data_dir and str(data_dir), str(tfds_dir), str(root / f"{situation}.npz"))
        for situation, (name, data_dir, tfds_dir) in situations.items()
    ]
    _run(HIDE_TENSORFLOW + READ, root / "cache", json.dumps(jobs))
    return {situation: np.load(root / f"{situation}.npz") for situation in situations}


@pytest.mark.runs
@pytest.mark.parametrize("situation", ["data_dir", "environment"])
def test_what_tfds_prepared_is_read_without_tensorflow(readings, official, situation):
    found = readings[situation]
    assert found["name"] == "cifar10"
    assert found["source"] == "TensorFlow Datasets"
    assert found["note"] == official.note
    assert tuple(found["class_names"]) == CIFAR10_NAMES
    for field in ("train_images", "train_labels", "test_images", "test_labels", "mean"):
        np.testing.assert_array_equal(found[field], getattr(official, field))


@pytest.mark.runs
def test_damage_in_what_tfds_prepared_is_named(readings):
    told = str(readings["damaged"]["error"])
    assert "what TFDS prepared in" in told
    assert "damaged/cifar10/" in told


@pytest.mark.runs
def test_without_tensorflow_nothing_is_prepared(readings):
    assert 'run pip install "scpl-jax[tfds]" or give `data_dir`' in str(readings["unprepared"]["error"])


@pytest.fixture
def with_tensorflow(monkeypatch):
    """TensorFlow looks installed, so that these tests run without it too."""
    real = tfds.importlib.util.find_spec
    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: object() if name == "tensorflow" else real(name))


@pytest.mark.usefixtures("with_tensorflow")
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist"])
def test_an_unreachable_host_is_told_quickly_and_nothing_takes_its_place(tmp_path, monkeypatch, closed, name):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(tfds, "DOWNLOAD_URLS", dict.fromkeys(tfds.DOWNLOAD_URLS, closed))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    began = time.monotonic()
    with pytest.raises(DataError, match=rf"host cannot be reached \({closed}\); connect to the network or give"):
        load(name, data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert time.monotonic() - began < 6


@pytest.mark.usefixtures("with_tensorflow")
def test_what_tfds_prepared_as_tfrecord_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    folder = tmp_path / "cifar10" / "3.0.2"
    write_folder(folder, {"cifar10-train.tfrecord-00000-of-00001": b"", "dataset_info.json": b"{}"})
    with pytest.raises(DataError, match="cifar10 as TFRecord files, expected ArrayRecord files; move that folder"):
        load("cifar10")
    assert load("auto").name == "digits"


@pytest.mark.usefixtures("with_tensorflow")
def test_a_failed_preparation_is_told_in_one_sentence(tmp_path, monkeypatch):
    class Failing:
        def download_and_prepare(self):
            raise RuntimeError("wrong checksum:\n* expected ...")

    monkeypatch.setattr(tfds, "_builder", lambda *_: Failing())
    monkeypatch.setattr(tfds, "_reachable", lambda _: True)
    with pytest.raises(DataError, match=r"TFDS could not prepare cifar10 in .* \(wrong checksum:\); try again") as told:
        tfds.prepare("cifar10", tmp_path)
    assert "\n" not in str(told.value)


@pytest.fixture
def closed():
    """Address on this machine at which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"


def test_fashion_mnist_through_tfds_equals_the_idx_files(tmp_path, monkeypatch):
    from data_archives import write_fashion_mnist

    from scpl_jax.data.images.readers import idx

    images, labels = write_fashion_mnist(tmp_path / "idx")
    arrays = (images[..., None], labels.astype(np.int32))
    monkeypatch.setattr(idx.tfds, "load", lambda request, name, finish: finish(arrays, arrays, ("unused",)))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    through_tfds = load("fashion-mnist", cache_dir=tmp_path / "cache")
    from_files = load("fashion-mnist", data_dir=tmp_path / "idx", cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(through_tfds.train_images, from_files.train_images)
    assert through_tfds.class_names == from_files.class_names


def _texts_of(dataset, split):
    texts = getattr(dataset, f"{split}_texts")
    found = []
    for index, label in enumerate(getattr(dataset, f"{split}_labels").tolist()):
        ids = texts.padded([index], int(texts.lengths[index]))[0]
        found.append((" ".join(dataset.words[i - 2] if i > 1 else "?" for i in ids), label))
    return found


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """(folder with official files of text sets, folder in which TFDS has prepared the same)."""
    pytest.importorskip("tensorflow", reason="TFDS needs TensorFlow to prepare a data set")
    root = tmp_path_factory.mktemp("texts")
    reviews = {
        f"{split}/{label}/{number}_7.txt": f"A {word} film, number{number} {split}.".encode()
        for split in ("train", "test")
        for label, word in (("pos", "good"), ("neg", "bad"), ("unsup", "new"))
        for number in range(4)
    }
    news = {
        f"{split}.csv": "".join(f'"{number % 4 + 1}","Title{number}","Body, {split}"\n' for number in range(8)).encode()
        for split in ("train", "test")
    }
    header = {"train": "sentence\tlabel", "dev": "sentence\tlabel", "test": "index\tsentence"}
    sentences = {
        f"{split}.tsv": "\n".join(
            [
                header[split],
                *(f"{i}\tnever read" if split == "test" else f"word{i} {split}\t{i % 2}" for i in range(6)),
            ]
        ).encode()
        for split in header
    }
    (root / "www").mkdir()
    write_tar(root / "www" / "aclImdb_v1.tar.gz", "aclImdb", reviews)
    write_tar(root / "www" / "ag_news_csv.tar.gz", "ag_news_csv", news)
    with zipfile.ZipFile(root / "www" / "SST-2.zip", "w") as archive:
        for name, content in sentences.items():
            archive.writestr(f"SST-2/{name}", content)
    write_folder(root / "files" / "aclImdb", reviews)
    write_folder(root / "files" / "ag_news_csv", news)
    write_folder(root / "files" / "SST-2", sentences)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=root / "www"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _run(PREPARE_TEXTS, f"http://127.0.0.1:{server.server_port}", root / "prepared")
    server.shutdown()
    server.server_close()
    return root / "files", root / "prepared"


@pytest.mark.runs
@pytest.mark.parametrize("name", ["imdb", "sst2", "ag-news"])
def test_texts_that_tfds_prepared_equal_the_official_files(texts, tmp_path, name):
    official, found = (
        load_texts(TextRequest(name, folder, cache_dir=tmp_path, keep_stop_words=True)) for folder in texts
    )
    assert found.source == "TensorFlow Datasets"
    assert official.source != found.source
    assert found.num_classes == official.num_classes
    assert found.words == official.words
    for split in ("train", "test"):
        told, expected = _texts_of(found, split), _texts_of(official, split)
        # Only the sentences are numbered: TFDS shuffles the others for good.
        assert told == expected if name == "sst2" else sorted(told) == sorted(expected)
