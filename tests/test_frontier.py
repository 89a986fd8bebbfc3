"""The volumes are counted by hand as areas of rectangles; a grid of points is the slow twin."""

import itertools

import numpy as np
import pytest

from alignment import frontier
from alignment.errors import InputError


def test_the_front_holds_what_nothing_beats_and_equals_stand_together():
    points = {"a": (1, 3), "b": (2, 2), "c": (3, 1), "d": (1, 1), "e": (2, 2), "f": (0, 3)}
    assert frontier.front(points) == {"a", "b", "c", "e"}


def test_a_staircase_of_two_objectives_has_the_area_below_it():
    # rectangles (0,0)-(1,3), and beyond it (1,0)-(2,2) and (2,0)-(3,1)
    assert frontier.hypervolume([(1, 3), (2, 2), (3, 1), (1, 1)], (0, 0)) == pytest.approx(3 + 2 + 1)
    assert frontier.hypervolume([(1, 3), (2, 2)], (0.5, 1)) == pytest.approx(0.5 * 2 + 1 * 1)


def test_one_objective_is_a_length_and_points_below_the_reference_add_nothing():
    assert frontier.hypervolume([(0.3,), (0.8,)], (0.5,)) == pytest.approx(0.3)
    assert frontier.hypervolume([(0.3, 2.0), (2.0, 0.4)], (0.5, 0.5)) == 0
    assert frontier.hypervolume([], (0.0, 0.0)) == 0


def test_three_objectives_agree_with_counted_cells():
    rng = np.random.default_rng(0)
    points = rng.integers(1, 6, size=(6, 3))
    cells = itertools.product(range(5), repeat=3)
    counted = sum(any(all(x > low for x, low in zip(point, cell)) for point in points) for cell in cells)
    assert frontier.hypervolume(points.tolist(), (0, 0, 0)) == pytest.approx(counted)


def test_a_point_of_another_length_is_refused():
    with pytest.raises(InputError, match="coordinates"):
        frontier.hypervolume([(1, 2, 3)], (0, 0))
