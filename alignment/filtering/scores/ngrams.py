"""Texts as hashed n-grams of words and characters: signed counts in buckets, of length 1.

Paper:   Weinberger et al. 2009, arXiv:0902.2206 (the hashing trick with signs)

A batch is one array of code points and no string is made of an n-gram: hashes of n + 1 characters come from those of n,
and those of word n-grams from the words'. The numbers depend on the text and the settings alone.

Dimensions: N texts, A characters of all texts, W words of all texts, E (text, bucket) entries.
"""

import dataclasses
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alignment.errors import InputError

CHARACTER, WORD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # odd multipliers of the two kinds
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of splitmix64
SPACE, LETTER, ALONE = 0, 1, 2  # kinds of characters: between words, of words, a word by itself
MAX_BUCKETS = 1 << 24
MAX_ORDER = 8


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which n-grams count.

    Attributes:
        words: shortest and longest n-grams of words; (0, 0) for none. Words are runs of letters, digits and marks;
            symbols and ideographs are words by themselves; punctuation is in n-grams of characters only.
        characters: shortest and longest n-grams of characters, spaces among them, one at each end of the text; (0, 0)
            for none.
        buckets: a power of 2.
        lower: whether upper case is read as lower case.
    """

    words: tuple[int, int] = (1, 2)
    characters: tuple[int, int] = (3, 5)
    buckets: int = 1 << 18
    lower: bool = True


class Sparse(NamedTuple):
    """Buckets and values of all texts end to end; text i has entries offsets[i] to offsets[i + 1], ids rising."""

    ids_E: np.ndarray
    values_E: np.ndarray
    offsets: np.ndarray


def settings(value: Mapping[str, Any]) -> Settings:
    """Settings from plain values, such as JSON's; what makes no sense is an `InputError`."""
    known = {field.name for field in dataclasses.fields(Settings)}
    if unknown := sorted(set(value) - known):
        raise InputError(f"n-gram settings {', '.join(unknown)} are not known; known: {', '.join(sorted(known))}")
    found = Settings(**{k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in value.items()})
    for name in ("words", "characters"):
        orders = getattr(found, name)
        is_sound = isinstance(orders, tuple) and len(orders) == 2 and all(isinstance(n, int) for n in orders)
        if not is_sound or not (orders == (0, 0) or 1 <= orders[0] <= orders[1] <= MAX_ORDER):
            raise InputError(f"{name}={orders} must be (shortest, longest) from 1 to {MAX_ORDER}, or (0, 0) for none")
    if found.words == found.characters == (0, 0):
        raise InputError("words and characters are both (0, 0), which leaves no n-grams; give one of them")
    if not isinstance(found.buckets, int) or not 2 <= found.buckets <= MAX_BUCKETS or found.buckets.bit_count() != 1:
        raise InputError(f"buckets={found.buckets} must be a power of 2 up to {MAX_BUCKETS}")
    return found


def features(texts: Sequence[str], chosen: Settings = Settings()) -> Sparse:
    """Counts of a text's n-grams by bucket, each n-gram with its own sign, divided by their Euclidean length.

    Two n-grams in one bucket add up or cancel; a bucket where they cancel has no entry. A text without n-grams has
    none.
    """
    parts = [_part(texts[start:stop], chosen) for start, stop in _stretches(texts)]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *(part[2] for part in parts)]))])
    ids_E = np.concatenate([np.zeros(0, np.int32), *(part[0] for part in parts)])
    values_E = np.concatenate([np.zeros(0, np.float32), *(part[1] for part in parts)])
    return Sparse(ids_E, values_E, offsets)


