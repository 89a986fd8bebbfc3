"""Curves as inline SVG: numbers in, a string out; text takes the page's own colour, so light and dark both work."""

import dataclasses
import html
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # drawing imports matplotlib; the launcher only ranks names, and starts in a third of the time
    from matplotlib.figure import Figure

Series = list[tuple[float, float]]  # (step, value), in order of step

PALETTE = ("#3b7dd8", "#e0773c", "#3a9d6a", "#b455a0", "#8a6fd1", "#c9a227", "#2aa5a5", "#c4504f")
INK = "#010203"  # stands for the page's text colour until the SVG is written
MAX_POINTS = 400  # in one curve
FIRST = ("loss", "accuracy", "accuracies", "margins", "rewards", "logps")  # last parts of the names people look for
HELD_OUT = ("heldout", "eval", "test", "valid", "validation")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "plumbline",
    "text.parse_math": False,  # a $ in a metric's name is a $
    "font.size": 9,
    "font.family": "sans-serif",
}


def downsample(points: Series, most: int = MAX_POINTS) -> Series:
    """At most `most` points: the first, the last, and of each stretch between them the lowest and the highest."""
    if len(points) <= most:
        return points
    inner, buckets = points[1:-1], max(1, (most - 2) // 2)
    chosen = [points[0]]
    for b in range(buckets):
        stretch = inner[b * len(inner) // buckets : (b + 1) * len(inner) // buckets]
        if stretch:
            ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
            chosen += sorted(ends)
    return [*chosen, points[-1]]


def series(rows: Iterable[Mapping]) -> dict[str, Series]:
    """One curve for each name of metrics.jsonl; values that are not finite and rows without a step are left out."""
    curves: dict[str, Series] = {}
    for row in rows:
        if not isinstance(row.get("step"), (int, float)):
            continue
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                curves.setdefault(name, []).append((row["step"], float(value)))
    return curves


def quantity(name: str, names: Iterable[str]) -> tuple[str, str]:
    """The picture a metric belongs in and its label there.

    `loss` and `heldout/loss` share the picture `loss`; so do `rewards/chosen` and `rewards/rejected`, under `rewards`.
    """
    head, _, rest = name.partition("/")
    where = ""
    if rest and (is_heldout(head) or rest in names):
        where, name = head, rest
    side = re.fullmatch(r"(.+)/(chosen|rejected)", name)
    if side and {f"{side[1]}/chosen", f"{side[1]}/rejected"} <= {n.removeprefix(f"{where}/") for n in names}:
        return side[1], " ".join(filter(None, (where, side[2])))
    return name, where or "train"


def group(curves: Mapping[str, Series]) -> dict[str, dict[str, Series]]:
    """{picture: {label: curve}}, in each picture training before what was held out.

    First the pictures people look for, then others with held-out values, then the rest in order of appearance.
    """
    pictures: dict[str, dict[str, Series]] = {}
    for name, curve in curves.items():
        picture, label = quantity(name, curves)
        pictures.setdefault(picture, {})[label] = curve
    order = sorted(pictures.items(), key=lambda item: (rank(item[0]), not any(map(is_heldout, item[1]))))
    return {picture: dict(sorted(inside.items(), key=lambda item: is_heldout(item[0]))) for picture, inside in order}


def rank(name: str) -> int:
    last = name.rsplit("/", 1)[-1]
    return FIRST.index(last) if last in FIRST else len(FIRST)


def is_heldout(name: str) -> bool:
    return name.startswith(HELD_OUT)


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve with its look; lines of one label share an entry of the legend.

    `low` and `high` are the edges of a band about the curve, such as the extremes over seeds. `is_in_legend` is False
    for a line whose colour is read off a scale that other lines of the picture spell out.
    """

    label: str
    points: Series
    colour: str
    dash: Any = "-"
    low: Series = ()
    high: Series = ()
    is_in_legend: bool = True


def lines(curves: Mapping[str, Series]) -> list[Line]:
    """A picture's curves as lines: held-out ones dashed, in the colour of the curve they go with."""
    hues: dict[str, str] = {}
    out = []
    for label, curve in curves.items():
        key = (label.partition(" ")[2] or "train") if is_heldout(label) else label
        colour = hues.setdefault(key, PALETTE[len(hues) % len(PALETTE)])
        out.append(Line(label, curve, colour, (0, (4, 2)) if is_heldout(label) else "-"))
    return out


def draw(
    lines: Sequence[Line], *, x_label: str = "step", is_log: bool = False, max_points: int = MAX_POINTS
) -> "Figure":
    """One picture of curves over steps, or over another quantity, with a legend below unless it says nothing."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    labels = list(dict.fromkeys(line.label for line in lines if line.is_in_legend))
    columns = max(1, min(len(labels), 60 // (max(map(len, labels), default=0) + 6)))
    has_legend = labels != ["train"] and labels != [""]
    rows = math.ceil(len(labels) / columns) if has_legend else 0
    figure = Figure(figsize=(4.6, 2.4 + 0.17 * rows), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    handles = {}
    for line in lines:
        points = downsample(line.points, max_points)
        if line.low:
            x, low = zip(*line.low)
            axes.fill_between(x, low, [y for _, y in line.high], color=line.colour, alpha=0.15, linewidth=0)
        (handle,) = axes.plot(
            *zip(*points),
            color=line.colour,
            linewidth=1.5 if len(lines) <= 12 else 0.9,
            linestyle=line.dash,
            marker="o" if len(points) <= 25 and len(lines) <= 12 else "",
            markersize=2.5,
            gid=f"{'curve' if line.is_in_legend else 'scale'}:{line.label}",
        )
        handles.setdefault(line.label, handle)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=INK, alpha=0.4)
    axes.tick_params(which="both", colors=INK, length=3, labelsize=8)
    axes.set_xlabel(x_label, color=INK, fontsize=8)
    axes.margins(x=0.02)
    if is_log:
        ticks = [x for x, _ in lines[0].points]
        ticks = ticks if len(ticks) <= 6 else [ticks[round(i * (len(ticks) - 1) / 4)] for i in range(5)]
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])  # the scale's own labels are formulas, plain text by STYLE
        axes.xaxis.set_minor_locator(NullLocator())
    elif x_label == "step":
        axes.xaxis.get_major_locator().set_params(integer=True)
    if has_legend:
        legend = figure.legend(
            [handles[label] for label in labels],
            labels,
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            labelcolor=INK,
            fontsize=8,
            handlelength=2.2,
        )
        for handle in legend.legend_handles:
            handle.set_linewidth(1.8)
    return figure


def svg(figure_fn: Callable[[], "Figure"], alt: str) -> str:
    """An <svg> element to put into a page; the same curves give the same text.

    Args:
        figure_fn: draws the picture; it is called with our fonts and identifiers in force.
        alt: what a reader who does not see it hears.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with matplotlib.rc_context(STYLE):
        figure = figure_fn()
        FigureCanvasSVG(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt, quote=True)}"', 1).strip()
