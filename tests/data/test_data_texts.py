"""Text data sets: what each layout holds, and one sentence for each fault of a file."""

import dataclasses
import json
import os

import numpy as np
import pytest

from scpl_jax.data import DataError, TextRequest, add_label_noise, limit, load_texts, paths
from scpl_jax.data.text import text_sets
from scpl_jax.data.text.buckets import Texts
from scpl_jax.data.text.words import build_vocabulary, clean, stop_words


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Where cleaned texts are kept, instead of in the user's own folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(paths, "DEFAULT_CACHE_DIR", folder)
    return folder


def words(dataset, split, index):
    ids = getattr(dataset, f"{split}_texts").padded([index], 50)[0]
    return " ".join(dataset.words[i - 2] if i > 1 else "?" for i in ids if i)


def table(folder, name, rows, header="text,label"):
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def imdb(tmp_path):
    for split in ("train", "test"):
        for label, word in (("pos", "good"), ("neg", "bad")):
            folder = tmp_path / "imdb" / split / label
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"{number}_7.txt").write_text(f"A {word} film<br />number {split} x{number}.")
    return tmp_path


def test_words_are_cleaned_of_marks_tags_and_stop_words():
    assert clean("It's <b>GREAT</b>, isn't it? 10/10 &amp; more_or less", stop_words()) == ["great", "isnt", "10", "10"]
    assert clean("naïve café") == ["naïve", "café"]
    assert clean("... <br />") == []


def test_the_vocabulary_has_the_most_frequent_words_whatever_the_order():
    texts = [["a", "b"], ["b", "c"], ["b", "a", "d"]]
    assert build_vocabulary(texts, 5) == {"b": 2, "a": 3, "c": 4}
    assert build_vocabulary(reversed(texts), 5) == build_vocabulary(texts, 5)


def test_imdb_is_read_from_its_folders_classes_in_turn(imdb):
    dataset = load_texts(TextRequest("imdb", imdb))
    assert (len(dataset.train_texts), len(dataset.test_texts), dataset.max_length) == (6, 6, 350)
    assert dataset.train_labels.tolist() == [0, 1] * 3
    assert dataset.class_names == ("negative", "positive")
    assert words(dataset, "train", 1) == "good film number train x0"
    # Words of the test texts that training has not are unknown.
    assert words(dataset, "test", 0) == "bad film number ? x0"
    (imdb / "imdb" / "train" / "pos" / "7_9.txt").write_text("Brilliant film.")
    assert load_texts(TextRequest("imdb", imdb)).train_labels.tolist() == [0, 1] * 3 + [1]
    small = limit(dataset, 2, 4)
    assert (len(small.train_texts), len(small.test_texts)) == (2, 4)
    assert small.words == dataset.words
    noisy = add_label_noise(dataset, 1.0, seed=1)
    assert noisy.train_labels.tolist() != dataset.train_labels.tolist()
    assert noisy.test_labels is dataset.test_labels


@pytest.fixture
def cleaned(monkeypatch):
    """The texts that were cleaned so far."""
    texts = []
    monkeypatch.setattr(text_sets, "clean", lambda text, stop: texts.append(text) or clean(text, stop))
    return texts


def test_cleaned_texts_are_kept(imdb, cleaned, cache):
    first = load_texts(TextRequest("imdb", imdb, keep_stop_words=True))
    assert len(cleaned) == 12
    cleaned.clear()
    second = load_texts(TextRequest("imdb", imdb, keep_stop_words=True))
    assert cleaned == []
    for field in dataclasses.fields(first):
        found, expected = getattr(second, field.name), getattr(first, field.name)
        if isinstance(expected, Texts):
            np.testing.assert_array_equal(found.ids, expected.ids)
            np.testing.assert_array_equal(found.starts, expected.starts)
        elif isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(found, expected)
        else:
            assert found == expected
            assert type(found) is type(expected)
    (kept,) = (cache / "datasets").iterdir()
    kept.write_bytes(kept.read_bytes()[:200])
    load_texts(TextRequest("imdb", imdb, keep_stop_words=True))
    assert len(cleaned) == 12


