"""From raw text to token ids: cleaning, vocabulary, encoding."""

import collections
import html
import re
from collections.abc import Iterable, Sequence

UNKNOWN = 1

_TAG = re.compile(r"<[^<>]*>")
# Apostrophes go without a trace, so that "don't" is one word; all other marks part words.
_APOSTROPHE = re.compile(r"[\u2019']")
_MARKS = re.compile(r"[^\w]+|_+")


def stop_words() -> frozenset[str]:
    """scikit-learn's English stop words, spelled as :func:`clean` leaves them."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(_APOSTROPHE.sub("", word) for word in ENGLISH_STOP_WORDS)


def clean(text: str, stop: frozenset[str] = frozenset()) -> list[str]:
    """The words of a text: lower case, without tags, punctuation and stop words.

    Example:
      >>> clean("Don't <br /> stop: the MUSIC!", frozenset({"the"}))
      ['dont', 'stop', 'music']
    """
    text = _APOSTROPHE.sub("", _TAG.sub(" ", html.unescape(text)).lower())
    return [word for word in _MARKS.split(text) if word and word not in stop]


def build_vocabulary(texts: Iterable[Sequence[str]], size: int) -> dict[str, int]:
    """The most frequent words with their ids, from 2 on; 0 is padding and 1 any other word.

    Words that are equally frequent are taken in alphabetical order, so the result does not depend on the texts' order.

    Args:
      texts: words of the training texts.
      size: most ids to give, padding and unknown included; at least 3.

    Raises:
      ValueError: a smaller size.

    Example:
      >>> build_vocabulary([["b", "a"], ["b", "c"]], 4)
      {'b': 2, 'a': 3}
    """
    if size < 3:
        raise ValueError(f"the vocabulary needs room for padding, unknown and a word, at least 3, got {size}")
    counts: collections.Counter[str] = collections.Counter()
    for words in texts:
        counts.update(words)
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return {word: index for index, (word, _) in enumerate(ranked[: size - 2], start=2)}
