"""The order in which examples are seen, and the batches they are seen in."""

from collections.abc import Iterator

import numpy as np

from scpl_jax.data.errors import DataError

PADDING_LABEL = -1

Batch = tuple[np.ndarray, np.ndarray]
"""Inputs, batch first, and labels `(B,)` int32."""


def epoch_order(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """Permutation of the examples for one epoch.

    It depends on nothing but the arguments, so a resumed run sees the examples in the order the broken-off
    run would have.

    Args:
        num_examples: how many examples there are.
        seed: seed of the run, 0 or more.
        epoch: epoch, counted from 0.

    Returns:
        Indices 0 to `num_examples - 1` in random order, `(num_examples,)` int64.

    Raises:
        DataError: when `seed` or `epoch` is negative.

    Example:
        >>> sorted(epoch_order(4, seed=0, epoch=1).tolist())
        [0, 1, 2, 3]
    """
    for option, value in (("`seed`", seed), ("epoch", epoch)):
        if value < 0:
            raise DataError(f"{option} is {value}, expected 0 or more; choose another value.")
    # PCG64 is named, not left to numpy's default, which a later release may change.
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return generator.permutation(num_examples)


def batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, *, order: np.ndarray, start: int = 0
) -> Iterator[Batch]:
    """Full training batches in a given order; what is left over at the end is dropped.

    Args:
        images: `(N, H, W, 3)` uint8.
        labels: `(N,)` int32.
        batch_size: examples in a batch.
        order: indices into `images`, as `epoch_order` gives them.
        start: index of the first batch to give, for a run resumed within an epoch.

    Returns:
        An iterator of `(batch_size, H, W, 3)` uint8 images with their `(batch_size,)` int32 labels.

    Raises:
        DataError: at the call, when `batch_size` is below 1 or above the number of examples, or `start` is negative.

    Example:
        >>> images, labels = np.zeros((5, 8, 8, 3), np.uint8), np.arange(5, dtype=np.int32)
        >>> [batch.tolist() for _, batch in batches(images, labels, 2, order=np.arange(5))]
        [[0, 1], [2, 3]]
    """
    check_batch_size(batch_size, len(order))
    if start < 0:
        raise DataError(f"the first batch is {start}, expected 0 or more; count batches from 0.")
    chosen = (order[at * batch_size : (at + 1) * batch_size] for at in range(start, len(order) // batch_size))
    return ((images[indices], labels[indices]) for indices in chosen)


def eval_batches(images: np.ndarray, labels: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """Batches that hold every example exactly once, in order and all of one size.

    The last batch is filled up with black images labelled -1, so that a compiled step sees one shape only;
    whoever counts must leave those out. Arguments and batches are as for `batches`, but `batch_size` may exceed N.

    Raises:
        DataError: at the call, when `batch_size` is below 1.

    Example:
        >>> images, labels = np.zeros((3, 8, 8, 3), np.uint8), np.arange(3, dtype=np.int32)
        >>> [batch.tolist() for _, batch in eval_batches(images, labels, 2)]
        [[0, 1], [2, -1]]
    """
    check_batch_size(batch_size)
    starts = range(0, len(images), batch_size)
    return (fill_up(images[at : at + batch_size], labels[at : at + batch_size], batch_size) for at in starts)


def fill_up(inputs: np.ndarray, labels: np.ndarray, batch_size: int) -> Batch:
    """A batch of `batch_size` examples: zeros labelled -1 behind those that are there."""
    missing = batch_size - len(inputs)
    if missing == 0:
        return inputs, labels
    return (
        np.concatenate([inputs, np.zeros((missing, *inputs.shape[1:]), inputs.dtype)]),
        np.concatenate([labels, np.full(missing, PADDING_LABEL, labels.dtype)]),
    )


def check_batch_size(batch_size: int, num_examples: int | None = None) -> None:
    """Refuse a batch without examples, or with more than there are for training.

    Raises:
        DataError: when `batch_size` is below 1 or above `num_examples`.
    """
    if batch_size < 1:
        raise DataError(f"`batch_size` is {batch_size}, expected at least 1; choose a larger one.")
    if num_examples is not None and batch_size > num_examples:
        raise DataError(
            f"`batch_size` is {batch_size} but there are only {num_examples} training examples; "
            f"choose `batch_size` {num_examples} or less."
        )
