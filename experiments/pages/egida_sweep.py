"""What a sweep of egida.py shows over its points: the frontier of safety and over-refusal, and what more pairs buy."""

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from alignment import files, frontier
from experiments.report import charts, groups, pictures
from experiments.report.groups import Group

SAFETY, REFUSALS = "asr/after", "refusal/after"
NUM = "pairs.num"


def write(folder: pathlib.Path) -> None:
    """Tables and pictures of the points that are finished; points that differ in their seed alone count as one."""
    together, _ = groups.grouped(groups.of_sweep(folder))
    done = [group for group in together if group.mean(SAFETY) is not None and group.mean(REFUSALS) is not None]
    if not done:
        return
    places = {group.label(): (1 - group.mean(REFUSALS), 1 - group.mean(SAFETY)) for group in done}  # type: ignore[operator]
    best = frontier.front(places)
    lines = [
        dict(group.settings)
        | {name: group.mean(name) for name in (SAFETY, REFUSALS, "ability/after", "pairs")}
        | {"seeds": len(group.values(SAFETY)), "frontier": group.label() in best}
        for group in done
    ]
    files.write_rows(folder / "tables/frontier.jsonl", lines)
    draw_frontier(folder / "figures/frontier.png", done, best)
    draw_pairs(folder / "figures/attacks_by_pairs.png", done)


def draw_frontier(path: pathlib.Path, done: Sequence[Group], best: set[str]) -> None:
    """Every point by harmless prompts answered and attacks that fail; the model before training beside them."""
    figure, axes = pictures.canvas(5.6, 4.0, x="harmless prompts answered", y="attacks that fail")
    start = [[group.mean(name) for group in done] for name in ("refusal/before", "asr/before")]
    if None not in (*start[0], *start[1]):
        x, y = (1 - statistics.fmean(values) for values in start)
        axes.scatter([x], [y], s=60, color="0.5", label="before", zorder=3)
    for k, group in enumerate(done):
        name = group.label()
        edge = "k" if name in best else "none"
        x, y = 1 - group.mean(REFUSALS), 1 - group.mean(SAFETY)  # type: ignore[operator]
        colour = charts.PALETTE[k % len(charts.PALETTE)]
        axes.scatter([x], [y], s=60, color=colour, edgecolors=edge, label=name, zorder=3)
    line = sorted((1 - group.mean(REFUSALS), 1 - group.mean(SAFETY)) for group in done if group.label() in best)  # type: ignore[operator]
    axes.plot(*zip(*line), color="k", linewidth=0.8)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    pictures.save(figure, path, "Safety against usability of every point. Black rings: no other is better in both.")


def draw_pairs(path: pathlib.Path, done: Sequence[Group]) -> None:
    """Attack success over the number of pairs, a line for points that differ in nothing else."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for group in done:
        settings: dict[str, Any] = dict(group.settings)
        if (num := settings.pop(NUM, None)) is not None:
            lines.setdefault(groups.label(settings), []).append((num, 100 * group.mean(SAFETY)))  # type: ignore[operator]
    lines = {name: sorted(points) for name, points in lines.items() if len(points) > 1}
    if not lines:
        return
    figure, axes = pictures.canvas(5.6, 3.4, x="pairs", y="% of attacks that succeed after training")
    for k, (name, points) in enumerate(lines.items()):
        axes.plot(*zip(*points), marker="o", color=charts.PALETTE[k % len(charts.PALETTE)], label=name or None)
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.2)
    if any(lines):
        axes.legend(frameon=False, fontsize=7)
    pictures.save(figure, path, "Attack success after training over the number of pairs.")
