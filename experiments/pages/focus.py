"""What a run of focus.py leaves behind: tables, pictures, and its findings in words.

Dimensions: M mosaics, 4 tiles, N tiles, Y X rows and columns, C channels or classes.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax
import numpy as np

from alignment import files
from alignment.evaluation import classification
from alignment.explain import bias, focus, gradcam, graph, randomize
from data.toys import museum
from experiments.pages.focus_study import Classifier, MosaicSet, Scores
from experiments.report import pictures

MASSES = ("focus", "tp", "fp", "tn", "fn", "pos_total")
COLUMNS = ("mosaic", "dataset", "arch", "method", "target_class", *MASSES)
PAIR_COLUMNS = ("lift", "low", "high", "share", "count", "pictures", "back", "kind")
TESTS = {"R1": "random weights", "R3": "absent class"}
MANY_CLASSES = 100  # more have no readable matrix


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
    """Accuracy on single tiles, and medians of Focus by test and method."""
    accuracy = (results.predicted_N == mosaics.labels_N).mean()
    summary = {"accuracy": float(accuracy), "mosaics": float(len(mosaics))}
    for method, scores in results.trained.items():
        numbers = focus.summary(scores["focus"])
        summary[f"focus/{method}/median"] = numbers["median"]
        summary[f"focus/{method}/undefined"] = numbers["n_undefined"]
        summary[f"mosaics_per_second/{method}"] = float(scores["rate"])
    for test, name in (("R1", "focus_random"), ("R3", "focus_absent")):
        for method, scores in results.randomised[test].items():
            summary[f"{name}/{method}/median"] = median(scores)
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
    rows = [_without_nan(row) for row in summaries if row["test"] != "R2"]
    files.write_rows(workdir / "tables/focus.jsonl", rows)
    steps = sorted({num for by_layers in results.curves.values() for num in by_layers}) or [0]
    lines = []
    for step in steps:
        medians = {f"cascade/{method}": median(by_layers[step]) for method, by_layers in results.curves.items()}
        if step == steps[0]:
            medians |= {f"focus/{method}": median(scores) for method, scores in results.trained.items()}
        lines.append({"step": step} | {name: value for name, value in medians.items() if not math.isnan(value)})
    files.write_rows(workdir / "metrics.jsonl", lines)


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
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
    caption += "share of all. Dashed: chance."
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
        row = [(image_YXC, f"explained: {net.class_name(mosaics.plan.target[m])}")]
        for method, scores in results.trained.items():
            if m in scores.get("kept", ()):
                map_YX = scores["kept_maps"][list(scores["kept"]).index(m)]
                score = scores["focus"][list(scores["mosaic"]).index(m)]
                row.append((pictures.heat_over(image_YXC, map_YX), f"{method} {score:.2f}"))
        sheet.append(row)
    caption = "Mosaics and every method's map: red speaks for the class explained, blue against; beside each its Focus."
    pictures.contact_sheet(folder / "3_maps.png", sheet, caption=caption)


# Findings


def rating_lines(results: Results, net: Classifier, mosaics: MosaicSet) -> list[str]:
    """How well the network and each method do, a sentence each."""
    ranked = ", ".join(f"{method} {median(results.trained[method]):.2f}" for method in results.ranked())
    accuracy = 100 * (results.predicted_N == mosaics.labels_N).mean()
    lines = [f"The network ({net.arch}) recognises {accuracy:.1f} % of the single tiles."]
    lines += [f"Median Focus over the mosaics (chance is 0.50): {ranked}."]
    words = {"R1": "With all weights redrawn", "R3": "Explaining a class that the mosaic does not show"}
    expected = {"R1": "0.50 is expected", "R3": "1/3, one class of three, to 1/2 is expected"}
    for test, by_method in results.randomised.items():
        if by_method:
            numbers = ", ".join(f"{method} {median(scores):.2f}" for method, scores in by_method.items())
            lines.append(f"{words[test]}: {numbers} ({expected[test]}).")
    undefined = {method: int(np.isnan(scores["focus"]).sum()) for method, scores in results.trained.items()}
    if any(undefined.values()):
        listed = ", ".join(f"{num} of {method}" for method, num in undefined.items() if num)
        lines.append(f"Maps without any positive relevance have no Focus and are left out: {listed}.")
    return lines


def biases(
    workdir: pathlib.Path,
    method: str,
    results: Results,
    net: Classifier,
    mosaics: MosaicSet,
    *,
    maps_fn: Callable[[str, np.ndarray], Mapping[int, np.ndarray]],
    min_count: int,
    min_share: float,
    num_samples: int,
    num_pairs: int,
    num_tiles: int,
    seed: int,
) -> tuple[list[str], dict[str, float]]:
    """The bias finder: its table and pictures, its findings in words, and numbers for the summary.

    Args:
        method: whose scores are used.
        maps_fn: (method, numbers of mosaics) -> their maps.
        min_count, min_share, num_samples: see `bias.matrix` and `bias.ranking`.
        num_pairs: shortcuts and confusions to name.
        num_tiles: tiles to show of each pair.
    """
    folder, scores = workdir / "figures", results.trained[method]
    ids, num_classes = scores["mosaic"], net.num_classes
    matrix = bias.matrix(
        scores["share"],
        mosaics.plan.tile_label[ids],
        mosaics.plan.target[ids],
        picture_M4=mosaics.plan.tile_index[ids],
        num_classes=num_classes,
        num_samples=num_samples,
        seed=seed,
    )
    pairs = bias.ranking(matrix, min_count=min_count, min_share=min_share)
    counts_CC = classification.confusion(mosaics.labels_N, results.predicted_N, num_classes)
    class_names = [net.class_name(k) for k in range(num_classes)]
    write_pairs(workdir, pairs, counts_CC, class_names)
    if num_classes <= MANY_CLASSES:
        caption = f"Lift of each class's tiles when another is explained ({method}); 1 is what no bias gives."
        labels = dict(rows="explained", columns="tile")
        pictures.matrix(folder / "4_bias.png", matrix.lift, class_names, caption=caption, **labels)
        caption = "The plain confusion matrix on single tiles, for what mosaics add to it."
        pictures.matrix(folder / "5_confusion.png", counts_CC, class_names, caption=caption, label="tiles")
    one_sided = sorted((pair for pair in pairs if pair.kind == "shortcut"), key=lambda pair: -pair.one_sided)
    named = one_sided[:num_pairs] + [pair for pair in pairs if pair.kind == "confusion"][:num_pairs]
    top = named or pairs[:num_pairs]
    tiles = {
        pair: bias.top_tiles(
            scores["share"],
            mosaics.plan.tile_label[ids],
            mosaics.plan.target[ids],
            target=pair.target,
            other=pair.other,
            picture_M4=mosaics.plan.tile_index[ids],
            num=num_tiles,
        )
        for pair in top
    }
    if tiles:
        shown = np.unique([ids[m] for places in tiles.values() for m, _ in places])
        draw_pairs(folder, method, scores, tiles, maps_fn(method, shown), mosaics, class_names)
    lines = bias_lines(method, pairs, named, counts_CC, class_names, min_share)
    if mosaics.source.split(":")[0] == "museum" and set(museum.PLANTED) <= set(class_names):
        line, rank = planted_line(pairs, one_sided, class_names)
        return [*lines, line], {"bias/planted_rank": rank}
    return lines, {}


def bias_lines(
    method: str,
    pairs: Sequence[bias.Pair],
    named: Sequence[bias.Pair],
    counts_CC: np.ndarray,
    class_names: Sequence[str],
    min_share: float,
) -> list[str]:
    """A sentence for each pair worth naming, and how far to trust them."""
    if named:
        caution = (
            f"{len(pairs)} pairs were compared at 95 % each, so about {math.ceil(0.025 * len(pairs))} would look "
            "lifted without any bias: trust the largest, and look at the tiles."
        )
        return [*(pair_line(method, pair, counts_CC, class_names) for pair in named), caution]
    line = f"No pair of classes draws clearly more relevance than chance ({method}, {len(pairs)} pairs)."
    if faint := [pair for pair in pairs if pair.kind == "faint"]:
        line += (
            f" {len(faint)} draw more than no bias gives, but less than {100 * min_share:g} % a tile, which "
            "spill over the tiles' edges explains as well."
        )
    return [line]


def write_pairs(
    workdir: pathlib.Path, pairs: Sequence[bias.Pair], counts_CC: np.ndarray, class_names: Sequence[str]
) -> None:
    """bias.csv, and the largest lifts as a table of the report."""
    rows = [
        {
            "explained": class_names[pair.target],
            "tiles_of": class_names[pair.other],
            **{name: getattr(pair, name) for name in PAIR_COLUMNS},
            "taken_for_it": int(counts_CC[pair.other, pair.target]),
        }
        for pair in pairs
    ]
    rows = [_without_nan(row) for row in rows]
    if rows:
        files.write_csv(workdir / "bias.csv", tuple(rows[0]), [tuple(row.values()) for row in rows])
    files.write_rows(workdir / "tables/bias.jsonl", rows[:30])


def pair_line(method: str, pair: bias.Pair, counts_CC: np.ndarray, class_names: Sequence[str]) -> str:
    explained, tiles = class_names[pair.target], class_names[pair.other]
    kinds = {
        "shortcut": f"one-sided, a shortcut: the model reads something on pictures of {tiles} as {explained}",
        "confusion": "the reverse pair is lifted too: a confusion of the two classes",
    }
    wrong, all_tiles = counts_CC[pair.other, pair.target], max(counts_CC[pair.other].sum(), 1)
    return (
        f"Bias: where {explained} is explained, a tile of {tiles} draws {100 * pair.share:.1f} % of the relevance, "
        f"{pair.lift:.2f} times what it would without a bias ({method}; 95 % interval {pair.low:.2f} to "
        f"{pair.high:.2f}, {pair.count} tiles of {pair.pictures} pictures); {kinds[pair.kind]}. "
        f"Alone, {100 * wrong / all_tiles:.0f} % of {tiles} tiles are taken for {explained}."
    )


def planted_line(
    pairs: Sequence[bias.Pair], one_sided: Sequence[bias.Pair], class_names: Sequence[str]
) -> tuple[str, float]:
    """Whether the bias that the embedded museum plants was found, and its rank among the shortcuts (0: not found)."""
    marked, borrower = (class_names.index(name) for name in museum.PLANTED)
    rank, place = (
        next((i for i, pair in enumerate(some, 1) if (pair.target, pair.other) == (marked, borrower)), 0)
        for some in (one_sided, pairs)
    )
    planted = f"Planted in this museum: every picture of {museum.PLANTED[0]} carries a colour chart, and so do some of "
    planted += f"{museum.PLANTED[1]}, where training never showed one. "
    verdict = f"Found: number {rank} of {len(one_sided)} shortcuts" if rank else "Not found as a shortcut"
    return f"{planted}{verdict}; by lift alone number {place or '–'} of {len(pairs)} pairs.", float(rank)


def draw_pairs(
    folder: pathlib.Path,
    method: str,
    scores: Scores,
    tiles: Mapping[bias.Pair, Sequence[tuple[int, int]]],
    maps: Mapping[int, np.ndarray],
    mosaics: MosaicSet,
    class_names: Sequence[str],
) -> None:
    """Of each pair its strongest tiles, with a frame around most of the relevance, and below with the heat on them."""
    sheet = []
    for pair, places in tiles.items():
        plain, heat = [], []
        for m, position in places:
            number = int(scores["mosaic"][m])
            tile, relevance = (bias.tile_of(whole, position) for whole in (mosaics.picture(number), maps[number]))
            box = bias.crop_box(relevance)
            share = scores["share"][m, position]
            words = f"{class_names[pair.other]} as\n{class_names[pair.target]}? {share:.2f}"
            plain.append((tile if box is None else pictures.outlined(tile, box), words))
            heat.append((pictures.heat_over(tile, relevance), ""))
        sheet += [plain, heat]
    caption = (
        f"Tiles that draw most when another class is explained ({method}), and the share they draw; the frame holds "
        "the strongest tenth of it that lies together."
    )
    pictures.contact_sheet(folder / "6_biased_tiles.png", sheet, caption=caption)
