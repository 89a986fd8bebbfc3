import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.evaluation import continuations
from alignment.models import decoder
from alignment.train import sharding

MODEL = decoder.DecoderLM(vocab_size=23, num_layers=1, model_dim=16, num_heads=2, ffn_dim=24)


@pytest.fixture(scope="module")
def params():
    drawn = jax.jit(MODEL.init)(jax.random.PRNGKey(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return jax.tree.map(lambda leaf: 3 * np.asarray(leaf), nn.meta.unbox(drawn))


def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)


@jax.jit
def logits(params, tokens_BT):
    return decoder.logits(MODEL, params, MODEL.apply({"params": params}, tokens_BT))


def slow(params, prompt, rest):
    """One sequence at a time, from whole logits in float64; what is filled up behind it is not seen."""
    ids = [*prompt, *rest]
    logits_TV = np.asarray(logits(params, np.array([ids + [0] * (32 - len(ids))])), np.float64)[0]
    logps_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
    return sum(logps_TV[t - 1, ids[t]] for t in range(len(prompt), len(ids)))


def test_totals_are_those_of_one_sequence_at_a_time_whatever_the_batch(params):
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 23, size=a), rng.integers(0, 23, size=b)) for a, b in [(1, 1), (5, 9), (12, 3), (2, 29)]]
    expected = [slow(params, prompt.tolist(), rest.tolist()) for prompt, rest in pairs]
    for batch_size in (2, 8):
        total_N, length_N = continuations.logps(MODEL, params, pairs, mesh(), batch_size=batch_size)
        np.testing.assert_allclose(total_N, expected, rtol=1e-4, atol=1e-4)
        assert length_N.tolist() == [1, 9, 3, 29]


def test_the_best_choice_may_change_when_lengths_count():
    total_NC, length_NC = np.array([[-4.0, -6.0], [-1.0, -1.0]]), np.array([[2, 6], [1, 1]])
    assert continuations.best(total_NC).tolist() == [0, 0]
    assert continuations.best(total_NC, length_NC).tolist() == [1, 0]


def test_an_empty_prompt_or_continuation_is_refused(params):
    with pytest.raises(InputError, match="sequence 1 has 0 tokens of prompt"):
        continuations.logps(MODEL, params, [([1], [2]), ([], [2])], mesh())
