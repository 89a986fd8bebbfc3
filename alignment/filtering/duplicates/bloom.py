"""A Bloom filter (Bloom 1970) over 128-bit keys, and paragraphs that an earlier document already has.

It forgets no key and needs 14.4 bits a key at an error of .001 (10^9 keys: 1.80 GB), but it takes a new key for a known
one with that probability, and then a paragraph is deleted by mistake: hence it is an option, and for paragraphs alone.

Dimensions: N keys or documents, 2 = the words of a 128-bit key, Q probes of the filter a key.
"""

import math
from collections.abc import Sequence

import numpy as np
import xxhash

from alignment.errors import InputError
from alignment.filtering.duplicates import exact


def num_bits(capacity: int, error: float) -> int:
    """The size with the fewest bits for this error: m = -n ln p / (ln 2)^2, rounded up."""
    return math.ceil(-capacity * math.log(error) / math.log(2) ** 2)


class Filter:
    """Bits in memory; `add` changes them in place.

    Args:
        capacity: number of keys after which a new key is taken for a known one with probability `error`. More keys
            are accepted, and the probability rises.
        error: in (0, 1).

    Raises:
        InputError: a capacity or error out of range.
    """

    def __init__(self, capacity: int, error: float = 1e-3) -> None:
        if capacity < 1 or not 0 < error < 1:
            raise InputError(f"capacity={capacity}, error={error}: a filter takes >= 1 keys, with an error in (0, 1)")
        self.capacity, self.error, self.num_added = capacity, error, 0
        self.num_bits = num_bits(capacity, error)
        self.num_probes = max(1, round(self.num_bits / capacity * math.log(2)))  # the optimum: half of the bits are set
        self.bytes = np.zeros(-(-self.num_bits // 8), np.uint8)

    def contains(self, keys_N2: np.ndarray) -> np.ndarray:
        """Whether each key was added, or all its bits were set by others [N]."""
        return np.all(self._is_set(self._probes(keys_N2)), axis=1)

    def add(self, keys_N2: np.ndarray) -> np.ndarray:
        """Add keys in order and return whether each was there before [N]; how batches are cut does not matter."""
        # A key must see the bits of the keys before it in the same batch, without a loop: a probe counts as set if an
        # earlier key of the batch is the first to set its bit.
        probes_NQ = self._probes(keys_N2)
        bits, first, where = np.unique(probes_NQ, return_index=True, return_inverse=True)
        first_key_NQ = (first // self.num_probes)[where.reshape(probes_NQ.shape)]
        is_earlier_NQ = first_key_NQ < np.arange(len(probes_NQ))[:, None]
        was_there_N = np.all(self._is_set(probes_NQ) | is_earlier_NQ, axis=1)
        # `at`, because several probes may fall into one byte, of which plain indexing would keep the last alone.
        np.bitwise_or.at(self.bytes, bits >> 3, np.uint8(1) << (bits & 7).astype(np.uint8))
        self.num_added += int(len(was_there_N) - was_there_N.sum())
        return was_there_N

    def _probes(self, keys_N2: np.ndarray) -> np.ndarray:
        """Bits [N, Q] by double hashing (Kirsch & Mitzenmacher 2006): first + i x second, the second made odd."""
        first_N, step_N = keys_N2[:, 0], keys_N2[:, 1] | np.uint64(1)
        # Odd, so that the step is never 0; uint64 wraps, and only then comes the remainder.
        probes_NQ = first_N[:, None] + step_N[:, None] * np.arange(self.num_probes, dtype=np.uint64)
        return (probes_NQ % np.uint64(self.num_bits)).astype(np.int64)

    def _is_set(self, probes_NQ: np.ndarray) -> np.ndarray:
        return (self.bytes[probes_NQ >> 3] >> (probes_NQ & 7).astype(np.uint8)) & 1 == 1


def keys(strings: Sequence[str]) -> np.ndarray:
    """128-bit xxh3 of each string, uint64 [N, 2]."""
    digests = [xxhash.xxh3_128_digest(string.encode("utf-8", "surrogatepass")) for string in strings]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)


def paragraphs(earlier: Filter, texts: Sequence[str], *, min_words: int = 1) -> list[list[bool]]:
    """Mark the lines of each text that came before, in this text or in one that the filter met earlier.

    Documents go in corpus order and the first occurrence stays. A paragraph is a line with more than white space;
    lines are compared after `exact.normalise`.

    Args:
        earlier: the paragraphs so far; those of these texts are added.
        min_words: lines with fewer words, and blank lines, are never marked.

    Returns:
        A list of booleans for each text, one for each of its lines between line feeds.
    """
    lines = [(i, exact.normalise(line)) for i, text in enumerate(texts) for line in text.split("\n")]
    long_enough = [j for j, (_, line) in enumerate(lines) if line and line.count(" ") + 1 >= min_words]
    is_repeated = np.zeros(len(lines), bool)
    if long_enough:
        is_repeated[long_enough] = earlier.add(keys([lines[j][1] for j in long_enough]))
    marks: list[list[bool]] = [[] for _ in texts]
    for (i, _), mark in zip(lines, is_repeated.tolist()):
        marks[i].append(mark)
    return marks


def without(text: str, marks: Sequence[bool]) -> str:
    """The text without its marked lines."""
    return "\n".join(line for line, is_marked in zip(text.split("\n"), marks, strict=True) if not is_marked)
