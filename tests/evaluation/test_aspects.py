import numpy as np
import pytest

from alignment import intervals
from alignment.errors import InputError
from alignment.evaluation import aspects, correlation
from alignment.evaluation.aspects import Score
from alignment.safety import rates

TEN = dict(truth=("a", "b"), resilience=("c", "d"), fairness=("e", "f"), robustness=("g", "h"), privacy=("i", "j"))


def scores(right, n=100, chance=0.25):
    sizes = [n] * len(right) if isinstance(n, int) else n
    return {name: Score(r, size, chance) for name, r, size in zip("abcdefghij", right, sizes)}


def test_ten_aspects_of_a_hundred_items_have_the_index_worked_by_hand():
    got = aspects.index(TEN, scores((62, 41, 55, 38, 47, 66, 59, 33, 52, 27)))
    assert got.macro == pytest.approx(0.480) and got.pooled == pytest.approx(0.480) and not got.missing
    assert list(got.principles.values()) == pytest.approx([0.515, 0.465, 0.565, 0.460, 0.395])


def test_unequal_numbers_part_the_mean_of_aspects_from_the_share_of_items():
    got = aspects.index(dict(p=("a", "b"), q=("c", "d")), scores((60, 40, 45, 20), (100, 100, 50, 100)))
    assert got.macro == pytest.approx(0.525) and got.pooled == pytest.approx(0.471429, abs=1e-6)


def test_an_aspect_without_items_is_missing_and_left_out():
    got = aspects.index(dict(p=("a", "z"), q=("y",)), scores((60,)))
    assert got.missing == ("z", "y") and got.macro == 0.6 and got.principles == {"p": 0.6, "q": None}
    assert aspects.index(dict(p=("z",)), {}).macro is None


def test_intervals_and_corrections_are_those_worked_by_hand():
    assert Score(48, 100, 0.25).interval == pytest.approx((0.384646, 0.576834), abs=1e-6)
    assert intervals.wilson(480, 1000) == pytest.approx((0.449171, 0.510982), abs=1e-6)
    assert Score(48, 100, 0.25).corrected == pytest.approx(0.306667, abs=1e-6)
    assert Score(25, 100, 0.25).corrected == 0
    assert Score(0, 0, 0.25).share is None
    with pytest.raises(InputError):
        aspects.correct_for_chance(0.5, 1.0)


def test_comparisons_of_models_are_those_worked_by_hand():
    assert rates.mcnemar(30, 10) == pytest.approx(0.002221, abs=1e-6) and rates.mcnemar(5, 5) == 1
    assert aspects.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_flips_are_counted_among_what_is_right_plainly():
    pairs = [(True, True)] * 17 + [(True, False)] * 3 + [(False, False)] * 5
    assert aspects.flip_rate(pairs) == pytest.approx(0.15)
    assert aspects.flip_rate([(False, True)]) is None


def test_gaps_between_groups_are_those_worked_by_hand():
    members = [
        (i, group, "A" if i < right else "B", i < right)
        for group, right in (("x", 16), ("y", 14), ("z", 13))
        for i in range(20)
    ]
    got = aspects.equity(members)
    assert (
        got.gap == pytest.approx(0.15) and got.ratio == pytest.approx(0.8125) and got.invariance == pytest.approx(0.85)
    )
    assert aspects.equity([(1, "x", "A", True), (1, "y", "A", True)]).invariance == 1
    assert aspects.equity([]) is None and aspects.equity([(1, "x", "A", False)]).ratio is None


def test_the_bootstrap_is_seeded_is_narrower_over_more_and_draws_pairs_together():
    assert aspects.bootstrap({"a": [True] * 9}, resamples=50) == (1.0, 1.0)
    rng = np.random.default_rng(0)
    one = {"a": (rng.random(100) < 0.5).tolist()}
    two = one | {"b": (rng.random(100) < 0.5).tolist()}
    width = [np.ptp(aspects.bootstrap(x, resamples=500)) for x in (one, two)]
    assert width[1] < width[0] and aspects.bootstrap(one, resamples=50) == aspects.bootstrap(one, resamples=50)
    doubled = {"a": one["a"] * 2}
    tied = aspects.bootstrap(doubled, {"a": [i % 100 for i in range(200)]}, resamples=500)
    assert np.ptp(tied) > 1.2 * np.ptp(aspects.bootstrap(doubled, resamples=500))
    with pytest.raises(InputError):
        aspects.bootstrap({"a": []})


def test_raters_agreement_beyond_chance():
    assert aspects.fleiss_kappa(["AA", "BB"]) == pytest.approx(1)
    assert aspects.fleiss_kappa(["AB", "AB"]) == pytest.approx(-1)
    assert aspects.fleiss_kappa([]) is None and aspects.fleiss_kappa(["AA", "AA"]) is None


def test_accuracy_and_safety_correlate_as_worked_by_hand():
    x, y = np.array([0.40, 0.55, 0.60, 0.70, 0.80]), np.array([0.45, 0.40, 0.50, 0.47, 0.52])
    assert correlation.coefficient(x, y, "pearson")[0] == pytest.approx(0.622815, abs=1e-6)
    assert correlation.coefficient(x, y, "spearman")[0] == pytest.approx(0.8)
