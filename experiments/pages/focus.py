"""What a run of focus.py leaves behind: tables, pictures, and in words what was found.

A `study` is focus_study.Study: a network, its mosaics, and what was measured of them. Scores by method are arrays of
`focus.measure`, under the test they were made in: "trained", "R1", "R2" by layers redrawn, "R3".

Dimensions: M mosaics, 4 tiles, N tiles, Y X rows and columns, C channels or classes.
"""

import csv
import hashlib
import io
import json
import math
import pathlib

import flax
import numpy as np

from alignment import files
from alignment.evaluation import classification
from alignment.explain import bias, focus, gradcam, graph
from data.pictures import mosaics
from data.toys import museum
from experiments.report import pictures

SCORES = ("mosaic", "dataset", "arch", "method", "target_class", "focus", "tp", "fp", "tn", "fn", "pos_total")
TESTS = {"R1": "random weights", "R3": "absent class"}


def write(study, trained, randomised, curves, predicted_N: np.ndarray) -> dict[str, float]:
    """All of it; returns what it adds to the summary.

    Args:
        trained: {method: scores}.
        randomised: {"R1": {method: scores}, "R3": ...}.
        curves: {method: {layers redrawn: scores}}.
        predicted_N: the class that the network gives each tile alone.
    """
    write_tables(study, trained, randomised, curves)
    draw(study, trained, randomised, curves)
    lines = rating_lines(study, trained, randomised, predicted_N)
    found, more = biases(study, trained, predicted_N)
    files.write(study.workdir / "findings.txt", lambda f: f.write("".join(f"{x}\n" for x in lines + found).encode()))
    return more


def write_tables(study, trained, randomised, curves) -> None:
    """scores.csv, summary.csv, manifest.json, and the tables and curves of the report."""
    about = {"dataset": study.dataset, "arch": study.net.arch}
    tests = [("trained", 0, trained), *((test, 0, found) for test, found in randomised.items())]
    tests += [("R2", k, {method: found[k]}) for method, found in curves.items() for k in found]
    rows = {"trained": [], "randomised": []}
    summaries = []
    for test, k, by_method in tests:
        for method, found in by_method.items():
            kind = "trained" if test == "trained" else "randomised"
            extra = {} if test == "trained" else {"test": test, "layers": k}
            for i, m in enumerate(found["mosaic"]):
                numbers = {name: float(found[name][i]) for name in SCORES[5:]}
                own = {"mosaic": int(m), **about, "method": method, "target_class": int(study.plan.target[m])}
                rows[kind].append(own | numbers | extra)
            numbers = focus.summary(found["focus"])
            summaries.append({**about, "method": method, "test": test, "layers": k, **numbers})
    write_csv(study.workdir / "scores.csv", SCORES, rows["trained"])
    write_csv(study.workdir / "scores_randomised.csv", (*SCORES, "test", "layers"), rows["randomised"])
    write_csv(study.workdir / "summary.csv", tuple(summaries[0]), summaries)
    shown = [{k: v for k, v in row.items() if k not in about} for row in summaries]
    shown = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in shown]
    files.write_rows(study.workdir / "tables/focus.jsonl", [row for row in shown if row["test"] != "R2"])
    steps = sorted({k for found in curves.values() for k in found}) or [0]
    medians = {
        k: {f"cascade/{method}": focus.summary(found[k]["focus"])["median"] for method, found in curves.items()}
        for k in steps
    }
    lines = [{"step": k} | {name: v for name, v in medians[k].items() if not math.isnan(v)} for k in steps]
    lines[0] |= {f"focus/{method}": m for method, found in trained.items() if (m := _median(found)) == m}
    files.write_rows(study.workdir / "metrics.jsonl", lines)
    write_manifest(study)
    if study.c.save_mosaics:
        built = mosaics.assemble(study.tiles_NYXC, study.plan.tile_index)
        mosaics.write(study.workdir / "mosaics", built, study.plan, names=study.names)


def _median(found) -> float:
    return focus.summary(found["focus"])["median"]


def write_csv(path: pathlib.Path, columns, rows) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write(path, lambda f: f.write(out.getvalue().encode()))


def write_manifest(study) -> None:
    """Seeds, layers and weights: what a score depends on beside the config."""
    flat = flax.traverse_util.flatten_dict(flax.linen.meta.unbox(dict(study.net.variables)), sep="/")
    weights = {name: hashlib.sha256(np.asarray(value).tobytes()).hexdigest()[:16] for name, value in flat.items()}
    forward = graph.trace(study.net.model.apply, study.net.variables, study.example)
    manifest = {
        "seed": study.c.seed,
        "init_from": study.c.init_from,
        "arch": study.net.arch,
        "class_names": list(study.net.class_names),
        "mosaic_size": list(study.example.shape[1:3]),
        "mosaics": len(study.plan),
        "methods": {method: study.options(method) for method in study.c.methods},
        "gradcam_layer": gradcam.default_layer(forward),
        "layers": ["/".join(path) for path in study.layers],
        "weights_sha256": weights,
    }
    content = json.dumps(manifest, indent=2, default=str)
    files.write(study.workdir / "manifest.json", lambda f: f.write(content.encode()))


