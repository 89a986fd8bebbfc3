"""The grid: a cell is one mark under one attack of one strength, and depends on no other cell.

A finished cell is a file of one row and a note of its checksum (`data/corpus/shards.py`), so that a run goes on where
it was killed, on any executor, and ends in the same bytes. When a cell fails, its row has the error; the others go on.
"""

import dataclasses
import functools
import pathlib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError
from alignment.watermark import marks, protocol, quality
from alignment.watermark.marks import Mark
from data.corpus import executors, shards
from experiments.image_watermarks import attacks, given
from experiments.report import progress

NONE = "none"  # the attack that does nothing: its cell has the distances of clean pictures
STAGE = "cells"
PICTURES = "pictures"
PERFORMANCES = ("P", "tpr_at_1_fpr", "auroc", "balanced_accuracy")


@dataclasses.dataclass(frozen=True)
class Cell:
    """Where a number is measured."""

    mark: str
    attack: str
    strength: float


@dataclasses.dataclass(frozen=True)
class Grid:
    """What all cells share; it travels to the workers.

    Attributes:
        folder: an absolute path with prepared/ (arrays and weights) and the cells.
        digest: of the arrays, the weights and all that a cell reads.
        setup: removal, spoofing or combined: what is attacked.
        options: of `attacks.apply`.
        given: a user's own weights, see `given.plain`.
    """

    folder: str
    digest: str
    setup: str
    user: int
    seed: int
    options: Mapping[str, Any]
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def prepared(self, name: str) -> np.ndarray:
        """An array of pictures; it stays on disk until it is read."""
        return np.load(pathlib.Path(self.folder, "prepared", f"{name}.npy"), mmap_mode="r", allow_pickle=False)


def cells_of(names: Iterable[str], strengths: Mapping[str, Sequence[float]]) -> list[Cell]:
    """Every mark without an attack, then under each attack at each of its strengths, from weak to strong."""
    return [
        cell
        for mark in names
        for cell in [Cell(mark, NONE, 0.0), *(Cell(mark, attack, r) for attack, rs in strengths.items() for r in rs)]
    ]


def unmarked(mark: str) -> str:
    """The array that stands for unmarked pictures.

    Informed detection of a picture equal to its original has nothing to read, so there it is that of another user.
    """
    return of_second_user(mark) if given.is_informed(mark) else PICTURES


def of_second_user(mark: str) -> str:
    """The array of another user's marked pictures."""
    return f"{mark}-other"


def row_of(grid: Grid, cell: Cell) -> dict[str, Any]:
    """Distances of marked and unmarked pictures where the set-up attacks them, and what the attack cost in quality."""
    out: dict[str, Any] = dataclasses.asdict(cell)
    prepared = pathlib.Path(grid.folder, "prepared")
    mark = given.mark_of(cell.mark, prepared, grid.given)
    key = mark.key_fn(grid.user)
    out["num_bits"] = len(key) if mark.is_bits else None
    sides = {"marked": cell.mark, "unmarked": unmarked(cell.mark)}
    spared = {"removal": ("unmarked",), "spoofing": ("marked",), "combined": ()}[grid.setup]
    for side, name in sides.items():
        if cell.attack != NONE and side in spared:
            continue
        before = np.asarray(grid.prepared(name))
        after = before
        if cell.attack != NONE:
            more = dict(mark=cell.mark, weights=str(prepared), options=grid.options, given=grid.given)
            after = attacks.apply(cell.attack, before, cell.strength, seed=grid.seed, **more)
        originals = [np.asarray(grid.prepared(PICTURES))] if mark.is_informed else []
        out |= readings(mark, side, after, key, *originals)
        if "psnr" not in out:
            if cell.attack == NONE and cell.mark in given.DECODERS:
                continue  # the user's marked pictures have no unmarked twins
            if cell.attack == NONE:
                before = np.asarray(grid.prepared(PICTURES))  # what the mark itself costs
            out |= qualities(before, after, given.measures(grid.given))
    return out


