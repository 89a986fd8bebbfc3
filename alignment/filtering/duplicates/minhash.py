"""MinHash signatures and the band keys under which near duplicates meet.

Two texts share a signature's entry with probability J, the Jaccard similarity of their shingle sets; banding turns 112
entries into 14 keys, of which similar texts share one with probability 1 - (1 - s^8)^14. Mode "datatrove" repeats
datatrove 0.10.1 bit for bit; mode "fast" estimates the same J with other hash functions.

Dimensions: N documents, H hashes = B bands x R rows, S shingles.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import xxhash

from alignment.errors import InputError
from alignment.filtering.duplicates import bands, datatrove_words, shingles

EMPTY = np.uint64(2**64 - 1)  # in every entry of the signature of a document without shingles
_MERSENNE = np.uint64(2**61 - 1)
_BLOCK = 1 << 15  # shingles permuted at a time


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a signature depends on; two files of keys compare only when these agree.

    unit "word" goes with n_grams=5 and 14 x 8, "character" with n_grams=24 and 20 x 13 (NeMo Curator). shingle_hash
    matters in mode "datatrove" alone: "sha1", as FineWeb ran it, or "xxhash", datatrove 0.10.1's default.
    """

    n_grams: int = 5
    num_buckets: int = 14
    hashes_per_bucket: int = 8
    unit: str = "word"
    mode: str = "fast"
    seed: int = 1
    shingle_hash: str = "sha1"

    def __post_init__(self):
        _check_settings(self)

    @property
    def num_hashes(self) -> int:
        return self.num_buckets * self.hashes_per_bucket


def signatures(texts: Sequence[str], settings: Settings) -> np.ndarray:
    """Signatures [N, H], uint64, each a function of its text alone.

    Mode "fast" uses 32 of the 64 bits. A text with fewer words than n_grams has one shingle of all its words there and
    none in mode "datatrove"; a text without shingles has EMPTY in every entry and is nobody's duplicate.
    """
    if settings.mode == "datatrove":
        return _datatrove(texts, settings)
    return _fast(texts, settings)


def band_keys(signatures_NH: np.ndarray, settings: Settings) -> np.ndarray:
    """One 64-bit key a band [N, B], a hash of the band's entries; bands.NO_KEY throughout for a text without shingles.

    Bands that differ get the same key with probability 2^-64: among 10^9 documents, 14 x 10^18 / 2^65 = 0.4 pairs.
    """
    bands_NBR = signatures_NH.reshape(-1, settings.num_buckets, settings.hashes_per_bucket)
    keys_NB = np.zeros(bands_NBR.shape[:2], np.uint64)
    for row in range(settings.hashes_per_bucket):
        keys_NB = shingles.mix((keys_NB + np.uint64(0x9E3779B97F4A7C15)) ^ bands_NBR[:, :, row])
    keys_NB[keys_NB == bands.NO_KEY] = 0
    keys_NB[(signatures_NH == EMPTY).all(axis=1)] = bands.NO_KEY
    return keys_NB


def probability(similarity: float, buckets: int = 14, hashes: int = 8) -> float:
    """That two documents of this similarity share a band: 1 - (1 - s^R)^B."""
    return 1 - (1 - similarity**hashes) ** buckets


def threshold(buckets: int = 14, hashes: int = 8) -> float:
    """The similarity where the curve rises, (1/B)^(1/R): .719 for 14 x 8, .794 for 20 x 13."""
    return (1 / buckets) ** (1 / hashes)


def _fast(texts, settings):
    factor_H, offset_H = _permutations(settings.seed, settings.num_hashes)
    least_NH = np.full((len(texts), settings.num_hashes), 2**32 - 1, np.uint32)
    has_shingles_N = np.zeros(len(texts), bool)
    buffer_S = np.empty(0, np.uint32)
    for block in shingles.blocks(texts, n=settings.n_grams, unit=settings.unit):
        x_S = (block.shingles_S >> np.uint64(32)).astype(np.uint32)
        buffer_S = buffer_S if len(buffer_S) >= len(x_S) else np.empty(len(x_S), np.uint32)
        y_S = buffer_S[: len(x_S)]
        least_HN = np.empty((settings.num_hashes, len(block.documents_N)), np.uint32)
        for h in range(settings.num_hashes):
            np.multiply(x_S, factor_H[h], out=y_S)
            np.add(y_S, offset_H[h], out=y_S)
            np.minimum.reduceat(y_S, block.starts_N, out=least_HN[h])
        least_NH[block.documents_N] = np.minimum(least_NH[block.documents_N], least_HN.T)
        has_shingles_N[block.documents_N] = True
    signatures_NH = least_NH.astype(np.uint64)
    signatures_NH[~has_shingles_N] = EMPTY
    return signatures_NH


@functools.cache
def _permutations(seed: int, num_hashes: int) -> tuple[np.ndarray, np.ndarray]:
    """Random x -> a x + b modulo 2^32, a odd: bijections of the 32-bit words that the shingles' hashes end in."""
    random = np.random.RandomState(seed)
    factors_H = random.randint(0, 2**32, num_hashes, np.uint32) | np.uint32(1)
    return factors_H, random.randint(0, 2**32, num_hashes, np.uint32)


def _datatrove(texts, settings):
    hash_fn = {"sha1": _sha1, "xxhash": _xxhash}[settings.shingle_hash]
    signatures_NH = np.full((len(texts), settings.num_hashes), EMPTY)
    for i, text in enumerate(texts):
        words = datatrove_words.words(text)
        num = len(words) - settings.n_grams + 1
        for start in range(0, num, _BLOCK):
            grams = [" ".join(words[j : j + settings.n_grams]) for j in range(start, min(start + _BLOCK, num))]
            grams = [gram.encode("utf-8", "surrogatepass") for gram in grams]
            least_H = _datatrove_minima(hash_fn(grams), settings)
            np.minimum(signatures_NH[i], least_H, out=signatures_NH[i])
    return signatures_NH


def _datatrove_minima(shingles_S, settings):
    """Least of (a x + b) mod 2^61 - 1, where a x + b wraps at 2^64 first, as datatrove's does."""
    factors_H, offsets_H = _datatrove_parameters(settings.seed, settings.num_hashes)
    least_H = np.empty(settings.num_hashes, np.uint64)
    for h in range(settings.num_hashes):
        y_S = shingles_S * factors_H[h]
        y_S += offsets_H[h]
        y_S = (y_S & _MERSENNE) + (y_S >> np.uint64(61))
        least_H[h] = np.minimum(y_S, y_S - _MERSENNE).min()  # y - p wraps to something huge unless y >= p
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


def _check_settings(settings):
    for name in ("n_grams", "num_buckets", "hashes_per_bucket"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name}={getattr(settings, name)} is not a positive number; the defaults are 5, 14 and 8")
    for name, known in {
        "unit": ("word", "character"),
        "mode": ("fast", "datatrove"),
        "shingle_hash": ("sha1", "xxhash"),
    }.items():
        if getattr(settings, name) not in known:
            raise InputError(f"{name}={getattr(settings, name)!r} is not known to MinHash; {' and '.join(known)} are")
    if settings.mode == "datatrove" and settings.unit != "word":
        raise InputError(f"mode='datatrove' has shingles of words, not unit={settings.unit!r}; mode='fast' has both")
