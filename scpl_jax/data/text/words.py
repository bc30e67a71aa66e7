"""From raw text to token ids: cleaning, vocabulary, encoding."""

import collections
import functools
import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

UNKNOWN = 1

# What HTML's tokenizer takes for a tag: "x < 3 and y > 2" holds none.
_TAG = re.compile(r"<[a-zA-Z/!?][^<>]*>")
# Without a trace go apostrophes, so that "don't" is one word, those of Ukrainian and Hebrew, too; and what nobody sees:
# soft hyphens, directions, variants of a character, byte order marks. All other punctuation parts words.
_SILENT = re.compile(
    "['\u2019\u02bc\uff07\u05f3\u05f4"
    "\u00ad\u034f\u061c\u180b-\u180f\u200e\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e01ef]"
)
_ASCII_WORD = re.compile("[a-z0-9]+")
_JOINERS = "\u200c\u200d"
# Longer than any character's number; Python refuses to turn thousands of digits into one.
_NO_CHARACTER = re.compile("&#[0-9]{20,};?")


@functools.cache
def _marks() -> str:
    """All combining marks, for a set of characters in a pattern."""
    return "".join(chr(code) for code in range(0x300, 0x20000) if unicodedata.category(chr(code))[0] == "M")


# The look ahead spares most characters the search through all marks.
@functools.cache
def _word() -> re.Pattern[str]:
    """Letters, digits and `_` with the combining marks and joiners among them and behind them."""
    return re.compile(rf"\w+(?:(?=[\u0300-\U0001ffff])[{_marks()}{_JOINERS}]+\w*)*")


@functools.cache
def _pile() -> re.Pattern[str]:
    """More than 30 marks in a row: no language has them, and composing takes time that grows with their square."""
    return re.compile(rf"(?=[\u0300-\U0001ffff])([{_marks()}]{{30}})[{_marks()}]+")


def composed(text: str) -> str:
    r"""Unicode's composed form (NFC): equal for texts that differ only in how their characters are put together.

    Of marks piled on one character the first 30 count, as in Unicode's stream-safe format.

    Example:
      >>> composed("re\u0301sume\u0301") == "r\u00e9sum\u00e9"
      True
    """
    return text if text.isascii() else unicodedata.normalize("NFC", _pile().sub(r"\1", text))


def stop_words() -> frozenset[str]:
    """scikit-learn's English stop words, spelled as :func:`clean` leaves them."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(_SILENT.sub("", word) for word in ENGLISH_STOP_WORDS)


def clean(text: str, stop: frozenset[str] = frozenset()) -> list[str]:
    """The words of a text: lower case, without tags, punctuation and stop words.

    Character references are read first, as published texts often come escaped: `&lt;br&gt;` is a tag like `<br>`. A tag
    begins with a letter, `/`, `!` or `?` right after its `<`, as in HTML. Texts that Unicode takes for equal have equal
    words, in its composed form (NFC). Combining marks belong to the word that they stand in, as do the joiners of
    Persian and Indic scripts; scripts without blanks between words are not parted.

    Example:
      >>> clean("Don't <br /> stop: the MUSIC!", frozenset({"the"}))
      ['dont', 'stop', 'music']
      >>> clean("x < 3 and y > 2; हिन्दी")
      ['x', '3', 'and', 'y', '2', 'हिन्दी']
    """
    if "&" in text:
        text = html.unescape(_NO_CHARACTER.sub(" ", text))
    text = _TAG.sub(" ", text)
    if text.isascii():
        words = _ASCII_WORD.findall(text.lower().replace("'", ""))
    else:
        # Lower case may decompose, as that of the Turkish İ does.
        text = unicodedata.normalize("NFC", composed(_SILENT.sub("", text)).lower())
        text = text.replace("l\u00b7l", "ll")  # Catalan
        words = _word().findall(text.replace("_", " "))
        if any(joiner in text for joiner in _JOINERS):
            words = [word.rstrip(_JOINERS) for word in words]
    return [word for word in words if word not in stop]


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
