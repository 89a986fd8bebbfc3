"""Texts that a model may have read: with labels from a file, or split at random into those it will learn and others."""

import dataclasses
import itertools
import pathlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError
from data import records
from data.tokens.tokenizer import Tokenizer
from data.toys import chronicle

EMBEDDED = "synthetic:chronicle"
COLUMNS = ("input", "snippet", "text")
CHAPTER = "chapter"  # of a record that was cut by its headings
HEADING = re.compile(r"^[ \t]*chapter[ \t]+(?:[ivxlc]+|\d+)\.?[ \t]*$", re.IGNORECASE | re.MULTILINE)
END = re.compile(r"^\*\*\* ?END OF.*$|^End of (?:the )?Project Gutenberg.*$", re.MULTILINE)


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
    if c.data.chapters:
        counts["chapters"] = len({row[CHAPTER] for _, row in rows})
        counts["chapters learned"] = len({row[CHAPTER] for (_, row), label in zip(rows, labels) if label})
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
    loaded = _chapters(loaded, counts) if c.data.chapters else loaded
    pieces = _once([part for record in loaded for part in _pieces(record, c.data.piece_chars)], counts)
    if c.data.limit is not None and len(pieces) > c.data.limit:
        counts["texts beyond data.limit"] = len(pieces) - c.data.limit
        order = random.Random(f"limit {c.seed}").sample(range(len(pieces)), c.data.limit)
        pieces = [pieces[i] for i in sorted(order)]
    return pieces


def _chapters(loaded: Sequence[records.Record], counts: dict[str, int]) -> list[records.Record]:
    """The records, cut at lines that are a chapter's heading; what comes before the first or after the book is dropped.

    Raises:
        InputError: there are fewer than two chapters.
    """
    out: list[records.Record] = []
    names: dict[str, str | None] = {}  # the chapter that each file is in
    for record in loaded:
        column = _column(record.value)
        line = record.line
        for part in _parts(record.value[column]):
            here, line = line, line + part.count("\n")
            if heading := HEADING.match(part):
                names[record.file] = f"{record.file}: {heading[0].strip()}"
                part = part[heading.end() :]
            if END.match(part):
                names[record.file] = None
            chapter = names.get(record.file)
            if chapter is None:
                counts["parts outside chapters"] = counts.get("parts outside chapters", 0) + 1
            elif part.strip():
                out.append(records.Record({**record.value, column: part, CHAPTER: chapter}, chapter, here))
    if (num := len({record.value[CHAPTER] for record in out})) < 2:
        raise InputError(f"data.chapters=True: {num} chapters begin with a line such as CHAPTER IV; two are needed")
    return out


def _parts(text):
    """The text, parted before headings and before the line that ends a book."""
    starts = sorted({0, len(text)} | {match.start() for kind in (HEADING, END) for match in kind.finditer(text)})
    return [text[a:b] for a, b in itertools.pairwise(starts)]


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
    if chapters := sorted({row[CHAPTER] for _, row in rows if CHAPTER in row}):
        learned = set(random.Random(f"chapters {seed}").sample(chapters, len(chapters) // 2))
        return [int(row[CHAPTER] in learned) for _, row in rows]
    if all(label is None for label in labels) and learns:
        members = set(random.Random(f"members {seed}").sample(range(len(rows)), len(rows) // 2))
        return [int(i in members) for i in range(len(rows))]
    for (name, _), label in zip(rows, labels):
        if label not in (0, 1, "0", "1"):
            raise InputError(f"{name}: label={label!r} must be 1 for texts that the model has read and 0 for others")
    return [int(label) for label in labels]


def windows(
    path: str,
    tok: Tokenizer,
    *,
    length: int,
    num: int | None,
    seed: int,
    counts: dict[str, int],
    bad_records_path: pathlib.Path,
) -> np.ndarray:
    """Windows of consecutive tokens of files' texts, int64 [W, T]; the texts of a file follow one another.

    Args:
        path: files of texts, with commas between, or `EMBEDDED`.
        num: windows, drawn by the seed; None takes all.
        counts: gains what was read and what was left over.

    Raises:
        InputError: there are fewer windows than `num`, or fewer than two.
    """
    by_file: dict[str, list[str]] = {}
    if path == EMBEDDED:
        entries = chronicle.entries(2 * (num or 100), seed)
        by_file[path] = entries
        counts["records"] = len(entries)
    else:
        for record in records.read_counted(path, counts=counts, bad_records_path=str(bad_records_path)):
            text = next((record.value[name] for name in COLUMNS if record.value.get(name)), None)
            if not isinstance(text, str):
                counts["records without text"] = counts.get("records without text", 0) + 1
                continue
            by_file.setdefault(record.file, []).append(text)
    out = []
    for content in by_file.values():
        ids = np.array([i for ids, _ in tok.encode_batch(content) for i in ids], np.int64)
        whole = len(ids) // length * length
        out += list(ids[:whole].reshape(-1, length))
        counts["tokens at the ends of files"] = counts.get("tokens at the ends of files", 0) + len(ids) - whole
    wanted = len(out) if num is None else num
    if len(out) < max(wanted, 2):
        raise InputError(
            f"{path!r} has {len(out)} windows of {length} tokens, and {max(wanted, 2)} are wanted; give more text, or "
            "take fewer or shorter windows"
        )
    counts |= {"windows": wanted, "windows beyond those wanted": len(out) - wanted}
    chosen = np.sort(np.random.default_rng(seed).permutation(len(out))[:wanted])
    return np.stack([out[i] for i in chosen])
