"""C4's cleaning (Raffel et al. 2020, arXiv:1910.10683, section 2.2) by datatrove's definitions: lines go or stay."""

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from alignment.filtering.rules import splitter
from alignment.filtering.rules.batch import Batch, Findings

ELLIPSIS = "..."
MAX_PIECES, MAX_LENGTH = (
    100_000,
    100,
)  # size of the cache for counting sentences, and characters of a piece in it; 20 MB
_RUNS = re.compile(r"\s+|\S+")


def clean(
    batch: Batch,
    *,
    terminal_punctuation: bool = True,
    min_words_per_line: int | None = 3,
    max_word_length: int | None = 1000,
    min_sentences: int | None = 5,
    remove_citations: bool = True,
    javascript: bool = True,
    policy: bool = True,
    lorem_ipsum: bool = True,
    curly_bracket: bool = True,
) -> Findings:
    """Remove lines that are not prose; drop documents with too little left, and documents of code or dummy text.

    The checks run in order for each line, and a later check does not see a line that an earlier one removed: a "{" on a
    line without an end mark does not drop the page. Documents that pass come back without the removed lines and without
    white space around the others.

    Args:
        batch: documents of one language; the pack names end marks, policy phrases and citations.
        terminal_punctuation: remove lines that do not end in one of the pack's end marks, or that end in "...".
        min_words_per_line: remove lines with fewer words (between white space); None keeps them.
        max_word_length: remove lines with a longer word, in characters; None keeps them.
        min_sentences: drop documents with fewer sentences in the remaining lines; None drops only empty ones.
        remove_citations: cut out the matches of the pack's citation patterns, such as [1] and [edit].
        javascript, policy: remove lines that mention "javascript"; that hold one of the pack's policy phrases.
        lorem_ipsum, curly_bracket: drop documents with such a line.

    Returns:
        Reasons `empty`, `lorem_ipsum`, `curly_bracket`, `too_few_sentences`; new texts; how many lines each check
        removed.
    """
    findings = Findings.passing(len(batch))
    pack = batch.pack
    cleaner = _Cleaner(
        ends=tuple(pack.end_punctuation) if terminal_punctuation else None,
        min_words=min_words_per_line or 0,
        max_word_length=max_word_length or 1 << 60,
        citations=_citations(tuple(pack.citation_patterns)) if remove_citations else None,
        javascript=javascript,
        policy=tuple(pack.policy_phrases) if policy else (),
        spelling=pack.comparison_key,
        lorem_ipsum=lorem_ipsum,
        curly_bracket=curly_bracket,
    )
    sentences = _sentences(tuple(pack.sentence_end), pack.name == "en")
    for position, (text, lines) in enumerate(zip(batch.texts, batch.lines, strict=True)):
        if not text or text.isspace():
            findings.fail(position, "empty")
            continue
        reason, kept_lines = cleaner.lines(text, lines, findings)
        if reason:
            findings.fail(position, reason, 1, 0)
            continue
        if min_sentences is not None and (count := sentences.count(kept_lines, min_sentences)) < min_sentences:
            findings.fail(position, "too_few_sentences", count, min_sentences)
            continue
        cleaned = "\n".join(kept_lines).strip()
        if not cleaned:
            findings.fail(position, "empty")
        elif cleaned != text:
            findings.texts[position] = cleaned
    return findings


@functools.cache
def _citations(patterns: tuple[str, ...]) -> re.Pattern | None:
    return re.compile("|".join(patterns)) if patterns else None


