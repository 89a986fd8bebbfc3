"""Words: the splitter's conventions, and columns that say the same whatever batch a document is in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.filtering.rules import splitter, words

TEXTS = ["Don't panic, it's 10am.", "", "U.S. e.g. this: a well-known (site) www.site.org/a?b=1 :)", "…\x00 ### ؟"]


@pytest.mark.parametrize(
    ("piece", "parts"),
    [
        ("word", "word"),
        ("end.", "end ."),
        ("(quoted),", "( quoted ) ,"),
        ("don't", "do n't"),
        ("They’re", "They ’re"),
        ("cannot", "can not"),
        ("its", "its"),
        ("Anna's.", "Anna 's ."),
        ("10am", "10 am"),
        ("5km,", "5 km ,"),
        ("$5.00", "$ 5.00"),
        ("1,000", "1,000"),
        ("50%", "50 %"),
        ("U.S.", "U.S."),
        ("e.g.", "e.g."),
        ("(e.g.)", "( e.g. )"),
        ("Mr.", "Mr."),
        ("A.", "A."),
        ("NATO.", "NATO ."),
        ("well-known", "well - known"),
        ("a/b", "a / b"),
        ("and/or", "and/or"),
        ("end.Next", "end . Next"),
        ("wait...what", "wait ... what"),
        ("http://a.org/b?c=d.", "http://a.org/b?c=d ."),
        ("me@site.com,", "me@site.com ,"),
        ("hi:)", "hi :)"),
        ("C++", "C++"),
        ("3-4", "3 - 4"),
        ("-5", "-5"),
        ("😀😀", "😀 😀"),
        ("نعم،", "نعم ،"),
    ],
)
def test_splitter_parts_a_piece_as_spacy_does(piece, parts):
    assert splitter.split(piece) == tuple(parts.split())


def test_contractions_are_parted_in_english_only():
    assert splitter.split("hes", english=True) == ("he", "s")
    assert splitter.split("hes", english=False) == ("hes",)


@given(st.text(alphabet="abZ.'’,-:/@…!?#0 5k😀ع\u0301", min_size=1, max_size=30))
def test_splitter_loses_no_character_of_any_piece(text):
    for piece in text.split():
        assert "".join(splitter.split(piece)) == piece
        assert all(splitter.split(piece))


@pytest.mark.parametrize(
    "piece", ["!" * 20_000, "..!" * 7_000, "a.@" * 7_000, "-" * 20_000, "a" * 100_000, ":)" * 9_000]
)
def test_splitter_loses_no_character_of_a_piece_without_end(piece):
    assert "".join(splitter.split(piece)) == piece


def strings(columns, position):
    """One document's words as text."""
    names = list(columns.vocabulary.words)
    return [names[i] for i in columns.ids_W[columns.starts_N1[position] : columns.starts_N1[position + 1]].tolist()]


def test_columns_hold_each_documents_words_in_order():
    columns = words.columns(TEXTS)
    for position, text in enumerate(TEXTS):
        assert strings(columns, position) == [word for piece in text.split() for word in splitter.split(piece)]
    assert columns.counts_N.tolist() == [len(strings(columns, i)) for i in range(4)]
    assert columns.document_W.tolist() == np.repeat(range(4), columns.counts_N).tolist()
    assert columns.length_W.tolist() == [len(word) for i in range(4) for word in strings(columns, i)]


def test_kinds_tell_marks_words_and_letters_apart():
    columns = words.columns(["word 42 ... $ a. ؟ \x01 ك"])
    kinds = columns.vocabulary.kind(columns.ids_W)
    assert [bool(kind & words.IS_WORD) for kind in kinds] == [True, True, False, False, True, False, False, True]
    assert [bool(kind & words.HAS_LETTER) for kind in kinds] == [True, False, False, False, True, False, False, True]


def test_taking_documents_keeps_their_words():
    columns = words.columns(TEXTS).take([2, 0, 1])
    assert [strings(columns, i) for i in range(3)] == [strings(words.columns(TEXTS), i) for i in (2, 0, 1)]


def test_vocabulary_starts_anew_when_it_has_grown_large(monkeypatch):
    monkeypatch.setattr(words, "MAX_PIECES", 3)
    monkeypatch.setattr(words, "_VOCABULARIES", {})
    first = words.columns(["one two three four"])
    second = words.columns(["four five"])
    assert first.vocabulary is not second.vocabulary
    assert strings(first, 0) == ["one", "two", "three", "four"] and strings(second, 0) == ["four", "five"]
