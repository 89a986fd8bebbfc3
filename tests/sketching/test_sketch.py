import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.sketching import hashes, sketch
from alignment.sketching.hashes import Table
from tests.sketching.worked import PATH_NN, dense

X = jnp.arange(1.0, 7.0)[:, None]


def table(bucket, signs, width):
    return Table(np.array(bucket, np.int32), np.array([1.0 if s == "+" else -1.0 for s in signs]), width)


THREE = [
    table([0, 2, 1, 0, 2, 1], "+-++--", 3),
    table([1, 1, 0, 2, 0, 2], "++-+++", 3),
    table([2, 0, 1, 1, 0, 2], "-++-+-", 3),
]


def test_a_count_sketch_and_its_return_are_those_worked_by_hand():
    first = THREE[0]
    sketched = sketch.count_sketch(X, first.bucket_N, first.value_N, 3)
    np.testing.assert_allclose(sketched[:, 0], [5, -3, -7])
    np.testing.assert_allclose(sketch.unsketch(sketched, first.bucket_N, first.value_N)[:, 0], [5, 7, -3, 5, 7, 3])
    np.testing.assert_allclose(np.diag(dense(first) @ dense(first).T), [2, 2, 2])


def test_the_median_and_mean_of_three_tables_are_those_worked_by_hand():
    back = [sketch.unsketch(sketch.count_sketch(X, t.bucket_N, t.value_N, 3), t.bucket_N, t.value_N) for t in THREE]
    back_TN = np.stack(back)[..., 0]
    np.testing.assert_allclose(np.median(back_TN, axis=0), [5, 7, -2, 5, 7, 7])
    np.testing.assert_allclose(back_TN.mean(axis=0), [5, 17 / 3, -2, 16 / 3, 16 / 3, 20 / 3], rtol=1e-6)


@pytest.mark.parametrize(("width", "expected"), [(4, [5, -10, 4, -2]), (5, [-12, 7, -2, -2, 6])])
def test_a_tensor_sketch_of_even_and_odd_width_is_that_worked_by_hand(width, expected):
    z = jnp.array([1.0, 2.0, -1.0, 3.0])[:, None]
    both = [table([0, 3, 1, 2], "+-++", width), table([2, 2, 0, 3], "-++-", width)]
    counts = jnp.stack([sketch.count_sketch(z, t.bucket_N, t.value_N, width) for t in both])
    np.testing.assert_allclose(sketch.tensor_sketches(counts)[1, :, 0], expected, atol=1e-5)


def test_without_its_length_the_inverse_transform_of_an_odd_width_gives_other_numbers():
    """What the released program computes at odd widths: one row fewer."""
    z = jnp.array([1.0, 2.0, -1.0, 3.0])[:, None]
    both = [table([0, 3, 1, 2], "+-++", 5), table([2, 2, 0, 3], "-++-", 5)]
    spectra = [jnp.fft.rfft(sketch.count_sketch(z, t.bucket_N, t.value_N, 5), axis=0) for t in both]
    short = jnp.fft.irfft(spectra[0] * spectra[1], axis=0)[:, 0]
    np.testing.assert_allclose(short, [-9.061678, 5.663850, -4.314967, 4.712794], atol=1e-5)


def every_table(num_nodes, width):
    """All hashes with all signs, as matrices."""
    for bucket in itertools.product(range(width), repeat=num_nodes):
        for signs in itertools.product((1.0, -1.0), repeat=num_nodes):
            out = np.zeros((width, num_nodes))
            out[bucket, range(num_nodes)] = signs
            yield out


ALL = np.stack(list(every_table(3, 2)))


def second_order(first_TC, second_TC):
    """Circular convolution of two sketches of width 2, the slow way."""
    a, b = first_TC, second_TC
    return np.stack([a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1], a[:, 0] * b[:, 1] + a[:, 1] * b[:, 0]], axis=1)


@pytest.mark.parametrize(
    ("u", "v", "order_1", "order_2", "same"),
    [
        ([1, 2, -1], [0.5, 1, 2], (0.5, 7.625), (0.25, 120.09375), 15.5),
        ([1, 1, 0], [1, 0, 1], None, (1.0, 7.5), 4.0),
    ],
)
def test_mean_and_variance_over_all_hashes_are_those_of_the_theory(u, v, order_1, order_2, same):
    u, v = np.array(u, float), np.array(v, float)
    us, vs = ALL @ u, ALL @ v
    if order_1:
        products = np.sum(us * vs, axis=1)
        np.testing.assert_allclose([products.mean(), products.var()], order_1)
        theory = ((u @ u) * (v @ v) + (u @ v) ** 2 - 2 * (u**2 @ v**2)) / 2  # of a count sketch of two rows
        np.testing.assert_allclose(theory, order_1[1])
    first, second = (index.ravel() for index in np.indices((64, 64)))
    products = np.sum(second_order(us[first], us[second]) * second_order(vs[first], vs[second]), axis=1)
    np.testing.assert_allclose([products.mean(), products.var()], order_2)
    assert products.var() <= (2 + 3**2) * (u @ u) ** 2 * (v @ v) ** 2 / 2
    shared = np.sum(second_order(us, us) * second_order(vs, vs), axis=1)
    np.testing.assert_allclose(shared.mean(), same)  # one table for both orders is biased


