import numpy as np
import pytest

from alignment.errors import InputError
from alignment.explain import bias
from data.pictures import mosaics


def shares_with(labels, targets, drawn, seed=0):
    """Shares in which a tile off the target draws `drawn[(target, label)]` (1: its fair part), with some noise."""
    rng = np.random.default_rng(seed)
    weights = np.where(labels == targets[:, None], 3.0, 1.0)
    for (target, label), factor in drawn.items():
        weights[(targets == target)[:, None] & (labels == label)] *= factor
    weights *= rng.uniform(0.7, 1.3, weights.shape)
    return weights / weights.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def plan():
    return mosaics.plan(np.repeat(np.arange(5), 20), 60, 0)


def matrix_of(plan, drawn, **options):
    shares = shares_with(plan.tile_label, plan.target, drawn)
    return bias.matrix(shares, plan.tile_label, plan.target, num_classes=5, **options)


def test_the_matrix_is_its_slow_twins():
    labels = np.array([[0, 0, 1, 2], [1, 0, 0, 1], [1, 2, 1, 2], [0, 2, 2, 0]])
    targets = np.array([0, 0, 1, 2])
    shares = np.array([[0.4, 0.3, 0.2, 0.1], [0.2, 0.4, 0.3, 0.1], [0.5, 0.2, 0.2, 0.1], [np.nan] * 4])
    found = bias.matrix(shares, labels, targets, num_classes=3)
    assert found.focus[:2].tolist() == pytest.approx([0.7, 0.7]) and np.isnan(found.focus[2])
    assert found.share[0, 1] == pytest.approx((0.2 + 0.2 + 0.1) / 3) and found.count[0, 1] == 3
    assert found.share[0, 2] == pytest.approx(0.1) and found.share[1, 2] == pytest.approx(0.15)
    assert found.lift[0, 1] == pytest.approx(found.share[0, 1] / 0.15) and found.lift[1, 2] == pytest.approx(1)
    assert np.isnan(found.share[1, 0]) and found.count[1, 0] == 0 and found.count[2].sum() == 0
    assert np.isnan(np.diag(found.share)).all() and np.isnan(np.diag(found.lift)).all()


def test_without_a_bias_the_intervals_hold_one_about_as_often_as_they_say():
    plans = mosaics.plan(np.repeat(np.arange(8), 40), 60, 0)
    shares = shares_with(plans.tile_label, plans.target, {})
    found = bias.matrix(shares, plans.tile_label, plans.target, num_classes=8)
    off = ~np.eye(8, dtype=bool)
    held = ((found.low <= 1) & (found.high >= 1))[off].mean()
    assert 0.85 <= held <= 1.0  # 56 pairs at 95 %
    np.testing.assert_allclose(found.lift[off], 1, atol=0.12)


def test_a_planted_bias_tops_the_ranking_and_is_told_from_a_confusion(plan):
    pairs = bias.ranking(matrix_of(plan, {(3, 1): 4.0, (0, 4): 2.5, (4, 0): 2.5}))
    first = pairs[0]
    assert (first.target, first.other, first.kind) == (3, 1, "shortcut")
    assert first.low > 1.3 and first.low < first.lift < first.high and first.count >= 10
    assert {(p.target, p.other) for p in pairs[1:3]} == {(0, 4), (4, 0)}
    assert [p.kind for p in pairs[1:3]] == ["confusion"] * 2
    lifts = [p.lift for p in pairs]
    assert lifts == sorted(lifts, reverse=True)
    assert all(p.kind == "unclear" for p in pairs if p.low <= 1)
    assert first.back == pytest.approx(next(p.lift for p in pairs if (p.target, p.other) == (1, 3)))


def test_the_chance_of_a_lift_is_that_of_students_t():
    """log(2) at an error of (log(4) - log(1)) / (2 x 1.96) is t = 1.96; beyond that lie 3.44 % for 15 degrees."""
    values = dict(target=0, other=1, share=0.2, count=16, back=1.0, kind="shortcut")
    pair = bias.Pair(lift=2.0, low=1.0, high=4.0, pictures=16, **values)
    assert pair.chance == pytest.approx(0.0344, abs=2e-4) and pair.excess == pytest.approx(0.1)
    assert bias.Pair(lift=2.0, low=1.0, high=4.0, pictures=4, **values).chance > 0.07
    assert bias.Pair(lift=0.5, low=0.25, high=1.0, pictures=16, **values).chance == pytest.approx(1 - pair.chance)
    for low, high, pictures in ((0.0, 4.0, 16), (1.0, 4.0, 1), (1.0, np.inf, 16), (np.nan, np.nan, 16)):
        assert bias.Pair(lift=2.0, low=low, high=high, pictures=pictures, **values).chance == 1.0


def test_without_a_bias_small_chances_are_as_rare_as_they_say():
    plans = mosaics.plan(np.repeat(np.arange(8), 40), 60, 0)
    shares = shares_with(plans.tile_label, plans.target, {})
    found = bias.matrix(shares, plans.tile_label, plans.target, num_classes=8, picture_M4=plans.tile_index)
    chances = np.array([pair.chance for pair in bias.ranking(found)])
    assert len(chances) == 56 and (chances < 0.02).sum() <= 4 and 0.2 < chances.mean() < 0.8


