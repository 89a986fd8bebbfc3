"""Texts with labels, or the answers of preference pairs, as texts with levels from 0 (the mildest) up.

labelled, counts = labels.load("reviews.csv", columns={"text": "body", "label": "stars"}, levels=("5", "4", "1,2,3"))
train, calibration, heldout = labels.split(labelled, fractions=(0.1, 0.2), seed=0)
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError
from data import fields, loader, records
from data.texts import pair_formats, splits, turns
from data.toys import remarks

MAX_LEVELS = 100
NO_LABEL = fields.NO_VALUE


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Texts and their levels.

    Attributes:
        labels_N: level of each text, from 0.
        levels: the names of the levels, the mildest first.
        groups: texts with equal groups stay on one side of a split; an answer's group is its dialogue, "" means that
            the text itself is the group.
    """

    texts: list[str]
    labels_N: np.ndarray
    levels: tuple[str, ...]
    groups: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def digest(self) -> str:
        """Of the texts and their levels: what a position in them belongs to."""
        return loader.digest(self.labels_N, texts=(*self.levels, *self.texts))

    def take(self, index: Sequence[int]) -> "Labelled":
        """The texts of these positions, in this order."""
        texts, groups = [self.texts[i] for i in index], [self.groups[i] for i in index]
        return Labelled(texts, self.labels_N[np.asarray(index, np.int64)], self.levels, groups)


def load(
    path: str,
    *,
    columns: Mapping[str, str] | None = None,
    levels: Sequence[str] = (),
    limit: int = 0,
    seed: int = 0,
    bad_records_path: str = "",
) -> tuple[Labelled, dict[str, int]]:
    """Texts with levels, of `path`.

    Args:
        path: JSONL, parquet, CSV or TSV files as `records.find` finds them; of pairs (`chosen`, `rejected`), whose last
            answers become texts of level 0 (`chosen`) and 1 (`rejected`); or `synthetic` for the embedded ones.
        columns: `text` and `label` as the file calls them.
        levels: for each level, the mildest first, its labels with commas between; () makes each label a level, numbers
            in numerical and words in alphabetical order.
        limit: the first so many records; 0 takes all.
        bad_records_path: where to write the lines set aside; '' writes nothing.

    Returns:
        The texts, and counts of the records that were read and set aside.

    Raises:
        InputError: columns are missing, levels do not fit the labels or are given for pairs, or no text is left.
    """
    counts: dict[str, int] = {}
    if path == "synthetic":
        rows = records.numbered(remarks.labelled(limit or 2_000, seed), path, counts=counts)
    else:
        rows = records.read_counted(path, counts=counts, bad_records_path=bad_records_path)
        rows = records.first(rows, limit, counts)
    names = {ours: theirs for ours, theirs in (columns or {}).items() if theirs}
    if "text" not in names and {"chosen", "rejected"} & set(rows[0].value):
        for name, value in {"columns.label": names.get("label"), "levels": tuple(levels)}.items():
            if value:
                raise InputError(
                    f"data.{name}={value!r} is of texts with labels, and {path} holds pairs, whose levels are chosen "
                    "and rejected; leave it out, or name the column of the texts with data.columns.text"
                )
        labelled = _of_pairs(rows, counts)
    else:
        labelled = _of_texts(rows, names.get("text", "text"), names.get("label", "label"), tuple(levels), counts)
    if len(labelled) == 0:
        raise InputError(f"{path} leaves no text to learn from; counts: {counts}")
    return labelled, counts | {"texts": len(labelled)}


