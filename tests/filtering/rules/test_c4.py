"""C4's cleaning: its traps one by one, and a slow twin."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.filtering.rules import c4
from alignment.filtering.rules.batch import Batch
from tests.filtering.rules import rule_pack, rule_twins

FIVE = "One thing is said. Two things are said. Three things are. Four things are. Five things are."


def clean(text, **settings):
    found = c4.clean(Batch(rule_pack.records([text]), rule_pack.ENGLISH), **settings)
    return found.reasons[0], found.texts.get(0, text if not found.reasons[0] else None)


def test_prose_passes_as_it_is():
    assert clean(FIVE) == ("", FIVE)


@pytest.mark.parametrize(
    "line",
    [
        "this line has no end mark",
        "this line trails off...",
        "too short.",
        "a word too long: " + "x" * 1001 + ".",
        "please enable JavaScript to go on.",
        "we use cookies to make this better.",
        "read our Privacy Policy before you go.",
        "",
    ],
)
def test_lines_that_are_not_prose_go(line):
    assert clean(f"{FIVE}\n{line}\nAnd the end is here.") == ("", f"{FIVE}\nAnd the end is here.")


def test_lines_are_stripped_and_citations_taken_out():
    assert clean(f"  {FIVE}[12]\nIt is known [citation needed] to all.[edit] ") == ("", f"{FIVE}\nIt is known  to all.")


def test_lorem_ipsum_and_curly_brackets_drop_the_document():
    assert clean(f"{FIVE}\nThen Lorem Ipsum came.")[0] == "lorem_ipsum"
    assert clean(f"{FIVE}\nThe code {{ ends here.")[0] == "curly_bracket"


def test_a_bracket_on_a_line_already_removed_does_not_drop_the_document():
    assert clean(f"{FIVE}\nvar x = {{ }}")[0] == ""
    assert clean(f"{FIVE}\nvar x = {{ }}", terminal_punctuation=False)[0] == "curly_bracket"


def test_fewer_than_five_sentences_drop_the_document():
    assert clean(FIVE.rpartition(" Five")[0])[0] == "too_few_sentences"
    assert clean(FIVE.rpartition(" Five")[0], min_sentences=None)[0] == ""


@pytest.mark.parametrize("end", ['"I know!" he said. Mr. Smith went to the U.S. and back.', "What? No!! Really..."])
def test_sentences_end_at_marks_and_not_at_abbreviations(end):
    sentences = c4._sentences(rule_pack.ENGLISH.sentence_end, True)
    assert sentences.count([end], 100) == rule_twins.sentences(end, rule_pack.ENGLISH.sentence_end) == 3


def test_a_phrase_that_a_citation_hid_is_found():
    assert clean(f"{FIVE}\nplease enable java[1]script to go on.") == ("", FIVE)


def test_phrases_are_compared_in_the_packs_spelling():
    records = rule_pack.records([f"{FIVE}\nA last NOTICE to all."])
    for normaliser, texts in (("casefold", {0: FIVE}), ("", {})):
        pack = dataclasses.replace(rule_pack.ENGLISH, policy_phrases=("notice",), comparison_normaliser=normaliser)
        assert c4.clean(Batch(records, pack)).texts == texts


def test_every_check_can_be_switched_off():
    text = "no mark\nuse cookies\njavascript {\nlorem ipsum [1]\n" + "x" * 1001
    off = dict(terminal_punctuation=False, min_words_per_line=None, max_word_length=None, min_sentences=None)
    off |= dict(remove_citations=False, javascript=False, policy=False, lorem_ipsum=False, curly_bracket=False)
    assert clean(text, **off) == ("", text)


def test_a_document_of_which_nothing_is_left_is_empty():
    assert clean("no mark\nnone here", min_sentences=None)[0] == "empty"
    assert clean(" \n ")[0] == "empty"


def test_removed_lines_are_counted_by_their_check():
    found = c4.clean(Batch(rule_pack.records([FIVE + "\nno mark here\nnor here now\nshort."]), rule_pack.ENGLISH))
    assert found.counters == {"lines_no_end_mark": 2, "lines_few_words": 1}


def test_sentences_of_one_endless_line_are_read_in_parts():
    line = "word " * 5000 + "end. Then more. " * 3
    sentences = c4._sentences(rule_pack.ENGLISH.sentence_end, True)
    assert sentences.count([line], 100) == rule_twins.sentences(line, rule_pack.ENGLISH.sentence_end)


BITS = [
    "A fine sentence stands here.",
    "So it is!",
    '"Is it?" she asked.',
    "  ",
    "\n",
    "\n",
    "[3]",
    "e.g. this",
    "...",
    ".  .",
]
BITS += ["javascript", "Cookie Policy.", "{", "Lorem ipsum", "no end", "\t", "\u00a0", "?!", ") (", "U.S. of A."]
TEXT = st.lists(st.sampled_from(BITS), max_size=30).flatmap(
    lambda bits: st.sampled_from(["", " "]).map(lambda s: s.join(bits))
)


@settings(max_examples=300, deadline=None)
@given(TEXT, st.booleans())
def test_decision_and_text_are_those_of_the_slow_twin(text, terminal_punctuation):
    found = clean(text, terminal_punctuation=terminal_punctuation)
    assert found == rule_twins.clean(text, rule_pack.ENGLISH, terminal_punctuation=terminal_punctuation)


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_cleaning_twice_is_cleaning_once_or_dropping(text):
    reason, once = clean(text, min_sentences=None, remove_citations=False)
    if not reason:
        assert clean(once, min_sentences=None, remove_citations=False) == ("", once)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["Hi.", "so", " ", "  ", "\t", '"', "...", "?", "(no)", "é!", "Mr."]), max_size=25).map(
        "".join
    )
)
def test_sentence_counts_are_those_of_the_slow_twin(line):
    sentences = c4._sentences(rule_pack.ENGLISH.sentence_end, True)
    assert sentences.count([line], 1000) == rule_twins.sentences(line, rule_pack.ENGLISH.sentence_end)
