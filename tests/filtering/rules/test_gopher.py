"""Gopher's quality heuristics: each reason alone, each switch, and a slow twin."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.filtering.rules import gopher
from alignment.filtering.rules.batch import Batch
from tests.filtering.rules import rule_pack, rule_twins

PROSE = "the house that we have with us stands on a hill and looks to the sea of blue water near our town\n" * 4


def quality(texts, **settings):
    return gopher.quality(Batch(rule_pack.records(texts), rule_pack.ENGLISH), **settings)


FAILING = {
    "gopher_short_doc": "the house of the king and that with it",
    "gopher_long_doc": PROSE * 1300,
    "gopher_below_avg_threshold": "a to be of it we in on us at " * 10,
    "gopher_above_avg_threshold": "the extraordinarily incomprehensible internationalisation of misunderstandings "
    * 20,
    "gopher_too_many_hashes": PROSE + "# " * 20,
    "gopher_too_many_ellipsis": PROSE + "and ... the " * 20,
    "gopher_too_many_bullets": "\n".join("- the name of that thing and" for _ in range(20)),
    "gopher_too_many_end_ellipsis": "\n".join(f"{PROSE.splitlines()[0]} ..." for _ in range(4)),
    "gopher_below_alpha_threshold": PROSE + "12 345 6789 " * 15,
    "gopher_enough_stop_words": "house hill water town king queen road river " * 10,
}
SWITCH = {
    "gopher_short_doc": "min_words",
    "gopher_long_doc": "max_words",
    "gopher_below_avg_threshold": "min_mean_word_length",
    "gopher_above_avg_threshold": "max_mean_word_length",
    "gopher_too_many_hashes": "max_symbol_ratio",
    "gopher_too_many_ellipsis": "max_symbol_ratio",
    "gopher_too_many_bullets": "max_bullet_lines",
    "gopher_too_many_end_ellipsis": "max_ellipsis_lines",
    "gopher_below_alpha_threshold": "min_alphabetic_words",
    "gopher_enough_stop_words": "min_stop_words",
}


def test_prose_passes():
    assert quality([PROSE]).reasons == [""]


@pytest.mark.parametrize("reason", FAILING)
def test_each_reason_fires_alone_and_can_be_switched_off(reason):
    assert quality([FAILING[reason]]).reasons == [reason]
    assert quality([FAILING[reason]], **{SWITCH[reason]: None}).reasons != [reason]


def test_values_and_thresholds_are_reported():
    found = quality([FAILING["gopher_short_doc"], PROSE])
    assert found.values == [9, 0] and found.thresholds == [50, 0]


def test_stop_words_are_case_sensitive_and_counted_once():
    assert quality(["The Of And House " * 20 + "the the the " * 20]).reasons == ["gopher_enough_stop_words"]


def test_stop_words_are_compared_in_the_packs_spelling():
    pack = dataclasses.replace(rule_pack.ENGLISH, stop_normaliser="casefold")
    text = "The Of And House " * 20 + "the the the " * 20
    assert gopher.quality(Batch(rule_pack.records([text]), pack)).reasons == [""]
    assert quality([text]).reasons == ["gopher_enough_stop_words"]


@pytest.mark.parametrize("text", ["", "\n", " \u2003 "])
def test_texts_without_words_are_empty_with_every_check_off(text):
    off = dict.fromkeys(SWITCH.values())
    assert quality([text], **off).reasons == ["empty"]
    assert quality(["x"], **off).reasons == [""]


PIECES = [
    "the",
    "of",
    "and",
    "house",
    "#",
    "...",
    "end…",
    "42",
    "- item",
    "• item",
    "word.",
    "\n",
    "\n",
    "internationalisation",
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=120).map(" ".join)
LIST = st.lists(st.sampled_from(["- the item of", "• and", " word ...", "the word of it…  ", "x y"]), max_size=40).map(
    "\n".join
)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT | LIST, min_size=1, max_size=5))
def test_reasons_and_values_are_those_of_the_slow_twin(texts):
    found = quality(texts)
    slow = [rule_twins.quality(text, rule_pack.ENGLISH.stop_words) for text in texts]
    assert found.reasons == [reason for reason, _ in slow]
    assert found.values == pytest.approx([value for _, value in slow])
