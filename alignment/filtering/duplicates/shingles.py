"""From texts to 64-bit hashes of their n-grams, vectorised in numpy: no Python loop touches a word or a character.

Text becomes lower case, every number "0", punctuation and symbols separate words, combining marks disappear. Chinese
characters and kana, which are written without spaces, count as words of their own. A word's hash is a polynomial in its
code points (as Rabin & Karp's), the difference of two entries of a running sum over a block of text; an n-gram's hash
is a sum of its words' hashes with odd weights. Both end in a finaliser, so that every bit of the result depends on
every character.

Dimensions: X characters, W tokens (words, or characters), N documents, S shingles.
"""

import dataclasses
import functools
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from alignment.filtering.rules import arabic

BLOCK = 1 << 17  # characters handled together: the working set stays in the processor's cache
_SPACE, _ZERO = 32, 48
_BASE = 0x9E3779B97F4A7C0B  # 3 modulo 8: it has an inverse, and differences of its powers have few factors of two
_TABLE = 0x20000  # code points from here on (ideographs, tags, private use) stay as they are


@dataclasses.dataclass(frozen=True)
class Block:
    """Shingles of several whole documents, or of a part of one."""

    documents_N: np.ndarray  # positions in the batch; each document has at least one shingle here
    starts_N: np.ndarray  # where each one's shingles start
    shingles_S: np.ndarray  # uint64


def blocks(texts: Sequence[str], *, n: int, unit: str = "word") -> Iterator[Block]:
    """Hashed n-grams of a batch, a cache-sized block at a time, so that a long document needs no more memory.

    A document of fewer than n tokens has one shingle of them all, and an empty document none.

    Args:
        n: tokens of a shingle.
        unit: the tokens are words ("word") or characters ("character").
    """
    # A long document comes in pieces. The last n - 1 tokens of a piece are carried over to the next, so that the
    # n-grams across the cut are made, each once.
    carry, has_shingles = np.empty(0, np.uint64), False
    for documents, pieces, is_first, is_last in _groups([arabic.letters(text) for text in texts]):
        tokens_W, counts_N = _words(pieces) if unit == "word" else _characters(pieces, is_first)
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


def ngrams(
    tokens_W: np.ndarray, counts_N: np.ndarray, n: int, *, with_short: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes [S] of the runs of n tokens within each document, and the number of shingles of each [N].

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
    # Every token starts a sum, also where fewer than n tokens of its document follow; those sums reach into the next
    # document and are taken out here.
    keep_W = np.ones(len(tokens_W), bool)
    tails = ends_N[:, None] - np.arange(1, n)
    keep_W[tails[tails >= starts_N[:, None]]] = False
    if with_short:
        keep_W[starts_N[is_short_N]] = True
    num_N = np.maximum(counts_N - n + 1, 0) + (is_short_N if with_short else 0)
    return mix(sums_W[keep_W]), num_N


def mix(x: np.ndarray) -> np.ndarray:
    """MurmurHash3's finaliser (Appleby's fmix64), a bijection: each input bit flips each output bit half the time."""
    x = x ^ (x >> np.uint64(33))
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    x ^= x >> np.uint64(33)
    return x


def _groups(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str], bool, bool]]:
    """Documents in groups of up to a block, and a longer document in several pieces.

    ASCII texts, which need a byte a character and a table of 256 entries, are grouped apart from the others.

    Yields:
        Positions in the batch, texts, and whether this is a document's first and its last piece.
    """
    groups: dict[bool, tuple[list[int], list[str]]] = {True: ([], []), False: ([], [])}  # by whether texts are ASCII
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
    """A long text cut at white space, so that no word or number is split unless it fills a block."""
    pieces, start = [], 0
    while len(text) - start > BLOCK:
        stop = max(text.rfind(" ", start + 1, start + BLOCK), text.rfind("\n", start + 1, start + BLOCK))
        stop = stop if stop > 0 else start + BLOCK
        pieces.append(text[start:stop])
        start = stop
    return [*pieces, text[start:]]


