"""Samples with positions, cut into tasks: tiles of a grid, whose cells are places; far tiles are for testing.

A tile is a task and its cells are places; `place_batches` draws batches of tasks.

Dimensions: N samples, D features.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment import errors
from alignment.errors import InputError
from data import loader

CLASSIFICATION, REGRESSION, COUNTS = "classification", "regression", "counts"
KINDS = (CLASSIFICATION, REGRESSION, COUNTS)
MOST_CLASSES = 10  # whole numbers up to which a target without a kind is one of classes
TRAIN, VAL, TEST = "meta_train", "meta_val", "meta_test"
FOLDS = (TRAIN, VAL, TEST)
SIDES = ("east", "west", "north", "south")
TRIED = (48, 32, 24, 16, 12, 8, 6, 5, 4, 3, 2)  # tiles along the longer side of an area, where a grid sets none
ENOUGH = 20_000  # samples that the scale of features is taken from

Box = tuple[float, float, float, float]  # west, south, east, north


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples with positions.

    `x` [N,D] or [N,T,F] is an array, or a view that reads rows when it is indexed. `y_N` holds classes as int32 or
    numbers as float32. `xy_N2` is longitude and latitude in degrees, or x and y of a plane. `line_N` says where in
    `source` a sample came from. `outcome_N` is 0 or 1 where a table has such a column.
    """

    x: Any
    y_N: np.ndarray
    xy_N2: np.ndarray
    line_N: np.ndarray
    source: str
    is_degrees: bool
    features: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    outcome_N: np.ndarray | None = None
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    digest: str = ""

    @property
    def is_classes(self) -> bool:
        return bool(self.class_names)


