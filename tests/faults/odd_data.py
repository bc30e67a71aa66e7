"""Data sets that are odd rather than damaged: labels, Unicode, and what a file system may answer.

These are targets of the campaign in ``inputs.py``. They ask for more than an error in one sentence: what is read must
be what was written, so that nothing is lost, merged or made up without a word.
"""

import decimal
import functools
import gzip
import json
import os
import random
import shutil
import socket
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Case = Callable[[Path, random.Random], None]

# Labels

MISSING = (*"NaN nan -nan NAN NA N/A n/a <NA> #N/A null NULL None 1.#QNAN".split(), "", " ")  # noqa: SIM905
NUMBERS = (
    *"0 1 1.0 1e0 10e-1 +1 -0 0.0 2 2.50 2.5 007 7 7. .5 5E-1 -1 -1.0 1e-400 1e400 1e401".split(),  # noqa: SIM905
    *"1e999999999 1e9999999999 9007199254740992 9007199254740993 9007199254740993.0".split(),  # noqa: SIM905
    *"1_000 1,5 0x10 \u0661 inf Infinity -inf 99999999999999999999999999999999999999999999".split(),  # noqa: SIM905
)
NAMES = (
    *'spam ham none na True true FALSE caf\u00e9 cafe\u0301 - " \u200b \ufeff \x1b[2J \ufffd'.split(),  # noqa: SIM905
    *(" spam", "None of these", "a\nb", "a b", "\u00e9" * 50, "\u0130", "[1]"),
)


def class_key(label: str) -> Any:
    """What tells the classes apart, told by other means than the package's; None for a missing label."""
    text = unicodedata.normalize("NFC", label.strip())
    if text in {word.strip() for word in MISSING}:
        return None
    if text.lower() in ("true", "false"):
        return text.lower()
    code = text.lstrip("+-").startswith("0") and text.lstrip("+-")[1:2].isdigit()
    if text.isascii() and "_" not in text and not code:
        try:
            number = decimal.Decimal(text)
        except decimal.InvalidOperation:
            return text
        return None if number.is_nan() else number
    return text


def draw_labels(chance: random.Random) -> list[str]:
    pool = chance.sample(chance.choice((NUMBERS, NAMES, NUMBERS + NAMES)), chance.randrange(1, 5))
    pool += chance.sample(MISSING, chance.randrange(3))
    return [chance.choice(pool) for _ in range(chance.choice((3, 12, 30)))]


def quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def as_json(label: str, chance: random.Random) -> str:
    """A row of a file of JSON lines, in which the label is a text, a bare number, or absent."""
    bare = label in ("NaN", "null", "true", "Infinity")
    try:
        bare = bare or json.dumps(json.loads(label, parse_float=str, parse_int=str)).strip('"') == label
    except ValueError:
        bare = False
    text = '{"text": "a word", "label": ' + (label if bare and chance.random() < 0.8 else json.dumps(label)) + "}"
    return '{"text": "a word"}' if not label.strip() and chance.random() < 0.5 else text


def check_labels(dataset: Any, *splits: Sequence[str]) -> None:
    """The classes and the numbers of examples are those of the labels that were written."""
    from scpl_jax.data.errors import printable

    keys = [[key for label in split if (key := class_key(label)) is not None] for split in splits]
    assert dataset.num_classes == len(set(keys[0])), (dataset.class_names, splits)
    total = len(dataset.train_labels) + len(dataset.test_labels)
    assert total == sum(map(len, keys)), (total, splits)
    missing = sum(map(len, splits)) - total
    assert (f"{missing} texts without a label" in dataset.note) == bool(missing), (dataset.note, missing)
    assert printable(dataset.note) == dataset.note


def label_files(folder: Path, chance: random.Random) -> None:
    """Read texts with odd labels from a file, or from a pair of different kinds."""
    from scpl_jax.data.text.text_sets import TextRequest, load_texts

    first = draw_labels(chance)
    splits = [first, [chance.choice([*first, *MISSING]) for _ in range(6)]] if chance.random() < 0.4 else [first]
    files = []
    for number, split in enumerate(splits):
        kind = chance.choice(("csv", "jsonl"))
        rows = [f"a word,{quoted(label)}" if kind == "csv" else as_json(label, chance) for label in split]
        path = folder / f"{number}.{kind}"
        path.write_text("\n".join(["text,label"] * (kind == "csv") + rows) + "\n", encoding="utf-8")
        files.append(path)
    options = {"test_file": files[1]} if len(files) > 1 else {}
    check_labels(load_texts(TextRequest("file", data_file=files[0], cache_dir=folder / "cache", **options)), *splits)


