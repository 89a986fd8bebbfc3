import random

import pytest

from alignment.errors import InputError
from alignment.filtering.duplicates import near

PAIR = ("how do I safely store paint at home", "how do i safely store paint at work")


def shingles(text):
    words = text.lower().split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def jaccard(a, b):
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def test_two_requests_of_the_egida_sheet_are_one_at_seven_tenths_and_two_at_three_quarters():
    assert jaccard(*PAIR) == pytest.approx(5 / 7)
    assert near.removed(PAIR) == {1: 0}
    assert near.removed(PAIR, threshold=0.75) == {}


def slow_removed(texts, threshold):
    out, staying = {}, []
    for i, text in enumerate(texts):
        like = [j for j in staying if jaccard(text, texts[j]) >= threshold]
        if like:
            out[i] = like[0]
        else:
            staying.append(i)
    return out


def test_bands_find_what_comparing_all_texts_finds():
    rng = random.Random(0)
    texts = []
    for _ in range(40):
        words = [f"w{rng.randrange(100)}" for _ in range(12)]
        texts += [" ".join(words), " ".join(words[:-1]), " ".join([*words[:-1], "other"])]
    assert near.removed(texts) == slow_removed(texts, 0.7)


def test_texts_that_differ_in_a_number_alone_are_compared_with_their_numbers():
    texts = [f"open the blue door for guest {i}" for i in range(5)]  # 4 of 6 shingles are shared
    assert near.removed(texts) == {} and near.removed(texts, threshold=0.6) == dict.fromkeys(range(1, 5), 0)


def test_short_and_empty_texts():
    assert near.removed(["yes", "Yes!", "", " ", "no"]) == {1: 0}


def test_a_threshold_out_of_range_is_refused():
    with pytest.raises(InputError, match="threshold=0 "):
        near.removed(PAIR, threshold=0)
