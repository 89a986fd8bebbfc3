"""SynthID's tournament sampling, bit for bit as in transformers (not as in Gemini or in DeepMind's own library).

The hash of an n-gram is h = 1, then h = (h + token) 6364136223846793005 + 1 for every token, then once more for the key
of a layer; the layer's bit g is a fixed table of random bits at h modulo its size. A power of two for the size makes
everything depend on the lowest bits of h only, so 32-bit words suffice, and all layers' bits of a hash fit in one word
that `bits` looks up. Sixteen bits of state also mean that two contexts in 65,536 share their bits.

Source: Dathathri et al. 2024, Nature 634, 818-823.
Dimensions: X leading axes, B rows, V vocabulary, W tokens of a context, L layers, T tokens.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.watermark import green, torch_lists
from alignment.watermark.text_marks import Mark

MULTIPLIER = np.uint32(6364136223846793005 % (1 << 32))
ONE = np.uint32(1)


def accumulate(h: Any, data: Any) -> Any:
    """The hash after one more token or key, modulo 2^32; numpy or jax arrays of unsigned words."""
    return (h + data) * MULTIPLIER + ONE


def context_hash(context_XW: Any) -> Any:
    """The hash [X] of a context's tokens, the oldest first."""
    h = context_XW[..., 0].astype(np.uint32) * np.uint32(0) + ONE
    for i in range(context_XW.shape[-1]):
        h = accumulate(h, context_XW[..., i].astype(np.uint32))
    return h


@functools.lru_cache(maxsize=8)
def table(seed: int, size: int) -> np.ndarray:
    """The fixed table of random bits, as torch.randint draws it on a CPU."""
    return (torch_lists.raw(seed, size) & ONE).astype(np.uint32)


def bits(mark: Mark) -> np.ndarray:
    """Word [table_size] with the bit of layer l at place l, for an n-gram's hash modulo the size, before the keys."""
    assert isinstance(mark.key, tuple)
    return _bits(mark.key, mark.of("table_seed"), mark.of("table_size"))


@functools.lru_cache(maxsize=8)
def _bits(keys, seed, size):
    hashes = np.arange(size, dtype=np.uint32)
    out = np.zeros(size, np.uint32)
    for layer, key in enumerate(keys):
        bit = table(seed, size)[accumulate(hashes, np.uint32(key % (1 << 32))) % np.uint32(size)]
        out |= bit << np.uint32(layer)
    return out


def layers(words: np.ndarray, num_layers: int) -> np.ndarray:
    """The bits of words, layer by layer, [...,L]."""
    return (words[..., None] >> np.arange(num_layers, dtype=np.uint32)) & ONE


def g_values(mark: Mark, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """The bits [T - W, L] of every n-gram of a text."""
    ids_T = green.check_ids(mark, ids)
    h = context_hash(green.windows(ids_T, mark.num_context + 1))
    assert isinstance(mark.key, tuple)
    return layers(bits(mark)[h % np.uint32(mark.of("table_size"))], len(mark.key))


def is_new_context(mark: Mark, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Whether each n-gram's context is not among the last `history` ones, bool [T - W]; repeated ones carry no mark."""
    last_at: dict[tuple[int, ...], int] = {}
    out = []
    for i, context in enumerate(map(tuple, green.windows(np.asarray(ids)[:-1], mark.num_context).tolist())):
        out.append(context not in last_at or i - last_at[context] > mark.of("history"))
        last_at[context] = i
    return np.array(out, bool)


def play(probs_BV: jax.Array, words_BV: jax.Array, num_layers: int) -> jax.Array:
    """Probabilities after all layers: p <- p (1 + g - sum g p), a tournament of two candidates a match.

    Args:
        words_BV: each candidate's bits, layer l at place l.
    """
    for layer in range(num_layers):
        g_BV = ((words_BV >> np.uint32(layer)) & ONE).astype(probs_BV.dtype)
        mass_B1 = jnp.einsum("bv,bv->b", g_BV, probs_BV)[:, None]
        # A sum of probabilities that rounds to above 1 would make those of red candidates negative.
        probs_BV = probs_BV * jnp.maximum(1 + g_BV - mass_B1, 0)
    return probs_BV
