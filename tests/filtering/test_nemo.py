"""NeMo Curator's further rules by worked texts and a twin that counts character by character."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.filtering import locales, nemo
from alignment.filtering.batch import Batch

EN, AR = locales.load("en"), locales.load("ar")
PROSE = "The boats of the village went out in the morning and came back at night."


def check(texts, pack=EN, **settings):
    records = [{"id": str(i), "text": text, "source": "", "metadata": {}} for i, text in enumerate(texts)]
    return nemo.check(Batch(records, pack), **settings)


def slow_shares(text):
    total = max(1, len(text))
    digits = sum(unicodedata.category(c) == "Nd" for c in text)
    plain = sum(unicodedata.category(c)[0] in "LMN" or c in "\n?!,.؟،۔" for c in text)
    return {
        "non_alphanumeric": (len(text) - plain) / total,
        "numbers": digits / total,
        "white_space": sum(map(str.isspace, text)) / total,
        "parentheses": sum(c in "()[]{}⟨⟩" for c in text) / total,
    }


@given(st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=("Cs",)), max_size=40))
@settings(max_examples=200, deadline=None)
def test_shares_are_those_counted_character_by_character(text):
    found = nemo.shares(text)
    assert {name: found[name] for name in slow_shares(text)} == pytest.approx(slow_shares(text))


def test_shares_by_hand():
    assert nemo.shares("ab 12 (c)\n") == pytest.approx(
        {"non_alphanumeric": 4 / 10, "numbers": 2 / 10, "urls": 0, "white_space": 3 / 10, "parentheses": 2 / 10}
    )
    assert nemo.shares("see https://a.example/x now")["urls"] == pytest.approx(19 / 27)
    assert nemo.shares("كَتَبَ")["non_alphanumeric"] == 0  # vowel signs belong to words


@pytest.mark.parametrize(
    ("reason", "text", "setting"),
    [
        ("nemo_non_alphanumeric", "ab *** cd --- ef === gh.", "max_non_alphanumeric"),
        ("nemo_numbers", "In 1999 2000 2001 2002 it was 12345 and 67890.", "max_numbers"),
        ("nemo_urls", "Here https://www.example.org/page is.", "max_urls"),
        ("nemo_white_space", "words\n\n\n\n\nand\n\n\n\nlines.", "max_white_space"),
        ("nemo_parentheses", "abcdefghi(b)cdefghi[d]jklmnop(f)ghi.", "max_parentheses"),
        ("nemo_no_end_mark", "\n".join(["Home and garden"] * 9 + ["The end."]), "max_no_end_mark"),
        ("nemo_boilerplate", f"{PROSE}\n\nAll rights reserved.\n\nRead our Privacy Policy.", "max_boilerplate"),
    ],
)
def test_each_check_drops_its_text_and_only_while_it_is_on(reason, text, setting):
    assert check([PROSE]).reasons == [""]
    findings = check([PROSE, text])
    assert findings.reasons == ["", reason]
    assert findings.values[1] > findings.thresholds[1] > 0
    assert check([text], **{setting: None}).reasons == [""]
    assert check([text], **{setting: findings.values[1]}).reasons == [""]  # the limit itself is allowed


def test_lines_count_as_paragraphs_without_blank_lines_and_a_single_one_says_nothing():
    phrases = ("click here",)
    assert nemo.boilerplate("click here\nprose\nprose\nprose", phrases) == 1 / 4
    assert nemo.boilerplate("click here\nprose\n\nprose", phrases) == 1 / 2
    assert nemo.boilerplate("click here for prose", phrases) == 0


def test_empty_texts_are_dropped_without_a_division():
    assert check(["", " \n\t"]).reasons == ["empty", "empty"]


def test_arabic_page_furniture_is_known_in_any_spelling():
    text = "ذهب الرجل إلى السوق.\n\nجَميع الحقوق محفوظة.\n\nالشروط والاحكام."
    assert check([text], AR).reasons == ["nemo_boilerplate"]
