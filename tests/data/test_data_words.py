"""Words of texts in any script: parted as Unicode says, the same however characters are composed."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpl_jax.data import DataError, TextRequest, load_texts
from scpl_jax.data.text import text_sets
from scpl_jax.data.text.words import clean, composed, stop_words

ONE_WORD = {
    "Hindi": "हिन्दी",
    "Hindi with a joiner": "क्\u200dष",
    "Tamil": "தமிழ்",
    "Bengali": "বাংলা",
    "Arabic with vowels": "كِتَابٌ",
    "Hebrew with points": "שָׁלוֹם",
    "Hebrew abbreviation": "צה״ל",
    "Persian with a non-joiner": "می\u200cخواهم",  # noqa: RUF001
    "Thai": "ภาษาไทยดีมาก",
    "Burmese": "မြန်မာ",
    "Tibetan syllable": "བོད",
    "decomposed accents": "re\u0301sume\u0301",
    "Vietnamese": "Việt",
    "Turkish capital I": "İstanbul",
    "Greek": "ὈΔΥΣΣΕΎΣ",
    "Korean in parts": unicodedata.normalize("NFD", "한국어"),
    "an astral script": "\U00011107\U0001112c\U00011107",
    "a keycap": "1\ufe0f\u20e3",
    "Ukrainian": "м\u02bcята",  # noqa: RUF001
    "Catalan": "col·lecció",
    "a soft hyphen": "foot\u00adball",
    "a byte order mark": "\ufefffootball",
    "a direction": "\u200fשלום\u200e",  # noqa: RUF001
}


@pytest.mark.parametrize("script", ONE_WORD)
def test_a_word_of_any_script_stays_one_word(script):
    word = ONE_WORD[script]
    found = clean(word)
    assert len(found) == 1
    assert clean(f"({word}), {word}! ") == found * 2
    assert all(clean(unicodedata.normalize(form, word)) == found for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("re\u0301sume\u0301", ["r\u00e9sum\u00e9"]),
        ("foot\u00adball foot\u2060ball", ["football", "football"]),
        ("м’ята м'ята мʼята", ["мята"] * 3),  # noqa: RUF001
        ("ΟΔΟΣ", ["οδος"]),
        ("می\u200c \u200dx", ["می", "x"]),  # joiners join nothing at the ends
        ("I ❤️ it 👩‍💻, ok", ["i", "it", "ok"]),  # emoji hold marks and joiners, and are no words
        ("\u0301 a_b ‿ \u093f", ["a", "b"]),
        ("Rock·Pop, « naïf » — 10½", ["rock", "pop", "naïf", "10½"]),
        ("日本語。テキスト", ["日本語", "テキスト"]),
        ("a\u200bb", ["a", "b"]),  # a zero-width space parts words where scripts write none
        ("half \ud800 a character", ["half", "a", "character"]),
    ],
)
def test_what_parts_words_and_what_leaves_no_trace(text, words):
    assert clean(text) == words


@given(st.text())
def test_texts_that_unicode_takes_for_equal_have_equal_words(text):
    expected = clean(unicodedata.normalize("NFC", text))
    assert clean(unicodedata.normalize("NFD", text)) == expected
    assert all(word and unicodedata.is_normalized("NFC", word) for word in expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x < 3 and y > 2", "x 3 and y 2"),
        ("I <3 this >_< a lot", "i 3 this a lot"),
        ("a<b and b>c", "a c"),  # as a browser has it: <b begins a tag
        ("<p class='x'>a</p><!-- no --><?xml no?><br/>b", "a b"),
        ("a <b", "a b"),
        ("if 1 &lt; 2 &amp; 3 &gt; 2", "if 1 2 3 2"),
        ("&lt;a href=&quot;x&quot;&gt;escaped once&lt;/a&gt;", "escaped once"),
        ("caf&eacute; caf&#233; caf&#xe9;", "café café café"),
        (f"&#{'1' * 5000}; &#{'0' * 5000}65; ok", "ok"),
    ],
)
def test_tags_are_what_html_takes_for_them(text, words):
    assert clean(text) == words.split()


def test_stop_words_are_found_with_any_apostrophe():
    for mark in ("'", "\u2019", "\uff07"):
        assert clean(f"They couldn{mark}t", stop_words() | {"couldnt"}) == []


def test_marks_piled_on_a_character_are_cut_off():
    """Composing them would take time that grows with their square: hours for a text of 10 MB."""
    pile = "e" + "\u0301\u0323" * 1_000_000
    (word,) = clean(pile)
    assert word == composed(pile) == composed("e" + "\u0301\u0323" * 15)


def test_texts_cleaned_by_other_rules_are_not_taken_from_the_cache(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"re\u0301sume\u0301 {i},{i % 2}\n" for i in range(10)), encoding="utf-8")
    request = TextRequest("file", data_file=path, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(text_sets, "_READER", "texts-1")
    monkeypatch.setattr(text_sets, "clean", lambda text, stop: ["old"])
    assert load_texts(request).words == ("old",)
    monkeypatch.undo()
    assert load_texts(request).words[0] == "r\u00e9sum\u00e9"


def test_utf16_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,0\nb,1\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"a\.csv is UTF-16, expected UTF-8; save it as UTF-8"):
        load_texts(TextRequest("file", data_file=path, cache_dir=tmp_path))
