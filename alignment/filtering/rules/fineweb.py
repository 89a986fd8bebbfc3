"""FineWeb's own quality rules (Penedo et al. 2024, arXiv:2406.17557, section 3.6) by datatrove's definitions."""

import operator
from collections.abc import Callable

from alignment.filtering.rules.batch import Batch, Findings

_LAST = operator.itemgetter(-1)


def check(
    batch: Batch,
    *,
    min_punctuated_lines: float | None = 0.12,
    allow_no_punctuation: bool = False,
    max_short_lines: float | None = 0.67,
    short_line_length: int = 30,
    max_duplicate_characters: float | None = 0.01,
    max_newlines_per_word: float | None = 0.3,
) -> Findings:
    """Drop lists, menus and pages of repeated lines. None switches a check off. Blank lines do not count.

    Args:
        batch: documents of one language; the pack names the marks that end a sentence.
        min_punctuated_lines: share of lines that end in such a mark.
        allow_no_punctuation: keep documents without a single such line.
        max_short_lines: share of lines of at most `short_line_length` characters.
        short_line_length: in characters.
        max_duplicate_characters: characters of lines that occurred before, over all characters but line breaks.
        max_newlines_per_word: line breaks over words.

    Returns:
        Reasons `empty`, `line_punct_ratio`, `short_line_ratio`, `char_dup_ratio`, `list_ratio`, in this order.
    """
    findings = Findings.passing(len(batch))
    num_ending = _counter(tuple(batch.pack.terminal_punctuation))
    lists = []
    for position, text in enumerate(batch.texts):
        lines = list(filter(str.strip, text.split("\n")))
        if not lines:
            findings.fail(position, "empty")
            continue
        share = num_ending(lines) / len(lines)
        if min_punctuated_lines is not None and share < min_punctuated_lines and (share or not allow_no_punctuation):
            findings.fail(position, "line_punct_ratio", share, min_punctuated_lines)
            continue
        share = sum(map(short_line_length.__ge__, map(len, lines))) / len(lines)
        if max_short_lines is not None and share > max_short_lines:
            findings.fail(position, "short_line_ratio", share, max_short_lines)
            continue
        num_newlines = text.count("\n")
        if max_duplicate_characters is not None and len(distinct := set(lines)) < len(lines):
            repeated = sum(map(len, lines)) - sum(map(len, distinct))
            share = repeated / (len(text) - num_newlines)
            if share > max_duplicate_characters:
                findings.fail(position, "char_dup_ratio", share, max_duplicate_characters)
                continue
        if max_newlines_per_word is not None and _may_be_list(text, num_newlines, max_newlines_per_word):
            lists.append(position)
    # Only these few documents need their words.
    counts = batch.take(lists).words.counts_N.tolist() if lists else []
    for position, num_words in zip(lists, counts, strict=True):
        share = batch.texts[position].count("\n") / num_words
        if max_newlines_per_word is not None and share > max_newlines_per_word:
            findings.fail(position, "list_ratio", share, max_newlines_per_word)
    return findings


def _may_be_list(text: str, num_newlines: int, limit: float) -> bool:
    """Whether line breaks over words can exceed the limit, judged without splitting pieces into words."""
    if limit <= 0:
        return True
    enough = int(num_newlines / limit) + 1  # each piece between white space is at least one word
    return len(text.split(None, enough)) < enough


def _counter(ends: tuple[str, ...]) -> Callable[[list[str]], int]:
    """A function that counts the lines that end in one of these marks."""
    if all(len(end) == 1 for end in ends):  # a look-up of the last character is faster than endswith
        is_end = frozenset(ends).__contains__
        return lambda lines: sum(map(is_end, map(_LAST, lines)))
    return lambda lines: sum(line.endswith(ends) for line in lines)
