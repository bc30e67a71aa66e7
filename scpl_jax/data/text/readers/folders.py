"""Text files in folders named after their class: the layout of the original IMDB release."""

from itertools import zip_longest
from pathlib import Path

from scpl_jax.data.errors import DataError
from scpl_jax.data.reading import is_folder, names_in, read_file
from scpl_jax.data.text.readers.raw import MAX_LINE_BYTES, RawDataset, RawTexts, Replaced, Source

_CLASSES = ("neg", "pos")
_Labelled = list[tuple[Path, int]]


def find_imdb(folder: Path) -> Source | None:
    """IMDB: `train` and `test`, each with `neg` and `pos`, in `folder` or below it. None where they are not there.

    The classes take turns, so that the first N training texts are a balanced subset.

    Raises:
        DataError: when a folder is missing or empty, or, on reading, a file cannot be read.
    """
    places = [folder, folder / "imdb", folder / "aclImdb"]
    place = next((place for place in places if is_folder(place / "train" / "pos")), None)
    if place is None:
        return None
    train, test = (_files(place / split) for split in ("train", "test"))

    def read() -> RawDataset:
        replaced = Replaced()
        texts = _read(train, replaced), _read(test, replaced)
        return RawDataset("IMDB text files", ("negative", "positive"), *texts, replaced.characters)

    return Source([path for path, _ in (*train, *test)], read)


def _files(folder: Path) -> _Labelled:
    files = []
    for name in _CLASSES:
        names = [file for file in names_in(folder / name) if file.endswith(".txt")]
        found = [folder / name / file for file in sorted(names, key=lambda file: (len(file), file))]
        if not found:
            raise DataError(
                f"{folder / name} holds no .txt files, expected one for each text; fetch the data set again."
            )
        files.append(found)
    return [(path, label) for turn in zip_longest(*files) for label, path in enumerate(turn) if path is not None]


def _read(files: _Labelled, replaced: Replaced) -> RawTexts:
    return RawTexts([_text(path, replaced) for path, _ in files], [label for _, label in files])


def _text(path: Path, replaced: Replaced) -> str:
    data = read_file(path)
    if len(data) > MAX_LINE_BYTES:
        raise DataError(f"{path} is longer than {MAX_LINE_BYTES // 1_000_000} MB, expected one text; check the file.")
    return replaced.decode(data)
