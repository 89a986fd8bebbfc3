"""A last layer trained anew on a classifier's features: on balanced texts (DFR), or without a concept (LEACE).

Dimensions: N texts, D width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from sklearn.linear_model import LogisticRegression

from alignment.concepts import bag, erasure, rebalance

INVERSE_PENALTY = 1.0


class Featured(Protocol):
    """What a head reads of a classifier."""

    def features(self, texts: Sequence[str]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Head:
    """A logistic regression on features, which `edit_fn` changes first.

    They are divided by their mean deviation, all by the same: to scale each by its own would make the noise of the
    weakest directions as large as the strongest ones.
    """

    of: Featured
    edit_fn: Callable[[np.ndarray], np.ndarray]
    mean_D: np.ndarray
    deviation: float
    regression: LogisticRegression

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        x_ND = self.edit_fn(self.of.features(texts))
        return self.regression.predict((x_ND - self.mean_D) / self.deviation)


def fit(
    of: Featured,
    texts: Sequence[str],
    labels_N: np.ndarray,
    *,
    edit_fn: Callable[[np.ndarray], np.ndarray] = np.asarray,
    inverse_penalty: float = INVERSE_PENALTY,
) -> Head:
    """A new last layer for a classifier, from these texts.

    Raises:
        InputError: texts of one label alone.
    """
    bag.check_labels(labels_N)
    x_ND = edit_fn(of.features(texts))
    mean_D, deviation = x_ND.mean(axis=0), max(float(x_ND.std(axis=0).mean()), 1e-6)
    model = bag.fitted(bag.regression(inverse_penalty), (x_ND - mean_D) / deviation, labels_N)
    return Head(of, edit_fn, mean_D, deviation, model)


def last_layer(
    of: Featured, texts: Sequence[str], labels_N: np.ndarray, has_N: np.ndarray, *, rng: np.random.Generator
) -> Head:
    """DFR: a last layer from held-out texts with as many of each label with as without the concept.

    Kirichenko et al. 2023 (arXiv:2204.02937).
    """
    index = rebalance.balanced(rebalance.groups(labels_N, has_N), rng=rng)
    return fit(of, [texts[i] for i in index], labels_N[index])


def without_concept(of: Featured, texts: Sequence[str], labels_N: np.ndarray, has_N: np.ndarray) -> Head:
    """LEACE: a last layer on features of the training texts from which the concept is erased."""
    return fit(of, texts, labels_N, edit_fn=erasure.fit(of.features(texts), has_N.astype(float)))
