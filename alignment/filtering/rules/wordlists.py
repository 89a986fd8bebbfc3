"""Words and phrases of a list in documents: how many, where, and a limit.

Dimensions: N documents, W words.

Lists are files of the user's, one word or phrase a line, "#" before comments (the format of LDNOOBW's lists). They are
compared word by word in the locale pack's spelling (case folded, Arabic normalised), so a listed word inside a longer
one is no hit; in Arabic the article and particles written onto a word are looked past.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from alignment import errors
from alignment.filtering.rules import arabic, locales, splitter
from alignment.filtering.rules.batch import Batch, Findings

_PIECE = re.compile(r"\S+")
_LISTS: dict[tuple[str, ...], "WordList"] = {}  # read once a process, by the files' names and the pack


@dataclasses.dataclass(frozen=True, eq=False)
class WordList:
    """Entries of a list as the words that they consist of.

    Fields:
        pack: in whose spelling they are.
        tokens: every word of an entry, to its number.
        entries: an entry as the numbers of its words, to the line that it came from.
        lengths: numbers of words of the entries that there are, the longest first.
        firsts: numbers of words that an entry of several words begins with.
    """

    pack: locales.Pack
    tokens: Mapping[str, int]
    entries: Mapping[tuple[int, ...], str]
    lengths: tuple[int, ...]
    firsts: frozenset[int]

    @functools.cached_property
    def is_start(self) -> np.ndarray:
        """Whether an entry begins with the word of a number."""
        is_start = np.zeros(len(self.tokens) + 1, bool)
        is_start[[entry[0] for entry in self.entries]] = True
        return is_start

    def number(self, word: str) -> int:
        """The number of a word of a text, -1 if no entry has it."""
        key = self.pack.comparison_key(word)
        found = self.tokens.get(key, -1)
        if found < 0 and self.pack.script == "Arabic":
            found = next((self.tokens[stem] for stem in arabic.stems(key) if stem in self.tokens), -1)
        return found


def make(lines: Sequence[str], pack: locales.Pack) -> WordList:
    """A list from its lines; comments and blank lines are passed over."""
    tokens: dict[str, int] = {}
    entries: dict[tuple[int, ...], str] = {}
    for line in lines:
        entry = line.partition(" #")[0].strip()
        if entry and not entry.startswith("#"):
            parts = (part for piece in entry.split() for part in splitter.split(piece, english=pack.name == "en"))
            keys = [pack.comparison_key(part) for part in parts]
            entries.setdefault(tuple(tokens.setdefault(key, len(tokens)) for key in keys), entry)
    lengths = tuple(sorted({len(entry) for entry in entries}, reverse=True))
    return WordList(pack, tokens, entries, lengths, frozenset(entry[0] for entry in entries if len(entry) > 1))


def load(paths: Sequence[str | pathlib.Path], pack: locales.Pack) -> WordList:
    """The entries of some files as one list.

    Raises:
        InputError: a file is missing, is not UTF-8 or has no entries.
    """
    lines = []
    for path in paths:
        try:
            found = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise errors.InputError(f"word list {str(path)!r} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise errors.InputError(f"word list {str(path)!r} is not UTF-8 at byte {error.start}: convert it") from None
        if not any(line.strip() and not line.lstrip().startswith("#") for line in found):
            raise errors.InputError(f"word list {str(path)!r} has no entries: one word or phrase a line is needed")
        lines += found
    return make(lines, pack)


def hits(batch: Batch, word_list: WordList) -> np.ndarray:
    """How many entries stand in each document, `[N]`; the longest at each place, without overlap."""
    columns = batch.words
    number_W = columns.vocabulary.mapped(("word list", word_list), word_list.number)[columns.ids_W]
    if word_list.lengths == (1,):
        return columns.sums(number_W >= 0)
    count_N = np.zeros(len(batch), np.int64)
    positions = np.flatnonzero(word_list.is_start[number_W])  # the last place of it, number -1, is False
    ends = columns.starts_N1[1:]
    documents = np.searchsorted(ends, positions, side="right")
    free = 0
    for at, document in zip(positions.tolist(), documents.tolist(), strict=True):
        if at >= free and (length := _longest(number_W, at, int(ends[document]), word_list)):
            count_N[document] += 1
            free = at + length
    return count_N


def spans(text: str, word_list: WordList) -> list[tuple[int, int, str]]:
    """Where entries stand: (start, end, the list's line), in characters and in order."""
    places, numbers = [], []
    for piece in _PIECE.finditer(text):
        at = piece.start()
        for word in splitter.split(piece.group(), english=word_list.pack.name == "en"):
            start = text.find(word, at, piece.end())
            at = (start if start >= 0 else at) + len(word)
            places.append((at - len(word), at))
            numbers.append(word_list.number(word))
    found, at = [], 0
    while at < len(numbers):
        length = _longest(numbers, at, len(numbers), word_list) if numbers[at] >= 0 else 0
        if length:
            entry = word_list.entries[tuple(numbers[at : at + length])]
            found.append((places[at][0], places[at + length - 1][1], entry))
        at += length or 1
    return found


def rule(
    batch: Batch,
    *,
    paths: Mapping[str, Sequence[str]] | Sequence[str] = (),
    max_share: float | None = 0.01,
    max_hits: int | None = None,
) -> Findings:
    """Drop documents with too many listed words.

    Args:
        batch: documents of one language.
        paths: files by language, or files that serve every language. A language without files passes (`no_wordlist`).
        max_share: hits over words; None: no such limit.
        max_hits: hits a document; 0 is C4's rule, which also drops medicine, law and news. None: no such limit.

    Returns:
        Reason `wordlist`; attributes `wordlist_hits` and `wordlist_share`.
    """
    findings = Findings.passing(len(batch))
    chosen = paths.get(batch.pack.name, ()) if hasattr(paths, "get") else paths  # a config's mapping is no Mapping
    chosen = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    if not chosen:
        findings.count("no_wordlist", len(batch))
        return findings
    key = (*chosen, batch.pack.name, batch.pack.sha256)
    if key not in _LISTS:
        _LISTS[key] = load(chosen, batch.pack)
    hits_N = hits(batch, _LISTS[key])
    share_N = hits_N / np.maximum(batch.words.counts_N, 1)
    findings.attributes["wordlist_hits"] = hits_N.astype(float).tolist()
    findings.attributes["wordlist_share"] = share_N.tolist()
    if max_hits is not None:
        findings.fail_where(hits_N > max_hits, "wordlist", hits_N, max_hits)
    if max_share is not None:
        findings.fail_where(share_N > max_share, "wordlist", share_N, max_share)
    return findings


def _longest(numbers, at: int, end: int, word_list: WordList) -> int:
    """Words of the longest entry that begins at a place; 0 for none."""
    has_phrases = int(numbers[at]) in word_list.firsts
    for length in word_list.lengths if has_phrases else (1,):
        if at + length <= end and tuple(map(int, numbers[at : at + length])) in word_list.entries:
            return length
    return 0