def test_the_interval_is_that_of_the_pictures_and_not_of_their_many_tiles():
    rng = np.random.default_rng(0)
    held = {True: 0, False: 0}
    for _ in range(200):
        own = rng.lognormal(0, 1.0, 12)  # what each of 12 pictures of class 1 draws, whatever is explained
        picture = np.stack([np.zeros(60, int), np.full(60, 100), rng.integers(0, 12, 60) + 1, np.full(60, 100)], 1)
        labels = np.where(picture == 100, 2, (picture > 0).astype(int))
        share = np.where(labels == 0, 0.6, 0.0)
        share[:, 2] = 0.2 * own[picture[:, 2] - 1] / np.exp(0.5)  # 0.2 on average over all pictures there could be
        for is_by_picture in held:
            by = {"picture_M4": picture} if is_by_picture else {}
            found = bias.matrix(share, labels, np.zeros(60, int), num_classes=3, num_samples=200, **by)
            held[is_by_picture] += found.low[0, 1] <= 1 <= found.high[0, 1]
            num_pictures = len(np.unique(picture[:, 2])) if is_by_picture else 60
            assert (found.pictures[0, 1], found.count[0, 1]) == (num_pictures, 60)
    assert held[True] > 155 and held[False] < 130  # of 200 at 95 %; a dozen skewed pictures are few for a bootstrap


def test_a_large_lift_of_next_to_nothing_is_faint():
    labels = np.tile([0, 0, 1, 2], (40, 1))
    share = np.tile([0.494, 0.494, 0.01, 0.002], (40, 1))
    found = bias.matrix(share, labels, np.zeros(40, int), num_classes=3)
    assert found.lift[0, 1] == pytest.approx(0.01 / 0.006)
    assert [p.kind for p in bias.ranking(found)] == ["shortcut", "unclear"]
    assert [p.kind for p in bias.ranking(found, min_share=0.02)] == ["faint", "unclear"]


def test_top_tiles_hold_each_picture_once_where_it_draws_most(plan):
    shares = shares_with(plan.tile_label, plan.target, {})
    found = bias.top_tiles(shares, plan.tile_label, plan.target, target=2, other=4, num=99, picture_M4=plan.tile_index)
    pictures = [plan.tile_index[place] for place in found]
    assert len(set(pictures)) == len(pictures) > 5
    values = [shares[place] for place in found]
    assert values == sorted(values, reverse=True)
    is_pair = (plan.target == 2)[:, None] & (plan.tile_label == 4)
    assert values[3] == shares[is_pair & (plan.tile_index == pictures[3])].max()


def test_pairs_of_fewer_tiles_than_the_minimum_are_not_ranked(plan):
    found = matrix_of(plan, {})
    assert len(bias.ranking(found, min_count=30)) == 20  # every pair has 2 * 60 / 4 tiles
    assert bias.ranking(found, min_count=31) == []


def test_the_same_seed_gives_the_same_intervals(plan):
    one, again, other = (matrix_of(plan, {}, seed=seed, num_samples=100) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.low, again.low)
    assert not np.array_equal(one.low, other.low, equal_nan=True)


def test_top_tiles_are_the_pairs_own_by_falling_share(plan):
    shares = shares_with(plan.tile_label, plan.target, {})
    found = bias.top_tiles(shares, plan.tile_label, plan.target, target=2, other=4, num=5)
    values = [shares[m, i] for m, i in found]
    assert len(found) == 5 and values == sorted(values, reverse=True)
    assert all(plan.target[m] == 2 and plan.tile_label[m, i] == 4 for m, i in found)
    every = shares[(plan.target == 2)[:, None] & (plan.tile_label == 4)]
    assert values[0] == every.max()


def test_shares_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"shares \(2, 3\)"):
        bias.matrix(np.ones((2, 3)), np.ones((2, 4), int), np.ones(2, int), num_classes=2)


def test_tiles_of_a_map_are_split_as_focus_splits_them():
    numbers = np.arange(25).reshape(5, 5)
    assert [bias.tile_of(numbers, i).shape for i in range(4)] == [(2, 2), (2, 3), (3, 2), (3, 3)]
    assert bias.tile_of(numbers, 1)[0, 0] == 2 and bias.tile_of(numbers, 2)[0, 0] == 10


def test_the_crop_lies_where_relevance_lies_together_and_not_where_points_are_scattered():
    relevance = np.zeros((64, 64))
    relevance[8:20, 40:56] = np.random.default_rng(0).random((12, 16))
    relevance[60, 4] = relevance[33, 12] = 5.0
    relevance[40:50, 40:50] = -9.0
    assert bias.crop_box(relevance) == (8, 20, 40, 56)
    assert bias.crop_box(-np.abs(relevance)) is None


@pytest.mark.parametrize("size", [5, 16, 37])
def test_the_crop_of_a_small_or_odd_map_lies_inside_it(size):
    top, bottom, left, right = bias.crop_box(np.random.default_rng(0).random((size, size + 1)))
    assert 0 <= top < bottom <= size and 0 <= left < right <= size + 1
