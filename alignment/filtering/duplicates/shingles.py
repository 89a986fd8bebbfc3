"""From texts to 64-bit hashes of their n-grams, in numpy throughout.

Text is lowered, every number becomes "0", punctuation and symbols separate words, combining marks disappear; Chinese
characters and kana, written without spaces, are words of their own. A word's hash is a polynomial in its code points,
read off a running sum over a block of text; an n-gram's is a sum of its words' hashes with odd weights. Both end in a
finaliser, so that every bit of the result depends on every character.

Dimensions: X characters, W tokens (words, or characters), N documents, S shingles.
"""

import dataclasses
import functools
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

BLOCK = 1 << 17  # characters handled at a time: the working set stays in the processor's cache
_SPACE, _ZERO = 32, 48
_BASE = 0x9E3779B97F4A7C0B  # odd, 3 modulo 8: differences of its powers have few factors of two
_TABLE = 0x20000  # code points from here on are ideographs, tags and private use: left as they are


@dataclasses.dataclass(frozen=True)
class Block:
    """Shingles of some whole documents, or of a part of one."""

    documents_N: np.ndarray  # their positions in the batch; each has at least one shingle here
    starts_N: np.ndarray  # where each one's shingles start
    shingles_S: np.ndarray  # uint64


def blocks(texts: Sequence[str], *, n: int, unit: str = "word") -> Iterator[Block]:
    """Hashed n-grams of a batch, a cache-sized block at a time, so that a long document needs no more memory.

    A document of fewer than n words (characters) has one shingle of all it has, and none if it has nothing.
    """
    tokens_fn = {"word": _words, "character": _characters}[unit]
    carry, has_shingles = np.empty(0, np.uint64), False
    for documents, pieces, is_first, is_last in _groups(texts):
        tokens_W, counts_N = tokens_fn(pieces, is_first)
        if not is_first:
            tokens_W, counts_N = np.concatenate([carry, tokens_W]), counts_N + len(carry)
        has_shingles = has_shingles and not is_first
        shingles_S, shingle_counts_N = ngrams(tokens_W, counts_N, n, with_short=is_last and not has_shingles)
        has_shingles = has_shingles or bool(len(shingles_S))
        carry = tokens_W[max(0, len(tokens_W) - n + 1) :]
        some_N = shingle_counts_N > 0
        starts_N = np.cumsum(shingle_counts_N) - shingle_counts_N
        if some_N.any():
            yield Block(np.asarray(documents)[some_N], starts_N[some_N], shingles_S)


def ngrams(tokens_W: np.ndarray, counts_N: np.ndarray, n: int, *, with_short: bool = True):
    """Hashes of runs of n tokens inside each document, and how many each has.

    Args:
        tokens_W: well mixed 64-bit hashes, one document after the other.
        counts_N: tokens of each document; the sum is W.
        n: tokens a shingle, >= 1.
        with_short: whether a document of 1 to n - 1 tokens has one shingle of them all, or none.
    """
    ends_N = np.cumsum(counts_N)
    starts_N = ends_N - counts_N
    weights = _weights(n)
    sums_W = tokens_W * weights[0]
    for j in range(1, n):
        sums_W[:-j] += tokens_W[j:] * weights[j]
    is_short_N = (counts_N > 0) & (counts_N < n)
    for i in np.flatnonzero(is_short_N):
        short = tokens_W[starts_N[i] : ends_N[i]]
        sums_W[starts_N[i]] = np.sum(short * weights[: len(short)]) + np.uint64(len(short))
    keep_W = np.ones(len(tokens_W), bool)
    tails = ends_N[:, None] - np.arange(1, n)
    keep_W[tails[tails >= starts_N[:, None]]] = False
    if with_short:
        keep_W[starts_N[is_short_N]] = True
    num_N = np.maximum(counts_N - n + 1, 0) + (is_short_N if with_short else 0)
    return mix(sums_W[keep_W]), num_N


def mix(x: np.ndarray) -> np.ndarray:
    """MurmurHash3's finaliser: a bijection of 64-bit words; each input bit flips each output bit half the time."""
    x = x ^ (x >> np.uint64(33))
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    x ^= x >> np.uint64(33)
    return x


def _groups(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str], bool, bool]]:
    """Documents put together up to a block, plain ASCII apart from the rest; a longer one in pieces of its own."""
    groups = {True: ([], []), False: ([], [])}
    sizes = {True: 0, False: 0}
    for i, text in enumerate(texts):
        if len(text) >= BLOCK:
            pieces = _pieces(text)
            yield from (([i], [piece], j == 0, j == len(pieces) - 1) for j, piece in enumerate(pieces))
            continue
        kind = text.isascii()
        if sizes[kind] + len(text) + 1 > BLOCK:
            yield *groups[kind], True, True
            groups[kind], sizes[kind] = ([], []), 0
        groups[kind][0].append(i)
        groups[kind][1].append(text)
        sizes[kind] += len(text) + 1
    yield from ((*group, True, True) for group in groups.values() if group[0])


def _pieces(text: str) -> list[str]:
    """Cut at white space: a number or word is whole unless it fills a block."""
    pieces, start = [], 0
    while len(text) - start > BLOCK:
        stop = max(text.rfind(" ", start + 1, start + BLOCK), text.rfind("\n", start + 1, start + BLOCK))
        stop = stop if stop > 0 else start + BLOCK
        pieces.append(text[start:stop])
        start = stop
    return [*pieces, text[start:]]


