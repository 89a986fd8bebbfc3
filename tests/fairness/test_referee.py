import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.fairness import referee

M = jnp.array([0.9, 0.7, 0.5, 0.7])


def trained(width=4, encoding=3, seed=0):
    """Parameters of a referee whose last layer is not zero."""
    one = np.ones(1)
    phi = jax.jit(referee.Referee(width).init)(jax.random.PRNGKey(seed), one, np.ones((1, encoding)), one)["params"]
    return phi | {"out": jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape) + 0.3, phi["out"])}


def test_the_hand_made_rule_of_the_worked_example():
    rates = referee.hand_made(M, 0.72)
    np.testing.assert_allclose(rates, np.array([0, 4.545455e-5, 5e-4, 4.545455e-5]) + 1e-7, rtol=1e-5)
    np.testing.assert_allclose(referee.hand_made(M, 0.4), 1e-7)
    np.testing.assert_allclose(referee.hand_made(M, 0.72, as_released=True), 1e-3)


def test_filling_does_not_set_the_largest_gap():
    rates = referee.hand_made(jnp.append(M, 0.0), 0.72, weight_S=jnp.array([1.0, 1, 1, 1, 0]))
    np.testing.assert_allclose(rates[2], 5e-4 + 1e-7, rtol=1e-5)


def test_an_untrained_referee_leaves_every_rate_as_it_is():
    one = jnp.ones(5)
    network = referee.Referee()
    losses, encodings = jnp.arange(5.0), jnp.ones((5, 3))
    raw, _ = jax.jit(network.init_with_output)(jax.random.PRNGKey(0), losses, encodings, one)
    np.testing.assert_array_equal(raw, 1.0)
    np.testing.assert_array_equal(referee.normalise(raw, one), 1.0)


def test_factors_follow_their_places_have_mean_1_and_ignore_filling():
    rng = np.random.default_rng(0)
    losses, encodings, one = rng.random(6), rng.random((6, 3)), np.ones(6)
    phi = trained()

    @jax.jit
    def factors(losses, encodings, weights):
        raw = referee.Referee(4).apply({"params": phi}, losses, encodings, weights)
        return referee.normalise(raw, weights)

    plain = factors(losses, encodings, one)
    assert float(jnp.std(plain)) > 0.01 and abs(float(plain.mean()) - 1) < 1e-6
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(factors(losses[order], encodings[order], one), plain[order], rtol=1e-5)
    longer = [np.concatenate([leaf, 9 * np.ones_like(leaf[:2])]) for leaf in (losses, encodings)]
    filled = factors(*longer, np.append(one, [0, 0]))
    np.testing.assert_allclose(filled[:6], plain, rtol=1e-5)
    np.testing.assert_allclose(factors(losses[:1], encodings[:1], one[:1]), 1.0)
    same = factors(np.full(6, 0.7), np.ones((6, 3)), one)
    np.testing.assert_allclose(same, 1.0, rtol=1e-6)


def test_group_dro_gives_the_worst_place_most():
    factors = referee.group_dro(jnp.array([1.0, 2.0, 9.0]), jnp.array([1.0, 1.0, 0.0]), rate=1.0)
    np.testing.assert_allclose(factors, [2 / (1 + np.e), 2 * np.e / (1 + np.e), 0], rtol=1e-6)


def test_raw_factors_that_cannot_be_normalised_are_refused():
    weights = np.ones((2, 2))
    referee.check_raw([[0.0, 1.0], [2.0, 2.0]], weights)
    for bad in ([[1.0, 1.0], [0.0, 0.0]], [[1.0, -0.1], [1.0, 1.0]], [[1.0, np.nan], [1.0, 1.0]]):
        with pytest.raises(InputError, match="none below 0 and one above it"):
            referee.check_raw(bad, weights)
