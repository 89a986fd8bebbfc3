import math

import numpy as np
import pytest

from alignment.evaluation import correlation

ACCURACY, BLEU, PPL = (0.52, 0.60, 0.64, 0.71, 0.75), (0.30, 0.28, 0.35, 0.33, 0.40), (9, 8.5, 7, 7.2, 6)


def value(x, y, kind):
    return correlation.coefficient(np.array(x, float), np.array(y, float), kind)[0]


def test_the_coefficients_are_those_worked_by_hand():
    got = [value(ACCURACY, BLEU, kind) for kind in correlation.KINDS]
    assert got == pytest.approx([0.784429, 0.8, 0.6], abs=1e-6)
    assert correlation.coefficient(np.array(ACCURACY), np.array(BLEU), "pearson")[1] == pytest.approx(
        0.116185, abs=1e-6
    )
    ties = (1, 2, 2, 3), (1, 3, 2, 4)
    assert value(*ties, "spearman") == pytest.approx(0.948683, abs=1e-6)
    assert value(*ties, "kendall") == pytest.approx(0.912871, abs=1e-6)


def test_orientation_turns_perplexities_round():
    scores = np.array([ACCURACY, PPL]).T
    assert correlation.table(scores, "spearman").coefficients[0, 1] == pytest.approx(-0.9)
    turned = correlation.oriented(scores, [False, True])
    assert correlation.table(turned, "spearman").coefficients[0, 1] == pytest.approx(0.9)


def test_p_values_are_corrected_over_the_tests_that_there_are():
    got = correlation.benjamini_hochberg(np.array([0.01, 0.04, np.nan, 0.03, 0.20]))
    np.testing.assert_allclose(got, [0.04, 0.053333, np.nan, 0.053333, 0.20], atol=1e-6)


def test_the_order_of_models_does_not_matter_and_a_constant_column_has_no_coefficient():
    scores = np.array([ACCURACY, BLEU, (1,) * 5, (np.nan, np.nan, 1, 2, 3)]).T
    table = correlation.table(scores, "pearson")
    np.testing.assert_allclose(table.coefficients, correlation.table(scores[::-1], "pearson").coefficients)
    assert np.isnan(table.coefficients[:, 2]).all() and np.isnan(table.q_values[0, 2])
    assert math.isnan(table.coefficients[0, 3]) and table.num_models[0, 3] == 3  # fewer than four have both
    assert table.coefficients[0, 0] == pytest.approx(1) and table.q_values[0, 1] == pytest.approx(0.116185, abs=1e-6)


def test_the_bootstrap_is_seeded_and_holds_the_coefficient():
    x, y = np.arange(12.0), np.arange(12.0) + np.sin(np.arange(12) * 3)
    low, high = correlation.bootstrap(x, y, "pearson", resamples=100)
    assert low <= value(x, y, "pearson") <= high <= 1
    assert correlation.bootstrap(x, y, "pearson", resamples=100) == (low, high)
    assert correlation.bootstrap(np.ones(5), y[:5], "pearson") is None


@pytest.mark.parametrize("kind", correlation.KINDS)
def test_the_bootstrap_resamples_what_the_coefficient_itself_gives(kind):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 9).astype(float), np.append(rng.normal(size=8), np.nan)
    drawn = np.random.default_rng(3).integers(8, size=(50, 8))
    one_by_one = np.array([value(x[:8][index], y[:8][index], kind) for index in drawn])
    low, high = correlation.bootstrap(x, y, kind, resamples=50, seed=3)
    wanted = np.percentile(one_by_one[np.isfinite(one_by_one)], (2.5, 97.5))
    np.testing.assert_allclose((low, high), wanted, atol=1e-9)


def test_columns_that_agree_either_way_are_one_cluster():
    rho = np.array([[1, -0.95, 0.1, np.nan], [-0.95, 1, 0, 0], [0.1, 0, 1, 0.9], [np.nan, 0, 0.9, 1]])
    labels, order = correlation.clusters(rho)
    assert labels == [0, 0, 1, 1] and sorted(order) == [0, 1, 2, 3]
    assert abs(order.index(0) - order.index(1)) == 1
    assert correlation.clusters(rho, 1)[0] == [0, 0, 0, 0] and correlation.clusters(np.ones((1, 1))) == ([0], [0])
