import pickle
import tarfile

import numpy as np
import pytest
from data_archives import (
    CIFAR10_NAMES,
    CIFAR100_NAMES,
    PER_BATCH,
    cifar10_binary,
    cifar10_python,
    cifar100_binary,
    cifar100_python,
    cifar_batches,
    python2_pickle,
    write_folder,
    write_tar,
)

from scpl_jax.data import DataError, load
from scpl_jax.data.images.readers.cifar_files import _load_arrays

VERSIONS = {
    "cifar10-python": ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py", cifar10_python),
    "cifar10-binary": ("cifar10", "cifar-10-binary.tar.gz", "cifar-10-batches-bin", cifar10_binary),
    "cifar100-python": ("cifar100", "cifar-100-python.tar.gz", "cifar-100-python", cifar100_python),
    "cifar100-binary": ("cifar100", "cifar-100-binary.tar.gz", "cifar-100-binary", cifar100_binary),
}


@pytest.fixture(autouse=True)
def no_prepared_data(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-tfds"))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("place", ["archive", "extracted", "itself", "archive itself"])
def test_every_published_version_gives_the_same_arrays(tmp_path, version, place):
    name, archive, folder, contents = VERSIONS[version]
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    if "archive" in place:
        made = write_tar(data_dir / archive, folder, contents())
    else:
        made = write_folder(data_dir / folder, contents())
    dataset = load(name, data_dir=made if "itself" in place else data_dir, cache_dir=tmp_path / "cache")

    class_names = CIFAR10_NAMES if name == "cifar10" else CIFAR100_NAMES
    *train, test = cifar_batches(class_names, 5 if name == "cifar10" else 1)
    pixels = np.concatenate([batch for batch, _ in train])
    np.testing.assert_array_equal(dataset.train_images[:, :, :, 0], pixels[:, :1024].reshape(-1, 32, 32))
    np.testing.assert_array_equal(dataset.train_images[:, :, :, 2], pixels[:, 2048:].reshape(-1, 32, 32))
    np.testing.assert_array_equal(dataset.train_labels, np.concatenate([labels for _, labels in train]))
    np.testing.assert_array_equal(dataset.test_images[1, 0, :, 1], test[0][1, 1024:1056])
    np.testing.assert_array_equal(dataset.test_labels, test[1])
    assert dataset.class_names == class_names
    assert dataset.name == name


def test_published_statistics_are_used(tmp_path):
    write_folder(tmp_path / "cifar-10-batches-bin", cifar10_binary())
    dataset = load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert dataset.mean == (0.4914, 0.4822, 0.4465)
    assert dataset.std == (0.2470, 0.2435, 0.2616)


def test_image_size_resizes_bilinearly(tmp_path):
    write_folder(tmp_path / "cifar-10-batches-bin", cifar10_binary())
    small = load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache", image_size=16)
    full = load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert small.image_shape == (16, 16, 3)
    difference = small.train_images.mean(axis=(1, 2)) - full.train_images.mean(axis=(1, 2))
    assert np.abs(difference).max() < 2.0


def test_nothing_is_extracted_to_disk(tmp_path):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    write_tar(data_dir / "cifar-10-python.tar.gz", "cifar-10-batches-py", cifar10_python())
    load("cifar10", data_dir=data_dir, cache_dir=tmp_path / "cache")
    assert [path.name for path in data_dir.iterdir()] == ["cifar-10-python.tar.gz"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_missing_file_is_named(tmp_path, version, packed):
    name, archive, folder, contents = VERSIONS[version]
    files = contents()
    missing = next(file for file in files if file.startswith("test"))
    del files[missing]
    if packed:
        write_tar(tmp_path / archive, folder, files)
    else:
        write_folder(tmp_path / folder, files)
    with pytest.raises(DataError, match=rf"holds no {missing}; fetch the official archive again\.$"):
        load(name, data_dir=tmp_path, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_cut_off_is_named(tmp_path, version):
    name, _, folder, contents = VERSIONS[version]
    files = contents()
    cut = next(file for file in files if file.startswith("test"))
    files[cut] = files[cut][: 3073 * 2 + 100]
    write_folder(tmp_path / folder, files)
    with pytest.raises(DataError, match=rf"{folder}/{cut} .*fetch the official archive again\.$"):
        load(name, data_dir=tmp_path, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_an_archive_cut_off_is_named_with_its_member(tmp_path, keep):
    path = write_tar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", cifar10_python())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    member = "data_batch_[3-4]" if keep == 0.5 else "test_batch"
    with pytest.raises(DataError, match=rf"cifar-10-python\.tar\.gz is damaged at .*{member}"):
        load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")


def test_an_archive_that_is_none_is_named(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged at its first member"):
        load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")


def test_members_elsewhere_in_the_archive_are_passed_over(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_tar(path, "cifar-10-batches-bin", {"../../evil": b"x", "readme.html": b"x", **cifar10_binary()})
    with tarfile.open(path) as archive:
        assert "cifar-10-batches-bin/../../evil" in archive.getnames()
    assert len(load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "c").train_images) == 5 * PER_BATCH
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        ({b"labels": [1]}, "has no entry data"),
        ({b"data": np.zeros((1, 3072), np.uint8)}, "has no entry labels"),
        (
            {b"data": np.zeros((1, 3071), np.uint8), b"labels": [1]},
            r"holds data of uint8 \(1, 3071\), expected uint8 \(N, 3072\)",
        ),
        ({b"data": [1], b"labels": [1]}, r"holds data of list, expected uint8 \(N, 3072\)"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, "holds 2 images but labels"),
        ([1], "has no entry data"),
    ],
)
def test_a_python_batch_of_other_content_is_refused(tmp_path, batch, complaint):
    files = cifar10_python() | {"data_batch_2": python2_pickle(batch)}
    write_folder(tmp_path / "cifar-10-batches-py", files)
    with pytest.raises(DataError, match=f"data_batch_2 {complaint}"):
        load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")


def test_a_label_beyond_the_classes_is_refused(tmp_path):
    files = cifar10_binary()
    files["test_batch.bin"] = b"\x0b" + files["test_batch.bin"][1:]
    write_folder(tmp_path / "cifar-10-batches-bin", files)
    with pytest.raises(DataError, match=r"test labels run from \d to 11, expected 0 to 9"):
        load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")


class _Calls:
    """Pickles as a call of a function of the test's choice."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _touch(path):
    open(path, "w").close()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_batch_is_refused_before_anything_runs(tmp_path, protocol):
    trace = tmp_path / "trace"
    files = cifar10_python()
    content = pickle.dumps({"data": _Calls(_touch, str(trace)), "labels": [1]}, protocol=protocol)
    pickle.loads(content)
    assert trace.exists(), "the pickle must be able to do harm for this test to mean anything"
    trace.unlink()
    write_folder(tmp_path / "cifar-10-batches-py", files | {"data_batch_1": content})
    with pytest.raises(DataError, match=r"data_batch_1 is no intact pickle of arrays \(it asks for .*_touch\)"):
        load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["numpy.load", "numpy.core.multiarray.fromfile", "numpy.dtype.mro", "builtins.eval"])
def test_neighbours_of_what_is_allowed_are_refused(name):
    module, _, attribute = name.rpartition(".")
    with pytest.raises(DataError, match="it asks for"):
        _load_arrays(f"c{module}\n{attribute}\n.".encode(), "batch")


def test_attributes_of_what_is_allowed_are_refused():
    # Protocol 4 can reach them by a dotted name.
    text = [b"\x8c" + bytes([len(part)]) + part.encode() for part in ("numpy", "ndarray.tofile")]
    with pytest.raises(DataError, match=r"it asks for numpy\.ndarray\.tofile"):
        _load_arrays(b"\x80\x04" + b"".join(text) + b"\x93.", "batch")


def test_no_codec_but_the_one_of_bytes_is_used():
    with pytest.raises(DataError, match="it asks for the encoding rot13"):
        _load_arrays(b"c_codecs\nencode\n(Vtext\nVrot13\ntR.", "batch")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_pickled_by_today_s_numpy_are_read(protocol):
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    found = _load_arrays(pickle.dumps({"data": array}, protocol=protocol), "batch")
    np.testing.assert_array_equal(found["data"], array)