def padded(sparse: Sparse, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and values as [N, width] with zeros behind; of a longer text every so manieth entry, scaled to length 1."""
    num_texts = len(sparse.offsets) - 1
    ids_NK, values_NK = np.zeros((num_texts, width), np.int32), np.zeros((num_texts, width), np.float32)
    for i, (start, stop) in enumerate(zip(sparse.offsets[:-1], sparse.offsets[1:])):
        places = np.arange(start, stop)
        if len(places) > width:
            places = places[np.arange(width) * len(places) // width]
        values = sparse.values_E[places]
        if stop - start > width:
            values = values / np.sqrt(np.sum(np.square(values, dtype=np.float64)))
        ids_NK[i, : len(places)], values_NK[i, : len(places)] = sparse.ids_E[places], values
    return ids_NK, values_NK


def dot(sparse: Sparse, weights_BO: np.ndarray) -> np.ndarray:
    """Each text's features times a matrix of weights [buckets, outputs], [N, outputs] float32."""
    num_texts, num_outputs = len(sparse.offsets) - 1, weights_BO.shape[1]
    out_NO = np.zeros((num_texts, num_outputs), np.float32)
    is_filled_N = np.diff(sparse.offsets) > 0
    starts = sparse.offsets[:-1][is_filled_N]
    for o in range(num_outputs if len(starts) else 0):
        products_E = weights_BO[sparse.ids_E, o] * sparse.values_E
        out_NO[is_filled_N, o] = np.add.reduceat(products_E, starts)
    return out_NO


def _stretches(texts: Sequence[str], characters: int = 1 << 18) -> Iterator[tuple[int, int]]:
    """(start, stop) of texts handled together, so that memory has a bound and stays in the caches."""
    start, total = 0, 0
    for i, text in enumerate(texts):
        if total and total + len(text) > characters:
            yield start, i
            start, total = i, 0
        total += len(text)
    if start < len(texts):
        yield start, len(texts)


def _part(texts: Sequence[str], chosen: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and values of some texts end to end, and how many each has."""
    if chosen.lower:
        texts = [text.lower() for text in texts]
    joined = [f" {' '.join(text.split())} " for text in texts]
    codes_A = np.frombuffer("".join(joined).encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.array(list(map(len, joined)), np.int64)
    owner_A, ends_A = np.repeat(np.arange(len(texts)), lengths), np.repeat(np.cumsum(lengths), lengths)
    found = []
    if chosen.characters[1]:
        found += _character_n_grams(codes_A, owner_A, ends_A, *chosen.characters)
    if chosen.words[1]:
        found += _word_n_grams(codes_A, owner_A, *chosen.words)
    return _counted([h for h, _ in found], [owners for _, owners in found], len(texts), chosen.buckets)


def _character_n_grams(codes_A, owner_A, ends_A, low: int, high: int):
    """(hashes, their texts) of each order."""
    symbols_A = _mix(codes_A.astype(np.uint64) + np.uint64(1))
    hash_A, found = symbols_A, []
    ends_A = ends_A - np.arange(len(codes_A))  # characters left in the text
    for n in range(1, high + 1):
        if n > 1:
            hash_A = hash_A[:-1] * CHARACTER + symbols_A[n - 1 :]
        if n >= low:
            fits = ends_A[: len(hash_A)] >= n
            found.append((hash_A[fits], owner_A[: len(hash_A)][fits]))
        if len(hash_A) < 2:
            break
    return found


def _word_n_grams(codes_A, owner_A, low: int, high: int):
    kinds_A = _kinds(codes_A)
    is_in_A = kinds_A != SPACE
    # texts begin and end with a space, so that no word runs over a border
    is_start_A = is_in_A & ((kinds_A == ALONE) | (np.roll(kinds_A, 1) != LETTER))
    is_end_A = is_in_A & ((kinds_A == ALONE) | (np.roll(kinds_A, -1) != LETTER))
    starts_W, ends_W = np.flatnonzero(is_start_A), np.flatnonzero(is_end_A) + 1
    if not len(starts_W):
        return []
    symbols_A = _mix(codes_A.astype(np.uint64) + np.uint64(0x51ED2701))
    # a word's hash is a sum over its letters; their places count through multipliers that start anew with each word
    place_A = np.arange(len(codes_A)) - starts_W[np.maximum(np.cumsum(is_start_A) - 1, 0)]
    powers = np.cumprod(np.concatenate([[np.uint64(1)], np.full(int(place_A.max()), WORD, np.uint64)]))
    terms_A = np.where(is_in_A, symbols_A * powers[np.maximum(place_A, 0)], np.uint64(0))
    word_W = _mix(np.add.reduceat(terms_A, starts_W) + (ends_W - starts_W).astype(np.uint64))
    owner_W, hash_W, found = owner_A[starts_W], word_W, []
    for n in range(1, high + 1):
        if n > 1:
            hash_W = hash_W[:-1] * WORD + word_W[n - 1 :]
        if n >= low:
            fits = owner_W[: len(hash_W)] == owner_W[n - 1 :]
            found.append((hash_W[fits] ^ WORD, owner_W[: len(hash_W)][fits]))
        if len(hash_W) < 2:
            break
    return found


def _counted(hashes, owners, num_texts: int, buckets: int):
    """Signed counts by (text, bucket): one sort of keys whose lowest bit is the sign."""
    if not hashes:
        return np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(num_texts, np.int64)
    hashes, owners = _mix(np.concatenate(hashes)), np.concatenate(owners)
    bits = buckets.bit_length()  # of bucket and sign
    keys = (owners.astype(np.uint64) << np.uint64(bits)) | (hashes >> np.uint64(64 - bits))
    keys.sort()
    places = keys >> np.uint64(1)
    signs = 1.0 - 2.0 * (keys & np.uint64(1)).astype(np.float32)
    first = np.flatnonzero(np.concatenate([[True], places[1:] != places[:-1]])) if len(places) else np.zeros(0, int)
    sums = np.add.reduceat(signs, first) if len(first) else np.zeros(0, np.float32)
    places, sums = places[first][sums != 0], sums[sums != 0]
    owner_E = (places >> np.uint64(bits - 1)).astype(np.int64)
    counts_N = np.bincount(owner_E, minlength=num_texts)
    lengths_N = np.sqrt(np.bincount(owner_E, np.square(sums, dtype=np.float64), minlength=num_texts))
    values_E = (sums / lengths_N[owner_E]).astype(np.float32)
    return (places & np.uint64(buckets - 1)).astype(np.int32), values_E, counts_N


def _mix(hashes: np.ndarray) -> np.ndarray:
    """The end of splitmix64: every bit of the result depends on every bit of the hash."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * MIX[0]
    hashes = (hashes ^ (hashes >> np.uint64(27))) * MIX[1]
    return hashes ^ (hashes >> np.uint64(31))


def _kinds(codes_A: np.ndarray) -> np.ndarray:
    """SPACE, LETTER or ALONE of each character."""
    global _TABLE
    if _TABLE is None:
        _TABLE = np.array([_kind(code) for code in range(1 << 16)], np.uint8)
    beyond_A = codes_A >> 16 != 0
    kinds_A = _TABLE[np.where(beyond_A, 0, codes_A)]
    if beyond_A.any():
        unique, inverse = np.unique(codes_A[beyond_A], return_inverse=True)
        kinds_A[beyond_A] = np.array([_kind(code) for code in unique.tolist()], np.uint8)[inverse]
    return kinds_A


def _kind(code: int) -> int:
    category = unicodedata.category(chr(code))
    is_ideograph = category == "Lo" and (0x3040 <= code < 0xA000 or 0xF900 <= code < 0xFB00 or code >= 0x20000)
    if category == "So" or is_ideograph:
        return ALONE
    return LETTER if category[0] in "LMN" else SPACE


_TABLE: np.ndarray | None = None  # of the first plane, made when first needed
