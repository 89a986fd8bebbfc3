"""In-context learning: a decoder labels a text after eight exemplars, biased towards a concept or even.

Zhou et al. 2024 (arXiv:2311.08648), Section 5. An answer that names no label is requested once more, with the labels in
the question, and then counts as wrong; the share of such answers is reported.
"""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import ml_collections
import numpy as np

from alignment.decoding.requests import Request
from alignment.errors import InputError
from data.texts.concept_sets import Row
from experiments.concepts import cells
from experiments.concepts.cells import Cell
from experiments.concepts.sets import Task
from experiments.launch import checks

BALANCED, BIASED = METHODS = ("balanced", "biased")
ANSWER_TOKENS = 4  # a word of a label
UNASKED = "-"

WriteFn = Callable[[Sequence[str], int], list[str]]  # prompts, longest answer -> answers


def settings() -> dict[str, Any]:
    """The group `in_context` of the config."""
    return dict(
        exemplars=8,  # half of them with the concept
        instruction="Label each text with its sentiment, from the most negative to the most positive.",
        labels=(),  # what they are called, from the lowest; (): negative and positive of two, digits of more
        limit=ml_collections.config_dict.placeholder(int),  # test texts, drawn evenly over labels; None: all
    )


def check(c: ml_collections.ConfigDict) -> None:
    num = c.in_context.exemplars
    if num < 2 or num % 2:
        raise InputError(f"in_context.exemplars={num} must be even and at least 2: half of them have the concept")
    checks.within(c, "[1, inf)", "in_context.limit")
    called = tuple(c.in_context.labels)
    if len({name.strip().lower() for name in called} - {""}) < len(called):
        raise InputError(f"in_context.labels={called}: each label has a name of its own")


def names(num_labels: int, called: Sequence[str] = ()) -> tuple[str, ...]:
    """What labels are called: two by words, more by digits, each of which is one token of most models.

    Args:
        called: takes the place of these.

    Raises:
        InputError: another number of names than of labels.
    """
    if called and len(called) != num_labels:
        raise InputError(
            f"in_context.labels={tuple(called)} names {len(called)} labels, and the texts have {num_labels}"
        )
    if called:
        return tuple(called)
    return ("negative", "positive") if num_labels == 2 else tuple(map(str, range(num_labels)))