def test_hashes_shared_by_adjacent_layers_add_a_self_loop_and_independent_ones_do_not():
    y = np.array([1.0, 2.0, -1.0])
    projections = np.einsum("tcn,tcm->tnm", ALL, ALL)
    mean = projections.mean(axis=0)
    np.testing.assert_allclose(mean @ PATH_NN @ mean @ y, PATH_NN @ y, atol=1e-12)
    np.testing.assert_allclose(PATH_NN @ y, [1.316497, 0.666667, 0.316497], atol=1e-6)
    shared = np.mean([p @ PATH_NN @ p @ y for p in projections], axis=0)
    np.testing.assert_allclose(shared, [2.141412, 1.666667, 0.308078], atol=1e-6)


def test_a_residual_add_between_independent_hashes_would_be_pure_noise():
    """E[R'^T R] = 0 and E|R'^T R x|^2 = |x|^2 n / c: 9, where |x|^2 = 6."""
    x = np.array([1.0, 2.0, -1.0])
    mean = ALL.mean(axis=0)
    np.testing.assert_allclose(mean.T @ mean, 0, atol=1e-12)
    lengths = [np.sum((other.T @ (ALL @ x).T) ** 2, axis=0).mean() for other in ALL]
    np.testing.assert_allclose(np.mean(lengths), 9)
    assert hashes.shares_layers("order_distinct") and hashes.shares_layers("all_same")
    assert not hashes.shares_layers("all_distinct") and not hashes.shares_layers("layer_distinct")


@pytest.mark.parametrize(
    ("mode", "number"), [("all_distinct", 12), ("layer_distinct", 6), ("order_distinct", 4), ("all_same", 2)]
)
def test_a_mode_says_which_hashes_are_the_same_object(mode, number):
    tables = hashes.random_tables(mode, 5, 3, seed=0, num_layers=2, order=2, blocks=2)
    assert len({id(t) for layer in tables for row in layer for t in row}) == number
    assert (tables[0][0][0] is tables[2][0][0]) == hashes.shares_layers(mode)


def test_a_seed_restores_hashes_bit_for_bit_and_another_seed_does_not():
    once, again, other = (hashes.random_tables("all_distinct", 50, 7, seed=s, num_layers=1, order=2) for s in (3, 3, 4))
    for layer, layer_again in zip(once, again):
        for row, row_again in zip(layer, layer_again):
            np.testing.assert_array_equal(row[0].bucket_N, row_again[0].bucket_N)
            np.testing.assert_array_equal(row[0].value_N, row_again[0].value_N)
    assert (once[0][0][0].bucket_N != other[0][0][0].bucket_N).any()
    assert {*np.unique(once[0][0][0].value_N)} == {-1.0, 1.0}


def test_bad_widths_orders_and_modes_are_refused():
    with pytest.raises(InputError, match="at least 2"):
        hashes.draw(5, 1, np.random.default_rng(0))
    with pytest.raises(InputError, match="order=0 must be at least 1"):
        hashes.random_tables("all_same", 5, 3, seed=0, num_layers=1, order=0)
    with pytest.raises(InputError, match="order_distinct"):
        hashes.random_tables("order_distinc", 5, 3, seed=0, num_layers=1, order=1)


def test_the_error_of_a_norm_falls_with_the_number_of_tables_as_the_theory_says():
    """sqrt(1 + (n - 1) / (c T)) - 1: 22.5, 11.8, 8.0, 6.1 % at n = 2,048, c = 128."""
    n, c = 2_048, 128
    x = jax.random.normal(jax.random.PRNGKey(0), (n, 8))
    total = jnp.zeros_like(x)
    for number in range(1, 129):
        t = hashes.draw(n, c, np.random.default_rng(number))
        total += sketch.unsketch(sketch.count_sketch(x, t.bucket_N, t.value_N, c), t.bucket_N, t.value_N)
        if number in (32, 64, 96, 128):
            error = float(jnp.linalg.norm(total / number) / jnp.linalg.norm(x)) - 1
            assert error == pytest.approx((1 + (n - 1) / (c * number)) ** 0.5 - 1, abs=0.015)
