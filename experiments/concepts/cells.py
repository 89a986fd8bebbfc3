"""The table of a run: a cell is one classifier, seed, concept and method, kept on disk as soon as it is measured."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ml_collections
import numpy as np

from alignment.concepts import bias, heads, rebalance, robust
from alignment.decoding import cache
from experiments.concepts import sets
from experiments.concepts.classifiers import Fitted, Once
from experiments.concepts.sets import SETS, Task, Training

GROUP_DRO, DFR, JTT, LEACE = PEERS = ("group_dro", "dfr", "jtt", "leace")
METHODS = (*SETS, *PEERS)
READ_FEATURES = (DFR, LEACE)
UNPARSED, ASKED = ADDED_UP = ("answers without a label", "asked")  # notes that differ by training
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """Where predictions come from."""

    model: str
    seed: int
    concept: str
    method: str


class Measurer(Protocol):
    """A classifier of the run, which gives the row of a cell.

    Attributes:
        digest: of the weights and settings that it begins with.
    """

    digest: str

    def measure(self, cell: Cell, task: Task, c: ml_collections.ConfigDict) -> dict[str, Any]: ...


def plan(models: Mapping[str, Sequence[str]], seeds: int, first_seed: int, concepts: Sequence[str]) -> list[Cell]:
    """All cells; those that share a training stand together.

    Args:
        models: classifier -> its methods.
    """
    return [
        Cell(model, first_seed + number, concept, method)
        for model, methods in models.items()
        for number in range(seeds)
        for concept in concepts
        for method in methods
    ]


def key(cell: Cell, task: Task, learner_digest: str, c: ml_collections.ConfigDict) -> str:
    """Of all that a cell's predictions depend on."""
    d = c.data
    reads: dict[str, Any] = {"cell": dataclasses.asdict(cell), "task": task.digest, "learner": learner_digest}
    reads |= {"negative": sorted(d.negative), "val_from": d.val_from, "mask": c.mask.to_dict(), "jtt": c.jtt.to_dict()}
    return hashlib.sha256(json.dumps(reads, sort_keys=True).encode()).hexdigest()


class Trained:
    """Measures cells by training; equal training sets are trained on once."""

    def __init__(self, once: Once) -> None:
        self.once, self.digest = once, once.digest

    def measure(self, cell: Cell, task: Task, c: ml_collections.ConfigDict) -> dict[str, Any]:
        """The row holds whether each test text was right, from which all numbers follow."""
        start = time.perf_counter()
        method = cell.method if cell.method in SETS else sets.ORIGINAL
        training = sets.training_set(c, task, cell.concept, method, cell.seed)
        fitted = _fitted(cell, training, self.once, c)
        predicted_N = fitted.predict(sets.test_texts(c, task, training.masked))
        labels_N = np.array([row.label for row in task.rows(task.test)])
        return {
            **dataclasses.asdict(cell),
            "right": "".join("01"[bool(x)] for x in predicted_N == labels_N),
            "texts": len(training.texts),
            "with the concept": int(training.has_N.sum()),
            "notes": training.notes,
            "masked": list(training.masked),
            "seconds": round(time.perf_counter() - start, 3),
        }


def _fitted(cell: Cell, training: Training, once: Once, c: ml_collections.ConfigDict) -> Any:
    rng = np.random.default_rng([cell.seed, *cell.concept.encode()])
    labels_N, has_N = training.labels_N, training.has_N
    if cell.method == GROUP_DRO:
        return once.fit_groups(training, rebalance.groups(labels_N, has_N), seed=cell.seed)
    first: Fitted = once.fit(training, seed=cell.seed)
    if cell.method == DFR:
        texts, held_labels_N = training.heldout
        return heads.last_layer(first, texts, held_labels_N, training.heldout_has_N, rng=rng)
    if cell.method == LEACE:
        return heads.without_concept(first, training.texts, labels_N, has_N)
    if cell.method == JTT:
        index = robust.repeated(first.predict(training.texts) != labels_N, c.jtt.factor)
        return once.fit(_taken(training, index), seed=cell.seed)
    return first


