"""Count the words and phrases of a list in documents, and drop documents with too many.

Dimensions: N documents, W words.

Lists are the user's files, with a word or phrase on each line and "#" before comments (the format of LDNOOBW's lists).
They are compared word by word in the locale pack's spelling (case folded, Arabic normalised), so a listed word inside a
longer word is not a hit. In Arabic the article and particles in front of a word are ignored.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from alignment import errors
from alignment.filtering.rules import arabic, locales, splitter
from alignment.filtering.rules.batch import Batch, Findings

_LISTS: dict[tuple[str, ...], "WordList"] = {}  # files and pack -> list, read once in a process


@dataclasses.dataclass(frozen=True, eq=False)
class WordList:
    """The entries of a list, as sequences of numbered words.

    Fields:
        pack: gives the spelling for comparisons.
        tokens: word of an entry -> its number.
        entries: numbers of an entry's words -> the line of the list.
        lengths: the lengths of entries, in words, the longest first.
        firsts: the first words of all entries of several words.
    """

    pack: locales.Pack
    tokens: Mapping[str, int]
    entries: Mapping[tuple[int, ...], str]
    lengths: tuple[int, ...]
    firsts: frozenset[int]

    @functools.cached_property
    def is_start(self) -> np.ndarray:
        """Whether an entry begins with the word of each number."""
        is_start = np.zeros(len(self.tokens) + 1, bool)  # the last place is that of number -1, in no entry
        is_start[[entry[0] for entry in self.entries]] = True
        return is_start

    def number(self, word: str) -> int:
        """The number of a word of a text, -1 if no entry has it."""
        key = self.pack.comparison_key(word)
        number = self.tokens.get(key, -1)
        if number < 0 and self.pack.script == "Arabic":
            number = next((self.tokens[stem] for stem in arabic.stems(key) if stem in self.tokens), -1)
        return number


def make(lines: Sequence[str], pack: locales.Pack) -> WordList:
    """A list from its lines; comments and blank lines are skipped."""
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
    """The entries of several files as one list.

    Raises:
        InputError: a file is missing, is not UTF-8 or has no entries.
    """
    lines = []
    for path in paths:
        try:
            entries = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise errors.InputError(f"word list {str(path)!r} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise errors.InputError(f"word list {str(path)!r} is not UTF-8 at byte {error.start}: convert it") from None
        if not any(line.strip() and not line.lstrip().startswith("#") for line in entries):
            raise errors.InputError(f"word list {str(path)!r} has no entries: write one word or phrase on each line")
        lines += entries
    return make(lines, pack)


def hits(batch: Batch, word_list: WordList) -> np.ndarray:
    """The number of entries in each document [N]; at each place the longest, without overlap."""
    columns = batch.words
    number_W = columns.vocabulary.mapped(("word list", word_list), word_list.number)[columns.ids_W]
    if word_list.lengths == (1,):  # single words alone need no loop
        return columns.sums(number_W >= 0)
    count_N = np.zeros(len(batch), np.int64)
    positions = np.flatnonzero(word_list.is_start[number_W])
    ends = columns.starts_N1[1:]
    documents = np.searchsorted(ends, positions, side="right")
    free = 0  # the first place behind the last hit
    for at, document in zip(positions.tolist(), documents.tolist(), strict=True):
        if at >= free and (length := _longest(number_W, at, int(ends[document]), word_list)):
            count_N[document] += 1
            free = at + length
    return count_N


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
        paths: files by language, or files for every language. Documents of a language without files pass
            (`no_wordlist`).
        max_share: hits over words; None sets no limit.
        max_hits: hits in a document; None sets no limit. 0 is C4's rule, which also drops medicine, law and news.

    Returns:
        Reason `wordlist`; attributes `wordlist_hits` and `wordlist_share`.
    """
    findings = Findings.passing(len(batch))
    chosen = paths.get(batch.pack.name, ()) if isinstance(paths, Mapping) else paths
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


def _longest(numbers: np.ndarray, at: int, end: int, word_list: WordList) -> int:
    """The length of the longest entry that begins at a place, in words; 0 without one."""
    has_phrases = int(numbers[at]) in word_list.firsts
    for length in word_list.lengths if has_phrases else (1,):
        if at + length <= end and tuple(map(int, numbers[at : at + length])) in word_list.entries:
            return length
    return 0
