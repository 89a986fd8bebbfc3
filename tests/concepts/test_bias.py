"""The worked numbers of Bias@C, its three forms, its symmetries, and what becomes of empty cells."""

import itertools

import numpy as np
import pytest

from alignment.concepts import bias
from alignment.errors import InputError


def texts(right_GK, total_GK):
    """(right, labels, has) of texts with these counts of right answers."""
    right, labels, has = [], [], []
    for g, (right_K, total_K) in enumerate(zip(right_GK, total_GK)):
        for k, (num_right, num) in enumerate(zip(right_K, total_K)):
            right += [1] * num_right + [0] * (num - num_right)
            labels += [k] * num
            has += [bool(g)] * num
    return np.array(right), np.array(labels), np.array(has)


def measured(right_GK, total_GK, **options):
    return bias.measure(*texts(right_GK, total_GK), num_labels=len(total_GK[0]), **options)


def of_gaps(gap_K):
    """Bias@C as the paper has it: the mean of gap_i - gap_j over pairs of labels i > j."""
    return np.mean([gap_K[i] - gap_K[j] for j, i in itertools.combinations(range(len(gap_K)), 2)])


def test_two_labels_worked_by_hand():
    out = measured([[18, 17], [12, 18]], [[20, 20], [20, 20]])
    np.testing.assert_allclose(out.accuracy_GK, [[0.9, 0.85], [0.6, 0.9]])
    assert out.bias == pytest.approx(0.35)
    assert (out.acc_with, out.acc_without) == (pytest.approx(0.75), pytest.approx(0.875))


def test_five_labels_worked_by_hand_and_the_three_forms_agree():
    with_K, without_K = np.array([0.5, 0.4, 0.5, 0.6, 0.8]), np.array([0.6, 0.45, 0.5, 0.55, 0.65])
    assert of_gaps(with_K - without_K) == pytest.approx(0.12)
    rng = np.random.default_rng(0)
    for num in (2, 3, 5, 7):
        a_K, b_K = rng.random((2, num))
        forms = of_gaps(a_K - b_K), of_gaps(a_K) - of_gaps(b_K), bias.weights(num) @ (a_K - b_K)
        np.testing.assert_allclose(forms, forms[0], atol=1e-12)
    np.testing.assert_allclose(bias.weights(5), np.array([-4, -2, 0, 2, 4]) / 10)
    out = measured([[60, 45, 50, 55, 65], [50, 40, 50, 60, 80]], [[100] * 5] * 2)
    assert out.bias == pytest.approx(0.12)


def test_swapping_the_groups_or_the_order_of_the_labels_negates_it():
    right_GK, total_GK = np.array([[3, 9, 7], [8, 2, 9]]), np.full((2, 3), 10)
    value = measured(right_GK, total_GK).bias
    assert measured(right_GK[::-1], total_GK).bias == pytest.approx(-value)
    assert measured(right_GK[:, ::-1], total_GK).bias == pytest.approx(-value)


def test_equal_accuracies_and_a_constant_answer_give_zero():
    assert measured([[3, 9, 7], [6, 18, 14]], [[10] * 3, [20] * 3]).bias == pytest.approx(0)
    assert measured([[0, 10, 0], [0, 40, 0]], [[10] * 3, [40] * 3]).bias == pytest.approx(0)


def test_a_constant_gap_and_the_sizes_of_groups_change_nothing():
    value = measured([[3, 5, 7], [4, 8, 6]], [[10] * 3, [10] * 3]).bias
    assert measured([[3, 5, 7], [5, 9, 7]], [[10] * 3, [10] * 3]).bias == pytest.approx(value)
    assert measured([[12, 20, 28], [4, 8, 6]], [[40] * 3, [10] * 3]).bias == pytest.approx(value)


def test_an_empty_cell_gives_no_number_and_a_small_one_is_flagged():
    out = measured([[5, 40], [0, 50]], [[10, 50], [0, 60]])
    assert out.bias is None and out.acc_with is None and out.acc_without == pytest.approx(0.65)
    assert out.flags == (
        "unreliable: 10 test texts of label 0 without the concept",
        "no test text of label 0 with the concept: no Bias@C",
    )
    assert "bias" not in out.ends and "acc_without" in out.ends
    assert bias.mean_absolute([0.1, None]) is None and bias.mean_absolute([-0.1, 0.3]) == pytest.approx(0.2)


def slow_interval(right_N, labels_N, has_N, resamples, seed):
    """Draw every text of every cell with replacement, two labels."""
    rng, values = np.random.default_rng(seed), []
    for _ in range(resamples):
        means = {}
        for g in (False, True):
            for k in (0, 1):
                cell = right_N[(labels_N == k) & (has_N == g)]
                means[g, k] = rng.choice(cell, len(cell)).mean()
        values.append((means[True, 1] - means[False, 1]) - (means[True, 0] - means[False, 0]))
    return np.quantile(values, [0.025, 0.975])


def test_intervals_are_those_of_drawing_every_text_anew():
    arrays = texts([[30, 34], [24, 38]], [[40, 40], [40, 50]])
    ends = bias.measure(*arrays, num_labels=2, resamples=4_000).ends["bias"]
    np.testing.assert_allclose(ends, slow_interval(*arrays, resamples=4_000, seed=1), atol=0.03)  # 4,000 draws each


def test_the_difference_of_two_classifiers_has_a_paired_interval():
    right_N, labels_N, has_N = texts([[30, 34], [24, 38]], [[40, 40], [40, 50]])
    same = bias.measure(right_N - right_N, labels_N, has_N, num_labels=2)
    assert same.bias == 0 and same.ends["bias"] == (0, 0)
    other_N = np.random.default_rng(0).permutation(right_N)
    gap = bias.measure(right_N - other_N, labels_N, has_N, num_labels=2).bias
    alone = [bias.measure(one, labels_N, has_N, num_labels=2).bias for one in (right_N, other_N)]
    assert gap == pytest.approx(alone[0] - alone[1])


def test_labels_out_of_range_and_one_label_are_refused():
    with pytest.raises(InputError, match="there are 2, from 0"):
        bias.measure([1, 1], [0, 2], [True, False], num_labels=2)
    with pytest.raises(InputError, match="compares at least 2"):
        bias.weights(1)
    with pytest.raises(InputError, match="each text has one"):
        bias.measure([1], [0, 1], [True, False], num_labels=2)
