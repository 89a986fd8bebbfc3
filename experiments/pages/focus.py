"""What a run of focus.py leaves behind: tables, pictures, and its findings in words.

Dimensions: M mosaics, 4 tiles, N tiles, Y X rows and columns, C channels or classes.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax
import numpy as np

from alignment import files
from alignment.explain import focus, gradcam, graph, randomize
from experiments.explanations.study import Classifier, MosaicSet, Scores
from experiments.report import pictures

MASSES = ("focus", "tp", "fp", "tn", "fn", "pos_total")
COLUMNS = ("mosaic", "dataset", "arch", "method", "target_class", *MASSES)
TESTS = {"R1": "random weights", "R3": "absent class"}
WHERE = {"trained": "of the trained network", "R1": "with all weights redrawn", "R2": "in the cascade"}
WHERE["R3"] = "of a class that the mosaic does not show"


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that was measured, by method.

    Attributes:
        trained: scores of the trained network.
        randomised: the same under "R1" (random weights) and "R3" (absent classes).
        curves: "R2", scores by the number of layers redrawn from the top.
        predicted_N: the class that the network gives each tile alone.
    """

    trained: Mapping[str, Scores]
    randomised: Mapping[str, Mapping[str, Scores]]
    curves: Mapping[str, Mapping[int, Scores]]
    predicted_N: np.ndarray

    def tests(self) -> Iterator[tuple[str, int, str, Scores]]:
        """(test, layers redrawn, method, scores)."""
        for method, scores in self.trained.items():
            yield "trained", 0, method, scores
        for test, by_method in self.randomised.items():
            for method, scores in by_method.items():
                yield test, 0, method, scores
        for method, by_layers in self.curves.items():
            for num, scores in by_layers.items():
                yield "R2", num, method, scores

    def ranked(self) -> list[str]:
        """Methods by the median Focus of the trained network, the highest first; those without a score last."""
        return sorted(self.trained, key=lambda method: -np.nan_to_num(median(self.trained[method]), nan=-1))


def median(scores: Scores) -> float:
    """Median Focus; NaN where no map has one."""
    return focus.summary(scores["focus"])["median"]


def summary_of(results: Results, mosaics: MosaicSet) -> dict[str, float]:
    """Accuracy on single tiles, with and without copies, and medians of Focus by test and method."""
    is_right_N = results.predicted_N == mosaics.labels_N
    summary = {"accuracy": float(is_right_N.mean()), "mosaics": float(len(mosaics))}
    if mosaics.is_copy_N is not None:
        summary["copies"] = float(np.count_nonzero(mosaics.is_copy_N))
        if 0 < summary["copies"] < len(is_right_N):
            summary["accuracy without copies"] = float(is_right_N[~mosaics.is_copy_N].mean())
    for method, scores in results.trained.items():
        numbers = focus.summary(scores["focus"])
        summary[f"focus/{method}/median"] = numbers["median"]
        summary[f"focus/{method}/undefined"] = numbers["n_undefined"]
        summary[f"mosaics_per_second/{method}"] = float(scores["rate"])
    for test, name in (("R1", "focus_random"), ("R3", "focus_absent")):
        for method, scores in results.randomised[test].items():
            numbers = focus.summary(scores["focus"])
            summary[f"{name}/{method}/median"] = numbers["median"]
            summary[f"{name}/{method}/undefined"] = numbers["n_undefined"]
    return summary


# Tables


def write_tables(workdir: pathlib.Path, results: Results, net: Classifier, mosaics: MosaicSet) -> None:
    """scores.csv, scores_randomised.csv, summary.csv, and the table and curves of the report."""
    about = (mosaics.source, net.arch)
    trained, randomised, summaries = [], [], []
    for test, num_layers, method, scores in results.tests():
        for i, m in enumerate(scores["mosaic"]):
            numbers = [float(scores[name][i]) for name in MASSES]
            row = [int(m), *about, method, int(mosaics.plan.target[m]), *numbers]
            trained.append(row) if test == "trained" else randomised.append([*row, test, num_layers])
        summaries.append({"method": method, "test": test, "layers": num_layers, **focus.summary(scores["focus"])})
    files.write_csv(workdir / "scores.csv", COLUMNS, trained)
    files.write_csv(workdir / "scores_randomised.csv", (*COLUMNS, "test", "layers"), randomised)
    columns = ("dataset", "arch", *summaries[0])
    files.write_csv(workdir / "summary.csv", columns, [[*about, *row.values()] for row in summaries])
    rows = [without_nan(row) for row in summaries if row["test"] != "R2"]
    files.write_rows(workdir / "tables/focus.jsonl", rows)
    steps = sorted({num for by_layers in results.curves.values() for num in by_layers}) or [0]
    lines = []
    for step in steps:
        medians = {f"cascade/{method}": median(by_layers[step]) for method, by_layers in results.curves.items()}
        if step == steps[0]:
            medians |= {f"focus/{method}": median(scores) for method, scores in results.trained.items()}
        lines.append({"step": step} | {name: value for name, value in medians.items() if not math.isnan(value)})
    files.write_rows(workdir / "metrics.jsonl", lines)


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with None for NaN, for which JSON has no word."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def write_manifest(workdir: pathlib.Path, net: Classifier, mosaics: MosaicSet, **settings: Any) -> None:
    """Seeds, layers and weights: everything beside the config that a score depends on."""
    flat = flax.traverse_util.flatten_dict(flax.linen.meta.unbox(dict(net.variables)), sep="/")
    forward = graph.trace(net.model.apply, net.variables, mosaics.example)
    order = randomize.layers(net.model.apply, net.variables, mosaics.example)
    manifest = {
        **settings,
        "arch": net.arch,
        "class_names": list(net.class_names),
        "mosaic_size": list(mosaics.example.shape[1:3]),
        "mosaics": len(mosaics),
        "gradcam_layer": gradcam.default_layer(forward),
        "layers": ["/".join(path) for path in order],
        "weights_sha256": {
            name: hashlib.sha256(np.asarray(value).tobytes()).hexdigest()[:16] for name, value in flat.items()
        },
    }
    files.write_text(workdir / "manifest.json", json.dumps(manifest, indent=2, default=str))


