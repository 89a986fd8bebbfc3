import numpy as np
import pytest

from data.toys import blurred

TOYS = {
    "gaussians": dict(num_test=12),
    "shortcut": dict(num_test=12),
    "groups": dict(num_test=12),
    "generated": dict(side=8, shots=2, num_val=1, num_test=1, num_pool=8),
    "pairs": dict(num_test=16),
}


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_a_function_of_its_seed_and_its_wrong_rows_are_about_as_many_as_it_says(name):
    make_fn = getattr(blurred, name)
    one, again, other = (make_fn(seed, **TOYS[name]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.pool_x, again.pool_x)
    assert (one.pool_x != other.pool_x).any() and set(one.x) == set(one.y) == {"train", "val", "test"}
    share = one.is_wrong.mean()
    assert abs(share - (blurred.WRONG / 2 if name in ("shortcut", "groups") else blurred.WRONG)) < 0.13
    assert len(one.pool_x) == len(one.pool_y) == len(one.is_wrong)


def test_wrong_copies_bear_another_class_and_right_ones_that_of_their_row():
    toy = blurred.gaussians(0, num_test=3)
    truth = np.repeat(toy.y["train"], 20)
    np.testing.assert_array_equal(toy.pool_y != truth, toy.is_wrong)


def test_a_wrong_pair_has_the_text_of_another_kind():
    toy = blurred.pairs(0)
    texts, kinds = toy.x["train"][:, 12:], toy.y["train"]
    for i in np.flatnonzero(toy.is_wrong)[:20]:
        (row,) = np.flatnonzero((texts == toy.pool_x[i, 12:]).all(axis=1))
        assert kinds[row] != toy.pool_y[i]