def readings(mark: Mark, side: str, images: np.ndarray, key: np.ndarray, *originals: np.ndarray) -> dict[str, Any]:
    """Distances of pictures and their p-values; of rings, too, the chances that another user's key is as near.

    Args:
        side: marked or unmarked.

    Raises:
        InputError: a distance that is not finite; names the picture.
    """
    if mark.rings:
        cells = mark.rings.cells_fn(images)
        distances = mark.rings.distance(cells, key)
    else:
        distances = mark.distance_fn(images, key, *originals)
    bad = np.flatnonzero(~np.isfinite(distances))
    if len(bad):
        raise InputError(f"the distance of the {side} picture {bad[0]} is {distances[bad[0]]}")
    out: dict[str, Any] = {side: distances.tolist()}
    if mark.rings:
        out[f"p_{side}"] = marks.ring_p_value(cells, key).tolist()
        if side == "marked":
            out["chances"] = mark.rings.chances_fn(cells, key).tolist()
    elif mark.is_bits:
        matches = np.rint((1 - distances) * len(key)).astype(int)
        out[f"p_{side}"] = [protocol.p_value(number, len(key)) for number in matches.tolist()]
    elif mark.is_informed:
        out[f"p_{side}"] = marks.cox_p_value(-distances).tolist()
    return out


def qualities(
    before: np.ndarray, after: np.ndarray, more: Mapping[str, Callable[[np.ndarray, np.ndarray], Any]]
) -> dict[str, Any]:
    """Means over the pictures; where one has a value that is not finite, the metric is blank and the picture named.

    NMI is not defined for two constant pictures: they are left out of its mean and counted.

    Args:
        more: measures of a user's weights, a number a picture or one for all.
    """
    measured = {name: metric_fn(before, after) for name, metric_fn in {**quality.METRICS, **more}.items()}
    out: dict[str, Any] = {"not_finite": {}}
    for name, values in measured.items():
        bad = np.flatnonzero(~np.isfinite(np.atleast_1d(values))).tolist()
        if name == "nmi":
            out["nmi_undefined"] = len(bad)
            out[name] = float(np.nanmean(values)) if len(bad) < len(values) else None
        elif bad:
            out["not_finite"][name] = bad if np.ndim(values) else ["all pictures"]
            out[name] = None
        else:
            out[name] = float(np.mean(values))
    return out


def measure(grid: Grid, task: tuple[int, Cell]) -> int:
    """Measure a cell and leave its row; a failure is the cell's own."""
    index, cell = task
    try:
        row = row_of(grid, cell)
    except Exception as e:  # any: a codec, memory, a network; the row says which
        where = traceback.extract_tb(e.__traceback__)[-1]
        place = f"{pathlib.Path(where.filename).name}:{where.lineno}"
        row = dataclasses.asdict(cell) | {"error": f"{type(e).__name__}: {e} ({place})"}
    name = f"cells/{index:06d}.jsonl"
    summary = shards.write(pathlib.Path(grid.folder, name), [row])
    note = {"config_hash": grid.digest, "outputs": {name: summary}}
    shards.finish(grid.folder, STAGE, index, note)
    return index


def through(grid: Grid, cells: Sequence[Cell], **options: Any) -> list[dict[str, Any]]:
    """Measure the cells that are not done, and return the rows of all in order.

    Args:
        options: of `executors.opened`.
    """
    done = shards.finished(grid.folder, STAGE, grid.digest, is_checked=True)
    todo = [(i, cell) for i, cell in enumerate(cells) if i not in done]
    bar = progress.Progress(STAGE, len(todo), items=STAGE)
    with executors.opened(functools.partial(measure, grid), **options) as run_tasks:
        for _ in run_tasks(todo):
            bar.advance(1, 1)
    if todo:
        bar.close()
    rows = [row for i in range(len(cells)) for row in shards.read(pathlib.Path(grid.folder, f"cells/{i:06d}.jsonl"))]
    if [Cell(row["mark"], row["attack"], row["strength"]) for row in rows] != list(cells):
        raise InputError(f"{grid.folder}/cells has rows of another grid; remove that folder, or take another workdir")
    return rows


def performance(row: Mapping[str, Any], clean: Mapping[str, Any]) -> dict[str, float | None]:
    """P, the rate of detection at 0.1 % false positives, that at 1 %, the area under the curve, and the best accuracy.

    None where the cell or that of clean pictures failed.
    """
    if "error" in row or "error" in clean:
        return dict.fromkeys(PERFORMANCES)
    marked, bare = (np.array(row.get(side, clean[side])) for side in ("marked", "unmarked"))
    rates = [protocol.true_positive_rate(marked, bare, fpr=fpr) for fpr in (protocol.FPR, 0.01)]
    return dict(zip(PERFORMANCES, (*rates, protocol.auroc(marked, bare), protocol.balanced_accuracy(marked, bare))))
