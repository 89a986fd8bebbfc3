"""Curves as inline SVG: numbers in, a string out; text takes the page's own colour, so light and dark both work."""

import html
import io
import math
import re
from collections.abc import Iterable, Mapping

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
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
    kept = [points[0]]
    for b in range(buckets):
        stretch = inner[b * len(inner) // buckets : (b + 1) * len(inner) // buckets]
        if stretch:
            ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
            kept += sorted(ends)
    return [*kept, points[-1]]


def series(rows: Iterable[Mapping]) -> dict[str, Series]:
    """Rows of metrics.jsonl as one curve a name; without what is no finite number, and rows without a step."""
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


def draw(curves: Mapping[str, Series], legend: bool | None = None) -> Figure:
    """One picture of a few curves over steps; held-out ones dashed in the colour of the curve they go with."""
    figure = Figure(figsize=(4.6, 2.5), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    hues: dict[str, str] = {}
    for label, curve in curves.items():
        key = (label.partition(" ")[2] or "train") if is_heldout(label) else label
        colour = hues.setdefault(key, PALETTE[len(hues) % len(PALETTE)])
        points = downsample(curve)
        marker = "o" if len(points) <= 25 else ""
        axes.plot(
            *zip(*points),
            color=colour,
            linewidth=1.5,
            linestyle=(0, (4, 2)) if is_heldout(label) else "-",
            label=label,
            marker=marker,
            markersize=2.5,
        )
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=INK, alpha=0.4)
    axes.tick_params(colors=INK, length=3, labelsize=8)
    axes.set_xlabel("step", color=INK, fontsize=8)
    axes.margins(x=0.02)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if legend if legend is not None else (len(curves) > 1 or "train" not in curves):
        axes.legend(frameon=False, labelcolor=INK, fontsize=8, handlelength=2.2)
    return figure


def svg(curves: Mapping[str, Series], alt: str, legend: bool | None = None) -> str:
    """An <svg> element to put into a page; the same curves give the same text."""
    with matplotlib.rc_context(STYLE):
        figure = draw(curves, legend)
        FigureCanvasSVG(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt, quote=True)}"', 1).strip()
