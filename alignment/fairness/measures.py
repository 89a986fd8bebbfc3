"""How evenly a model serves places: quality by place, its dispersion, and the same under other partitionings.

Plain numpy on predictions. A group is whatever samples are scored together: a place, a task, all of them.

Dimensions: N samples, G groups, T tasks, C classes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from alignment import errors
from alignment.errors import InputError

ACCURACY, F1, NEG_RMSE, R2 = "accuracy", "f1", "neg_rmse", "r2"
OF_CLASSES, OF_NUMBERS = (ACCURACY, F1), (NEG_RMSE, R2)
WORDS = {
    ACCURACY: "accuracy",
    F1: "F1 weighted by how frequent each class is",
    NEG_RMSE: "minus the root mean squared error",
    R2: "R2, the share of the variance that is explained",
}
ZERO_DIVISION = ("0", "nanmean")
NEAR_CHANCE, LEAST_FACTOR = 0.02, 0.1  # of `collapsed`
DEFINITIONS = {
    "LF": "mean over tasks of (1/S) sum_s |m_s - E_m|: m_s is the quality at place s of a task with S places, E_m the "
    "quality on all of the task's samples",
    "ALF": "(1/P) sum_p |m_p - E|: all P places of all test tasks together, E the quality on all of their samples "
    "(the paper's own definition of ALF could not be read)",
}


def grouped(
    predicted_N: np.ndarray,
    y_N: np.ndarray,
    group_N: np.ndarray,
    num_groups: int,
    *,
    measure: str,
    num_classes: int = 2,
    zero_division: str = "0",
) -> np.ndarray:
    """The quality of each group, [G]; NaN for a group without samples, and in `r2` for one of equal targets.

    Args:
        predicted_N: classes for `accuracy` and `f1`, numbers for `neg_rmse` and `r2`.
        group_N: the number of each sample's group, from 0.
        num_classes: of `f1`.
        zero_division: what a precision or recall of 0/0 counts in `f1`: "0", or "nanmean", the mean of the other
            classes' values in the group, as in the code of Xie et al. 2022.
    """
    errors.one_of("measure", measure, (*OF_CLASSES, *OF_NUMBERS))
    errors.one_of("zero_division", zero_division, ZERO_DIVISION)
    group_N, y_N, predicted_N = np.asarray(group_N), np.asarray(y_N), np.asarray(predicted_N)
    if measure == F1:
        return _weighted_f1(predicted_N, y_N, group_N, num_groups, num_classes, zero_division)
    counts_G = np.bincount(group_N, minlength=num_groups).astype(np.float64)

    def means_of(values_N):
        sums_G = np.bincount(group_N, weights=values_N, minlength=num_groups)
        return np.divide(sums_G, counts_G, out=np.full(num_groups, np.nan), where=counts_G > 0)

    if measure == ACCURACY:
        return means_of(predicted_N == y_N)
    errors_G = means_of((predicted_N.astype(np.float64) - y_N) ** 2)
    if measure == NEG_RMSE:
        return -np.sqrt(errors_G)
    means_G = means_of(y_N)
    variance_G = means_of((y_N - means_G[group_N]) ** 2)
    # Rounding may leave equal targets a variance just above 0, so they are compared with one of them instead.
    one_G = np.zeros(num_groups, y_N.dtype)
    one_G[group_N] = y_N
    has_variance_G = (np.bincount(group_N, weights=y_N != one_G[group_N], minlength=num_groups) > 0) & (variance_G > 0)
    share_G = np.divide(errors_G, variance_G, out=np.full(num_groups, np.nan), where=has_variance_G)
    return 1 - share_G


def class_f1(counts_GCC: np.ndarray, *, zero_division: str = "0") -> np.ndarray:
    """F1 of each class, [G,C], from counts[group, true, predicted]; see `grouped` for `zero_division`."""
    right_GC = np.diagonal(counts_GCC, axis1=-2, axis2=-1).astype(np.float64)

    def ratio(whole_GC):
        undefined = np.nan if zero_division == "nanmean" else 0.0
        out_GC = np.divide(right_GC, whole_GC, out=np.full(right_GC.shape, undefined), where=whole_GC > 0)
        is_defined_GC = np.isfinite(out_GC)
        sums_G1 = np.where(is_defined_GC, out_GC, 0).sum(-1, keepdims=True)
        return np.where(is_defined_GC, out_GC, sums_G1 / np.maximum(is_defined_GC.sum(-1, keepdims=True), 1))

    precision_GC, recall_GC = ratio(counts_GCC.sum(-2)), ratio(counts_GCC.sum(-1))
    total_GC = precision_GC + recall_GC
    return np.divide(2 * precision_GC * recall_GC, total_GC, out=np.zeros_like(total_GC), where=total_GC > 0)


def _weighted_f1(predicted_N, y_N, group_N, num_groups: int, num_classes: int, zero_division: str) -> np.ndarray:
    cell_N = (group_N.astype(np.int64) * num_classes + y_N) * num_classes + predicted_N
    counts_GCC = np.bincount(cell_N, minlength=num_groups * num_classes**2).reshape(num_groups, num_classes, -1)
    weight_GC = counts_GCC.sum(-1)
    total_G = weight_GC.sum(-1)
    sums_G = (class_f1(counts_GCC, zero_division=zero_division) * weight_GC).sum(-1)
    return np.divide(sums_G, total_G, out=np.full(num_groups, np.nan), where=total_G > 0)


def deviation(m_G: np.ndarray, reference: float | np.ndarray) -> float:
    """(1/G) sum |m - E|, the dispersion of quality about a reference; 0 is perfectly even. NaN entries are left out."""
    return float(np.nanmean(np.abs(np.asarray(m_G, np.float64) - reference)))


@dataclasses.dataclass(frozen=True)
class Evenness:
    """Quality and its dispersion, over places within tasks and over all places.

    `lf`, `lf_mean`, `std`, `range` and `worst` are means over tasks; `lf_mean` has the unweighted mean of the places
    as its reference. `worst_place` is the lowest quality of all places. `lf_T` holds the tasks' own LF, NaN for those
    that are left out: they have fewer than two places with a quality.
    """

    performance: float
    lf: float
    alf: float
    lf_mean: float
    std: float
    range: float
    worst: float
    worst_place: float
    lf_T: np.ndarray

    def numbers(self) -> dict[str, float]:
        return {name: float(value) for name, value in vars(self).items() if name != "lf_T"}


def evenness(m_G: np.ndarray, task_G: np.ndarray, reference_T: np.ndarray, overall: float) -> Evenness:
    """Dispersion of the quality of places.

    Args:
        m_G: quality of each place; NaN where a place has none, which leaves it out.
        task_G: the number of each place's task, from 0.
        reference_T: E_m of each task.
        overall: the quality on all samples of all tasks.

    Raises:
        InputError: no task has two places, and LF over fewer says nothing.
    """
    num_tasks = len(reference_T)
    has_G = np.isfinite(m_G)
    m_G, task_G = np.asarray(m_G, np.float64)[has_G], np.asarray(task_G)[has_G]
    is_used_T = np.bincount(task_G, minlength=num_tasks) >= 2
    if not is_used_T.any():
        raise InputError(f"none of {num_tasks} tasks has 2 places with a quality, and evenness needs at least 2")
    is_used_G = is_used_T[task_G]
    m_G, task_G = m_G[is_used_G], task_G[is_used_G]
    tasks = np.flatnonzero(is_used_T)
    by_task = [m_G[task_G == task] for task in tasks]
    lf_T = np.full(num_tasks, np.nan)
    lf_T[tasks] = [deviation(m_S, reference_T[task]) for task, m_S in zip(tasks, by_task)]
    return Evenness(
        performance=float(overall),
        lf=float(lf_T[tasks].mean()),
        alf=deviation(m_G, overall),
        lf_mean=float(np.mean([deviation(m_S, m_S.mean()) for m_S in by_task])),
        std=float(np.mean([m_S.std() for m_S in by_task])),
        range=float(np.mean([np.ptp(m_S) for m_S in by_task])),
        worst=float(np.mean([m_S.min() for m_S in by_task])),
        worst_place=float(m_G.min()),
        lf_T=lf_T,
    )


def cells(xy_N2: np.ndarray, boxes_N4: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The cell of each sample in a box cut into rows x columns, numbered row by row from the south-west.

    Args:
        boxes_N4: west, south, east, north of the box of each sample, or one box for all, [4].
    """
    boxes_N4 = np.broadcast_to(np.asarray(boxes_N4, np.float64), (len(xy_N2), 4))
    size_N2 = np.maximum(boxes_N4[:, 2:] - boxes_N4[:, :2], 1e-300)
    share_N2 = (np.asarray(xy_N2, np.float64) - boxes_N4[:, :2]) / size_N2
    # A sample on the north or east edge belongs to the last cell.
    column_N = np.clip((share_N2[:, 0] * columns).astype(np.int64), 0, columns - 1)
    row_N = np.clip((share_N2[:, 1] * rows).astype(np.int64), 0, rows - 1)
    return row_N * columns + column_N


