"""Repeated lines, paragraphs and n-grams: Gopher (Rae et al. 2021, arXiv:2112.11446, table A1) as datatrove counts.

Dimensions: N documents, W words, G n-grams (one starts at each word that has n - 1 more after it), R repeated n-grams.

An n-gram can repeat only where the (n-1)-gram at its start repeats. Each order therefore examines only the repeated
n-grams of the order before, and in ordinary text few remain after pairs. An n-gram's key is exact, not a hash: the
number of that (n-1)-gram among the repeated ones of the batch, and its last word's number. One sort finds the repeated
keys of all documents.
"""

import re
from collections.abc import Sequence

import numpy as np

from alignment.filtering.rules import words
from alignment.filtering.rules.batch import Batch, Findings

TOP_N_GRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
DUPLICATE_N_GRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
_PARAGRAPHS = re.compile(r"\n{2,}")
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, made odd (Fibonacci hashing, Knuth 6.4)


def check(
    batch: Batch,
    *,
    max_duplicate_lines: float | None = 0.30,
    max_duplicate_paragraphs: float | None = 0.30,
    max_duplicate_line_characters: float | None = 0.20,
    max_duplicate_paragraph_characters: float | None = 0.20,
    top_n_grams: Sequence[tuple[int, float]] = TOP_N_GRAMS,
    duplicate_n_grams: Sequence[tuple[int, float]] = DUPLICATE_N_GRAMS,
) -> Findings:
    """Drop documents that repeat themselves. None, or an empty sequence, switches a check off.

    Args:
        batch: documents; English ones are split into words by spaCy's conventions.
        max_duplicate_lines, max_duplicate_paragraphs: share of lines (paragraphs) that occurred before in the document.
        max_duplicate_line_characters, max_duplicate_paragraph_characters: their share of the text's characters.
        top_n_grams: (n, share): the most frequent n-gram, its length times its count, over the text's characters. A
            single occurrence counts too, so very short texts fail.
        duplicate_n_grams: (n, share): characters of n-grams that occurred before, counted from left to right without
            overlap, over the text's characters.

    Returns:
        Reasons `empty`, `dup_para_frac`, `dup_para_char_frac`, `dup_line_frac`, `dup_line_char_frac`, `top_{n}_gram`,
        `duplicated_{n}_n_grams`, in this order.
    """
    findings = Findings.passing(len(batch))
    paragraph_limits = (max_duplicate_paragraphs, max_duplicate_paragraph_characters)
    line_limits = (max_duplicate_lines, max_duplicate_line_characters)
    for position, text in enumerate(batch.texts):
        if not text or text.isspace():
            findings.fail(position, "empty")
            continue
        if "\n\n" in text and paragraph_limits != (None, None):
            _duplicates(findings, position, _PARAGRAPHS.split(text.strip()), len(text), "dup_para", paragraph_limits)
        if "\n" in text and line_limits != (None, None):
            _duplicates(findings, position, _lines(text), len(text), "dup_line", line_limits)
    _n_grams(batch, findings, top_n_grams, duplicate_n_grams)
    return findings


def _lines(text: str) -> list[str]:
    """The texts between runs of line breaks; a break at the very start or end has "" before or after it."""
    return [""] * text.startswith("\n") + list(filter(None, text.split("\n"))) + [""] * text.endswith("\n")


def _duplicates(
    findings: Findings,
    position: int,
    units: list[str],
    num_characters: int,
    name: str,
    limits: tuple[float | None, float | None],
) -> None:
    """Check the share of units that occurred before, by number and by characters."""
    if len(distinct := set(units)) == len(units):
        return
    share = (len(units) - len(distinct)) / len(units)
    character_share = (sum(map(len, units)) - sum(map(len, distinct))) / num_characters
    if limits[0] is not None and share > limits[0]:
        findings.fail(position, f"{name}_frac", share, limits[0])
    if limits[1] is not None and character_share > limits[1]:
        findings.fail(position, f"{name}_char_frac", character_share, limits[1])


