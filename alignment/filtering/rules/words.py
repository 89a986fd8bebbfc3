"""The words of a batch of documents as flat columns.  Dimensions: N documents, W words, V vocabulary.

Most pieces of a text (runs without white space) have occurred before. Each is split into words once and its words are
stored; a document is then a list of look-ups. A word's properties are computed at its first occurrence and afterwards
gathered by its number.
"""

import array
import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from alignment.filtering.rules import splitter

# Characters that do not make a word by themselves: general marks, control characters, and ...
_MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～"
_CONTROLS = "".join(map(chr, itertools.chain(range(9), range(11, 32), range(127, 160))))
# ... the marks that end a sentence in any script (Unicode's Sentence_Terminal and the like), as ranges of code points.
_TERMINALS = (
    "21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6 "
    "17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 "
    "2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb "
    "fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 "
    "111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 "
    "1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 "
    "16b37-16b38 16b44 16e98 1bc9f 1da88"
)
MAX_PIECES, MAX_CHARACTERS = 200_000, 4_000_000  # beyond this the next batch starts a new vocabulary: about 60 MB
IS_WORD, HAS_LETTER = 1, 2


def _terminals() -> str:
    ranges = [part.partition("-") for part in _TERMINALS.split()]
    return "".join(chr(c) for low, _, high in ranges for c in range(int(low, 16), int(high or low, 16) + 1))


TERMINALS = _terminals()
SYMBOLS = frozenset(_MARKS + _CONTROLS + TERMINALS)


class _Column:
    """A growing column of numbers with a copy in numpy.

    Without a copy the column could not grow: an `array.array` is locked while numpy has a view of it.
    """

    def __init__(self, kind: str) -> None:
        self.grown = array.array(kind)
        self._copy = np.array(self.grown)

    def __getitem__(self, at: slice | np.ndarray) -> np.ndarray:
        if len(self._copy) < len(self.grown):
            self._copy = np.array(self.grown)
        return self._copy[at]


class _Pieces(dict):
    """Piece of text -> its number; a new piece is split and enters the vocabulary."""

    def __init__(self, add_fn: Callable[[str], None]) -> None:
        super().__init__()
        self._add_fn = add_fn

    def __missing__(self, piece: str) -> int:
        self[piece] = number = len(self)
        self._add_fn(piece)
        return number


