"""The pseudo-random function behind `fast` green lists: 32-bit mixing, the same bits on every device.

A token is green in a context where `values` is below `threshold(gamma)`, so a green list never has to be made: a
detector hashes the tokens of a text, and a sampler hashes the vocabulary in one fused pass. Each token is green with
the probability gamma by itself, where the lists of Kirchenbauer et al. have a fixed length; a text's count of green
tokens is then binomial over keys. The mixer is the finaliser of MurmurHash3 (Appleby, public domain). It is no
cipher: whoever sees much marked text may learn about the lists.

The functions take numpy or jax arrays of any leading shape X, and wrap around as unsigned arithmetic does. Test
vectors are in tests/watermark/test_hashing.py.

Dimensions: X leading axes, W tokens of a context, the oldest first, N candidates.
"""

from typing import Any

import numpy as np

from alignment.errors import InputError

LEFT, MIN, SELF = "left", "min", "self"
SEEDINGS = (LEFT, MIN, SELF)
GOLDEN = np.uint32(0x9E3779B1)
_STARTS = (np.uint32(0x243F6A88), np.uint32(0x85A308D3))  # of pi: any two numbers that differ would do
_FIRST, _SECOND = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)


def split_key(key: int) -> np.ndarray:
    """A key of 64 bits as two words, the low one first.

    Raises:
        InputError: the key is negative or longer.
    """
    if not 0 <= key < 1 << 64:
        raise InputError(f"key={key} must be from 0 to 2^64 - 1")
    return np.array([key & 0xFFFFFFFF, key >> 32], np.uint32)


def threshold(gamma: float) -> np.uint32:
    """The number below which a value means green: gamma times 2^32."""
    return np.uint32(int(gamma * (1 << 32)))


def mix(h: Any) -> Any:
    """The finaliser of MurmurHash3: every bit of the result depends on every bit of `h`."""
    h = (h ^ (h >> np.uint32(16))) * _FIRST
    h = (h ^ (h >> np.uint32(13))) * _SECOND
    return h ^ (h >> np.uint32(16))


def seed(key_X2: Any, context_XW: Any) -> tuple[Any, Any]:
    """Two words [X] that depend on the key and on the context's tokens in their order."""
    a, b = mix(key_X2[..., 0] ^ _STARTS[0]), mix(key_X2[..., 1] ^ _STARTS[1])
    for i in range(context_XW.shape[-1]):
        token = context_XW[..., i].astype(np.uint32)
        a = mix(a ^ token)
        b = mix(b + a + token * GOLDEN)
    return a, b


def draw(a: Any, b: Any, ids: Any) -> Any:
    """A number of 32 bits for each id under the seed (a, b); shapes broadcast."""
    return mix(mix(a ^ (ids * GOLDEN)) + b)


def num_context(seeding: str, width: int) -> int:
    """Tokens before a token that its list depends on; the token itself is one of `width` where it seeds as well."""
    return width - (seeding == SELF)


def values(seeding: str, key_X2: Any, context_XW: Any, ids_XN: Any) -> Any:
    """A number of 32 bits for each candidate after a context, [X,N].

    Args:
        seeding: left: all tokens of the context in their order; min: the one of them with the smallest hash (min hash);
            self: of the context's tokens and the candidate itself the pair with the smallest hash (self hash of
            Kirchenbauer et al. 2023, arXiv:2306.04634, for every candidate and not only for the likeliest ones).
        key_X2: see `split_key`.
        context_XW: `num_context` tokens.
        ids_XN: candidates, unsigned.
    """
    if seeding == LEFT:
        a, b = seed(key_X2, context_XW)
        return draw(a[..., None], b[..., None], ids_XN)
    if seeding == MIN:
        each = [seed(key_X2, context_XW[..., i : i + 1])[0] for i in range(context_XW.shape[-1])]
        a, b = seed(key_X2, _smallest(each)[..., None])
        return draw(a[..., None], b[..., None], ids_XN)
    key_X12 = key_X2[..., None, :]
    pairs = [draw(*seed(key_X12, ids_XN[..., None]), ids_XN)]
    for i in range(context_XW.shape[-1]):
        a, b = seed(key_X2, context_XW[..., i : i + 1])
        pairs.append(draw(a[..., None], b[..., None], ids_XN))
    a, b = seed(key_X12, _smallest(pairs)[..., None])
    return draw(a, b, ids_XN)


def _smallest(arrays: list[Any]) -> Any:
    """The smallest of several arrays, entry by entry, for numpy and for jax alike."""
    least = arrays[0]
    for other in arrays[1:]:
        is_less = (other < least).astype(np.uint32)
        least = other * is_less + least * (np.uint32(1) - is_less)
    return least


def uniform(bits: Any) -> Any:
    """Numbers in (0, 1) of 23 bits, as float32: neither end is reached, so logarithms of u and of 1 - u are finite."""
    return ((bits >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
