import numpy as np
import pytest

from alignment import intervals
from alignment.errors import InputError
from alignment.safety import harmlessness


def test_preference_is_by_log_probability_per_token_and_a_tie_counts_half():
    totals = np.array([-6.0, -6.0, -6.0])
    others = np.array([-6.0, -4.0, -4.0])
    found = harmlessness.preferred(totals, np.array([3, 3, 3]), others, np.array([2, 2, 1]))
    assert found.tolist() == [1.0, 0.5, 1.0]  # -2 against -3, -2 and -4 nats a token
    assert harmlessness.preferred(np.array([-9.0]), np.array([3]), np.array([-2.0]), np.array([1])).tolist() == [0.0]


def test_marks_are_found_whatever_the_case():
    assert harmlessness.is_marked("Take [Unsafe Steps 3].", ["[unsafe steps"])
    assert not harmlessness.is_marked("I cannot help with [unsafe request 3].", ["[unsafe steps"])
    assert not harmlessness.is_marked("anything", [])


def slow_interval(values, resamples, seed):
    """The same draws, one resample at a time."""
    num_seeds, num_probes = values.shape
    rng = np.random.default_rng(seed)
    seeds = rng.integers(num_seeds, size=(resamples, num_seeds))
    probes = rng.integers(num_probes, size=(resamples, num_probes))
    means = [values[np.ix_(s, p)].mean() for s, p in zip(seeds, probes)]
    return values.mean(), *np.quantile(means, [0.025, 0.975])


def test_the_interval_is_that_of_drawing_seeds_and_probes_anew():
    values = np.random.default_rng(3).random((3, 7))
    assert intervals.two_way(values, resamples=200) == pytest.approx(slow_interval(values, 200, 0))


def test_probes_of_one_group_are_drawn_together():
    rng = np.random.default_rng(0)
    values = np.tile(rng.normal(size=6) + 0.01 * rng.normal(size=(4, 6)), 5)  # each of 6 asked five times
    _, low, high = intervals.two_way(values, groups=[i % 6 for i in range(30)])
    once = intervals.two_way(values[:, :6])
    assert (low, high) == pytest.approx(once[1:])
    _, narrow, wide = intervals.two_way(values)
    assert wide - narrow < 0.7 * (high - low)
    with pytest.raises(InputError, match="2 groups for 30 probes"):
        intervals.two_way(values, groups=["a", "b"])


def test_an_interval_covers_what_it_says():
    """Rates of 40 probes and 8 seeds with a mean of 0.6: about 95 of 100 intervals hold it; ten seeds are few."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(100):
        probes, seeds = rng.normal(0, 0.1, size=40), rng.normal(0, 0.1, size=8)
        values = 0.6 + seeds[:, None] + probes[None]
        _, low, high = intervals.two_way(values, resamples=400)
        held += low <= 0.6 <= high
    assert held >= 82


def test_an_interval_needs_seeds_and_probes():
    with pytest.raises(InputError, match=r"\[S,P\]"):
        intervals.two_way(np.ones(3))
    with pytest.raises(InputError, match="shape"):
        intervals.two_way(np.ones((0, 3)))
