import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from alignment.decoding import sampling

V = 50


def slow_keep(logits, top_k, top_p, min_p):
    """The kept ids of one row by sorting, in float64: top-k, then top-p of what is left, then min-p."""
    order = np.argsort(-logits, kind="stable")
    kept = order[:top_k] if top_k else order
    mass = np.exp(logits[kept] - logits.max())
    if top_p < 1:
        before = np.cumsum(mass) - mass  # a token stays while those before it weigh less than top_p
        kept = kept[before < top_p * mass.sum()]
    return {int(i) for i in kept if logits[i] >= logits.max() + np.log(max(min_p, 1e-300))}


@pytest.mark.parametrize("seed", range(5))
def test_filters_keep_what_a_sort_keeps(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, size=(40, V)).astype(np.float32)
    top_k = rng.choice([0, 1, 3, 20, V], size=40)
    top_p = rng.choice([1.0, 0.9, 0.5, 0.05], size=40)
    min_p = rng.choice([0.0, 0.01, 0.3, 1.0], size=40)
    kept = jax.jit(sampling.keep)(logits, jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p))
    for row in range(40):
        wanted = slow_keep(logits[row].astype(np.float64), top_k[row], top_p[row], min_p[row])
        assert set(np.flatnonzero(np.isfinite(kept[row]))) == wanted


def test_tokens_that_tie_with_the_last_kept_one_stay():
    kept = sampling.keep(jnp.float32([[2.0, 1.0, 1.0, 0.0]]), jnp.int32([2]), jnp.float32([1.0]), jnp.float32([0.0]))
    assert np.isfinite(np.asarray(kept))[0].tolist() == [True, True, True, False]


def test_zeros_of_both_signs_tie():
    kept = sampling.keep(jnp.float32([[0.0, -0.0, -1.0]]), jnp.int32([1]), jnp.float32([1.0]), jnp.float32([0.0]))
    assert np.isfinite(np.asarray(kept))[0].tolist() == [True, True, False]


def options(B, **values):
    base = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, sample=0)
    dtypes = dict(top_k=jnp.int32, seed=jnp.uint32, sample=jnp.uint32)
    return {
        name: jnp.broadcast_to(jnp.asarray(values.get(name, value), dtypes.get(name, jnp.float32)), (B,))
        for name, value in base.items()
    }


def test_the_best_token_is_the_first_of_the_largest():
    x = jnp.float32([[1, 3, 3, 2], [-1, -5, -1, -1]])
    assert sampling.best(x).tolist() == [1, 0] == jnp.argmax(x, axis=1).tolist()


def test_draws_follow_the_softmax_at_a_temperature():
    num, temperature = 20_000, 1.7
    logits = np.array([0.0, 1.0, -1.0, 2.5], np.float32)
    chosen = sampling.choose(
        jnp.tile(logits[None], (num, 1)),
        options(num, temperature=temperature),
        jnp.arange(num),
        jnp.ones(num, bool),
    )
    counts = np.bincount(np.asarray(chosen), minlength=4)
    p = np.exp(logits.astype(np.float64) / temperature)
    p /= p.sum()
    assert scipy.stats.chisquare(counts, num * p).pvalue > 1e-3


def test_a_row_draws_the_same_in_any_company():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, V)), jnp.float32)
    mixed = options(6, temperature=[0, 1, 0.5, 2, 1, 0], top_k=[0, 0, 5, 0, 3, 0], seed=[1, 2, 3, 4, 5, 6])
    together = sampling.choose(logits, mixed, jnp.arange(6), jnp.ones(6, bool))
    for i in range(6):
        alone = {name: jnp.tile(x[i : i + 1], 6) for name, x in mixed.items()}
        one = sampling.choose(jnp.tile(logits[i : i + 1], (6, 1)), alone, jnp.full(6, i), jnp.arange(6) == 4)
        assert one[4] == together[i]


def test_seed_sample_and_position_give_noise_of_their_own():
    noise = [
        np.asarray(sampling.gumbel(jnp.uint32([a]), jnp.uint32([b]), jnp.array([c]), 8))
        for a, b, c in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    for i in range(4):
        for j in range(i):
            assert not np.allclose(noise[i], noise[j])


def test_penalties_and_bias_are_the_formulas():
    logits = np.array([[2.0, -2.0, 1.0, 0.5]], np.float32)
    row = dict(repetition_penalty=[2.0], frequency_penalty=[0.5], presence_penalty=[0.25])
    row = {name: jnp.float32(x) for name, x in row.items()}
    row |= {"bias": jnp.float32([[0, 0, 0, 7.0]]), "has_bias": jnp.array([True])}
    written, in_prompt = jnp.array([[3, 0, 0, 0]]), jnp.array([[False, True, False, False]])
    got = sampling.adjust(jnp.asarray(logits), row, written, in_prompt, jnp.array([True]))
    np.testing.assert_allclose(got, [[2.0 / 2 - 3 * 0.5 - 0.25, -2.0 * 2, 1.0, 0.5 + 7]])


def test_what_an_idle_row_wants_costs_nothing():
    """The costly branches would divide by this row's penalty of 0, and drop all but one token of the other row."""
    row = dict(repetition_penalty=[0.0, 1.0], frequency_penalty=[0.0, 0.0], presence_penalty=[0.0, 0.0])
    row = {name: jnp.float32(x) for name, x in row.items()}
    row |= {"bias": jnp.ones((2, 4)), "has_bias": jnp.array([True, False])}
    logits, is_live = jnp.float32([[2.0, -2.0, 1.0, 0.5]] * 2), jnp.array([False, True])
    got = sampling.adjust(logits, row, jnp.ones((2, 4), jnp.int32), jnp.ones((2, 4), bool), is_live)
    np.testing.assert_array_equal(got, logits)


def test_log_probabilities_come_with_the_best_tokens():
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, size=(3, V)), jnp.float32)
    exact = np.asarray(jax.nn.log_softmax(logits))
    chosen = jnp.array([4, 0, 49])
    got, (ids, top) = jax.jit(sampling.logprobs)(logits, chosen, jnp.bool_(True))
    np.testing.assert_allclose(got, exact[np.arange(3), chosen], atol=1e-5)
    np.testing.assert_array_equal(ids, np.argsort(-exact, axis=1)[:, : sampling.NUM_TOP])
    np.testing.assert_allclose(top, -np.sort(-exact, axis=1)[:, : sampling.NUM_TOP], atol=1e-5)


def test_the_best_tokens_of_logits_that_lie_on_several_devices():
    """XLA aborts where the program's top_k is one that it cannot split, so this runs the program as it is compiled."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("tensor",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "tensor"))
    logits_BV = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    chosen_B = jnp.array([3, 4])
    _, (ids_BE, _) = jax.jit(sampling.logprobs)(jax.device_put(logits_BV, spread), chosen_B, jnp.array(True))
    assert ids_BE.tolist() == np.argsort(-logits_BV)[:, : ids_BE.shape[1]].tolist()
