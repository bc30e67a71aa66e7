"""Labels of files: the missing are left out and told, and spellings of one class are one class, in every reader."""

import json
import unicodedata
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpl_jax.data import DataError, TextRequest, load, load_texts
from scpl_jax.data.class_names import class_of
from scpl_jax.data.text.readers import tfds_texts


def texts(tmp_path, labels, kind="csv", test=None, **changes):
    """The data set of a file in which these labels are written as they are."""
    files = {}
    for name, some in (("data", labels), ("test", test)):
        if some is None:
            continue
        if kind == "csv":
            lines = ["text,label", *(f'word{i % 3} again,"{label}"' for i, label in enumerate(some))]
        else:
            lines = [
                f'{{"text": "word{i % 3} again"{label and f", {chr(34)}label{chr(34)}: {label}"}}}'
                for i, label in enumerate(some)
            ]
        files[f"{name}_file"] = tmp_path / f"{name}.{kind}"
        files[f"{name}_file"].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_texts(TextRequest("file", **files, cache_dir=tmp_path / "cache", **changes))


MISSING = ["", "  ", "NaN", "nan", "-nan", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "None"]


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("names", [("0", "1"), ("ham", "spam")])
def test_a_missing_label_is_no_class(tmp_path, missing, names):
    dataset = texts(tmp_path, [*names, missing] * 5)
    assert dataset.class_names == names
    assert len(dataset.train_labels) + len(dataset.test_labels) == 10
    assert f"5 texts without a label were left out (5 {missing.strip() or 'empty'})." in dataset.note


@pytest.mark.parametrize("missing", ["null", "NaN", "", '""', '"NaN"', '"None"'])
def test_a_missing_label_of_json_is_no_class(tmp_path, missing):
    dataset = texts(tmp_path, ["0", "1", missing] * 5, "jsonl")
    assert dataset.class_names == ("0", "1")
    assert "5 texts without a label were left out" in dataset.note


def test_words_that_only_look_like_missing_ones_are_classes(tmp_path):
    dataset = texts(tmp_path, ["none", "nano", "na", "-"] * 5)
    assert dataset.class_names == ("-", "na", "nano", "none")
    assert dataset.note == ""


def test_a_class_that_is_taken_for_missing_is_explained(tmp_path):
    with pytest.raises(DataError, match=r"has 1 different labels \(5 texts without a label were left out \(5 None\)\)"):
        texts(tmp_path, ["None", "some"] * 5)


SAME = [
    ("csv", ["0", "1", "0.0", "1.0", "1e0", "+1"], ("0", "1")),
    ("csv", ["1", " 1", "2.", "2"], ("1", "2")),
    ("csv", ["-0", "0", "0.50", ".5", "5e-1", "50E-2"], ("0", "0.5")),
    ("csv", ["inf", "Infinity", "-inf", "1e400"], ("-inf", "1e400", "inf")),
    ("csv", ["True", "true", "FALSE", "False"], ("false", "true")),
    ("csv", ["caf\u00e9", "cafe\u0301", "tea", "tea "], ("caf\u00e9", "tea")),
    ("jsonl", ["0", "1", "0.0", '"1"', "1e0", '"0"'], ("0", "1")),
    ("jsonl", ["true", '"True"', "false", "false"], ("false", "true")),
    ("jsonl", ["Infinity", "1", '"inf"', '"1"'], ("1", "inf")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "labels", "names"), SAME)
def test_labels_that_are_equal_are_one_class(tmp_path, kind, labels, names):
    dataset = texts(tmp_path, labels * 3, kind)
    assert dataset.class_names == names
    assert "Equal labels are one class: " in dataset.note


DIFFERENT = [
    ["9007199254740992", "9007199254740993"],
    ["0.1", "0.10000000000000000555"],
    ["123456789012345678901234567890123456789012", "123456789012345678901234567890123456789013"],
    ["1e400", "1e401"],
    ["7", "007"],
    ["1", "l"],
]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("labels", DIFFERENT)
def test_labels_that_differ_are_several_classes(tmp_path, kind, labels):
    text = kind == "jsonl" and not {"007", "l"}.isdisjoint(labels)  # no numbers of JSON
    dataset = texts(tmp_path, [json.dumps(label) if text else label for label in labels] * 5, kind)
    assert sorted(dataset.class_names) == sorted(labels)
    assert dataset.note == ""


@given(st.decimals(allow_nan=False, allow_infinity=False) | st.integers())
def test_a_number_is_the_class_of_each_of_its_spellings(number):
    found = class_of(str(number))
    assert Decimal(found) == number
    for spelling in (f"{number}e0" if "E" not in str(number) else found, f" {found} ", found.upper()):
        assert class_of(spelling) == found


