"""How well a classifier does: confusion, recalls with intervals, groups, and what it could know without a pixel.

Plain numpy on labels; everything that is drawn at random is drawn from a seed.

Dimensions: N images, C classes, R resamples.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment import intervals
from alignment.errors import InputError


def confusion(labels_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> np.ndarray:
    """counts[true, predicted], int64."""
    labels_N, predicted_N = np.asarray(labels_N), np.asarray(predicted_N)
    if labels_N.shape != predicted_N.shape:
        raise InputError(f"{len(labels_N)} labels and {len(predicted_N)} predictions; each image needs one of both")
    for name, found_N in (("label", labels_N), ("prediction", predicted_N)):
        if found_N.size and not 0 <= found_N.min() <= found_N.max() < num_classes:
            outside = found_N[(found_N < 0) | (found_N >= num_classes)][0]
            raise InputError(f"{name} {outside} is no class; there are {num_classes}, numbered from 0")
    return np.bincount(labels_N * num_classes + predicted_N, minlength=num_classes**2).reshape(num_classes, num_classes)


def overall(counts_CC: np.ndarray) -> float:
    """Right over all; not a number where nothing was counted."""
    return _ratio(np.trace(counts_CC), np.sum(counts_CC))


def recalls(counts_CC: np.ndarray) -> np.ndarray:
    """Share of each class's images that are recognised, [C]; nan for a class without images."""
    return _ratios(np.diagonal(counts_CC), np.sum(counts_CC, axis=1))


