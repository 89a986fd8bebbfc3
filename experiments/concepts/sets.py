"""The texts of a run: read, split once, and made into training sets by concept and method.

Test texts are the same for every method. The training sets of a concept leave out the edits that put this concept into
a text (CEBaB has them), so that `upsample` adds texts which `original` has not; other edits are texts like any other.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from alignment.concepts import masking, rebalance
from alignment.errors import InputError
from data.texts import concept_sets
from data.texts.concept_sets import ConceptSet, Row
from data.toys import concept_reviews
from experiments.launch import checks

SYNTHETIC = "synthetic"
ORIGINAL, BIASED, DOWN, UP, MASK, INVERTED = SETS = (
    "original",
    "biased",
    "downsample",
    "upsample",
    "mask",
    "inverted",
)
FIXED, ALTERED = VALIDATIONS = ("fixed", "altered")


@dataclasses.dataclass(frozen=True)
class Task:
    """Texts on their sides.

    Attributes:
        kept: concept -> labels that stay in its biased set.
        train, validation, test: places in `all_texts.rows`.
    """

    all_texts: ConceptSet
    concepts: tuple[str, ...]
    kept: Mapping[str, frozenset[int]]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def num_labels(self) -> int:
        return self.all_texts.num_labels

    def rows(self, places: np.ndarray) -> list[Row]:
        return [self.all_texts.rows[i] for i in places]

    def pool(self, concept: str) -> list[Row]:
        """Texts into which the concept was written, whose sources are training texts."""
        groups = {self.all_texts.rows[i].group for i in self.train}
        edits = [row for row in self.rows(self.train) if row.injects == concept]
        written = [row for row in self.all_texts.counterfactuals if row.injects == concept and row.source in groups]
        heldout = {self.all_texts.rows[i].group for i in (*self.validation, *self.test)}
        rebalance.check_no_leak({row.source for row in (*edits, *written)}, heldout)
        return [*edits, *written]

    @property
    def digest(self) -> str:
        """Of the texts and of who is on which side."""
        sides = [self.all_texts.digest, *(places.tolist() for places in (self.train, self.validation, self.test))]
        return hashlib.sha256(json.dumps(sides).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Training:
    """What one classifier is trained on.

    Attributes:
        has_N: whether a text has the concept, whatever was masked.
        heldout: texts and labels that pick the parameters.
        masked: words that were masked.
        notes: numbers for the table.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    labels_N: np.ndarray
    has_N: np.ndarray
    heldout: tuple[tuple[str, ...], np.ndarray]
    heldout_has_N: np.ndarray
    masked: tuple[str, ...]
    notes: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of the texts by their ids and what was masked in them; equal sets are trained on once."""
        content = json.dumps([self.ids, self.masked, self.heldout[0], self.heldout[1].tolist()])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def settings() -> dict[str, Any]:
    """The group `data` of the config."""
    unset = ml_collections.config_dict.placeholder
    return dict(
        path="cebab_train_exclusive.jsonl,cebab_dev.jsonl",  # CEBaB's columns, the authors', or text, label, concepts
        counterfactuals="",  # files of cf_text, ori_text, label and concept; "": none but CEBaB's edits
        num_labels=unset(int),  # None: 5 of CEBaB, else one more than the largest label
        limit=unset(int),  # records; None takes all
        concepts=("food", "service", "ambiance"),
        negative=(),  # concepts whose biased set keeps the lower labels; the others keep the upper half
        split=concept_sets.GROUPS,  # released: the authors' shuffle; seed 10, test 2000 and validation 1000 are theirs
        test=0.3,  # share, or a number of texts
        validation=0.1,
        split_seed=10,
        val_from=FIXED,  # altered: drawn from the altered training set, as the authors do
    )


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs no text to be seen."""
    d = c.data
    checks.check_names(c, "data.concepts")
    if unknown := sorted(set(d.negative) - set(d.concepts)):
        raise InputError(f"data.negative names {', '.join(unknown)}, which data.concepts does not")
    for name, least in (("test", 0.0), ("validation", 0.0)):
        value = d[name]
        if not value >= least or (name == "test" and not value) or (1 <= value != int(value)):
            raise InputError(f"data.{name}={value} must be a share from 0 to 1, or a whole number of texts")
    if sum(value for value in (d.test, d.validation) if value < 1) >= 1:
        raise InputError(f"data.test={d.test} and data.validation={d.validation} leave nothing to train on")
    checks.within(c, "[2, inf)", "data.num_labels")
    if d.path == SYNTHETIC:
        for name, usual in (("counterfactuals", ""), ("num_labels", None)):
            if d[name] != usual:
                raise InputError(f"data.{name}={d[name]!r} is not read with data.path={SYNTHETIC!r}; leave it out")
        if d.limit is None:
            raise InputError(f"data.path={SYNTHETIC!r} needs data.limit, its number of texts")
        if unknown := sorted(set(d.concepts) - set(concept_reviews.SHORTCUTS)):
            raise InputError(
                f"data.concepts: {', '.join(unknown)} is not in the made-up reviews, which have "
                f"{', '.join(concept_reviews.SHORTCUTS)}"
            )


