"""Small files in the published formats, for the tests of the readers."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_NAMES = tuple(f"class{index:02d}" for index in range(100))
PER_BATCH = 4


def python2_pickle(value):
    """Pickle as Python 2 did: protocol 2 with byte strings, which `encoding="bytes"` gives back as bytes."""
    out = io.BytesIO()
    out.write(b"\x80\x02")
    _write_python2(out, value)
    out.write(b".")
    return out.getvalue()


def _write_python2(out, value):
    if isinstance(value, dict):
        out.write(b"}(")
        for key, entry in value.items():
            _write_python2(out, key)
            _write_python2(out, entry)
        out.write(b"u")
    elif isinstance(value, list):
        out.write(b"](")
        for entry in value:
            _write_python2(out, entry)
        out.write(b"e")
    elif isinstance(value, bytes):
        out.write(b"T" + len(value).to_bytes(4, "little") + value)
    elif isinstance(value, int):
        out.write(b"J" + value.to_bytes(4, "little", signed=True))
    elif isinstance(value, tuple):
        out.write(b"(")
        for entry in value:
            _write_python2(out, entry)
        out.write(b"t")
    elif isinstance(value, np.ndarray):
        # numpy.core.multiarray._reconstruct(ndarray, (0,), "b") and __setstate__, as numpy 1 on Python 2.
        out.write(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(")
        out.write(b"K\x01")
        _write_python2(out, value.shape)
        out.write(b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
        out.write(b"\x89")
        _write_python2(out, value.tobytes())
        out.write(b"tb")
    else:
        raise TypeError(type(value))


def cifar_batches(names, num_train_batches, *, seed=0):
    """List of (pixels (N, 3072), labels (N,)), uint8, the last one for testing."""
    generator = np.random.default_rng(seed)
    shape = (num_train_batches + 1, PER_BATCH)
    pixels = generator.integers(0, 256, (*shape, 3072), dtype=np.uint8)
    labels = generator.integers(0, len(names), shape, dtype=np.uint8)
    return list(zip(pixels, labels, strict=True))


def cifar10_python(seed=0):
    """File contents of the python version, by name."""
    batches = cifar_batches(CIFAR10_NAMES, 5, seed=seed)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    files = {
        name: python2_pickle({b"data": pixels, b"labels": [int(label) for label in labels]})
        for name, (pixels, labels) in zip(names, batches, strict=True)
    }
    files["batches.meta"] = python2_pickle({b"label_names": [name.encode() for name in CIFAR10_NAMES]})
    return files


def cifar10_binary(seed=0):
    """File contents of the binary version of the same images."""
    batches = cifar_batches(CIFAR10_NAMES, 5, seed=seed)
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    files = {
        name: np.concatenate([labels[:, None], pixels], axis=1).tobytes()
        for name, (pixels, labels) in zip(names, batches, strict=True)
    }
    files["batches.meta.txt"] = "".join(f"{name}\n" for name in CIFAR10_NAMES).encode() + b"\n"
    return files


def cifar100_python():
    """File contents of CIFAR-100's python version; its coarse labels are all 0."""
    files = {
        name: pickle.dumps(
            {"data": pixels, "fine_labels": labels.tolist(), "coarse_labels": [0] * PER_BATCH}, protocol=2
        )
        for name, (pixels, labels) in zip(("train", "test"), cifar_batches(CIFAR100_NAMES, 1), strict=True)
    }
    files["meta"] = pickle.dumps({"fine_label_names": list(CIFAR100_NAMES)}, protocol=2)
    return files


def cifar100_binary():
    """File contents of CIFAR-100's binary version of the same images."""
    files = {
        name: np.concatenate([np.zeros_like(labels)[:, None], labels[:, None], pixels], axis=1).tobytes()
        for name, (pixels, labels) in zip(("train.bin", "test.bin"), cifar_batches(CIFAR100_NAMES, 1), strict=True)
    }
    files["fine_label_names.txt"] = "\n".join(CIFAR100_NAMES).encode()
    return files


def write_folder(folder: Path, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_tar(path: Path, folder, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_image(path: Path, value=0, size=(8, 8), mode="RGB"):
    """A one-coloured image, as its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (value, value, value) if mode == "RGB" else value
    Image.new(mode, size, colour).save(path)
    return path


def write_image_folder(root: Path, classes=("cat", "dog"), per_class=3, test="test"):
    """An ImageFolder of one-coloured PNGs; image i of class c has the grey value 10 * c + i."""
    for split, count in (("train", per_class), (test, 2)):
        for label, name in enumerate(classes):
            for index in range(count):
                write_image(root / split / name / f"{index}.png", 10 * label + index)
    return root


def idx_bytes(array):
    """An array of unsigned bytes as an idx file."""
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes((0, 0, 8, array.ndim)) + lengths + array.tobytes()


def write_fashion_mnist(folder: Path, *, zipped=False):
    """The four idx files: 5 training and 3 test images; returns the training images and labels."""
    generator = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for prefix, count in (("train", 5), ("t10k", 3)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            content = idx_bytes(array)
            path = folder / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(content) if zipped else content)
        made.append((images, labels))
    return made[0]
