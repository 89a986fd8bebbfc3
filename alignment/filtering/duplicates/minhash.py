"""MinHash signatures (Broder 1997), and the band keys that near duplicates share.

Two texts share an entry of their signatures with probability J, the Jaccard similarity of their shingle sets. Banding
(Leskovec, Rajaraman & Ullman, "Mining of Massive Datasets", section 3.4) turns 112 entries into 14 keys; texts of
similarity s share at least one of them with probability 1 - (1 - s^8)^14. Mode "datatrove" repeats datatrove 0.10.1
bit for bit; mode "fast" estimates the same J with cheaper hash functions.

Dimensions: N documents, H hashes = B bands x R rows, S shingles.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import xxhash

from alignment import errors
from alignment.filtering.duplicates import bands, datatrove_words, shingles

EMPTY = np.uint64(2**64 - 1)  # every entry of the signature of a document without shingles
_MERSENNE = np.uint64(2**61 - 1)
_BLOCK = 1 << 15  # shingles hashed at a time


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a signature depends on; files of keys are comparable only under equal settings.

    Attributes:
        n_grams: tokens of a shingle: 5 words (FineWeb), or 24 characters (NeMo Curator).
        num_buckets, hashes_per_bucket: bands and rows: 14 x 8 (FineWeb), 20 x 13 (NeMo Curator).
        unit: "word" or "character".
        mode: "fast" or "datatrove".
        seed: of the hash functions.
        shingle_hash: for mode "datatrove" alone: "sha1", as FineWeb ran it, or "xxhash", datatrove 0.10.1's default.

    Raises:
        InputError: a number below 1, an unknown name, or mode "datatrove" with characters.
    """

    n_grams: int = 5
    num_buckets: int = 14
    hashes_per_bucket: int = 8
    unit: str = "word"
    mode: str = "fast"
    seed: int = 1
    shingle_hash: str = "sha1"

    def __post_init__(self) -> None:
        _check_settings(self)

    @property
    def num_hashes(self) -> int:
        return self.num_buckets * self.hashes_per_bucket


def signatures(texts: Sequence[str], settings: Settings) -> np.ndarray:
    """Signatures [N, H], uint64; each depends on its own text alone.

    Mode "fast" fills 32 of the 64 bits. A text with fewer words than n_grams has one shingle of all its words in mode
    "fast", and none in mode "datatrove". A text without shingles has EMPTY in every entry and is nobody's duplicate.
    """
    if settings.mode == "datatrove":
        return _datatrove(texts, settings)
    return _fast(texts, settings)


def band_keys(signatures_NH: np.ndarray, settings: Settings) -> np.ndarray:
    """One 64-bit key a band [N, B], a hash of the band's entries; a text without shingles has bands.NO_KEY everywhere.

    Bands that differ get the same key with probability 2^-64: 14 x 10^18 / 2^65 = 0.4 pairs among 10^9 documents.
    """
    bands_NBR = signatures_NH.reshape(-1, settings.num_buckets, settings.hashes_per_bucket)
    keys_NB = np.zeros(bands_NBR.shape[:2], np.uint64)
    for row in range(settings.hashes_per_bucket):
        keys_NB = shingles.mix((keys_NB + np.uint64(0x9E3779B97F4A7C15)) ^ bands_NBR[:, :, row])
    keys_NB[keys_NB == bands.NO_KEY] = 0  # NO_KEY marks documents without shingles and must not come up by chance
    keys_NB[(signatures_NH == EMPTY).all(axis=1)] = bands.NO_KEY
    return keys_NB


def probability(similarity: float, buckets: int = 14, hashes: int = 8) -> float:
    """The probability that two documents of this similarity share a band: 1 - (1 - s^R)^B.

    The curve rises near s = (1/B)^(1/R): .719 for 14 x 8, .794 for 20 x 13.
    """
    return 1 - (1 - similarity**hashes) ** buckets


