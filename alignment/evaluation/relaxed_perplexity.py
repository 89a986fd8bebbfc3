"""Relaxed Perplexity: how likely a model comes to the reference answer after having said something else first.

The metric is named by Arias-Duart et al. 2025 (arXiv:2502.06666), whose formula we could not read. What is here is the
natural definition, a marginal over what the model says before the target; check it against the paper before you publish
numbers under its name. With a prompt x, a target y of L tokens and n tokens z that the model writes after x:

    P_n = E_{z ~ p(.|x), |z| = n}[ p(y | x, z) ],    RP_n = exp(-log(P_n) / L)

RP_0 is the ordinary conditional perplexity. P_n is estimated over K continuations, without bias; RP_n is biased upward
by about Var(P_n) / (2 P_n^2 L) on the log scale. A mean of log-probabilities over continuations would be another,
larger quantity. A continuation that has ended before n contributes 0 and stays in the denominator.

Dimensions: N offsets, K continuations, R resamples, I items.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.special

from alignment import errors, intervals
from alignment.errors import InputError, within

MEAN, SUM, BEST = AGGREGATES = ("mean", "sum", "best")
Ids = Sequence[int]
Target = tuple[int, int, Ids]  # the number of a row of tokens, how many of them come before the target, the target
# (prompts, K, n_max) -> K continuations of each prompt, without what ended them where they are shorter than n_max
SampleFn = Callable[[Sequence[Ids], int, int], list[list[list[int]]]]
ScoreFn = Callable[[Sequence[Ids], Sequence[Target]], np.ndarray]  # rows and targets -> nats of every target


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt and its accepted answers.

    Attributes:
        answers: each as one or several variants of its tokens (with and without a blank before it, say), whose
            probabilities are added.
    """

    prompt: Ids
    answers: Sequence[Sequence[Ids]]


@dataclasses.dataclass(frozen=True)
class Curve:
    """RP_n of one item.

    Attributes:
        offsets: n.
        logps_NK: log p(y | x, z_k cut at n) in nats; -inf where z_k has ended before n.
        length: L.
    """

    offsets: tuple[int, ...]
    logps_NK: np.ndarray
    length: int

    @property
    def log_p_N(self) -> np.ndarray:
        """log P_n."""
        return np.array([log_mean(logps_K) for logps_K in self.logps_NK])

    @property
    def relaxed_N(self) -> np.ndarray:
        """RP_n, in [1, inf]."""
        return np.array([perplexity(log_p, self.length) for log_p in self.log_p_N])

    def relaxed(self, how: str = MEAN) -> float:
        """One number for all offsets; see `aggregate`."""
        return aggregate(self.log_p_N, self.length, how)


def offsets(n_max: int, stride: int) -> tuple[int, ...]:
    """0, stride, 2 stride, ... up to n_max.

    Raises:
        InputError: a stride below 1 or an n_max below 0.
    """
    if stride < 1 or n_max < 0:
        raise InputError(f"n_max={n_max} and stride={stride}; the first must be at least 0, the second at least 1")
    return tuple(range(0, n_max + 1, stride))


def log_mean(logps_K: np.ndarray, weights_K: np.ndarray | None = None) -> float:
    """log of the mean of probabilities, or of their sum with these weights; -inf where all are 0."""
    # It takes the largest out first: probabilities of whole answers underflow, their ratios do not.
    weights = 1 / len(logps_K) if weights_K is None else weights_K
    return float(scipy.special.logsumexp(np.asarray(logps_K, np.float64), b=weights))


def perplexity(log_p: float, length: int) -> float:
    """exp(-log p / L); infinite for a probability of 0.

    Raises:
        InputError: a target without tokens.
    """
    if length < 1:
        raise InputError(f"a target of {length} tokens has no perplexity; leave the item out")
    value = -log_p / length
    return math.exp(value) if value < 709.0 else math.inf


def aggregate(log_p_N: np.ndarray, length: int, how: str = MEAN) -> float:
    """RP over offsets: of their `mean` probability, of the `sum` (a union bound, at most 1), or the `best` offset's."""
    errors.one_of("aggregate", how, AGGREGATES)
    log_p_N = np.asarray(log_p_N, np.float64)
    if how == BEST:
        return perplexity(float(log_p_N.max()), length)
    mean = log_mean(log_p_N)
    return perplexity(mean if how == MEAN else min(0.0, mean + math.log(len(log_p_N))), length)