def read(c: ml_collections.ConfigDict, counts: dict[str, int], bad_records_path: str) -> ConceptSet:
    """The texts of the config."""
    d = c.data
    if d.path == SYNTHETIC:
        return synthetic(d.limit, c.seed, counts)
    return concept_sets.load(
        d.path,
        counterfactuals=d.counterfactuals,
        num_labels=d.num_labels,
        limit=d.limit,
        counts=counts,
        bad_records_path=bad_records_path,
    )


def synthetic(num: int, seed: int, counts: dict[str, int]) -> ConceptSet:
    """Made-up reviews, and a counterfactual for each concept of every text without one."""
    rows = [
        Row(row["id"], row["text"], row["label"], frozenset(row["concepts"]), row["id"])
        for row in concept_reviews.reviews(num, seed)
    ]
    counts["records"] = len(rows)
    written = [
        concept_sets.counterfactual(
            row, concept, concept_reviews.inject(row.text, concept, random.Random(f"{row.id}/{concept}"))
        )
        for row in rows
        if not row.concepts
        for concept in concept_reviews.SHORTCUTS
    ]
    return ConceptSet(tuple(rows), tuple(written), 2)


def divide(c: ml_collections.ConfigDict, all_texts: ConceptSet, counts: dict[str, int]) -> Task:
    """The texts on their sides.

    Raises:
        InputError: a concept that no text mentions, with those that are there.
    """
    d, there = c.data, all_texts.concepts()
    if missing := [concept for concept in d.concepts if concept not in there]:
        names = ", ".join(f"{name} ({num})" for name, num in list(there.items())[:20]) or "none"
        raise InputError(f"data.concepts: no text mentions {', '.join(missing)}; there are {names}")
    options = dict(how=d.split, test=d.test, validation=d.validation, seed=d.split_seed)
    train, validation, test = concept_sets.split(all_texts.rows, **options)
    if shared := concept_sets.num_shared_texts(all_texts.rows, train, test):
        counts["test texts that are training texts as well"] = shared
    counts |= {"training texts": len(train), "validation texts": len(validation), "test texts": len(test)}
    written = concept_sets.with_training_sources(all_texts.rows, all_texts.counterfactuals, train)
    groups = {all_texts.rows[i].group for i in train}
    if num := sum(row.injects not in d.concepts for row in written):
        counts["counterfactuals of concepts that data.concepts does not name, left out"] = num
    if num := sum(row.injects in d.concepts and row.source not in groups for row in written):
        counts["counterfactuals whose source is no training text, left out"] = num
    all_texts = dataclasses.replace(all_texts, counterfactuals=tuple(written))
    num = all_texts.num_labels
    kept = {name: (rebalance.negative if name in d.negative else rebalance.positive)(num) for name in d.concepts}
    return Task(all_texts, tuple(d.concepts), kept, train, validation, test)