def _of_texts(
    rows: Sequence[records.Record],
    text_name: str,
    label_name: str,
    levels: tuple[str, ...],
    counts: dict[str, int],
) -> Labelled:
    first = rows[0]
    missing = [name for name in (text_name, label_name) if name not in first.value]
    if missing:
        raise InputError(
            f"{first.file}:{first.line}: columns missing: {', '.join(missing)}. Columns found: "
            f"{', '.join(map(str, first.value))}. Name them with data.columns.text and data.columns.label"
        )
    texts: list[str] = []
    labels: list[str] = []
    own = {word.strip() for level in levels for word in level.split(",")}
    for row in rows:
        turns.count_others(row.value, (text_name, label_name), counts)
        text = row.value.get(text_name)
        try:
            label = _word(row.value.get(label_name))
        except fields.Odd:
            counts["labels that are lists or objects"] = counts.get("labels that are lists or objects", 0) + 1
            continue
        label = "" if label.lower() in NO_LABEL and label not in own else label
        if not isinstance(text, str) or not text.strip():
            counts["empty text"] = counts.get("empty text", 0) + 1
        elif label == "":
            counts["no label"] = counts.get("no label", 0) + 1
        else:
            texts.append(text)
            labels.append(label)
    groups = [[word.strip() for word in level.split(",")] for level in levels] or [[w] for w in _ordered(set(labels))]
    if len(groups) > MAX_LEVELS or len(groups) < 2:
        raise InputError(
            f"column {label_name} of {first.file} has {len(groups)} levels; 2 to {MAX_LEVELS} are possible"
        )
    place = {word: level for level, words in enumerate(groups) for word in words}
    if missing := sorted(set(place) - set(labels)):
        raise InputError(
            f"levels={list(levels)}: no text of {first.file} is labelled {', '.join(missing)}; its labels are "
            f"{', '.join(_ordered(set(labels)))}"
        )
    has_level = [i for i, label in enumerate(labels) if label in place]
    if len(has_level) < len(labels):
        counts["labels of no level"] = len(labels) - len(has_level)
    texts = [texts[i] for i in has_level]
    labels_N = np.array([place[labels[i]] for i in has_level], np.int64)
    return Labelled(texts, labels_N, tuple(",".join(words) for words in groups), [""] * len(texts))


def _of_pairs(rows: Sequence[records.Record], counts: dict[str, int]) -> Labelled:
    """The answers of comparisons, without their prompts."""
    items = pair_formats.read(rows, counts=counts)
    texts: list[str] = []
    labels: list[int] = []
    groups: list[str] = []
    for item in items:
        if len(item.answers) == 2:
            texts += item.answers
            labels += [0, 1]
            groups += [item.prompt_text()] * 2
    return Labelled(texts, np.array(labels, np.int64), ("chosen", "rejected"), groups)


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuse shares of the texts that `split` could not take."""
    if min(fractions, default=0.5) <= 0 or sum(fractions) >= 1:
        raise InputError(f"fractions {list(fractions)} must be above 0 and leave something to train on")


def split(labelled: Labelled, *, fractions: Sequence[float], seed: int = 0) -> list[Labelled]:
    """Training texts, then a part for each fraction; no text, and no dialogue, is in two of them.

    Raises:
        InputError: fractions out of range, or a part that has no text.
    """
    check_fractions(fractions)
    items = [
        pair_formats.Comparison(group, (str(i),), group="" if group else text)
        for i, (text, group) in enumerate(zip(labelled.texts, _joined(labelled.texts, labelled.groups)))
    ]
    heldout_items, share = [], 1.0  # share: of all texts, what `items` still has
    for number, fraction in enumerate(fractions):
        # A seed for each part: by one hash those below a share are taken already, and the next part would be too small.
        items, heldout = splits.by_prompt(items, fraction=fraction / share, seed=seed + 7_919 * number)
        share -= fraction
        heldout_items.append(heldout)
    parts = [labelled.take([int(item.answers[0]) for item in part]) for part in (items, *heldout_items)]
    for name, part in zip(("training", *(f"held-out part {i}" for i in range(1, len(parts)))), parts):
        if not len(part):
            raise InputError(f"{len(labelled)} texts leave none for the {name}; give more texts, or larger fractions")
    return parts


def _joined(texts: Sequence[str], groups: Sequence[str]) -> list[str]:
    """The group of each text, where groups that share a text are one, and equal texts have one group."""
    parents: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while parents.setdefault(node, node) != node:
            parents[node] = parents[parents[node]]  # halves the path, so that long chains of equal texts stay cheap
            node = parents[node]
        return node

    nodes = [("text", " ".join(text.split()).casefold()) for text in texts]
    for node, group in zip(nodes, groups):
        if group:
            first, second = sorted((root(node), root(("group", group))))
            parents[second] = first  # "group" sorts before "text", so a root is a group
    return [root(node)[1] if node in parents else "" for node in nodes]


def _word(value: Any) -> str:
    """A label as text: 1, 1.0, True and "1 " are one label."""
    return str(int(value)) if isinstance(value, bool) else fields.name(value)


def _ordered(labels: Iterable[str]) -> list[str]:
    """Numbers by value, then words by the alphabet."""

    def key(label: str) -> tuple[int, float, str]:
        try:
            return 0, float(label), label
        except ValueError:
            return 1, 0.0, label

    return sorted(labels, key=key)
