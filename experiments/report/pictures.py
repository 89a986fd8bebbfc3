"""Pictures for a report: maps over images, contact sheets, matrices, boxes, curves; numpy arrays in, PNG files out.

A picture's caption goes beside it as a .txt file, which the report shows under it.

Dimensions: Y X rows and columns, C red, green, blue, or classes.
"""

import io
import pathlib
import textwrap
from collections.abc import Collection, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignment import files
from experiments.report import charts

DPI = 100
WIDEST = 10.4  # inches, which a page of the report shows without making them smaller
SIDE = 1.7  # inches, of a picture on a contact sheet
TITLE = 9  # points, of a picture's words
HOT, COLD = np.array([214, 39, 40]), np.array([31, 119, 180])  # for and against


def canvas(width: float, height: float, *, x: str = "", y: str = "") -> tuple[Figure, Axes]:
    """An empty figure of so many inches, and its axes with their names."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    if x:
        axes.set_xlabel(x, fontsize=8)
    if y:
        axes.set_ylabel(y, fontsize=8)
    return figure, axes


def name_rows(axes: Axes, names: Sequence[str], *, shift: float = 0.0) -> None:
    """Names beside rows, the first on top; `shift`: of a name from the start of its row, which is 1 high."""
    axes.set_yticks([row + shift for row in range(len(names))], names, fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def reach(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> np.ndarray:
    """How far intervals reach to both sides of their values, as matplotlib draws them [2,N].

    Numbers next to each other may differ in the last bit, and the length of an error bar must not be negative.
    """
    return np.maximum([np.subtract(values, low), np.subtract(high, values)], 0.0)


def add_intervals(
    axes: Axes, values: Sequence[float], places: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> None:
    """Intervals over horizontal bars of these lengths."""
    width = reach(values, low, high)
    axes.errorbar(values, places, xerr=width, fmt="none", ecolor="k", elinewidth=0.8, capsize=2)


def tradeoff(
    path: str | pathlib.Path,
    points: Mapping[str, tuple[float, float]],
    start: str | None,
    *,
    x: str,
    y: str,
    best: Collection[str] | None = None,
    colours: Sequence[str] = charts.PALETTE,
    caption: str = "",
) -> None:
    """Two shares of each point, with an arrow to it from the point `start`; None draws no arrows.

    Args:
        best: points with a black ring; None draws no rings.
    """
    figure, axes = canvas(4.6, 3.8, x=x, y=y)
    for k, (name, place) in enumerate(points.items()):
        edge = "face" if best is None else "k" if name in best else "none"
        colour = colours[k % len(colours)]
        axes.scatter(*place, s=60, color=colour, edgecolors=edge, label=name, zorder=3)
        if start is not None and place != points[start]:
            axes.annotate(
                "", place, points[start], arrowprops=dict(arrowstyle="->", color=colour, shrinkA=5, shrinkB=5)
            )
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8)
    save(figure, path, caption)


def radar(
    path: str | pathlib.Path,
    names: Sequence[str],
    lines: Mapping[str, Sequence[float]],
    *,
    black: str = "",
    caption: str = "",
) -> None:
    """Shares around a circle, a spoke a name, a line a colour.

    Args:
        black: the line that the others are compared with.
    """
    figure = Figure(figsize=(9.0, 5.0), dpi=DPI)
    axes = figure.add_axes((0.16, 0.12, 0.44, 0.76), projection="polar")  # room for words on both sides
    angles = 2 * np.pi * np.arange(len(names)) / len(names)
    for k, (name, values) in enumerate(lines.items()):
        colour, width = ("k", 2) if name == black else (charts.PALETTE[k % len(charts.PALETTE)], 1.2)
        around = [*angles, angles[0]], [*values, values[0]]
        axes.plot(*around, color=colour, linewidth=width, marker="o", ms=3, label=name)
    axes.set_xticks(angles, [name.replace(", ", ",\n") for name in names], fontsize=8)
    axes.tick_params(axis="x", pad=18)  # names beside the rim, not on it
    axes.tick_params(axis="y", labelsize=7)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.35, 0.5))
    save(figure, path, caption)


def heat_over(image_YXC: np.ndarray, map_YX: np.ndarray) -> np.ndarray:
    """The image in grey with relevance over it, red for and blue against.

    The strongest 1 % of the positive part are fully coloured, and both signs have that scale, so that a few strong
    negative pixels hide nothing of what speaks for the class. A map of next to no positive part has its negative one's.
    """
    grey_YX1 = np.asarray(image_YXC, np.float64).mean(axis=-1, keepdims=True)
    map_YX = np.nan_to_num(np.asarray(map_YX, np.float64))
    most = np.abs(map_YX).max()
    strengths = map_YX[map_YX > 0] if map_YX.max() > 1e-6 * most else np.abs(map_YX)
    scale = np.quantile(strengths, 0.99) or most or 1.0
    strength_YX1 = np.clip(np.abs(map_YX) / scale, 0, 1)[..., None]
    colour_YXC = np.where(map_YX[..., None] > 0, HOT, COLD)
    light_YX1 = 60 + 0.7 * grey_YX1
    return np.clip((1 - strength_YX1) * light_YX1 + strength_YX1 * colour_YXC, 0, 255).astype(np.uint8)


def contact_sheet(
    path: str | pathlib.Path, rows: Sequence[Sequence[tuple[np.ndarray, str]]], *, caption: str = ""
) -> None:
    """Rows of (image [Y,X,3] uint8, its words) as one PNG, which a page shows in its own size.

    A row longer than the page is wide goes on below, with its first picture's column left empty.

    Args:
        path: ending in .png.
        caption: of the sheet.
    """
    if not rows:
        return
    most = int(WIDEST / SIDE)
    rows = [line for row in rows for line in _wrapped(row, most)]
    letters = int(SIDE * DPI / (0.62 * TITLE * DPI / 72))  # of a title's line
    titles = [[_folded(words, letters) for _, words in row] for row in rows]
    heights = [max((words.count("\n") + 1 for words in row if words), default=0) for row in titles]
    tall = [SIDE + 0.19 * lines for lines in heights]
    columns = max(map(len, rows))
    figure = Figure(figsize=(SIDE * columns, sum(tall)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=tall)
    for axes in grid.ravel():
        axes.axis("off")
    for row, words_of_row, places in zip(rows, titles, grid):
        for (image_YXC, _), words, axes in zip(row, words_of_row, places):
            if image_YXC is not None:
                axes.imshow(image_YXC, interpolation="nearest")
                axes.set_title(words, fontsize=TITLE, parse_math=False)
    save(figure, path, caption)


def _wrapped(row: Sequence[tuple[np.ndarray, str]], most: int) -> list[list[tuple[np.ndarray | None, str]]]:
    """A row in lines of at most `most` pictures; from the second line on the first place is empty."""
    lines = [list(row[:most])]
    for start in range(most, len(row), most - 1):
        lines.append([(None, ""), *row[start : start + most - 1]])
    return lines


def _folded(words: str, letters: int) -> str:
    """The lines of a title, long ones broken."""
    return "\n".join(part for line in words.split("\n") for part in textwrap.wrap(line, letters) or [""])


def matrix(
    path: str | pathlib.Path,
    values_CC: np.ndarray,
    names: Sequence[str],
    *,
    caption: str = "",
    rows: str = "true class",
    columns: str = "predicted class",
    label: str = "",
) -> None:
    """A square of numbers by colour; up to 12 rows, the numbers are written in.

    Args:
        names: of the rows, and of the columns.
        caption: under the picture.
        label: of the colour scale.
    """
    num = len(names)
    values_CC = np.asarray(values_CC)
    side = np.clip(0.42 * num + 1.6, 3.2, WIDEST - 0.6)
    figure, axes = canvas(side + 0.6, side)
    image = axes.imshow(values_CC, cmap="Blues", vmin=min(0.0, float(np.nanmin(values_CC))))
    figure.colorbar(image, ax=axes, shrink=0.8, label=label)
    # a name needs 0.12 inches of a row; where rows are narrower, some names are left out, evenly
    every = int(np.ceil(0.12 * num / (0.75 * side)))
    labels = [name if len(name) <= 24 else f"{name[:14]}…{name[-9:]}" for name in names[::every]]
    axes.set_xticks(range(0, num, every), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(0, num, every), labels, fontsize=8)
    axes.set_xlabel(columns, fontsize=9)
    axes.set_ylabel(rows, fontsize=9)
    if num <= 12:
        for (y, x), value in np.ndenumerate(values_CC):
            is_dark = value > 0.6 * np.nanmax(values_CC)
            if np.isfinite(value):
                words = _short(float(value), is_whole=values_CC.dtype.kind in "iu")
                axes.text(x, y, words, ha="center", va="center", fontsize=8, color="w" if is_dark else "k")
    save(figure, path, caption)


def _short(value: float, *, is_whole: bool) -> str:
    """A number of at most four characters where it is below 10,000, so that it fits into its cell."""
    if is_whole or abs(value) >= 100:
        return f"{value:.0f}" if abs(value) < 10_000 else f"{value:.0e}".replace("e+0", "e")
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def boxes(
    path: str | pathlib.Path,
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    caption: str = "",
    label: str = "",
    chance: float | None = None,
) -> None:
    """Box plots side by side: median, quartiles, whiskers to the 5th and 95th percentile, points beyond.

    Args:
        groups: place on the axis -> kind (a colour and a word of the legend) -> numbers; not-a-numbers are left out.
        chance: where to draw a dashed line.
    """
    kinds = list(dict.fromkeys(kind for group in groups.values() for kind in group))
    if not kinds:
        return
    inches = np.clip(0.55 * len(groups) * len(kinds) + 1.4, 4.6, WIDEST)
    figure, axes = canvas(inches, 3.4, y=label)
    width = 0.8 / len(kinds)
    for k, kind in enumerate(kinds):
        series = [(place, _finite(group[kind])) for place, group in enumerate(groups.values()) if kind in group]
        series = [(place, values) for place, values in series if len(values)]
        if not series:
            continue
        colour = charts.PALETTE[k % len(charts.PALETTE)]
        parts = axes.boxplot(
            [values for _, values in series],
            positions=[place + (k - (len(kinds) - 1) / 2) * width for place, _ in series],
            widths=0.85 * width,
            whis=(5, 95),
            patch_artist=True,
            manage_ticks=False,
            flierprops=dict(marker=".", markersize=2, markeredgecolor=colour),
            medianprops=dict(color="k"),
        )
        for box in parts["boxes"]:
            box.set(facecolor=colour, alpha=0.75)
        axes.plot([], [], color=colour, linewidth=6, alpha=0.75, label=kind)
    if chance is not None:
        axes.axhline(chance, color="k", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(groups)), list(groups), rotation=30, ha="right", fontsize=8)
    axes.grid(axis="y", alpha=0.2)
    if len(kinds) > 1:
        axes.legend(frameon=False, fontsize=8)
    save(figure, path, caption)


def curves(
    path: str | pathlib.Path,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    caption: str = "",
    x_label: str = "",
    y_label: str = "",
    chance: float | None = None,
) -> None:
    """Lines through (x, y) points by name; points that are not numbers leave a gap."""
    if not lines:
        return
    figure, axes = canvas(4.8, 3.2, x=x_label, y=y_label)
    for k, (name, points) in enumerate(lines.items()):
        axes.plot(*zip(*points), marker="o", markersize=3, color=charts.PALETTE[k % len(charts.PALETTE)], label=name)
    if chance is not None:
        axes.axhline(chance, color="k", linewidth=0.8, linestyle="--")
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8)
    save(figure, path, caption)


def bars(path: str | pathlib.Path, lengths: Mapping[str, float], *, caption: str = "", label: str = "") -> None:
    """Horizontal bars by name, the first on top, with their numbers."""
    if not lengths:
        return
    figure, axes = canvas(5.6, 0.32 * len(lengths) + 0.9)
    bars = axes.barh(range(len(lengths)), list(lengths.values()), color="#4c78a8")
    labels = [f"{int(x):,}" if x == int(x) else f"{x:,.3g}" for x in lengths.values()]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    name_rows(axes, list(lengths))
    axes.set_xlabel(label)
    axes.margins(x=0.15)
    save(figure, path, caption)


def histograms(
    path: str | pathlib.Path,
    groups: Mapping[str, Mapping[str, object]],
    *,
    caption: str = "",
    label: str = "",
    of: str = "documents",
) -> None:
    """Counts in equal bins, a colour a group.

    Args:
        groups: name -> {"low", "high", "counts"}.
        of: what is counted.
    """
    figure, axes = canvas(4.8, 3.0)
    for name, histogram in groups.items():
        edges = np.linspace(histogram["low"], histogram["high"], len(histogram["counts"]) + 1)
        axes.stairs(histogram["counts"], edges, fill=True, alpha=0.45, label=name)
    axes.set_xlabel(label)
    axes.set_ylabel(of)
    axes.spines[["top", "right"]].set_visible(False)
    if len(groups) > 1:
        axes.legend(frameon=False, fontsize=8)
    save(figure, path, caption)


def outlined(
    image_YXC: np.ndarray, box: tuple[int, int, int, int], colour: Sequence[int] = (255, 215, 0)
) -> np.ndarray:
    """A copy with the frame of (top, bottom, left, right), ends excluded, drawn in."""
    copy_YXC = np.array(image_YXC)
    top, bottom, left, right = box
    copy_YXC[[top, bottom - 1], left:right] = colour
    copy_YXC[top:bottom, [left, right - 1]] = colour
    return copy_YXC


def _finite(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values[np.isfinite(values)]


def save(figure: Figure, path: str | pathlib.Path, caption: str) -> None:
    """A figure as a PNG file, its caption as a .txt file beside it."""
    out = io.BytesIO()
    with matplotlib.rc_context({"font.family": "sans-serif"}):
        figure.savefig(out, format="png", metadata={"Software": None})
    files.write(path, lambda f: f.write(out.getvalue()))
    if caption:
        files.write_text(pathlib.Path(path).with_suffix(".txt"), caption)
