"""Is a text marked? Counts, exact p-values, and windows for marked text that was pasted into other text.

A p-value is the probability that text whose author did not know the key scores as high. It is the exact tail of the
scheme's own law over keys (binomial, hypergeometric for distinct tokens under Unigram, gamma for exp), not that of a
normal distribution; `normal_p` is the latter, for comparison with other tools. For one fixed key, real text repeats
its words and its scores spread wider than that: see docs/text_watermarks.md for thresholds on real text.

Dimensions: T scored tokens, L layers, R resamples.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from alignment import errors
from alignment.errors import InputError
from alignment.watermark import green, hashing, text_marks, tournament
from alignment.watermark.text_marks import Mark

DISTINCT, NGRAMS, ALL = "distinct", "ngrams", "all"
COUNTS = (DISTINCT, NGRAMS, ALL)
MIN_TOKENS = 16  # fewer scored tokens have low power


@dataclasses.dataclass(frozen=True)
class Detection:
    """What a detector says of one text.

    Attributes:
        num_scored: tokens that were scored, without repeats where those count once; of synthid their bits.
        score: green tokens; of synthid bits that are 1; of exp the sum of -ln(1 - u).
        z: the score in standard deviations above its mean on unmarked text.
        p_value: exact: the probability of at least this score.
        p_above: the probability of a larger score; equal to `p_value` where scores are continuous (exp).
        fraction: score / num_scored.
        has_low_power: fewer than 16 tokens were scored.
    """

    scheme: str
    num_scored: int
    score: float
    z: float
    p_value: float
    p_above: float
    fraction: float
    has_low_power: bool


def z_score(score: float, num_scored: int, gamma: float) -> float:
    """(k - gamma T) / sqrt(T gamma (1 - gamma))."""
    return (score - gamma * num_scored) / math.sqrt(num_scored * gamma * (1 - gamma))


def randomised_p(detection: Detection, u: float) -> float:
    """A p-value that is uniform on unmarked text, although a count takes few values.

    Args:
        u: a draw from [0, 1).
    """
    return detection.p_above + u * (detection.p_value - detection.p_above)


def normal_p(z: float) -> float:
    """The tail of a normal variable above z, which other tools report for a score; ours are tails of counts."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def binomial_p(score: int, num_scored: int, gamma: float) -> float:
    """The probability of at least `score` successes in `num_scored` trials."""
    return float(scipy.stats.binom.sf(score - 1, num_scored, gamma))


def detect(
    mark: Mark,
    ids: Sequence[int] | np.ndarray,
    *,
    counts: str = DISTINCT,
    bos_id: int | None = None,
    written_with: Mark | None = None,
) -> Detection:
    """Score the tokens of a text.

    Args:
        ids: the answer without its prompt, whose tokens would only dilute it.
        counts: distinct: a token counts once for each list that it was looked up in, which the exact p-values need,
            since it is green there every time; ngrams: once for each n-gram, as in lm-watermarking; all: as often as it
            occurs, as in transformers and MarkLLM. SynthID counts a context once, whatever this says.
        bos_id: dropped where it comes first.
        written_with: the record that was stored with the text; a difference is refused.

    Raises:
        InputError: an id outside the vocabulary, too few tokens, another record, or the scheme `random`.
    """
    if written_with is not None:
        text_marks.check_same(written_with, mark)
    ids_T = np.asarray(ids, np.int64)
    if bos_id is not None and ids_T.size and ids_T[0] == bos_id:
        ids_T = ids_T[1:]
    ids_T = green.check_ids(mark, ids_T)
    if mark.scheme == text_marks.RANDOM:
        raise InputError("scheme='random' draws a fresh mask for every token, which nobody can detect")
    if mark.scheme == text_marks.SYNTHID:
        return _synthid(mark, ids_T)
    if mark.scheme == text_marks.EXP:
        return _exp(mark, ids_T, counts)
    flags_T, labels_T = green.read(mark, ids_T)
    flags_T = flags_T[scored_places(ids_T, labels_T, mark.num_context, counts)]
    k, T, gamma = int(flags_T.sum()), len(flags_T), mark.of("gamma")
    if mark.scheme == text_marks.UNIGRAM and counts != ALL:  # a draw without replacement from the vocabulary
        V = mark.vocab_size
        z = z_score(k, T, gamma) / math.sqrt(max(1 - (T - 1) / (V - 1), 1e-12))
        tails = [float(scipy.stats.hypergeom.sf(least, V, mark.num_green, T)) for least in (k - 1, k)]
        return _detection(mark, T, k, z, tails)
    share = gamma if mark.parity == text_marks.FAST else mark.num_green / mark.vocab_size
    return _detection(mark, T, k, z_score(k, T, gamma), _binomial_tails(k, T, share))


def scored_places(ids_T: np.ndarray, labels_T: np.ndarray, num_context: int, counts: str) -> np.ndarray:
    """Which of the tokens with a full context count, see `detect`.

    Args:
        labels_T: see `green.read`.

    Raises:
        InputError: an unknown way to count.
    """
    errors.one_of("counts", counts, COUNTS)
    if counts == ALL:
        return np.arange(len(labels_T))
    return (
        np.sort(np.unique(labels_T, return_index=True)[1])
        if counts == DISTINCT
        else first_places(ids_T, num_context + 1)
    )


