"""Repeated lines, paragraphs and n-grams: the specification's worked numbers, and a slow twin on random texts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.filtering.rules import repetition, words
from alignment.filtering.rules.batch import Batch
from tests.filtering.rules import rule_pack, rule_twins

FOUR_LINES = "alpha line\nbeta line\nalpha line\nalpha line"


def check(texts, **settings):
    return repetition.check(Batch(rule_pack.records(texts), rule_pack.ENGLISH), **settings)


def test_worked_number_of_duplicate_lines():
    found = check([FOUR_LINES])
    assert found.reasons == ["dup_line_frac"] and found.values == [0.5] and found.thresholds == [0.3]


def test_worked_number_of_duplicate_line_characters_fires_next():
    found = check([FOUR_LINES], max_duplicate_lines=None)
    assert found.reasons == ["dup_line_char_frac"] and found.values == [pytest.approx(20 / 42)]


def test_worked_number_of_the_top_pair():
    found = check(["a b a b a b c"])
    assert found.reasons == ["top_2_gram"] and found.values == [pytest.approx(9 / 13)]


def test_a_single_pair_counts_as_its_own_top_pair():
    assert check(["hello world"]).reasons == ["top_2_gram"]


def test_blank_lines_make_paragraphs():
    found = check(["one thing\n\none thing\n\n\none thing\n\nanother"])
    assert found.reasons == ["dup_para_frac"] and found.values == [0.5]
    assert check(["\n\n".join(["one thing said at length"] * 2 + list("abcdef"))]).reasons == ["dup_para_char_frac"]


def test_duplicate_pairs_of_five_step_over_what_they_count():
    words_of_five = "one two three four five "
    text = words_of_five * 3 + "x"  # greedy: the second and third occurrence, 19 characters each, of 73
    found = check([text], top_n_grams=())
    assert found.reasons == ["duplicated_5_n_grams"] and found.values == [pytest.approx(2 * 19 / len(text))]


def test_the_earliest_of_equally_frequent_pairs_is_the_top_one():
    text = "aa bb cc aa bb dd eeeeee ffffff gg eeeeee ffffff hh"
    top = repetition._Grams(words.columns([text, text + " eeeeee ffffff"])).top(2)
    assert top.tolist() == [2 * len("aa bb"), 3 * len("eeeeee ffffff")]


def test_orders_may_come_in_any_order():
    texts = ["a b c d e f g " * 3 + "h i j", "x y " + "a b c d e f g " * 2]
    grams = repetition._Grams(words.columns(texts))
    sizes = np.array([len(text) for text in texts])
    found = {n: grams.duplicated(n, sizes, 0.0).tolist() for n in (7, 5, 6)}
    assert found == {7: [14, 7], 5: [10, 5], 6: [12, 6]}
    assert [grams.top(n).tolist() for n in (3, 1, 2)] == [[15, 10], [3, 2], [9, 6]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_duplicate_lines", "a longer first line of this\nx\nx\nx\ny"),
        ("max_duplicate_line_characters", "some line said twice\nsome line said twice\nx y z\nq r s\nt u v"),
        ("max_duplicate_paragraphs", "a longer paragraph stands here\n\nx\n\nx\n\nx\n\ny"),
        ("max_duplicate_paragraph_characters", "a thing said twice\n\na thing said twice\n\nx y z\n\nq r s\n\nt u v"),
    ],
)
def test_none_switches_a_share_off(name, text):
    everything_else_off = dict(
        max_duplicate_lines=None,
        max_duplicate_paragraphs=None,
        max_duplicate_line_characters=None,
        max_duplicate_paragraph_characters=None,
        top_n_grams=(),
        duplicate_n_grams=(),
    )
    assert check([text], **everything_else_off).reasons == [""]
    limit = 0.3 if name in ("max_duplicate_lines", "max_duplicate_paragraphs") else 0.2
    assert check([text], **everything_else_off | {name: limit}).reasons != [""]


@pytest.mark.parametrize("text", ["", " ", "\n", "\n\n \t\n"])
def test_texts_without_words_are_empty(text):
    assert check([text, "x"]).reasons[0] == "empty"


# Few different words and lines, so that every kind of repetition comes up.
TEXT = st.lists(st.sampled_from(["a", "bb", "don't", "long-word", "\n", "\n\n", "...", "Mr."]), max_size=60).map(
    " ".join
)
LINES = st.lists(st.sampled_from(["a line", "another line here", "", "x", "the last line."]), max_size=20).map(
    "\n".join
)
LONG = st.lists(st.integers(0, 25).map(lambda n: f"word{n}"), min_size=40, max_size=160).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT | LINES | LONG, min_size=1, max_size=6))
def test_reasons_and_values_are_those_of_the_slow_twin(texts):
    found = check(texts)
    slow = [rule_twins.repetition(text) for text in texts]
    assert found.reasons == [reason for reason, _ in slow]
    assert found.values == pytest.approx([value for _, value in slow])


@settings(max_examples=60, deadline=None)
@given(st.lists(LONG | TEXT, min_size=1, max_size=4), st.integers(1, 4), st.integers(5, 7))
def test_n_grams_of_any_order_are_those_of_the_slow_twin(texts, top, duplicate):
    found = check(texts, top_n_grams=((top, 0.05),), duplicate_n_grams=((duplicate, 0.03),))
    slow = [rule_twins.repetition(text, top=((top, 0.05),), duplicate=((duplicate, 3),)) for text in texts]
    assert list(zip(found.reasons, found.values)) == [(reason, pytest.approx(value)) for reason, value in slow]
