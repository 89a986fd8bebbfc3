"""What a run of sketch_gnn.py leaves behind: accuracies by ratio, memory and time of a step, learned polynomials."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment import files, intervals
from experiments.graphs.training import Result
from experiments.report import charts, pictures

FULL, POLY, SKETCH = "full", "poly_full", "sketch"


def write(
    folder: pathlib.Path,
    results: Sequence[Result],
    sizes: Sequence[Mapping[str, Any]],
    *,
    first_ratio: float,
    note: str = "",
) -> dict[str, float]:
    """Tables, pictures and metrics; returns the numbers of the summary. The note goes into the sketched arms' rows."""
    by_arm: dict[str, list[Result]] = {}
    for result in results:
        by_arm.setdefault(result.name, []).append(result)
    lines = [line_of(name, some) for name, some in by_arm.items()]
    if note:
        lines = [line | {"note": note if line["ratio"] is not None else ""} for line in lines]
    files.write_rows(folder / "tables/arms.jsonl", lines)
    names = (FULL, POLY, f"{SKETCH}@{first_ratio:g}")
    files.write_rows(folder / "metrics.jsonl", steps({name: by_arm[name] for name in names}))
    draw_validation(folder / "figures/validation.png", by_arm)
    curve = [(line["ratio"], line["test accuracy"], line["deviation"]) for line in lines if line["ratio"] is not None]
    flat = {line["arm"]: line["test accuracy"] for line in lines if line["ratio"] is None}
    draw_ratios(folder / "figures/ratios.png", curve, flat)
    draw_polynomials(folder, by_arm)
    write_refreshes(folder, results)
    write_sizes(folder, sizes)
    return summary(lines, first_ratio) | summary_of_sizes(sizes)


def ratio_of(name: str) -> float | None:
    kind, _, ratio = name.partition("@")
    return float(ratio) if kind == SKETCH else None


def line_of(name: str, results: Sequence[Result]) -> dict[str, Any]:
    """A row of the table: means over seeds; low and high: the 95 % interval of the mean test accuracy."""
    tests = [result.best["test"] for result in results]
    low, high = intervals.of_mean(tests)
    return {
        "arm": name,
        "ratio": ratio_of(name),
        "test accuracy": float(np.mean(tests)),
        "low": low,
        "high": high,
        "deviation": float(np.std(tests, ddof=1)) if len(tests) > 1 else None,
        "at the last epoch": float(np.mean([result.last["test"] for result in results])),
        "validation": float(np.mean([result.best["val"] for result in results])),
        "seconds a step": float(np.median([result.step_seconds for result in results])),
        "MiB a step": results[0].step_bytes / 2**20,
        "seeds": len(results),
    }


def steps(by_arm: Mapping[str, Sequence[Result]]) -> list[dict[str, float]]:
    """A row for each evaluated epoch: loss and validation accuracy of these arms, mean over seeds."""
    out: dict[int, dict[str, float]] = {}
    for name, results in by_arm.items():
        for rows in zip(*(result.curve for result in results)):
            row = out.setdefault(int(rows[0]["epoch"]), {})
            for key, column in (("loss", "loss"), ("val", "val_accuracy")):
                row[f"{name}/{column}"] = float(np.mean([one[key] for one in rows]))
    return [{"step": epoch, **row} for epoch, row in sorted(out.items())]


def summary(lines: Sequence[Mapping[str, Any]], first_ratio: float) -> dict[str, float]:
    """Numbers of the full network, the polynomial one, and the sketched one at the first ratio; the rest by name."""
    out: dict[str, float] = {"ratio": first_ratio}
    for line in lines:
        is_first = line["arm"] == f"{SKETCH}@{first_ratio:g}"
        names = [line["arm"].replace("@", "/")] + [SKETCH] * is_first
        for name in names:
            out[f"accuracy/{name}"] = line["test accuracy"]
            out[f"step_seconds/{name}"] = line["seconds a step"]
            out[f"memory/{name}"] = line["MiB a step"]
    return out


def draw_validation(path: pathlib.Path, by_arm: Mapping[str, Sequence[Result]]) -> None:
    """Validation accuracy by epoch, a line an arm, mean over seeds."""
    curves = {}
    for name, results in by_arm.items():
        epochs = zip(*(result.curve for result in results))
        curves[name] = [(rows[0]["epoch"], float(np.mean([row["val"] for row in rows]))) for rows in epochs]
    pictures.curves(path, curves, caption="Validation accuracy of every arm.", x_label="epoch", y_label="accuracy")


def draw_ratios(
    path: pathlib.Path, curve: Sequence[tuple[float, float, float | None]], flat: Mapping[str, float]
) -> None:
    """Test accuracy over the ratio of sketch to graph, with the networks on the full graph as lines across."""
    figure, axes = pictures.canvas(6.4, 3.6, x="rows of a sketch over nodes of the graph", y="test accuracy")
    points = sorted(curve)
    ratios, accuracies = [p[0] for p in points], [p[1] for p in points]
    axes.errorbar(
        ratios, accuracies, yerr=[p[2] or 0.0 for p in points], color=charts.PALETTE[0], marker="o", ms=4, label=SKETCH
    )
    for number, (name, accuracy) in enumerate(flat.items(), 1):
        axes.axhline(
            accuracy, color=charts.PALETTE[number % len(charts.PALETTE)], linewidth=1, linestyle="--", label=name
        )
    if len(ratios) > 1:
        axes.set_xscale("log")
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=7)
    pictures.save(
        figure, path, "Test accuracy of the sketched network by its ratio; dashed: networks on the full graph."
    )


