"""Data sets prepared by TensorFlow Datasets (TFDS)."""

import contextlib
import importlib.util
import os
import socket
import threading
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from scpl_jax.data.dataset import Dataset
from scpl_jax.data.errors import DataError
from scpl_jax.data.images.readers.request import Arrays, Request
from scpl_jax.data.paths import expand

_READER = "tfds-1"
_FORMAT = "array_record"
_READ_AT_ONCE = 1000
_PORTS = {"http": 80, "https": 443}

DOWNLOAD_URLS = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
"""Where TFDS downloads each data set from, by its TFDS name."""

Part = TypeVar("Part")


def load(request: Request, tfds_name: str, finish: Callable[[Arrays, Arrays, tuple[str, ...]], Dataset]) -> Dataset:
    """Read a data set prepared by TFDS; where there is none, download and prepare it first.

    A prepared one is looked for in the request's `data_dir` and then in TFDS's own folder. Preparing
    happens in the `data_dir` if one is given.

    Args:
        request: what was asked for.
        tfds_name: name of the data set in TFDS.
        finish: makes the data set of training arrays, test arrays and class names.

    Raises:
        DataError: when it is neither prepared nor can be, or what was prepared is damaged.
    """
    tfds_dir = find_prepared(tfds_name, request.data_dir)
    if tfds_dir is None:
        tfds_dir = request.data_dir or default_dir()
        prepare(tfds_name, tfds_dir)

    def build() -> Dataset:
        class_names, (train, test) = read_prepared(tfds_name, tfds_dir, ("train", "test"), _arrays)
        return finish(train, test, class_names)

    return request.cached(build, _READER, prepared_files(tfds_name, tfds_dir))


def default_dir() -> Path:
    """Folder in which TFDS keeps its data sets: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Raises:
        DataError: when that is in a home directory that is not known.
    """
    return expand(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "the folder of TFDS, TFDS_DATA_DIR,")


def find_prepared(tfds_name: str, data_dir: Path | None) -> Path | None:
    """Look for a data set that TFDS has prepared for random access.

    Nothing is imported as long as there is no folder of that name, and TensorFlow never is.

    Args:
        tfds_name: name of the data set in TFDS.
        data_dir: folder to look in before TFDS's own; None when there is none.

    Returns:
        The folder to hand to TFDS as its `data_dir`, or None.
    """
    own = None
    with contextlib.suppress(DataError):  # without a home directory nothing can have been prepared there
        own = default_dir()
    for folder in (data_dir, own):
        # TFDS refuses to open what it has prepared in another format, so the files are looked at first.
        if folder is None or not any((folder / tfds_name).glob(f"*/*.{_FORMAT}*")):
            continue
        if _builder(tfds_name, folder).is_prepared():
            return folder
    return None


def prepare(tfds_name: str, tfds_dir: Path, url: str | None = None) -> None:
    """Download a data set and prepare it for random access.

    Args:
        tfds_name: name of the data set in TFDS.
        tfds_dir: folder in which TFDS keeps it.
        url: address TFDS fetches it from, tried briefly beforehand; None for the one in `DOWNLOAD_URLS`.

    Raises:
        DataError: when TensorFlow, which TFDS needs for this, is not installed, the host cannot be reached,
            the folder holds the data set in another format, or the preparation fails.
    """
    url = url or DOWNLOAD_URLS[tfds_name]
    if any((tfds_dir / tfds_name).glob("*/*.tfrecord*")):
        raise DataError(
            f"{tfds_dir / tfds_name} holds {tfds_name} as TFRecord files, expected ArrayRecord files; move "
            "that folder away or set TFDS_DATA_DIR to another one to have it prepared again."
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"{tfds_name} is not prepared in {tfds_dir} and TensorFlow, which prepares it, is not installed; "
            'run pip install "scpl-jax[tfds]" or give `data_dir` with the official files.'
        )
    # Without a network TFDS would go on trying for minutes.
    if not _reachable(url):
        raise DataError(
            f"{tfds_name} is not prepared in {tfds_dir} and its host cannot be reached ({url}); connect to "
            "the network or give `data_dir` with the official files."
        )
    try:
        _builder(tfds_name, tfds_dir).download_and_prepare()
    # Errors of requests, of TensorFlow, of the file system: TFDS passes all of them on.
    except Exception as error:
        raise DataError(
            f"TFDS could not prepare {tfds_name} in {tfds_dir} ({_first_line(error)}); try again or give "
            "`data_dir` with the official files."
        ) from error


def _reachable(url: str, timeout: float = 5.0) -> bool:
    """Whether the host of an http or https address, or its proxy where there is one, accepts a connection in time."""
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or _PORTS[address.scheme]
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = address.hostname or "", address.port or _PORTS.get(address.scheme, 80)
    answers: list[bool] = []

    def connect() -> None:
        try:
            with socket.create_connection((host, port), timeout=timeout):
                answers.append(True)
        except OSError:
            answers.append(False)

    # A socket's timeout does not cover the look-up of the name. The thread must not outlive the program.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    return answers == [True]


def _builder(tfds_name: str, tfds_dir: Path) -> Any:
    import tensorflow_datasets

    return tensorflow_datasets.builder(tfds_name, data_dir=tfds_dir, file_format=_FORMAT)


def prepared_files(tfds_name: str, tfds_dir: Path) -> list[Path]:
    """All files of a prepared data set."""
    folder = Path(_builder(tfds_name, tfds_dir).data_path).resolve()
    return [entry for entry in folder.iterdir() if entry.is_file()]


def read_prepared(
    tfds_name: str, tfds_dir: Path, splits: Sequence[str], convert: Callable[[list[Any]], Part]
) -> tuple[tuple[str, ...], list[Part]]:
    """Class names, and what `convert` makes of the examples of each split, of a prepared data set.

    Raises:
        DataError: when it cannot be read.
    """
    builder = _builder(tfds_name, tfds_dir)
    try:
        sources = builder.as_data_source()
        names = tuple(builder.info.features["label"].names)
        return names, [convert(_examples(sources[split])) for split in splits]
    except Exception as error:
        raise DataError(
            f"what TFDS prepared in {Path(builder.data_path).resolve()} cannot be read ({_first_line(error)}); remove "
            "that folder to have it prepared again."
        ) from error


def _examples(source: Any) -> list[Any]:
    """All examples; TFDS shuffles as it prepares, and where they are numbered this restores the official order."""
    examples: list[Any] = []
    for at in range(0, len(source), _READ_AT_ONCE):
        examples += source.__getitems__(range(at, min(at + _READ_AT_ONCE, len(source))))
    numbers = {"id", "idx"} & set(examples[0] if examples else ())
    for number in numbers:
        examples.sort(key=lambda example: example[number])
    return examples


def _arrays(examples: list[Any]) -> Arrays:
    images = np.stack([example["image"] for example in examples])
    return images, np.array([example["label"] for example in examples], np.int32)


def _first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind when it has none, to fit into one sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
