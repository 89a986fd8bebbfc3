import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.preference import batchwise, losses, metrics


def batch(size=16, seed=0):
    rng = np.random.default_rng(seed)
    num_tokens = rng.integers(1, 9, (size, 2))
    reference = -num_tokens * rng.uniform(0.5, 3.0, (size, 2)).astype(np.float32)
    policy = reference + rng.normal(0, 2.0, (size, 2)).astype(np.float32)
    policy[0] = reference[0]  # a tie
    return [jnp.asarray(x) for x in (policy, reference, num_tokens)]


def sums(policy, reference, num_tokens, weights, beta=0.1):
    loss = losses.dpo(policy, reference, beta=beta)
    rewards = losses.rewards("dpo", policy, reference, num_tokens, beta=beta)
    return metrics.pairwise(loss, rewards, policy, reference, num_tokens, weights)


def means(*batches):
    """Add the sums of several batches, then divide, as a loop does."""
    names = batches[0].keys()
    added = {n: tuple(np.sum([np.float64(b[n][i]) for b in batches]) for i in (0, 1)) for n in names}
    return {n: float(total / count) for n, (total, count) in added.items() if count}


def test_worked_numbers():
    policy, reference = jnp.array([[-10.0, -14.0]]), jnp.array([[-11.0, -12.0]])
    got = means(sums(policy, reference, jnp.array([[3, 4]]), jnp.ones(1)))
    expected = {
        "loss": 0.554355,
        "rewards/chosen": 0.1,
        "rewards/rejected": -0.2,
        "rewards/margins": 0.3,
        "rewards/accuracies": 1.0,
        "rewards/ties": 0.0,
        "logps/chosen": -10.0,
        "logps/rejected": -14.0,
        "displacement/chosen": 0.0,
        "displacement/both": 0.0,
        "baseline/longer": 0.0,
        "baseline/longer_ties": 0.0,
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-6), name


def test_accuracy_of_the_worked_batch_counts_a_tie_as_a_miss():
    policy = jnp.array([[3.0, 0.0], [0.0, 0.0], [-2.0, 0.0]])
    got = means(sums(policy, jnp.zeros((3, 2)), jnp.ones((3, 2), int), jnp.ones(3)))
    assert got["rewards/accuracies"] == pytest.approx(1 / 3) and got["rewards/ties"] == pytest.approx(1 / 3)
    assert got["loss"] == pytest.approx(0.681880, abs=1e-6)
    assert got["displacement/chosen"] == pytest.approx(1 / 3) and got["baseline/longer_ties"] == 1.0


def test_displacement_counts_pairs_where_both_answers_fell():
    policy = jnp.array([[-1.0, -3.0], [-1.0, 1.0], [1.0, -1.0], [0.0, -1.0]])
    got = means(sums(policy, jnp.zeros((4, 2)), jnp.ones((4, 2), int), jnp.ones(4)))
    assert got["displacement/chosen"] == 0.5 and got["displacement/both"] == 0.25


def test_sums_of_uneven_batches_add_up_to_the_whole():
    policy, reference, num_tokens = batch()
    whole = means(sums(policy, reference, num_tokens, jnp.ones(16)))
    parts = [
        sums(policy[s], reference[s], num_tokens[s], jnp.ones(n)) for s, n in ((slice(0, 3), 3), (slice(3, 16), 13))
    ]
    added = means(*parts)
    assert added.keys() == whole.keys()
    for name in whole:
        assert added[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-6), name


def test_length_slope_and_correlation_are_those_of_numpy():
    policy, reference, num_tokens = batch(size=64)
    done = metrics.finish(means(sums(policy, reference, num_tokens, jnp.ones(64))))
    margin = 0.1 * np.subtract(*np.asarray(policy - reference, np.float64).T)
    longer = np.subtract(*np.asarray(num_tokens, np.float64).T)
    assert done["length/correlation"] == pytest.approx(np.corrcoef(longer, margin)[0, 1], rel=1e-4)
    assert done["length/slope"] == pytest.approx(np.polyfit(longer, margin, 1)[0], rel=1e-4)
    assert done["baseline/longer"] == pytest.approx((longer > 0).mean())
    assert not any(name.startswith("moments/") for name in done)


