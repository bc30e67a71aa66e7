"""Files with one text a row: CSV, TSV and JSON lines, and the data sets that are published so."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scpl_jax.data.class_names import LabelReader, class_of, in_order
from scpl_jax.data.errors import DataError, some
from scpl_jax.data.text.readers.raw import MAX_LINE_BYTES, RawDataset, RawTexts, Replaced, Source, find_file, lines
from scpl_jax.data.text.words import composed

Row = tuple[int, Mapping[str, Any]]
"""The number of the line at which a row ends, and its values by column: texts; of JSON also None, lists and dicts."""

_MOST_CLASSES = 1000

AG_NEWS = ("World", "Sports", "Business", "Sci/Tech")
_DBPEDIA_NAMES = (
    "Company EducationalInstitution Artist Athlete OfficeHolder MeanOfTransportation Building NaturalPlace Village "
    "Animal Plant Album Film WrittenWork"
)
DBPEDIA = tuple(_DBPEDIA_NAMES.split())


def _read_rows(path: Path, replaced: Replaced, columns: tuple[str, ...] | None = None) -> Iterator[Row]:
    """The rows of a file, whose ending tells the layout; `columns` are those of a file without a header line."""
    readers = {".csv": _separated, ".tsv": _separated, ".jsonl": _json_lines, ".ndjson": _json_lines}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path} is of an unknown kind, expected one ending in {', '.join(readers)}; convert it.")
    return readers[path.suffix.lower()](path, replaced, columns)


def _separated(path: Path, replaced: Replaced, columns: tuple[str, ...] | None) -> Iterator[Row]:
    # A NUL ends no line, yet Python's csv module stops at it.
    content = (line.replace("\0", " ") for line in lines(path, replaced))
    previous = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        if path.suffix.lower() == ".tsv":
            reader = csv.reader(content, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(content)
        header = columns or tuple(composed(name.strip()) for name in next(reader, []))
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise DataError(
                    f"line {reader.line_num} of {path} has {len(values)} columns, expected {len(header)} "
                    f"({', '.join(header)}); correct the line."
                )
            yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise DataError(f"line {reader.line_num} of {path} cannot be read ({error}); correct the file.") from error
    finally:
        csv.field_size_limit(previous)


def _json_lines(path: Path, replaced: Replaced, columns: tuple[str, ...] | None) -> Iterator[Row]:
    for number, line in enumerate(lines(path, replaced), start=1):
        if not line.strip():
            continue
        try:
            # Numbers stay as they are spelled, so that large ones keep all their digits.
            row = json.loads(line, parse_int=str, parse_float=str, parse_constant=_constant)
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number} of {path} is no JSON ({error}); correct the line.") from error
        if not isinstance(row, dict):
            raise DataError(f"line {number} of {path} is no JSON object; give one object with its columns a line.")
        yield number, {composed(name): _scalar(value) for name, value in row.items()}


def _constant(name: str) -> str | None:
    return None if name == "NaN" else name


def _scalar(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, bool) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _check_column(path: Path, rows: Sequence[Row], column: str, option: str) -> None:
    """Check that a row has this column; JSON lines may leave out what is missing."""
    if not any(column in row for _, row in rows):
        number, row = rows[0]
        raise DataError(
            f"line {number} of {path} has no column {column!r}, only {', '.join(row) or 'none'}; name one of them "
            f"with {option}."
        )


def _with_classes(
    path: Path,
    rows: Sequence[Row],
    text: Sequence[str],
    label: str,
    classes: Mapping[str, int],
    reader: LabelReader,
    unless: str | None = None,
) -> RawTexts:
    """Texts of rows whose label is one of `classes`, without those whose label is missing.

    Several text columns are joined; a missing text is an empty one.
    """
    if not rows:
        raise DataError(f"{path} holds no rows; give a file with a header line and one text a line.")
    for name in text:
        _check_column(path, rows, name, "`text_column`")
    _check_column(path, rows, label, "`label_column`")
    texts, labels = [], []
    for number, row in rows:
        if isinstance(value := row.get(label), list | dict):
            raise DataError(
                f"line {number} of {path} has the label {value!r:.100}, expected one class; give a text or a number."
            )
        found = reader.read(value, unless)
        if found is None:
            continue
        if found not in classes:
            raise DataError(
                f"line {number} of {path} has the label {value!r:.100}, expected one of {some(classes, 20)}; "
                "correct it."
            )
        texts.append(" ".join(_text(row.get(name)) for name in text))
        labels.append(classes[found])
    if not texts:
        raise DataError(f"no text of {path} has a label ({reader.missing('texts')}); label some of them.")
    return RawTexts(texts, labels)


def find_file_pair(data_file: Path, test_file: Path | None, text_column: str, label_column: str) -> Source:
    """A data set in files of the user's own; without a test file a stratified fifth is held out.

    The classes are the labels that occur in the training file, in alphabetical order (numbers by value). See `class_of`
    for what is one class, and which labels are missing: texts without one are left out, and the note says how many.

    Raises:
        DataError: on reading, when a file or a column is not there, a line is damaged, or the labels do not look like
            classes.
    """
    files = [data_file] if test_file is None else [data_file, test_file]
    return Source(files, lambda: _own(data_file, test_file, composed(text_column), composed(label_column)))


def _own(data_file: Path, test_file: Path | None, text_column: str, label_column: str) -> RawDataset:
    replaced, reader = Replaced(), LabelReader()
    rows = list(_read_rows(data_file, replaced))
    found = {class_of(label) for _, row in rows if isinstance(label := row.get(label_column), str)}
    names = tuple(in_order(name for name in found if name is not None))
    classes = {name: index for index, name in enumerate(names)}
    train = _with_classes(data_file, rows, [text_column], label_column, classes, reader)
    if len(names) < 2 or len(names) > _MOST_CLASSES:
        missing = f" ({reader.missing('texts')})" if reader.missing("texts") else ""
        raise DataError(
            f"column {label_column!r} of {data_file} has {len(names)} different labels{missing}, expected 2 to "
            f"{_MOST_CLASSES} classes; name another one with `label_column`."
        )
    if test_file is not None:
        source = f"{data_file.name}, {test_file.name}"
        test_rows = list(_read_rows(test_file, replaced))
        test = _with_classes(test_file, test_rows, [text_column], label_column, classes, reader)
    else:
        source = f"{data_file.name}, a stratified fifth held out"
        train, test = _hold_out(train, data_file, names)
    return RawDataset(source, names, train, test, replaced.characters, reader.note("texts"))


def _hold_out(all_texts: RawTexts, path: Path, names: Sequence[str]) -> tuple[RawTexts, RawTexts]:
    """(training, test) texts: a stratified fifth, always the same one, is for testing."""
    from sklearn.model_selection import train_test_split

    if single := [name for name, count in zip(names, np.bincount(all_texts.labels), strict=True) if count == 1]:
        raise DataError(
            f"a fifth of {path} can't be held out for testing, as one text only is of the class {some(single)}; give a "
            "`test_file`, or more texts of that class."
        )
    try:
        parts = train_test_split(range(len(all_texts.texts)), stratify=all_texts.labels, test_size=0.2, random_state=0)
    except ValueError as error:
        raise DataError(
            f"a fifth of {path} can't be held out for testing ({error}); give a `test_file`, or more texts."
        ) from error
    train, test = (
        RawTexts([all_texts.texts[i] for i in part], [all_texts.labels[i] for i in part]) for part in map(sorted, parts)
    )
    return train, test


def find_sst2(folder: Path) -> Source | None:
    """SST-2 as GLUE publishes it: `train.tsv` and `dev.tsv`, whose labels are known. None where they are not there."""
    files = _pair(folder, "sst2", "SST-2", names=("train.tsv", "dev.tsv"))
    if files is None:
        return None
    classes = {"0": "negative", "1": "positive"}
    return Source(files, lambda: _published(files, "GLUE SST-2 files", classes, ["sentence"], "label"))


def find_csv(folder: Path, name: str) -> Source | None:
    """AG News or DBpedia-14 as published: `train.csv` and `test.csv` of class, title and text; classes from 1.

    None where they are not there.
    """
    plain = name.replace("-", "_")
    files = _pair(folder, name, plain, f"{plain}_csv", names=("train.csv", "test.csv"))
    if files is None:
        return None
    class_names = AG_NEWS if name == "ag-news" else DBPEDIA
    classes = {str(number): title for number, title in enumerate(class_names, start=1)}
    source, columns = f"{name} CSV files", ("class", "title", "text")
    return Source(files, lambda: _published(files, source, classes, ["title", "text"], "class", columns))


def _published(
    files: Sequence[Path],
    source: str,
    classes: Mapping[str, str],
    text: Sequence[str],
    label: str,
    columns: tuple[str, ...] | None = None,
) -> RawDataset:
    """A data set whose labels, here with the names of their classes, are known; -1 says that a label is kept secret."""
    replaced, reader = Replaced(), LabelReader()
    indices = {name: index for index, name in enumerate(classes)}
    train, test = (
        _with_classes(file, list(_read_rows(file, replaced, columns)), text, label, indices, reader, unless="-1")
        for file in files
    )
    return RawDataset(source, tuple(classes.values()), train, test, replaced.characters, reader.note("texts"))


def _pair(folder: Path, *below: str, names: tuple[str, str]) -> tuple[Path, Path] | None:
    """The training and the test file in a folder, or in one below it.

    Raises:
        DataError: when only one of them is there.
    """
    folders = [folder, *(folder / name for name in below)]
    train, test = (find_file(folders, name) for name in names)
    if (train is None) != (test is None):
        raise DataError(f"`data_dir` {folder} holds only one of {names[0]} and {names[1]}; add the other.")
    return None if train is None or test is None else (train, test)
