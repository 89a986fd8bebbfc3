"""Cut long texts into pieces, and make one score of the pieces' scores.

Dimensions: N texts, P pieces, C levels.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

WORD = re.compile(r"\S+")
POOLS = ("max", "mean")


def split(text: str, words: int = 512, characters: int = 8_192) -> list[str]:
    """Cut a text into pieces of at most so many words (runs without white space) and characters; at least one piece."""
    return list(_pieces(text, words, characters))


def first(text: str, words: int, characters: int = 8_192) -> str:
    """The first piece of `split` alone; 0 words leaves the text whole."""
    return next(_pieces(text, words, characters)) if words else text


def _pieces(text: str, words: int, characters: int) -> Iterator[str]:
    if len(text) <= words or (len(text) <= characters and len(text.split()) <= words):
        yield text
        return
    start, count = 0, 0
    for word in WORD.finditer(text):
        if count == words or (word.end() - start > characters and count):
            yield text[start : word.start()]
            start, count = word.start(), 0
        count += 1
        while word.end() - start > characters:  # a single word that is longer than a piece
            yield text[start : start + characters]
            start += characters
    if start < len(text):
        yield text[start:]


def groups(texts: Sequence[str], characters: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of runs of texts of about so many characters, so that a batch's memory has a bound."""
    start, total = 0, 0
    for i, text in enumerate(texts):
        if total and total + len(text) > characters:
            yield start, i
            start, total = i, 0
        total += len(text)
    if start < len(texts):
        yield start, len(texts)


def of_texts(texts: Sequence[str], words: int) -> tuple[list[str], np.ndarray]:
    """The pieces of all texts, and the text of each [P]; 0 words leaves texts whole."""
    if not words:
        return list(texts), np.arange(len(texts))
    parts = [split(text, words) for text in texts]
    return [piece for part in parts for piece in part], np.repeat(np.arange(len(parts)), list(map(len, parts)))


def starts(pieces: Sequence[str], owners_P: np.ndarray) -> np.ndarray:
    """The character at which each piece of `of_texts` begins in its text [P]."""
    lengths_P = np.array([len(piece) for piece in pieces], np.int64)
    ends_P = np.cumsum(lengths_P)
    is_first_P = np.diff(owners_P, prepend=-1) > 0
    # The place of a text's first piece in the concatenation holds for its other pieces too: they come later.
    before_P = np.maximum.accumulate(np.where(is_first_P, ends_P - lengths_P, 0))
    return ends_P - lengths_P - before_P


def spans(texts: Sequence[str], owners_P: np.ndarray, starts_P: np.ndarray, values_P: Sequence) -> list[list[list]]:
    """The pieces of each text as [start, end, value]; in order, `text[start:end]` of all pieces is the text."""
    of_texts: list[list[list]] = [[] for _ in texts]
    for owner, start, value in zip(owners_P.tolist(), starts_P.tolist(), values_P, strict=True):
        if of_texts[owner]:
            of_texts[owner][-1][1] = start  # a piece ends where the next begins
        of_texts[owner].append([start, len(texts[owner]), value])
    return of_texts


def pool(values_PC: np.ndarray, owners_P: np.ndarray, num_texts: int, how: str, by_P: np.ndarray) -> np.ndarray:
    """One row for each text [N,C].

    Args:
        owners_P: the text of each piece, rising; every text has a piece.
        how: "max" takes the row of the piece with the highest `by_P`, the first of equals; "mean" averages the rows.
    """
    if not num_texts:
        return np.zeros((0, *values_PC.shape[1:]), values_PC.dtype)
    if how == "max":
        order_P = np.lexsort((-by_P, owners_P))  # stable: the first of equals
        return values_PC[order_P[np.searchsorted(owners_P, np.arange(num_texts))]]
    counts_N = np.bincount(owners_P, minlength=num_texts)
    starts_N = np.cumsum(counts_N) - counts_N
    return np.add.reduceat(values_PC, starts_N, axis=0) / counts_N[:, None]
