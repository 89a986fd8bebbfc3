"""Texts that a model may have read: with labels from a file, or split at random into those it will learn and others."""

import dataclasses
import pathlib
import random
from collections.abc import Mapping
from typing import Any

from alignment.errors import InputError
from data import records
from data.tokens.tokenizer import Tokenizer
from data.toys import chronicle

EMBEDDED = "synthetic:chronicle"
COLUMNS = ("input", "snippet", "text")


@dataclasses.dataclass(frozen=True)
class Text:
    """A text with its tokens; `is_member`: the model was trained on it."""

    id: str
    text: str
    ids: list[int]
    is_member: bool


def read(c: Any, tok: Tokenizer, folder: pathlib.Path, *, learns: bool, counts: dict[str, int]) -> list[Text]:
    """The texts of `c.data`, each cut to `c.data.max_len` tokens.

    Args:
        learns: whether the run trains on the members itself; then texts need no label, and a draw decides.

    Raises:
        InputError: a record without text or label, or one class only.
    """
    rows = _rows(c, folder, counts)
    labels = _labels(rows, c.seed, learns=learns)
    out = []
    for (name, row), label in zip(rows, labels):
        whole = next(str(row[column]) for column in COLUMNS if row.get(column))
        ids = tok.encode(whole)[: c.data.max_len]
        if len(ids) < c.data.min_len:
            counts["texts of fewer than data.min_len tokens"] = (
                counts.get("texts of fewer than data.min_len tokens", 0) + 1
            )
            continue
        out.append(Text(name, tok.decode(ids), ids, bool(label)))
    if not any(text.is_member for text in out) or all(text.is_member for text in out):
        raise InputError(f"data.path={c.data.path!r}: {len(out)} texts are all of one class; both are needed")
    return out


def _rows(c, folder, counts):
    if c.data.path == EMBEDDED:
        counts["records"] = c.data.limit
        return [(f"chronicle:{i}", {"text": text}) for i, text in enumerate(chronicle.entries(c.data.limit, c.seed))]
    found = records.read_counted(c.data.path, counts=counts, bad_records_path=str(folder / "bad_records.jsonl"))
    found = [part for record in found for part in _pieces(record, c.data.piece_chars)]
    for name, row in found:
        if not any(isinstance(row.get(column), str) and row[column].strip() for column in COLUMNS):
            raise InputError(f"{name}: it needs a text under one of {', '.join(COLUMNS)}")
    if c.data.limit is not None and len(found) > c.data.limit:
        counts["texts beyond data.limit"] = len(found) - c.data.limit
        order = random.Random(f"limit {c.seed}").sample(range(len(found)), c.data.limit)
        found = [found[i] for i in sorted(order)]
    return found


def _pieces(record: records.Record, num_chars: int | None) -> list[tuple[str, Mapping[str, Any]]]:
    name = f"{record.file}:{record.line}"
    column = next((column for column in COLUMNS if isinstance(record.value.get(column), str)), None)
    if num_chars is None or column is None:
        return [(name, record.value)]
    text = record.value[column]
    cuts = range(0, max(len(text), 1), num_chars)
    return [(f"{name}+{at}", {**record.value, column: text[at : at + num_chars]}) for at in cuts]


def _labels(rows, seed, *, learns):
    labels = [row.get("label") for _, row in rows]
    if all(label is None for label in labels) and learns:
        members = set(random.Random(f"members {seed}").sample(range(len(rows)), len(rows) // 2))
        return [int(i in members) for i in range(len(rows))]
    for (name, _), label in zip(rows, labels):
        if label not in (0, 1, "0", "1"):
            raise InputError(f"{name}: label={label!r} must be 1 for texts that the model has read and 0 for others")
    return [int(label) for label in labels]
