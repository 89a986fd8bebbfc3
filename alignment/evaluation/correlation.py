"""How far metrics agree about models: Pearson, Spearman and Kendall, corrected p-values, bootstrap, clusters.

Plain numpy and scipy on a table of scores; a value that is absent is NaN, and a pair of columns is compared over the
models that have both.

Dimensions: M models, C columns (a benchmark's metric each), R resamples.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignment import errors, intervals

PEARSON, SPEARMAN, KENDALL = KINDS = ("pearson", "spearman", "kendall")
LEAST = 4  # models that a coefficient needs


@dataclasses.dataclass(frozen=True)
class Table:
    """Coefficients of every pair of columns, [C,C]; NaN where a pair has too few models or a column is constant.

    Attributes:
        coefficients, p_values: of the pairs.
        q_values: p-values after Benjamini and Hochberg, over the pairs of the table that have one.
        num_models: that both columns have.
    """

    kind: str
    coefficients: np.ndarray
    p_values: np.ndarray
    q_values: np.ndarray
    num_models: np.ndarray


def oriented(scores_MC: np.ndarray, lower_is_better: Sequence[bool]) -> np.ndarray:
    """The table with the columns negated of which less is better, such as perplexities."""
    return np.asarray(scores_MC, np.float64) * np.where(np.asarray(lower_is_better), -1.0, 1.0)[None]


def coefficient(x_M: np.ndarray, y_M: np.ndarray, kind: str) -> tuple[float, float]:
    """(coefficient, two-sided p-value) over the entries that both have; NaN for fewer than LEAST or a constant column.

    Spearman's ranks of equal values are averages, Kendall's coefficient is tau-b.
    """
    from scipy import stats  # a second to import

    errors.one_of("kind", kind, KINDS)
    x_M, y_M = np.asarray(x_M, np.float64), np.asarray(y_M, np.float64)
    is_there_M = np.isfinite(x_M) & np.isfinite(y_M)
    x_M, y_M = x_M[is_there_M], y_M[is_there_M]
    if len(x_M) < LEAST or np.ptp(x_M) == 0 or np.ptp(y_M) == 0:
        return math.nan, math.nan
    compute: Callable[..., Any] = {PEARSON: stats.pearsonr, SPEARMAN: stats.spearmanr, KENDALL: stats.kendalltau}[kind]
    with warnings.catch_warnings():  # of nearly constant columns, whose coefficient is what it is
        warnings.simplefilter("ignore")
        out = compute(x_M, y_M)
    return float(out.statistic), float(out.pvalue)


def table(scores_MC: np.ndarray, kind: str) -> Table:
    """All pairs of columns; the diagonal is 1 where a column has LEAST models and is not constant."""
    scores_MC = np.asarray(scores_MC, np.float64)
    C = scores_MC.shape[1]
    values_CC, p_CC = np.full((C, C), np.nan), np.full((C, C), np.nan)
    num_CC = np.zeros((C, C), np.int64)
    for i in range(C):
        for j in range(i, C):
            value, p = coefficient(scores_MC[:, i], scores_MC[:, j], kind)
            values_CC[i, j] = values_CC[j, i] = value
            if i != j:
                p_CC[i, j] = p_CC[j, i] = p
            num_CC[i, j] = num_CC[j, i] = np.sum(np.isfinite(scores_MC[:, i]) & np.isfinite(scores_MC[:, j]))
    upper = np.triu_indices(C, 1)
    q_CC = np.full((C, C), np.nan)
    q_CC[upper] = benjamini_hochberg(p_CC[upper])
    return Table(kind, values_CC, p_CC, np.where(np.isnan(q_CC), q_CC.T, q_CC), num_CC)


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """Adjusted p-values (JRSS B 57, 1995); NaN stays NaN and counts as no test."""
    from scipy import stats

    p_values = np.asarray(p_values, np.float64)
    out, is_there = np.full(p_values.shape, np.nan), np.isfinite(p_values)
    if is_there.any():
        out[is_there] = stats.false_discovery_control(p_values[is_there])
    return out


def bootstrap(
    x_M: np.ndarray, y_M: np.ndarray, kind: str, *, resamples: int = 1_000, confidence: float = 0.95, seed: int = 0
) -> intervals.Interval | None:
    """Percentile interval over models drawn anew; None without a coefficient or where few draws have one.

    Models that lack one of the scores are not drawn. A draw of equal models only has no coefficient and is left out.
    """
    x_M, y_M = np.asarray(x_M, np.float64), np.asarray(y_M, np.float64)
    is_there_M = np.isfinite(x_M) & np.isfinite(y_M)
    x_M, y_M = x_M[is_there_M], y_M[is_there_M]
    if math.isnan(coefficient(x_M, y_M, kind)[0]):
        return None
    rng = np.random.default_rng(seed)
    index_RM = rng.integers(len(x_M), size=(resamples, len(x_M)))
    values_R = _of_rows(x_M[index_RM], y_M[index_RM], kind)
    values_R = values_R[np.isfinite(values_R)]
    return intervals.percentiles(values_R, confidence) if len(values_R) > resamples / 2 else None


def _of_rows(x_RM: np.ndarray, y_RM: np.ndarray, kind: str) -> np.ndarray:
    """`coefficient` of every row; NaN for constant ones. All rows at once, as a study has thousands for each pair."""
    from scipy import stats

    if kind == KENDALL:
        return np.array([coefficient(x_M, y_M, kind)[0] for x_M, y_M in zip(x_RM, y_RM)])
    if kind == SPEARMAN:
        x_RM, y_RM = stats.rankdata(x_RM, axis=1), stats.rankdata(y_RM, axis=1)
    x_RM, y_RM = (a_RM - a_RM.mean(axis=1, keepdims=True) for a_RM in (x_RM, y_RM))
    scale_R = np.sqrt((x_RM**2).sum(axis=1) * (y_RM**2).sum(axis=1))
    is_constant_R = (np.ptp(x_RM, axis=1) == 0) | (np.ptp(y_RM, axis=1) == 0)
    return np.where(is_constant_R, np.nan, (x_RM * y_RM).sum(axis=1) / np.where(is_constant_R, 1.0, scale_R))


def clusters(spearman_CC: np.ndarray, num: int | None = None) -> tuple[list[int], list[int]]:
    """Columns in clusters by average linkage on 1 - |rho|: the cluster of each, from 0, and the order of a heat map.

    Args:
        spearman_CC: a pair without a coefficient counts as unrelated.
        num: of clusters; None: those that a distance of 0.5 parts.
    """
    from scipy.cluster import hierarchy
    from scipy.spatial import distance

    C = len(spearman_CC)
    if C < 2:
        return [0] * C, list(range(C))
    distances_CC = 1 - np.abs(np.nan_to_num(np.asarray(spearman_CC, np.float64)))
    np.fill_diagonal(distances_CC, 0.0)
    linked = hierarchy.linkage(distance.squareform(np.maximum(distances_CC, 0.0), checks=False), "average")
    if num is None:
        labels = hierarchy.fcluster(linked, 0.5, "distance")
    else:
        labels = hierarchy.fcluster(linked, num, "maxclust")
    renumbered = {label: i for i, label in enumerate(dict.fromkeys(labels.tolist()))}
    return [renumbered[label] for label in labels.tolist()], hierarchy.leaves_list(linked).tolist()
