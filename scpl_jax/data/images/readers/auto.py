"""The data set to start with: CIFAR-10 where it is at hand, else the bundled digits."""

from dataclasses import replace

from scpl_jax.data.dataset import Dataset
from scpl_jax.data.images.readers import cifar_files, digits, tfds
from scpl_jax.data.images.readers.request import Request

_NOTE = (
    "CIFAR-10 was not found, so the digits bundled with scikit-learn are used; `name` cifar10 downloads "
    "it through TensorFlow Datasets, or put the official archive into the folder given by `data_dir`."
)


def load(request: Request) -> Dataset:
    """Read CIFAR-10 from `data_dir` or from what TFDS has prepared, else the digits; never download.

    The data set's `name` tells which of the two it is, and with the digits its `note` says why.

    Raises:
        DataError: when CIFAR-10 is there but damaged; it is not passed over then.
    """
    as_cifar = replace(request, name="cifar10")
    official = cifar_files.load_official(as_cifar)
    if official is not None:
        return official
    if tfds.find_prepared("cifar10", request.data_dir) is not None:
        return cifar_files.load_prepared(as_cifar)
    return replace(digits.load(replace(request, name="digits")), note=_NOTE)