def draw_polynomials(folder: pathlib.Path, by_arm: Mapping[str, Sequence[Result]]) -> None:
    """The polynomials that the first seed's networks have learned, a curve for each layer."""
    z = np.linspace(-2, 2, 41)
    for name, results in by_arm.items():
        path = folder / f"arms/{results[0].name},seed={results[0].seed}.npz"
        if name == FULL or not path.is_file():
            continue
        with np.load(path) as weights:
            if "coefficients" not in weights:
                continue
            learned = weights["coefficients"]
        if not np.any(learned[:, 1:]):
            continue
        curves = {
            f"layer {number}": list(zip(z.tolist(), np.polynomial.polynomial.polyval(z, [0.0, *row]).tolist()))
            for number, row in enumerate(learned, 1)
        }
        caption = f"What {name} has learned in place of ReLU."
        pictures.curves(
            folder / f"figures/polynomials_{name.replace('@', '_')}.png",
            curves,
            caption=caption,
            x_label="pre-activation",
            y_label="activation",
        )


def write_refreshes(folder: pathlib.Path, results: Sequence[Result]) -> None:
    """What happened at each refresh; of learned hashes, how well they reconstruct the nodes' vectors."""
    rows = [
        {"arm": result.name, "seed": result.seed, "epoch": int(epoch), **note}
        for result in results
        for epoch, note in result.notes.items()
    ]
    if not rows:
        return
    files.write_rows(folder / "tables/refreshes.jsonl", rows)
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if "error after" in row:
            curves.setdefault(f"{row['arm']}, seed {row['seed']}", []).append((row["epoch"], row["error after"]))
    if curves:
        caption = (
            "Error of rebuilding held-out nodes' vectors from their buckets, after each refresh of learned hashes."
        )
        path = folder / "figures/reconstruction.png"
        pictures.curves(path, curves, caption=caption, x_label="epoch", y_label="relative error")


def write_sizes(folder: pathlib.Path, sizes: Sequence[Mapping[str, Any]]) -> None:
    """Memory and time of a step over the number of nodes, of the sketched and of the full network."""
    if not sizes:
        return
    files.write_rows(folder / "tables/sizes.jsonl", sizes)
    for column, label in (("MiB a step", "MiB"), ("seconds a step", "seconds")):
        curves = {SKETCH: [(math.log10(row["nodes"]), row[column]) for row in sizes]}
        if f"full: {column}" in sizes[0]:
            curves[FULL] = [(math.log10(row["nodes"]), row[f"full: {column}"]) for row in sizes]
        caption = f"{column}, by the size of the graph; sketches have {sizes[0]['rows of a sketch']:,} rows throughout."
        path = folder / f"figures/{label.lower()}_by_size.png"
        pictures.curves(path, curves, caption=caption, x_label="nodes, power of ten", y_label=label)


def summary_of_sizes(sizes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Growth from the smallest to the largest graph, and how the largest ended."""
    if not sizes:
        return {}
    first, last = sizes[0], sizes[-1]
    out = {
        "sizes/nodes": last["nodes"],
        "sizes/memory_growth": last["MiB a step"] / first["MiB a step"],
        "sizes/step_growth": last["seconds a step"] / first["seconds a step"],
        "sizes/accuracy/sketch": last["test accuracy"],
        "sizes/accuracy/sketch/low": last["test accuracy, low"],
        "sizes/accuracy/sketch/high": last["test accuracy, high"],
        "sizes/prepare_seconds": last["seconds to sketch it"],
        "sizes/inference_seconds": last["seconds of inference"],
    }
    if "full: test accuracy" in last:
        gain = last["full: test accuracy"] - last["chance"]
        out["sizes/accuracy/full"] = last["full: test accuracy"]
        out["sizes/accuracy/full/low"] = last["full: test accuracy, low"]
        out["sizes/accuracy/full/high"] = last["full: test accuracy, high"]
        out["sizes/gain_kept"] = (last["test accuracy"] - last["chance"]) / gain if gain else 0.0
    return out


METRICS = {
    "sizes/nodes": ("nodes of the largest block model", ""),
    "sizes/memory_growth": ("memory of a sketched step on the largest graph over that on the smallest", "lower"),
    "sizes/step_growth": ("time of a sketched step on the largest graph over that on the smallest", "lower"),
    "sizes/accuracy/*": (
        "test accuracy on the largest graph after the last step; low and high: its 95 % interval over test nodes",
        "higher",
    ),
    "sizes/gain_kept": ("accuracy above chance, sketched over full, on the largest graph", "higher"),
    "sizes/prepare_seconds": ("spent on sketching the largest graph, once", "lower"),
    "sizes/inference_seconds": ("of one pass over the largest graph with the trained weights", "lower"),
    "ratio": ("rows of a sketch over nodes of the graph, of the sketched network that the summary names first", ""),
    "accuracy/*": ("test accuracy at the best validation epoch, mean over seeds", "higher"),
    "step_seconds/*": ("wall-clock time of one update, in seconds, median", "lower"),
    "memory/*": ("what the compiled update holds at its most, in MiB", "lower"),
    "loss": ("cross-entropy of labelled nodes in nats, mean over seeds; a step is an epoch", "lower"),
    "val_accuracy": ("share of validation nodes given their class, mean over seeds; a step is an epoch", "higher"),
}


def headline(numbers: Mapping[str, float]) -> str:
    """The page's first sentence."""
    return (
        f"Trained on sketches of {100 * numbers['ratio']:.3g} % of the graph's rows, the network has test accuracy "
        f"{numbers['accuracy/sketch']:.3f}; on the full graph {numbers['accuracy/full']:.3f}, with polynomials in "
        f"place of ReLU {numbers['accuracy/poly_full']:.3f}."
    )
