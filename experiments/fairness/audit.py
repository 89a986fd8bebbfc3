"""How evenly somebody's model served places: rates of a 0/1 outcome by place, without any training."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment import files, intervals
from alignment.fairness import measures
from data.places import Samples
from experiments.report import maps

PARTITIONINGS = ((5, 5), (10, 10), (20, 20))  # where a config has none
LEAST = 30  # samples of a cell, where a config has None


def write(
    folder: pathlib.Path, samples: Samples, *, partitionings: Sequence[tuple[int, int]], least: int | None
) -> dict[str, float | None]:
    """Tables and a map of the outcome's rate by place; returns numbers for the summary.

    Args:
        partitionings: rows and columns that the whole area is cut into; () takes PARTITIONINGS.
        least: samples that a cell needs; None takes LEAST.
    """
    partitionings, least = partitionings or PARTITIONINGS, LEAST if least is None else least
    assert samples.outcome_N is not None
    right_N, xy_N2 = samples.outcome_N, samples.xy_N2
    low, high = xy_N2.min(0), xy_N2.max(0)
    box = np.array([*low, *high])
    lines = measures.over_partitionings(
        right_N,
        np.ones_like(right_N),
        xy_N2,
        np.zeros(len(right_N), np.int64),
        box[None],
        partitionings,
        least=least,
        measure=measures.ACCURACY,
    )
    finest = max(partitionings, key=lambda pair: pair[0] * pair[1])
    cells = by_cell(right_N, xy_N2, box, finest, least)
    lines = [{name: value for name, value in line.items() if name != "tasks"} for line in lines]
    files.write_rows(folder / "tables/audit.jsonl", lines)
    columns = ("row", "column", "n", "rate", "low", "high", "differs")
    files.write_csv(folder / "audit.csv", columns, [[cell[name] for name in columns] for cell in cells])
    overall = float(right_N.mean())
    draw(folder / "figures/audit.png", cells, overall, samples.is_degrees)
    lf = [line["lf"] for line in lines if "lf" in line]
    out: dict[str, float | None] = {"audit/rate": overall, "audit/samples": float(len(right_N))}
    out |= {"audit/places": float(len(cells)), "audit/places_apart": float(sum(cell["differs"] for cell in cells))}
    if lf:
        out["audit/lf"] = float(np.mean(lf))
    if cells:
        out["audit/worst"] = min(cell["rate"] for cell in cells)
    return out


def by_cell(
    right_N: np.ndarray, xy_N2: np.ndarray, box: np.ndarray, partitioning: tuple[int, int], least: int
) -> list[dict[str, Any]]:
    """The rate of each cell with enough samples, its 95 % interval, and whether that leaves out the rate of all."""
    rows, columns = partitioning
    cell_N = measures.cells(xy_N2, box, rows, columns)
    overall = float(right_N.mean())
    width, height = (box[2] - box[0]) / columns, (box[3] - box[1]) / rows
    out = []
    for cell in np.unique(cell_N).tolist():
        inside = right_N[cell_N == cell]
        if len(inside) < least:
            continue
        low, high = intervals.wilson(int(inside.sum()), len(inside))
        row, column = divmod(cell, columns)
        west, south = box[0] + column * width, box[1] + row * height
        out.append(
            {
                "row": row,
                "column": column,
                "n": len(inside),
                "rate": float(inside.mean()),
                "low": low,
                "high": high,
                "differs": not low <= overall <= high,
                "box": (west, south, west + width, south + height),
            }
        )
    return out


def draw(path: pathlib.Path, cells: Sequence[Mapping[str, Any]], overall: float, is_degrees: bool) -> None:
    """Cells by their rate on the ground, those that differ from the rate of all with an edge."""
    if not cells:
        return
    panel = maps.Panel(
        "rate",
        np.array([cell["box"] for cell in cells]),
        np.array([cell["rate"] for cell in cells]),
        edged_P=np.array([cell["differs"] for cell in cells]),
        centre=overall,
    )
    caption = f"Rate of the outcome by place about {overall:.3f}, that of all. Edged: its 95 % interval is apart."
    maps.draw(path, [panel], is_degrees=is_degrees, caption=caption)


METRICS = {
    "audit/rate": ("share of all samples whose outcome is 1", "higher"),
    "audit/samples": ("samples with an outcome and a place", ""),
    "audit/places": ("cells of the finest partitioning with enough samples", ""),
    "audit/places_apart": (
        "of these, cells whose 95 % interval leaves out the rate of all; by chance 5 %",
        "lower",
    ),
    "audit/lf": ("mean over partitionings of the mean distance of the cells' rates from that of all", "lower"),
    "audit/worst": ("the lowest rate of a cell of the finest partitioning", "higher"),
}


def headline(numbers: Mapping[str, float]) -> str:
    """The page's first sentence where nothing was trained."""
    parts = [f"The outcome is 1 for {numbers['audit/rate']:.3f} of {numbers['audit/samples']:,.0f} samples"]
    if "audit/lf" in numbers:
        parts.append(f"places lie {numbers['audit/lf']:.3f} from it on average")
    if "audit/worst" in numbers:
        parts.append(
            f"the lowest at {numbers['audit/worst']:.3f}, and {numbers['audit/places_apart']:.0f} of "
            f"{numbers['audit/places']:.0f} differ by more than chance"
        )
    else:
        parts.append("no cell of the finest partitioning has enough samples")
    return "; ".join(parts) + "."