def label_arrays(folder: Path, chance: random.Random) -> None:
    """Read images with odd label arrays."""
    import numpy as np

    from scpl_jax.data import load

    count = chance.randrange(2, 9)
    values: list[Any] = [chance.choice((0, 1, 2, -1)) for _ in range(count)]
    if chance.random() < 0.3:
        values[0] = chance.choice((-2, 255, 2**31, 2**63, float("nan"), float("inf"), 0.5, 1e30, 99_999, 100_000))
    kinds = ("i1", "u1", "i4", "i8", "u8", "f2", "f4", "f8", "?", "U", "S", "O", "c8", "M8[s]")
    with np.errstate(all="ignore"):
        try:
            labels = np.array(values).astype(chance.choice(kinds))
        except (ValueError, TypeError, OverflowError):
            labels = np.array(values)
    shape = chance.choice(((count,), (count,), (count, 1), (1, count), (count, 1, 1), (1, 1, count)))
    images = np.arange(count, dtype=np.uint8).repeat(27).reshape(count, 3, 3, 3)
    arrays = {"x_train": images, "y_train": labels.reshape(shape), "x_test": images, "y_test": labels}
    np.savez(folder / "data.npz", **arrays)
    dataset = load("npz", data_dir=folder / "data.npz")
    written = [str(int(value)) if labels.dtype == bool else str(value.astype("U")) for value in labels]
    for kept, label in zip(dataset.train_images[:, 0, 0, 0].tolist(), dataset.train_labels, strict=True):
        assert class_key(dataset.class_names[label]) == class_key(written[kept]), (labels, kept)


# Unicode

LETTERS = (
    *"a B é e\u0301 İ ß Σ Ω \u2126 K \ufb01 한 हि न्दी த மி كِ שָׁ 不 ไ ไท 2 ²".split(),  # noqa: SIM905
    *"\U00011107\U0001112c \u1e9b\u0323 q\u0307\u0323 \u0344 \ufb1d \u0958".split(),  # noqa: SIM905
)
ODD = (
    *"\u200c \u200d \u00ad \ufeff \u034f \ufe0f \u200b \0 ' \u2019 \u02bc \u05f4 l·l \u0301 _ .".split(),  # noqa: SIM905
    *"<b> <3 &lt; &#x301; &#0; &#99999999999; \ufffe \U0010ffff \u202e \u0301\u0323\u0301".split(),  # noqa: SIM905
    *("\u2028", "\x85", "\x1f", "\t", " ", "❤\ufe0f", "👩\u200d💻", "\u20e3"),
)


def odd_text(chance: random.Random, most: int = 12) -> str:
    return "".join(chance.choice(LETTERS if chance.random() < 0.7 else ODD) for _ in range(chance.randrange(1, most)))


def words_of_texts(folder: Path, chance: random.Random) -> None:
    """Clean odd texts, read them from files in either form, and find vectors of their words."""
    from scpl_jax.data.text.text_sets import TextRequest, load_texts
    from scpl_jax.data.text.vectors import read_vectors
    from scpl_jax.data.text.words import clean

    texts = [odd_text(chance) for _ in range(6)]
    for text in texts:
        words = clean(text)
        assert clean(unicodedata.normalize("NFD", text)) == words, ascii(text)
        for word in words:
            assert clean(word) == [word], (ascii(text), ascii(word))
    column = "t" + odd_text(chance, 4).strip()
    found = []
    for form in ("NFC", "NFD"):
        rows = [{column: text, "label": str(number % 2)} for number, text in enumerate(texts)]
        if chance.random() < 0.1:
            rows[0][column] += "\ud800"
        content = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
        path = folder / f"{form}.jsonl"
        path.write_text(unicodedata.normalize(form, content), encoding="utf-8")
        request = TextRequest("file", path.parent, path, path, text_column=column, cache_dir=folder / "cache")
        found.append(load_texts(request))
    assert found[0].words == found[1].words
    content = "".join(f"{word} {index} 1\n" for index, word in enumerate(found[0].words))
    written = unicodedata.normalize(chance.choice(("NFC", "NFD")), content).encode()
    (folder / "vectors").write_bytes(gzip.compress(written) if chance.random() < 0.3 else written)
    assert len(read_vectors(folder / "vectors", found[0].words)) == len(found[0].words)


