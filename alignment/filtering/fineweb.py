"""FineWeb's own quality rules (Penedo et al. 2024, arXiv:2406.17557, section 3.6) by datatrove's definitions."""

from alignment.filtering.batch import Batch, Findings


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
    ends = tuple(batch.pack.terminal_punctuation)
    lists = []
    for position, text in enumerate(batch.texts):
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            findings.fail(position, "empty")
            continue
        share = sum(map(_ends_in(ends), lines)) / len(lines)
        if min_punctuated_lines is not None and share < min_punctuated_lines and (share or not allow_no_punctuation):
            findings.fail(position, "line_punct_ratio", share, min_punctuated_lines)
            continue
        share = sum(len(line) <= short_line_length for line in lines) / len(lines)
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
        if max_newlines_per_word is not None and num_newlines > max_newlines_per_word * len(text.split()):
            lists.append(position)  # a piece between spaces is one word or more, so only these can be over
    counts = batch.take(lists).words.counts_N.tolist() if lists else []
    for position, num_words in zip(lists, counts, strict=True):
        share = batch.texts[position].count("\n") / num_words
        if share > max_newlines_per_word:
            findings.fail(position, "list_ratio", share, max_newlines_per_word)
    return findings


def _ends_in(ends: tuple[str, ...]):
    """A function that says whether a line ends in one of these marks."""
    if all(len(end) == 1 for end in ends):
        single = frozenset(ends)
        return lambda line: line[-1] in single
    return lambda line: line.endswith(ends)