def test_both_files_of_a_pair_are_read_alike(tmp_path):
    rows = [*["1.0", "2.0"] * 5]
    texts(tmp_path, rows, "csv")
    (tmp_path / "test.jsonl").write_text(
        "".join(f'{{"text": "word1", "label": {label}}}\n' for label in ("1", "2", '"2.0"', "null"))
    )
    files = {"data_file": tmp_path / "data.csv", "test_file": tmp_path / "test.jsonl"}
    request = TextRequest("file", **files, cache_dir=tmp_path)
    dataset = load_texts(request)
    assert dataset.test_labels.tolist() == [0, 1, 1]
    assert "1 texts without a label were left out (1 null or absent)" in dataset.note
    (tmp_path / "test.jsonl").write_text('{"text": "word1", "label": null}\n' * 3)
    with pytest.raises(DataError, match=r"no text of .*test\.jsonl has a label \(3 texts .*\(3 null or absent\)\)"):
        load_texts(request)


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("csv", ["a"] * 6 + ["b"] * 6 + ["rare"], "as one text only is of the class rare; give a `test_file`"),
        ("csv", ["a"] * 6 + ["x", "y"] + ["NaN"], "as one text only is of the class x, y; give"),
        ("csv", ["NaN", "", "null"] * 4, r"no text of .* has a label \(12 texts .*4 NaN, 4 empty, 4 null"),
        ("jsonl", ["[0, 1]", "1"] * 4, r"line 1 of .* has the label \['0', '1'\], expected one class"),
        ("jsonl", ['{"a": 1}', "1"] * 4, r"line 1 of .* has the label \{'a': '1'\}, expected one class"),
    ],
)
def test_labels_that_make_no_classes_are_one_sentence(tmp_path, kind, labels, message):
    with pytest.raises(DataError, match=message):
        texts(tmp_path, labels, kind)


def test_missing_texts_are_empty_ones(tmp_path):
    path = tmp_path / "a.jsonl"
    written = ["good", "bad", None, float("nan"), "fine", "dull"] * 3
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(written)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"label": 1}]))
    dataset = load_texts(TextRequest("file", data_file=path, cache_dir=tmp_path))
    assert set(dataset.words) <= {"good", "bad", "fine", "dull"}
    assert "7 texts without a word were left out" in dataset.note


def test_columns_are_found_however_their_names_are_composed(tmp_path):
    rows = "".join(f"w{i % 3},{i % 2}\n" for i in range(10))
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        path = tmp_path / f"{form}.csv"
        path.write_text(unicodedata.normalize(form, f"\ufeffré,été\n{rows}"), encoding="utf-8")
        text, label = (unicodedata.normalize(other, name) for name in ("ré", "été"))
        request = TextRequest("file", data_file=path, text_column=text, label_column=label, cache_dir=tmp_path)
        assert load_texts(request).class_names == ("0", "1")


def test_published_files_keep_no_text_whose_label_is_secret(tmp_path):
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("sentence\tlabel\nfine film\t1\ndull film\t0.0\nfilm\t-1\nfilm\t\n")
    dataset = load_texts(TextRequest("sst2", tmp_path, cache_dir=tmp_path))
    assert dataset.train_labels.tolist() == [1, 0]
    assert "4 texts without a label were left out (2 -1, 2 empty)" in dataset.note
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text('"1","a","b"\n"4.0","c","d"\n"","e","f"\n')
    dataset = load_texts(TextRequest("ag-news", tmp_path, cache_dir=tmp_path))
    assert dataset.train_labels.tolist() == [0, 3]
    assert "2 texts without a label were left out (2 empty)" in dataset.note
    assert "No training texts are of the class Sports, Business." in dataset.note


def test_prepared_texts_keep_none_whose_label_is_secret(monkeypatch, tmp_path):
    def read(name, folder, splits, convert):
        examples = [{"sentence": b"a film", "label": label} for label in (0, -1, 1, -1)]
        return ("negative", "positive"), [convert(examples) for _ in splits]

    monkeypatch.setattr(tfds_texts.images, "find_prepared", lambda *_: tmp_path)
    monkeypatch.setattr(tfds_texts.images, "prepared_files", lambda *_: [])
    monkeypatch.setattr(tfds_texts.images, "read_prepared", read)
    raw = tfds_texts.find("sst2", tmp_path).read()
    assert raw.train.labels == [0, 1]
    assert raw.note == "4 texts without a label were left out (4 -1)."