def _codes(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Normalised code points of a group and the end of each text in them.

    A space stands before, between and after the texts. Code points are uint8 for ASCII, uint32 otherwise.
    """
    joined = " ".join(["", *texts, ""])
    ends_N = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1)
    if joined.isascii():
        code_X = np.frombuffer(joined.encode().translate(_ascii_table()), np.uint8)
    else:
        code_X = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        beyond_X = code_X >= _TABLE
        normal_X = _table()[np.where(beyond_X, 0, code_X) if beyond_X.any() else code_X]
        code_X = np.where(beyond_X, code_X, normal_X)
    # Digits are "0" by now and removed characters 0. A number is one "0": drop those that follow another.
    is_zero_X = code_X == _ZERO
    drop_X = code_X == 0
    drop_X[1:] |= is_zero_X[1:] & is_zero_X[:-1]
    dropped = np.flatnonzero(drop_X)
    if len(dropped):
        code_X = code_X[~drop_X]
        ends_N = ends_N - np.searchsorted(dropped, ends_N)
    return code_X, ends_N


def _words(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hash of each word, and the number of words of each text."""
    code_X, text_ends_N = _codes(texts)
    is_word_X = code_X != _SPACE
    is_edge_X = is_word_X[1:] != is_word_X[:-1]
    if code_X.dtype != np.uint8:
        alone_X = _is_ideograph(code_X)
        if alone_X.any():
            return _words_and_ideographs(code_X, is_word_X, alone_X, text_ends_N)
    edges = np.flatnonzero(is_edge_X) + 1
    return _hash_spans(code_X, edges[::2], edges[1::2], text_ends_N)


def _words_and_ideographs(
    code_X: np.ndarray, is_word_X: np.ndarray, alone_X: np.ndarray, text_ends_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`_words` where some characters (`alone_X`) are words of their own."""
    starts_X, ends_X = is_word_X.copy(), is_word_X.copy()
    starts_X[1:] &= ~is_word_X[:-1] | alone_X[1:] | alone_X[:-1]
    ends_X[:-1] &= ~is_word_X[1:] | alone_X[1:] | alone_X[:-1]
    return _hash_spans(code_X, np.flatnonzero(starts_X), np.flatnonzero(ends_X) + 1, text_ends_N)


def _hash_spans(
    code_X: np.ndarray, starts_W: np.ndarray, ends_W: np.ndarray, text_ends_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hash of each span of characters, and the number of spans that start in each text.

    With s_i = sum over j < i of code_j base^j (modulo 2^64), a span's hash is (s_end - s_start) base^-start: the same
    wherever the word stands.
    """
    power_X, inverse_X = _powers()
    sums_X = np.empty(len(code_X) + 1, np.uint64)
    sums_X[0] = 0
    np.cumsum(np.multiply(code_X, power_X[: len(code_X)], dtype=np.uint64), out=sums_X[1:])
    hash_W = mix((sums_X[ends_W] - sums_X[starts_W]) * inverse_X[starts_W])
    return hash_W, np.diff(np.searchsorted(starts_W, text_ends_N), prepend=0)


def _characters(texts: list[str], is_first: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Hash of each character, with a single space between words, and the number of characters of each text."""
    code_X, text_ends_N = _codes(texts)
    is_space_X = code_X == _SPACE
    keep_X = ~is_space_X
    keep_X[:-1] |= ~is_space_X[1:]  # keep the space before each word ...
    # ... except before a text's first word. A later piece of a document continues it: the space of its cut stays.
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
    """One character after normalisation: "" if it disappears, " " for a separator, else one character."""
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
    """Powers of the base and of its inverse modulo 2^64, one for each character and separator of a block."""
    size = BLOCK + 3  # a text of BLOCK characters has a separator at either end
    both = np.ones((2, size), np.uint64)
    both[0, 1:], both[1, 1:] = _BASE, pow(_BASE, -1, 1 << 64)
    both = np.multiply.accumulate(both, axis=1)
    return both[0], both[1]


@functools.cache
def _weights(n: int) -> np.ndarray:
    """Odd weights, so that multiplying by one loses no bits; another for each position, so that order counts."""
    return mix(np.arange(1, n + 1, dtype=np.uint64)) | np.uint64(1)
