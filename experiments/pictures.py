"""Pictures for a report: maps over images, contact sheets, matrices; numpy arrays in, PNG files out.

A picture's caption goes beside it as a .txt file, which the report shows under it.

Dimensions: Y X rows and columns, C red, green, blue, or classes.
"""

import io
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from alignment.train import files

DPI = 100
HOT, COLD = np.array([214, 39, 40]), np.array([31, 119, 180])  # for and against


def heat_over(image_YXC: np.ndarray, map_YX: np.ndarray) -> np.ndarray:
    """The image in grey with relevance over it, red for and blue against; the strongest 1% are fully coloured."""
    grey_YX1 = np.asarray(image_YXC, np.float64).mean(axis=-1, keepdims=True)
    map_YX = np.nan_to_num(np.asarray(map_YX, np.float64))
    scale = np.quantile(np.abs(map_YX), 0.99) or np.abs(map_YX).max() or 1.0
    strength_YX1 = np.clip(np.abs(map_YX) / scale, 0, 1)[..., None]
    colour_YXC = np.where(map_YX[..., None] > 0, HOT, COLD)
    light_YX1 = 60 + 0.7 * grey_YX1
    return np.clip((1 - strength_YX1) * light_YX1 + strength_YX1 * colour_YXC, 0, 255).astype(np.uint8)


def contact_sheet(
    path: str | pathlib.Path,
    rows: Sequence[Sequence[tuple[np.ndarray, str]]],
    *,
    caption: str = "",
    inches: float = 1.7,
) -> None:
    """Rows of (image [Y,X,3] uint8, its words) as one PNG.

    Args:
        path: ending in .png.
        caption: of the sheet.
        inches: side of a picture, at 100 dots an inch.
    """
    if not rows:
        return
    columns = max(map(len, rows))
    lines = max((words.count("\n") + 1 for row in rows for _, words in row if words), default=0)
    figure = Figure(figsize=(inches * columns, (inches + 0.17 * lines) * len(rows)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    for row, places in zip(rows, grid):
        for (image_YXC, words), axes in zip(row, places):
            axes.imshow(image_YXC, interpolation="nearest")
            axes.set_title(words, fontsize=7, parse_math=False)
    _save(figure, path, caption)


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
    """A square of numbers by colour, with the numbers written in where there is room for them."""
    num = len(names)
    side = np.clip(0.34 * num + 1.6, 3.2, 11)
    figure = Figure(figsize=(side + 0.6, side), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(values_CC, cmap="Blues", vmin=min(0.0, float(np.nanmin(values_CC))))
    figure.colorbar(shown, ax=axes, shrink=0.8, label=label)
    axes.set_xticks(range(num), names, rotation=90, fontsize=7)
    axes.set_yticks(range(num), names, fontsize=7)
    axes.set_xlabel(columns, fontsize=8)
    axes.set_ylabel(rows, fontsize=8)
    if num <= 12:
        for (y, x), value in np.ndenumerate(np.asarray(values_CC)):
            is_dark = value > 0.6 * np.nanmax(values_CC)
            if np.isfinite(value):
                axes.text(x, y, f"{value:.2g}", ha="center", va="center", fontsize=7, color="w" if is_dark else "k")
    _save(figure, path, caption)


def _save(figure: Figure, path: str | pathlib.Path, caption: str) -> None:
    out = io.BytesIO()
    with matplotlib.rc_context({"font.family": "sans-serif"}):
        figure.savefig(out, format="png", metadata={"Software": None})
    files.write(path, lambda f: f.write(out.getvalue()))
    if caption:
        files.write(pathlib.Path(path).with_suffix(".txt"), lambda f: f.write(caption.encode()))