@dataclasses.dataclass(frozen=True)
class Grid:
    """How an area is cut.

    Args:
        tile: side of a tile, in degrees or in the plane's unit; None: the longer side of the area is `tiles` of them.
        tiles: read where `tile` is None; None takes the number of TRIED that leaves most tiles with enough places.
        cells: g; a tile has g x g cells, its places.
        least_places: places that a tile needs, at least 2.
        test_side: where the tiles for testing lie: east, west, north or south of all others.
        test_share: of the tiles, about.
        val_share: of the other tiles, drawn at random for validation.
    """

    tile: float | None = None
    tiles: int | None = None
    cells: int = 4
    least_places: int = 9
    test_side: str = "east"
    test_share: float = 0.3
    val_share: float = 0.2

    def __post_init__(self) -> None:
        errors.one_of("grid.test_side", self.test_side, SIDES)
        errors.within("(0, inf)", **{"grid.tile": self.tile}, hint=": the side of a tile")
        if self.tile is not None and self.tiles is not None:
            raise InputError(f"grid.tiles={self.tiles} is read where grid.tile is not set; leave one of them out")
        for name, least in (("tiles", 2), ("cells", 1), ("least_places", 2)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                why = "; evenness over fewer places says nothing" if name == "least_places" else ""
                raise InputError(f"grid.{name}={getattr(self, name)} must be at least {least}{why}")
        if self.least_places > self.cells**2:
            raise InputError(
                f"grid.least_places={self.least_places} is more than the {self.cells**2} cells of a tile; lower it, or "
                "raise grid.cells"
            )
        for name in ("test_share", "val_share"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"grid.{name}={getattr(self, name)} must lie between 0 and 1")


@dataclasses.dataclass(frozen=True)
class Place:
    """A cell of a tile: its samples, and where a stored task says it, which of them are query samples."""

    index_N: np.ndarray
    box: Box
    is_query_N: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Region:
    """A tile: a task."""

    id: str
    box: Box
    places: tuple[Place, ...]
    fold: str = TRAIN

    @property
    def num_samples(self) -> int:
        return sum(len(place.index_N) for place in self.places)


def cut(samples: Samples, grid: Grid, *, least: int) -> tuple[list[Region], dict[str, int]]:
    """Tiles with enough places, and counts of what was left out.

    Args:
        least: samples that a place needs: those of its support set and of its query set.

    Raises:
        InputError: fewer than 3 tiles are left; features that are not finite.
    """
    side = _side(samples.xy_N2, grid, least)
    keys_P4, place_N, count_P = np.unique(
        _cells(samples.xy_N2, side, grid.cells), axis=0, return_inverse=True, return_counts=True
    )
    order_N = np.argsort(place_N.ravel(), kind="stable")
    members = np.split(order_N, np.cumsum(count_P)[:-1])
    counts = {"places": len(keys_P4), "places with too few samples": 0, "samples in them": 0}
    by_tile: dict[tuple[int, int], list[Place]] = {}
    for (tile_x, tile_y, cell_x, cell_y), index_N in zip(keys_P4.tolist(), members):
        inside = by_tile.setdefault((tile_x, tile_y), [])
        if len(index_N) < least:
            counts["places with too few samples"] += 1
            counts["samples in them"] += len(index_N)
            continue
        west, south = (tile_x + cell_x / grid.cells) * side, (tile_y + cell_y / grid.cells) * side
        inside.append(Place(index_N, (west, south, west + side / grid.cells, south + side / grid.cells)))
    regions = []
    counts |= {"tiles": len(by_tile), "tiles with too few places": 0, "samples in those tiles": 0}
    for (tile_x, tile_y), places in sorted(by_tile.items()):
        if len(places) < grid.least_places:
            counts["tiles with too few places"] += 1
            counts["samples in those tiles"] += sum(len(place.index_N) for place in places)
            continue
        box = (tile_x * side, tile_y * side, (tile_x + 1) * side, (tile_y + 1) * side)
        regions.append(Region(f"{tile_x}_{tile_y}", box, tuple(places)))
    if counts["tiles with too few places"]:
        print(
            f"warning: {counts['tiles with too few places']} of {len(by_tile)} tiles have fewer than "
            f"{grid.least_places} places of {least} samples and are skipped",
            flush=True,
        )
    if len(regions) < 3:
        raise InputError(
            f"{len(regions)} of {len(by_tile)} tiles of side {side:g} have {grid.least_places} places of {least} "
            "samples, and at least 3 are needed, to train, to choose and to test; lower grid.least_places, support or "
            "query, or change grid.tile or grid.cells"
        )
    check_finite(samples, regions)
    return regions, counts


def _cells(xy_N2: np.ndarray, side: float, cells: int) -> np.ndarray:
    """Tile and cell of each sample, [N,4]: x and y of the tile, x and y of the cell in it."""
    # Whole multiples of the side, so that more samples do not move the tiles.
    tile_N2 = np.floor(xy_N2 / side).astype(np.int64)
    cell_N2 = np.clip(((xy_N2 / side - tile_N2) * cells).astype(np.int64), 0, cells - 1)
    return np.concatenate([tile_N2, cell_N2], axis=1)


def _side(xy_N2: np.ndarray, grid: Grid, least: int) -> float:
    """The side of a tile: as the grid says, or the one of TRIED that leaves most tiles with enough places."""
    longer = float(np.ptp(xy_N2, axis=0).max())
    if not longer > 0:
        raise InputError("all samples lie at one point; places need an area")
    if grid.tile is not None or grid.tiles is not None:
        return grid.tile or longer / grid.tiles

    def num_tiles(tiles: int) -> int:
        keys_P4, count_P = np.unique(_cells(xy_N2, longer / tiles, grid.cells), axis=0, return_counts=True)
        _, places_T = np.unique(keys_P4[count_P >= least, :2], axis=0, return_counts=True)
        return int((places_T >= grid.least_places).sum())

    side = longer / max(TRIED, key=num_tiles)
    print(f"grid.tile is not set: tiles of side {side:.4g} leave most tiles with enough places", flush=True)
    return side


def fold(regions: Sequence[Region], grid: Grid, *, seed: int) -> list[Region]:
    """The tiles with their folds: whole columns or rows of tiles on one side are for testing.

    Raises:
        InputError: no tile is left to train on, to choose by or to test on.
    """
    axis, sign = {"east": (0, -1), "west": (0, 1), "north": (1, -1), "south": (1, 1)}[grid.test_side]
    corner_R = np.array([region.box[axis] for region in regions])
    is_test_R = np.zeros(len(regions), bool)
    for corner in np.unique(corner_R)[::sign]:
        if is_test_R.mean() >= grid.test_share:
            break
        is_test_R |= corner_R == corner
    rest = np.flatnonzero(~is_test_R)
    num_val = min(max(1, round(grid.val_share * len(rest))), len(rest) - 1)
    val = set(np.random.default_rng(seed).permutation(rest)[: max(num_val, 0)].tolist())
    names = [TEST if is_test else VAL if r in val else TRAIN for r, is_test in enumerate(is_test_R)]
    folded = [dataclasses.replace(region, fold=name) for region, name in zip(regions, names)]
    check_folds(folded)
    return folded


def check_folds(regions: Sequence[Region]) -> None:
    """Refuse folds without a tile, and tiles for testing that lie on others.

    Raises:
        InputError: names the fold, or both tiles.
    """
    for name in FOLDS:
        if not any(region.fold == name for region in regions):
            number = ", ".join(f"{sum(r.fold == f for r in regions)} {f}" for f in FOLDS)
            raise InputError(f"no tile is {name} ({number}); use smaller tiles, or another grid.test_share")
    others = [region for region in regions if region.fold != TEST]
    boxes_R4 = np.array([region.box for region in others])
    for region in regions:
        if region.fold != TEST:
            continue
        west, south, east, north = region.box
        touches_R = (boxes_R4[:, 0] < east) & (boxes_R4[:, 2] > west)
        touches_R &= (boxes_R4[:, 1] < north) & (boxes_R4[:, 3] > south)
        # Neighbours share an edge, which rounding may turn into a sliver.
        overlap_R = np.minimum(boxes_R4[:, 2], east) - np.maximum(boxes_R4[:, 0], west)
        overlap_R = np.minimum(overlap_R, np.minimum(boxes_R4[:, 3], north) - np.maximum(boxes_R4[:, 1], south))
        touches_R &= overlap_R > 1e-6 * (east - west)
        if touches_R.any():
            other = others[int(np.argmax(touches_R))]
            raise InputError(
                f"tile {region.id} ({TEST}) {_words(region.box)} lies on tile {other.id} ({other.fold}) "
                f"{_words(other.box)}; tiles for testing lie outside the training area"
            )


def _words(box: Box) -> str:
    return "[" + ", ".join(f"{side:g}" for side in box) + "]"


def check_finite(samples: Samples, regions: Sequence[Region]) -> None:
    """Refuse features and targets that are not finite; the message names task and row."""
    for region in regions:
        for place in region.places:
            values = np.asarray(samples.x[place.index_N])
            is_fine_N = np.isfinite(values.reshape(len(values), -1)).all(1) & np.isfinite(samples.y_N[place.index_N])
            if not is_fine_N.all():
                line = samples.line_N[place.index_N[int(np.argmin(is_fine_N))]]
                raise InputError(
                    f"task {region.id}: row {line} of {samples.source} has a feature or target that is not finite; "
                    "mend it, or leave it out"
                )


# Scales


class Scaled:
    """Rows of samples less a mean, divided by a deviation; rows are read when they are asked for."""

    def __init__(self, x: Any, mean_D: np.ndarray, deviation_D: np.ndarray):
        self._x, self._mean_D, self._deviation_D = x, mean_D, deviation_D
        self.shape = x.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return ((self._x[index] - self._mean_D) / self._deviation_D).astype(np.float32)


def standardise(samples: Samples, regions: Sequence[Region], *, seed: int = 0) -> tuple[Samples, float]:
    """Features, and a target of numbers, with mean 0 and deviation 1 over the training tiles.

    Returns:
        The samples, and the target's deviation, 1 for classes; qualities are in that unit.
    """
    index_N = np.concatenate([place.index_N for region in regions if region.fold == TRAIN for place in region.places])
    if len(index_N) > ENOUGH:
        index_N = np.random.default_rng(seed).choice(index_N, ENOUGH, replace=False)
    values = np.asarray(samples.x[index_N], np.float64)
    values = values.reshape(-1, values.shape[-1])
    mean_D, deviation_D = values.mean(0), values.std(0)
    # A constant feature says nothing and stays 0.
    x = Scaled(samples.x, mean_D, np.where(deviation_D > 0, deviation_D, 1.0))
    if samples.is_classes:
        return dataclasses.replace(samples, x=x), 1.0
    mean, deviation = float(samples.y_N[index_N].mean()), float(samples.y_N[index_N].std()) or 1.0
    y_N = ((samples.y_N - mean) / deviation).astype(np.float32)
    return dataclasses.replace(samples, x=x, y_N=y_N), deviation


# Counts


def count_cells(samples: Samples, *, side: float, rings: int, seed: int) -> Samples:
    """Positions to a regression: how many of half of the rows lie in a cell, by how many of the others lie around it.

    Rows are dealt into two halves at random. A sample is a cell of side `side`; its features are log(1 + count) of the
    first half in the cells up to `rings` away, its own too, and its target is log(1 + count) of the second half in it.
    Cells without a row of the first half around them are left out.
    """
    errors.within("(0, inf)", **{"data.counts.side": side}, hint=": the side of a cell")
    errors.within("[0, inf)", **{"data.counts.rings": rings}, hint=": the cells around one, to every side")
    is_first_N = np.random.default_rng(seed).permutation(len(samples.xy_N2)) % 2 == 0
    cell_N2 = np.floor(samples.xy_N2 / side).astype(np.int64)
    low_2 = cell_N2.min(0)
    shape = tuple((cell_N2.max(0) - low_2 + 1).tolist())
    if math.prod(shape) > 1 << 26:
        raise InputError(f"data.counts.side={side} makes {shape[0]} x {shape[1]} cells; take a larger side")
    halves = []
    for of_half_N in (is_first_N, ~is_first_N):
        counts_XY = np.zeros(shape, np.int64)
        np.add.at(counts_XY, tuple((cell_N2[of_half_N] - low_2).T), 1)
        halves.append(counts_XY)
    around_XY = np.pad(halves[0], rings)
    window = np.lib.stride_tricks.sliding_window_view(around_XY, (2 * rings + 1, 2 * rings + 1))
    counted_XYD = window.reshape(*shape, -1)
    has_XY = counted_XYD.sum(-1) > 0
    cells_N2 = np.argwhere(has_XY)
    x_ND = np.log1p(counted_XYD[has_XY]).astype(np.float32)
    y_N = np.log1p(halves[1][has_XY]).astype(np.float32)
    names = tuple(f"log count {dx:+d} {dy:+d}" for dx in range(-rings, rings + 1) for dy in range(-rings, rings + 1))
    counts = dict(samples.counts)
    counts |= {"rows that are counted around cells": int(is_first_N.sum())}
    counts |= {"rows that are counted in cells": int((~is_first_N).sum())}
    counts |= {"rows in cells without any around": int(halves[1][~has_XY].sum()), "samples": len(cells_N2)}
    digest = loader.digest(x_ND, y_N, texts=[samples.digest])
    return Samples(
        x_ND,
        y_N,
        (cells_N2 + low_2 + 0.5) * side,
        np.arange(len(cells_N2)),
        f"cells of {samples.source}",
        samples.is_degrees,
        names,
        counts=counts,
        digest=digest,
    )


def facts(regions: Sequence[Region]) -> dict[str, int]:
    """Numbers of tiles and places by fold, for the report."""
    out = {}
    for name in FOLDS:
        inside = [region for region in regions if region.fold == name]
        out[f"{name}: tiles"] = len(inside)
        out[f"{name}: places"] = sum(len(region.places) for region in inside)
    return out


def named(regions: Sequence[Region], fold_name: str) -> list[Region]:
    return [region for region in regions if region.fold == fold_name]
