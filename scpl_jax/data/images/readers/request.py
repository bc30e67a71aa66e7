"""What is asked of a reader, and the data set that it makes of arrays."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scpl_jax.data.cache import cached
from scpl_jax.data.dataset import Dataset
from scpl_jax.data.errors import DataError
from scpl_jax.data.images.decoding import channel_statistics

Arrays = tuple[np.ndarray, np.ndarray]
"""Images `(N, H, W, C)` uint8 and labels `(N,)`, whole numbers."""


@dataclass(frozen=True)
class Request:
    """A data set asked for by name.

    Attributes:
        name: name of the data set, as in `scpl_jax.data.DATASETS`.
        data_dir: folder (or file) with the data; None when the user named none.
        cache_dir: folder under which decoded images are kept; None for none.
        image_size: edge in pixels to which all images are resized; None leaves the reader's own size.
    """

    name: str
    data_dir: Path | None
    cache_dir: Path | None
    image_size: int | None

    def required_dir(self, content: str) -> Path:
        """The data directory of a data set that cannot do without one; `content` is what it must hold, for the error.

        Raises:
            DataError: when the user named no directory.
        """
        if self.data_dir is None:
            raise DataError(f"`name` {self.name} needs `data_dir`, which was not given; set it to {content}.")
        return self.data_dir

    def dataset(self, source: str, train: Arrays, test: Arrays, class_names: Iterable[str], **known: Any) -> Dataset:
        """The data set of the arrays of two splits.

        Args:
            source: as for `Dataset`.
            train: training images with three channels, and their labels.
            test: the same of the test split.
            class_names: as for `Dataset`.
            **known: its `note`; its `mean` and `std` where they are not to be those of the training images.

        Raises:
            DataError: when the arrays do not fit together.
        """
        if "mean" not in known:
            known["mean"], known["std"] = channel_statistics(train[0])
        train_labels, test_labels = (labels.astype(np.int32) for _, labels in (train, test))
        return Dataset(self.name, source, train[0], train_labels, test[0], test_labels, tuple(class_names), **known)

    def cached(self, build: Callable[[], Dataset], reader: str, files: Iterable[str | Path]) -> Dataset:
        """The data set from the cache, or built and put there, see `scpl_jax.data.cache.cached`."""
        reader = f"{reader} {self.name}"
        return cached(Dataset, build, cache_dir=self.cache_dir, reader=reader, files=files, options=self.image_size)
