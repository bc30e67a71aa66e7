"""Word vectors: in every dress a file of them comes in, and one sentence for what is none."""

import bz2
import gzip
import io
import lzma
import pickle
import struct
import unicodedata
import zipfile

import numpy as np
import pytest

from scpl_jax.data import DataError
from scpl_jax.data.text.vectors import read_vectors

TEXT = b"the 1 2 3\ncat 4 5 6\n"


def test_word_vectors_of_glove_and_fasttext(tmp_path):
    glove = tmp_path / "glove.txt"
    glove.write_text("the 1 2 3\ncat -1 0.5 1e-2\ncat 9 9 9\n. . 4 5 6\n")
    found = read_vectors(glove, ["cat", "the", "dog"])
    assert {word: vector.tolist() for word, vector in found.items()} == {
        "the": [1, 2, 3],
        "cat": pytest.approx([-1, 0.5, 0.01]),
    }
    fasttext = tmp_path / "vectors.vec"
    fasttext.write_text("2 3\nthe 1 2 3 \ncat 4 5 6 \n")
    done = []
    assert len(read_vectors(fasttext, ["cat", "the"], 3, done.append)) == 2
    assert sum(done) == fasttext.stat().st_size


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("the 1 2 3\n", 4, "line 1 of .* has 3 values, expected 4; give `size`"),
        ("the 1 2\ncat 1\n", None, "line 2 of .* has 1 values, expected 2"),
        ("the 1 x\n", None, "line 1 of .* is no word with 2 numbers"),
        ("the 1 nan\n", None, "line 1 of .* has values that are not finite"),
        ("", None, "holds no vectors"),
        ("the " + "1 " * 600_000, None, "line 1 of .* is longer than 1 MB"),
    ],
)
def test_faults_of_word_vectors_are_one_sentence(tmp_path, text, size, message):
    (tmp_path / "v.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_vectors(tmp_path / "v.txt", ["the", "cat"], size)


def test_a_file_of_word_vectors_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"`path` .* does not exist or cannot be read"):
        read_vectors(tmp_path / "none.txt", ["a"])


def zipped(content, *others):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("vectors.txt", *others):
            archive.writestr(name, content)
    return out.getvalue()


DRESSES = {
    "tabs": TEXT.replace(b" ", b"\t"),
    "a tab behind the word": TEXT.replace(b" ", b"\t", 1),
    "runs of blanks": TEXT.replace(b" ", b"  \t "),
    "blanks at the end": TEXT.replace(b"\n", b" \t\r\n"),
    "no line break at the end": TEXT.rstrip(),
    "a byte order mark": b"\xef\xbb\xbf" + TEXT,
    "a byte order mark and a header": b"\xef\xbb\xbf2\t3\n" + TEXT,
    "gzip": gzip.compress(TEXT),
    "gzip in parts": gzip.compress(TEXT[:7]) + gzip.compress(TEXT[7:]),
    "gzip with a byte order mark": gzip.compress(b"\xef\xbb\xbf" + TEXT),
    "bzip2": bz2.compress(TEXT),
    "xz": lzma.compress(TEXT),
    "zip": zipped(TEXT),
}


@pytest.mark.parametrize("dress", DRESSES)
def test_vectors_are_found_in_every_dress(tmp_path, dress):
    path = tmp_path / "vectors.txt"  # the content tells what it is, not the name
    path.write_bytes(DRESSES[dress])
    done = []
    found = read_vectors(path, ["cat", "the", "dog"], progress=done.append)
    assert {word: vector.tolist() for word, vector in found.items()} == {"the": [1, 2, 3], "cat": [4, 5, 6]}
    assert sum(done) == path.stat().st_size
    assert min(done) >= 0


def test_the_progress_of_a_long_file_is_told_on_the_way(tmp_path):
    path = tmp_path / "vectors.txt.gz"
    values = np.random.default_rng(0).normal(size=(5000, 8)).astype(str)
    path.write_bytes(gzip.compress("".join(f"w{i} {' '.join(row)}\n" for i, row in enumerate(values)).encode()))
    done = []
    assert len(read_vectors(path, ["w0", "w4999"], progress=done.append)) == 2
    assert sum(done) == path.stat().st_size
    assert len(done) > 3


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_words_are_found_however_their_characters_are_composed(tmp_path, form, other):
    path = tmp_path / "vectors.txt"
    path.write_text(unicodedata.normalize(form, "résumé 1 2\n한국어 3 4\n"), encoding="utf-8")
    wanted = [unicodedata.normalize(other, word) for word in ("résumé", "한국어")]
    assert set(read_vectors(path, wanted)) == set(wanted)


def npy():
    out = io.BytesIO()
    np.save(out, np.ones((2, 3), np.float32))
    return out.getvalue()


WORD2VEC = b"2 3\n" + b"".join(word + struct.pack("<3f", 1, 2, 3) + b"\n" for word in (b"the ", b"cat "))
FOREIGN = {
    "word2vec's binary form": (WORD2VEC, "is a binary file"),
    "word2vec's binary form, packed": (gzip.compress(WORD2VEC), "is a binary file"),
    "a fastText model": (struct.pack("<3i", 793712314, 12, 5), "is a fastText model"),
    "a numpy array": (npy(), "is a numpy array"),
    "a pickle": (pickle.dumps({"the": [1, 2, 3]}), "is a pickle"),
    "UTF-16": (TEXT.decode().encode("utf-16"), "is UTF-16 text"),
    "Zstandard": (b"\x28\xb5\x2f\xfd\x20\x02", "is packed by Zstandard"),
    "several files": (zipped(TEXT, "b.txt"), r"holds 2 files \(vectors.txt, b.txt\), expected one"),
    "a damaged archive": (zipped(TEXT)[:-30], "cannot be unpacked"),
    "gzip cut off": (gzip.compress(TEXT * 999)[:-20], "cannot be unpacked"),
    "gzip damaged": (gzip.compress(TEXT)[:-6] + bytes(6), "cannot be read .CRC check failed"),
    "xz cut off": (lzma.compress(TEXT)[:-20], "cannot be unpacked"),
    "bzip2 damaged": (bz2.compress(TEXT)[:20] + bytes(40), "cannot be read"),
    "an encrypted archive": (zipped(TEXT).replace(b"\x14\0\0\0\x08", b"\x14\0\x01\0\x08"), "cannot be unpacked"),
    "commas": (TEXT.replace(b" ", b","), "line 1 of .* has 0 values"),
    "none of the words": (b"THE 1 2 3\nCAT 4 5 6\n", "has a vector for none of the 2 words"),
    "a header of another size": (b"2 4\n" + TEXT, "line 2 of .* has 3 values, expected 4"),
    "a header of another size, longer": (b"2 2\n" + TEXT, "line 2 of .* has 3 values, expected 2"),
    "fewer lines than the header says": (b"3 3\n" + TEXT, "holds 2 vectors but 3 by its first line"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_text_of_vectors_is_refused_in_one_sentence(tmp_path, kind):
    content, message = FOREIGN[kind]
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_vectors(path, ["cat", "the"])


def test_a_header_that_contradicts_the_option_names_both(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_bytes(b"2 3\n" + TEXT)
    with pytest.raises(DataError, match="has vectors of 3 values by its first line, expected 4; give `size` 3"):
        read_vectors(path, ["cat"], 4)
