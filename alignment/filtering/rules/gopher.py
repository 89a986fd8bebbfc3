"""Gopher's quality heuristics (Rae et al. 2021, arXiv:2112.11446, appendix A1.1) by datatrove's definitions.

Dimensions: N documents, W words, S stop words.
"""

import numpy as np

from alignment.filtering.rules import words
from alignment.filtering.rules.batch import Batch, Findings

BULLETS = ("•", "-")
ELLIPSES = ("...", "…")


def quality(
    batch: Batch,
    *,
    min_words: int | None = 50,
    max_words: int | None = 100_000,
    min_mean_word_length: float | None = 3,
    max_mean_word_length: float | None = 10,
    max_symbol_ratio: float | None = 0.1,
    max_bullet_lines: float | None = 0.9,
    max_ellipsis_lines: float | None = 0.3,
    min_alphabetic_words: float | None = 0.8,
    min_stop_words: int | None = 2,
) -> Findings:
    """Drop documents whose words and lines do not look like prose. None switches a check off.

    Args:
        batch: documents of one language; the pack names its stop words.
        min_words, max_words: words that are more than punctuation.
        min_mean_word_length, max_mean_word_length: characters of those words, on average.
        max_symbol_ratio: "#" a word (all words), and ellipses ("..." or "…") a word.
        max_bullet_lines: share of lines that start with • or -.
        max_ellipsis_lines: share of lines that end with an ellipsis.
        min_alphabetic_words: share of all words with at least one letter.
        min_stop_words: different stop words that occur, in the pack's spelling (case counts).

    Returns:
        Reasons `empty`, then `gopher_short_doc`, `gopher_long_doc`, `gopher_below_avg_threshold`,
        `gopher_above_avg_threshold`, `gopher_too_many_hashes`, `gopher_too_many_ellipsis`, `gopher_too_many_bullets`,
        `gopher_too_many_end_ellipsis`, `gopher_below_alpha_threshold`, `gopher_enough_stop_words`, in this order.
    """
    findings = Findings.passing(len(batch))
    columns = batch.words
    count_N = columns.counts_N
    findings.fail_where(count_N == 0, "empty", count_N, 1)
    words_N = np.maximum(count_N, 1)  # only a divisor: documents without words have failed already
    kind_W = columns.vocabulary.kind(columns.ids_W)
    # One pass over all words of the batch; `sums` then adds up each document's part.
    is_word_W = (kind_W & words.IS_WORD) > 0
    real_words_N = columns.sums(is_word_W)
    characters_N = columns.sums(columns.length_W * is_word_W)
    mean_length_N = np.where(real_words_N > 0, characters_N / np.maximum(real_words_N, 1), np.nan)
    _below(findings, "gopher_short_doc", real_words_N, min_words)
    _above(findings, "gopher_long_doc", real_words_N, max_words)
    _below(findings, "gopher_below_avg_threshold", mean_length_N, min_mean_word_length)
    _above(findings, "gopher_above_avg_threshold", mean_length_N, max_mean_word_length)
    if max_symbol_ratio is not None:
        hashes_N = np.array([text.count("#") for text in batch.texts])
        _above(findings, "gopher_too_many_hashes", hashes_N / words_N, max_symbol_ratio)
        ellipses_N = np.array([text.count("...") + text.count("…") for text in batch.texts])
        _above(findings, "gopher_too_many_ellipsis", ellipses_N / words_N, max_symbol_ratio)
    _lines(batch, findings, max_bullet_lines, max_ellipsis_lines)
    alphabetic_N = columns.sums((kind_W & words.HAS_LETTER) > 0)
    _below(findings, "gopher_below_alpha_threshold", alphabetic_N / words_N, min_alphabetic_words)
    if min_stop_words is not None:
        _below(findings, "gopher_enough_stop_words", _stop_words(batch), min_stop_words)
    return findings


def _below(findings: Findings, reason: str, value_N: np.ndarray, limit: float | None) -> None:
    if limit is not None:
        findings.fail_where(value_N < limit, reason, value_N, limit)


def _above(findings: Findings, reason: str, value_N: np.ndarray, limit: float | None) -> None:
    if limit is not None:
        findings.fail_where(value_N > limit, reason, value_N, limit)


def _lines(batch: Batch, findings: Findings, max_bullets: float | None, max_ellipses: float | None) -> None:
    """Check how lines start and end; a text with too few marks to fail is not read line by line."""
    for position, (text, lines) in enumerate(zip(batch.texts, batch.lines, strict=True)):
        if findings.reasons[position]:
            continue
        if max_bullets is not None and sum(map(text.count, BULLETS)) > max_bullets * len(lines):
            share = sum(line.lstrip().startswith(BULLETS) for line in lines) / len(lines)
            if share > max_bullets:
                findings.fail(position, "gopher_too_many_bullets", share, max_bullets)
        if max_ellipses is not None and sum(map(text.count, ELLIPSES)) > max_ellipses * len(lines):
            share = sum(line.rstrip().endswith(ELLIPSES) for line in lines) / len(lines)
            if share > max_ellipses:
                findings.fail(position, "gopher_too_many_end_ellipsis", share, max_ellipses)


def _stop_words(batch: Batch) -> np.ndarray:
    """The number of different stop words in each document [N]."""
    columns, pack = batch.words, batch.pack
    stop_words = {word: i for i, word in enumerate(sorted(pack.stop_words))}
    # Each word of the vocabulary is compared once; documents then look their words' columns up.
    column_V = columns.vocabulary.mapped(
        ("stop words", pack.stop_words, pack.stop_normaliser),
        lambda word: stop_words.get(pack.stop_key(word), -1),
    )
    column_W = column_V[columns.ids_W]
    is_stop_W = column_W >= 0
    # A table of booleans counts different words: a second occurrence sets the same cell.
    occurs_NS = np.zeros((len(batch), max(1, len(stop_words))), dtype=bool)
    occurs_NS[columns.document_W[is_stop_W], column_W[is_stop_W]] = True
    return occurs_NS.sum(axis=1)
