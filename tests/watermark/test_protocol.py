import math

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.watermark import protocol

# rank, Q@0.7P, Q@0.4P, mean P, mean Q of Tree-Ring | Stable Signature | StegaStamp: the project page's table
PUBLISHED = """
Dist-Rotation   8 -inf .434 .131 .648 | 12 .613 .642 .400 .650 |  4 .454 .500 .288 .616
Dist-RCrop     11 -inf .592 .094 .463 | 24 inf inf .972 .461 |  6 .602 .602 .494 .451
Dist-Erase     26 inf inf .986 .490 | 25 inf inf .988 .489 | 25 inf inf 1.000 .483
Dist-Bright    22 inf inf .913 .304 | 23 inf inf .982 .305 | 22 inf inf .995 .317
Dist-Contrast  23 inf inf .949 .243 | 20 inf inf .979 .243 | 17 inf inf .994 .231
Dist-Blur      21 1.105 1.437 .551 1.221 | 5 -inf -inf .000 1.204 | 9 .897 .970 .280 1.198
Dist-Noise     16 .427 inf .728 .395 |  8 .415 .480 .633 .390 | 24 inf inf 1.000 .360
Dist-JPEG      17 .499 .499 .700 .284 |  9 .485 .485 .540 .284 | 21 inf inf .995 .263
DistCom-Geo     9 -inf .559 .105 .768 | 13 .788 .835 .519 .767 |  7 .676 .717 .359 .733
DistCom-Photo  23 inf inf .947 .242 | 20 inf inf .981 .243 | 17 inf inf .994 .239
DistCom-Deg    18 .556 .864 .570 .694 |  7 .216 .281 .183 .679 |  8 .870 .957 .737 .664
DistCom-All    10 -inf .575 .123 .908 | 11 .550 .623 .176 .900 | 10 .995 1.096 .682 .870
Regen-Diff      6 -inf .307 .258 .323 |  1 -inf -inf .000 .300 |  2 .333 inf .766 .327
Regen-DiffP     6 -inf .308 .256 .327 |  1 -inf -inf .000 .303 |  1 .336 .356 .763 .329
Regen-VAE      19 .578 .578 .701 .348 | 10 .545 .545 .340 .339 | 23 inf inf 1.000 .343
Regen-KLVAE    14 .257 inf .810 .233 |  6 -inf -inf .047 .206 | 17 inf inf .999 .240
Rinse-2xDiff    5 -inf .270 .220 .357 |  3 -inf -inf .000 .332 |  3 .390 .402 .778 .366
Rinse-4xDiff    1 -inf -inf .110 .466 |  4 -inf -inf .000 .438 |  5 .488 .676 .687 .477
AdvEmbG-KLVAE8  4 -inf .168 .259 .253 | 20 inf inf .985 .249 | 17 inf inf 1.000 .232
AdvEmbB-RN18   15 .288 inf .811 .218 | 17 inf inf .990 .212 | 14 inf inf 1.000 .196
AdvEmbB-CLIP   20 .697 inf .798 .549 | 26 inf inf .991 .541 | 25 inf inf 1.000 .488
AdvEmbB-KLVAE16 12 .158 .309 .540 .238 | 19 inf inf .983 .233 | 14 inf inf 1.000 .206
AdvEmbB-SdxlVAE 13 .214 inf .692 .221 | 17 inf inf .986 .219 | 14 inf inf 1.000 .204
AdvCls-UnWM&WM  2 -inf .123 .352 .145 | 14 inf inf .991 .101 | 11 inf inf 1.000 .101
AdvCls-Real&WM 25 inf inf .986 .047 | 14 inf inf .990 .092 | 11 inf inf 1.000 .106
AdvCls-WM1&WM2  2 -inf .118 .343 .139 | 14 inf inf .991 .084 | 13 inf inf 1.000 .129
"""


def published():
    """{mark: {attack: (rank, keys)}}"""
    tables = [{}, {}, {}]
    for line in PUBLISHED.strip().splitlines():
        attack, _, numbers = line.partition(" ")
        for table, part in zip(tables, numbers.split("|")):
            rank, *keys = part.split()
            table[attack] = int(rank), [float(key) for key in keys]
    return tables


def mismatches(tie):
    return sum(
        rank != ours[attack]
        for table in published()
        for ours in [protocol.ranks({attack: keys for attack, (_, keys) in table.items()}, tie=tie)]
        for attack, (rank, _) in table.items()
    )


def test_all_78_published_ranks_come_out_and_a_narrower_or_wider_tie_misses_some():
    assert sum(map(len, published())) == 78
    assert mismatches(0.01) == 0
    assert mismatches(0.0075) == 5
    assert mismatches(0.0125) == 3


def test_the_rate_is_that_of_the_last_threshold_strictly_below_the_false_positive_rate():
    unmarked = np.arange(1, 5_001) / 5_000
    marked = np.concatenate([np.full(4_000, 1e-4), np.full(500, 9e-4), np.full(500, 0.5)])
    assert protocol.true_positive_rate(marked, unmarked) == 0.9


def test_with_few_pictures_no_false_positive_is_allowed_and_a_tie_is_one():
    unmarked = [0.40, 0.45, 0.5, 0.55, 0.6, 0.42, 0.48, 0.52, 0.5, 0.47]
    marked = [0, 0.1, 0.39, 0.40, 0.41, 0.2, 0.3, 0.35, 0.5, 0.05]
    with pytest.warns(UserWarning, match="with 10 unmarked pictures a rate below 0.001 means no false positive"):
        assert protocol.true_positive_rate(marked, unmarked) == 0.7


