"""A bag of words with logistic regression: the classifier that needs no accelerator and no download.

TF-IDF of words and pairs of words, by scikit-learn, with the settings under which the published split was measured.

Dimensions: N texts, K labels, G groups, D width of the features.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import threadpoolctl
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from alignment.concepts import robust
from alignment.errors import InputError

ROUNDS, RATE = 20, 1.0  # of group DRO: fits, and what a nat of loss adds to a group's log-weight after each
MOST_DIRECTIONS = 256  # of `features`
MOST_ITERATIONS = 2_000


@dataclasses.dataclass(frozen=True)
class Options:
    """The group `bag` of a config.

    Args:
        ngrams: words of a feature, at most.
        min_count: training texts that must hold a feature.
        inverse_penalty: C of the logistic regression; smaller pulls weights towards 0.
    """

    ngrams: int = 2
    min_count: int = 2
    inverse_penalty: float = 10.0

    def __post_init__(self) -> None:
        if self.ngrams < 1 or self.min_count < 1 or not self.inverse_penalty > 0:
            raise InputError(
                f"bag: ngrams={self.ngrams} and min_count={self.min_count} must be at least 1, and "
                f"inverse_penalty={self.inverse_penalty} above 0"
            )


@dataclasses.dataclass(frozen=True)
class Bag:
    """A trained bag of words."""

    words: TfidfVectorizer
    regression: LogisticRegression
    trained_on: Any  # the training texts' TF-IDF, which the directions of `features` come from
    seed: int

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        return self.regression.predict(self.words.transform(texts))

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """The strongest directions of the TF-IDF, [N,D]: tens of thousands of words have no covariance to erase."""
        return self._directions.transform(self.words.transform(texts)).astype(np.float32)

    def vectors(self, words: Sequence[str]) -> np.ndarray:
        """Where a text of one word lies among `features`, [N,D]."""
        return self.features(words)

    @functools.cached_property
    def _directions(self) -> TruncatedSVD:
        most = min(MOST_DIRECTIONS, min(self.trained_on.shape) - 1)
        return TruncatedSVD(max(most, 1), random_state=self.seed).fit(self.trained_on)


def fit(
    texts: Sequence[str],
    labels_N: np.ndarray,
    options: Options,
    *,
    seed: int = 0,
    groups_N: np.ndarray | None = None,
    dro_rate: float = RATE,
) -> Bag:
    """Train on these texts.

    Args:
        groups_N: trains against the worst group (group DRO), whose loss each round's weights follow; None: all texts
            count alike.

    Raises:
        InputError: texts of one label alone, or without a word that is frequent enough.
    """
    words = TfidfVectorizer(ngram_range=(1, options.ngrams), min_df=options.min_count, sublinear_tf=True)
    try:
        x = words.fit_transform(texts)
    except ValueError as e:  # scikit-learn's own words for an empty vocabulary
        raise InputError(f"{len(texts)} texts give a bag no words ({e}); lower bag.min_count") from None
    check_labels(labels_N)
    model = regression(options.inverse_penalty)
    if groups_N is None:
        return Bag(words, fitted(model, x, labels_N), x, seed)
    own, place_N = np.unique(groups_N, return_inverse=True)
    size_G = np.bincount(place_N)
    q_G = np.full(len(own), 1 / len(own))
    model.set_params(warm_start=True)  # the next round's weights are near
    for _ in range(ROUNDS):
        fitted(model, x, labels_N, (q_G / size_G)[place_N] * len(labels_N))
        loss_N = -model.predict_log_proba(x)[np.arange(len(labels_N)), np.searchsorted(model.classes_, labels_N)]
        loss_G = np.bincount(place_N, weights=loss_N) / size_G
        q_G = np.asarray(robust.reweighted(q_G, loss_G, rate=dro_rate), np.float64)
    return Bag(words, model, x, seed)


def regression(inverse_penalty: float) -> LogisticRegression:
    return LogisticRegression(C=inverse_penalty, max_iter=MOST_ITERATIONS)


def fitted(
    model: LogisticRegression, x: Any, labels_N: np.ndarray, weights_N: np.ndarray | None = None
) -> LogisticRegression:
    """Fit in one thread: the solver's products are so small that threads wait for each other, twenty times as long."""
    with threadpoolctl.threadpool_limits(1):
        return model.fit(x, labels_N, sample_weight=weights_N)


def check_labels(labels_N: np.ndarray) -> None:
    """Refuse what no classifier can be trained on."""
    if len(np.unique(labels_N)) < 2:
        raise InputError(f"{len(labels_N)} training texts are all of one label; give texts of at least two")
