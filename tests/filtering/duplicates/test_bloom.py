"""The Bloom filter: sizes, errors, and paragraphs in document order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from alignment.filtering.duplicates import bloom


def random_keys(num, seed):
    return np.random.default_rng(seed).integers(0, 2**64 - 1, (num, 2), np.uint64)


def slow_add(seen, keys):
    """One key at a time, with Python integers."""
    marks = []
    for first, step in keys.tolist():
        probes = [(first + i * (step | 1)) % 2**64 % seen.num_bits for i in range(seen.num_probes)]
        marks.append(all(seen.bytes[p // 8] >> (p % 8) & 1 for p in probes))
        for p in probes:
            seen.bytes[p // 8] |= 1 << (p % 8)
    return marks


def test_a_billion_keys_at_one_in_a_thousand_take_1_80_gigabytes():
    assert bloom.num_bits(10**9, 1e-3) / 8 / 1e9 == pytest.approx(1.80, abs=0.005)


def test_what_was_added_is_always_found():
    seen, keys = bloom.Filter(1_000), random_keys(1_000, 0)
    seen.add(keys)
    assert seen.contains(keys).all() and seen.add(keys).all()


@pytest.mark.parametrize("error", [1e-1, 1e-2, 1e-3])
def test_a_full_filter_mistakes_new_keys_at_the_rate_it_was_made_for(error):
    seen, num = bloom.Filter(20_000, error), 100_000
    seen.add(random_keys(20_000, 1))
    rate = seen.contains(random_keys(num, 2)).mean()
    assert abs(rate - error) < 5 * (error / num) ** 0.5 + 0.05 * error  # 5 %: probes come in whole numbers


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=60), st.integers(1, 60))
def test_batches_cut_anywhere_give_what_one_key_at_a_time_gives(numbers, batch):
    keys = random_keys(16, 3)[numbers]
    fast, slow = bloom.Filter(8, 0.2), bloom.Filter(8, 0.2)  # so small that false finds are common
    marks = np.concatenate([fast.add(keys[i : i + batch]) for i in range(0, len(keys), batch)])
    assert marks.tolist() == slow_add(slow, keys)
    np.testing.assert_array_equal(fast.bytes, slow.bytes)
    assert fast.num_added == len(keys) - marks.sum()


def test_the_first_occurrence_of_a_paragraph_stays_and_later_ones_are_marked():
    seen = bloom.Filter(100)
    first, second = bloom.paragraphs(seen, ["a b\n\nc d\na  b", "c d\nnew one\n\n"])
    assert first == [False, False, False, True]
    assert second == [True, False, False, False]
    assert bloom.paragraphs(seen, ["new one"]) == [[True]]
    assert bloom.without("c d\nnew one\n\n", second) == "new one\n\n"


def test_short_lines_can_be_left_alone():
    seen = bloom.Filter(100)
    text = "Share\na longer line of text"
    assert bloom.paragraphs(seen, [text, text], min_words=3) == [[False, False], [False, True]]


def test_texts_without_paragraphs_have_nothing_to_mark():
    assert bloom.paragraphs(bloom.Filter(10), ["", "\n \n", ""]) == [[False], [False] * 3, [False]]
    assert bloom.paragraphs(bloom.Filter(10), []) == []


def test_impossible_filters_are_refused():
    for options in (dict(capacity=0), dict(capacity=5, error=0.0), dict(capacity=5, error=1.0)):
        with pytest.raises(InputError, match="capacity="):
            bloom.Filter(**options)
