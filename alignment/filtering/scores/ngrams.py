"""Texts as hashed n-grams of words and characters: signed counts in buckets, of length 1.

Paper:   Weinberger et al. 2009, arXiv:0902.2206 (the hashing trick with signs)

A batch is one array of code points, and no n-gram ever becomes a string: the hash of n + 1 characters follows from
that of n, and that of a word n-gram from its words'. The numbers depend on the text and the settings alone.

Dimensions: N texts, A characters of all texts, W words of all texts, E (text, bucket) entries.
"""

import dataclasses
import functools
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alignment import errors
from alignment.filtering.scores import chunks

CHARACTER, WORD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # odd multipliers of the two kinds
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of splitmix64
SPACE, LETTER, ALONE = 0, 1, 2  # kinds of characters: between words, part of a word, a word by itself
MAX_BUCKETS = 1 << 24
MAX_ORDER = 8
GROUP = 1 << 18  # characters hashed together, so that the arrays stay in the caches


@dataclasses.dataclass(frozen=True)
class Settings:
    """The n-grams that count.

    Attributes:
        words: shortest and longest n-grams of words; (0, 0) for none. Words are runs of letters, digits and marks;
            symbols and ideographs are words by themselves; punctuation counts in n-grams of characters only.
        characters: shortest and longest n-grams of characters, spaces among them, one at each end of the text; (0, 0)
            for none.
        buckets: a power of 2.
        lower: whether texts are lowered first.
    """

    words: tuple[int, int] = (1, 2)
    characters: tuple[int, int] = (3, 5)
    buckets: int = 1 << 18
    lower: bool = True


class Sparse(NamedTuple):
    """Buckets and values of all texts; text i has the entries from offsets[i] to offsets[i + 1], with rising ids."""

    ids_E: np.ndarray
    values_E: np.ndarray
    offsets: np.ndarray


def settings(value: Mapping[str, Any]) -> Settings:
    """Settings from plain values, such as JSON's.

    Raises:
        InputError: unknown names, and orders or buckets out of range.
    """
    known = {field.name for field in dataclasses.fields(Settings)}
    for name in value:
        errors.one_of("n-gram setting", name, sorted(known))
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in value.items()}
    chosen = Settings(**fields)
    for name in ("words", "characters"):
        orders = getattr(chosen, name)
        is_sound = isinstance(orders, tuple) and len(orders) == 2 and all(isinstance(n, int) for n in orders)
        if not is_sound or not (orders == (0, 0) or 1 <= orders[0] <= orders[1] <= MAX_ORDER):
            raise errors.InputError(
                f"{name}={orders} must be (shortest, longest) from 1 to {MAX_ORDER}, or (0, 0) for none"
            )
    if chosen.words == chosen.characters == (0, 0):
        raise errors.InputError("words and characters are both (0, 0), which leaves no n-grams; give one of them")
    if not isinstance(chosen.buckets, int) or not 2 <= chosen.buckets <= MAX_BUCKETS or chosen.buckets.bit_count() != 1:
        raise errors.InputError(f"buckets={chosen.buckets} must be a power of 2 up to {MAX_BUCKETS}")
    return chosen


def features(texts: Sequence[str], chosen: Settings = Settings()) -> Sparse:
    """Signed counts of each text's n-grams by bucket, scaled to Euclidean length 1.

    The sign comes from the n-gram's hash, so collisions cancel on average and inner products stay unbiased (Lemma 2 of
    the paper). A bucket where the n-grams cancel has no entry, and neither has a text without n-grams.
    """
    parts = [_part(texts[start:stop], chosen) for start, stop in chunks.groups(texts, GROUP)]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *(part[2] for part in parts)]))])
    ids_E = np.concatenate([np.zeros(0, np.int32), *(part[0] for part in parts)])
    values_E = np.concatenate([np.zeros(0, np.float32), *(part[1] for part in parts)])
    return Sparse(ids_E, values_E, offsets)


