"""Long texts in pieces, and the pieces' scores as the text's.

Dimensions: N texts, P pieces, C levels.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

WORD = re.compile(r"\S+")
POOLS = ("max", "mean")


def split(text: str, words: int = 512, characters: int = 8_192) -> list[str]:
    """A text as pieces of at most so many words (runs without space) and characters; at least one piece."""
    return list(_pieces(text, words, characters))


def first(text: str, words: int, characters: int = 8_192) -> str:
    """The first piece of `split`, without making the others; 0 words leaves the text whole."""
    return next(_pieces(text, words, characters)) if words else text


def _pieces(text: str, words: int, characters: int) -> Iterator[str]:
    if len(text) <= words or (len(text) <= characters and len(text.split()) <= words):
        yield text
        return
    start, count = 0, 0
    for found in WORD.finditer(text):
        if count == words or (found.end() - start > characters and count):
            yield text[start : found.start()]
            start, count = found.start(), 0
        count += 1
        while found.end() - start > characters:  # one word longer than a piece
            yield text[start : start + characters]
            start += characters
    if start < len(text):
        yield text[start:]


def of_texts(texts: Sequence[str], words: int) -> tuple[list[str], np.ndarray]:
    """All pieces, and the text that each belongs to, [P]; 0 words leaves texts whole."""
    if not words:
        return list(texts), np.arange(len(texts))
    parts = [split(text, words) for text in texts]
    return [piece for part in parts for piece in part], np.repeat(np.arange(len(parts)), list(map(len, parts)))


def starts(pieces: Sequence[str], owners_P: np.ndarray) -> np.ndarray:
    """Where each piece of `of_texts` begins in its text, [P], in characters."""
    lengths_P = np.array([len(piece) for piece in pieces], np.int64)
    ends_P = np.cumsum(lengths_P)
    is_first_P = np.diff(owners_P, prepend=-1) > 0
    before_P = np.maximum.accumulate(np.where(is_first_P, ends_P - lengths_P, 0))  # characters of the texts before
    return ends_P - lengths_P - before_P


def spans(texts: Sequence[str], owners_P: np.ndarray, starts_P: np.ndarray, values_P: Sequence) -> list[list[list]]:
    """Of each text, its pieces as [start, end, value] in order: `text[start:end]` of all of them make up the text."""
    found: list[list[list]] = [[] for _ in texts]
    for owner, start, value in zip(owners_P.tolist(), starts_P.tolist(), values_P, strict=True):
        if found[owner]:
            found[owner][-1][1] = start
        found[owner].append([start, len(texts[owner]), value])
    return found


def pool(values_PC: np.ndarray, owners_P: np.ndarray, num_texts: int, how: str, by_P: np.ndarray) -> np.ndarray:
    """A row a text, [N,C]; each text has a piece, and `owners_P` rises.

    Args:
        how: `max`, the row of the text's piece that is highest in `by_P` (the first of these); `mean` of its rows.
    """
    if not num_texts:
        return np.zeros((0, *values_PC.shape[1:]), values_PC.dtype)
    if how == "max":
        order_P = np.lexsort((-by_P, owners_P))  # stable
        return values_PC[order_P[np.searchsorted(owners_P, np.arange(num_texts))]]
    counts_N = np.bincount(owners_P, minlength=num_texts)
    starts_N = np.cumsum(counts_N) - counts_N
    return np.add.reduceat(values_PC, starts_N, axis=0) / counts_N[:, None]