CHANGES = {
    "a file changed": {},
    "stop words": {"keep_stop_words": True},
    "length": {"max_length": 2},
    "buckets": {"buckets": 1},
    "vocabulary": {"vocabulary": 3},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_kept_counts_only_for_the_same_request_and_files(imdb, cleaned, change):
    load_texts(TextRequest("imdb", imdb))
    cleaned.clear()
    if change == "a file changed":
        os.utime(imdb / "imdb" / "test" / "neg" / "0_7.txt", ns=(5, 5))
    load_texts(TextRequest("imdb", imdb, **CHANGES[change]))
    assert len(cleaned) == 12


def test_sst2_is_read_and_quotes_are_text(tmp_path):
    for name in ("train", "dev"):
        rows = ['a "fine film \t1', "the worst \t0", "it is what it is \t0"]
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    dataset = load_texts(TextRequest("sst2", tmp_path))
    assert words(dataset, "train", 0) == "fine film"
    assert dataset.train_labels.tolist() == [1, 0]
    assert "2 texts without a word were left out" in dataset.note
    assert load_texts(TextRequest("auto", tmp_path)).name == "sst2"
    kept = load_texts(TextRequest("sst2", tmp_path, keep_stop_words=True, max_length=2, vocabulary=5))
    assert [len(kept.train_texts), kept.vocabulary, kept.buckets] == [3, 5, (2,)]
    (tmp_path / "dev.tsv").unlink()
    with pytest.raises(DataError, match=r"holds only one of train.tsv and dev.tsv"):
        load_texts(TextRequest("sst2", tmp_path))


@pytest.mark.parametrize(("name", "classes"), [("ag-news", 4), ("dbpedia", 14)])
def test_published_csv_files_have_classes_from_one(tmp_path, name, classes):
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text(
            f'"1","First ""title""","Body, of text"\n"{classes}","Second","Other\nline"\n'
        )
    dataset = load_texts(TextRequest(name, tmp_path))
    assert dataset.num_classes == classes
    assert dataset.train_labels.tolist() == [0, classes - 1]
    assert words(dataset, "train", 0) == "title body text"
    (tmp_path / "test.csv").write_text(f'"{classes + 1}","a","b"\n')
    with pytest.raises(DataError, match=rf"line 1 of .*test.csv has the label '{classes + 1}', expected one of 1, 2"):
        load_texts(TextRequest(name, tmp_path))


def test_own_files_of_every_kind_and_a_fifth_held_out(tmp_path):
    rows = [{"body": f"word{i % 7} again", "kind": ["10", "9"][i % 2]} for i in range(20)]
    files = {
        "a.csv": "body,kind\n" + "".join(f"{r['body']},{r['kind']}\n" for r in rows),
        "a.tsv": "kind\tbody\n" + "".join(f"{r['kind']}\t{r['body']}\n" for r in rows),
        "a.jsonl": "".join(json.dumps({**r, "kind": int(r["kind"])}) + "\n" for r in rows),
    }
    found = []
    for name, text in files.items():
        (tmp_path / name).write_text("\ufeff" + text)
        request = TextRequest("file", data_file=tmp_path / name, text_column="body", label_column="kind")
        found.append(load_texts(request))
    for dataset in found:
        assert dataset.class_names == ("9", "10")
        assert (len(dataset.train_texts), len(dataset.test_texts)) == (16, 4)
        assert np.bincount(dataset.test_labels).tolist() == [2, 2]
        np.testing.assert_array_equal(dataset.train_texts.ids, found[0].train_texts.ids)
    both = load_texts(
        TextRequest(
            "file",
            data_file=tmp_path / "a.csv",
            test_file=tmp_path / "a.jsonl",
            text_column="body",
            label_column="kind",
        )
    )
    assert (len(both.train_texts), len(both.test_texts)) == (20, 20)


def test_bytes_that_are_no_utf8_are_replaced_and_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\ncaf\xe9 fine,0\ndull \xff\xff,1\ngreat \xef\xbf\xbd \xe9,0\npoor,1\n")
    test = table(tmp_path, "test.csv", ["fine,0", "poor,1"])
    dataset = load_texts(TextRequest("file", data_file=path, test_file=test))
    assert len(dataset.train_texts) == 4
    assert "4 characters that are no UTF-8 were replaced" in dataset.note


FAULTS = {
    "no such column": (
        "text,kind\na,0\nb,1\n",
        "has no column 'label', only text, kind; name one of them with `label_column`",
    ),
    "no such column, and a line break in another": (
        'text,"of what\nkind"\na,0\nb,1\n',
        "has no column 'label', only text, of what kind; name one of them with `label_column`.$",
    ),
    "no text column": (
        "body,label\na,0\nb,1\n",
        "has no column 'text', only body, label; name one of them with `text_column`",
    ),
    "a row too short": ("text,label\na,0\nb\n", "line 3 of .* has 1 columns, expected 2 "),
    "a row too short, and a line break in the header": (
        'text,label,"of what\nkind"\na,0\n',
        r"line 3 of .* has 2 columns, expected 3 \(text, label, of what kind\); correct the line.$",
    ),
    "one class": ("text,label\na,0\nb,0\n", "has 1 different labels, expected 2 to 1000 classes"),
    "nothing": ("", "holds no rows"),
    "no words": ("text,label\n,0\n!,1\n,0\n?,1\n.,0\n,1\n;,0\n:,1\n-,0\n-,1\n", "no text of a split has a word"),
    "a line of many MB": ("text,label\n" + "a " * 6_000_000 + ",0\n", "line 2 of .* is longer than 10 MB"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_file_are_one_sentence(tmp_path, fault):
    text, message = FAULTS[fault]
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_texts(TextRequest("file", data_file=tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 of .* is no JSON"),
        ("[1]", "line 1 of .* is no JSON object"),
        ('{"text": "a"}', "has no column 'la"),
    ],
)
def test_faults_of_json_lines_are_one_sentence(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text + "\n")
    with pytest.raises(DataError, match=message):
        load_texts(TextRequest("file", data_file=tmp_path / "a.jsonl"))


def test_a_test_label_that_is_no_class_is_named(tmp_path):
    train = table(tmp_path, "train.csv", ["a,x", "b,y"])
    test = table(tmp_path, "test.csv", ["a,x", "b,z"])
    with pytest.raises(DataError, match=r"line 3 of .*test.csv has the label 'z', expected one of x, y"):
        load_texts(TextRequest("file", data_file=train, test_file=test))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (TextRequest("nothing"), "`name` nothing is unknown"),
        (TextRequest("file"), "`name` file and `data_file` go together"),
        (TextRequest("dbpedia"), "`name` dbpedia needs `data_dir` with train.csv and test.csv"),
        (TextRequest("generated", vocabulary=2), "`vocabulary` is 2"),
        (TextRequest("generated", max_length=0), "`max_length` is 0"),
    ],
)
def test_mistakes_are_one_sentence(request_, message):
    with pytest.raises(DataError, match=message):
        load_texts(request_)


def test_an_unknown_kind_of_file_is_named(tmp_path):
    (tmp_path / "a.xls").write_text("x")
    with pytest.raises(DataError, match=r"a.xls is of an unknown kind, expected one ending in .csv, .tsv"):
        load_texts(TextRequest("file", data_file=tmp_path / "a.xls"))


def test_auto_says_that_it_took_generated_sentences(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    dataset = load_texts(TextRequest("auto"))
    assert dataset.name == "generated"
    assert "not a real data set" in dataset.source
    assert "SST-2 was not found" in dataset.note
    again = load_texts(TextRequest("generated"))
    np.testing.assert_array_equal(dataset.train_texts.ids, again.train_texts.ids)
    assert 0.45 < dataset.train_labels.mean() < 0.55