def draw(study, trained, randomised, curves) -> None:
    """Box plots, randomisation curves, and maps over mosaics."""
    folder = study.workdir / "figures"
    groups = {
        method: {"trained": found["focus"]}
        | {TESTS[test]: by[method]["focus"] for test, by in randomised.items() if method in by}
        for method, found in trained.items()
    }
    caption = f"Focus of each method on {study.net.arch}: positive relevance on the tiles of the class explained, as a "
    caption += "share of all. Dashed: chance."
    pictures.boxes(folder / "1_focus.png", groups, caption=caption, label="Focus", chance=0.5)
    lines = {m: [(k, _median(v)) for k, v in sorted(found.items())] for m, found in curves.items()}
    caption = "Median Focus as layers are redrawn from the top; a map that explains the model falls to chance."
    pictures.curves(
        folder / "2_cascade.png", lines, caption=caption, x_label="layers redrawn", y_label="median Focus", chance=0.5
    )
    sheet = []
    for m in study.shown:
        image_YXC = study.mosaic(m)
        row = [(image_YXC, f"explained: {study.class_name(study.plan.target[m])}")]
        for method, found in trained.items():
            if m in found.get("kept", ()):
                k, i = list(found["kept"]).index(m), list(found["mosaic"]).index(m)
                score = found["focus"][i]
                row.append((pictures.heat_over(image_YXC, found["kept_maps"][k]), f"{method} {score:.2f}"))
        sheet.append(row)
    caption = "Mosaics and every method's map: red speaks for the class explained, blue against; beside each its Focus."
    pictures.contact_sheet(folder / "3_maps.png", sheet, caption=caption)


# Findings


def rating_lines(study, trained, randomised, predicted_N: np.ndarray) -> list[str]:
    order = sorted(trained, key=lambda method: -np.nan_to_num(_median(trained[method]), nan=-1))
    ranked = ", ".join(f"{method} {_median(trained[method]):.2f}" for method in order)
    accuracy = 100 * (predicted_N == study.labels_N).mean()
    lines = [f"The network ({study.net.arch}) recognises {accuracy:.1f} % of the single tiles."]
    lines += [f"Median Focus over the mosaics (chance is 0.50): {ranked}."]
    words = {"R1": "With all weights redrawn", "R3": "Explaining a class that the mosaic does not show"}
    expected = {"R1": "0.50 is expected", "R3": "1/3, one class of three, to 1/2 is expected"}
    for test, by_method in randomised.items():
        if by_method:
            numbers = ", ".join(f"{method} {_median(found):.2f}" for method, found in by_method.items())
            lines.append(f"{words[test]}: {numbers} ({expected[test]}).")
    undefined = {m: int(np.isnan(found["focus"]).sum()) for m, found in trained.items()}
    if any(undefined.values()):
        words = ", ".join(f"{n} of {method}" for method, n in undefined.items() if n)
        lines.append(f"Maps without any positive relevance have no Focus and are left out: {words}.")
    return lines


def biases(study, trained, predicted_N: np.ndarray) -> tuple[list[str], dict[str, float]]:
    """The bias finder: its table and pictures, what it found in words, and numbers for the summary."""
    c, folder = study.c.bias, study.workdir / "figures"
    method = c.method or max(trained, key=lambda m: np.nan_to_num(_median(trained[m]), nan=-1))
    found = trained[method]
    ids, num_classes = found["mosaic"], study.net.num_classes
    matrix = bias.matrix(
        found["share"],
        study.plan.tile_label[ids],
        study.plan.target[ids],
        picture_M4=study.plan.tile_index[ids],
        num_classes=num_classes,
        num_samples=c.num_samples,
        seed=study.c.seed,
    )
    pairs = bias.ranking(matrix, min_count=c.min_count, min_share=c.min_share)
    counts = classification.confusion(study.labels_N, predicted_N, num_classes)
    write_pairs(study, pairs, counts)
    class_names = [study.class_name(k) for k in range(num_classes)]
    if num_classes <= 100:
        words = f"Lift of each class's tiles when another is explained ({method}); 1 is what no bias gives."
        pictures.matrix(
            folder / "4_bias.png", matrix.lift, class_names, caption=words, rows="explained", columns="tile"
        )
        words = "The plain confusion matrix on single tiles, for what mosaics add to it."
        pictures.matrix(folder / "5_confusion.png", counts, class_names, caption=words, label="tiles")
    one_sided = sorted((pair for pair in pairs if pair.kind == "shortcut"), key=lambda pair: -pair.one_sided)
    named = one_sided[: c.pairs] + [pair for pair in pairs if pair.kind == "confusion"][: c.pairs]
    draw_pairs(study, method, found, named or pairs[: c.pairs])
    lines = [pair_line(study, method, pair, counts) for pair in named]
    if not named:
        lines = [f"No pair of classes draws clearly more relevance than chance ({method}, {len(pairs)} pairs)."]
        if faint := [pair for pair in pairs if pair.kind == "faint"]:
            lines[0] += (
                f" {len(faint)} draw more than no bias gives, but less than {100 * c.min_share:g} % a tile, which "
                "spill over the tiles' edges explains as well."
            )
    else:
        lines.append(
            f"{len(pairs)} pairs were compared at 95 % each, so about {math.ceil(0.025 * len(pairs))} would look "
            "lifted without any bias: trust the largest, and look at the tiles."
        )
    if study.dataset.split(":")[0] == "museum" and set(museum.PLANTED) <= set(class_names):
        line, rank = planted_line(pairs, one_sided, class_names)
        return [*lines, line], {"bias/planted_rank": rank}
    return lines, {}