class _Cleaner:
    """The checks of a line under one set of settings."""

    def __init__(
        self,
        *,
        ends: tuple[str, ...] | None,
        min_words: int,
        max_word_length: int,
        citations: re.Pattern | None,
        javascript: bool,
        policy: tuple[str, ...],
        spelling: Callable[[str], str],
        lorem_ipsum: bool,
        curly_bracket: bool,
    ) -> None:
        self.ends, self.min_words, self.max_word_length = ends, min_words, max_word_length
        self.citations, self.javascript, self.policy, self.spelling = citations, javascript, policy, spelling
        self.in_brackets = citations is not None and all(
            part.startswith(r"\[") for part in citations.pattern.split("|")
        )
        self.lorem_ipsum, self.curly_bracket = lorem_ipsum, curly_bracket

    def lines(self, text: str, lines: list[str], findings: Findings) -> tuple[str, list[str]]:
        """The reason to drop the document, or "", and the lines that stay."""
        # Most texts cannot fail any check of a line's content, which one search over the text shows.
        has_citations = self.citations is not None and (not self.in_brackets or "[" in text)
        # Cutting a citation out may make a phrase that the text did not have ("java[1]script").
        is_suspect = has_citations or self._is_suspect(text)
        removed: dict[str, int] = {}
        kept_lines = []
        for line in lines:
            line = line.strip()
            num_words = len(line.split(None, self.min_words))  # splits no further than the limit
            # As in datatrove, words are counted before citations are cut out, and long words are checked first.
            if len(line) > self.max_word_length and max(map(len, line.split())) > self.max_word_length:
                reason = "long_word"
            else:
                if has_citations and self.citations is not None:
                    line = self.citations.sub("", line)
                if self.ends is not None and (not line.endswith(self.ends) or line.endswith(ELLIPSIS)):
                    reason = "no_end_mark"
                elif num_words < self.min_words:
                    reason = "few_words"
                else:
                    reason = self._phrases(line) if is_suspect else ""
            if reason in ("lorem_ipsum", "curly_bracket"):
                return reason, []
            if reason:
                removed[reason] = removed.get(reason, 0) + 1
            else:
                kept_lines.append(line)
        for reason, count in removed.items():
            findings.count(f"lines_{reason}", count)
        return "", kept_lines

    def _is_suspect(self, text: str) -> bool:
        """Whether any line can fail a check of its content."""
        if self.curly_bracket and "{" in text:
            return True
        lowered = text.lower()
        if (self.lorem_ipsum and "lorem ipsum" in lowered) or (self.javascript and "javascript" in lowered):
            return True
        return self._has_policy(text)

    def _has_policy(self, text: str) -> bool:
        if not self.policy:
            return False
        spelled = self.spelling(text)
        return any(phrase in spelled for phrase in self.policy)

    def _phrases(self, line: str) -> str:
        lowered = line.lower()
        if self.lorem_ipsum and "lorem ipsum" in lowered:
            return "lorem_ipsum"
        if self.javascript and "javascript" in lowered:
            return "javascript"
        if self.curly_bracket and "{" in line:
            return "curly_bracket"
        return "policy" if self._has_policy(line) else ""


class _Sentences(dict):
    """Counts sentences as spaCy's rule-based sentencizer does: one ends before the first word after an end mark.

    Closing quotes and further marks still belong to the sentence. Counting is an automaton with two states, 0 and 1
    (after an end mark). The dict is its table: a piece of text -> for either state, the number of sentences that begin
    in the piece and the state behind it. A piece is split at its first look-up.
    """

    def __init__(self, ends: Sequence[str], english: bool) -> None:
        super().__init__()
        self.ends, self.english = frozenset(ends), english

    def __missing__(self, piece: str) -> tuple[tuple[int, int], tuple[int, int]]:
        words = [piece] if piece.isalpha() or piece.isspace() else splitter.split(piece, english=self.english)
        outside, after = (0, 0), (0, 1)  # the empty piece: no sentence begins and the state stays
        for word in words:
            if word in self.ends:
                outside, after = (outside[0], 1), (after[0], 1)
            elif word.isalpha() or not all(unicodedata.category(c)[0] == "P" for c in word):
                outside, after = (outside[0] + outside[1], 0), (after[0] + after[1], 0)
        if len(piece) < MAX_LENGTH:  # long pieces hardly ever come again
            self[piece] = outside, after
        return outside, after

    def count(self, lines: list[str], enough: int) -> int:
        """The number of sentences, at least one a line; counting stops at `enough`."""
        if len(self) > MAX_PIECES:
            self.clear()
        total = 0
        for line in lines:
            total, state = total + 1, 0
            for chunk in _chunks(line):
                if total >= enough:
                    return total
                pieces = chunk.split()
                for piece in pieces if " ".join(pieces) == chunk else _spaced(chunk):
                    begun, state = self[piece][state]
                    total += begun
        return total


def _chunks(line: str) -> Iterator[str]:
    """A line in parts of about 400 characters, cut at spaces: the first sentences are often enough."""
    start = 0
    while (end := line.find(" ", start + 400)) >= 0:
        yield line[start:end]
        start = end + 1
    yield line[start:]


def _spaced(chunk: str) -> Iterator[str]:
    """Pieces of a text with other white space than single spaces: beyond one space spaCy takes it for a word."""
    for position, run in enumerate(_RUNS.findall(chunk)):
        if position and run[0] == " ":
            run = run[1:]
        if run:
            yield run


@functools.cache
def _sentences(ends: tuple[str, ...], english: bool) -> _Sentences:
    return _Sentences(ends, english)
