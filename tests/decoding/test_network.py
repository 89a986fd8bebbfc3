import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.decoding import layout, network
from alignment.errors import InputError
from tests.decoding.models import VOCAB, all_logits, random_lm

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
KINDS = {
    "llama3": dict(rope_scaling=LLAMA3),
    "tied": dict(tie_embeddings=True),
    "qwen2.5": dict(qkv_bias=True),
    "qwen3": dict(qk_norm=True, head_dim=8),
    "mistral": dict(sliding_window=6),
    "mixed layers": dict(sliding_window=5, layer_types=("full_attention", "sliding_attention")),
    "one key head": dict(num_kv_heads=1),
    "as many key heads": dict(num_kv_heads=4, rope_scaling=YARN),
}


@functools.partial(jax.jit, static_argnums=0)
def prefill(model, weights, cache, tokens_C, start, slot):
    positions_1C = (start + jnp.arange(len(tokens_C)))[None]
    return network.forward(model, weights, cache, tokens_C[None], positions_1C, first_row=slot, is_chunk=True)[1]


@functools.partial(jax.jit, static_argnums=(0, 5))
def step(model, weights, cache, token, position, num_slots, slot):
    positions_B1 = jnp.where(jnp.arange(num_slots) == slot, position, 0)[:, None]
    is_live_B = jnp.arange(num_slots) == slot
    tokens_B1 = jnp.full((num_slots, 1), token)
    hidden_B1D, cache = network.forward(model, weights, cache, tokens_B1, positions_B1, is_live_R=is_live_B)
    return network.logits(weights, hidden_B1D[slot]), cache


def stepwise_logits(lm, tokens, num_prefilled, *, block, chunk, slot=1, num_slots=3, max_len=48, dtype=""):
    """Logits behind each token from `num_prefilled` on, one step at a time, in one slot of several."""
    model, params = lm
    weights = layout.prepare(model, params, dtype=dtype)
    cache = network.init_cache(model, num_slots, max_len, block=block, chunk=chunk, dtype=dtype)
    # left-over keys of another request lie in the slot: they must not matter
    cache = jax.tree.map(lambda x: x + jnp.asarray(3, x.dtype), cache)

    for at in range(0, num_prefilled, chunk):
        part = np.resize([*tokens[at : min(at + chunk, num_prefilled)], *[VOCAB - 1] * chunk], chunk)
        cache = prefill(model, weights, cache, part, jnp.int32(at), jnp.int32(slot))
    out = []
    for position in range(num_prefilled, len(tokens)):
        place = jnp.int32(position), num_slots, jnp.int32(slot)
        logits_1V, cache = step(model, weights, cache, jnp.int32(tokens[position]), *place)
        out.append(np.asarray(logits_1V[0]))
    return np.array(out)


@pytest.mark.parametrize("kind", KINDS)
def test_stepwise_logits_equal_those_of_the_whole_sequence(kind):
    lm = random_lm(**KINDS[kind])
    tokens = np.random.default_rng(0).integers(0, VOCAB, size=40).tolist()
    for num_prefilled in (0, 19):
        got = stepwise_logits(lm, tokens, num_prefilled, block=4, chunk=8)
        np.testing.assert_allclose(got, all_logits(lm, tokens)[num_prefilled:], atol=1e-4)


def test_a_window_needs_a_ring_of_fixed_length_only():
    model, _ = random_lm(sliding_window=6, layer_types=("full_attention", "sliding_attention"))
    full, ring = network.init_cache(model, 2, 4_096, block=4, chunk=8)
    assert full["keys"].shape[0] == 1_024
    assert ring["keys"].shape[0] == 5  # window and chunk, 14 positions, rounded up, and one block


def test_preparing_leaves_the_parameters_alone_and_splits_the_layers():
    model, params = random_lm(tie_embeddings=True)
    weights = layout.prepare(model, params)
    assert len(weights["layers"]) == model.num_layers
    np.testing.assert_array_equal(weights["head"], np.asarray(params["embedding"]).T)
    np.testing.assert_array_equal(
        weights["layers"][1]["query"], np.asarray(params["layers"]["query"][1]).reshape(model.model_dim, -1)
    )
    assert not params["embedding"].is_deleted()


def test_parameters_that_are_freed_leave_the_same_weights():
    model, params = random_lm()
    wanted = layout.prepare(model, params)
    params = jax.tree.map(jnp.array, params)
    weights = layout.prepare(model, params, frees_params=True)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), weights, wanted))
    assert all(x.is_deleted() for x in params["layers"].values()) and not params["embedding"].is_deleted()


def test_preparing_again_compiles_nothing(compilations):
    model, params = random_lm()
    layout.prepare(model, params)
    compilations.clear()
    layout.prepare(model, params)
    assert compilations == []


def test_copied_blocks_are_the_source_s_bits_and_only_those():
    model, _ = random_lm()
    cache = network.init_cache(model, 3, 32, block=4, chunk=8)
    cache = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), cache)
    copied = network.copy_blocks(cache, jnp.int32(2), jnp.int32(0), jnp.int32(3))
    for before, after in zip(jax.tree.leaves(cache), jax.tree.leaves(copied)):
        np.testing.assert_array_equal(after[:3, 0], before[:3, 2])
        np.testing.assert_array_equal(after[3:, 0], before[3:, 0])
        np.testing.assert_array_equal(after[:, 1:], before[:, 1:])


@pytest.mark.parametrize(
    ("lengths", "words"), [((64, 5, 8), "chunk=8"), ((60, 4, 8), "max_len=60"), ((64, 0, 8), "block=0")]
)
def test_lengths_that_do_not_fit_are_refused(lengths, words):
    with pytest.raises(InputError, match=words):
        network.check_lengths(*lengths)


def test_eight_bits_cost_little_perplexity():
    lm = random_lm(model_dim=64, sliding_window=9, layer_types=("full_attention", "sliding_attention"))
    tokens = np.random.default_rng(0).integers(0, VOCAB, size=40)

    def loss(logits):
        logps = np.asarray(jax.nn.log_softmax(logits))[:-1]
        return -logps[np.arange(20), tokens[20:]].mean()

    plain = stepwise_logits(lm, tokens.tolist(), 19, block=4, chunk=8)
    rounded = stepwise_logits(lm, tokens.tolist(), 19, block=4, chunk=8, dtype="int8")
    assert 0 < np.abs(rounded - plain).max() < 0.05 * np.abs(plain).max()
    assert abs(loss(rounded) - loss(plain)) < 0.02 * loss(plain)


def test_eight_bits_are_off_by_at_most_half_a_step():
    kernel = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    kernel[:, 3] = 0
    rounded = layout.quantise(jnp.asarray(kernel))
    back = np.asarray(rounded["int8"], np.float32) * np.asarray(rounded["scale"])
    assert (np.abs(back - kernel) <= np.asarray(rounded["scale"]) / 2 + 1e-7).all() and not back[:, 3].any()
