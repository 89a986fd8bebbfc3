"""Floors under a classifier's accuracy: what guesses reach that read labels, groups and sizes, but no pixel.

Dimensions: N images, C classes, F features, G groups.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError
from alignment.evaluation import classification


def constant(labels_N: np.ndarray, num_classes: int) -> tuple[float, float]:
    """(overall, mean per class) of always naming the class with most images."""
    counts_C = np.bincount(labels_N, minlength=num_classes)
    return float(counts_C.max() / counts_C.sum()), float(1 / np.count_nonzero(counts_C))


def by_group(
    train_labels_N: np.ndarray,
    train_groups_N: np.ndarray | Sequence[Any],
    test_labels_N: np.ndarray,
    test_groups_N: np.ndarray | Sequence[Any],
    num_classes: int,
) -> tuple[float, float]:
    """(overall, mean per class) on test of naming, for each group, the class with most training images there."""
    groups_N, labels_N = np.asarray(train_groups_N), np.asarray(train_labels_N)
    guess = {
        group: np.argmax(np.bincount(labels_N[groups_N == group], minlength=num_classes))
        for group in np.unique(groups_N)
    }
    default = np.argmax(np.bincount(labels_N, minlength=num_classes))
    predicted_N = np.array([guess.get(group, default) for group in np.asarray(test_groups_N)], np.int64)
    counts_CC = classification.confusion(test_labels_N, predicted_N, num_classes)
    return classification.overall(counts_CC), classification.mean_per_class(counts_CC)


def by_metadata(
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
    """Accuracy of a random forest that reads size, shape and museum: the floor under every accuracy.

    Args:
        train_features: `width` and `height` of the files in pixels, and `museum` (any labels) where it is known.
        test_features: the same columns.
        num_classes: None takes the largest label and one.
        trees: of each forest.
        min_leaf: images that a leaf holds at least.
        seeds: of one forest each.

    Returns:
        name -> (overall, mean per class), means over seeds: `aspect_ratio`; `size`, of width and height;
        `size_and_museum`, with one flag a museum, where the features hold it.

    Raises:
        InputError: features without width or height, or a museum in one of the splits only.
    """
    from sklearn.ensemble import RandomForestClassifier  # half a second to import

    _check_features(train_features, test_features)
    num_classes = num_classes or int(max(np.max(train_labels_N), np.max(test_labels_N))) + 1
    tables = zip(_tables(train_features, train_features), _tables(test_features, train_features))
    accuracies = {}
    for (name, train_NF), (_, test_NF) in tables:
        scores = []
        for seed in seeds:
            forest = RandomForestClassifier(trees, min_samples_leaf=min_leaf, random_state=seed, n_jobs=-1)
            predicted_N = forest.fit(train_NF, train_labels_N).predict(test_NF)
            counts_CC = classification.confusion(test_labels_N, predicted_N, num_classes)
            scores.append((classification.overall(counts_CC), classification.mean_per_class(counts_CC)))
        overall, mean = np.mean(scores, axis=0).tolist()
        accuracies[name] = (overall, mean)
    return accuracies


def _check_features(train: Mapping[str, Sequence[Any]], test: Mapping[str, Sequence[Any]]) -> None:
    for name, features in (("train", train), ("test", test)):
        missing = [column for column in ("width", "height") if column not in features]
        if missing:
            raise InputError(f"{name} features lack {', '.join(missing)}; they hold {', '.join(features) or 'nothing'}")
    if ("museum" in train) != ("museum" in test):
        raise InputError("one of train and test features has a museum and the other has none; give it to both")


def _tables(features: Mapping[str, Sequence[Any]], train: Mapping[str, Sequence[Any]]) -> list[tuple[str, np.ndarray]]:
    """(name, numbers [N, F]) of each floor; the museums are those of the training images."""
    width_N, height_N = (np.asarray(features[name], np.float64) for name in ("width", "height"))
    size_N2 = np.stack([width_N, height_N], axis=1)
    tables = [("aspect_ratio", (width_N / height_N)[:, None]), ("size", size_N2)]
    if "museum" in features:
        flags_NG = np.asarray(features["museum"])[:, None] == np.unique(train["museum"])[None]
        tables.append(("size_and_museum", np.concatenate([size_N2, flags_NG], axis=1)))
    return tables
