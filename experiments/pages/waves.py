"""What a run of waves.py leaves behind: points, the leaderboard, identification, curves of P over Q, and a radar.

A row is one of `cells.through`: a mark under an attack of a strength.
"""

import math
import pathlib
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from alignment import files
from alignment.watermark import protocol, quality
from experiments.image_watermarks import attacks, cells, given
from experiments.report import charts, pictures

LEVELS = (0.95, 0.7, 0.4)
RANKED_BY = (0.7, 0.4)  # the rule that gives the published ranks: these, then the means of P and Q
P_LEVELS = (1e-3, 1e-6)
Row = Mapping[str, Any]


def write(
    folder: pathlib.Path, rows: Sequence[Row], *, subset: str, users: Sequence[int], names: Sequence[str], setup: str
) -> dict[str, Any]:
    """All tables and pictures of a run; returns its summary.

    Args:
        subset: of the metrics that Q is made of.
        users: numbers among whom a user is identified.
        names: of the pictures, in their order.
    """
    points = points_of(rows, subset)
    ran = {row["mark"] for row in rows} | {row["attack"] for row in rows}
    board = leaderboard(points)
    files.write_rows(folder / "tables/leaderboard.jsonl", [_printable(line) for line in board] + not_run(ran))
    files.write_csv(folder / "leaderboard.csv", list(board[0]), [list(_printable(line).values()) for line in board])
    files.write_csv(folder / "points.csv", list(points[0]), [list(point.values()) for point in points])
    files.write_json(folder / "normalisation.json", constants(subset))
    files.write_table(folder, "identification", identification(rows, users))
    files.write_table(folder, "p_values", p_values(rows))
    files.write_rows(folder / "tables/not_finite.jsonl", not_finite(rows, names))
    by_category = categories(board)
    files.write_rows(folder / "tables/categories.jsonl", by_category)
    failed = [row for row in rows if "error" in row]
    files.write_rows(folder / "tables/failed.jsonl", failed)
    files.write_rows(folder / "metrics.jsonl", steps(points))
    for mark in dict.fromkeys(point["mark"] for point in points):
        draw_curves(folder / f"figures/curves_{mark}.png", [p for p in points if p["mark"] == mark], subset)
    draw_radar(folder / "figures/radar.png", by_category)
    draw_spread(folder / "figures/quality.png", points, subset)
    clean = {row["mark"]: row for row in rows if row["attack"] == cells.NONE}
    lines = findings(rows, subset=subset, names=names, setup=setup)
    files.write_text(folder / "findings.txt", "".join(f"{line}\n" for line in lines))
    return summary(points, board, clean, len(rows), len(failed), len(names))


def points_of(rows: Sequence[Row], subset: str) -> list[dict[str, Any]]:
    """A line for each cell with an attack: P, the metrics and Q; blank where the cell failed."""
    clean = {row["mark"]: row for row in rows if row["attack"] == cells.NONE}
    more = [name for name in given.MEASURES if any(name in row for row in rows)]
    out = []
    for row in rows:
        if row["attack"] == cells.NONE:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the findings say once what few pictures mean
            performance = cells.performance(row, clean[row["mark"]])
        metrics = {name: row.get(name) for name in (*quality.METRICS, *more)}
        values = {name: metrics.get(name) for name in quality.SUBSETS[subset]}
        q = None if None in values.values() else quality.degradation(values, subset)
        point = {"mark": row["mark"], "attack": row["attack"], "strength": row["strength"]} | performance
        out.append(point | metrics | {subset: q, "Q": q, "nmi_undefined": row.get("nmi_undefined")})
    return out


