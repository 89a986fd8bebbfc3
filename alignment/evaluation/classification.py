"""How well a classifier does: confusion, recalls with intervals, groups; `floors` holds what needs no pixel.

Plain numpy on labels; every random draw comes from a seed.

Dimensions: N images, C classes, R resamples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from alignment import intervals
from alignment.errors import InputError, one_of


def confusion(labels_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> np.ndarray:
    """counts[true, predicted], int64."""
    labels_N, predicted_N = np.asarray(labels_N), np.asarray(predicted_N)
    if labels_N.shape != predicted_N.shape:
        raise InputError(f"{len(labels_N)} labels and {len(predicted_N)} predictions; each image needs one of both")
    for name, classes_N in (("label", labels_N), ("prediction", predicted_N)):
        if classes_N.size and not 0 <= classes_N.min() <= classes_N.max() < num_classes:
            outside = classes_N[(classes_N < 0) | (classes_N >= num_classes)][0]
            raise InputError(f"{name} {outside} is not a class; there are {num_classes}, numbered from 0")
    return np.bincount(labels_N * num_classes + predicted_N, minlength=num_classes**2).reshape(num_classes, num_classes)


def overall(counts_CC: np.ndarray) -> float:
    """Share of the images that are right; NaN without images."""
    return _ratio(np.trace(counts_CC), np.sum(counts_CC))


def recalls(counts_CC: np.ndarray) -> np.ndarray:
    """Share of each class's images that are recognised, [C]; NaN for a class without images."""
    all_C = np.sum(counts_CC, axis=1)
    return np.where(all_C > 0, np.diagonal(counts_CC) / np.maximum(all_C, 1), np.nan)


def mean_per_class(counts_CC: np.ndarray) -> float:
    """Mean recall of the classes that have images: every class counts alike, however many images it has."""
    recalls_C = recalls(counts_CC)
    return float(np.mean(recalls_C[np.isfinite(recalls_C)])) if np.any(np.isfinite(recalls_C)) else float("nan")


def num_present(counts_CC: np.ndarray) -> int:
    """Number of classes that have images: those that a mean per class is over."""
    return int(np.count_nonzero(np.sum(counts_CC, axis=1)))


def bootstrap(
    counts_CC: np.ndarray, *, resamples: int = 2_000, confidence: float = 0.95, seed: int = 0
) -> intervals.Interval:
    """Percentile interval of the mean per-class accuracy, over test sets drawn from the images with replacement."""
    right_C, all_C = np.diagonal(counts_CC), np.sum(counts_CC, axis=1)
    drawn_R2C = _resampled(np.stack([right_C, all_C - right_C]), resamples, seed)
    means_R = _mean_recall(drawn_R2C[:, 0], drawn_R2C.sum(axis=1))
    return intervals.percentiles(means_R, confidence)


