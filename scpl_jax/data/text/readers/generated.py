"""Sentences made by rules: a text set for where there are neither files nor a network."""

import numpy as np

from scpl_jax.data.text.readers.raw import RawDataset, RawTexts

# Praise, blame, what turns either round, what it is said of, and what says nothing.
_WORDS = """
great lovely superb charming brilliant moving funny warm clever gorgeous
awful dull clumsy boring dreadful bland stale tedious sloppy lifeless
hardly barely scarcely
plot cast music script camera ending story dialogue hero villain pace humour
film evening minute scene director studio sequel crowd ticket screen reel season
"""
_GOOD, _BAD, _FLIP, _THINGS, _FILLERS = (line.split() for line in _WORDS.strip().splitlines())
_TRAIN, _TEST = 4000, 1000


def load() -> RawDataset:
    """Reviews of some sentences, positive or negative by what they say of most things; "hardly" turns a word round.

    A bag of words can't tell the class of a sentence with "hardly" in it; a network that reads the words in order can.
    Always the same texts.
    """
    generator = np.random.Generator(np.random.PCG64(0))
    train, test = (_texts(generator, count) for count in (_TRAIN, _TEST))
    return RawDataset("generated sentences (not a real data set)", ("negative", "positive"), train, test)


def _texts(generator: np.random.Generator, count: int) -> RawTexts:
    texts: list[str] = []
    labels: list[int] = []
    while len(texts) < count:
        total = 0
        parts = []
        for _ in range(generator.integers(1, 4)):
            good, flipped = generator.integers(2), generator.random() < 0.2
            word = generator.choice(_GOOD if good else _BAD)
            said = f"{generator.choice(_FLIP)} {word}" if flipped else word
            filler = " ".join(generator.choice(_FILLERS, generator.integers(0, 3)))
            parts.append(f"{filler} the {generator.choice(_THINGS)} {said}")
            total += 1 if good != flipped else -1
        if total:
            texts.append(". ".join(parts) + ".")
            labels.append(int(total > 0))
    return RawTexts(texts, labels)
