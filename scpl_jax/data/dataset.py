"""An image data set held in memory, and the two changes an experiment may ask of it."""

from dataclasses import dataclass, replace

import numpy as np

from scpl_jax.data.errors import DataError

_SPLITS = ("train", "test")


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

    def __post_init__(self) -> None:
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

    def validate(self) -> None:
        """Check that the arrays fit together.

        Raises:
            DataError: for an array of the wrong dtype or shape, images and labels that differ in number, an
                empty split, splits whose images differ in size, or a label that is no class index.
        """
        for split in _SPLITS:
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            _check_images(self.name, split, images)
            _check_labels(self.name, split, labels, len(images), self.num_classes)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise DataError(
                f"data set {self.name}: training images are {self.train_images.shape[1:]} but test images "
                f"are {self.test_images.shape[1:]}; give --image-size to bring them to one size."
            )


def _check_images(name: str, split: str, images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise DataError(
            f"data set {name}: {split} images are {images.dtype} of shape {images.shape}, expected uint8 of "
            "shape (N, H, W, 3); convert them first."
        )
    if images.size == 0:
        raise DataError(
            f"data set {name}: the {split} split holds no images (shape {images.shape}); supply at least one."
        )


def _check_labels(name: str, split: str, labels: np.ndarray, num_images: int, num_classes: int) -> None:
    if labels.dtype != np.int32 or labels.shape != (num_images,):
        raise DataError(
            f"data set {name}: {split} labels are {labels.dtype} of shape {labels.shape}, expected int32 of "
            f"shape ({num_images},), one for each image; supply exactly one label per image."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"data set {name}: {split} labels run from {low} to {high}, expected 0 to {num_classes - 1} for "
            f"its {num_classes} classes; correct the labels."
        )


def limit(dataset: Dataset, limit_train: int | None = None, limit_test: int | None = None) -> Dataset:
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
    for option, value in (("--limit-train", limit_train), ("--limit-test", limit_test)):
        if value is not None and value < 1:
            raise DataError(f"{option} is {value}, expected at least 1; leave it out to use every example.")
    return replace(
        dataset,
        train_images=dataset.train_images[:limit_train],
        train_labels=dataset.train_labels[:limit_train],
        test_images=dataset.test_images[:limit_test],
        test_labels=dataset.test_labels[:limit_test],
    )


def add_label_noise(dataset: Dataset, rate: float, seed: int) -> Dataset:
    """Draw a share of the training labels anew, uniformly from all classes.

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
        raise DataError(f"--label-noise is {rate}, expected a share from 0 to 1; 0 leaves the labels alone.")
    if seed < 0:
        raise DataError(f"--seed is {seed}, expected 0 or more; choose another seed.")
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    labels = dataset.train_labels.copy()
    chosen = generator.permutation(len(labels))[: round(rate * len(labels))]
    labels[chosen] = generator.integers(dataset.num_classes, size=len(chosen), dtype=np.int32)
    return replace(dataset, train_labels=labels)
