"""Text data sets prepared by TensorFlow Datasets (TFDS)."""

from pathlib import Path
from typing import Any

from scpl_jax.data.class_names import LabelReader
from scpl_jax.data.errors import DataError
from scpl_jax.data.images.readers import tfds as images
from scpl_jax.data.text.readers.raw import RawDataset, RawTexts, Replaced, Source

# Name in TFDS, the split with known labels to test on, the keys of texts, and where TFDS downloads it from.
_KNOWN: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "imdb": (
        "imdb_reviews/plain_text",
        "test",
        ("text",),
        "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    ),
    "sst2": ("glue/sst2", "validation", ("sentence",), "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip"),
    "ag-news": (
        "ag_news_subset",
        "test",
        ("title", "description"),
        "https://drive.google.com/uc?export=download&id=0Bz8a_Dbh9QhbUDNpeUdjb0wxRms",
    ),
}


def is_prepared(name: str, data_dir: Path | None) -> bool:
    """Whether TFDS has prepared this data set for random access."""
    return name in _KNOWN and images.find_prepared(_KNOWN[name][0], data_dir) is not None


def find(name: str, data_dir: Path | None) -> Source:
    """A data set prepared by TFDS; where there is none, download and prepare it first.

    Raises:
        DataError: when it is neither prepared nor can be, or TFDS does not have it.
    """
    if name not in _KNOWN:
        raise DataError(f"`name` {name} needs `data_dir` with train.csv and test.csv, as TFDS does not have it.")
    tfds_name, test_split, keys, url = _KNOWN[name]
    folder = images.find_prepared(tfds_name, data_dir)
    if folder is None:
        folder = data_dir or images.default_dir()
        images.prepare(tfds_name, folder, url)

    def read() -> RawDataset:
        replaced, reader = Replaced(), LabelReader()

        def texts(examples: list[Any]) -> RawTexts:
            labelled = [one for one in examples if reader.read(str(int(one["label"])), unless="-1") is not None]
            found = [" ".join(replaced.decode(example[key]) for key in keys) for example in labelled]
            return RawTexts(found, [int(example["label"]) for example in labelled])

        names, (train, test) = images.read_prepared(tfds_name, folder, ("train", test_split), texts)
        return RawDataset("TensorFlow Datasets", names, train, test, replaced.characters, reader.note("texts"))

    return Source(images.prepared_files(tfds_name, folder), read)
