"""FineWeb's rules: each reason alone, each switch, and a slow twin."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.filtering.rules import fineweb
from alignment.filtering.rules.batch import Batch
from tests.filtering.rules import rule_pack, rule_twins

LONG = "a line that goes on for longer than thirty characters"
FAILING = {
    "line_punct_ratio": "\n".join(f"{LONG} {n}" for n in range(9)),
    "short_line_ratio": "\n".join([LONG + ".", "one.", "two.", "three."]),
    "char_dup_ratio": f"{LONG}.\n{LONG}.\n{LONG} and on.",
    "list_ratio": "\n".join(f"incomprehensibilities-{'x' * 20}{n}." for n in range(30)).replace("-", "_"),
}
SWITCH = {
    "line_punct_ratio": "min_punctuated_lines",
    "short_line_ratio": "max_short_lines",
    "char_dup_ratio": "max_duplicate_characters",
    "list_ratio": "max_newlines_per_word",
}


def check(texts, **settings):
    return fineweb.check(Batch(rule_pack.records(texts), rule_pack.ENGLISH), **settings)


def test_prose_passes():
    assert check([f"{LONG}.\n{LONG} further."]).reasons == [""]


@pytest.mark.parametrize("reason", FAILING)
def test_each_reason_fires_alone_and_can_be_switched_off(reason):
    assert check([FAILING[reason]]).reasons == [reason]
    assert check([FAILING[reason]], **{SWITCH[reason]: None}).reasons == [""]


def test_documents_without_any_end_mark_may_be_kept():
    assert check([FAILING["line_punct_ratio"]], allow_no_punctuation=True).reasons == [""]
    one_of_ten = FAILING["line_punct_ratio"] + f"\n{LONG}."
    assert check([one_of_ten], allow_no_punctuation=True).reasons == ["line_punct_ratio"]


def test_marks_of_another_script_come_from_the_pack():
    pack = dataclasses.replace(rule_pack.ENGLISH, name="ar", terminal_punctuation=("؟", "!?"))
    text = f"{LONG}؟\n{LONG} x؟\n{LONG} y!?"
    assert fineweb.check(Batch(rule_pack.records([text]), pack)).reasons == [""]


@pytest.mark.parametrize("text", ["", "\n", " \n\t"])
def test_texts_without_lines_are_empty(text):
    assert check([text]).reasons == ["empty"]


LINE = st.sampled_from(
    [LONG, LONG + ".", "short.", "short", "", " ", LONG + " more!", "x" * 40, "mid dle length of line?"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(LINE, max_size=25).map("\n".join), min_size=1, max_size=5))
def test_reasons_and_values_are_those_of_the_slow_twin(texts):
    found = check(texts)
    slow = [rule_twins.fineweb(text, rule_pack.ENGLISH.terminal_punctuation) for text in texts]
    assert found.reasons == [reason for reason, _ in slow]
    assert found.values == pytest.approx([value for _, value in slow])
