"""A text data set held in memory as token ids."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from scpl_jax.data.batching import Batch, check_batch_size
from scpl_jax.data.dataset import SPLITS, check_labels, make_printable
from scpl_jax.data.errors import DataError
from scpl_jax.data.text.buckets import Texts, eval_text_batches, text_batches


@dataclasses.dataclass(frozen=True, eq=False)
class TextDataset:
    """Labelled texts of one data set, split into a training and a test part.

    Attributes not listed are those of `scpl_jax.data.Dataset`, of texts in place of images.

    Attributes:
        name: name of the data set, as in `scpl_jax.data.TEXT_DATASETS`.
        train_texts: training texts; every text has at least one token.
        test_texts: test texts.
        words: the words of ids 2, 3, ...; 0 is padding and 1 any other word.
        max_length: tokens of a text that count; what is behind is cut off.
        buckets: lengths to which texts are padded, ascending.
        vectors: vectors of some words, with which an embedding may begin: word -> `(D,)` float32.

    Raises:
        DataError: on construction, when the arrays do not fit together.
    """

    name: str
    source: str
    train_texts: Texts
    train_labels: np.ndarray
    test_texts: Texts
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    words: tuple[str, ...]
    max_length: int
    buckets: tuple[int, ...]
    vectors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    note: str = ""

    unit: ClassVar[str] = "texts"

    def __post_init__(self) -> None:
        make_printable(self)
        if self.max_length < 1:
            raise DataError(f"`max_length` is {self.max_length}, expected at least 1 token; choose a larger one.")
        for split in SPLITS:
            texts, labels = getattr(self, f"{split}_texts"), getattr(self, f"{split}_labels")
            if len(texts) == 0:
                raise DataError(f"data set {self.name}: the {split} split holds no texts; supply at least one.")
            check_labels(self.name, split, labels, len(texts), self.num_classes, "text")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def vocabulary(self) -> int:
        """Number of token ids, padding and unknown included."""
        return len(self.words) + 2

    @property
    def mean_length(self) -> float:
        """Mean number of tokens of a training text that count."""
        return float(np.minimum(self.train_texts.lengths, self.max_length).mean())

    def shapes(self, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """A batch of token ids and labels of each bucket."""
        check_batch_size(batch_size)
        labels = np.empty(batch_size, np.int32)
        return [(np.empty((batch_size, length), np.int32), labels) for length in self.buckets]

    def train_batches(self, batch_size: int, *, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch `start` on (see `text_batches`)."""
        options = {"seed": seed, "epoch": epoch, "start": start}
        return text_batches(self.train_texts, self.train_labels, batch_size, self.buckets, **options)

    def every(self, split: str, batch_size: int, count: int | None = None) -> Iterator[Batch]:
        """Each of the first `count` texts of `train` or `test` once (see `eval_text_batches`)."""
        texts, labels = getattr(self, f"{split}_texts"), getattr(self, f"{split}_labels")
        return eval_text_batches(texts.first(count), labels[:count], batch_size, self.buckets)

    def packed(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Its arrays, and everything else but word vectors as JSON can hold it."""
        arrays = {f"{split}_labels": getattr(self, f"{split}_labels") for split in SPLITS}
        for split in SPLITS:
            texts = getattr(self, f"{split}_texts")
            arrays |= {f"{split}_ids": texts.ids, f"{split}_starts": texts.starts}
        kept = ("name", "source", "class_names", "words", "max_length", "buckets", "note")
        return arrays, {name: getattr(self, name) for name in kept}

    @classmethod
    def unpacked(cls, arrays: dict[str, np.ndarray], texts: dict[str, Any]) -> "TextDataset":
        """The data set of what `packed` gave."""
        labels = {f"{split}_labels": arrays[f"{split}_labels"] for split in SPLITS}
        parts = {f"{split}_texts": Texts(arrays[f"{split}_ids"], arrays[f"{split}_starts"]) for split in SPLITS}
        return cls(**texts | labels | parts)

    def limited(self, limit_train: int | None, limit_test: int | None) -> "TextDataset":
        """The first texts of each split only; the vocabulary stays that of all training texts."""
        return dataclasses.replace(
            self,
            train_texts=self.train_texts.first(limit_train),
            train_labels=self.train_labels[:limit_train],
            test_texts=self.test_texts.first(limit_test),
            test_labels=self.test_labels[:limit_test],
        )

    def parted(self, held: np.ndarray) -> tuple["TextDataset", "TextDataset"]:
        """Without the training texts chosen by `held`, `(N,)` bool; and with these as its test texts."""
        texts, labels = self.train_texts, self.train_labels
        rest = dataclasses.replace(self, train_texts=texts.chosen(~held), train_labels=labels[~held])
        return rest, dataclasses.replace(rest, test_texts=texts.chosen(held), test_labels=labels[held])
