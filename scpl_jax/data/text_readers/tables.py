"""Files with one text a row: CSV, TSV and JSON lines, and the data sets that are published so."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from scpl_jax.data.errors import DataError
from scpl_jax.data.text_readers.raw import MAX_LINE_BYTES, RawDataset, RawTexts, Replaced, Source, find_file, lines

Row = tuple[int, Mapping[str, str]]
"""The number of the line at which a row ends, and its values by column."""

_MOST_CLASSES = 1000

AG_NEWS = ("World", "Sports", "Business", "Sci/Tech")
DBPEDIA = (
    "Company",
    "EducationalInstitution",
    "Artist",
    "Athlete",
    "OfficeHolder",
    "MeanOfTransportation",
    "Building",
    "NaturalPlace",
    "Village",
    "Animal",
    "Plant",
    "Album",
    "Film",
    "WrittenWork",
)


def read_rows(path: Path, replaced: Replaced, columns: tuple[str, ...] | None = None) -> Iterator[Row]:
    """The rows of a file, whose ending tells the layout: `.csv`, `.tsv` (unquoted), `.jsonl` or `.ndjson`.

    Args:
        path: the file.
        replaced: counts characters that are no UTF-8.
        columns: names of the columns of a file without a header line; None where the first line has them.

    Raises:
        DataError: for another ending, a file that cannot be read, or a line that is no row.
    """
    readers: dict[str, Callable[..., Iterator[Row]]] = {
        ".csv": _separated,
        ".tsv": _separated,
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
    }
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
        header = columns or tuple(name.strip() for name in next(reader, []))
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise DataError(
                    f"line {reader.line_num} of {path} has {len(values)} columns, expected {len(header)} "
                    f"({_names(header)}); correct the line."
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
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number} of {path} is no JSON ({error}); correct the line.") from error
        if not isinstance(row, dict):
            raise DataError(f"line {number} of {path} is no JSON object; give one object with its columns a line.")
        yield number, {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}


def _names(columns: Iterable[str]) -> str:
    """Names of columns in one line; a quoted one may hold a line break."""
    return " ".join(", ".join(columns).split())


def _column(path: Path, number: int, row: Mapping[str, str], column: str, option: str) -> str:
    if column not in row:
        raise DataError(
            f"line {number} of {path} has no column {column!r}, only {_names(row) or 'none'}; name one of them "
            f"with {option}."
        )
    return row[column]


def _with_classes(
    path: Path, rows: Iterable[Row], text: Iterable[str], label: str, classes: Mapping[str, int]
) -> RawTexts:
    """Texts of rows whose label is one of ``classes``; several text columns are joined."""
    texts, labels = [], []
    for number, row in rows:
        texts.append(" ".join(_column(path, number, row, name, "--text-column") for name in text))
        value = _column(path, number, row, label, "--label-column").strip()
        if value not in classes:
            known = ", ".join(list(classes)[:20])
            raise DataError(f"line {number} of {path} has the label {value!r}, expected one of {known}; correct it.")
        labels.append(classes[value])
    return RawTexts(texts, labels)


def find_file_pair(data_file: Path, test_file: Path | None, text_column: str, label_column: str) -> Source:
    """A data set in files of the user's own; without a test file a stratified fifth is held out.

    The classes are the labels that occur in the training file, in alphabetical order (numbers by value).

    Raises:
        DataError: on reading, when a file or a column is not there, a line is damaged, or the labels do not look like
            classes.
    """
    files = [data_file] if test_file is None else [data_file, test_file]
    return Source(files, lambda: _own(data_file, test_file, text_column, label_column))


def _own(data_file: Path, test_file: Path | None, text_column: str, label_column: str) -> RawDataset:
    replaced = Replaced()
    rows = list(read_rows(data_file, replaced))
    if not rows:
        raise DataError(f"{data_file} holds no rows; give a file with a header line and one text a line.")
    found = {_column(data_file, number, row, label_column, "--label-column").strip() for number, row in rows}
    names = sorted(found, key=lambda name: (0, float(name), name) if _is_number(name) else (1, 0.0, name))
    if len(names) < 2 or len(names) > _MOST_CLASSES:
        raise DataError(
            f"column {label_column!r} of {data_file} has {len(names)} different labels, expected 2 to {_MOST_CLASSES} "
            "classes; name another one with --label-column."
        )
    classes = {name: index for index, name in enumerate(names)}
    train = _with_classes(data_file, rows, [text_column], label_column, classes)
    if test_file is not None:
        test = _with_classes(test_file, read_rows(test_file, replaced), [text_column], label_column, classes)
        return RawDataset(f"{data_file.name}, {test_file.name}", tuple(names), train, test, replaced.characters)
    train, test = hold_out(train, data_file)
    source = f"{data_file.name}, a stratified fifth held out"
    return RawDataset(source, tuple(names), train, test, replaced.characters)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() != "nan"


def hold_out(all_texts: RawTexts, path: Path) -> tuple[RawTexts, RawTexts]:
    """(training, test) texts: a stratified fifth, always the same one, is for testing.

    Raises:
        DataError: when a class has one text only.
    """
    from sklearn.model_selection import train_test_split

    try:
        parts = train_test_split(range(len(all_texts.texts)), stratify=all_texts.labels, test_size=0.2, random_state=0)
    except ValueError as error:
        raise DataError(
            f"a fifth of {path} can't be held out for testing ({error}); give a --test-file, or more texts."
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

    def read() -> RawDataset:
        replaced, classes = Replaced(), {"0": 0, "1": 1}
        train, test = (_with_classes(file, read_rows(file, replaced), ["sentence"], "label", classes) for file in files)
        return RawDataset("GLUE SST-2 files", ("negative", "positive"), train, test, replaced.characters)

    return Source(files, read)


def find_csv(folder: Path, name: str) -> Source | None:
    """AG News or DBpedia-14 as published: `train.csv` and `test.csv` of class, title and text; classes from 1.

    None where they are not there.
    """
    class_names = AG_NEWS if name == "ag-news" else DBPEDIA
    files = _pair(
        folder, name, name.replace("-", "_"), f"{name.replace('-', '_')}_csv", names=("train.csv", "test.csv")
    )
    if files is None:
        return None

    def read() -> RawDataset:
        replaced = Replaced()
        classes = {str(number): number - 1 for number in range(1, len(class_names) + 1)}
        columns = ("class", "title", "text")
        train, test = (
            _with_classes(file, read_rows(file, replaced, columns), ["title", "text"], "class", classes)
            for file in files
        )
        return RawDataset(f"{name} CSV files", class_names, train, test, replaced.characters)

    return Source(files, read)


def _pair(folder: Path, *below: str, names: tuple[str, str]) -> tuple[Path, Path] | None:
    """The training and the test file in a folder, or in one below it.

    Raises:
        DataError: when only one of them is there.
    """
    folders = [folder, *(folder / name for name in below)]
    train, test = (find_file(folders, name) for name in names)
    if (train is None) != (test is None):
        raise DataError(f"--data-dir {folder} holds only one of {names[0]} and {names[1]}; add the other.")
    return None if train is None or test is None else (train, test)