def padded(sparse: Sparse, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and values [N, width], filled up with zeros; a longer text is thinned out evenly and scaled to length 1."""
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
    """The features of each text times a matrix of weights [buckets, outputs]: [N, outputs] float32."""
    num_texts, num_outputs = len(sparse.offsets) - 1, weights_BO.shape[1]
    out_NO = np.zeros((num_texts, num_outputs), np.float32)
    is_filled_N = np.diff(sparse.offsets) > 0  # for an empty run reduceat would take its next neighbour
    starts = sparse.offsets[:-1][is_filled_N]
    for o in range(num_outputs if len(starts) else 0):
        products_E = weights_BO[sparse.ids_E, o] * sparse.values_E
        out_NO[is_filled_N, o] = np.add.reduceat(products_E, starts)
    return out_NO


def _part(texts: Sequence[str], chosen: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and values of some texts end to end, and the number of entries of each."""
    if chosen.lower:
        texts = [text.lower() for text in texts]
    joined = [f" {' '.join(text.split())} " for text in texts]
    codes_A = np.frombuffer("".join(joined).encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.array(list(map(len, joined)), np.int64)
    owner_A, ends_A = np.repeat(np.arange(len(texts)), lengths), np.repeat(np.cumsum(lengths), lengths)
    grams: list[tuple[np.ndarray, np.ndarray]] = []
    if chosen.characters[1]:
        grams += _character_n_grams(codes_A, owner_A, ends_A, *chosen.characters)
    if chosen.words[1]:
        grams += _word_n_grams(codes_A, owner_A, *chosen.words)
    return _counted([hashes for hashes, _ in grams], [owners for _, owners in grams], len(texts), chosen.buckets)


def _character_n_grams(
    codes_A: np.ndarray, owner_A: np.ndarray, ends_A: np.ndarray, low: int, high: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Hashes and the texts that they belong to, for each order."""
    # Characters are hashed first: their codes are small and alike, and a polynomial in them would collide more.
    symbols_A = _mix(codes_A.astype(np.uint64) + np.uint64(1))
    hash_A, grams = symbols_A, []
    ends_A = ends_A - np.arange(len(codes_A))  # characters left in the text
    for n in range(1, high + 1):
        if n > 1:
            hash_A = hash_A[:-1] * CHARACTER + symbols_A[n - 1 :]
        if n >= low:
            fits = ends_A[: len(hash_A)] >= n
            grams.append((hash_A[fits], owner_A[: len(hash_A)][fits]))
        if len(hash_A) < 2:
            break
    return grams


def _word_n_grams(codes_A: np.ndarray, owner_A: np.ndarray, low: int, high: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Hashes and the texts that they belong to, for each order."""
    kinds_A = _kinds(codes_A)
    is_in_A = kinds_A != SPACE
    # Texts begin and end with a space, so no word crosses a border.
    is_start_A = is_in_A & ((kinds_A == ALONE) | (np.roll(kinds_A, 1) != LETTER))
    is_end_A = is_in_A & ((kinds_A == ALONE) | (np.roll(kinds_A, -1) != LETTER))
    starts_W, ends_W = np.flatnonzero(is_start_A), np.flatnonzero(is_end_A) + 1
    if not len(starts_W):
        return []
    symbols_A = _mix(codes_A.astype(np.uint64) + np.uint64(0x51ED2701))
    # A word's hash is a polynomial in its letters, with powers that start anew at each word.
    place_A = np.arange(len(codes_A)) - starts_W[np.maximum(np.cumsum(is_start_A) - 1, 0)]
    powers = np.cumprod(np.concatenate([[np.uint64(1)], np.full(int(place_A.max()), WORD, np.uint64)]))
    terms_A = np.where(is_in_A, symbols_A * powers[np.maximum(place_A, 0)], np.uint64(0))
    word_W = _mix(np.add.reduceat(terms_A, starts_W) + (ends_W - starts_W).astype(np.uint64))
    owner_W, hash_W, grams = owner_A[starts_W], word_W, []
    for n in range(1, high + 1):
        if n > 1:
            hash_W = hash_W[:-1] * WORD + word_W[n - 1 :]
        if n >= low:
            fits = owner_W[: len(hash_W)] == owner_W[n - 1 :]
            grams.append((hash_W[fits] ^ WORD, owner_W[: len(hash_W)][fits]))
        if len(hash_W) < 2:
            break
    return grams


def _counted(
    gram_hashes: Sequence[np.ndarray], gram_owners: Sequence[np.ndarray], num_texts: int, buckets: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and values of the entries, and their number for each text.

    A key holds text, bucket and, as the lowest bit, the sign, so that one sort brings equal buckets of a text together.
    """
    if not gram_hashes:
        return np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(num_texts, np.int64)
    hashes, owners = _mix(np.concatenate(gram_hashes)), np.concatenate(gram_owners)
    bits = buckets.bit_length()  # log2(buckets) bits for the bucket and one for the sign
    keys = (owners.astype(np.uint64) << np.uint64(bits)) | (hashes >> np.uint64(64 - bits))
    keys.sort()
    places = keys >> np.uint64(1)
    signs = 1.0 - 2.0 * (keys & np.uint64(1)).astype(np.float32)
    first = np.flatnonzero(np.concatenate([[True], places[1:] != places[:-1]])) if len(places) else np.zeros(0, int)
    sums = np.add.reduceat(signs, first) if len(first) else np.zeros(0, np.float32)
    places, sums = places[first][sums != 0], sums[sums != 0]
    owner_E = (places >> np.uint64(bits - 1)).astype(np.int64)
    counts_N = np.bincount(owner_E, minlength=num_texts)
    # In float64: a sum of many float32 squares would depend on their order.
    lengths_N = np.sqrt(np.bincount(owner_E, np.square(sums, dtype=np.float64), minlength=num_texts))
    values_E = (sums / lengths_N[owner_E]).astype(np.float32)
    return (places & np.uint64(buckets - 1)).astype(np.int32), values_E, counts_N


def _mix(hashes: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): every bit of the result depends on every bit of the hash."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * MIX[0]
    hashes = (hashes ^ (hashes >> np.uint64(27))) * MIX[1]
    return hashes ^ (hashes >> np.uint64(31))


def _kinds(codes_A: np.ndarray) -> np.ndarray:
    """SPACE, LETTER or ALONE of each character."""
    beyond_A = codes_A >> 16 != 0
    kinds_A = _table()[np.where(beyond_A, 0, codes_A)]
    if beyond_A.any():
        unique, inverse = np.unique(codes_A[beyond_A], return_inverse=True)
        kinds_A[beyond_A] = np.array([_kind(code) for code in unique.tolist()], np.uint8)[inverse]
    return kinds_A


@functools.cache
def _table() -> np.ndarray:
    """The kinds of the first plane [65536]."""
    return np.array([_kind(code) for code in range(1 << 16)], np.uint8)


def _kind(code: int) -> int:
    category = unicodedata.category(chr(code))
    is_ideograph = category == "Lo" and (0x3040 <= code < 0xA000 or 0xF900 <= code < 0xFB00 or code >= 0x20000)
    if category == "So" or is_ideograph:
        return ALONE
    return LETTER if category[0] in "LMN" else SPACE
