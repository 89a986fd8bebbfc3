"""What a run of merge.py leaves behind: lengths, kept shares, sign conflicts and cosines by layer.

A row is one of `streaming.row_of`. Layers are summed over their tensors; what stands beside the layers is on no curve.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment import files
from alignment.merging import combine
from experiments.report import pictures

Row = Mapping[str, Any]


def report(rows: Sequence[Row], method: str) -> dict[str, Any]:
    """merge_report.json: the models, and for each tensor its measures with the cosines of all pairs.

    Of Model Stock also the ratio by which it goes from the base to the models' mean (over the whole tensor).
    """
    models = rows[0]["models"]
    out = []
    for row in rows:
        line = {key: value for key, value in row.items() if key not in ("models", "dots", "has_base")}
        dots_KK = np.array(row["dots"])
        line["cosines"] = cosines(dots_KK)
        if method == "model_stock":
            line["ratio"] = float(combine.centre(dots_KK)[1])
        out.append(line)
    return {
        "method": method,
        "models": models,
        "of": "differences from the base" if rows[0]["has_base"] else "weights",
        "tensors": out,
    }


def cosines(gram_KK: np.ndarray) -> list[list[float | None]]:
    """From scalar products; None where a model has no length."""
    norms_K = np.sqrt(np.diag(gram_KK))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines_KK = gram_KK / np.outer(norms_K, norms_K)
    return [[float(x) if np.isfinite(x) else None for x in row] for row in cosines_KK]


def by_layer(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each layer, and one for all that stands beside them."""
    groups: dict[int | None, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["layer"], []).append(row)
    order = sorted(layer for layer in groups if layer is not None) + [None] * (None in groups)
    return [_line(layer, groups[layer]) for layer in order]


def _line(layer: int | None, rows: Sequence[Row]) -> dict[str, Any]:
    # slices of a stacked model may have other models before the layers than behind them; the first ones are shown
    rows = [row for row in rows if row["models"] == rows[0]["models"]]
    models, size = short(rows[0]["models"]), sum(row["size"] for row in rows)
    gram_KK = np.sum([row["dots"] for row in rows], axis=0)
    line: dict[str, Any] = {"layer": "beside the layers" if layer is None else layer, "parameters": size}
    line |= {f"norm of {model}": float(np.sqrt(gram_KK[i, i])) for i, model in enumerate(models)}
    if rows[0]["has_base"]:
        for i, model in enumerate(models):
            line[f"kept of {model}"] = sum(row["kept"][i] * row["size"] for row in rows) / size
        line["conflicts"] = sum(row["conflicts"] * row["size"] for row in rows) / size
    table = cosines(gram_KK)
    for i, model in enumerate(models):
        for j in range(i + 1, len(models)):
            line[f"cosine of {model} and {models[j]}"] = table[i][j]
    return line


def short(models: Sequence[str]) -> list[str]:
    """The last part of each model's name, where that tells them apart."""
    last = [pathlib.PurePath(model).name for model in models]
    return last if len(set(last)) == len(last) else list(models)


def write(folder: pathlib.Path, rows: Sequence[Row]) -> dict[str, float]:
    """Tables and pictures; returns the numbers of the summary."""
    lines = by_layer(rows)
    files.write_rows(folder / "tables/layers.jsonl", lines)
    what = "difference from the base" if rows[0]["has_base"] else "weights"
    _draw(folder / "figures/norms.png", lines, "norm of ", f"Length of each model's {what}, by layer.", "length")
    _draw(folder / "figures/kept.png", lines, "kept of ", "Share of the entries that stay of each, by layer.", "share")
    caption = "Share of the changed entries that models change in both directions, by layer."
    _draw(folder / "figures/conflicts.png", lines, "conflicts", caption, "share")
    _draw(folder / "figures/cosines.png", lines, "cosine of ", f"Cosine of each pair's {what}, by layer.", "cosine")
    total = sum(row["size"] for row in rows)
    out = {"tensors": len(rows), "parameters": total}
    if rows[0]["has_base"]:
        out["kept"] = sum(float(np.mean(row["kept"])) * row["size"] for row in rows) / total
        out["conflicts"] = sum(row["conflicts"] * row["size"] for row in rows) / total
    same = [row for row in rows if row["models"] == rows[0]["models"]]
    table = cosines(np.sum([row["dots"] for row in same], axis=0))
    pairs = [table[i][j] for i in range(len(table)) for j in range(i + 1, len(table))]
    if pairs and None not in pairs:
        out["cosine"] = float(np.mean([pair for pair in pairs if pair is not None]))
    return out


def _draw(path: pathlib.Path, lines: Sequence[Row], prefix: str, caption: str, label: str) -> None:
    """Curves over the layers of all columns that begin so."""
    inside = [line for line in lines if isinstance(line["layer"], int)]
    names = dict.fromkeys(name for line in inside for name in line if name.startswith(prefix))
    curves = {}
    for name in names:
        points = [(line["layer"], line[name]) for line in inside if line.get(name) is not None]
        if points:
            curves[name.removeprefix(prefix) or name] = points
    if curves:
        pictures.curves(path, curves, caption=caption, x_label="layer", y_label=label)


METRICS = {
    "tensors": ("merged tensors", ""),
    "parameters": ("numbers in the merged model", ""),
    "megabytes": ("size of the files written so far", ""),
    "seconds": ("spent on reading, merging and writing, at the last start", "lower"),
    "kept": ("share of the entries of the differences from the base that stay after pruning, mean over the models", ""),
    "conflicts": ("share of the changed entries that models change in both directions, before signs are elected", ""),
    "cosine": ("of the models' differences from the base, or of their weights, mean over pairs", ""),
    "accuracy/*": ("share of both subjects' questions answered, mean over the subjects", "higher"),
    "accuracy/expert/*": ("share of this subject's questions that its own expert answers", "higher"),
    "kept/*": ("accuracy of the merged model on this subject, over that of its expert", "higher"),
}


def headline(numbers: Mapping[str, float]) -> str:
    """The page's first sentence."""
    size = f"{numbers['parameters']:,.0f} numbers in {numbers['tensors']:,.0f} tensors were merged"
    if "accuracy/merged" not in numbers:
        cosine = f"; the models' cosine is {numbers['cosine']:.3g}" if "cosine" in numbers else ""
        return f"{size}{cosine}."
    experts = [value for name, value in numbers.items() if name.startswith("accuracy/expert/")]
    return (
        f"The merged model answers {100 * numbers['accuracy/merged']:.0f} % of the questions about both subjects, "
        f"where the base answers {100 * numbers['accuracy/base']:.0f} % and each expert "
        f"{' and '.join(f'{100 * value:.0f} %' for value in experts)} of its own; {size}."
    )