def mean_per_class(counts_CC: np.ndarray) -> float:
    """Mean recall of the classes that have images: every class counts alike, however many images it has."""
    found_C = recalls(counts_CC)
    return float(np.mean(found_C[np.isfinite(found_C)])) if np.any(np.isfinite(found_C)) else float("nan")


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
    if measure not in ("mean_per_class", "overall"):
        raise InputError(f"measure={measure!r}; it is mean_per_class or overall")
    confusion(labels_N, first_N, num_classes)  # refuses what does not fit together
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
    labels_N: np.ndarray, predicted_N: np.ndarray, groups_N: Sequence[Any], num_classes: int
) -> list[dict[str, Any]]:
    """A row a value of `groups_N` (a museum, say): its images, accuracy with Wilson's interval, mean class accuracy."""
    labels_N, predicted_N, groups_N = np.asarray(labels_N), np.asarray(predicted_N), np.asarray(groups_N)
    if len(groups_N) != len(labels_N):
        raise InputError(f"{len(groups_N)} groups for {len(labels_N)} images; each needs one")
    return [
        {"group": str(group), **_part(labels_N, predicted_N, groups_N == group, num_classes)}
        for group in np.unique(groups_N)
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


def constant_floor(labels_N: np.ndarray, num_classes: int) -> tuple[float, float]:
    """(overall, mean per class) of always naming the class with most images."""
    counts_C = np.bincount(labels_N, minlength=num_classes)
    return float(counts_C.max() / counts_C.sum()), float(1 / np.count_nonzero(counts_C))


def group_floor(
    train_labels_N: np.ndarray,
    train_groups_N: Sequence[Any],
    test_labels_N: np.ndarray,
    test_groups_N: Sequence[Any],
    num_classes: int,
) -> tuple[float, float]:
    """(overall, mean per class) on test of naming, for each group, the class with most training images there."""
    train_groups_N, train_labels_N = np.asarray(train_groups_N), np.asarray(train_labels_N)
    guess = {
        group: np.argmax(np.bincount(train_labels_N[train_groups_N == group], minlength=num_classes))
        for group in np.unique(train_groups_N)
    }
    default = np.argmax(np.bincount(train_labels_N, minlength=num_classes))
    predicted_N = np.array([guess.get(group, default) for group in np.asarray(test_groups_N)], np.int64)
    counts_CC = confusion(test_labels_N, predicted_N, num_classes)
    return overall(counts_CC), mean_per_class(counts_CC)


def metadata_floor(
    train_features: Mapping[str, Sequence[Any]],
    train_labels_N: np.ndarray,
    test_features: Mapping[str, Sequence[Any]],
    test_labels_N: np.ndarray,
    *,
    num_classes: int | None = None,
    trees: int = 300,
    min_leaf: int = 5,
    seeds: Iterable[int] = range(3),
) -> dict[str, tuple[float, float]]:
    """What a random forest knows of the class without seeing a pixel: the floor under every accuracy.

    Args:
        train_features: `width` and `height` of the files in pixels, and `museum` (any labels) where there is one.

    Returns:
        name -> (overall, mean per class), means over seeds: `aspect_ratio`; `size`, of width and height;
        `size_and_museum`, with one flag a museum, where the features hold it.
    """
    from sklearn.ensemble import RandomForestClassifier  # half a second to import

    _check_features(train_features, test_features)
    num_classes = num_classes or int(max(np.max(train_labels_N), np.max(test_labels_N))) + 1
    tables = zip(_tables(train_features, train_features), _tables(test_features, train_features))
    found = {}
    for (name, train_NF), (_, test_NF) in tables:
        scores = []
        for seed in seeds:
            forest = RandomForestClassifier(trees, min_samples_leaf=min_leaf, random_state=seed, n_jobs=-1)
            predicted_N = forest.fit(train_NF, train_labels_N).predict(test_NF)
            counts_CC = confusion(test_labels_N, predicted_N, num_classes)
            scores.append((overall(counts_CC), mean_per_class(counts_CC)))
        found[name] = tuple(np.mean(scores, axis=0).tolist())
    return found


def _check_features(train: Mapping[str, Sequence[Any]], test: Mapping[str, Sequence[Any]]) -> None:
    for name, features in (("train", train), ("test", test)):
        missing = [column for column in ("width", "height") if column not in features]
        if missing:
            raise InputError(f"{name} features lack {', '.join(missing)}; they hold {', '.join(features) or 'nothing'}")
    if ("museum" in train) != ("museum" in test):
        raise InputError("one of train and test features has a museum and the other has none; give it to both")


def _tables(features: Mapping[str, Sequence[Any]], train: Mapping[str, Sequence[Any]]):
    """(name, numbers [N,F]) of each floor."""
    width_N, height_N = (np.asarray(features[name], np.float64) for name in ("width", "height"))
    size_N2 = np.stack([width_N, height_N], axis=1)
    found = [("aspect_ratio", (width_N / height_N)[:, None]), ("size", size_N2)]
    if "museum" in features:
        flags_NG = np.asarray(features["museum"])[:, None] == np.unique(train["museum"])[None]
        found.append(("size_and_museum", np.concatenate([size_N2, flags_NG], axis=1)))
    return found


def _part(labels_N, predicted_N, chosen_N, num_classes) -> dict[str, Any]:
    counts_CC = confusion(labels_N[chosen_N], predicted_N[chosen_N], num_classes)
    right, trials = int(np.trace(counts_CC)), int(np.sum(counts_CC))
    low, high = intervals.wilson(right, trials)
    mean = mean_per_class(counts_CC)
    return {"images": trials, "accuracy": _number(right, trials), "low": low, "high": high, "mean_class_accuracy": mean}


def _resampled(cells: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Counts of as many images drawn with replacement, [R, ...]: images in one cell are alike, so cells are drawn."""
    rng = np.random.default_rng(seed)
    total = int(cells.sum())
    if total == 0:
        raise InputError("there are no images to draw from; give labels and predictions of at least one")
    return rng.multinomial(total, cells.ravel() / total, size=resamples).reshape(resamples, *cells.shape)


def _mean_recall(right_RC: np.ndarray, all_RC: np.ndarray) -> np.ndarray:
    """Over the classes drawn at least once."""
    recalls_RC = right_RC / np.maximum(all_RC, 1)
    return recalls_RC.sum(axis=1) / np.maximum(np.count_nonzero(all_RC, axis=1), 1)


def _ratio(part, whole) -> float:
    return float(part / whole) if whole else float("nan")


def _ratios(part_C: np.ndarray, whole_C: np.ndarray) -> np.ndarray:
    return np.where(whole_C > 0, part_C / np.maximum(whole_C, 1), np.nan)


def _number(part: int, whole: int) -> float | None:
    """For a table: a dash where there is nothing to divide by."""
    return part / whole if whole else None