def over_partitionings(
    predicted_N: np.ndarray,
    y_N: np.ndarray,
    xy_N2: np.ndarray,
    task_N: np.ndarray,
    boxes_T4: np.ndarray,
    partitionings: Sequence[tuple[int, int]],
    *,
    least: int,
    **options,
) -> list[dict[str, float]]:
    """LF and worst place with each task's box cut in other ways, a row a partitioning (rows, columns).

    Args:
        least: samples that a cell needs; the samples of others, and of cells without a quality, are left out of places
            and counted.
        options: of `grouped`.
    """
    num_tasks = len(boxes_T4)
    reference_T = grouped(predicted_N, y_N, task_N, num_tasks, **options)
    out = []
    for rows, columns in partitionings:
        num = rows * columns
        group_N = task_N * num + cells(xy_N2, boxes_T4[task_N], rows, columns)
        m_G = grouped(predicted_N, y_N, group_N, num_tasks * num, **options)
        count_G = np.bincount(group_N, minlength=num_tasks * num)
        m_TS = np.where(count_G >= least, m_G, np.nan).reshape(num_tasks, num)
        has_T = np.isfinite(m_TS).sum(1) >= 2
        row: dict[str, float] = {
            "rows": rows,
            "columns": columns,
            "tasks": int(has_T.sum()),
            "places": int(np.isfinite(m_TS).sum()),
        }
        row |= {"samples left out": int(count_G[~np.isfinite(m_TS.ravel())].sum())}
        if has_T.any():
            kept_TS = m_TS[has_T]
            row |= {
                "lf": float(np.nanmean(np.abs(kept_TS - reference_T[has_T, None]), axis=1).mean()),
                "worst": float(np.nanmin(kept_TS, axis=1).mean()),
            }
        out.append(row)
    return out


