import math

import pytest

from alignment.errors import InputError
from experiments.guidance import methods


def test_a_lattice_holds_every_split_of_the_weight():
    assert methods.lattice(2, 3, total=2.0) == [(2.0, 0.0), (1.0, 1.0), (0.0, 2.0)]
    assert len(methods.lattice(3, 3)) == 6 and all(sum(w) == pytest.approx(1) for w in methods.lattice(3, 3))
    assert methods.lattice(1, 4, total=2.0) == [(0.5,), (1.0,), (1.5,), (2.0,)]


def test_the_grid_has_the_corners_whatever_alphas_are_given_and_no_point_twice():
    options = dict(points=3, strength=1.0, temperature=0.7)
    given = methods.grid(["a", "b"], alphas=((0.2, 4.0), (1.0, 0.0)), **options)
    assert [m.weights for m in given] == [(1.0, 0.0), (0.0, 1.0), (0.2, 4.0)]
    assert [m.weights for m in methods.grid(["a", "b"], alphas=(), **options)] == [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
    assert given[2].name == "genarm 0.2,4" and given[2].temperature == 0.7


@pytest.mark.parametrize(
    ("alphas", "word"),
    [
        (((math.nan, 1.0),), "finite"),
        (((math.inf,),), "finite"),
        (((-0.5, 1.0),), "allow_negative"),
        ((1.0,), "tuples"),
        (((),), "tuples"),
        (((1.0,),), "2 objectives"),
        (((True, 1.0),), "finite"),
    ],
)
def test_weights_that_guide_nowhere_are_refused(alphas, word):
    with pytest.raises(InputError, match=word):
        methods.check_alphas(alphas, num_objectives=2, allow_negative=False)
    methods.check_alphas([(-0.5, 1.0)], num_objectives=2, allow_negative=True)


def test_the_corners_of_soups_stand_for_dpo_and_one_objective_has_no_mixture():
    options = dict(points=3, temperature=1.0)
    both = methods.baselines(["a", "b"], ["dpo"], **options)
    assert [(m.kind, m.weights) for m in both] == [
        ("base", ()),
        ("dpo", ()),
        ("soups", (1.0, 0.0)),
        ("soups", (0.0, 1.0)),
    ]
    one = methods.baselines(["a"], ["dpo", "soups", "best_of_n", "base_greedy"], **options)
    assert [m.name for m in one] == ["base", "base_greedy", "soups 1", "best_of_n 1"]
