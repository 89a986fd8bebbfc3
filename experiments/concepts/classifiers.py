"""The classifiers of a run behind one interface: train on a set, predict labels, show features."""

from collections.abc import Sequence
from typing import Any, Protocol

import ml_collections
import numpy as np

from alignment.concepts import bag, encoder
from alignment.models import bert
from alignment.train import sharding
from experiments.concepts.sets import Task, Training

BAG, ENCODER, BERT, DECODER, IN_CONTEXT = KINDS = ("bag", "encoder", "bert", "decoder", "in_context")
FEATURED = (BAG, ENCODER, BERT)  # kinds with features, which DFR, LEACE and the picture of words read


class Fitted(Protocol):
    """A trained classifier; only kinds in FEATURED have the last two."""

    def predict(self, texts: Sequence[str]) -> np.ndarray: ...

    def features(self, texts: Sequence[str]) -> np.ndarray: ...

    def vectors(self, words: Sequence[str]) -> np.ndarray: ...


class Learner(Protocol):
    """Trains classifiers.

    Attributes:
        digest: of the weights and settings that a training begins with.
    """

    digest: str

    def fit(self, training: Training, *, seed: int, groups_N: np.ndarray | None = None) -> Fitted: ...


class BagLearner:
    """See `bag`."""

    def __init__(self, c: ml_collections.ConfigDict) -> None:
        self._options, self._rate = bag.Options(**c.bag), c.group_dro.rate or bag.RATE
        self.digest = f"{self._options} {self._rate}"

    def fit(self, training: Training, *, seed: int, groups_N: np.ndarray | None = None) -> bag.Bag:
        options = dict(seed=seed, groups_N=groups_N, dro_rate=self._rate)
        return bag.fit(training.texts, training.labels_N, self._options, **options)


class EncoderLearner:
    """See `encoder`.

    Attributes:
        max_len: tokens of a text that are read.
        num_cut: gives how many of some texts are longer.
    """

    def __init__(self, c: ml_collections.ConfigDict, start: bert.Encoder, num_labels: int) -> None:
        options = encoder.Options(**c.training)
        self._rate = c.group_dro.rate or encoder.RATE
        self.max_len, self.num_cut = start.max_len, start.num_cut
        self._trainer = encoder.Trainer(start, num_labels, options, sharding.make_mesh())
        self.digest = f"{start.digest} {start.max_len} {options} {self._rate}"

    def fit(self, training: Training, *, seed: int, groups_N: np.ndarray | None = None) -> encoder.Fitted:
        more = dict(heldout=training.heldout, seed=seed, groups_N=groups_N, dro_rate=self._rate)
        return self._trainer.fit(training.texts, training.labels_N, **more)


def build(kind: str, c: ml_collections.ConfigDict, task: Task) -> Learner:
    """The learner of a kind in FEATURED."""
    if kind == BAG:
        return BagLearner(c)
    if kind == ENCODER:
        texts = [row.text for row in task.rows(task.train)]
        start = encoder.small(texts, max_len=c.max_len, seed=c.seed, **c.encoder)
    else:
        start = bert.load(c.bert_from, max_len=c.max_len)
    return EncoderLearner(c, start, task.num_labels)


class Once:
    """A learner that trains once on each set and seed, and keeps the newest classifiers.

    The peers of a method and several concepts share a training on the same texts.
    """

    def __init__(self, learner: Learner, most: int = 4) -> None:
        self.digest = learner.digest
        self._learner = learner
        self._known: dict[tuple[str, int], Any] = {}
        self._most = most

    def fit(self, training: Training, *, seed: int) -> Fitted:
        key = (training.digest, seed)
        if key not in self._known:
            if len(self._known) >= self._most:
                self._known.pop(next(iter(self._known)))
            self._known[key] = self._learner.fit(training, seed=seed)
        return self._known[key]

    def fit_groups(self, training: Training, groups_N: np.ndarray, *, seed: int) -> Fitted:
        return self._learner.fit(training, seed=seed, groups_N=groups_N)
