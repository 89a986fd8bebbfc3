"""Pairs of a picture and a text, as rows of numbers: bytes of a small picture, and counts of hashed words.

Nothing is fitted: a word's place is a hash of it, so texts of any split or file are read alike.

Dimensions: N pairs, D numbers of a picture, W numbers of a text.
"""

import dataclasses
import pathlib
import re

import numpy as np
import xxhash

from alignment.errors import InputError, one_of
from data import fields, records
from data.pictures import image_files, image_sources, transforms

WORDS = 256  # W; words that share a place are taken for one
NEEDED = ("image", "text")
READ = (*NEEDED, "class", "subset")


@dataclasses.dataclass(frozen=True)
class Captions:
    """Pairs that could be read.

    Attributes:
        image_ND: pictures squeezed to a square, from -1 to 1, row by row.
        text_NW: word counts, of length 1.
        classes: of each pair; without such a column every text is a class of its own.
        has_classes: whether there is such a column.
        subsets: train, val or test of each pair; empty without such a column.
        bad: pairs set aside.
    """

    image_ND: np.ndarray
    text_NW: np.ndarray
    classes: list[str]
    has_classes: bool
    subsets: list[str]
    bad: tuple[records.BadRecord, ...]


def read(path: str, *, side: int) -> Captions:
    """A table (.tsv, .csv, .jsonl) with the columns image (a file beside the table), text, and perhaps class, subset.

    Args:
        side: pixels that pictures are squeezed to.

    Raises:
        InputError: a missing column or file, a picture outside of the table's folder, a subset that is none, more pairs
            that cannot be read than `records.MAX_BAD`.
    """
    rows, unread = records.read(path)
    names = list(dict.fromkeys(name for row in rows for name in row.value))  # a line of JSON may lack some
    for name in NEEDED:
        one_of("column", name, names, hint=f"{path} must have image and text, and may have class and subset")
    base, bad, images, texts, classes, subsets = pathlib.Path(path).expanduser().parent, list(unread), [], [], [], []
    for row in rows:
        where = f"{row.file}:{row.line}"
        words, file, label, subset = (_cell(row, name) for name in (*reversed(NEEDED), "class", "subset"))
        lacking = [name for name in names if name in READ and not _cell(row, name)]
        if lacking:
            bad.append(records.BadRecord(row.file, row.line, f"the {lacking[0]} is empty"))
            continue
        file = image_sources.below(base, file, where=where)
        try:
            picture = image_files.read(str(file), at_least=(side, side))
        except (InputError, OSError) as e:
            bad.append(records.BadRecord(row.file, row.line, f"{file}: {e}"))
            continue
        squeezed = transforms.resize(picture, (side, side), keeps_shape=False)
        images.append(squeezed.astype(np.float32).ravel() / 127.5 - 1)
        texts.append(hashed(words))
        classes.append(label or words)
        if "subset" in names:
            word = subset.lower()
            subsets.append(one_of(f"{where}: subset", image_sources.SAME_SPLIT.get(word, word), image_sources.SPLITS))
    records.check_bad(bad, len(rows) + len(unread), records.MAX_BAD)
    return Captions(np.stack(images), np.stack(texts), classes, "class" in names, subsets, tuple(bad))


def _cell(row: records.Record, name: str) -> str:
    try:
        return fields.text(row.value.get(name), name).strip()
    except fields.Odd as e:
        raise InputError(f"{row.file}:{row.line}: {e}") from None


def hashed(text: str) -> np.ndarray:
    """Counts of the text's words at their hashed places, float32 [W] of length 1."""
    counts_W = np.zeros(WORDS, np.float32)
    for word in re.findall(r"\w+", text.lower()):
        counts_W[xxhash.xxh3_64_intdigest(word) % WORDS] += 1
    return counts_W / max(float(np.linalg.norm(counts_W)), 1e-6)
