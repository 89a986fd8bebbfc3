"""How firmly a page of focus.py says what it has found, and which maps it says nothing of."""

import re

import numpy as np
import pytest

from alignment.explain import bias
from experiments.pages import focus as focus_page
from experiments.pages import focus_bias

NAMES = ("oak", "elm", "fir", "ash")


def pair(target, other, *, share, lift, low, high, kind="shortcut", pictures=16):
    return bias.Pair(target, other, lift, low, high, share, pictures, pictures, 1.0, kind)


CLEAR = pair(0, 1, share=0.13, lift=3.6, low=2.0, high=5.3)
FAINT = pair(1, 2, share=0.03, lift=3.6, low=2.8, high=4.6)
CHANCE = pair(2, 3, share=0.11, lift=2.5, low=1.05, high=4.1)
BOTH = pair(3, 0, share=0.20, lift=2.5, low=1.9, high=3.4, kind="confusion")
BACK = pair(0, 3, share=0.08, lift=2.0, low=1.5, high=2.9, kind="confusion")
OTHERS = [pair(i % 4, (i + 1) % 4, share=0.1, lift=1.0, low=0.6, high=1.7, kind="unclear") for i in range(50)]
PAIRS = [CHANCE, FAINT, CLEAR, BACK, BOTH, *OTHERS]
COUNTS = np.diag([10, 10, 10, 10]) + np.eye(4, k=-1, dtype=int)


def lines(named):
    return focus_bias.bias_lines("lrp", PAIRS, named, COUNTS, NAMES, 0.02)


def test_pairs_come_by_what_they_draw_too_much_and_a_confusion_once():
    assert focus_bias.strongest(PAIRS, "shortcut") == [CLEAR, CHANCE, FAINT]
    assert focus_bias.strongest(PAIRS, "confusion") == [BOTH]


@pytest.mark.parametrize(
    ("one", "opening", "false"),
    [
        (CLEAR, "Clear: where oak is explained, a tile of elm draws 13.0 % of the", "fewer than 0.01"),
        (BOTH, "Clear: where ash is explained, a tile of oak draws 20.0 %", "fewer than 0.01"),
        (FAINT, "Weak (a tile draws only 2.2 % too much): where elm is explained", "fewer than 0.01"),
        (CHANCE, "Weak (chance may explain it): where fir is explained", r"0\.\d\d"),
    ],
)
def test_a_pair_is_said_as_firmly_as_its_share_and_its_chance_allow(one, opening, false):
    line = focus_bias.pair_line("lrp", one, 55, COUNTS, NAMES)
    assert line.startswith(opening)
    assert re.search(rf"Without any bias {false} of 55 pairs would look so lifted", line)
    assert focus_bias.is_clear(one, 55) == opening.startswith("Clear")


def test_the_findings_end_with_how_many_finds_are_expected_to_be_false():
    *named, caution = lines([CLEAR, CHANCE])
    assert len(named) == 2
    assert "55 pairs were compared, 5 are lifted beyond their 95 % interval and 2 of these are clear" in caution
    assert "without any bias about 2 would be lifted so" in caution
    (none,) = lines([])
    assert none.startswith("No pair of classes draws clearly more relevance than chance (lrp, 55 pairs)")


def scores(*focus):
    return {"focus": np.array(focus, float)}


def test_maps_without_positive_relevance_are_counted_in_every_test():
    nan = np.nan
    results = focus_page.Results(
        trained={"lrp": scores(0.9, 0.8), "lime": scores(nan, 0.7)},
        randomised={"R1": {"lrp": scores(nan, nan)}, "R3": {"lrp": scores(0.3, nan), "lime": scores(0.3, 0.4)}},
        curves={"lrp": {0: scores(0.9, 0.8), 2: scores(nan, 0.5), 4: scores(nan, nan)}},
        predicted_N=np.zeros(4, int),
    )
    assert focus_page.undefined_counts(results) == {
        "trained": ["1 of 2 by lime"],
        "R1": ["2 of 2 by lrp"],
        "R3": ["1 of 2 by lrp"],
        "R2": ["3 of 6 by lrp"],
    }
    whole = focus_page.Results({"lrp": scores(0.9)}, {"R1": {}, "R3": {}}, {}, np.zeros(4, int))
    assert focus_page.undefined_counts(whole) == {}
