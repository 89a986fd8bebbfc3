import numpy as np
import pytest

from alignment.errors import InputError
from alignment.sketching import polynomial


@pytest.mark.parametrize(
    ("activation", "degree", "radius", "expected", "rmse"),
    [
        ("relu", 2, 1.0, [3 / 32, 1 / 2, 15 / 32], None),
        ("relu", 2, 3.0, [0.28125, 0.5, 0.15625], 0.1083),
        ("sigmoid", 3, 3.0, [0.5, 0.233246, 0, -0.009809], 0.0064),
        ("tanh", 3, 3.0, [0, 0.722427, 0, -0.049473], None),
        ("elu", 3, 3.0, [0.057468, 0.804999, 0.116967, -0.018424], 0.0473),
    ],
)
def test_least_squares_gives_the_worked_coefficients(activation, degree, radius, expected, rmse):
    a = polynomial.least_squares(activation, degree, radius=radius)
    np.testing.assert_allclose(a, expected, atol=1e-6)
    z = np.linspace(-radius, radius, 100_001)
    error = np.polynomial.polynomial.polyval(z, a) - polynomial.ACTIVATIONS[activation](z)
    if rmse is not None:
        assert np.sqrt(np.mean(error**2)) == pytest.approx(rmse, abs=1e-4)


def test_without_a_constant_relu_has_other_coefficients():
    a = polynomial.least_squares("relu", 2, has_constant=False)
    np.testing.assert_allclose(a, [0, 0.5, 0.208333], atol=1e-6)


def test_expansions_at_zero_are_the_known_ones_and_relu_has_none():
    np.testing.assert_allclose(polynomial.taylor("sigmoid", 3), [0.5, 0.25, 0, -1 / 48])
    np.testing.assert_allclose(polynomial.taylor("tanh", 3), [0, 1, 0, -1 / 3])
    with pytest.raises(InputError, match="least_squares"):
        polynomial.taylor("relu", 2)
    with pytest.raises(InputError, match="up to 3"):
        polynomial.taylor("tanh", 5)


def slow_ridge(z, sizes, target, penalties):
    """The normal equations in powers of z, in float64."""
    v = np.stack([z**k for k in range(len(penalties))], axis=1)
    return np.linalg.solve(v.T @ (sizes[:, None] * v) + np.diag(penalties**2), v.T @ (sizes * target))


def test_ridge_agrees_with_the_normal_equations_and_shrinks_noisy_orders():
    z = np.random.default_rng(0).normal(size=400)
    u, v = np.full(5, 0.3), np.full(4, 0.7)
    centres, sizes = polynomial.k_centres(z, 10)
    penalties = np.array(
        [0.0] + [np.sqrt(3 * (2 + 3**k) * 5 * 0.3 ** (2 * k) * 4 * 0.7 ** (2 * k) / 64) for k in (1, 2, 3)]
    )
    expected = slow_ridge(centres, sizes, np.tanh(centres), penalties)
    a = polynomial.ridge("tanh", z, 3, row_norms=(u, v), width=64)
    np.testing.assert_allclose(a, expected, atol=1e-8)
    wide = polynomial.ridge("tanh", z, 3, row_norms=(u, v), width=10**9)
    assert abs(a[3]) < abs(wide[3])


def test_k_centres_are_the_furthest_samples_and_count_all():
    centres, sizes = polynomial.k_centres(np.array([0.0, 0.1, 5.0, 5.2, -3.0]), 3)
    np.testing.assert_allclose(centres, [0.0, 5.2, -3.0])
    np.testing.assert_allclose(sizes, [2, 2, 1])