def paired_difference(
    labels_N: np.ndarray,
    first_N: np.ndarray,
    second_N: np.ndarray,
    num_classes: int,
    *,
    measure: str = "mean_per_class",
    resamples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy of the second predictions minus that of the first, on the same images.

    Args:
        measure: `mean_per_class`, or `overall`, in which every image counts alike.

    Returns:
        `difference`, and the percentile interval `low`, `high` over images drawn anew, each with both predictions.
    """
    one_of("measure", measure, ("mean_per_class", "overall"))
    confusion(labels_N, first_N, num_classes)  # refuses labels and predictions that do not fit together
    confusion(labels_N, second_N, num_classes)
    labels_N = np.asarray(labels_N)
    kind_N = 2 * (np.asarray(first_N) == labels_N) + (np.asarray(second_N) == labels_N)
    cells_4C = np.bincount(kind_N * num_classes + labels_N, minlength=4 * num_classes).reshape(4, num_classes)
    if measure == "overall":  # all images as one class
        cells_4C = cells_4C.sum(axis=1, keepdims=True)

    def difference(cells_R4C):
        all_RC = cells_R4C.sum(axis=1)
        first_RC, second_RC = cells_R4C[:, 2] + cells_R4C[:, 3], cells_R4C[:, 1] + cells_R4C[:, 3]
        return _mean_recall(second_RC, all_RC) - _mean_recall(first_RC, all_RC)

    low, high = intervals.percentiles(difference(_resampled(cells_4C, resamples, seed)), confidence)
    return {"difference": float(difference(cells_4C[None])[0]), "low": low, "high": high}


def per_class(counts_CC: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """A row a class: its images, recall with Wilson's interval, precision, and what it is taken for most often."""
    rows = []
    for k, name in enumerate(class_names):
        trials, right = int(np.sum(counts_CC[k])), int(counts_CC[k, k])
        wrong_C = np.where(np.arange(len(class_names)) == k, 0, counts_CC[k])
        low, high = intervals.wilson(right, trials)
        row = {"class": name, "images": trials, "accuracy": _number(right, trials), "low": low, "high": high}
        row["precision"] = _number(right, int(np.sum(counts_CC[:, k])))
        row["most_often_taken_for"] = class_names[int(np.argmax(wrong_C))] if wrong_C.any() else ""
        rows.append(row)
    return rows


def top_confusions(counts_CC: np.ndarray, class_names: Sequence[str], num: int = 10) -> list[dict[str, Any]]:
    """The largest cells off the diagonal, with their share of the true class."""
    wrong_CC = np.array(counts_CC)
    np.fill_diagonal(wrong_CC, 0)
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[:num]
    cells = [divmod(int(cell), len(counts_CC)) for cell in order]
    return [
        {
            "true": class_names[true],
            "predicted": class_names[predicted],
            "images": int(wrong_CC[true, predicted]),
            "share_of_class": _number(int(wrong_CC[true, predicted]), int(np.sum(counts_CC[true]))),
        }
        for true, predicted in cells
        if wrong_CC[true, predicted]
    ]


def by_group(
    labels_N: np.ndarray, predicted_N: np.ndarray, groups_N: np.ndarray | Sequence[Any], num_classes: int
) -> list[dict[str, Any]]:
    """A row a value of `groups_N` (a museum, say): its images, accuracy with Wilson's interval, mean class accuracy and
    the number of classes that it is over.
    """
    labels_N, predicted_N = np.asarray(labels_N), np.asarray(predicted_N)
    group_N = np.asarray(groups_N)
    if len(group_N) != len(labels_N):
        raise InputError(f"{len(group_N)} groups for {len(labels_N)} images; each needs one")
    return [
        {"group": str(group), **_part(labels_N, predicted_N, group_N == group, num_classes)}
        for group in np.unique(group_N)
    ]


def by_quantile(
    labels_N: np.ndarray, predicted_N: np.ndarray, values_N: np.ndarray, num_classes: int, *, parts: int = 5
) -> list[dict[str, Any]]:
    """A row a fifth of the images in the order of a value, such as aspect ratio; equal values stay together."""
    labels_N, predicted_N, values_N = np.asarray(labels_N), np.asarray(predicted_N), np.asarray(values_N, np.float64)
    if len(values_N) != len(labels_N):
        raise InputError(f"{len(values_N)} values for {len(labels_N)} images; each needs one")
    inner = np.unique(np.quantile(values_N, np.linspace(0, 1, parts + 1)[1:-1]))
    part_N = np.searchsorted(inner, values_N, side="right")
    return [
        {
            "from": float(values_N[part_N == part].min()),
            "to": float(values_N[part_N == part].max()),
            **_part(labels_N, predicted_N, part_N == part, num_classes),
        }
        for part in np.unique(part_N)
    ]


def _part(labels_N: np.ndarray, predicted_N: np.ndarray, is_in_N: np.ndarray, num_classes: int) -> dict[str, Any]:
    counts_CC = confusion(labels_N[is_in_N], predicted_N[is_in_N], num_classes)
    right, trials = int(np.trace(counts_CC)), int(np.sum(counts_CC))
    low, high = intervals.wilson(right, trials)
    row = {"images": trials, "accuracy": _number(right, trials), "low": low, "high": high}
    return row | {"mean_class_accuracy": mean_per_class(counts_CC), "classes": num_present(counts_CC)}


def _resampled(cells: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Counts of as many images drawn with replacement, [R, ...]: images in one cell are alike, so one
    multinomial draw of the cells' counts replaces a draw of every image.
    """
    rng = np.random.default_rng(seed)
    total = int(cells.sum())
    if total == 0:
        raise InputError("there are no images to draw from; give labels and predictions of at least one")
    return rng.multinomial(total, cells.ravel() / total, size=resamples).reshape(resamples, *cells.shape)


def _mean_recall(right_RC: np.ndarray, all_RC: np.ndarray) -> np.ndarray:
    """Over the classes drawn at least once."""
    recalls_RC = right_RC / np.maximum(all_RC, 1)
    return recalls_RC.sum(axis=1) / np.maximum(np.count_nonzero(all_RC, axis=1), 1)


def _ratio(part: int, total: int) -> float:
    return float(part / total) if total else float("nan")


def _number(part: int, total: int) -> float | None:
    """A ratio for a table, which shows None as a dash."""
    return part / total if total else None