def _fast(texts: Sequence[str], settings: Settings) -> np.ndarray:
    # One hash of a shingle, permuted H times, stands in for H independent hashes. 32 bits halve the traffic through the
    # caches, and among 10^5 shingles of a document only about one pair collides.
    factor_H, offset_H = _permutations(settings.seed, settings.num_hashes)
    least_NH = np.full((len(texts), settings.num_hashes), 2**32 - 1, np.uint32)
    has_shingles_N = np.zeros(len(texts), bool)
    buffer_S = np.empty(0, np.uint32)
    for block in shingles.blocks(texts, n=settings.n_grams, unit=settings.unit):
        x_S = (block.shingles_S >> np.uint64(32)).astype(np.uint32)
        # Each permutation writes into the same buffer: memory from the allocator would cost as much as the arithmetic.
        buffer_S = buffer_S if len(buffer_S) >= len(x_S) else np.empty(len(x_S), np.uint32)
        y_S = buffer_S[: len(x_S)]
        least_HN = np.empty((settings.num_hashes, len(block.documents_N)), np.uint32)
        for h in range(settings.num_hashes):
            np.multiply(x_S, factor_H[h], out=y_S)
            np.add(y_S, offset_H[h], out=y_S)
            # The least value of each document's run; no run is empty, which reduceat would take for its next neighbour.
            np.minimum.reduceat(y_S, block.starts_N, out=least_HN[h])
        # A long document comes in several blocks, and the minimum of minima is its minimum.
        least_NH[block.documents_N] = np.minimum(least_NH[block.documents_N], least_HN.T)
        has_shingles_N[block.documents_N] = True
    signatures_NH = least_NH.astype(np.uint64)
    signatures_NH[~has_shingles_N] = EMPTY
    return signatures_NH


@functools.cache
def _permutations(seed: int, num_hashes: int) -> tuple[np.ndarray, np.ndarray]:
    """Random x -> a x + b modulo 2^32 with odd a: permutations of the 32-bit numbers."""
    random = np.random.RandomState(seed)
    factors_H = random.randint(0, 2**32, num_hashes, np.uint32) | np.uint32(1)
    return factors_H, random.randint(0, 2**32, num_hashes, np.uint32)


def _datatrove(texts: Sequence[str], settings: Settings) -> np.ndarray:
    hash_fn = {"sha1": _sha1, "xxhash": _xxhash}[settings.shingle_hash]
    signatures_NH = np.full((len(texts), settings.num_hashes), EMPTY)
    for i, text in enumerate(texts):
        # datatrove makes no shingle of a text with fewer words, and its signature then stays EMPTY.
        words = datatrove_words.words(text)
        num = len(words) - settings.n_grams + 1
        for start in range(0, num, _BLOCK):
            grams = [" ".join(words[j : j + settings.n_grams]) for j in range(start, min(start + _BLOCK, num))]
            hashes_S = hash_fn([gram.encode("utf-8", "surrogatepass") for gram in grams])
            least_H = _datatrove_minima(hashes_S, settings)
            np.minimum(signatures_NH[i], least_H, out=signatures_NH[i])
    return signatures_NH


def _datatrove_minima(shingles_S: np.ndarray, settings: Settings) -> np.ndarray:
    """The least (a x + b) mod (2^61 - 1) for each hash; a x + b wraps at 2^64 first, as it does in datatrove."""
    factors_H, offsets_H = _datatrove_parameters(settings.seed, settings.num_hashes)
    least_H = np.empty(settings.num_hashes, np.uint64)
    for h in range(settings.num_hashes):
        y_S = shingles_S * factors_H[h]
        y_S += offsets_H[h]
        # y mod p for a Mersenne prime p = 2^61 - 1: add the high bits to the low ones, then subtract p once if y >= p
        # (elsewhere y - p wraps to a huge number, and the minimum takes y).
        y_S = (y_S & _MERSENNE) + (y_S >> np.uint64(61))
        least_H[h] = np.minimum(y_S, y_S - _MERSENNE).min()
    return least_H


@functools.cache
def _datatrove_parameters(seed: int, num_hashes: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    factors_H = random.randint(1, int(_MERSENNE), num_hashes, np.uint64)
    return factors_H, random.randint(0, int(_MERSENNE), num_hashes, np.uint64)


def _sha1(grams: list[bytes]) -> np.ndarray:
    """The first eight of each digest's twenty bytes, little endian."""
    digests = b"".join([hashlib.sha1(gram).digest() for gram in grams])
    return np.frombuffer(digests, np.dtype([("low", "<u8"), ("rest", "V12")]))["low"].astype(np.uint64)


def _xxhash(grams: list[bytes]) -> np.ndarray:
    return np.fromiter(map(xxhash.xxh64_intdigest, grams), np.uint64, len(grams))


def _check_settings(settings: Settings) -> None:
    for name in ("n_grams", "num_buckets", "hashes_per_bucket"):
        if getattr(settings, name) < 1:
            value = getattr(settings, name)
            raise errors.InputError(f"{name}={value} is not a positive number; the defaults are 5, 14 and 8")
    for name, choices in {
        "unit": ("word", "character"),
        "mode": ("fast", "datatrove"),
        "shingle_hash": ("sha1", "xxhash"),
    }.items():
        errors.one_of(name, getattr(settings, name), choices)
    if settings.mode == "datatrove" and settings.unit != "word":
        raise errors.InputError(
            f"mode='datatrove' has shingles of words, not unit={settings.unit!r}; mode='fast' has both"
        )