def _taken(training: Training, index: np.ndarray) -> Training:
    return dataclasses.replace(
        training,
        ids=tuple(training.ids[i] for i in index),
        texts=tuple(training.texts[i] for i in index),
        labels_N=training.labels_N[index],
        has_N=training.has_N[index],
    )


def through(
    cells: Sequence[Cell],
    task: Task,
    measurers: Mapping[str, Measurer],
    c: ml_collections.ConfigDict,
    kept: cache.Cache,
    note_fn: Callable[[int, Row], None],
) -> list[dict[str, Any]]:
    """The rows of all cells, in order; those that are kept already are not measured again.

    Args:
        note_fn: called with the number of rows and the newest one.
    """
    rows = []
    for cell in cells:
        name = key(cell, task, measurers[cell.model].digest, c)
        there = kept.get(name)
        row = json.loads(there) if there is not None else measurers[cell.model].measure(cell, task, c)
        if there is None:
            kept.put(name, json.dumps(row))
        rows.append(row)
        note_fn(len(rows), row)
    return rows


def results(rows: Sequence[Row], task: Task, c: ml_collections.ConfigDict) -> list[dict[str, Any]]:
    """A line for each model, concept and method, over its seeds."""
    labels_N = np.array([row.label for row in task.rows(task.test)])
    out = []
    for (model, concept, method), right_SN in _right(rows).items():
        right_N, has_N = right_SN.mean(axis=0), has(task, concept)
        is_misled_N = (has_N != np.isin(labels_N, list(task.kept[concept]))) & ~np.isnan(right_N)
        own = [row for row in rows if (row["model"], row["concept"], row["method"]) == (model, concept, method)]
        by_seed = [_measured(one_N, task, concept, resamples=0).bias for one_N in right_SN]
        line = {"model": model, "concept": concept, "method": method}
        line |= {"measured": _measured(right_N, task, concept, resamples=c.resamples, seed=c.seed)}
        line |= {"by seed": [100 * value for value in by_seed if value is not None]}
        line |= {"misled": float(right_N[is_misled_N].mean()) if is_misled_N.any() else None}
        line |= {"accuracy": float(np.nanmean(right_N)), "seconds": sum(row["seconds"] for row in own)}
        line |= {name: own[0][name] for name in ("texts", "with the concept", "masked")}
        out.append(line | {"notes": _notes([row["notes"] for row in own])})
    return out


def _notes(by_seed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of requests are added up over seeds; what a set has and lacks is the same for every seed."""
    added = {name: sum(one[name] for one in by_seed) for name in ADDED_UP if name in by_seed[0]}
    return {**by_seed[0], **added}


def difference(
    rows: Sequence[Row], task: Task, c: ml_collections.ConfigDict, model: str, concept: str, methods: tuple[str, str]
) -> bias.Measured:
    """Bias@C of the first method less that of the second, with its paired interval."""
    right = _right(rows)
    first_N, second_N = (right[model, concept, method].mean(axis=0) for method in methods)
    return _measured(first_N - second_N, task, concept, resamples=c.resamples, seed=c.seed)


def has(task: Task, concept: str) -> np.ndarray:
    """Whether each test text has the concept."""
    return np.array([concept in (row.concepts or ()) for row in task.rows(task.test)])


def _measured(right_N: np.ndarray, task: Task, concept: str, *, resamples: int, seed: int = 0) -> bias.Measured:
    """Of the test texts that have a result."""
    is_there_N = ~np.isnan(right_N)
    labels_N = np.array([row.label for row in task.rows(task.test)])
    options = dict(num_labels=task.num_labels, resamples=resamples, seed=seed)
    return bias.measure(right_N[is_there_N], labels_N[is_there_N], has(task, concept)[is_there_N], **options)


def _right(rows: Sequence[Row]) -> dict[tuple[str, str, str], np.ndarray]:
    """For each model, concept and method whether each test text is right, by seed [S,N]; NaN for one not asked."""
    grouped: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for row in rows:
        values = np.array([{"0": 0.0, "1": 1.0}.get(letter, np.nan) for letter in row["right"]])
        grouped.setdefault((row["model"], row["concept"], row["method"]), []).append(values)
    return {name: np.stack(values) for name, values in grouped.items()}
