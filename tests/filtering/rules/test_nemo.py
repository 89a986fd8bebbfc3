"""NeMo Curator's further rules by worked texts and a twin that counts character by character."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.filtering.rules import locales, nemo
from alignment.filtering.rules.batch import Batch

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
    assert nemo.boilerplate("click here\nprose\nprose\nprose", phrases) == [True, False, False, False]
    assert nemo.boilerplate("click here\nprose\n\nprose", phrases) == [True, False]
    assert nemo.boilerplate("click here for prose", phrases) == []


def test_empty_texts_are_dropped_without_a_division():
    assert check(["", " \n\t"]).reasons == ["empty", "empty"]


def test_arabic_page_furniture_is_known_in_any_spelling():
    text = "ذهب الرجل إلى السوق.\n\nجَميع الحقوق محفوظة.\n\nالشروط والاحكام."
    assert check([text], AR).reasons == ["nemo_boilerplate"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{PROSE}\n\n{PROSE}\n\n{PROSE}\n\nAll rights reserved.", "nemo_boilerplate_at_ends"),
        (f"Click here.\n{PROSE}\n{PROSE}\n{PROSE}", "nemo_boilerplate_at_ends"),  # lines, as there is no blank one
        (f"{PROSE}\n\nAll rights reserved.\n\n{PROSE}", ""),  # in the middle
        (f"{PROSE} All rights reserved.", ""),  # a single paragraph
        (f"Click here.\n\n{PROSE}\n\nAll rights reserved.", "nemo_boilerplate"),  # the share comes first
    ],
)
def test_a_phrase_at_either_end_drops_only_where_that_is_asked_for(text, reason):
    assert check([text], boilerplate_at_ends=True).reasons == [reason]
    assert check([text]).reasons == [reason if reason == "nemo_boilerplate" else ""]


def test_ends_are_looked_at_without_the_share_and_by_the_packs_phrases():
    at_both = f"Click here.\n\n{PROSE}\n\nAll rights reserved."
    findings = check([at_both, PROSE], max_boilerplate=None, boilerplate_at_ends=True)
    assert findings.reasons == ["nemo_boilerplate_at_ends", ""]
    assert (findings.values[0], findings.thresholds[0]) == (2, 0)
    arabic = "ذهب الرجل إلى السوق.\n\nثم عاد إلى البيت.\n\nجَميع الحقوق محفوظة."
    assert check([arabic], AR, boilerplate_at_ends=True).reasons == ["nemo_boilerplate_at_ends"]
    assert check([arabic], AR).reasons == [""]