def test_unequal_numbers_are_refused_unless_allowed():
    with pytest.raises(InputError, match="2 marked and 3 unmarked"):
        protocol.true_positive_rate([0, 0], [1, 1, 1])
    with pytest.warns(UserWarning, match="no false positive"):
        assert protocol.true_positive_rate([0, 0], [1, 1, 1], allow_unequal=True) == 1
    with pytest.raises(InputError, match="not finite"):
        protocol.true_positive_rate([0, np.nan], [1, 1])


def test_area_under_the_curve_counts_ties_as_halves():
    assert protocol.auroc([0, 0.5], [0.5, 1]) == pytest.approx(7 / 8)


def test_thresholds_of_bits_and_their_p_values():
    for level, thresholds in ((1e-3, (36, 66, 26)), (1e-6, (41, 74, 30))):
        for num_bits, matches in zip((48, 100, 32), thresholds):
            assert protocol.p_value(matches, num_bits) < level <= protocol.p_value(matches - 1, num_bits)
    assert protocol.p_value(40, 48) == pytest.approx(1.6527e-6, rel=1e-4)
    assert protocol.p_value(66, 100) == pytest.approx(8.9497e-4, rel=1e-4)


@pytest.mark.parametrize(
    ("errors", "num_bits", "expected"),
    [
        (5, 48, (0.999999, 0.999993, 0.993183)),
        (12, 48, (0.965112, 0.698835, 0)),
        (16, 48, (0.231928, 0, 0)),
        (30, 100, (0.996122, 0.961547, 0)),
    ],
)
def test_one_among_many_users(errors, num_bits, expected):
    share = [protocol.identified([errors / num_bits], num_bits, users) for users in (100, 1_000, 1_000_000)]
    np.testing.assert_allclose(share, expected, atol=2e-6)


def test_drawing_the_other_users_agrees_with_the_expectation():
    rng = np.random.default_rng(0)
    message = rng.integers(2, size=48)
    read = message.copy()
    read[:13] ^= 1
    others = rng.integers(2, size=(2_000, 99, 48), dtype=np.int8)
    alone_nearest = np.mean((others != read).sum(-1).min(-1) > 13)
    assert alone_nearest == pytest.approx(protocol.identified([13 / 48], 48, 100), abs=0.03)


@pytest.mark.parametrize(
    ("errors", "num_bits", "users"), [(13, 48, 100), (12, 48, 1_000), (36, 100, 100), (20, 64, 100)]
)
def test_simulated_identification_agrees_with_the_expectation(errors, num_bits, users):
    share = protocol.identified_among_drawn([errors / num_bits], num_bits, users, repeats=400)
    assert share == pytest.approx(protocol.identified([errors / num_bits], num_bits, users), abs=0.07)
    assert 0.2 < share < 0.98


def test_of_a_million_drawn_users_one_may_be_as_near_and_a_tie_is_a_failure():
    assert protocol.identified_among_drawn([0, 5 / 48, 12 / 48], 48, 1_000_000) == pytest.approx(2 / 3, abs=0.07)
    tied = protocol._nearest_drawn(48, 99, 5, 0)
    shares = [protocol.identified_among_drawn([n / 48], 48, 100) for n in (tied.min() - 1, tied.min())]
    assert shares[0] == 1 and shares[1] == np.mean(tied > tied.min()) < 1


def test_the_best_balanced_accuracy_by_hand():
    assert protocol.balanced_accuracy([0.1, 0.2, 0.5], [0.4, 0.6, 0.7]) == pytest.approx(5 / 6)
    assert protocol.balanced_accuracy([0.9], [0.4]) == 0.5 and protocol.balanced_accuracy([0.1], [0.4]) == 1


def test_ring_keys_are_told_apart_by_the_authors_approximation():
    near, far = protocol.ring_chances([0.0], [634 * 2_048.0]), protocol.ring_chances([9e6], [1e6])
    assert protocol.alone(near, 100) == pytest.approx(1) and protocol.alone(far, 100) == pytest.approx(0, abs=1e-6)


def test_a_curve_is_walked_from_weak_to_strong():
    q, p = [0.1, 0.2, 0.3], [1.0, 0.8, 0.4]
    assert protocol.quality_at(q, p, 0.95) == pytest.approx(0.125)
    assert protocol.quality_at(q, p, 0.7) == pytest.approx(0.225)
    assert protocol.quality_at(q, p, 0.4) == pytest.approx(0.3)
    assert protocol.quality_at(q, p, 0.3) == math.inf
    assert protocol.quality_at(q, [0.6, 0.3, 0.1], 0.7) == -math.inf


def test_a_quality_that_does_not_rise_with_strength_is_read_in_order_of_strength():
    q, p = [0.315, 0.304, 0.320], [0.9, 0.8, 0.6]
    assert protocol.quality_at(q, p, 0.7) == pytest.approx(0.312)
    assert protocol.quality_at(q, p, 0.85) == pytest.approx(0.3095)


def test_what_stays_tied_shares_a_rank_and_the_next_one_skips():
    ranks = protocol.ranks(
        {"a": (0.1, 0.5), "b": (0.105, 0.5), "c": (0.2, 0.1), "d": (math.inf, 0), "e": (math.inf, 0)}
    )
    assert ranks == {"a": 1, "b": 1, "c": 3, "d": 4, "e": 4}