def leaderboard(points: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each mark and attack with its rank, the strongest first; without a point it has no rank."""
    out = []
    for mark in dict.fromkeys(point["mark"] for point in points):
        lines = {}
        for attack in dict.fromkeys(point["attack"] for point in points):
            curve = [p for p in points if (p["mark"], p["attack"]) == (mark, attack)]
            curve = [p for p in curve if p["P"] is not None and p["Q"] is not None]
            ps, qs = [p["P"] for p in curve], [p["Q"] for p in curve]
            line: dict[str, Any] = {"mark": mark, "attack": attack, "rank": None}
            for level in LEVELS:
                line[f"Q@{level:g}P"] = protocol.quality_at(qs, ps, level) if curve else None
            line |= {"mean P": float(np.mean(ps)) if curve else None, "mean Q": float(np.mean(qs)) if curve else None}
            lines[attack] = line
        keys = {
            attack: (*(line[f"Q@{level:g}P"] for level in RANKED_BY), line["mean P"], line["mean Q"])
            for attack, line in lines.items()
            if line["mean P"] is not None
        }
        for attack, rank in protocol.ranks(keys).items():
            lines[attack]["rank"] = rank
        out += sorted(lines.values(), key=lambda line: line["rank"] or math.inf)
    return out


def not_run(ran: Collection[str]) -> list[dict[str, Any]]:
    """Lines of the paper's marks and attacks whose weights are not there.

    Args:
        ran: marks and attacks of the run.
    """
    missing = [mark for mark in attacks.MISSING_MARKS if mark not in ran]
    return [{"mark": mark, "attack": attacks.NOT_RUN, "rank": None} for mark in missing] + [
        {"mark": attacks.NOT_RUN, "attack": attack, "rank": None} for attack in attacks.MISSING if attack not in ran
    ]


def identification(rows: Sequence[Row], users: Sequence[int]) -> list[dict[str, Any]]:
    """For marks of bits and of rings, the share of marked pictures whose user is told apart from all others.

    Informed detection has no line: it reads one user's key after the other. `drawn, of` is by simulation, five times.
    It is blank for rings, as `bits right` is.
    """
    out = []
    for row in rows:
        num_bits, chances = row.get("num_bits"), row.get("chances")
        if "marked" not in row or not (num_bits or chances):
            continue
        line = {"mark": row["mark"], "attack": row["attack"], "strength": row["strength"]}
        line["bits right"] = 1 - float(np.mean(row["marked"])) if num_bits else None
        for num in users:
            if num_bits:
                line[f"of {num:,}"] = protocol.identified(np.array(row["marked"]), num_bits, num)
            else:
                line[f"of {num:,}"] = protocol.alone(np.array(chances), num)
        for num in users:
            drawn = protocol.identified_among_drawn(np.array(row["marked"]), num_bits, num) if num_bits else None
            line[f"drawn, of {num:,}"] = drawn
        out.append(line)
    return out


def p_values(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each cell and each side that it measured, the median p-value and the shares below two levels.

    A detector by p-value needs no unmarked pictures; where their share below a level exceeds it, its assumption fails.
    """
    out = []
    for row in rows:
        for side in ("marked", "unmarked"):
            p = np.array(row.get(f"p_{side}", []))
            if len(p):
                line = {"mark": row["mark"], "attack": row["attack"], "strength": row["strength"], "pictures": side}
                line["median p"] = float(np.median(p))
                out.append(line | {f"p below {level:g}": float(np.mean(p < level)) for level in P_LEVELS})
    return out


def not_finite(rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, Any]]:
    """A line for each picture of a cell whose metric is not finite; a metric of all pictures names them so."""
    return [
        {"mark": row["mark"], "attack": row["attack"], "strength": row["strength"], "metric": metric}
        | {"picture": names[i] if isinstance(i, int) else i}
        for row in rows
        for metric, bad in row.get("not_finite", {}).items()
        for i in bad
    ]