def curves(
    items: Sequence[Item],
    sample_fn: SampleFn,
    score_fn: ScoreFn,
    *,
    num_samples: int = 16,
    n_max: int = 128,
    stride: int = 8,
) -> list[Curve]:
    """The curve of every item.

    Every continuation is one row of tokens, and targets branch off it at every offset, so that a prefix is read once
    for all offsets behind it.

    Args:
        sample_fn: writes the continuations, at temperature 1 for the metric as it is defined.
        score_fn: log-probability of targets within rows, under the model itself.

    Raises:
        InputError: fewer than one continuation, or an item without a target's token.
    """
    within("[1, inf)", num_samples=num_samples)
    where = offsets(n_max, stride)
    for number, item in enumerate(items):
        if not item.answers or not all(len(ids) for answer in item.answers for ids in answer):
            raise InputError(f"item {number} has a target of 0 tokens; leave it out")
    sampled = sample_fn([item.prompt for item in items], num_samples, n_max)
    rows, targets, owners = [], [], []
    for i, (item, continuations) in enumerate(zip(items, sampled, strict=True)):
        for k, written in enumerate(continuations):
            rows.append([*item.prompt, *written])
            for number, n in enumerate(where):
                if n > len(written):
                    continue  # it has ended before n, so it contributes 0
                if n == 0 and k:
                    continue  # nothing was said before, so the first row's score is that of all
                for a, answer in enumerate(item.answers):
                    for v, ids in enumerate(answer):
                        targets.append((len(rows) - 1, len(item.prompt) + n, ids))
                        owners.append((i, number, k, a, v))
    totals = score_fn(rows, targets)
    by_item: list[dict[tuple[int, int, int, int], float]] = [{} for _ in items]
    for (i, *key), total in zip(owners, totals):
        by_item[i][tuple(key)] = float(total)  # type: ignore[index]
    return [_curve(item, where, num_samples, scores) for item, scores in zip(items, by_item)]


def _curve(item: Item, where: tuple[int, ...], K: int, scores: dict[tuple[int, int, int, int], float]) -> Curve:
    """Variants and answers added up; the length is that of the variant that is likeliest at offset 0."""
    best = max(
        ((a, v) for a, answer in enumerate(item.answers) for v in range(len(answer))),
        key=lambda place: scores[0, 0, *place] / len(item.answers[place[0]][place[1]]),
    )
    logps_NK = np.full((len(where), K), -math.inf)
    for (number, k, _, _), total in scores.items():
        logps_NK[number, k] = np.logaddexp(logps_NK[number, k], total)
    logps_NK[0] = logps_NK[0, 0]
    return Curve(where, logps_NK, len(item.answers[best[0]][best[1]]))


def over_continuations(
    some: Sequence[Curve], how: str = MEAN, *, resamples: int = 100, seed: int = 0
) -> intervals.Interval | None:
    """Percentile 95 % interval of the corpus' geometric mean, every item's continuations drawn anew.

    None where an item's value is infinite in every draw.
    """
    rng = np.random.default_rng(seed)
    logs_R = np.zeros(resamples)
    for curve in some:
        K = curve.logps_NK.shape[1]
        drawn_RK = rng.integers(K, size=(resamples, K))
        with np.errstate(divide="ignore"):
            logs_R += np.log([Curve(curve.offsets, curve.logps_NK[:, k], curve.length).relaxed(how) for k in drawn_RK])
    finite_R = logs_R[np.isfinite(logs_R)]
    return intervals.percentiles(np.exp(finite_R / len(some)), 0.95) if len(finite_R) else None


def corpus(values: Sequence[float], *, resamples: int = 1_000, seed: int = 0) -> dict[str, Any]:
    """Over items: `geometric_mean` with its percentile interval over items, `median`, `n`, and `infinite` ones.

    The arithmetic mean is ruled by outliers. Infinite values are left out of the geometric mean and counted; None where
    no value is finite.
    """
    finite_I = np.array([value for value in values if math.isfinite(value)])
    out: dict[str, Any] = {"n": len(finite_I), "infinite": len(values) - len(finite_I)}
    if not len(finite_I):
        return out | {"geometric_mean": None, "median": None, "low": None, "high": None}
    logs_I = np.log(finite_I)
    rng = np.random.default_rng(seed)
    means_R = logs_I[rng.integers(len(logs_I), size=(resamples, len(logs_I)))].mean(axis=1)
    low, high = intervals.percentiles(np.exp(means_R), 0.95)
    mean = float(np.exp(logs_I.mean()))
    return out | {"geometric_mean": mean, "median": float(np.median(finite_I)), "low": low, "high": high}
