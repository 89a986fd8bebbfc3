"""Maps of places on their real coordinates: a rectangle a place, coloured by a number.

Dimensions: P places.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib import cm, colors
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.report import pictures


@dataclasses.dataclass(frozen=True)
class Panel:
    """One map.

    Args:
        box_P4: west, south, east, north of each place.
        value_P: its number.
        frame_T4: larger boxes to outline, such as tiles.
        edged_P: places to draw with an edge.
        centre: where the colours change from one hue to another; None runs through a single scale.
        limits: lowest and highest number of the scale; None: those of the values.
    """

    title: str
    box_P4: np.ndarray
    value_P: np.ndarray
    frame_T4: np.ndarray | None = None
    edged_P: np.ndarray | None = None
    centre: float | None = None
    limits: tuple[float, float] | None = None


def draw(path: pathlib.Path, panels: Sequence[Panel], *, is_degrees: bool, caption: str) -> None:
    """Panels side by side as one PNG, each with its scale; nothing is drawn without places."""
    panels = [panel for panel in panels if len(panel.value_P)]
    if not panels:
        return
    width = min(pictures.WIDEST, 3.4 * len(panels) + 0.6)
    figure = Figure(figsize=(width, 3.6), dpi=pictures.DPI, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        _draw(figure, axes, panel, is_degrees)
    pictures.save(figure, path, caption)


def _draw(figure, axes, panel: Panel, is_degrees: bool) -> None:
    low, high = panel.limits or (float(np.nanmin(panel.value_P)), float(np.nanmax(panel.value_P)))
    if panel.centre is not None:
        ends = min(low, panel.centre - 1e-6), max(high, panel.centre + 1e-6)
        scale = cm.ScalarMappable(colors.TwoSlopeNorm(panel.centre, *ends), "RdBu")
    else:
        scale = cm.ScalarMappable(colors.Normalize(low, max(high, low + 1e-9)), "viridis")
    boxes = [Rectangle((w, s), e - w, n - s) for w, s, e, n in panel.box_P4]
    edges = np.zeros(len(boxes), bool) if panel.edged_P is None else panel.edged_P
    axes.add_collection(
        PatchCollection(
            boxes,
            facecolors=scale.to_rgba(panel.value_P),
            edgecolors=["k" if e else "none" for e in edges],
            linewidths=0.6,
        )
    )
    for w, s, e, n in panel.frame_T4 if panel.frame_T4 is not None else ():
        axes.add_patch(Rectangle((w, s), e - w, n - s, fill=False, edgecolor="k", linewidth=0.5))
    west, south = panel.box_P4[:, :2].min(0)
    east, north = panel.box_P4[:, 2:].max(0)
    axes.set_xlim(west, east)
    axes.set_ylim(south, north)
    # A degree of longitude is shorter than one of latitude by the cosine of the latitude.
    axes.set_aspect(1 / max(np.cos(np.radians((south + north) / 2)), 0.05) if is_degrees else 1.0)
    axes.set_title(panel.title, fontsize=pictures.TITLE, parse_math=False)
    axes.tick_params(labelsize=6)
    figure.colorbar(scale, ax=axes, shrink=0.7).ax.tick_params(labelsize=6)