def exemplars(
    rows: Sequence[Row], concept: str, method: str, num: int, *, num_labels: int, kept: Collection[int], seed: int
) -> list[Row]:
    """`num` training texts in a drawn order, half of them with the concept.

    `biased`: with the concept all of `kept`, without it all of the other labels. `balanced`: labels as even as they go,
    on both sides.

    Raises:
        InputError: too few texts of a kind.
    """
    rng = np.random.default_rng([seed, METHODS.index(method), *concept.encode()])
    chosen: list[Row] = []
    for has in (True, False):
        own = [row for row in rows if (concept in (row.concepts or ())) == has and row.injects != concept]
        if method == BIASED:
            labels = [k for k in range(num_labels) if (k in kept) == has]
            there = [row for row in own if row.label in labels]
            places = rng.permutation(len(there))[: num // 2]
            picked = [there[i] for i in places]
        else:
            picked = []
            order = rng.permutation(num_labels)
            by_label = {k: list(rng.permutation([i for i, row in enumerate(own) if row.label == k])) for k in order}
            for n in range(num // 2):
                left = by_label[order[n % num_labels]]
                picked += [own[left.pop()]] if left else []
        if len(picked) < num // 2:
            raise InputError(
                f"in_context.exemplars={num}: the training texts have too few {'with' if has else 'without'} {concept} "
                f"for {method} exemplars; lower it"
            )
        chosen += picked
    return [chosen[i] for i in rng.permutation(len(chosen))]


def drawn(groups_N: np.ndarray, limit: int | None, *, seed: int) -> np.ndarray:
    """Places of `limit` texts, in rising order, of every group (label and concept) as many as there are, one by one.

    Bias@C reads each group's accuracy, so a plain draw would leave the rare groups without a text.
    """
    if limit is None or limit >= len(groups_N):
        return np.arange(len(groups_N))
    order = np.random.default_rng(seed).permutation(len(groups_N))
    turns: dict[int, int] = {}
    rank = {}
    for place in order:
        group = int(groups_N[place])
        rank[int(place)] = turns[group] = turns.get(group, 0) + 1
    return np.sort(sorted(rank, key=lambda place: rank[place])[:limit])


def prompt(
    instruction: str, examples: Sequence[Row], text: str, labels: Sequence[str], *, asks_again: bool = False
) -> str:
    """Instruction, exemplars, and the text whose label is missing."""
    parts = [f"{instruction} The labels are {', '.join(labels)}."]
    parts += [f"Text: {' '.join(row.text.split())}\nLabel: {labels[row.label]}" for row in examples]
    more = f" (one of {', '.join(labels)})" if asks_again else ""
    return "\n\n".join([*parts, f"Text: {' '.join(text.split())}\nLabel{more}:"])


def parse(answer: str, labels: Sequence[str]) -> int | None:
    """The label that an answer begins with, or None."""
    for i, name in enumerate(labels):
        if re.match(rf"\s*{re.escape(name)}\b", answer, re.IGNORECASE):
            return i
    return None


class InContext:
    """Measures cells by asking a model; it stands beside `classifiers.Once` in the table."""

    def __init__(self, write_fn: WriteFn, digest: str, c: ml_collections.ConfigDict) -> None:
        self._write_fn = write_fn
        self.digest = f"{digest} {json.dumps(c.in_context.to_dict(), sort_keys=True)}"

    def measure(self, cell: Cell, task: Task, c: ml_collections.ConfigDict) -> dict[str, Any]:
        """The row of a cell, as `cells.measure` has it; `right` has UNASKED where a test text was not asked."""
        start = time.perf_counter()
        options = dict(num_labels=task.num_labels, kept=task.kept[cell.concept], seed=cell.seed)
        rows = task.rows(task.train)
        examples = exemplars(rows, cell.concept, cell.method, c.in_context.exemplars, **options)
        test = task.rows(task.test)
        groups_N = np.array([2 * row.label + (cell.concept in (row.concepts or ())) for row in test])
        places = drawn(groups_N, c.in_context.limit, seed=c.seed)
        said, num_unparsed = self._labels([test[i].text for i in places], examples, task.num_labels, c)
        right = [UNASKED] * len(test)
        for i, label in zip(places, said):
            right[i] = "01"[label == test[i].label]
        return {
            **dataclasses.asdict(cell),
            "right": "".join(right),
            "texts": len(examples),
            "with the concept": len(examples) // 2,
            "notes": {cells.UNPARSED: num_unparsed, cells.ASKED: len(places)},
            "masked": [],
            "seconds": round(time.perf_counter() - start, 3),
        }

    def _labels(self, texts, examples, num_labels, c) -> tuple[list[int | None], int]:
        labels, instruction = names(num_labels, c.in_context.labels), c.in_context.instruction
        most = ANSWER_TOKENS * max(len(name.split()) for name in labels)
        answers = self._write_fn([prompt(instruction, examples, text, labels) for text in texts], most)
        said = [parse(answer, labels) for answer in answers]
        left = [i for i, label in enumerate(said) if label is None]
        if left:
            again = self._write_fn(
                [prompt(instruction, examples, texts[i], labels, asks_again=True) for i in left], most
            )
            for i, answer in zip(left, again):
                said[i] = parse(answer, labels)
        return said, said.count(None)


def of_engine(engine: Any, encode: Callable[[str], list[int]], max_len: int) -> WriteFn:
    """Greedy answers of a decoding engine; exemplars that prompts share are read once."""

    def write(prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        ids = [encode(text) for text in prompts]
        longest = max(map(len, ids))
        if longest + max_new_tokens > max_len:
            raise InputError(
                f"a prompt has {longest} tokens and decoder.engine.max_len={max_len} counts its answer of "
                f"{max_new_tokens} too; raise it, or lower in_context.exemplars"
            )
        answers = engine.answers([Request(one, max_new_tokens=max_new_tokens) for one in ids])
        return [answer.text.decode("utf-8", "replace") for answer in answers]

    return write