def categories(board: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean P of each mark over the attacks of a category."""
    out = []
    for mark in dict.fromkeys(line["mark"] for line in board):
        for category, names in attacks.CATEGORIES.items():
            ps = [line["mean P"] for line in board if line["mark"] == mark and line["attack"] in names]
            ps = [p for p in ps if p is not None]
            if ps:
                out.append({"mark": mark, "category": category, "mean P": float(np.mean(ps)), "attacks": len(ps)})
    return out


def steps(points: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean P and Q of each mark over attacks, a step for each position of a strength, from weak to strong."""
    out: dict[int, dict[str, list[float]]] = {}
    counts: dict[tuple[str, str], int] = {}
    for point in points:
        key = point["mark"], point["attack"]
        counts[key] = counts.get(key, 0) + 1
        values = out.setdefault(counts[key], {})
        if point["P"] is not None and point["Q"] is not None:
            values.setdefault(f"p/{point['mark']}", []).append(point["P"])
            values.setdefault(f"q/{point['mark']}", []).append(point["Q"])
    return [
        {"step": step, **{name: float(np.mean(numbers)) for name, numbers in values.items()}}
        for step, values in sorted(out.items())
    ]


def constants(subset: str) -> dict[str, Any]:
    """How Q is made, for the reader of points.csv."""
    names = quality.SUBSETS[subset]
    total = sum(quality.CONSTANTS[name][2] for name in names)
    return {
        "subset": subset,
        "at": [0.1, 0.9],
        "metrics": {
            name: {"at 0.1": low, "at 0.9": high, "weight": weight / total}
            for name, (low, high, weight) in quality.CONSTANTS.items()
            if name in names
        },
    }


def findings(rows: Sequence[Row], *, subset: str, names: Sequence[str], setup: str) -> list[str]:
    """What a reader must know of these numbers."""
    is_whole = "as the paper's" if subset == "Q8" else "it is not the paper's Q8"
    lines = [f"Set-up: {setup}. Q is {subset}: {', '.join(quality.SUBSETS[subset])}; {is_whole}."]
    if len(names) <= 1 / protocol.FPR:
        lines.append(
            f"With {len(names)} unmarked pictures a false positive rate below {100 * protocol.FPR:g} % means none at "
            "all: P is the share of marked pictures that are nearer than every unmarked one."
        )
    failed = sum("error" in row for row in rows)
    if failed:
        lines.append(f"{failed} of {len(rows)} cells failed; tables/failed.jsonl says why. Their numbers are blank.")
    undefined = sum(row.get("nmi_undefined", 0) for row in rows)
    if undefined:
        lines.append(f"NMI is not defined for {undefined} pairs of constant pictures; means leave them out.")
    bad = not_finite(rows, names)
    if bad:
        first = bad[0]
        lines.append(
            f"A metric is not finite, and blank, {len(bad)} times, first {first['metric']} of {first['picture']} under "
            f"{first['attack']} ({first['mark']}); tables/not_finite.jsonl names every picture."
        )
    ran = {row["mark"] for row in rows} | {row["attack"] for row in rows}
    number = len(set(attacks.MISSING) - ran)
    missing = [*(mark for mark in attacks.MISSING_MARKS if mark not in ran), f"{number} of the paper's attacks"]
    lines.append(
        f"{', '.join(missing)}: {attacks.NOT_RUN}. Attacks that end "
        "in -Small use networks trained here, those in -Own a user's; they compare with none of the paper's."
    )
    return lines


def summary(
    points: Sequence[Row],
    board: Sequence[Row],
    clean: Mapping[str, Row],
    num_cells: int,
    num_failed: int,
    num_images: int,
) -> dict[str, Any]:
    """`tpr` at the middle strength, ranks, and what a mark itself costs."""
    out: dict[str, Any] = {"cells": num_cells, "failed": num_failed, "images": num_images}
    curves: dict[tuple[str, str], list[Row]] = {}
    for point in points:
        curves.setdefault((point["mark"], point["attack"]), []).append(point)
    out |= {f"tpr/{mark}/{attack}": curve[len(curve) // 2]["P"] for (mark, attack), curve in curves.items()}
    out |= {f"rank/{line['mark']}/{line['attack']}": line["rank"] for line in board}
    out |= {f"psnr/{mark}": row.get("psnr") for mark, row in clean.items()}
    return {name: value for name, value in out.items() if value is not None}


def _printable(line: Row) -> dict[str, Any]:
    """Infinities in words, since JSON has none."""
    return {
        name: str(value) if isinstance(value, float) and math.isinf(value) else value for name, value in line.items()
    }


def draw_curves(path: pathlib.Path, points: Sequence[Row], subset: str) -> None:
    """P over Q of one mark, a line an attack; dashed from the ninth attack on, since colours come again."""
    figure, axes = pictures.canvas(7.6, 4.2, x=f"loss of quality, {subset}", y="detected at 0.1 % false positives")
    for k, attack in enumerate(dict.fromkeys(point["attack"] for point in points)):
        curve = [p for p in points if p["attack"] == attack and p["P"] is not None and p["Q"] is not None]
        colour = charts.PALETTE[k % len(charts.PALETTE)]
        dash = "-" if k < len(charts.PALETTE) else "--"
        axes.plot([p["Q"] for p in curve], [p["P"] for p in curve], dash, color=colour, marker="o", ms=3, label=attack)
    for level in LEVELS[:2]:
        axes.axhline(level, color="k", linewidth=0.6, linestyle=":")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    mark = points[0]["mark"]
    pictures.save(figure, path, f"{mark}: performance against quality; dotted: the levels 0.95 and 0.7.")


def draw_radar(path: pathlib.Path, lines: Sequence[Row]) -> None:
    """Mean P of each category as a star, a colour a mark."""
    names = list(dict.fromkeys(line["category"] for line in lines))
    if not names:
        return
    p = {(line["mark"], line["category"]): line["mean P"] for line in lines}
    stars = {mark: [p.get((mark, name), math.nan) for name in names] for mark in dict.fromkeys(mark for mark, _ in p)}
    pictures.radar(path, names, stars, caption="Mean performance by category of attack; outside is robust.")


def draw_spread(path: pathlib.Path, points: Sequence[Row], subset: str) -> None:
    """How Q lies in each category."""
    by_category = {
        name: [p["Q"] for p in points if p["attack"] in names and p["Q"] is not None]
        for name, names in attacks.CATEGORIES.items()
    }
    by_category = {name: values for name, values in by_category.items() if len(values) > 1}
    if not by_category:
        return
    figure, axes = pictures.canvas(6.0, 3.2, x=f"loss of quality, {subset}")
    axes.violinplot(list(by_category.values()), orientation="horizontal", showmedians=True)
    axes.set_yticks(range(1, len(by_category) + 1), list(by_category), fontsize=7)
    pictures.save(figure, path, "Loss of quality by category of attack, over marks and strengths.")


METRICS = {
    "tpr/*": ("share of marked pictures detected at 0.1 % false positives, at the attack's middle strength", "higher"),
    "rank/*": ("place of the attack on this mark; 1 is the strongest", ""),
    "psnr/*": ("dB between pictures and marked pictures, before any attack", "higher"),
    "p/*": ("mean share detected over attacks; a step is a strength, from weak to strong", "higher"),
    "q/*": ("mean loss of quality over attacks; a step is a strength, from weak to strong", "lower"),
    "cells": ("marks times attacks times strengths, and each mark without an attack", ""),
    "failed": ("cells that ended with an error; their numbers are blank", "lower"),
    "images": ("pictures that each cell reads", ""),
}


def headline(numbers: Mapping[str, float]) -> str:
    """The page's first sentence."""
    means: dict[str, list[float]] = {}
    for name, value in numbers.items():
        kind, _, rest = name.partition("/")
        if kind == "tpr":
            means.setdefault(rest.partition("/")[0], []).append(value)
    if not means:
        return "No cell of this run could be measured."
    best = sorted(means, key=lambda mark: -float(np.mean(means[mark])))
    words = ", ".join(f"{mark} {float(np.mean(means[mark])):.2f}" for mark in best)
    attacks_words = f"{max(map(len, means.values()))} attacks at their middle strength"
    return f"Detected at 0.1 % false positives, mean over {attacks_words}: {words}; {numbers['images']:,.0f} pictures."
