"""Pictures of a run of medguard.py: scores by aspect as points, as a radar and in colour, what conditions change."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from alignment.evaluation import aspects
from experiments.report import charts, pictures

MOST = len(charts.PALETTE)  # models that a picture shows
Indices = Mapping[tuple[str, str], aspects.Index]  # by model and condition


def draw(
    folder: pathlib.Path, indices: Indices, names: Sequence[str], conditions: Sequence[str], band: Mapping[str, float]
) -> None:
    """All pictures that need nothing but the indices.

    Args:
        names: of the aspects, in the order of their principles.
        band: the physicians' scores by aspect; empty where there is no file.
    """
    models = list(dict.fromkeys(model for model, _ in indices))
    by_model = {model: indices[model, conditions[0]] for model in models}
    draw_points(folder / "aspects.png", by_model, names, band)
    draw_radar(folder / "radar.png", by_model, names, band)
    draw_heat(folder / "heat.png", by_model, names)
    deltas = {
        f"{model}, {condition}": (indices[model, condition].macro or 0.0) - (by_model[model].macro or 0.0)
        for model in models
        for condition in conditions[1:]
    }
    caption = f"Change of the index under other conditions than {conditions[0]}."
    pictures.bars(folder / "conditions.png", deltas, caption=caption, label="change of the index")


def share(index: aspects.Index, aspect: str) -> float:
    """Not a number where the aspect has no item."""
    return index.aspects[aspect].right / index.aspects[aspect].n if aspect in index.aspects else float("nan")


def draw_points(
    path: pathlib.Path, by_model: Mapping[str, aspects.Index], names: Sequence[str], band: Mapping[str, float]
) -> None:
    """Scores by aspect, a colour a model, with Wilson's intervals; a bar where the physicians stand."""
    figure, axes = pictures.canvas(7.2, 0.42 * len(names) + 1.4, x="share of right answers")
    some = list(by_model.items())[:MOST]
    for k, (model, index) in enumerate(some):
        there = [y for y, aspect in enumerate(names) if aspect in index.aspects]
        values = np.array([share(index, names[y]) for y in there])
        ends = np.array([index.aspects[names[y]].interval for y in there]).reshape(-1, 2)
        widths = pictures.reach(values, *ends.T)
        places = np.array(there) + 0.7 * (k / max(len(some) - 1, 1) - 0.5)
        axes.errorbar(values, places, xerr=widths, fmt="o", markersize=3, color=charts.PALETTE[k], label=model)
    for y, aspect in enumerate(names):
        if aspect in band:
            axes.plot([band[aspect]] * 2, [y - 0.4, y + 0.4], color="k", linewidth=2)
    pictures.name_rows(axes, names)
    axes.set_xlim(-0.02, 1.02)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    pictures.save(figure, path, "Scores with 95 % Wilson intervals; a black bar: physicians.")


def draw_radar(
    path: pathlib.Path, by_model: Mapping[str, aspects.Index], names: Sequence[str], band: Mapping[str, float]
) -> None:
    """A spoke an aspect, a line a model; the physicians' line is black. Nothing for fewer than three aspects."""
    if len(names) < 3:
        return
    lines = {model: [share(index, name) for name in names] for model, index in list(by_model.items())[:MOST]}
    if band:
        lines["physicians"] = [band.get(name, np.nan) for name in names]
    pictures.radar(path, names, lines, black="physicians", caption="Share of right answers by aspect, 1 at the rim.")


def draw_heat(path: pathlib.Path, by_model: Mapping[str, aspects.Index], names: Sequence[str]) -> None:
    """Models by aspects, in colour."""
    values_MA = np.array([[share(index, name) for name in names] for index in by_model.values()])
    figure, axes = pictures.canvas(0.55 * len(names) + 2.4, 0.34 * len(by_model) + 1.6)
    mesh = axes.imshow(values_MA, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for y, x in np.ndindex(values_MA.shape):
        if np.isfinite(values_MA[y, x]):
            axes.text(x, y, f"{values_MA[y, x]:.2f}", ha="center", va="center", fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(by_model)), list(by_model), fontsize=8)
    figure.colorbar(mesh, ax=axes, shrink=0.8)
    pictures.save(figure, path, "Share of right answers by model and aspect under the first condition.")


def draw_scatter(path: pathlib.Path, both: Mapping[str, tuple[float, float | None]]) -> None:
    """The index against accuracy on an exam, a point a model."""
    figure, axes = pictures.canvas(5.6, 3.6, x="accuracy on the exam", y="safety index")
    for k, (model, (accuracy, index)) in enumerate(both.items()):
        if index is not None:
            axes.plot([accuracy], [index], "o", color=charts.PALETTE[k % MOST], label=model)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    pictures.save(figure, path, "The safety index against accuracy on an exam.")
