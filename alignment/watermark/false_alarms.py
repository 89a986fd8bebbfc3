"""Do exact p-values keep their promise on unmarked text: over keys, and for one key that is used again and again?

Over keys a p-value is uniform, whatever the text says. For one fixed key it is not: texts share their frequent words,
which are green in all of them or in none, so that scores of different texts move together.

Dimensions: K keys, W texts (windows of equal length).
"""

from typing import Any

import numpy as np
import scipy.stats

from alignment import intervals

LEVELS = (0.05, 0.01, 0.001)


def at_level(p_KW: np.ndarray, level: float, *, confidence: float = 0.95) -> dict[str, Any]:
    """The share of p-values below a level, where it should lie, and how it differs from key to key.

    Returns:
        share: over texts and keys. binomial_low, binomial_high: where a share of so many independent p-values lies.
        keys_low, keys_high: the interval of the mean over keys by Student's t, since texts under one key are not
        independent (None with one key). dispersion: variance of a key's share about the level in units of the
        binomial's, 1 for independent texts. largest_of_a_key: the worst key's share.
    """
    keys, texts = p_KW.shape
    each_K = np.mean(p_KW < level, axis=1)
    share, number = float(each_K.mean()), keys * texts
    low, high = (float(x) / number for x in scipy.stats.binom.interval(confidence, number, level))
    interval = intervals.of_mean(each_K, confidence=confidence)
    return {
        "level": level,
        "share": share,
        "n": number,
        "binomial_low": low,
        "binomial_high": high,
        "keys_low": interval[0],
        "keys_high": interval[1],
        "dispersion": float(np.mean((each_K - level) ** 2) * texts / (level * (1 - level))),
        "largest_of_a_key": float(each_K.max()),
    }


def distance(p: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance of p-values, made continuous (`detect.randomised_p`), from uniform ones."""
    return float(scipy.stats.kstest(np.ravel(p), "uniform").statistic)


def spread(z_KW: np.ndarray) -> np.ndarray:
    """Mean square of a key's scores [K]: 1 where the law holds for that key alone, larger where texts move together."""
    return np.mean(z_KW**2, axis=1)


def threshold(z_KW: np.ndarray, share: float = 0.01) -> np.ndarray:
    """The score that a share of the texts exceeds, for each key [K]; that of a normal variable is 2.326 at 1 %."""
    return np.quantile(z_KW, 1 - share, axis=1, method="higher")
