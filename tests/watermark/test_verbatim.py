import math

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.watermark import verbatim


def test_the_change_of_log_probabilities_by_hand():
    p = np.exp([2.0, 1, 0, -1]) / np.exp([2.0, 1, 0, -1]).sum()
    green = np.array([False, True, False, True])
    mass = np.full(4, p[green].sum())
    assert mass[0] == pytest.approx(0.268941, abs=1e-6)
    change = verbatim.change(green, mass, 2.0)
    np.testing.assert_allclose(change, [-1, 1, -1, 1], atol=1e-6)
    np.testing.assert_allclose(p * np.exp(change), [0.236883, 0.643914, 0.032059, 0.087144], atol=1e-6)
    np.testing.assert_array_equal(verbatim.change(green, mass, 0.0), 0)


def test_perplexities_and_factor_by_hand():
    clean, marked = np.log([0.5, 0.25, 0.8, 0.4]), np.log([0.1, 0.2, 0.7, 0.05])
    assert verbatim.perplexity(clean) == pytest.approx(2.236068, abs=1e-6)
    assert verbatim.perplexity(marked) == pytest.approx(6.147882, abs=1e-6)
    out = verbatim.increase([clean], [marked])
    assert out.delta_of_mean == pytest.approx(1.749416, abs=1e-6) == out.min_of_delta
    assert 10**out.log10_factor == pytest.approx(57.142857, abs=1e-6)
    clean = np.log(np.full(32, 0.6))
    out = verbatim.increase([clean], [clean - np.log(5.1)])
    assert (out.delta_of_mean, 10**out.log10_factor) == (pytest.approx(4.1), pytest.approx(4.388e22, rel=1e-3))


def test_the_two_orders_of_averaging_differ():
    clean, marked = [np.log([0.5]), np.log([0.1])], [np.log([0.25]), np.log([0.1])]
    out = verbatim.increase(clean, marked)
    assert out.delta_of_mean == pytest.approx(14 / 12 - 1) and out.mean_of_delta == pytest.approx(0.5)
    assert (out.delta_of_min, out.min_of_delta) == (pytest.approx(1.0), pytest.approx(0.0))
    with pytest.raises(InputError, match="no text"):
        verbatim.increase([], [])


def test_bounds_by_hand():
    assert verbatim.hard_bound(1e9, 100, 0.5) == pytest.approx(7.889e-22, rel=1e-3)
    most, factor = verbatim.soft_ratio(0.1)
    assert (most, factor) == (pytest.approx(0.428571, abs=1e-6), pytest.approx(1.166667, abs=1e-6))
    assert factor**32 == pytest.approx(138.77, abs=0.01)
    assert verbatim.soft_delta(0.1, 0.1) == pytest.approx(3.66356, abs=1e-5)
    assert verbatim.soft_bound(1, 32, 0.1) == pytest.approx(1 / 138.77, rel=1e-4)
    with pytest.raises(InputError, match=r"epsilon=0\.25"):
        verbatim.soft_ratio(0.25)


def test_the_bounds_hold_for_the_largest_epsilon_that_a_rival_allows():
    most, _ = verbatim.soft_ratio(0.1)
    assert verbatim.soft_epsilon(math.log(most)) == pytest.approx(0.0999, abs=1e-6)
    assert verbatim.soft_ratio(verbatim.soft_epsilon(-3.0))[0] > math.exp(-3.0)
    assert verbatim.soft_epsilon(0.0) is None and verbatim.soft_epsilon(800.0) is None
    assert 0.249 < verbatim.soft_epsilon(-700.0) < 0.25


@pytest.mark.parametrize(
    ("delta", "values"),
    [(2, [0.543, 0.427, 0.124, 0.0136, 0.0014]), (5, [5.132, 4.334, 1.820, 0.315, 0.036])]
    + [(10, [73.21, 63.27, 31.36, 9.515, 2.465])],
)
def test_expected_increase_of_the_closed_form(delta, values):
    ours = [verbatim.expected_increase(delta, 0.5, target=p) for p in (None, 0.5, 0.9, 0.99, 0.999)]
    np.testing.assert_allclose(ours, values, rtol=0.03, atol=5e-4)
    ratio = [1 + verbatim.expected_increase(10, 0.5, length=n) for n in (32 * 1.3, 256 * 1.3)]
    assert 1.2 < ratio[0] / ratio[1] < 1.4


def test_damaged_log_probabilities_are_refused_by_name():
    for wrong in ([math.nan], [-math.inf], [0.5], []):
        with pytest.raises(InputError, match="record 7: its log-probabilities"):
            verbatim.check_logps(np.array(wrong), "record 7")


def slow_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1, slow_distance(a[1:], b[1:]) + (a[0] != b[0]))


@pytest.mark.parametrize(("a", "b"), [("kitten", "sitting"), ("", "abc"), ("flaw", "lawn"), ("same", "same")])
def test_edit_similarity_is_that_of_the_recursion(a, b):
    assert verbatim.edit_similarity(a, b) == pytest.approx(1 - slow_distance(a, b) / max(len(a), len(b)))
    assert verbatim.edit_similarity([*map(ord, a)], [*map(ord, b)]) == verbatim.edit_similarity(a, b)


def test_bleu_is_one_for_equal_texts_and_falls_with_them():
    gold = ["the", "cat", "sat", "on", "the", "mat"]
    assert verbatim.bleu(gold, gold) == pytest.approx(1)
    assert 0 < verbatim.bleu(gold[:4], gold) < verbatim.bleu(gold[:5], gold) < 1
    assert verbatim.bleu(["dog"], gold) == 0 == verbatim.bleu([], gold)
    # shared of 4 words, 3 pairs, 2 triples and 1 four: 3, 2, 1, 0; one is added to both but for words
    assert verbatim.bleu(list("abcx"), list("abcd")) == pytest.approx((3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
