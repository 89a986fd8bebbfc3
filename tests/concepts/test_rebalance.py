"""Training sets of a concept: the worked counts, what is left untouched, and that nothing leaks."""

import numpy as np
import pytest

from alignment.concepts import rebalance, robust
from alignment.errors import InputError


def texts(with_K, without_K):
    labels = np.concatenate([np.repeat(np.arange(len(with_K)), with_K), np.repeat(np.arange(len(with_K)), without_K)])
    return labels, np.arange(len(labels)) < sum(with_K)


def test_downsampling_leaves_as_many_of_each_label_as_the_rarest_has():
    labels_N, has_N = texts([9, 4, 7, 12, 10], [3, 0, 5, 2, 1])
    index, least = rebalance.downsample(labels_N, has_N, num_labels=5, rng=np.random.default_rng(0))
    assert least == 4 and rebalance.counts(labels_N[index], has_N[index], 5).tolist() == [4] * 5
    assert (~has_N[index]).sum() == 11 and has_N[index].sum() == 20


def test_upsampling_adds_what_each_label_lacks():
    assert rebalance.needs(np.array([9, 4, 7, 12, 10])).tolist() == [3, 8, 5, 0, 2]
    assert rebalance.needs(np.array([35, 80])).tolist() == [45, 0]
    labels_N, has_N = texts([9, 4, 7, 12, 10], [3, 0, 5, 2, 1])
    pool_M = np.repeat(np.arange(5), 20)
    added, short_K = rebalance.upsample(labels_N, has_N, pool_M, num_labels=5, rng=np.random.default_rng(0))
    assert np.bincount(pool_M[added]).tolist() == [3, 8, 5, 0, 2] and not short_K.any()
    assert has_N.sum() + len(added) == 60 and len(set(added)) == len(added)


def test_a_pool_that_is_too_small_is_taken_whole_and_the_rest_is_told():
    labels_N, has_N = texts([2, 10], [4, 4])
    added, short_K = rebalance.upsample(
        labels_N, has_N, np.array([0, 1, 0]), num_labels=2, rng=np.random.default_rng(0)
    )
    assert added.tolist() == [0, 2] and short_K.tolist() == [6, 0]


def test_the_biased_set_drops_other_labels_of_texts_with_the_concept_alone():
    labels_N, has_N = texts([3, 3, 3, 3, 3], [2, 2, 2, 2, 2])
    index = rebalance.biased(labels_N, has_N, rebalance.positive(5))
    assert rebalance.counts(labels_N[index], has_N[index], 5).tolist() == [0, 0, 0, 3, 3]
    assert rebalance.counts(labels_N[index], ~has_N[index], 5).tolist() == [2] * 5
    assert rebalance.positive(2) == {1} and rebalance.negative(5) == {0, 1, 2}


def test_the_inverted_protocol_makes_the_concept_the_label():
    labels_N, has_N = texts([1, 2], [3, 4])
    index = rebalance.inverted(labels_N, has_N, {1})
    assert rebalance.counts(labels_N[index], has_N[index], 2).tolist() == [0, 2]
    assert rebalance.counts(labels_N[index], ~has_N[index], 2).tolist() == [3, 0]


def test_balanced_groups_are_of_one_size_and_empty_ones_left_out():
    labels_N, has_N = texts([5, 0], [3, 8])
    groups_N = rebalance.groups(labels_N, has_N)
    index = rebalance.balanced(groups_N, rng=np.random.default_rng(0))
    assert np.bincount(groups_N[index], minlength=4).tolist() == [3, 3, 3, 0]
    with pytest.raises(InputError, match="no text to balance"):
        rebalance.balanced(groups_N[:0], rng=np.random.default_rng(0))


def test_a_source_that_is_held_out_is_refused():
    rebalance.check_no_leak({"a"}, {"b", "c"})
    with pytest.raises(InputError, match="1 sources of counterfactuals are held out, such as 'c'"):
        rebalance.check_no_leak({"a", "c"}, {"b", "c"})


def test_the_same_seed_draws_the_same_texts():
    labels_N, has_N = texts([9, 4], [3, 3])
    draws = [rebalance.downsample(labels_N, has_N, num_labels=2, rng=np.random.default_rng(s))[0] for s in (1, 1, 2)]
    assert draws[0].tolist() == draws[1].tolist() != draws[2].tolist()


def test_group_dro_moves_weight_to_the_group_with_the_largest_loss():
    q_G = np.full(3, 1 / 3)
    for _ in range(50):
        q_G = robust.reweighted(q_G, np.array([0.1, 1.0, 0.1]), rate=0.2)
    assert float(q_G[1]) > 0.99 and float(q_G.sum()) == pytest.approx(1, abs=1e-5)
    loss_G, there_G = robust.group_losses(
        np.array([1.0, 3.0, 5.0, 9.0]), np.array([0, 0, 2, 2]), np.array([1.0, 1.0, 1.0, 0.0]), 3
    )
    np.testing.assert_allclose(loss_G, [2, 0, 5])
    assert np.asarray(there_G).tolist() == [True, False, True]


def test_jtt_repeats_mistakes():
    assert robust.repeated(np.array([False, True, False]), 3).tolist() == [0, 1, 1, 1, 2]