def _codes(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Normalised code points of a group, uint8 or uint32, a space before, between and after; where each text ends."""
    joined = " ".join(["", *texts, ""])
    ends_N = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1)
    if joined.isascii():
        code_X = np.frombuffer(joined.encode().translate(_ascii_table()), np.uint8)
    else:
        code_X = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        beyond_X = code_X >= _TABLE
        normal_X = _table()[np.where(beyond_X, 0, code_X) if beyond_X.any() else code_X]
        code_X = np.where(beyond_X, code_X, normal_X)
    is_zero_X = code_X == _ZERO
    drop_X = code_X == 0
    drop_X[1:] |= is_zero_X[1:] & is_zero_X[:-1]
    dropped = np.flatnonzero(drop_X)
    if len(dropped):
        code_X = code_X[~drop_X]
        ends_N = ends_N - np.searchsorted(dropped, ends_N)
    return code_X, ends_N


def _words(texts: list[str], is_first: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Hash of each word, and words a text."""
    del is_first  # a document is cut between words
    code_X, text_ends_N = _codes(texts)
    is_word_X = code_X != _SPACE
    is_edge_X = is_word_X[1:] != is_word_X[:-1]
    if code_X.dtype != np.uint8:
        alone_X = _is_ideograph(code_X)
        if alone_X.any():
            return _words_and_ideographs(code_X, is_word_X, alone_X, text_ends_N)
    edges = np.flatnonzero(is_edge_X) + 1
    return _hash_spans(code_X, edges[::2], edges[1::2], text_ends_N)


def _words_and_ideographs(code_X, is_word_X, alone_X, text_ends_N):
    starts_X, ends_X = is_word_X.copy(), is_word_X.copy()
    starts_X[1:] &= ~is_word_X[:-1] | alone_X[1:] | alone_X[:-1]
    ends_X[:-1] &= ~is_word_X[1:] | alone_X[1:] | alone_X[:-1]
    return _hash_spans(code_X, np.flatnonzero(starts_X), np.flatnonzero(ends_X) + 1, text_ends_N)


def _hash_spans(code_X, starts_W, ends_W, text_ends_N):
    power_X, inverse_X = _powers()
    sums_X = np.empty(len(code_X) + 1, np.uint64)
    sums_X[0] = 0
    np.cumsum(np.multiply(code_X, power_X[: len(code_X)], dtype=np.uint64), out=sums_X[1:])
    hash_W = mix((sums_X[ends_W] - sums_X[starts_W]) * inverse_X[starts_W])
    return hash_W, np.diff(np.searchsorted(starts_W, text_ends_N), prepend=0)


def _characters(texts: list[str], is_first: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Hash of each character, a single space between words, and characters a text."""
    code_X, text_ends_N = _codes(texts)
    is_space_X = code_X == _SPACE
    keep_X = ~is_space_X
    keep_X[:-1] |= ~is_space_X[1:]  # the space before each word, but for a text's first
    if is_first or not texts[0][:1].isspace():
        keep_X[np.concatenate([[0], text_ends_N[:-1]])] = False
    kept_before_X = np.concatenate([[0], np.cumsum(keep_X)])
    return mix(code_X[keep_X].astype(np.uint64) * np.uint64(_BASE)), np.diff(kept_before_X[text_ends_N], prepend=0)


def _is_ideograph(code_X: np.ndarray) -> np.ndarray:
    is_wide_X = code_X >= 0x3040
    if not is_wide_X.any():
        return is_wide_X
    is_kana_X = code_X < 0x3100
    is_han_X = ((code_X >= 0x3400) & (code_X < 0xA000)) | ((code_X >= 0xF900) & (code_X < 0xFB00)) | (code_X >= _TABLE)
    return is_wide_X & (is_kana_X | is_han_X)


def normalised(character: str) -> str:
    """What becomes of one character: "" nothing, " " a separator, else one character."""
    lowered = unicodedata.normalize("NFD", character.lower())
    lowered = "".join(c for c in lowered if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    category = unicodedata.category(lowered[0]) if lowered else ""
    if category == "Nd":
        return "0"
    if category[:1] in "PSZ" or category == "Cc":
        return " " if lowered else ""
    return lowered if len(lowered) == 1 else character.lower()[0]


@functools.cache
def _ascii_table() -> bytes:
    return bytes(ord(normalised(chr(i))) for i in range(128)) + bytes(128)


@functools.cache
def _table() -> np.ndarray:
    points = (ord(normalised(chr(i)) or "\0") for i in range(_TABLE))
    return np.fromiter(points, np.uint32, _TABLE)


@functools.cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base and of its inverse modulo 2^64, as many as a block can have characters and separators."""
    size = BLOCK + 3
    both = np.ones((2, size), np.uint64)
    both[0, 1:], both[1, 1:] = _BASE, pow(_BASE, -1, 1 << 64)
    both = np.multiply.accumulate(both, axis=1)
    return both[0], both[1]


@functools.cache
def _weights(n: int) -> np.ndarray:
    return mix(np.arange(1, n + 1, dtype=np.uint64)) | np.uint64(1)
