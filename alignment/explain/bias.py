"""What a model confuses, found on mosaics without any label of it: which other classes' tiles draw relevance.

Idea of Arias-Duart et al. 2022 (arXiv:2109.15035); the procedure is ours. Use maps of a method whose Focus is high:
where the method is reliable, relevance off the target is the model's doing. The same authors later looked for biases
without attributions (Electronics 12(14):3066, 2023), which makes a good control.

Dimensions: M mosaics, 4 tiles, C classes (rows: explained, columns: of the tile), R bootstrap samples, Y X pixels.
"""

import dataclasses

import numpy as np

from alignment.errors import InputError


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Where relevance goes, class by class; NaN on the diagonal of all but `count` and where there is no tile.

    Attributes:
        share: [C, C] B[t, o], the mean share of positive relevance on a tile of class o when t is explained.
        count: [C, C] tiles that mean is over.
        lift: [C, C] B[t, o] over what a tile off the target expects under no bias, (1 - mean Focus of t) / 2.
        low, high: [C, C] ends of the lift's 95 % bootstrap interval, over mosaics.
        focus: [C] mean Focus of t.
    """

    share: np.ndarray
    count: np.ndarray
    lift: np.ndarray
    low: np.ndarray
    high: np.ndarray
    focus: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pair:
    """One entry of the ranking: tiles of `other` when `target` is explained.

    `kind` is 'shortcut' when relevance flows one way only (the model reads something on the other class's pictures as
    the target), 'confusion' when it flows both ways, 'unclear' when the interval holds 1.
    """

    target: int
    other: int
    lift: float
    low: float
    high: float
    share: float
    count: int
    back: float  # lift of the reverse pair; NaN where that has no tile
    kind: str

    @property
    def one_sided(self) -> float:
        """How much more lift this way has than the reverse."""
        return self.lift - (0.0 if np.isnan(self.back) else self.back)


def matrix(
    share_M4: np.ndarray,
    tile_label_M4: np.ndarray,
    target_M: np.ndarray,
    *,
    num_classes: int,
    num_samples: int = 1_000,
    seed: int = 0,
) -> Matrix:
    """B, its lift, and bootstrap intervals of the lift.

    Args:
        share_M4: the share of positive relevance on each tile (`focus.measure`); mosaics with NaN are left out.
        num_samples: R; each resamples the mosaics of a target, with what they do to its mean Focus.
    """
    share_M4, tile_label_M4, target_M = (np.asarray(a) for a in (share_M4, tile_label_M4, target_M))
    if share_M4.shape != tile_label_M4.shape or share_M4.shape != (len(target_M), 4):
        raise InputError(
            f"shares {share_M4.shape}, labels {tile_label_M4.shape}, targets {target_M.shape}: [M, 4], [M]"
        )
    found = {name: np.full((num_classes, num_classes), np.nan) for name in ("share", "lift", "low", "high")}
    count, focus = np.zeros((num_classes, num_classes), int), np.full(num_classes, np.nan)
    rng = np.random.default_rng(seed)
    for t in range(num_classes):
        rows = np.flatnonzero((target_M == t) & np.isfinite(share_M4).all(1))
        if not len(rows):
            continue
        sums_mC, tiles_mC = _by_class(share_M4[rows], tile_label_M4[rows], num_classes)
        draws_Rm = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=num_samples)
        with np.errstate(invalid="ignore", divide="ignore"):
            focus[t] = sums_mC[:, t].mean()
            found["share"][t] = sums_mC.sum(0) / tiles_mC.sum(0)
            found["lift"][t] = 2 * found["share"][t] / (1 - focus[t])
            focus_R1 = (draws_Rm @ sums_mC[:, t : t + 1]) / len(rows)
            lift_RC = 2 * (draws_Rm @ sums_mC) / (draws_Rm @ tiles_mC) / (1 - focus_R1)
        for o in np.flatnonzero(tiles_mC.sum(0)):
            finite_R = lift_RC[np.isfinite(lift_RC[:, o]), o]  # a sample may hold no tile of a rare class
            found["low"][t, o], found["high"][t, o] = (
                np.percentile(finite_R, [2.5, 97.5]) if len(finite_R) else 2 * [np.nan]
            )
        count[t] = tiles_mC.sum(0)
        for values in found.values():
            values[t, t] = np.nan
    return Matrix(count=count, focus=focus, **found)


def ranking(found: Matrix, *, min_count: int = 10) -> list[Pair]:
    """Pairs by falling lift; without those of fewer than `min_count` tiles."""
    with np.errstate(invalid="ignore"):
        is_lifted = found.low > 1
    pairs = []
    for t, o in zip(*np.nonzero(np.isfinite(found.lift) & (found.count >= min_count))):
        is_mutual = is_lifted[o, t] and found.count[o, t] >= min_count
        kind = "unclear" if not is_lifted[t, o] else "confusion" if is_mutual else "shortcut"
        numbers = {name: float(getattr(found, name)[t, o]) for name in ("lift", "low", "high", "share")}
        back = float(found.lift[o, t])
        pairs.append(Pair(int(t), int(o), **numbers, count=int(found.count[t, o]), back=back, kind=kind))
    return sorted(pairs, key=lambda pair: (-pair.lift, pair.target, pair.other))


def top_tiles(
    share_M4: np.ndarray, tile_label_M4: np.ndarray, target_M: np.ndarray, *, target: int, other: int, num: int = 8
) -> list[tuple[int, int]]:
    """(mosaic, position) of the tiles of class `other` that draw most when `target` is explained, largest first."""
    is_pair_M4 = (np.asarray(tile_label_M4) == other) & (np.asarray(target_M) == target)[:, None]
    places = np.argwhere(is_pair_M4 & np.isfinite(share_M4))
    order = np.argsort([-share_M4[m, i] for m, i in places], kind="stable")[:num]
    return [(int(places[k][0]), int(places[k][1])) for k in order]


def tile_of(map_YX: np.ndarray, position: int) -> np.ndarray:
    """One quadrant of a map or a mosaic, split as Focus splits it."""
    y, x = map_YX.shape[0] // 2, map_YX.shape[1] // 2
    rows = slice(None, y) if position < 2 else slice(y, None)
    columns = slice(None, x) if position % 2 == 0 else slice(x, None)
    return map_YX[rows, columns]


def crop_box(map_YX: np.ndarray, *, percentile: float = 90.0, num_cells: int = 16) -> tuple[int, int, int, int] | None:
    """Where on a tile the most relevance lies together: (top, bottom, left, right), ends excluded.

    Positive relevance is summed over a grid of cells, since maps such as LRP's are made of points; of the cells at or
    above the percentile, the connected group that holds most is boxed. None where there is no positive relevance.
    """
    from skimage import measure  # takes a second to import

    positive_YX = np.maximum(np.asarray(map_YX, np.float64), 0)
    if not positive_YX.any():
        return None
    ys = np.unique(np.linspace(0, positive_YX.shape[0], num_cells + 1).round().astype(int))
    xs = np.unique(np.linspace(0, positive_YX.shape[1], num_cells + 1).round().astype(int))
    cells = np.add.reduceat(np.add.reduceat(positive_YX, ys[:-1], axis=0), xs[:-1], axis=1)
    is_high = (cells >= np.percentile(cells, percentile)) & (cells > 0)
    groups = measure.label(is_high, connectivity=1)
    masses = np.bincount(groups.ravel(), weights=(cells * is_high).ravel())
    rows, columns = np.nonzero(groups == masses[1:].argmax() + 1)
    return int(ys[rows.min()]), int(ys[rows.max() + 1]), int(xs[columns.min()]), int(xs[columns.max() + 1])


def _by_class(share_m4: np.ndarray, label_m4: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each mosaic, the relevance on the tiles of each class, and their number: two arrays [m, C]."""
    sums, tiles = np.zeros((len(share_m4), num_classes)), np.zeros((len(share_m4), num_classes), int)
    rows = np.arange(len(share_m4))[:, None]
    np.add.at(sums, (rows, label_m4), share_m4)
    np.add.at(tiles, (rows, label_m4), 1)
    return sums, tiles
