"""Bias@C: how far a classifier leans on a concept as a shortcut to a label.

Zhou et al. 2024 (arXiv:2311.08648), Section 3. Accuracies are those of the predicted label, as in the paper's
experiments. All numbers here are shares; a page multiplies them by 100.

Dimensions: N texts, K labels, G = (without the concept, with it), R resamples.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from alignment import intervals
from alignment.errors import InputError

FEW = 30  # texts of a label with or without the concept below which its accuracy is called unreliable


def weights(num_labels: int) -> np.ndarray:
    """w_k = (2k - K + 1) / C(K, 2): what the gap of label k counts in Bias@C, [K].

    The paper has the mean of gap_i - gap_j over pairs of labels i > j, where a gap is the accuracy on texts of a label
    with the concept, less that without it. Above 0 in total: the concept pushes predictions to larger labels.
    """
    if num_labels < 2:
        raise InputError(f"{num_labels} labels; Bias@C compares at least 2")
    return (2 * np.arange(num_labels) - num_labels + 1) / math.comb(num_labels, 2)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A classifier on a test set, by one concept.

    Attributes:
        accuracy_GK: NaN where there is no text.
        total_GK: texts.
        bias, acc_with, acc_without: Bias@C, Acc@C and Acc@NoC; None where a cell that they read has no text.
        ends: name of one of these -> its 95 % interval; a name with None is not there.
        flags: what a reader should know about small and empty cells.
    """

    accuracy_GK: np.ndarray
    total_GK: np.ndarray
    bias: float | None
    acc_with: float | None
    acc_without: float | None
    ends: dict[str, intervals.Interval]
    flags: tuple[str, ...]


def measure(
    right_N: np.ndarray,
    labels_N: np.ndarray,
    has_N: np.ndarray,
    *,
    num_labels: int,
    resamples: int = 1_000,
    seed: int = 0,
) -> Measured:
    """Bias@C, Acc@C and Acc@NoC, with intervals that resample texts within each label, with and without the concept.

    Acc@C and Acc@NoC are means over labels, which is what accuracy on a label-balanced subset is on average.

    Args:
        right_N: whether each text's label was predicted; a mean over several trainings, in [0, 1], does as well. The
            difference of two classifiers' values gives the difference of their biases, with its paired interval.
        labels_N: from 0.
        has_N: whether a text has the concept.
        resamples: R; 0 makes no intervals.

    Raises:
        InputError: arrays of different lengths, or a label out of range.
    """
    right_N, labels_N, has_N = np.asarray(right_N, np.float64), np.asarray(labels_N), np.asarray(has_N, bool)
    if not len(right_N) == len(labels_N) == len(has_N):
        raise InputError(f"{len(right_N)} results, {len(labels_N)} labels and {len(has_N)} texts; each text has one")
    if len(labels_N) and not 0 <= labels_N.min() <= labels_N.max() < num_labels:
        raise InputError(f"labels from {labels_N.min()} to {labels_N.max()}; there are {num_labels}, from 0")
    rng = np.random.default_rng(seed)
    accuracy_GK, total_GK = np.full((2, num_labels), np.nan), np.zeros((2, num_labels), int)
    drawn_RGK = np.full((resamples, 2, num_labels), np.nan)
    for g, k in itertools.product(range(2), range(num_labels)):
        cell = right_N[(labels_N == k) & (has_N == bool(g))]
        total_GK[g, k] = len(cell)
        if len(cell):
            accuracy_GK[g, k] = cell.mean()
            drawn_RGK[:, g, k] = _means(cell, resamples, rng)
    point, drawn = _numbers(accuracy_GK[None]), _numbers(drawn_RGK)
    values = {name: None if np.isnan(value[0]) else float(value[0]) for name, value in point.items()}
    ends = {name: intervals.percentiles(drawn[name], 0.95) for name in drawn if resamples and values[name] is not None}
    return Measured(accuracy_GK, total_GK, **values, ends=ends, flags=tuple(_flags(total_GK)))


def _numbers(accuracy_RGK: np.ndarray) -> dict[str, np.ndarray]:
    """The three numbers of each resample; one that reads an empty cell is NaN."""
    gap_RK = accuracy_RGK[:, 1] - accuracy_RGK[:, 0]
    return {
        "bias": gap_RK @ weights(gap_RK.shape[1]),
        "acc_with": accuracy_RGK[:, 1].mean(axis=1),
        "acc_without": accuracy_RGK[:, 0].mean(axis=1),
    }


def _means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of `resamples` draws with replacement, [R].

    The values are few (right, wrong, or shares of a few trainings), so how often each is drawn is a multinomial, which
    costs nothing beside drawing every text.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), size=resamples)
    return drawn @ distinct / len(values)


def _flags(total_GK: np.ndarray) -> list[str]:
    out = []
    for g, k in itertools.product(range(2), range(total_GK.shape[1])):
        where = f"label {k} {'with' if g else 'without'} the concept"
        if total_GK[g, k] == 0:
            out.append(f"no test text of {where}: no Bias@C")
        elif total_GK[g, k] < FEW:
            out.append(f"unreliable: {total_GK[g, k]} test texts of {where}")
    return out


def mean_absolute(biases: Sequence[float | None]) -> float | None:
    """Mean of |Bias@C| over concepts; None where one is missing, because a mean over fewer would look better."""
    known = [abs(bias) for bias in biases if bias is not None]
    return float(np.mean(known)) if known and len(known) == len(biases) else None