# Pictures


def draw(workdir: pathlib.Path, results: Results, net: Classifier, mosaics: MosaicSet, *, shown: Sequence[int]) -> None:
    """Box plots, randomisation curves, and every method's maps over the mosaics `shown`."""
    folder = workdir / "figures"
    groups = {
        method: {"trained": scores["focus"]}
        | {TESTS[test]: by[method]["focus"] for test, by in results.randomised.items() if method in by}
        for method, scores in results.trained.items()
    }
    caption = f"Focus of each method on {net.arch}: positive relevance on the tiles of the class explained, as a "
    caption += "share of all; maps without any are left out. Dashed: chance."
    pictures.boxes(folder / "1_focus.png", groups, caption=caption, label="Focus", chance=0.5)
    lines = {
        method: [(num, median(scores)) for num, scores in sorted(by_layers.items())]
        for method, by_layers in results.curves.items()
    }
    caption = "Median Focus as layers are redrawn from the top; a map that explains the model falls to chance."
    pictures.curves(
        folder / "2_cascade.png", lines, caption=caption, x_label="layers redrawn", y_label="median Focus", chance=0.5
    )
    sheet = []
    for m in shown:
        image_YXC = mosaics.picture(m)
        row = [(image_YXC, f"explained:\n{net.class_name(mosaics.plan.target[m])}")]
        for method, scores in results.trained.items():
            if m in scores.get("kept", ()):
                map_YX = scores["kept_maps"][list(scores["kept"]).index(m)]
                score = scores["focus"][list(scores["mosaic"]).index(m)]
                row.append((pictures.heat_over(image_YXC, map_YX), f"{method}\n{score:.2f}"))
        sheet.append(row)
    caption = (
        "Mosaics and every method's map, with its Focus: red speaks for the class explained, blue against, on the "
    )
    caption += "scale of the red."
    pictures.contact_sheet(folder / "3_maps.png", sheet, caption=caption)


# Findings


def rating_lines(results: Results, net: Classifier, mosaics: MosaicSet) -> list[str]:
    """How well the network and each method do, a sentence each."""
    ranked = ", ".join(f"{method} {median(results.trained[method]):.2f}" for method in results.ranked())
    numbers = summary_of(results, mosaics)
    lines = [f"The network ({net.arch}) recognises {100 * numbers['accuracy']:.1f} % of the single tiles."]
    lines += copies_lines(numbers, len(mosaics.labels_N))
    lines += [f"Median Focus over the mosaics (chance is 0.50): {ranked}."]
    words = {"R1": "With all weights redrawn", "R3": "Explaining a class that the mosaic does not show"}
    expected = {"R1": "0.50 is expected", "R3": "1/3, one class of three, to 1/2 is expected"}
    for test, by_method in results.randomised.items():
        if by_method:
            medians = ", ".join(f"{method} {median(scores):.2f}" for method, scores in by_method.items())
            lines.append(f"{words[test]}: {medians} ({expected[test]}).")
    if undefined := undefined_counts(results):
        listed = "; ".join(f"{WHERE[test]} {', '.join(parts)}" for test, parts in undefined.items())
        lines.append(f"Maps without any positive relevance have no Focus and are left out of these numbers: {listed}.")
    return lines


def copies_lines(numbers: Mapping[str, float], num_tiles: int) -> list[str]:
    """How many tiles the network was trained on, and its accuracy on the others."""
    if "copies" not in numbers:
        return ["It is not known which of the single tiles the network was trained on."]
    if not numbers["copies"]:
        return ["No single tile is byte-equal to a picture of its training."]
    words = f"{numbers['copies']:.0f} of the {num_tiles} single tiles are byte-equal to a picture of its training"
    if "accuracy without copies" in numbers:
        words += f"; it recognises {100 * numbers['accuracy without copies']:.1f} % of the others"
    return [f"{words}."]


def undefined_counts(results: Results) -> dict[str, list[str]]:
    """Test -> "3 of 48 by smoothgrad" and so on, where there are any."""
    number: dict[tuple[str, str], np.ndarray] = {}
    for test, _, method, scores in results.tests():
        is_undefined = np.isnan(scores["focus"])
        counts = np.array([is_undefined.sum(), len(is_undefined)])
        number[test, method] = number.get((test, method), 0) + counts  # of R2 over all its points
    listed: dict[str, list[str]] = {}
    for (test, method), (num, total) in number.items():
        if num:
            listed.setdefault(test, []).append(f"{num} of {total} by {method}")
    return listed
