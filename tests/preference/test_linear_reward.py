import numpy as np
import pytest

from alignment.errors import InputError
from alignment.preference import linear_reward
from tests.decoding.models import random_lm


def test_the_fit_satisfies_its_own_equation_and_ranks_what_is_linear():
    rng = np.random.default_rng(0)
    truth_E = np.array([1.0, -2.0, 0.5, 0.0])
    features_NE = rng.normal(size=(400, 4)) * [1, 3, 0.1, 1]
    first, second = features_NE[:200], features_NE[200:]
    is_swapped_B = (first - second) @ truth_E < 0
    chosen = np.where(is_swapped_B[:, None], second, first)
    rejected = np.where(is_swapped_B[:, None], first, second)
    reward = linear_reward.fit(chosen, rejected, penalty=1.0)
    assert np.mean(reward.of(chosen) > reward.of(rejected)) > 0.97
    scale_E = np.concatenate([chosen, rejected]).std(axis=0) + 1e-6  # the gradient in scaled features is 0
    margin_B = reward.of(chosen) - reward.of(rejected)
    slope_E = -((chosen - rejected) / scale_E).T @ (1 / (1 + np.exp(margin_B))) + reward.weights_E * scale_E
    np.testing.assert_allclose(slope_E / 200, 0, atol=2e-3)


def test_features_are_means_over_the_answer_and_its_last_token_whatever_the_padding():
    model, params = random_lm()
    prompt, answer = [3, 4, 5], [6, 7]
    short = linear_reward.features(model, params, [([*prompt, *answer], 3)])
    beside_long = linear_reward.features(model, params, [([*prompt, *answer], 3), ([1] * 40, 2)])
    np.testing.assert_allclose(short[0], beside_long[0], atol=1e-5)
    hidden_TD = np.asarray(model.apply({"params": params}, np.array([[*prompt, *answer]])))[0]
    np.testing.assert_allclose(short[0], np.concatenate([hidden_TD[3:].mean(axis=0), hidden_TD[4]]), atol=1e-5)


def test_nothing_to_fit_and_broken_features_are_refused():
    with pytest.raises(InputError, match="no pair"):
        linear_reward.fit(np.zeros((0, 4)), np.zeros((0, 4)))
    with pytest.raises(InputError, match="not finite"):
        linear_reward.fit(np.full((2, 4), np.nan), np.zeros((2, 4)))
