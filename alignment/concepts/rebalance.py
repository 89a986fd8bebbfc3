"""Training sets for one concept: biased towards it, and balanced again (Zhou et al. 2024, arXiv:2311.08648, Section 4).

Every function returns places of texts in the arrays that it was given, in rising order; nothing is ever matched by its
text. Test texts never come here.

Dimensions: N texts, M counterfactuals, K labels, G groups (label and concept).
"""

from collections.abc import Collection

import numpy as np

from alignment.errors import InputError


def positive(num_labels: int) -> frozenset[int]:
    """The upper half of the labels: {1} of two, {3, 4} of five; a middle label is not among them."""
    return frozenset(range((num_labels + 1) // 2, num_labels))


def negative(num_labels: int) -> frozenset[int]:
    return frozenset(range(num_labels)) - positive(num_labels)


def biased(labels_N: np.ndarray, has_N: np.ndarray, labels: Collection[int]) -> np.ndarray:
    """All texts but those with the concept and a label outside of `labels`: the concept then means one of them."""
    return np.flatnonzero(~has_N | np.isin(labels_N, list(labels)))


def inverted(labels_N: np.ndarray, has_N: np.ndarray, labels: Collection[int]) -> np.ndarray:
    """The texts in which the concept is there exactly if the label is in `labels`; the others are where it misleads.

    Harsher than `biased`, because texts without the concept say the opposite.
    """
    return np.flatnonzero(has_N == np.isin(labels_N, list(labels)))


def downsample(
    labels_N: np.ndarray, has_N: np.ndarray, *, num_labels: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """As many texts with the concept of every label as the rarest has, and that number; the rest stays."""
    least = int(counts(labels_N, has_N, num_labels).min())
    chosen = [rng.choice(np.flatnonzero(has_N & (labels_N == k)), least, replace=False) for k in range(num_labels)]
    return np.sort(np.concatenate([np.flatnonzero(~has_N), *chosen])), least


def counts(labels_N: np.ndarray, has_N: np.ndarray, num_labels: int) -> np.ndarray:
    """Texts with the concept of each label, [K]."""
    return np.bincount(labels_N[has_N], minlength=num_labels)


def needs(count_K: np.ndarray) -> np.ndarray:
    """Counterfactuals that each label lacks to be as frequent as the most frequent one, [K]."""
    return np.max(count_K) - np.asarray(count_K)


def upsample(
    labels_N: np.ndarray, has_N: np.ndarray, pool_labels_M: np.ndarray, *, num_labels: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Counterfactuals to add, as places in the pool, and how many more each label needs.

    Where the pool has too few of a label, all of them are taken.

    Args:
        pool_labels_M: labels of texts in which the concept was written, their sources being training texts.

    Returns:
        Places in the pool, and the shortfall [K].
    """
    chosen, short_K = [], np.zeros(num_labels, int)
    for k, need in enumerate(needs(counts(labels_N, has_N, num_labels))):
        there = np.flatnonzero(pool_labels_M == k)
        num = min(need, len(there))
        short_K[k] = need - num
        chosen.append(rng.choice(there, num, replace=False) if num else there[:0])
    return np.sort(np.concatenate(chosen)), short_K


def groups(labels_N: np.ndarray, has_N: np.ndarray) -> np.ndarray:
    """The group of each text: twice its label, and 1 more with the concept; there are 2K."""
    return 2 * labels_N + has_N.astype(labels_N.dtype)


def balanced(groups_N: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """As many texts of every group as the smallest has, groups without any text left out.

    Raises:
        InputError: there is no text.
    """
    there, sizes = np.unique(groups_N, return_counts=True)
    if not len(there):
        raise InputError("there is no text to balance; hold out a larger share for validation")
    return np.sort(
        np.concatenate([rng.choice(np.flatnonzero(groups_N == g), sizes.min(), replace=False) for g in there])
    )


def check_no_leak(source_groups: Collection[str], heldout_groups: Collection[str]) -> None:
    """Refuse counterfactuals whose sources are of a group that has validation or test texts.

    Raises:
        InputError: names the first of them.
    """
    if outside := sorted(set(source_groups) & set(heldout_groups)):
        raise InputError(
            f"{len(outside)} sources of counterfactuals are held out, such as {outside[0]!r}: what was made from a "
            "held-out text would be trained on; split by groups"
        )