def chance(y_N: np.ndarray, measure: str, *, num_classes: int = 2) -> float:
    """The quality of the best constant prediction on these samples: the most frequent class, or the mean.

    NaN in `r2` where all targets are equal.
    """
    y_N = np.asarray(y_N)
    if measure in OF_CLASSES:
        constant = np.bincount(y_N, minlength=num_classes).argmax()
    else:
        constant = y_N.mean()
    group_N = np.zeros(len(y_N), np.int64)
    predicted_N = np.full(len(y_N), constant)
    return float(grouped(predicted_N, y_N, group_N, 1, measure=measure, num_classes=num_classes)[0])


def collapsed(performance: float, by_chance: float, mean_factor: float) -> str:
    """Why a referee has collapsed, making all places equally bad; "" where it has not.

    It has where the quality is within 0.02 of a constant prediction's, or the factors that are applied are below 0.1 on
    average; those that are scaled to mean 1 never are.
    """
    reasons = []
    if performance < by_chance + NEAR_CHANCE:
        reasons.append(f"its quality {performance:.3f} is within {NEAR_CHANCE} of a constant prediction's")
    if mean_factor < LEAST_FACTOR:
        reasons.append(f"its factors are {mean_factor:.3f} on average, below {LEAST_FACTOR}: nothing is learned")
    return "; ".join(reasons)
