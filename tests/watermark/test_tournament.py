import jax.numpy as jnp
import numpy as np

from alignment.watermark import tournament
from alignment.watermark.text_marks import Mark

KEYS = (654, 400, 836)
HASHES = [-5560304402934000951, 1262573226421117987, 9014355767190125767]


def slow_hash(data):
    """In Python's integers, modulo 2^64."""
    h = 1
    for x in data:
        h = ((h + x) * 6364136223846793005 + 1) % (1 << 64)
    return h


def test_the_table_begins_as_torchs():
    assert tournament.table(0, 65_536)[:16].tolist() == [0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0]


def test_bits_of_n_grams_are_those_of_whole_hashes():
    mark = Mark("synthid", KEYS, 20, width=2)
    assert [slow_hash([1, 2, 3, key]) for key in KEYS] == [h % (1 << 64) for h in HASHES]
    assert tournament.g_values(mark, [1, 2, 3, 4, 5]).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    ids = np.random.default_rng(0).integers(0, 20, 60)
    table = tournament.table(0, 65_536)
    slow = [[table[slow_hash([*ids[t : t + 3].tolist(), key]) % 65_536] for key in KEYS] for t in range(58)]
    assert tournament.g_values(mark, ids).tolist() == slow


def test_a_tournament_by_hand():
    words = np.array([[0b01, 0b10, 0b11]], np.uint32)  # g = [[1, 0], [0, 1], [1, 1]]
    probs = tournament.play(jnp.array([[0.5, 0.3, 0.2]]), words, 2)
    np.testing.assert_allclose(probs, [[0.4225, 0.1485, 0.429]], rtol=1e-6)


def test_a_tournament_keeps_every_tokens_probability_on_average_over_bits():
    p = np.array([0.5, 0.3, 0.2])
    words = np.array([[a, b, c] for a in range(4) for b in range(4) for c in range(4)], np.uint32)
    out = tournament.play(jnp.tile(p, (64, 1)), words, 2)
    np.testing.assert_allclose(np.mean(out, axis=0), p, atol=1e-6)
    np.testing.assert_allclose(np.sum(out, axis=1), 1, atol=1e-6)


def test_a_distribution_of_nearly_one_token_stays_a_distribution():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 30, (200, 257)).astype(np.float32)
    probs = jnp.exp(logits - logits.max(1, keepdims=True))
    words = rng.integers(0, 1 << 30, (200, 257)).astype(np.uint32)
    out = np.asarray(tournament.play(probs / probs.sum(1, keepdims=True) * np.float32(1 + 2e-7), words, 30))
    assert (out >= 0).all() and (out.max(1) > 0.4).all()


def test_a_context_counts_once_within_the_history():
    mark = Mark("synthid", KEYS, 20, width=1, history=2)
    assert tournament.is_new_context(mark, [1, 2, 1, 3, 4, 1, 5]).tolist() == [True, True, False, True, True, True]
