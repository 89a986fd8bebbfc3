import itertools

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.watermark import green, torch_lists
from alignment.watermark.text_marks import Mark

KEY = 15_485_863


def kgw(**changes):
    return Mark(**dict(scheme="kgw", key=KEY, vocab_size=20, gamma=0.5, parity="kgw") | changes)


def listed(mark, *window):
    return green.torch_list(mark, window).tolist()


@pytest.mark.parametrize(
    ("prev", "begins"),
    [
        (0, [4, 5, 13, 19, 7, 14, 3, 6, 9, 17]),
        (1, [18, 4, 13, 2, 3]),
        (5, [8, 10, 18, 5, 2, 16, 19, 4, 0, 14]),
        (12, [12, 19, 8, 10, 11]),
        (100, [9, 14, 6, 18, 1]),
    ],
)
def test_lists_of_lm_watermarking(prev, begins):
    assert listed(kgw(), prev)[: len(begins)] == begins


@pytest.mark.parametrize(
    ("vocab_size", "gamma", "num", "begins", "total"),
    [
        (50_257, 0.25, 12_564, [43784, 36394, 13796, 8540, 22640, 47297, 16351, 12216], 315_740_683),
        (32_000, 0.5, 16_000, [25608, 8373, 24474, 6422], 256_146_926),
    ],
)
def test_lists_of_real_vocabularies(vocab_size, gamma, num, begins, total):
    ids = green.torch_list(kgw(vocab_size=vocab_size, gamma=gamma), (5,))
    assert (len(ids), ids.sum(), ids[: len(begins)].tolist()) == (num, total, begins)


def test_lists_of_markllm_go_through_a_table():
    prf = [18, 4, 13, 2, 3, 16, 1, 6, 11, 12, 0, 19, 10, 9, 15, 8, 5, 7, 14, 17]
    assert torch_lists.table(KEY, 20).tolist() == prf
    mark = kgw(parity="markllm")
    assert listed(mark, 0) == [15, 19, 18, 10, 11, 12, 8, 6, 16, 13]
    assert listed(mark, 1) == [3, 15, 12, 8, 5, 16, 17, 11, 2, 6]
    assert listed(mark, 5) == [3, 17, 11, 18, 9, 6, 8, 13, 16, 7]
    assert listed(mark, 12) == [17, 0, 8, 7, 4, 10, 1, 13, 9, 3]
    ids = green.torch_list(kgw(parity="markllm", vocab_size=32_000), (5,))
    assert torch_lists.table(KEY, 32_000)[5] == 24_091
    assert (ids[:4].tolist(), len(ids), ids.sum()) == ([28131, 31308, 11765, 20195], 16_000, 256_962_467)


def test_self_hash_of_transformers():
    mark = kgw(parity="hf", gamma=0.25, width=2, seeding="self")
    assert torch_lists.table(KEY)[:3].tolist() == [138280, 994103, 467886]
    assert listed(mark, 3, 5) == [5, 10, 8, 19, 3]
    assert listed(mark, 5, 3) == [5, 19, 10, 12, 4]
    assert listed(mark, 1, 12) == [2, 8, 12, 13, 3]


@pytest.mark.parametrize(
    ("key", "gamma", "ids"),
    [
        (0, 0.5, {0, 2, 4, 5, 9, 11, 14, 15, 17, 19}),
        (0, 0.25, {0, 2, 14, 17, 19}),
        (1, 0.5, {1, 3, 4, 7, 8, 12, 13, 14, 15, 17}),
        (KEY, 0.5, {2, 4, 7, 11, 13, 15, 16, 17, 18, 19}),  # MarkLLM's key
    ],
)
def test_the_list_of_unigram(key, gamma, ids):
    mask = green.unigram_mask(Mark("unigram", key, 20, gamma=gamma))
    assert set(np.flatnonzero(mask)) == ids


@pytest.mark.parametrize(
    ("key", "vocab_size", "num", "total"), [(0, 50_257, 25_128, 631_712_378), (KEY, 32_000, 16_000, 256_174_589)]
)
def test_unigram_of_real_vocabularies(key, vocab_size, num, total):
    ids = np.flatnonzero(green.unigram_mask(Mark("unigram", key, vocab_size)))
    assert (len(ids), ids.sum()) == (num, total)


@pytest.mark.parametrize("seed", range(4))
def test_an_entry_is_followed_to_where_the_list_has_it(seed):
    size, num = 57, 20
    inside = set(torch_lists.first(size, num, seed).tolist())
    assert inside == {v for v in range(size) if torch_lists.holds(size, num, seed, v)}
    assert sorted(torch_lists.first(size, size, seed)) == list(range(size))


IDS = [5, 8, 10, 18, 5, 8, 5, 8, 3, 1, 12, 7]
MARKS = [
    kgw(parity="fast", width=2),
    kgw(parity="fast", width=2, seeding="min"),
    kgw(width=2),
    kgw(width=2, seeding="min"),
    kgw(parity="markllm", width=2),
    kgw(parity="markllm", width=2, seeding="min"),
    Mark("unigram", 3, 20),
]


@pytest.mark.parametrize("mark", MARKS, ids=str)
def test_flags_of_a_text_are_those_of_whole_masks(mark):
    C = mark.num_context
    contexts = np.array([IDS[t - C : t] for t in range(C, len(IDS))]).reshape(len(IDS) - C, C)
    masks = green.masks(mark, contexts)
    expected = [bool(row[token]) for row, token in zip(masks, IDS[C:])]
    assert green.flags(mark, IDS).tolist() == expected
    assert len(set(expected)) == 2


def test_self_hash_scores_a_token_by_the_list_that_it_seeds_itself():
    mark = kgw(parity="hf", gamma=0.25, width=2, seeding="self")
    expected = [b in listed(mark, a, b) for a, b in itertools.pairwise(IDS)]
    assert green.flags(mark, IDS).tolist() == expected


def test_lists_of_fast_hold_about_gamma_of_the_vocabulary():
    for seeding in ("left", "min", "self"):
        mark = Mark("kgw", 9, 4_000, gamma=0.25, width=2, seeding=seeding)
        mask = green.masks(mark, np.array([[3, 7], [7, 3]])[:, : mark.num_context])
        assert abs(mask.mean() - 0.25) < 0.03


def test_ids_of_another_vocabulary_and_short_texts_are_refused():
    with pytest.raises(InputError, match="token 20 is outside the mark's vocabulary of 20"):
        green.flags(kgw(), [1, 20])
    with pytest.raises(InputError, match="1 tokens: a token is scored after 1 others"):
        green.flags(kgw(), [1])
