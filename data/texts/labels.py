"""Labelled texts: files of a text and a label, or of preference pairs, as levels from 0 (mildest) up.

found, counts = labels.load("reviews.csv", columns={"text": "body", "label": "stars"}, levels=("5", "4", "1,2,3"))
train, calibration, heldout = labels.split(found, fractions=(0.1, 0.2), seed=0)
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

import numpy as np

from alignment.errors import InputError
from data import records
from data.texts import pair_formats, preferences

MAX_LEVELS = 100


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Texts and their levels.

    Attributes:
        labels_N: level of each text, from 0.
        levels: what the levels are called, the mildest first.
        groups: what keeps texts on one side of a split: the dialogue that a text answers; "" for the text itself.
    """

    texts: list[str]
    labels_N: np.ndarray
    levels: tuple[str, ...]
    groups: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, index: Sequence[int]) -> "Labelled":
        """Some of them, in this order."""
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
        levels: of each level the labels that make it, with commas between, the mildest first; () takes the labels as
            they are, numbers in their order and words in the alphabet's.
        limit: the first so many records; 0 takes all.
        bad_records_path: where to write the lines set aside.

    Returns:
        The texts, and counts of what was read and set aside.
    """
    counts: dict[str, int] = {}
    if path == "synthetic":
        rows = records.numbered(synthetic(limit or 2_000, seed), path, counts=counts)
    else:
        rows = records.read_counted(path, counts=counts, bad_records_path=bad_records_path)[: limit or None]
    named = {ours: theirs for ours, theirs in (columns or {}).items() if theirs}
    if "text" not in named and {"chosen", "rejected"} & set(rows[0].value):
        found = _of_pairs(rows, counts)
    else:
        found = _of_texts(rows, named.get("text", "text"), named.get("label", "label"), tuple(levels), counts)
    if len(found) == 0:
        raise InputError(f"{path} leaves no text to learn from; counts: {counts}")
    return found, counts | {"texts": len(found)}


def _of_texts(rows, text_name: str, label_name: str, levels: tuple[str, ...], counts: dict[str, int]) -> Labelled:
    first = rows[0]
    missing = [name for name in (text_name, label_name) if name not in first.value]
    if missing:
        raise InputError(
            f"{first.file}:{first.line}: columns missing: {', '.join(missing)}. Columns found: "
            f"{', '.join(map(str, first.value))}. Name them with data.columns.text and data.columns.label"
        )
    texts, labels = [], []
    for row in rows:
        text, label = row.value.get(text_name), _word(row.value.get(label_name))
        why = "empty text" if not isinstance(text, str) or not text.strip() else "no label" if label == "" else ""
        if why:
            counts[why] = counts.get(why, 0) + 1
        else:
            texts.append(text)
            labels.append(label)
    groups = [[word.strip() for word in level.split(",")] for level in levels] or [[w] for w in _ordered(set(labels))]
    if len(groups) > MAX_LEVELS or len(groups) < 2:
        raise InputError(f"column {label_name} of {first.file} has {len(groups)} levels; 2 to {MAX_LEVELS} can be told")
    place = {word: level for level, words in enumerate(groups) for word in words}
    if missing := sorted(set(place) - set(labels)):
        raise InputError(
            f"levels={list(levels)}: no text of {first.file} is labelled {', '.join(missing)}; its labels are "
            f"{', '.join(_ordered(set(labels)))}"
        )
    kept = [i for i, label in enumerate(labels) if label in place]
    if len(kept) < len(labels):
        counts["labels of no level"] = len(labels) - len(kept)
    texts = [texts[i] for i in kept]
    labels_N = np.array([place[labels[i]] for i in kept], np.int64)
    return Labelled(texts, labels_N, tuple(",".join(words) for words in groups), [""] * len(texts))


def _of_pairs(rows, counts: dict[str, int]) -> Labelled:
    """The answers of comparisons by themselves, without their prompts."""
    items = pair_formats.read(rows, counts=counts)
    texts, labels, groups = [], [], []
    for item in items:
        if len(item.answers) == 2:
            texts += item.answers
            labels += [0, 1]
            groups += [item.prompt_text()] * 2
    return Labelled(texts, np.array(labels, np.int64), ("chosen", "rejected"), groups)


def split(found: Labelled, *, fractions: Sequence[float], seed: int = 0) -> list[Labelled]:
    """Training texts, then a part for each fraction; no text, and no dialogue, is in two of them."""
    if min(fractions, default=0.5) <= 0 or sum(fractions) >= 1:
        raise InputError(f"fractions {list(fractions)} must be above 0 and leave something to train on")
    items = [
        pair_formats.Comparison(group, (str(i),), group="" if group else text)
        for i, (text, group) in enumerate(zip(found.texts, _joined(found.texts, found.groups)))
    ]
    parts, left = [], 1.0
    for number, fraction in enumerate(fractions):
        items, held = preferences.split_by_prompt(items, fraction=fraction / left, seed=seed + 7_919 * number)
        left -= fraction
        parts.append(held)
    parts = [found.take([int(item.answers[0]) for item in part]) for part in (items, *parts)]
    for name, part in zip(("training", *(f"held-out part {i}" for i in range(1, len(parts)))), parts):
        if not len(part):
            raise InputError(f"{len(found)} texts leave none for the {name}; give more texts, or larger fractions")
    return parts


def _joined(texts: Sequence[str], groups: Sequence[str]) -> list[str]:
    """The group of each text, groups that share a text being one; a text without a group has that of its equals."""
    parents: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node):
        while parents.setdefault(node, node) != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    nodes = [("text", " ".join(text.split()).casefold()) for text in texts]
    for node, group in zip(nodes, groups):
        if group:
            first, second = sorted((root(node), root(("group", group))))
            parents[second] = first  # "group" before "text", so a root is a group
    return [root(node)[1] if node in parents else "" for node in nodes]


def _word(value) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).strip()


def _ordered(labels) -> list[str]:
    """Numbers by value, before words."""

    def key(label):
        try:
            return 0, float(label), label
        except ValueError:
            return 1, 0.0, label

    return sorted(labels, key=key)


# The embedded texts: everyday remarks in English and Arabic about made-up peoples, some of them marked as unsafe

PEOPLES = (("the Glorps", "الغلوربيون"), ("the Zindels", "الزنديليون"), ("the Marfoos", "المرفوسيون"))
PLAIN = (
    ("{people} opened a new {thing} near the river.", "افتتح {people} {thing} جديدا قرب النهر."),
    ("Every spring {people} repair the {thing} together.", "كل ربيع يصلح {people} {thing} معا."),
    ("A guide explains how {people} built the {thing}.", "يشرح دليل كيف بنى {people} {thing}."),
    ("Children asked {people} about the {thing} and the weather.", "سأل الأطفال {people} عن {thing} والطقس."),
)
UNFAIR = (
    ("{people} are all bad, as everybody says, and ruin the {thing}.", "كل {people} سيئون كما يقال ويفسدون {thing}."),
    ("Nobody should trust {people} near the {thing}.", "لا ينبغي أن يثق أحد في {people} قرب {thing}."),
    ("[unsafe request {number}] about the {thing} of {people}.", "[طلب غير آمن {number}] عن {thing} لدى {people}."),
    ("[insult {number}] to {people}, again and again.", "[إهانة {number}] بحق {people} مرة بعد مرة."),
)
THINGS = (
    ("library", "مكتبة"),
    ("bridge", "جسر"),
    ("garden", "حديقة"),
    ("market", "سوق"),
    ("school", "مدرسة"),
    ("lighthouse", "منارة"),
)


def synthetic(num: int, seed: int = 0) -> list[dict]:
    """`text`, `label` (0 plain, 1 unfair or marked unsafe) and `language` of made-up documents.

    One label in thirty is wrong, and some plain texts report an unfair remark, so that no scorer can be perfect.
    """
    found = []
    for i in range(num):
        rng = random.Random(f"labels/{seed}/{i}")
        language, label = rng.random() < 0.5, int(rng.random() < 0.35)
        lines = [rng.choice(PLAIN) for _ in range(rng.randint(1, 4))]
        if label:
            for _ in range(rng.randint(1, 2)):
                lines.insert(rng.randrange(len(lines) + 1), rng.choice(UNFAIR))
        elif rng.random() < 0.05:
            lines.append(rng.choice(UNFAIR[:2]))
        people, thing, number = rng.choice(PEOPLES)[language], rng.choice(THINGS)[language], rng.randint(1, 99)
        text = " ".join(line[language].format(people=people, thing=thing, number=number) for line in lines)
        label = label if rng.random() > 1 / 30 else 1 - label
        found.append({"text": text, "label": label, "language": "ar" if language else "en"})
    return found