def test_undefined_slopes_are_left_out():
    policy, reference, _ = batch()
    same_length = metrics.finish(means(sums(policy, reference, jnp.full((16, 2), 5), jnp.ones(16))))
    assert "length/slope" not in same_length and "length/correlation" not in same_length
    _, reference, num_tokens = batch()
    no_margin = metrics.finish(means(sums(reference, reference, num_tokens, jnp.ones(16))))
    assert no_margin["length/slope"] == 0.0 and "length/correlation" not in no_margin


def test_filling_takes_no_part_even_if_it_is_nan():
    policy, reference, num_tokens = batch()
    weights = jnp.concatenate([jnp.ones(16), jnp.zeros(2)])
    filler = [jnp.full((2, 2), jnp.nan), jnp.full((2, 2), jnp.nan), jnp.zeros((2, 2), int)]
    padded = [jnp.concatenate([x, f]) for x, f in zip((policy, reference, num_tokens), filler)]
    whole, got = means(sums(policy, reference, num_tokens, jnp.ones(16))), means(sums(*padded, weights))
    assert got == pytest.approx(whole, rel=1e-6)


def test_zero_weights_give_zero_sums_and_no_metric():
    policy, reference, num_tokens = batch()
    empty = sums(policy, reference, num_tokens, jnp.zeros(16))
    assert all(float(total) == 0.0 and float(count) == 0.0 for total, count in empty.values())
    assert metrics.finish(means(empty)) == {}


def test_a_metric_that_is_not_a_number_is_not_hidden():
    assert math.isnan(metrics.finish({"loss": math.nan, "rewards/margins": 1.0})["loss"])


def test_sums_agree_under_jit():
    policy, reference, num_tokens = batch()
    weights = jnp.ones(16).at[3].set(0)
    eager, jitted = sums(policy, reference, num_tokens, weights), jax.jit(sums)(policy, reference, num_tokens, weights)
    for name in eager:
        np.testing.assert_allclose(jitted[name], eager[name], rtol=1e-5, atol=1e-5)


def test_unpaired_metrics_separate_good_answers_from_bad():
    policy = jnp.array([[-1.0, -5.0], [-2.0, -6.0], [-9.0, -7.0], [0.0, 0.0]])
    reference = jnp.array([[-3.0, -6.0], [-3.0, -6.0], [-5.0, -6.0], [0.0, 0.0]])
    labels, weights = jnp.array([1.0, 1.0, 0.0, 1.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    loss = batchwise.kto_unpaired(policy, reference, labels, beta=0.5, weights_B=weights)
    rewards = losses.rewards("kto_unpaired", policy, reference, jnp.ones_like(policy), beta=0.5)
    done = metrics.finish(means(metrics.unpaired(loss, rewards, policy, reference, labels, weights)))
    assert done["rewards/chosen"] == pytest.approx(0.75) and done["rewards/rejected"] == pytest.approx(-2.0)
    assert done["rewards/margins"] == pytest.approx(2.75)
    assert done["logps/chosen"] == pytest.approx(-1.5) and done["logps/rejected"] == pytest.approx(-9.0)
    assert done["kl"] == pytest.approx(0.0, abs=1e-6) and done["labels/desirable"] == pytest.approx(2 / 3)
    assert done["displacement/chosen"] == 0.0 and done["displacement/rejected"] == 1.0


@pytest.mark.parametrize(
    ("name", "expected"), [("reference_free", -4.0), ("simpo", -1.0), ("orpo", -1.0), ("ipo", -2.0)]
)
def test_rewards_follow_what_the_loss_compares(name, expected):
    rewards = losses.rewards(name, jnp.array([[-2.0, -8.0]]), jnp.array([[-1.0, -4.0]]), jnp.array([[2, 4]]), beta=0.5)
    assert float(rewards[0, 1]) == expected
