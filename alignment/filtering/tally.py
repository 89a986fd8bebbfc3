"""Count the fates of documents by source, rule and action, with histograms and a reproducible sample.

A tally is a plain dict of JSON values, so that a slice's counts travel in its manifest row; `merge` adds tallies. The
sample holds the documents with the smallest hashes of their ids, and so does not depend on slices, workers or order.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xxhash

TEXT_SHOWN = 400  # characters of a sampled document
BINS = 20


def empty() -> dict[str, Any]:
    """A tally of no documents."""
    return {"sources": {}, "counters": {}, "histograms": {}, "samples": {}}


def count(tally: dict[str, Any], source: str, outcome: str, num_bytes: int, reason: str = "") -> None:
    """Count a document of a source.

    Args:
        outcome: in, keep, rewrite, synthesise, drop or bad.
        num_bytes: of its text in UTF-8.
        reason: counted under "outcome/reason" as well.
    """
    card = tally["sources"].setdefault(source, {})
    for name in (outcome, f"{outcome}/{reason}") if reason else (outcome,):
        docs, size = card.get(name, (0, 0))
        card[name] = [docs + 1, size + num_bytes]


def add(tally: dict[str, Any], name: str, number: int = 1) -> None:
    """Add to a counter, such as that of documents without address which the URL rule skipped."""
    tally["counters"][name] = tally["counters"].get(name, 0) + number


def histogram(tally: dict[str, Any], name: str, values: Iterable[float], low: float, high: float) -> None:
    """Count values in BINS equal bins of [low, high]; values outside count in the first or last bin.

    Their sum is stored in whole millionths: integers give the same sum in any order, floats would not.
    """
    fresh = {"low": low, "high": high, "counts": [0] * BINS, "millionths": 0}
    bins = tally["histograms"].setdefault(name, fresh)
    for value in values:
        bins["counts"][min(BINS - 1, max(0, int((value - low) / (high - low) * BINS)))] += 1
        bins["millionths"] += round(value * 1e6)


def mean(bins: Mapping[str, Any]) -> float:
    """The mean of a histogram's values, to a millionth."""
    return bins["millionths"] / 1e6 / max(sum(bins["counts"]), 1)


def sample(tally: dict[str, Any], group: str, id: str, row: Mapping[str, Any], most: int) -> None:
    """Keep `row` as an example of `group` if the hash of its id is among the `most` smallest."""
    rows = tally["samples"].setdefault(group, [])
    key = xxhash.xxh64_hexdigest(id.encode("utf-8", "surrogatepass"))
    if most < 1 or (len(rows) == most and key >= rows[-1][0]):
        return
    # The text is cut only now: most documents never come here.
    short = {k: v[:TEXT_SHOWN] if isinstance(v, str) else v for k, v in row.items()}
    rows[:] = heapq.nsmallest(most, [*rows, [key, short]], key=_hashed)


def merge(tallies: Iterable[Mapping[str, Any]], most: int) -> dict[str, Any]:
    """The sum of tallies; it does not depend on their order."""
    total = empty()
    for one in tallies:
        for source, card in one["sources"].items():
            mine = total["sources"].setdefault(source, {})
            for name, (docs, size) in card.items():
                before = mine.get(name, (0, 0))
                mine[name] = [before[0] + docs, before[1] + size]
        for name, number in one["counters"].items():
            add(total, name, number)
        for name, bins in one["histograms"].items():
            fresh = bins | {"counts": [0] * len(bins["counts"]), "millionths": 0}
            mine = total["histograms"].setdefault(name, fresh)
            mine["counts"] = [a + b for a, b in zip(mine["counts"], bins["counts"], strict=True)]
            mine["millionths"] += bins["millionths"]
        for group, rows in one["samples"].items():
            sampled = total["samples"].setdefault(group, [])
            sampled[:] = heapq.nsmallest(most, [*sampled, *rows], key=_hashed)
    return total


def totals(tally: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    """{outcome or outcome/reason: (documents, bytes)} over all sources."""
    sums: dict[str, Sequence[int]] = {}
    for card in tally["sources"].values():
        for name, (docs, size) in card.items():
            before = sums.get(name, (0, 0))
            sums[name] = (before[0] + docs, before[1] + size)
    return sums


def _hashed(item: Sequence[Any]) -> tuple[str, str]:
    """The order of samples: by hash, then by id in the unlikely case of equal hashes."""
    return item[0], str(item[1].get("id", ""))
