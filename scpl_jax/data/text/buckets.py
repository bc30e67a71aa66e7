"""Texts of different lengths; batches of similar ones, so that short texts do not pay for the padding of long ones."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from scpl_jax.data.batching import Batch, check_batch_size, epoch_order, fill_up
from scpl_jax.data.errors import DataError

_MULTIPLE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """Texts of different lengths, one behind the other.

    Attributes:
        ids: all token ids, `(T,)` int32.
        starts: where each text begins in `ids`, and at the end T, `(N + 1,)` int64.

    Example:
        >>> texts = Texts.of([[2, 3], [4]])
        >>> len(texts), texts.lengths.tolist(), texts.padded([1, 0], 3).tolist()
        (2, [2, 1], [[4, 0, 0], [2, 3, 0]])
    """

    ids: np.ndarray
    starts: np.ndarray

    @staticmethod
    def of(texts: Sequence[Sequence[int]]) -> "Texts":
        """Texts from lists of token ids."""
        starts = np.cumsum([0, *map(len, texts)]).astype(np.int64)
        return Texts(np.array([token for text in texts for token in text], np.int32), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, `(N,)` int64."""
        return np.diff(self.starts)

    def padded(self, indices: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
        """Some texts, cut off or filled up with 0 at the end: `(len(indices), length)` int32."""
        indices = np.asarray(indices, np.int64)
        position = np.arange(length)
        at = self.starts[indices, None] + position
        real = at < self.starts[indices + 1, None]
        return np.where(real, self.ids[np.where(real, at, 0)], 0).astype(np.int32)

    def first(self, count: int | None) -> "Texts":
        """The first `count` texts; all of them for None."""
        starts = self.starts[: None if count is None else count + 1]
        return Texts(self.ids[: starts[-1]], starts)

    def chosen(self, those: np.ndarray) -> "Texts":
        """The texts where `those`, `(N,)` bool, is true, in order."""
        lengths = self.lengths
        starts = np.concatenate([[0], np.cumsum(lengths[those])]).astype(np.int64)
        return Texts(self.ids[np.repeat(those, lengths)], starts)


def bucket_lengths(lengths: np.ndarray, max_length: int, count: int) -> tuple[int, ...]:
    """The lengths to which texts are padded: at most `count` of them, so that about as many programs are compiled.

    They are chosen such that the padding is as little as possible (by dynamic programming over the lengths that
    occur, rounded up to a multiple of 8).

    Args:
        lengths: number of tokens of each text, `(N,)` integer.
        max_length: tokens of a text that count.
        count: most buckets, at least 1.

    Returns:
        Ascending lengths; the last one holds the longest text.

    Raises:
        DataError: when `count` is below 1.

    Example:
        >>> bucket_lengths(np.array([3, 5, 6, 30, 31]), 400, 2)
        (8, 32)
    """
    if count < 1:
        raise DataError(f"`buckets` is {count}, expected at least 1; 1 pads every text to the longest.")
    rounded = np.minimum(-(-np.minimum(lengths, max_length) // _MULTIPLE) * _MULTIPLE, max_length)
    sizes, counts = np.unique(rounded, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: tokens, padding included, of the texts up to size j in the buckets opened so far.
    cost = before[1:] * sizes
    choices: list[np.ndarray] = []
    for _ in range(1, min(count, len(sizes))):
        # The last bucket holds sizes i + 1 to j; row i, column j.
        total = cost[:, None] + (before[None, 1:] - before[1:, None]) * sizes[None, :]
        total = np.where(np.arange(len(sizes))[:, None] < np.arange(len(sizes))[None, :], total, np.iinfo(np.int64).max)
        choices.append(total.argmin(axis=0))
        better = total.min(axis=0)
        choices[-1] = np.where(better < cost, choices[-1], -1)
        cost = np.minimum(cost, better)
    ends = [len(sizes) - 1]
    for choice in reversed(choices):
        if choice[ends[-1]] >= 0:
            ends.append(int(choice[ends[-1]]))
    return tuple(int(sizes[end]) for end in reversed(ends))


def text_batches(
    texts: Texts, labels: np.ndarray, batch_size: int, buckets: Sequence[int], *, seed: int, epoch: int, start: int = 0
) -> Iterator[Batch]:
    """The full training batches of one epoch; fewer than `batch_size` texts are left out.

    Texts are put in random order and shared out to batches of one bucket each; what is left over in the buckets shares
    the batches that are left. Then the batches are put in random order. Nothing but the arguments decides.

    `seed` and `epoch` are as for `scpl_jax.data.epoch_order`, all other arguments as for `scpl_jax.data.batches` but:

    Args:
        texts: the texts.
        buckets: lengths to pad to, ascending, as `bucket_lengths` gives them; longer texts are cut off.

    Raises:
        DataError: at the call, when `batch_size` is below 1 or above the number of texts.

    Example:
        >>> texts = Texts.of([[1], [1] * 9, [1, 2], [1] * 12])
        >>> found = text_batches(texts, np.arange(4, dtype=np.int32), 2, (8, 16), seed=0, epoch=1)
        >>> sorted(tokens.shape for tokens, _ in found)
        [(2, 8), (2, 16)]
    """
    check_batch_size(batch_size, len(texts))
    order = epoch_order(len(texts), seed=seed, epoch=epoch)
    bucket = _bucket_of(texts.lengths[order], buckets)
    chosen, left = [], []
    for index in range(len(buckets)):
        members = order[bucket == index]
        full = len(members) // batch_size * batch_size
        chosen += list(members[:full].reshape(-1, batch_size))
        left.append(members[full:])
    rest = np.concatenate(left)
    full = len(rest) // batch_size * batch_size
    chosen += list(rest[:full].reshape(-1, batch_size))
    again = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, 1])))
    turns = again.permutation(len(chosen))[start:]
    return ((_padded(texts, chosen[turn], buckets), labels[chosen[turn]]) for turn in turns)


def eval_text_batches(texts: Texts, labels: np.ndarray, batch_size: int, buckets: Sequence[int]) -> Iterator[Batch]:
    """Batches that hold every text exactly once, those of one bucket together and all of `batch_size`.

    The last batch is filled up with empty texts labelled -1; whoever counts must leave those out.

    Example:
        >>> texts = Texts.of([[1] * 9, [2], [3, 4]])
        >>> [(t.shape, y.tolist()) for t, y in eval_text_batches(texts, np.arange(3, dtype=np.int32), 2, (8, 16))]
        [((2, 8), [1, 2]), ((2, 16), [0, -1])]
    """
    check_batch_size(batch_size)
    order = np.argsort(_bucket_of(texts.lengths, buckets), kind="stable")
    chosen = (order[at : at + batch_size] for at in range(0, len(texts), batch_size))
    return (fill_up(_padded(texts, indices, buckets), labels[indices], batch_size) for indices in chosen)


def _bucket_of(lengths: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
    return np.searchsorted(np.asarray(buckets), np.minimum(lengths, buckets[-1]))


def _padded(texts: Texts, indices: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
    bucket = _bucket_of(texts.lengths[indices], buckets).max()
    return texts.padded(indices, buckets[bucket])
