"""A Bloom filter over 128-bit keys, and paragraphs that an earlier document already had.

It forgets nothing and needs 14.4 bits a key at an error of .001 (10^9 keys: 1.80 GB), but says "seen" of a new key with
that probability, and a false "seen" deletes a paragraph: hence an option, and for paragraphs alone.

Dimensions: N keys or documents, 2 = the words of a 128-bit key, Q probes of the filter a key.
"""

import math
import os
from collections.abc import Sequence

import numpy as np
import xxhash

from alignment.errors import InputError
from alignment.filtering.duplicates import bands, exact

_MAGIC = b"PLBLOOM1"
_HEADER_BYTES = 48


def num_bits(capacity: int, error: float) -> int:
    """m = -n ln p / (ln 2)^2, rounded up."""
    return math.ceil(-capacity * math.log(error) / math.log(2) ** 2)


class Filter:
    """Bits in memory. Changes in place: `add` is the one thing here that does.

    Args:
        capacity: keys after which new ones are taken for seen with probability `error`; more than that go in, and
            the probability rises.
        error: in (0, 1).
    """

    def __init__(self, capacity: int, error: float = 1e-3):
        if capacity < 1 or not 0 < error < 1:
            raise InputError(f"capacity={capacity}, error={error}: a filter takes >= 1 keys, with an error in (0, 1)")
        self.capacity, self.error, self.num_added = capacity, error, 0
        self.num_bits = num_bits(capacity, error)
        self.num_probes = max(1, round(self.num_bits / capacity * math.log(2)))
        self.bytes = np.zeros(-(-self.num_bits // 8), np.uint8)

    def contains(self, keys_N2: np.ndarray) -> np.ndarray:
        """Whether each key was added, or looks like it."""
        return self._is_set(self._probes(keys_N2)).all(axis=1)

    def add(self, keys_N2: np.ndarray) -> np.ndarray:
        """Adds keys one after the other; whether each was there at its turn. Batches may be cut anywhere."""
        probes_NQ = self._probes(keys_N2)
        bits, first, where = np.unique(probes_NQ, return_index=True, return_inverse=True)
        first_key_NQ = (first // self.num_probes)[where.reshape(probes_NQ.shape)]  # the first here that sets the bit
        is_earlier_NQ = first_key_NQ < np.arange(len(probes_NQ))[:, None]
        seen_N = (self._is_set(probes_NQ) | is_earlier_NQ).all(axis=1)
        np.bitwise_or.at(self.bytes, bits >> 3, np.uint8(1) << (bits & 7).astype(np.uint8))
        self.num_added += int(len(seen_N) - seen_N.sum())
        return seen_N

    def save(self, path: str | os.PathLike) -> None:
        """8 bytes "PLBLOOM1", uint64 capacity, bits, probes and added, float64 error, then the bits."""
        numbers = np.array([self.capacity, self.num_bits, self.num_probes, self.num_added], "<u8")
        header = _MAGIC + numbers.tobytes() + np.array([self.error], "<f8").tobytes()
        bands.replace(path, [header, self.bytes.data])

    def _probes(self, keys_N2):
        """Double hashing: first + i x second, the second made odd so that probes differ."""
        first_N, step_N = keys_N2[:, 0], keys_N2[:, 1] | np.uint64(1)
        probes_NQ = first_N[:, None] + step_N[:, None] * np.arange(self.num_probes, dtype=np.uint64)
        return (probes_NQ % np.uint64(self.num_bits)).astype(np.int64)

    def _is_set(self, probes_NQ):
        return (self.bytes[probes_NQ >> 3] >> (probes_NQ & 7).astype(np.uint8)) & 1 == 1


def load(path: str | os.PathLike) -> Filter:
    with open(path, "rb") as f:
        header = f.read(_HEADER_BYTES)
        numbers = np.frombuffer(header[8:40], "<u8").tolist() if len(header) == _HEADER_BYTES else [1]
        error = float(np.frombuffer(header[40:], "<f8")[0]) if len(header) == _HEADER_BYTES else 0.5
        bits = np.fromfile(f, np.uint8)
    if header[:8] != _MAGIC or len(numbers) < 4 or len(bits) != -(-numbers[1] // 8):
        raise InputError(f"{path} is not a whole Bloom filter ({_MAGIC.decode()}); delete it and fill one again")
    found = Filter(numbers[0], error)
    if [found.num_bits, found.num_probes] != numbers[1:3]:
        raise InputError(f"{path} was made with {numbers[1]} bits and {numbers[2]} probes; fill one again")
    found.bytes, found.num_added = bits, numbers[3]
    return found


def keys(strings: Sequence[str]) -> np.ndarray:
    """128-bit xxh3 of each string, uint64 [N, 2]."""
    digests = [xxhash.xxh3_128_digest(string.encode("utf-8", "surrogatepass")) for string in strings]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)


def paragraphs(seen: Filter, texts: Sequence[str], *, min_words: int = 1) -> list[list[bool]]:
    """Which lines of each text came up before, in this text or one handed to the filter earlier.

    Documents go in corpus order and the first occurrence stays. A paragraph is a line with more than white space,
    compared as `exact.normalise` has it; blank lines and lines of fewer than min_words words are never marked.

    Returns:
        A list of booleans a text, one for each of its lines as `str.split` cuts them at line feeds.
    """
    lines = [(i, exact.normalise(line)) for i, text in enumerate(texts) for line in text.split("\n")]
    asked = [j for j, (_, line) in enumerate(lines) if line and line.count(" ") + 1 >= min_words]
    is_seen = np.zeros(len(lines), bool)
    if asked:
        is_seen[asked] = seen.add(keys([lines[j][1] for j in asked]))
    marks: list[list[bool]] = [[] for _ in texts]
    for (i, _), mark in zip(lines, is_seen.tolist()):
        marks[i].append(mark)
    return marks


def without(text: str, marks: Sequence[bool]) -> str:
    """The text without its marked lines."""
    return "\n".join(line for line, is_seen in zip(text.split("\n"), marks, strict=True) if not is_seen)