def training_set(c: ml_collections.ConfigDict, task: Task, concept: str, method: str, seed: int) -> Training:
    """The training set of a method in SETS."""
    is_altered = c.data.val_from == ALTERED
    own = task.rows(np.sort(np.concatenate([task.train, task.validation])) if is_altered else task.train)
    own = [row for row in own if row.injects != concept]
    validation = [row for row in task.rows(task.validation) if row.injects != concept]
    rng = np.random.default_rng([seed, SETS.index(method), *concept.encode()])
    labels_N, has_N = _arrays(own, concept)
    index, notes = np.arange(len(own)), dict[str, Any]()
    if method == BIASED:
        index = rebalance.biased(labels_N, has_N, task.kept[concept])
    elif method == INVERTED:
        index = rebalance.inverted(labels_N, has_N, task.kept[concept])
    elif method == DOWN:
        index, notes["texts of each label"] = rebalance.downsample(labels_N, has_N, num_labels=task.num_labels, rng=rng)
    rows = [own[i] for i in index]
    if method == UP:
        added, notes = _added(task, concept, labels_N, has_N, rng)
        rows += added
    masked: tuple[str, ...] = ()
    if is_altered:
        places = rng.permutation(len(rows))
        num = min(len(task.validation), len(rows) // 2)
        validation, rows = [rows[i] for i in places[:num]], [rows[i] for i in np.sort(places[num:])]
    if method == MASK:
        masked = tuple(word.word for word in telling_words(c, rows, concept))
    cover: Callable[[str], str] = lambda text: masking.mask(text, masked, c.mask.mark) if masked else text  # noqa: E731
    labels_N, has_N = _arrays(rows, concept)
    heldout_labels_N, heldout_has_N = _arrays(validation, concept)
    return Training(
        tuple(row.id for row in rows),
        tuple(cover(row.text) for row in rows),
        labels_N,
        has_N,
        (tuple(cover(row.text) for row in validation), heldout_labels_N),
        heldout_has_N,
        masked,
        notes,
    )


def telling_words(c: ml_collections.ConfigDict, rows: Sequence[Row], concept: str) -> list[masking.Word]:
    """The words that go along with a concept most, from training texts alone."""
    _, has_N = _arrays(rows, concept)
    return masking.ranked([row.text for row in rows], has_N.tolist(), min_count=c.mask.min_count)[: c.mask.top]


def test_texts(c: ml_collections.ConfigDict, task: Task, masked: Sequence[str]) -> list[str]:
    """The texts to predict; masked only where the config says so."""
    texts = [row.text for row in task.rows(task.test)]
    return [masking.mask(text, masked, c.mask.mark) for text in texts] if masked and c.mask.test else texts


def _added(
    task: Task, concept: str, labels_N: np.ndarray, has_N: np.ndarray, rng: np.random.Generator
) -> tuple[list[Row], dict[str, Any]]:
    """Counterfactuals that even the labels out, and how many are missing."""
    pool = task.pool(concept)
    pool_labels_M = np.array([row.label for row in pool], np.int64)
    places, short_K = rebalance.upsample(labels_N, has_N, pool_labels_M, num_labels=task.num_labels, rng=rng)
    need_K = rebalance.needs(rebalance.counts(labels_N, has_N, task.num_labels))
    return [pool[i] for i in places], {"needed": need_K.tolist(), "missing": short_K.tolist()}


def _arrays(rows: Sequence[Row], concept: str) -> tuple[np.ndarray, np.ndarray]:
    labels_N = np.array([row.label for row in rows], np.int64)
    return labels_N, np.array([concept in (row.concepts or ()) for row in rows], bool)
