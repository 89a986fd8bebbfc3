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
        ids = tok.encode(row[_column(row)])[: c.data.max_len]
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
    loaded = records.read_counted(c.data.path, counts=counts, bad_records_path=str(folder / "bad_records.jsonl"))
    for record in loaded:
        if _column(record.value) is None:
            raise InputError(f"{record.file}:{record.line}: it needs a text under one of {', '.join(COLUMNS)}")
    pieces = _once([part for record in loaded for part in _pieces(record, c.data.piece_chars)], counts)
    if c.data.limit is not None and len(pieces) > c.data.limit:
        counts["texts beyond data.limit"] = len(pieces) - c.data.limit
        order = random.Random(f"limit {c.seed}").sample(range(len(pieces)), c.data.limit)
        pieces = [pieces[i] for i in sorted(order)]
    return pieces


def _column(row: Mapping[str, Any]) -> str | None:
    """The column that holds the text: the first with one."""
    return next((name for name in COLUMNS if isinstance(row.get(name), str) and row[name].strip()), None)


def _pieces(record: records.Record, num_chars: int | None) -> list[tuple[str, Mapping[str, Any]]]:
    """The record, or pieces of its text; a piece of blanks alone is none."""
    name = f"{record.file}:{record.line}"
    if num_chars is None:
        return [(name, record.value)]
    column = _column(record.value)
    text = record.value[column]
    cuts = ((at, text[at : at + num_chars]) for at in range(0, len(text), num_chars))
    return [(f"{name}+{at}", {**record.value, column: piece}) for at, piece in cuts if piece.strip()]


def _once(pieces: list, counts: dict[str, int]) -> list:
    """The first record of each text; a copy of a member among the others would be a text that the model has read."""
    first: dict[str, tuple[str, Any]] = {}
    for name, row in pieces:
        where, label = first.setdefault(row[_column(row)], (name, row.get("label")))
        if str(row.get("label")) != str(label):
            raise InputError(f"{name}: label={row.get('label')!r}, and the same text has {label!r} at {where}")
    names = {name for name, _ in first.values()}
    if len(names) < len(pieces):
        counts["copies of a text, dropped"] = len(pieces) - len(names)
    return [(name, row) for name, row in pieces if name in names]


def _labels(rows, seed, *, learns):
    labels = [row.get("label") for _, row in rows]
    if all(label is None for label in labels) and learns:
        members = set(random.Random(f"members {seed}").sample(range(len(rows)), len(rows) // 2))
        return [int(i in members) for i in range(len(rows))]
    for (name, _), label in zip(rows, labels):
        if label not in (0, 1, "0", "1"):
            raise InputError(f"{name}: label={label!r} must be 1 for texts that the model has read and 0 for others")
    return [int(label) for label in labels]