IMAGES = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3)
ARRAYS = {
    "a column": (np.array([[0], [1], [2], [0], [1], [2]]), [0, 1, 2, 0, 1, 2]),
    "floats": (np.array([0, 1, 2, 0, 1, 2.0]), [0, 1, 2, 0, 1, 2]),
    "halves of floats": (np.array([0, 1, 2, 0, 1, 2], np.float16), [0, 1, 2, 0, 1, 2]),
    "booleans": (np.array([0, 1, 1, 0, 1, 0], bool), [0, 1, 1, 0, 1, 0]),
    "bytes": (np.array([0, 1, 2, 0, 1, 2], np.uint8), [0, 1, 2, 0, 1, 2]),
    "wide": (np.array([0, 1, 2, 0, 1, 2], np.uint64), [0, 1, 2, 0, 1, 2]),
    "texts": (np.array(["b", "a", "b", "a", "c", "10"]), [2, 1, 2, 1, 3, 0]),
    "texts in bytes": (np.array([b"b", b"a", b"b", b"a", b"c", b"b"]), [1, 0, 1, 0, 2, 1]),
    "-1": (np.array([0, 1, -1, 0, 1, -1]), [0, 1, None, 0, 1, None]),
    "not a number": (np.array([0, 1, np.nan, 0, -1, 1]), [0, 1, None, 0, None, 1]),
    "a column of missing ones": (np.array([[0], [1], [np.nan], [0], [1], [1]]), [0, 1, None, 0, 1, 1]),
    "missing texts": (np.array(["b", "", "b", "NaN", "c", "b"]), [0, None, 0, None, 1, 0]),
}


def saved(tmp_path, labels, test_labels=None):
    path = tmp_path / "data.npz"
    test_labels = labels if test_labels is None else test_labels
    np.savez(path, x_train=IMAGES, y_train=labels, x_test=IMAGES, y_test=test_labels)
    return load("npz", data_dir=path)


@pytest.mark.parametrize("kind", ARRAYS)
def test_label_arrays_of_every_kind_are_read(tmp_path, kind):
    labels, expected = ARRAYS[kind]
    dataset = saved(tmp_path, labels)
    kept = [index for index, label in enumerate(expected) if label is not None]
    assert dataset.train_labels.tolist() == dataset.test_labels.tolist() == [expected[index] for index in kept]
    np.testing.assert_array_equal(dataset.train_images, IMAGES[kept])
    missing = 2 * (6 - len(kept))
    assert (f"{missing} images without a label were left out" in dataset.note) == bool(missing)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 0.5, 0, 1, 0]), "y_train in .* is float64 of shape .* expected whole numbers or texts"),
        (np.array([0, 1, np.inf, 0, 1, 0]), "y_train in .* is float64 of shape"),
        (np.array([0, 1, -2, 0, 1, 0]), "y_train in .* runs from -2 to 1"),
        (np.array([0, 1, 2**63, 0, 1, 0], np.uint64), "y_train in .* runs from 0 to 9223372036854775808"),
        (np.array([0, 1, 2**64 - 1, 0, 1, 0], np.uint64), "y_train in .* runs from 0 to 18446744073709551615"),
        (np.array([0, 1, 2**32, 0, 1, 0]), "y_train in .* runs from 0 to 4294967296"),
        (np.array([0, 1, 1e30, 0, 1, 0]), r"y_train in .* runs from 0.0 to 1e\+30"),
        (np.full(6, -1), r"y_train in .* holds no label \(6 images without a label"),
        (np.array(["", "NaN"] * 3), r"y_train in .* holds no label \(6 images without a label"),
        (np.array([-1, 1] * 3), "all 3 training images are of the class 1, .* left out"),
        (np.zeros((6, 2)), "y_train in .* is float64 of shape"),
        (np.zeros((1, 6), int), "y_train in .* is int64 of shape"),
    ],
)
def test_label_arrays_that_make_no_classes_are_one_sentence(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        saved(tmp_path, labels)


def test_test_arrays_have_the_classes_of_the_training_arrays(tmp_path):
    names = np.array(["a", "b"] * 3)
    with pytest.raises(DataError, match=r"y_test in .* has the label 'c', expected one of a, b"):
        saved(tmp_path, names, np.array(["a", "c"] * 3))
    with pytest.raises(DataError, match=r"y_test in .* holds numbers, but the training labels are texts"):
        saved(tmp_path, names, np.arange(6))
    dataset = saved(tmp_path, np.array([0, 2] * 3), np.array([0, 1] * 3))
    assert dataset.num_classes == 3
    assert dataset.note == "No training images are of the class 1."
