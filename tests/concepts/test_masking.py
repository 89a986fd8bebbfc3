"""Words that go along with a concept, and texts without them."""

import math
import string

import pytest

from alignment.concepts import masking

TEXTS = ["Soup now", "hot soup.", "soup, please", "calm night", "SOUP at home", "long walk", "old song", "new day"]
HAS = [True] * 4 + [False] * 4


def test_pmi_worked_by_hand():
    (word,) = masking.ranked(TEXTS, HAS, min_count=1)
    assert (word.word, word.count) == ("soup", 4)
    assert word.pmi == pytest.approx(math.log(0.375 / 0.25)) == pytest.approx(0.405465, abs=1e-6)


def test_two_spellings_in_one_text_count_once_here_and_twice_in_the_released_program():
    texts = ["Soup soup.", *TEXTS[1:]]
    assert masking.ranked(texts, HAS, min_count=1)[0].pmi == pytest.approx(0.405465, abs=1e-6)
    released = masking.ranked(texts, HAS, min_count=1, counts_spellings=True)[0]
    assert released.pmi == pytest.approx(math.log(1.6)) == pytest.approx(0.470004, abs=1e-6)


def test_rare_words_are_left_out_and_ties_go_to_the_frequent_word_and_then_by_the_alphabet():
    texts = ["b a c", "b a c", "c", "b a c", "b a c", "c"]
    has = [True, True, True, False, False, False]
    assert [word.word for word in masking.ranked(texts, has, min_count=1)] == ["c", "a", "b"]
    assert [word.word for word in masking.ranked(texts, has, min_count=5)] == ["c"]
    assert masking.ranked(["a"], [True], min_count=1) == []  # in no text without the concept


def test_after_masking_no_selected_word_is_left_whatever_its_case_and_punctuation():
    masked = [masking.mask(f"{text}  (Soup!)", {"soup"}, "[MASK]") for text in TEXTS]
    left = {word.lower().strip(string.punctuation) for text in masked for word in text.split()}
    assert "soup" not in left and "mask" in left
    assert masking.mask("hot  soup.\nnow", {"soup"}, "#") == "hot  #\nnow"
