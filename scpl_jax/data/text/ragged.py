"""Texts of different lengths in two flat arrays."""

import dataclasses
from collections.abc import Sequence

import numpy as np


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
