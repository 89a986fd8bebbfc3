"""Whether answers stay when the question is put in other words, or when the same question is asked again.

Dimensions: N items, R paraphrases of an item or samples of its answer.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError


def spread(scores_NR: np.ndarray) -> dict[str, float]:
    """How far scores move within items.

    `sd`: mean of the items' standard deviations (divided by R - 1); `cv`: mean of sd / |mean| over items whose mean is
    not 0; `reliability`: 1 minus the mean within-item variance over the variance of all entries (divided by N R - 1),
    NaN where all entries are equal.
    """
    scores_NR = np.asarray(scores_NR, np.float64)
    if scores_NR.ndim != 2 or scores_NR.shape[1] < 2 or not len(scores_NR):
        raise InputError(f"scores of shape {scores_NR.shape}; a spread needs items and at least 2 scores of each")
    sd_N, mean_N = scores_NR.std(axis=1, ddof=1), np.abs(scores_NR.mean(axis=1))
    total = float(scores_NR.var(ddof=1))
    has_mean_N = mean_N > 0
    cv = float(np.mean(sd_N[has_mean_N] / mean_N[has_mean_N])) if has_mean_N.any() else math.nan
    reliability = 1 - float(np.mean(sd_N**2)) / total if total > 0 else math.nan
    return {"sd": float(sd_N.mean()), "cv": cv, "reliability": reliability}


def agreement(answers: Sequence[Hashable]) -> float:
    """Share of pairs of answers that are equal, sum n_c (n_c - 1) / (n (n - 1)); NaN for fewer than two answers."""
    n = len(answers)
    if n < 2:
        return math.nan
    return sum(count * (count - 1) for count in Counter(answers).values()) / (n * (n - 1))


def entropy(answers: Sequence[Hashable]) -> float:
    """The entropy of the answers' distribution, in nats."""
    shares = np.array(list(Counter(answers).values())) / len(answers)
    return float(-(shares * np.log(shares)).sum()) + 0.0


def keeps_meaning(question: str, paraphrase: str, gold: str, paraphrased_gold: str) -> bool:
    """Whether a paraphrase may be used: the gold answer is the same, and the paraphrase does not give it away."""
    if gold.strip().casefold() != paraphrased_gold.strip().casefold():
        return False
    word = gold.strip().casefold()
    return not word or word not in paraphrase.casefold() or word in question.casefold()


def summary(all_answers: Sequence[Sequence[Hashable]]) -> dict[str, Any]:
    """Means of `agreement` and `entropy` over items with at least two answers; None without any."""
    enough = [answers for answers in all_answers if len(answers) > 1]
    if not enough:
        return {"agreement": None, "entropy": None, "n": 0}
    mean_agreement, mean_entropy = (float(np.mean([fn(answers) for answers in enough])) for fn in (agreement, entropy))
    return {"agreement": mean_agreement, "entropy": mean_entropy, "n": len(enough)}