def first_places(ids_T: np.ndarray, length: int) -> np.ndarray:
    """Where each distinct n-gram begins for the first time, in the text's order."""
    return np.sort(np.unique(green.windows(ids_T, length), axis=0, return_index=True)[1])


def _binomial_tails(score, num_scored, gamma):
    return [binomial_p(least, num_scored, gamma) for least in (score, score + 1)]


def _detection(mark, num_scored, score, z, tails, *, num_tokens=None):
    num_tokens = num_scored if num_tokens is None else num_tokens
    low_power = num_tokens < MIN_TOKENS
    return Detection(mark.scheme, num_scored, float(score), z, *tails, score / num_scored, low_power)


def _synthid(mark, ids_T):
    g_TL = synthid_bits(mark, ids_T)
    k, n = int(g_TL.sum()), g_TL.size
    share = float(tournament.table(mark.table_seed, mark.table_size).mean())  # of ones; a table is not quite balanced
    return _detection(mark, n, k, z_score(k, n, share), _binomial_tails(k, n, share), num_tokens=len(g_TL))


def synthid_bits(mark: Mark, ids_T: np.ndarray) -> np.ndarray:
    """The bits [T,L] of the n-grams whose context is new."""
    return tournament.g_values(mark, ids_T)[tournament.is_new_context(mark, ids_T)].astype(np.int64)


def _exp(mark, ids_T, counts):
    C = mark.num_context
    bits_T = green.fast_values(mark, green.windows(ids_T[:-1], C), ids_T[C:, None])[:, 0]
    scores_T = -np.log1p(-hashing.uniform(bits_T).astype(np.float64))
    scores_T = scores_T[scored_places(ids_T, bits_T, C, counts)]
    T, score = len(scores_T), float(scores_T.sum())
    p = float(scipy.stats.gamma.sf(score, T))
    return _detection(mark, T, score, (score - T) / math.sqrt(T), (p, p))


# Windows


@dataclasses.dataclass(frozen=True)
class Window:
    """The window of a text that looks most marked.

    Attributes:
        start, stop: scored tokens [start, stop).
        z: of the window alone.
        p_value: corrected for all windows that were tried.
    """

    start: int
    stop: int
    z: float
    p_value: float


def win_max(
    flags_T: np.ndarray,
    gamma: float,
    *,
    lengths: Sequence[int] | None = None,
    resamples: int = 999,
    seed: int = 0,
) -> Window:
    """The largest z over windows (WinMax, Kirchenbauer et al. 2023, arXiv:2306.04634), with a p-value for all of them.

    The p-value is the rank of the score among those of `resamples` sequences of independent flags that go through the
    same windows, so it is uniform on unmarked text and at least 1 / (resamples + 1).

    Args:
        flags_T: whether each scored token is green, in the text's order, repeats left out.
        lengths: of the windows; None: 16 and then half as long again each time, up to the text.

    Raises:
        InputError: no flags, or a window longer than the text.
    """
    T = len(flags_T)
    if not T:
        raise InputError("no token was scored; give more text")
    lengths = _lengths(T) if lengths is None else tuple(lengths)
    if not lengths or not 1 <= min(lengths) <= max(lengths) <= T:
        raise InputError(f"lengths={lengths} must be from 1 to the text's {T} scored tokens")
    z, start, length = _best(np.asarray(flags_T, np.int64)[None], gamma, lengths)
    null_R = _null(T, gamma, lengths, resamples, seed)
    p = (1 + int(np.sum(null_R >= z[0] - 1e-9))) / (1 + resamples)
    return Window(int(start[0]), int(start[0] + length[0]), float(z[0]), p)


def _lengths(T):
    out, length = [], min(MIN_TOKENS, T)
    while length < T:
        out.append(length)
        length = max(length + 1, length * 3 // 2)
    return (*out, T)


def _best(flags_RT, gamma, lengths):
    """The largest z of each row with its window's start and length."""
    sums = np.concatenate([np.zeros((len(flags_RT), 1), np.int64), np.cumsum(flags_RT, axis=1)], axis=1)
    rows = np.arange(len(flags_RT))
    best: Any = None
    for length in lengths:
        counts = sums[:, length:] - sums[:, :-length]
        at = counts.argmax(axis=1)
        z = (counts[rows, at] - gamma * length) / math.sqrt(length * gamma * (1 - gamma))
        new = np.stack([z, at, np.full(len(z), length)])
        best = new if best is None else np.where(new[0] > best[0], new, best)
    return best[0], best[1].astype(int), best[2].astype(int)


@functools.lru_cache(maxsize=128)
def _null(T, gamma, lengths, resamples, seed):
    flags_RT = np.random.default_rng([seed, T]).random((resamples, T)) < gamma
    return _best(flags_RT.astype(np.int64), gamma, lengths)[0]


def find_window(mark: Mark, ids: Sequence[int] | np.ndarray, **options: Any) -> Window:
    """`win_max` of a text under a mark with green lists; the window counts scored tokens, repeats left out."""
    ids_T = green.check_ids(mark, ids)
    flags_T, labels_T = green.read(mark, ids_T)
    flags_T = flags_T[scored_places(ids_T, labels_T, mark.num_context, DISTINCT)]
    return win_max(flags_T, mark.of("gamma"), **options)
