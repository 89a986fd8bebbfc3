import jax.numpy as jnp

from alignment.decoding import speculation


def guesses(row, last, num=3):
    return speculation.look_up(jnp.array([row]), jnp.array([last]), num)[0].tolist()


def test_the_longest_match_wins_then_the_latest():
    #      0  1  2  3  4  5  6  7  8  9
    row = [1, 2, 3, 9, 2, 3, 7, 1, 2, 3, 0, 0, 0, 0]
    assert guesses(row, 9) == [9, 2, 3]  # 1 2 3 stood at 0, the shorter 2 3 at 4
    assert guesses(row, 8) == [3, 9, 2]  # 1 2 again
    assert guesses([5, 1, 5, 2, 5, 0, 0, 0], 4) == [2, 5, 0]


def test_rows_look_back_in_themselves_only():
    rows = jnp.array([[4, 1, 4, 0, 0, 0], [9, 9, 4, 0, 0, 0]])
    assert speculation.look_up(rows, jnp.array([2, 2]), 2)[0].tolist() == [1, 4]
