"""What a search of phtest.py found beside plain draws of the same writer: counts and rates, and no prompt.

A row is a line of search/candidates.jsonl.
"""

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from alignment import files, intervals
from alignment.evaluation import aspects
from data.texts.suites import CONTROVERSIAL, HARMFUL, HARMLESS
from experiments.report import charts, pictures
from experiments.safety.prompt_writing import SAMPLED, SEARCHED
from experiments.safety.sifting import DISPUTED, DROPS

Row = Mapping[str, Any]


def write(folder: pathlib.Path, rows: Sequence[Row]) -> dict[str, Any]:
    """The tables and the picture of a search; prints its yields and returns what the summary has of them."""
    lines = [line_of(method, [row for row in rows if row["method"] == method]) for method in (SEARCHED, SAMPLED)]
    files.write_table(folder, "search", lines)
    draw_yields(folder / "figures/search.png", lines)
    for line in lines:
        print(
            f"{line['method']}: {line['found']} harmless prompts that are refused, of {line['candidates']} written in "
            f"{line['calls']:,} calls: {line['per_1000_calls']:.3g} per 1,000 calls ({line['low']:.3g} to "
            f"{line['high']:.3g})",
            flush=True,
        )
    return summary(rows, lines)


def line_of(method: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Counts of one method: what was written, what each filter took, the labels, and the yield with its interval."""
    dropped, labels = Counter(row["dropped"] for row in rows), Counter(row["label"] for row in rows)
    calls = sum(row["calls"] for row in rows)
    low, high = intervals.wilson(labels[HARMLESS], calls)
    return {
        "method": method,
        "candidates": len(rows),
        **{name: dropped[name] for name in DROPS},
        "refused": sum(bool(row["refused"]) for row in rows),
        **{name: labels[name] for name in (CONTROVERSIAL, HARMFUL, DISPUTED)},
        "found": labels[HARMLESS],
        "calls": calls,
        "per_1000_calls": 1_000 * labels[HARMLESS] / calls if calls else 0.0,
        "low": 1_000 * low,
        "high": 1_000 * high,
    }


def summary(rows: Sequence[Row], lines: Sequence[Row]) -> dict[str, Any]:
    """Numbers of the search under plain names, those of plain draws behind `_by_sampling`."""
    searched, sampled = lines
    votes = [list(row["votes"].values()) for row in rows if row["votes"]]
    return {
        "found": searched["found"],
        "found_by_sampling": sampled["found"],
        "candidates": searched["candidates"],
        "candidates_by_sampling": sampled["candidates"],
        "calls": searched["calls"],
        "calls_by_sampling": sampled["calls"],
        "found_per_1000_calls": searched["per_1000_calls"],
        "found_per_1000_calls_by_sampling": sampled["per_1000_calls"],
        "fleiss_kappa": aspects.fleiss_kappa(votes),
    }


def draw_yields(path: pathlib.Path, lines: Sequence[Row]) -> None:
    """Harmless refused prompts per 1,000 calls as bars, with intervals."""
    figure, axes = pictures.canvas(4.6, 1.6, x="harmless prompts that are refused, per 1,000 calls")
    values = [line["per_1000_calls"] for line in lines]
    axes.barh(range(len(lines)), values, color=charts.PALETTE[: len(lines)])
    low, high = ([line[end] for line in lines] for end in ("low", "high"))
    pictures.add_intervals(axes, values, range(len(lines)), low, high)
    pictures.name_rows(axes, [f"{line['method']} (n={line['candidates']})" for line in lines])
    caption = "Prompts found by search and by plain draws of the same writer, in as many calls; 95 % Wilson intervals."
    pictures.save(figure, path, caption)


METRICS = {
    "found": ("distinct harmless prompts that the search wrote and the searched model refuses", "higher"),
    "found_by_sampling": ("the same of plain draws that cost as many calls", ""),
    "candidates": ("prompts that the search wrote", ""),
    "candidates_by_sampling": ("prompts that were drawn", ""),
    "calls": ("passes of one sequence through a model while the search wrote; a backward pass counts as two", ""),
    "calls_by_sampling": ("the same of the plain draws", ""),
    "found_per_1000_calls": ("distinct harmless prompts that are refused, per 1,000 calls of the search", "higher"),
    "found_per_1000_calls_by_sampling": ("the same of plain draws", ""),
    "fleiss_kappa": ("agreement beyond chance of those who said which prompts are harmless", ""),
}


def sentence(numbers: Mapping[str, float]) -> str:
    """A sentence for the page's head; "" where nothing was searched."""
    if "found" not in numbers:
        return ""
    return (
        f" The search found {numbers['found']:,.0f} harmless prompts that the searched model refuses, plain draws "
        f"{numbers['found_by_sampling']:,.0f} in as many calls."
    )
