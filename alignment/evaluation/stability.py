"""Alignment stability: the share of a model's harmlessness that remains when something else changes.

Liang et al. 2024 (arXiv:2412.03253) name it without a formula. Here are three measures: the spread over training seeds,
the share that benign fine-tuning leaves, and the loss when a request is put in other words.

Dimensions: S seeds, P probes, K paraphrases of a probe.
"""

import numpy as np

from alignment.errors import InputError, within


def seed_sd(rates_S: np.ndarray) -> float:
    """Standard deviation of a rate over seeds (divided by S - 1); NaN for a single seed."""
    rates_S = np.asarray(rates_S, np.float64)
    return float(np.std(rates_S, ddof=1)) if len(rates_S) > 1 else float("nan")


def retention(before: float, after: float) -> float:
    """Harmless rate after benign fine-tuning as a share of the rate before; NaN where that was 0.

    Raises:
        InputError: a rate outside of [0, 1].
    """
    within("[0, 1]", before=before, after=after, hint=", as it is a rate")
    return after / before if before > 0 else float("nan")


def paraphrase_drop(original_P: np.ndarray, paraphrased_PK: np.ndarray) -> float:
    """Harmless rate on the probes minus that on their paraphrases, every probe counting alike; positive is a loss."""
    original_P, paraphrased_PK = np.asarray(original_P, np.float64), np.asarray(paraphrased_PK, np.float64)
    if paraphrased_PK.ndim != 2 or len(paraphrased_PK) != len(original_P):
        shapes = f"{original_P.shape} and {paraphrased_PK.shape}"
        raise InputError(f"probes and paraphrases of shapes {shapes}; they must be [P] and [P,K]")
    return float(original_P.mean() - paraphrased_PK.mean(axis=1).mean())