def write_pairs(study, pairs, counts) -> None:
    rows = [
        {
            "explained": study.class_name(p.target),
            "tiles_of": study.class_name(p.other),
            **{
                name: getattr(p, name) for name in ("lift", "low", "high", "share", "count", "pictures", "back", "kind")
            },
            "taken_for_it": int(counts[p.other, p.target]),
        }
        for p in pairs
    ]
    rows = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]
    if rows:
        write_csv(study.workdir / "bias.csv", tuple(rows[0]), rows)
    files.write_rows(study.workdir / "tables/bias.jsonl", rows[:30])


def pair_line(study, method: str, pair: bias.Pair, counts) -> str:
    explained, tiles = study.class_name(pair.target), study.class_name(pair.other)
    kinds = {
        "shortcut": f"one-sided, a shortcut: the model reads something on pictures of {tiles} as {explained}",
        "confusion": "the reverse pair is lifted too: a confusion of the two classes",
    }
    wrong, all_tiles = counts[pair.other, pair.target], max(counts[pair.other].sum(), 1)
    return (
        f"Bias: where {explained} is explained, a tile of {tiles} draws {100 * pair.share:.1f} % of the relevance, "
        f"{pair.lift:.2f} times what it would without a bias ({method}; 95 % interval {pair.low:.2f} to "
        f"{pair.high:.2f}, {pair.count} tiles of {pair.pictures} pictures); {kinds[pair.kind]}. "
        f"Alone, {100 * wrong / all_tiles:.0f} % of {tiles} tiles are taken for {explained}."
    )


def planted_line(pairs, one_sided, class_names) -> tuple[str, float]:
    """Whether the bias that the embedded museum plants was found, and its place among the shortcuts; 0: it was not."""
    marked, borrower = (class_names.index(name) for name in museum.PLANTED)
    rank, place = (
        next((i for i, p in enumerate(some, 1) if (p.target, p.other) == (marked, borrower)), 0)
        for some in (one_sided, pairs)
    )
    words = f"Planted in this museum: every picture of {museum.PLANTED[0]} carries a colour chart, and so do some of "
    words += f"{museum.PLANTED[1]}, where training never showed one. "
    found = f"Found: number {rank} of {len(one_sided)} shortcuts" if rank else "Not found as a shortcut"
    return f"{words}{found}; by lift alone number {place or '–'} of {len(pairs)} pairs.", float(rank)


def draw_pairs(study, method: str, found, pairs) -> None:
    """For each pair its tiles of the largest share: as they are, with the heat on them, and where most of it lies."""
    if not pairs:
        return
    labels_M4, target_M = study.plan.tile_label[found["mosaic"]], study.plan.target[found["mosaic"]]
    tops = {
        pair: bias.top_tiles(
            found["share"],
            labels_M4,
            target_M,
            target=pair.target,
            other=pair.other,
            picture_M4=study.plan.tile_index[found["mosaic"]],
            num=study.c.bias.tiles,
        )
        for pair in pairs
    }
    ids = np.unique([found["mosaic"][m] for top in tops.values() for m, _ in top])
    kept, _ = study.rate(method, ids, keep=set(ids.tolist()))
    maps = dict(zip(kept["kept"].tolist(), kept["kept_maps"]))
    sheet = []
    for pair, top in tops.items():
        plain, heat = [], []
        for m, place in top:
            number = int(found["mosaic"][m])
            tile, relevance = (bias.tile_of(a, place) for a in (study.mosaic(number), maps[number]))
            box = bias.crop_box(relevance)
            names = [study.class_name(label) for label in (pair.other, pair.target)]
            words = f"{names[0]} as\n{names[1]}? {found['share'][m, place]:.2f}"
            plain.append((tile if box is None else pictures.outlined(tile, box), words))
            heat.append((pictures.heat_over(tile, relevance), ""))
        sheet += [plain, heat]
    caption = (
        f"Tiles that draw most when another class is explained ({method}), and the share they draw; the frame holds "
        "the strongest tenth of it that lies together."
    )
    pictures.contact_sheet(study.workdir / "figures" / "6_biased_tiles.png", sheet, caption=caption)
