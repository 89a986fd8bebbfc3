"""Arabic in one spelling, by worked strings, a twin letter by letter, and real diacritised text."""

import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignment.filtering.rules import arabic

ARABIC = st.text(
    st.one_of(
        st.characters(min_codepoint=0x600, max_codepoint=0x6FF),
        st.sampled_from("ابتهويى أإآٱة ﻻ ﷲ ﷺ ـ ًٌٍَُِّْٰٓٔ \u200c\u200f x1١"),
    ),
    max_size=30,
)
REMOVED = "\u061c\u0640\u200c\u200d\u200f\ufeff" + "".join(map(chr, range(0x64B, 0x653))) + "\u0670"


def slow_normalise(text):
    """Letter by letter, until nothing changes."""
    found = "".join({"أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا"}.get(c, c) for c in text if c not in REMOVED)
    found = unicodedata.normalize("NFKC", found)
    return found if found == text else slow_normalise(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("السَّلَامُ عَلَيْكُمْ", "السلام عليكم"),
        ("العـــربية", "العربية"),
        ("إلى أن آمن ٱلله", "الى ان امن الله"),
        ("هٰذا", "هذا"),
        ("ﻻ ﷲ", "لا الله"),
        ("\u200fمرحبا\ufeff", "مرحبا"),
        ("على علي مدرسة", "على علي مدرسة"),
        ("a ＡＢ１ é", "a AB1 é"),
        ("plain ascii", "plain ascii"),
        ("", ""),
    ],
)
def test_worked_strings_come_out_in_one_spelling(text, expected):
    assert arabic.normalise(text) == expected


def test_letters_that_tell_words_apart_are_merged_only_on_request():
    assert arabic.normalise("على مدرسة أم", ya=True, ta_marbuta=True) == "علي مدرسه ام"
    assert arabic.normalise("سلامی", ya=True) == "سلامي"
    assert arabic.normalise("أُمّ", alef=False) == "أم"


@given(ARABIC)
@example("ا\u0640\u0654")  # without the stroke, alef and hamza compose to a letter that becomes alef again
@settings(max_examples=300, deadline=None)
def test_normalising_twice_changes_nothing_and_agrees_letter_by_letter(text):
    found = arabic.normalise(text)
    assert arabic.normalise(found) == found
    assert not set(found) & set(REMOVED)
    assert found == slow_normalise(text)


def test_real_text_loses_its_vowel_signs_and_nothing_else(shared_data):
    text = (shared_data / "text_ar_tashkeela" / "tashkeela_val.txt").read_text(encoding="utf-8")
    plain = re.sub("[\u064b-\u0652\u0670\u0640]", "", text)
    assert len(plain) < 0.65 * len(text)  # nearly every letter carries a sign
    assert arabic.normalise(text, alef=False) == unicodedata.normalize("NFKC", plain)
    assert arabic.normalise(text) == arabic.normalise(plain)


def test_stems_are_looked_for_behind_the_article_and_particles():
    assert "كتاب" in arabic.stems("والكتاب") and "كتاب" in arabic.stems("للكتاب")
    assert arabic.stems("وفي") == [] and arabic.stems("مدرسة") == []