def _n_grams(
    batch: Batch,
    findings: Findings,
    top_n_grams: Sequence[tuple[int, float]],
    duplicate_n_grams: Sequence[tuple[int, float]],
) -> None:
    """Check the n-grams of each order, over the documents that passed so far."""
    if not top_n_grams and not duplicate_n_grams:
        return
    passing = [i for i, reason in enumerate(findings.reasons) if not reason]
    grams = _Grams(batch.words if len(passing) == len(batch) else batch.words.take(passing))
    num_characters_N = np.array([len(batch.texts[i]) for i in passing], dtype=np.int64)
    for name, orders in (("top_{}_gram", top_n_grams), ("duplicated_{}_n_grams", duplicate_n_grams)):
        for n, limit in orders:
            if name.startswith("top"):
                share_N = grams.top(n) / num_characters_N
            else:
                share_N = grams.duplicated(n, num_characters_N, limit) / num_characters_N
            for i in np.flatnonzero((share_N > limit) & grams.is_passing_N).tolist():
                findings.fail(passing[i], name.format(n), share_N[i], limit)
                grams.is_passing_N[i] = False


class _Grams:
    """The repeated n-grams of a batch, order by order; documents that no longer pass are skipped."""

    def __init__(self, columns: words.Columns) -> None:
        self.columns = columns
        self.is_passing_N = np.ones(columns.num_documents, dtype=bool)
        self.length_before_W1 = np.concatenate([[0], np.cumsum(columns.length_W, dtype=np.int64)])
        self._order = 0  # of the n-grams below; 0 before the first
        self._at_R = self._number_R = np.empty(0, np.int64)

    def repeated(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The n-grams that occur more than once in their document: start [R], ascending, and number [R].

        Equal n-grams of a document share a number; numbers are 0, 1, ... in the order of documents. Call it
        with rising orders: each continues from the one before.
        """
        if n < self._order or not self._order:
            self._order = min(n, 2)
            at_W = np.arange(len(self.columns.ids_W), dtype=np.int32)
            number_W = self.columns.document_W.astype(np.uint64)
            if self._order == 2:
                number_W = number_W * np.uint64(len(self.columns.vocabulary)) + self.columns.ids_W.astype(np.uint64)
            self._extend(at_W, number_W, self._order)
        while self._order < n:
            self._order += 1
            self._extend(self._at_R, self._number_R, self._order)
        return self._at_R, self._number_R

    def _extend(self, at_G: np.ndarray, number_G: np.ndarray, n: int) -> None:
        """From numbered (n-1)-grams to the repeated n-grams that begin with them."""
        ids_W, document_W = self.columns.ids_W, self.columns.document_W
        last_G = np.minimum(at_G + (n - 1), len(ids_W) - 1)
        document_G = document_W[at_G]
        fits_G = (at_G + n <= len(ids_W)) & (document_W[last_G] == document_G) & self.is_passing_N[document_G]
        at_G = at_G[fits_G]
        key_G = number_G[fits_G].astype(np.uint64)
        key_G *= np.uint64(len(self.columns.vocabulary))
        key_G += ids_W[last_G[fits_G]].astype(np.uint64)
        repeated, self._number_R = _repeats(key_G)
        self._at_R = at_G[repeated]

    def top(self, n: int) -> np.ndarray:
        """Length (spaces included) times count of each document's most frequent n-gram, the earliest of equals [N]."""
        result_N = np.zeros(self.columns.num_documents, dtype=np.int64)
        has_any_N = self.columns.counts_N >= n
        # Without a repeated n-gram all occur once, and the earliest is the first.
        result_N[has_any_N] = self._characters(self.columns.starts_N1[:-1][has_any_N], n) + n - 1
        at_R, number_R = self.repeated(n)
        if len(at_R):
            count = np.bincount(number_R)
            first = self._firsts(at_R, number_R)
            document = self.columns.document_W[first]
            begins = np.flatnonzero(np.concatenate([[True], document[1:] != document[:-1]]))
            # One number orders by count, then by place, since places are below the number of words; it can be taken
            # apart again.
            score = count * len(self.columns.ids_W) - first
            best = np.maximum.reduceat(score, begins)
            best_count = -(-best // len(self.columns.ids_W))
            best_first = best_count * len(self.columns.ids_W) - best
            result_N[document[begins]] = (self._characters(best_first, n) + n - 1) * best_count
        return result_N

    def duplicated(self, n: int, num_characters_N: np.ndarray, limit: float) -> np.ndarray:
        """Characters of n-grams that occurred before, without overlap [N]; 0 where the share cannot exceed the limit.

        Counting without overlap needs a loop from left to right. All repetitions together, overlaps once, are an upper
        bound; only documents with a bound above the limit are read.
        """
        result_N = np.zeros(self.columns.num_documents, dtype=np.int64)
        at_R, number_R = self.repeated(n)
        if not len(at_R):
            return result_N
        again = at_R[self._firsts(at_R, number_R)[number_R] < at_R]
        until = np.minimum(again + n, np.append(again[1:], len(self.columns.ids_W)))  # overlaps count once
        covered = self.length_before_W1[until] - self.length_before_W1[again]
        bound_N = np.bincount(self.columns.document_W[again], weights=covered, minlength=len(result_N))
        border_N1 = np.searchsorted(at_R, self.columns.starts_N1)
        for i in np.flatnonzero((bound_N / num_characters_N > limit) & self.is_passing_N).tolist():
            some = slice(border_N1[i], border_N1[i + 1])
            result_N[i] = self._read(at_R[some].tolist(), number_R[some].tolist(), n)
        return result_N

    def _read(self, starts: list[int], numbers: list[int], n: int) -> int:
        """Read one document's repeated n-grams; one that occurred before is counted and its n words are skipped."""
        earlier: set[int] = set()
        free_from, before, total = 0, self.length_before_W1, 0
        for start, number in zip(starts, numbers, strict=True):
            if start < free_from:
                continue
            if number in earlier:
                total += int(before[start + n] - before[start])
                free_from = start + n
            else:
                earlier.add(number)
        return total

    def _firsts(self, at_R: np.ndarray, number_R: np.ndarray) -> np.ndarray:
        """The first occurrence of each repeated n-gram."""
        first = np.empty(number_R.max() + 1, dtype=np.int64)
        # Assigned from the last to the first: of several values for an index numpy keeps the one assigned last.
        first[number_R[::-1]] = at_R[::-1]
        return first

    def _characters(self, at_G: np.ndarray, n: int) -> np.ndarray:
        return self.length_before_W1[at_G + n] - self.length_before_W1[at_G]


def _repeats(key_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions, ascending, of keys that occur more than once, and each such key's rank among them.

    Counting hashed keys in a small table shows most of the keys that occur once; only the others are sorted.
    """
    bits = min(22, max(8, len(key_G).bit_length() + 2))
    slot_G = key_G * _SPREAD
    slot_G >>= np.uint64(64 - bits)
    slot_G = slot_G.view(np.int64)
    maybe = np.flatnonzero((np.bincount(slot_G, minlength=1 << bits) > 1)[slot_G])
    del slot_G
    key = key_G[maybe]
    order = np.argsort(key)
    key = key[order]
    is_new = np.concatenate([[True], key[1:] != key[:-1]])[: len(key)]
    is_last = np.concatenate([is_new[1:], [True]])[: len(key)]
    is_repeated = ~(is_new & is_last)
    rank = np.cumsum(is_new & is_repeated) - 1
    number = np.full(len(maybe), -1, dtype=np.int64)
    number[order[is_repeated]] = rank[is_repeated]
    return maybe[number >= 0], number[number >= 0]
