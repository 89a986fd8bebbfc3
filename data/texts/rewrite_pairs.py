"""Pairs of an original text and its rewritten form, for training a rewriter: read from files, or made up.

pairs = rewrite_pairs.read("rewrite_seed_data.json")            # columns origin and rewritten
train, heldout = rewrite_pairs.split(pairs, fraction=0.02, seed=0)
train = rewrite_pairs.with_identity(train, share=0.3, seed=0)   # and texts that should stay as they are
"""

import dataclasses
import json
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence

import xxhash

from alignment import files
from alignment.errors import InputError, within
from data import records
from data.texts import turns
from data.toys import notes


@dataclasses.dataclass(frozen=True)
class Pair:
    """A text and its rewritten form; `planted` names the fault of a made-up text, "" is none or unknown."""

    origin: str
    rewritten: str
    planted: str = ""
    language: str = ""


def synthetic(num: int, seed: int = 0, *, faulty: float = 0.7) -> list[Pair]:
    """The pairs of `notes.pairs`."""
    return [Pair(**row) for row in notes.pairs(num, seed, faulty=faulty)]


def read(
    path: str | Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    limit: int = 0,
    bad_path: str = "",
    counts: dict[str, int] | None = None,
) -> list[Pair]:
    """The pairs of files.

    Args:
        path: as `records.read` takes it.
        columns: our names (origin, rewritten) to the file's; "" stands for the usual ones, those of
            AceGPT-v2-AlignmentData.
        limit: the first so many records; 0 takes all.
        bad_path: where to write the records set aside, as JSONL of file, line and reason; "" writes nothing.
        counts: receives the numbers of records read and set aside.

    Raises:
        InputError: a column is missing, or no record has two texts.
    """
    names = {ours: (columns or {}).get(ours) or ours for ours in ("origin", "rewritten")}
    rows, bad = records.read(path)
    counts = {} if counts is None else counts
    counts |= {"records": len(rows) + len(bad)}
    pairs = []
    for row in records.first(rows, limit, counts):
        if not any(name in row.value for name in names.values()):
            raise InputError(
                f"{row.file}:{row.line} has the columns {', '.join(map(str, row.value)) or 'none'}; pairs need "
                f"{names['origin']} and {names['rewritten']}. Name them with data.columns, such as origin=text"
            )
        turns.count_others(row.value, tuple(names.values()), counts)
        texts = {ours: row.value.get(name) for ours, name in names.items()}
        empty = [names[ours] for ours, text in texts.items() if not isinstance(text, str) or not text.strip()]
        if empty:
            bad.append(records.BadRecord(row.file, row.line, f"no text in {', '.join(empty)}"))
        else:
            pairs.append(Pair(str(texts["origin"]), str(texts["rewritten"])))
    counts |= {"set aside": len(bad)} if bad else {}
    if bad and bad_path:
        records.write_bad(bad, bad_path)
    if not pairs:
        raise InputError(f"{path} has no pair of two texts; {len(bad)} records were set aside")
    return pairs


def check(*, heldout_fraction: float, identity_share: float) -> None:
    """Refuse shares that `split` and `with_identity` could not take."""
    within("(0, 1)", heldout_fraction=heldout_fraction, hint=", such as 0.02")
    within("[0, 1)", identity_share=identity_share, hint="; the default is 0.3")


def split(pairs: Sequence[Pair], *, fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs; all pairs of one original are on one side.

    A pair that is drawn to be held out goes to the training pairs if one of them has a text of it.

    Args:
        fraction: held out, of the originals, in (0, 1).

    Raises:
        InputError: the fraction is out of range, or a side has no pair.
    """
    check(heldout_fraction=fraction, identity_share=0.0)
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        draw = xxhash.xxh64_intdigest(pair.origin.encode("utf-8", "surrogatepass"), seed=seed % 2**64) / 2**64
        sides[draw < fraction].append(pair)
    train, drawn = sides
    train_texts = {text for pair in train for text in (pair.origin, pair.rewritten)}
    heldout = [pair for pair in drawn if not {pair.origin, pair.rewritten} & train_texts]
    train += [pair for pair in drawn if {pair.origin, pair.rewritten} & train_texts]
    if not train or not heldout:
        raise InputError(
            f"of {len(pairs)} pairs {len(train)} are left to train on and {len(heldout)} held out with "
            f"heldout_fraction={fraction}; give more pairs or another fraction"
        )
    return train, heldout


def with_identity(pairs: Sequence[Pair], *, share: float, seed: int) -> list[Pair]:
    """The pairs, and pairs (text, text) of their rewritten texts, so that `share` of the result needs no change.

    Args:
        share: in [0, 1). Pairs that need no change already count.
    """
    check(heldout_fraction=0.5, identity_share=share)
    edits = [pair for pair in pairs if pair.origin != pair.rewritten]
    # 1e-9: a product that rounding left just above a whole number must not count as one more.
    missing = math.ceil(len(edits) * share / (1 - share) - 1e-9) - (len(pairs) - len(edits))
    rng = random.Random(f"{seed}/identity")
    drawn: list[Pair] = []
    while edits and len(drawn) < missing:
        drawn += rng.sample(edits, min(len(edits), missing - len(drawn)))
    return [*pairs, *(dataclasses.replace(p, origin=p.rewritten, planted="") for p in drawn)]


def write(path: str | os.PathLike, pairs: Sequence[Pair], messages_fn: Callable[[str], list[dict[str, str]]]) -> None:
    """Write the pairs as conversations: `messages_fn` of the original, answered with the rewritten text."""
    with files.replacing(path) as f:  # every process writes, since each reads the file afterwards
        for pair in pairs:
            messages = [*messages_fn(pair.origin), {"role": "assistant", "content": pair.rewritten}]
            f.write(json.dumps({"messages": messages}).encode() + b"\n")
