"""Counting what became of documents: per source, rule and action, with histograms and a fixed sample of each.

A tally is a plain dict of JSON values, so that a slice's counts travel in its manifest row; `merge` adds two. The
sample keeps the documents whose hashed id is smallest, and so does not depend on slices, workers or order.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xxhash

TEXT_SHOWN = 400  # characters of a sampled document
BINS = 20


def empty() -> dict[str, Any]:
    return {"sources": {}, "counters": {}, "histograms": {}, "samples": {}}


def count(tally: dict[str, Any], source: str, outcome: str, num_bytes: int, reason: str = "") -> None:
    """One document more of a source: `outcome` is in, keep, rewrite, synthesise, drop or bad; bytes of UTF-8."""
    card = tally["sources"].setdefault(source, {})
    for name in (outcome, f"{outcome}/{reason}") if reason else (outcome,):
        docs, size = card.get(name, (0, 0))
        card[name] = [docs + 1, size + num_bytes]


def add(tally: dict[str, Any], name: str, number: int = 1) -> None:
    """A counter, such as documents without URL that a URL rule passed over."""
    tally["counters"][name] = tally["counters"].get(name, 0) + number


def histogram(tally: dict[str, Any], name: str, values: Iterable[float], low: float, high: float) -> None:
    """Values into BINS equal bins of [low, high]; what lies outside counts in the first or last.

    Their sum is kept in whole millionths, so that adding in another order gives the same.
    """
    fresh = {"low": low, "high": high, "counts": [0] * BINS, "millionths": 0}
    found = tally["histograms"].setdefault(name, fresh)
    for value in values:
        found["counts"][min(BINS - 1, max(0, int((value - low) / (high - low) * BINS)))] += 1
        found["millionths"] += round(value * 1e6)


def mean(found: Mapping[str, Any]) -> float:
    """Of the values of a histogram."""
    return found["millionths"] / 1e6 / max(sum(found["counts"]), 1)


def sample(tally: dict[str, Any], group: str, id: str, row: Mapping[str, Any], most: int) -> None:
    """Keep `row` as an example of `group` if its id is among the `most` with the smallest hash."""
    kept = tally["samples"].setdefault(group, [])
    key = xxhash.xxh64_hexdigest(id.encode("utf-8", "surrogatepass"))
    if most < 1 or (len(kept) == most and key >= kept[-1][0]):
        return
    short = {k: v[:TEXT_SHOWN] if isinstance(v, str) else v for k, v in row.items()}
    kept[:] = heapq.nsmallest(most, [*kept, [key, short]], key=_hashed)


def merge(tallies: Iterable[Mapping[str, Any]], most: int) -> dict[str, Any]:
    """All of them as one; the same whatever their order."""
    total = empty()
    for one in tallies:
        for source, card in one["sources"].items():
            mine = total["sources"].setdefault(source, {})
            for name, (docs, size) in card.items():
                before = mine.get(name, (0, 0))
                mine[name] = [before[0] + docs, before[1] + size]
        for name, number in one["counters"].items():
            add(total, name, number)
        for name, found in one["histograms"].items():
            fresh = found | {"counts": [0] * len(found["counts"]), "millionths": 0}
            mine = total["histograms"].setdefault(name, fresh)
            mine["counts"] = [a + b for a, b in zip(mine["counts"], found["counts"], strict=True)]
            mine["millionths"] += found["millionths"]
        for group, rows in one["samples"].items():
            kept = total["samples"].setdefault(group, [])
            kept[:] = heapq.nsmallest(most, [*kept, *rows], key=_hashed)
    return total


def totals(tally: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    """{outcome or outcome/reason: (documents, bytes)} over all sources."""
    found: dict[str, Sequence[int]] = {}
    for card in tally["sources"].values():
        for name, (docs, size) in card.items():
            before = found.get(name, (0, 0))
            found[name] = (before[0] + docs, before[1] + size)
    return found


def _hashed(item) -> tuple[str, str]:
    return item[0], str(item[1].get("id", ""))
