"""The bias finder's part of a page of focus.py: pairs of classes, how firmly each is said, and their tiles.

Dimensions: M mosaics, 4 tiles, C classes.
"""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alignment import files
from alignment.evaluation import classification
from alignment.explain import bias
from data.toys import museum
from experiments.explanations.study import Classifier, MosaicSet, Scores
from experiments.pages.focus import Results, without_nan
from experiments.report import pictures

PAIR_COLUMNS = ("lift", "low", "high", "share", "excess", "count", "pictures", "back", "kind")
MANY_CLASSES = 100  # more have no readable matrix
CLEAR_FALSE = 0.05  # false finds expected among all pairs, at most, for a pair that is said to be clear
CLEAR_EXCESS = 0.05  # share of the relevance beyond what no bias gives, at least


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
    by_kind = {kind: strongest(pairs, kind) for kind in ("shortcut", "confusion")}
    named = [pair for some in by_kind.values() for pair in some[:num_pairs]]
    named = sorted(named, key=lambda pair: not is_clear(pair, len(pairs)))  # a stable order: the clear ones first
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
        image_ids = np.unique([ids[m] for places in tiles.values() for m, _ in places])
        draw_pairs(folder, method, scores, tiles, maps_fn(method, image_ids), mosaics, class_names)
    lines = bias_lines(method, pairs, named, counts_CC, class_names, min_share)
    if mosaics.source.split(":")[0] == "museum" and set(museum.PLANTED) <= set(class_names):
        line, rank = planted_line(pairs, by_kind["shortcut"], class_names)
        return [*lines, line], {"bias/planted_rank": rank}
    return lines, {}


def strongest(pairs: Sequence[bias.Pair], kind: str) -> list[bias.Pair]:
    """The pairs of a kind by falling excess; a confusion, which is lifted both ways, once, by its stronger way."""
    ordered = sorted((pair for pair in pairs if pair.kind == kind), key=lambda pair: -pair.excess)
    out: dict[frozenset[int], bias.Pair] = {}
    for pair in ordered:
        out.setdefault(frozenset((pair.target, pair.other)), pair)
    return list(out.values())


def num_false(pair: bias.Pair, num_pairs: int) -> float:
    """How many of all pairs compared would look as lifted as this one without any bias, on average."""
    return num_pairs * pair.chance


def is_clear(pair: bias.Pair, num_pairs: int) -> bool:
    """Whether a pair is said firmly: chance does not explain it, and it draws more than next to nothing."""
    return num_false(pair, num_pairs) <= CLEAR_FALSE and pair.excess >= CLEAR_EXCESS


def bias_lines(
    method: str,
    pairs: Sequence[bias.Pair],
    named: Sequence[bias.Pair],
    counts_CC: np.ndarray,
    class_names: Sequence[str],
    min_share: float,
) -> list[str]:
    """A sentence for each pair worth naming, the strongest first, and how far to trust them."""
    if named:
        lifted = [pair for pair in pairs if pair.kind in ("shortcut", "confusion")]
        num_clear = sum(is_clear(pair, len(pairs)) for pair in lifted)
        caution = (
            f"{len(pairs)} pairs were compared, {len(lifted)} are lifted beyond their 95 % interval and {num_clear} of "
            f"these are clear; without any bias about {math.ceil(0.025 * len(pairs))} would be lifted so. A pair is "
            f"clear where at most {CLEAR_FALSE:g} false finds are expected and a tile draws at least "
            f"{100 * CLEAR_EXCESS:g} % of the relevance beyond what no bias gives. Look at the tiles."
        )
        return [*(pair_line(method, pair, len(pairs), counts_CC, class_names) for pair in named), caution]
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
            "false_finds": num_false(pair, len(pairs)),
            "taken_for_it": int(counts_CC[pair.other, pair.target]),
        }
        for pair in pairs
    ]
    rows = [without_nan(row) for row in rows]
    if rows:
        files.write_csv(workdir / "bias.csv", tuple(rows[0]), [tuple(row.values()) for row in rows])
    files.write_rows(workdir / "tables/bias.jsonl", rows[:30])


def pair_line(method: str, pair: bias.Pair, num_pairs: int, counts_CC: np.ndarray, class_names: Sequence[str]) -> str:
    """A pair in words that are as firm as its evidence."""
    explained, tiles = class_names[pair.target], class_names[pair.other]
    kinds = {
        "shortcut": f"one-sided, a shortcut: the model reads something on pictures of {tiles} as {explained}",
        "confusion": "the reverse pair is lifted too: a confusion of the two classes",
    }
    expected = num_false(pair, num_pairs)
    false = "fewer than 0.01" if expected < 0.01 else f"{expected:.2f}" if expected < 1 else f"{expected:.1f}"
    reasons = [f"a tile draws only {100 * pair.excess:.1f} % too much"] if pair.excess < CLEAR_EXCESS else []
    reasons += ["chance may explain it"] if expected > CLEAR_FALSE else []
    firmness = f"Weak ({', '.join(reasons)})" if reasons else "Clear"
    wrong, all_tiles = counts_CC[pair.other, pair.target], max(counts_CC[pair.other].sum(), 1)
    return (
        f"{firmness}: where {explained} is explained, a tile of {tiles} draws {100 * pair.share:.1f} % of the "
        f"relevance, {pair.lift:.2f} times what it would without a bias ({method}; 95 % interval {pair.low:.2f} to "
        f"{pair.high:.2f}, {pair.count} tiles of {pair.pictures} pictures); {kinds[pair.kind]}. Without any bias "
        f"{false} of {num_pairs} pairs would look so lifted. "
        f"Alone, {100 * wrong / all_tiles:.0f} % of {tiles} tiles are taken for {explained}."
    )


def planted_line(
    pairs: Sequence[bias.Pair], shortcuts: Sequence[bias.Pair], class_names: Sequence[str]
) -> tuple[str, float]:
    """Whether the bias that the embedded museum plants was found, and its rank among the shortcuts (0: not found)."""
    marked, borrower = (class_names.index(name) for name in museum.PLANTED)
    rank, place = (
        next((i for i, pair in enumerate(some, 1) if (pair.target, pair.other) == (marked, borrower)), 0)
        for some in (shortcuts, pairs)
    )
    planted = f"Planted in this museum: every picture of {museum.PLANTED[0]} carries a colour chart, and so do some of "
    planted += f"{museum.PLANTED[1]}, where training never showed one. "
    verdict = f"Found: number {rank} of {len(shortcuts)} shortcuts" if rank else "Not found as a shortcut"
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