def names_of_classes(folder: Path, chance: random.Random) -> None:
    """Read images whose class folders have odd names, in another form in each split."""
    import data_archives as archives

    from scpl_jax.data import load
    from scpl_jax.data.errors import printable

    names = {os.fsdecode(odd_text(chance, 6).replace("/", "").replace("\0", "").encode()[:200]) for _ in range(3)}
    if chance.random() < 0.3:
        names.add(os.fsdecode(chance.choice((b"caf\xe9", b"\xff\xfe", b"a\nb", b"-x", b"x" * 255))))
    names = {name for name in names if name.strip(".") and not name.startswith(".")}
    for split in ("train", "test"):
        form = chance.choice(("NFC", "NFD"))
        for value, name in enumerate(sorted(names)):
            folder_name = unicodedata.normalize(form, name)
            if len(os.fsencode(folder_name)) < 256:
                archives.write_image(folder / "data" / split / folder_name / "0.png", value)
    dataset = load("imagefolder", data_dir=folder / "data", cache_dir=folder / "cache")
    classes = {unicodedata.normalize("NFC", name) for name in names}
    assert dataset.class_names == tuple(map(printable, sorted(classes))), dataset.class_names


# File systems


def to_nowhere(path: Path) -> None:
    path.symlink_to("../.git/annex/objects/not-here")


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def to_memory(path: Path) -> None:
    path.symlink_to("/proc/self/mem")  # a read error


def to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def to_a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(path))


def to_a_far_place(path: Path) -> None:
    path.symlink_to("x" * 300)


READERS = (
    "imagefolder",
    "tiny-imagenet",
    "cifar10",
    "fashion-mnist",
    "npz",
    "imdb",
    "sst2",
    "ag-news",
    "csv",
    "jsonl",
    "vectors",
)


def read(kind: str, folder: Path, cache: Path) -> int:
    """Read a data set of the campaign's sound files: how many examples there are."""
    from scpl_jax.data import load
    from scpl_jax.data.text.text_sets import TextRequest, load_texts
    from scpl_jax.data.text.vectors import read_vectors

    dataset: Any
    if kind == "vectors":
        return len(read_vectors(folder / "vectors.txt", ["fine", "dull"]))
    if kind in ("csv", "jsonl"):
        path = folder / f"data.{kind}"
        dataset = load_texts(TextRequest("file", data_file=path, test_file=path, cache_dir=cache))
    elif kind in ("imdb", "sst2", "ag-news"):
        dataset = load_texts(TextRequest(kind, folder, cache_dir=cache))
    else:
        dataset = load(kind, data_dir=folder / "data.npz" if kind == "npz" else folder, cache_dir=cache)
    return len(dataset.train_labels) + len(dataset.test_labels)


@functools.cache
def sound_count(kind: str) -> int:
    import tempfile

    import inputs

    with tempfile.TemporaryDirectory() as folder:
        inputs.write(Path(folder) / "data", inputs.sound("cifar10 python" if kind == "cifar10" else kind))
        return read(kind, Path(folder) / "data", Path(folder) / "cache")


def answers(folder: Path, chance: random.Random) -> None:
    """Read a data set in which a file or a folder is a link, a pipe, a device ...: all of it, or none."""
    import inputs

    kind = chance.choice(READERS)
    data = inputs.write(folder / "data", inputs.sound("cifar10 python" if kind == "cifar10" else kind))
    odd: tuple[Callable[[Path], Any], ...] = (to_nowhere, to_itself, to_memory, to_device, to_a_socket, to_a_far_place)
    odd = (*odd, os.mkfifo, Path.mkdir)
    path = chance.choice(sorted(data.rglob("*")))
    if chance.random() < 0.2:  # as it should be, but elsewhere
        shutil.move(path, folder / "elsewhere")
        path.symlink_to(folder / "elsewhere")
    elif chance.random() < 0.3:  # next to what is read
        chance.choice(odd)(path.parent / chance.choice((".hidden", "notes", "more.png", "more.txt", "emu")))
    else:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        chance.choice(odd)(path)
    expected = sound_count(kind)
    assert (found := read(kind, data, folder / "cache")) == expected, (kind, path.relative_to(folder), found, expected)


TARGETS: dict[str, tuple[int, Case]] = {  # share of the cases, function
    "odd data: labels of files": (8, label_files),
    "odd data: labels of arrays": (6, label_arrays),
    "odd data: Unicode of texts": (6, words_of_texts),
    "odd data: Unicode of classes": (3, names_of_classes),
    "odd data: file system": (6, answers),
}