class Vocabulary:
    """Every piece and word so far. It only grows, and two threads must not share it.

    Args:
        english: split English contractions and abbreviations too (`splitter.split`).
    """

    def __init__(self, english: bool) -> None:
        self.english = english
        self.pieces = _Pieces(self._add_piece)
        self.words: dict[str, int] = {}
        self.num_characters = 0
        self._piece_starts, self._piece_counts, self._piece_words = _Column("q"), _Column("i"), _Column("i")
        self._lengths, self._kinds = _Column("i"), _Column("B")
        self._mapped: dict[Hashable, _Column] = {}

    def __len__(self) -> int:
        return len(self.words)

    @property
    def is_full(self) -> bool:
        """Whether the next batch should start a new vocabulary, so that memory has a bound."""
        return len(self.pieces) > MAX_PIECES or self.num_characters > MAX_CHARACTERS

    def expand(self, pieces_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The words of pieces one after the other [W], and the number of words of each piece [P]."""
        count_P = self._piece_counts[pieces_P]
        start_P = self._piece_starts[pieces_P]
        # For word w of piece p the place is start_p + (w - offset_p), where offset_p counts the words before the piece.
        offset_P = np.cumsum(count_P, dtype=np.int64) - count_P
        at_W = np.repeat(start_P - offset_P, count_P) + np.arange(count_P.sum(dtype=np.int64))
        return self._piece_words[at_W], count_P

    def length(self, ids_W: np.ndarray) -> np.ndarray:
        """Characters of each word."""
        return self._lengths[ids_W]

    def kind(self, ids_W: np.ndarray) -> np.ndarray:
        """IS_WORD for words with more than marks, plus HAS_LETTER for words with a letter."""
        return self._kinds[ids_W]

    def mapped(self, key: Hashable, number_fn: Callable[[str], int]) -> np.ndarray:
        """`number_fn` of every word [V], int32; it is called once for each word and key."""
        column = self._mapped.setdefault(key, _Column("i"))
        num_mapped = len(column.grown)
        if num_mapped < len(self.words):
            column.grown.extend(map(number_fn, itertools.islice(self.words, num_mapped, None)))
        return column[:]

    def _add_piece(self, piece: str) -> None:
        parts = splitter.split(piece, english=self.english)
        self._piece_starts.grown.append(len(self._piece_words.grown))
        self._piece_counts.grown.append(len(parts))
        self._piece_words.grown.extend([self._number(word) for word in parts])
        self.num_characters += len(piece)

    def _number(self, word: str) -> int:
        number = self.words.get(word)
        if number is None:
            self.words[word] = number = len(self.words)
            # isalpha first: it decides for most words without a loop in Python.
            is_word = word.isalpha() or not SYMBOLS.issuperset(word)
            has_letter = word.isalpha() or any(map(str.isalpha, word))
            self._lengths.grown.append(len(word))
            self._kinds.grown.append(IS_WORD * is_word + HAS_LETTER * has_letter)
        return number


@dataclasses.dataclass
class Columns:
    """Words of a batch.

    Fields:
        vocabulary: the words of the numbers.
        ids_W: int32, the number of each word, document after document.
        starts_N1: int64, the start of each document's words, and the end.
    """

    vocabulary: Vocabulary
    ids_W: np.ndarray
    starts_N1: np.ndarray

    @property
    def num_documents(self) -> int:
        return len(self.starts_N1) - 1

    @functools.cached_property
    def counts_N(self) -> np.ndarray:
        """The number of words of each document."""
        return np.diff(self.starts_N1)

    @functools.cached_property
    def length_W(self) -> np.ndarray:
        """Characters of each word."""
        return self.vocabulary.length(self.ids_W)

    @functools.cached_property
    def document_W(self) -> np.ndarray:
        """int32, the document of each word."""
        return np.repeat(np.arange(self.num_documents, dtype=np.int32), self.counts_N)

    def sums(self, value_W: np.ndarray) -> np.ndarray:
        """Sum of a column over each document's words [N]."""
        # Differences of a running sum also serve empty documents, for which reduceat would give a neighbour's word.
        total_W1 = np.concatenate([[0], np.cumsum(value_W, dtype=np.int64)])
        return total_W1[self.starts_N1[1:]] - total_W1[self.starts_N1[:-1]]

    def take(self, positions: Sequence[int]) -> "Columns":
        """The words of the documents at these positions, in this order."""
        positions_N = np.asarray(positions, dtype=np.int64)
        count_N = self.counts_N[positions_N]
        starts_N1 = np.concatenate([[0], np.cumsum(count_N)])
        at_W = np.repeat(self.starts_N1[:-1][positions_N] - starts_N1[:-1], count_N) + np.arange(starts_N1[-1])
        return Columns(self.vocabulary, self.ids_W[at_W], starts_N1)


_VOCABULARIES: dict[bool, Vocabulary] = {}


def _vocabulary(english: bool) -> Vocabulary:
    """This process's vocabulary, or a new one if that is full."""
    vocabulary = _VOCABULARIES.get(english)
    if vocabulary is None or vocabulary.is_full:
        vocabulary = _VOCABULARIES[english] = Vocabulary(english)
    return vocabulary


def columns(texts: Sequence[str], *, english: bool = True) -> Columns:
    """Split texts into words.

    Args:
        texts: one string a document.
        english: split English contractions, keep English abbreviations whole.
    """
    vocabulary = _vocabulary(english)
    look_up = vocabulary.pieces.__getitem__
    pieces: list[int] = []
    ends = [0]
    for text in texts:
        pieces.extend(map(look_up, text.split()))
        ends.append(len(pieces))
    pieces_P = np.array(pieces, dtype=np.int32)
    del pieces  # a list of Python integers, several times the size of the array
    ids_W, count_P = vocabulary.expand(pieces_P)
    end_P1 = np.concatenate([[0], np.cumsum(count_P, dtype=np.int64)])
    return Columns(vocabulary, ids_W, end_P1[ends])
