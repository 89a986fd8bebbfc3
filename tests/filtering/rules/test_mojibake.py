"""Misread UTF-8 comes back as it was; good text is left alone."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.filtering.rules import locales, mojibake
from alignment.filtering.rules.batch import Batch

GOOD = [
    "Café – naïve “quotes” … €",
    "السلام عليكم ورحمة الله",
    "日本語の文",
    "Привет, как дела?",
    "Ãrea e SÃO",
    "Ø 5 mm",
]


def misread(text, encoding):
    """The bytes of `text` as a browser shows them; bytes that the encoding leaves open stand for themselves."""
    return "".join(bytes([b]).decode(encoding, "ignore") or chr(b) for b in text.encode())


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "cp1256"])
@pytest.mark.parametrize("text", GOOD[:4])
def test_text_read_in_another_encoding_comes_back(text, encoding):
    assert misread(text, encoding) != text
    assert mojibake.repair(misread(text, encoding)) == text


def test_text_misread_twice_comes_back():
    assert mojibake.repair(misread(misread("naïve café", "cp1252"), "cp1252")) == "naïve café"


def test_a_line_that_is_right_stays_beside_one_that_is_not():
    assert mojibake.repair("“right”\n" + misread("“wrong”", "cp1252") + "\nplain") == "“right”\n“wrong”\nplain"


@pytest.mark.parametrize("text", GOOD)
def test_good_text_is_left_alone(text):
    assert mojibake.repair(text) == text


@given(st.text(st.sampled_from("aé ñß”“ابطظ،؟§«»\n"), max_size=20))
@settings(max_examples=200, deadline=None)
def test_misread_western_and_arabic_text_comes_back_whatever_it_says(text):
    if mojibake.repair(text) == text:  # a text that is itself valid misread UTF-8 has two readings
        assert mojibake.repair(misread(text, "cp1252")) == text


def test_the_rule_repairs_and_counts():
    texts = ["fine", misread("C’est ça", "cp1252"), "Šťastný"]
    records = [{"id": str(i), "text": text, "source": "", "metadata": {}} for i, text in enumerate(texts)]
    findings = mojibake.rule(Batch(records, locales.load("en")))
    assert findings.texts == {1: "C’est ça"}
    assert findings.counters == {"mojibake_repaired": 1}
    assert findings.reasons == ["", "", ""]


def test_real_text_in_two_languages_is_left_alone(shared_data):
    for path in (
        "text_en_web/c4_demo.jsonl",
        "text_xquad_ar_en/xquad_ar_a.jsonl",
        "text_ar_wikipedia_arcd/arcd_train.jsonl",
    ):
        for line in (shared_data / path).read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["text"]
            assert mojibake.repair(text) == text
