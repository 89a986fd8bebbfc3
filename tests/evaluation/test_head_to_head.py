"""The counts 136/46/118 are those of a public re-run against DPO: 45.3 % won, 53.0 % with half of the ties."""

import pytest

from alignment.evaluation import head_to_head
from alignment.evaluation.head_to_head import LOSS, TIE, UNDETERMINED, WIN


def test_a_published_count_gives_its_published_shares():
    tally = head_to_head.tally([WIN] * 136 + [TIE] * 46 + [LOSS] * 118)
    assert tally.wins / tally.n == pytest.approx(0.4533, abs=5e-5)
    assert tally.win_half_tie == pytest.approx(0.53)
    low, high = tally.interval
    assert low < 0.53 < high and high - low == pytest.approx(2 * 0.0563, abs=2e-3)


@pytest.mark.parametrize("text", ["8 5", "8  5", "8.0 5.0", "8, 5", "8 5\nThe first answer is warmer."])
def test_two_scores_are_read_however_they_are_spaced(text):
    assert head_to_head.scores(text) == (8, 5) and head_to_head.outcome(8, 5) == WIN


@pytest.mark.parametrize("text", ["N/A", "", "8", "eight five", "8 5 3", "I cannot judge this."])
def test_what_is_not_two_scores_is_none_and_what_is_not_determined_no_tie(text):
    assert head_to_head.scores(text) is None
    tally = head_to_head.tally([WIN, UNDETERMINED, UNDETERMINED])
    assert tally.win_half_tie == 1 and tally.n == 1 and tally.undetermined == 2


def test_both_orders_make_one_outcome():
    assert head_to_head.both_orders(WIN, LOSS) == WIN  # the second saw the answers the other way round
    assert head_to_head.both_orders(WIN, WIN) == TIE and head_to_head.both_orders(WIN, TIE) == WIN
    assert head_to_head.both_orders(TIE, WIN) == LOSS and head_to_head.both_orders(LOSS, UNDETERMINED) == UNDETERMINED


def test_nothing_determined_has_no_share():
    assert head_to_head.tally([UNDETERMINED]).win_half_tie is None
