"""What a data set is for training, one of images held in memory, and the changes an experiment may ask of any."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np

from scpl_jax.data.batching import Batch, batches, check_batch_size, epoch_order, eval_batches
from scpl_jax.data.errors import DataError, printable, some

SPLITS = ("train", "test")


@runtime_checkable
class Examples(Protocol):
    """What training asks of a data set, whatever its examples are.

    `unit` is what an example is, in the plural.
    """

    unit: ClassVar[str]

    @property
    def name(self) -> str:
        """Name of the data set."""

    @property
    def source(self) -> str:
        """Where the examples came from, for people to read."""

    @property
    def note(self) -> str:
        """What a user should know about how the data set was chosen; empty when nothing."""

    @property
    def train_labels(self) -> np.ndarray:
        """Class index of each training example, `(N,)` int32."""

    @property
    def test_labels(self) -> np.ndarray:
        """Class index of each test example, `(M,)` int32."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in the order of the labels."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    def shapes(self, batch_size: int) -> list[tuple[Any, Any]]:
        """A batch of every shape that training has: inputs and labels as arrays of which only the shape counts."""

    def train_batches(self, batch_size: int, *, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The `N // batch_size` batches of one epoch, from batch `start` on; nothing but the arguments decides."""

    def every(self, split: str, batch_size: int, count: int | None = None) -> Iterator[Batch]:
        """Each of the first `count` examples of `train` or `test` once; the last batch filled up with label -1."""

    def limited(self, limit_train: int | None, limit_test: int | None) -> Any:
        """The first examples of each split only."""

    def parted(self, held: np.ndarray) -> tuple[Any, Any]:
        """Without the training examples chosen by `held`, `(N,)` bool; and with these as its test examples."""


AnyExamples = TypeVar("AnyExamples", bound=Examples)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images of one data set, split into a training and a test part.

    Attributes:
        name: name of the data set, as in `scpl_jax.data.DATASETS`.
        source: where the images came from, for people to read.
        train_images: training images, `(N, H, W, 3)` uint8, 0 to 255.
        train_labels: class index of each training image, `(N,)` int32.
        test_images: test images, `(M, H, W, 3)` uint8, of the size of the training images.
        test_labels: class index of each test image, `(M,)` int32.
        class_names: name of each class, in the order of the labels.
        mean: mean of each colour channel over the training images, pixels scaled to [0, 1].
        std: standard deviation of each colour channel, in the same units.
        note: what a user should know about how this data set was chosen; empty when nothing.

    Raises:
        DataError: on construction, when the arrays do not fit together (see `validate`).
    """

    name: str
    source: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    note: str = ""

    unit: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        make_printable(self)
        self.validate()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.train_images.shape[1:]
        return (height, width, channels)

    def shapes(self, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """One batch of images and labels: all batches have its shape."""
        check_batch_size(batch_size)
        return [(np.empty((batch_size, *self.image_shape), np.uint8), np.empty(batch_size, np.int32))]

    def train_batches(self, batch_size: int, *, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch in random order, from batch `start` on (see `batches`)."""
        order = epoch_order(len(self.train_images), seed=seed, epoch=epoch)
        return batches(self.train_images, self.train_labels, batch_size, order=order, start=start)

    def every(self, split: str, batch_size: int, count: int | None = None) -> Iterator[Batch]:
        """Each of the first `count` images of `train` or `test` once, in order (see `eval_batches`)."""
        images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
        return eval_batches(images[:count], labels[:count], batch_size)

    def packed(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Its arrays, and everything else as JSON can hold it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        return arrays, {name: value for name, value in values.items() if name not in arrays}

    @classmethod
    def unpacked(cls, arrays: dict[str, np.ndarray], texts: dict[str, Any]) -> "Dataset":
        """The data set of what `packed` gave."""
        return cls(**texts | arrays)

    def limited(self, limit_train: int | None, limit_test: int | None) -> "Dataset":
        """The first images of each split only; `mean` and `std` stay."""
        return replace(
            self,
            train_images=self.train_images[:limit_train],
            train_labels=self.train_labels[:limit_train],
            test_images=self.test_images[:limit_test],
            test_labels=self.test_labels[:limit_test],
        )

    def parted(self, held: np.ndarray) -> tuple["Dataset", "Dataset"]:
        """Without the training images chosen by `held`, `(N,)` bool; and with these as its test images."""
        images, labels = self.train_images, self.train_labels
        rest = replace(self, train_images=images[~held], train_labels=labels[~held])
        return rest, replace(rest, test_images=images[held], test_labels=labels[held])

    def validate(self) -> None:
        """Check that the arrays fit together.

        Raises:
            DataError: for an array of the wrong dtype or shape, images and labels that differ in number, an
                empty split, splits whose images differ in size, or a label that is no class index.
        """
        for split in SPLITS:
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
                raise DataError(
                    f"data set {self.name}: {split} images are {images.dtype} of shape {images.shape}, expected uint8 "
                    "of shape (N, H, W, 3); convert them first."
                )
            if images.size == 0:
                raise DataError(
                    f"data set {self.name}: the {split} split holds no images (shape {images.shape}); supply at least "
                    "one."
                )
            check_labels(self.name, split, labels, len(images), self.num_classes, "image")
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise DataError(
                f"data set {self.name}: training images are {self.train_images.shape[1:]} but test images "
                f"are {self.test_images.shape[1:]}; give `image_size` to bring them to one size."
            )


def check_labels(name: str, split: str, labels: np.ndarray, count: int, num_classes: int, unit: str) -> None:
    """Refuse labels that are not one class index for each of `count` examples, at least one; `unit` is what one is.

    Raises:
        DataError: for another dtype or shape, or a label that is no class index.
    """
    if labels.dtype != np.int32 or labels.shape != (count,):
        raise DataError(
            f"data set {name}: {split} labels are {labels.dtype} of shape {labels.shape}, expected int32 of "
            f"shape ({count},), one for each {unit}; supply exactly one label per {unit}."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"data set {name}: {split} labels run from {low} to {high}, expected 0 to {num_classes - 1} for "
            f"its {num_classes} classes; correct the labels, and leave out what has none."
        )


def make_printable(dataset: Any) -> None:
    """Make printable what a new data set tells of files: its source, its note and the names of its classes."""
    for name in ("source", "note"):
        object.__setattr__(dataset, name, printable(getattr(dataset, name)))
    object.__setattr__(dataset, "class_names", tuple(map(printable, dataset.class_names)))


def check_use(dataset: AnyExamples) -> AnyExamples:
    """Check that a data set as it was read can be learned from.

    Returns:
        The data set; classes without a training example are told in its note.

    Raises:
        DataError: when all training examples are of one class.
    """
    used = set(np.unique(dataset.train_labels).tolist())
    if len(used) < 2:
        raise DataError(
            f"data set {dataset.name}: all {len(dataset.train_labels):,} training {dataset.unit} are of the class "
            f"{dataset.class_names[min(used)]}, expected at least 2 classes; add {dataset.unit} of another one."
            + (f" (Note: {dataset.note})" if dataset.note else "")
        )
    unused = [name for label, name in enumerate(dataset.class_names) if label not in used]
    if not unused:
        return dataset
    told = f"No training {dataset.unit} are of the class {some(unused)}."
    noted: AnyExamples = replace(dataset, note=f"{dataset.note} {told}".strip())  # type: ignore[type-var]
    return noted


def limit(dataset: AnyExamples, limit_train: int | None = None, limit_test: int | None = None) -> AnyExamples:
    """Keep only the first examples of each split.

    Args:
        dataset: the data set to cut.
        limit_train: how many training examples to keep; None or more than there are keeps all.
        limit_test: the same for the test split.

    Returns:
        A data set whose arrays are views of the given one's. `mean` and `std` stay those of the whole
        training split, so that runs on different shares of the data see the same normalisation.

    Raises:
        DataError: when a limit is below 1.

    Example:
        >>> from scpl_jax.data import limit, load
        >>> limit(load("digits"), limit_train=100).train_images.shape
        (100, 32, 32, 3)
    """
    for option, value in (("`limit_train`", limit_train), ("`limit_test`", limit_test)):
        if value is not None and value < 1:
            raise DataError(f"{option} is {value}, expected at least 1; leave it out to use every example.")
    limited: AnyExamples = dataset.limited(limit_train, limit_test)
    return limited


def add_label_noise(dataset: AnyExamples, rate: float, seed: int) -> AnyExamples:
    """Draw a share of the training labels again, uniformly from all classes.

    The true class can be drawn again, so about `rate * (1 - 1 / num_classes)` of the labels end up wrong.
    Test labels are left as they are.

    Args:
        dataset: the data set whose training labels to disturb.
        rate: share of the training labels to redraw, 0 to 1; rounded to a whole number of examples.
        seed: fixes which labels are redrawn, and to what.

    Returns:
        A data set with new training labels; the given one is not changed.

    Raises:
        DataError: when `rate` is outside 0 to 1 or `seed` is negative.

    Example:
        >>> from scpl_jax.data import add_label_noise, load
        >>> clean = load("digits")
        >>> noisy = add_label_noise(clean, rate=0.5, seed=0)
        >>> bool(0.4 < (noisy.train_labels != clean.train_labels).mean() < 0.5)
        True
    """
    if not 0.0 <= rate <= 1.0:
        raise DataError(f"`rate` is {rate}, expected a share from 0 to 1; 0 leaves the labels alone.")
    if seed < 0:
        raise DataError(f"`seed` is {seed}, expected 0 or more; choose another seed.")
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    labels = dataset.train_labels.copy()
    chosen = generator.permutation(len(labels))[: round(rate * len(labels))]
    labels[chosen] = generator.integers(dataset.num_classes, size=len(chosen), dtype=np.int32)
    noisy: AnyExamples = replace(dataset, train_labels=labels)  # type: ignore[type-var]
    return noisy
