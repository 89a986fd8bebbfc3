"""The worked numbers are those of a plain evaluation in float64 of the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.decoding import guided

BASE, REWARD, OTHER = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]


def combined(models, weights, temperature=1.0, shift=0.0):
    logits = [jnp.log(jnp.float32(p))[None, None] + shift for p in models]
    scores = guided.combine(guided.logprobs(logits), jnp.float32(weights)[:, None], logits[0])
    return np.asarray(jax.nn.softmax(scores[0, 0] / temperature))


@pytest.mark.parametrize(
    ("alpha", "wanted"),
    [
        (0.0, BASE),
        (0.5, [0.316204, 0.464723, 0.219073]),
        (1.0, [0.172414, 0.620690, 0.206897]),
        (2.0, [0.038168, 0.824427, 0.137405]),
        (200.0, [0.0, 1.0, 0.0]),
    ],
)
def test_one_reward_model_tilts_the_base(alpha, wanted):
    np.testing.assert_allclose(combined([BASE, REWARD], [1.0, alpha]), wanted, atol=2e-6)


def test_two_reward_models_have_weights_of_their_own_in_any_order():
    wanted = [0.259381, 0.381210, 0.359409]
    np.testing.assert_allclose(combined([BASE, REWARD, OTHER], [1, 0.5, 1]), wanted, atol=2e-6)
    np.testing.assert_allclose(combined([BASE, OTHER, REWARD], [1, 1, 0.5]), wanted, atol=2e-6)


def test_an_average_at_half_the_temperature_is_the_sum():
    np.testing.assert_allclose(combined([BASE, REWARD], [0.5, 0.5]), [0.250450, 0.475196, 0.274354], atol=2e-6)
    np.testing.assert_allclose(
        combined([BASE, REWARD], [0.5, 0.5], temperature=0.5), combined([BASE, REWARD], [1, 1]), atol=1e-6
    )


def test_constants_on_logits_change_nothing_and_tokens_may_be_renamed():
    np.testing.assert_allclose(
        combined([BASE, REWARD], [1, 0.7], shift=7.0), combined([BASE, REWARD], [1, 0.7]), atol=1e-6
    )
    order = [2, 0, 1]
    renamed = [[p[i] for i in order] for p in (BASE, REWARD)]
    np.testing.assert_allclose(combined(renamed, [1, 0.7]), combined([BASE, REWARD], [1, 0.7])[order], atol=1e-7)


@pytest.mark.parametrize(
    ("alpha", "reward"), [(1.0, [0.512195, 0.121951, 0.365854]), (0.5, [0.638205, 0.036179, 0.325615])]
)
def test_any_target_is_reached_by_its_reward_model(alpha, reward):
    target = np.array([0.7, 0.1, 0.2])
    exact = (target / BASE) ** (1 / alpha)
    exact /= exact.sum()
    np.testing.assert_allclose(exact, reward, atol=1e-6)
    np.testing.assert_allclose(combined([BASE, exact], [1.0, alpha]), target, atol=1e-6)


def test_guiding_token_by_token_is_not_guiding_whole_answers():
    base_1, base_2 = np.array([0.6, 0.4]), np.array([[0.5, 0.5], [0.9, 0.1]])
    reward_1, reward_2 = np.array([0.5, 0.5]), np.array([[0.9, 0.1], [0.2, 0.8]])
    whole = (base_1 * reward_1)[:, None] * base_2 * reward_2
    whole /= whole.sum()
    np.testing.assert_allclose(whole.ravel(), [0.668317, 0.074257, 0.178218, 0.079208], atol=1e-6)
    first = combined([base_1, reward_1], [1, 1])
    second = np.stack([combined([base_2[i], reward_2[i]], [1, 1]) for i in range(2)])
    by_token = first[:, None] * second
    np.testing.assert_allclose(by_token.ravel(), [0.54, 0.06, 0.276923, 0.123077], atol=1e-6)
    np.testing.assert_allclose(np.sum(by_token * np.log(by_token / whole)), 0.0483774, atol=1e-6)


def test_a_token_that_one_model_rules_out_is_ruled_out_unless_its_weight_is_zero():
    closed = [0.0, 0.7, 0.3]
    for weight in (1.0, -1.0):
        p = combined([BASE, closed], [1.0, weight])
        assert p[0] == 0 and np.isfinite(p).all() and (p[1:] > 0).all()
    np.testing.assert_allclose(combined([BASE, closed], [1.0, 0.0]), BASE, atol=1e-7)
    np.testing.assert_allclose(combined([BASE, REWARD, closed], [1.0, 1.0, 0.0]), combined([BASE, REWARD], [1, 1]))


def test_a_row_whose_guides_weigh_nothing_has_the_base_s_logits_as_they_are():
    rng = np.random.default_rng(0)
    logits = [jnp.float32(rng.normal(size=(2, 1, 50))) for _ in range(2)]
    scores = guided.combine(guided.logprobs(logits), jnp.float32([[1, 1], [0, 0.5]]), logits[0])
    assert np.array_equal(scores[0], logits[0][0]) and not np.array_equal(scores[1], logits[0][1])


def test_what_lies_beyond_the_tokenizer_is_cut_before_a_model_is_normalised():
    base, larger = jnp.log(jnp.float32([*BASE, 0.9]))[None, None], jnp.log(jnp.float32([*REWARD, 5.0, 9.0]))[None, None]
    logps = guided.logprobs([base, larger], 3)
    np.testing.assert_allclose(np.exp(logps[0][0, 0]), [*BASE, 0], atol=1e-6)
    np.testing.assert_allclose(np.exp(logps[1][0, 0]), [*REWARD, 0], atol=1e-6)
