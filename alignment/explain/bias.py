"""A model's confusions, from mosaics without a label of them: the tiles of other classes that draw relevance.

Idea of Arias-Duart et al. 2022 (arXiv:2109.15035); the procedure is ours. Use maps of a method whose Focus is high:
where the method is reliable, relevance off the target is the model's doing. The same authors later looked for biases
without attributions (Electronics 12(14):3066, 2023), which makes a good control.

Dimensions: M mosaics, 4 tiles, C classes (rows: explained, columns: of the tile), R bootstrap samples, P pictures, Y X
pixels.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from alignment import intervals
from alignment.errors import InputError


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Where relevance goes, class by class; NaN on the diagonal of all but `count` and where there is no tile.

    Attributes:
        share: [C, C] B[t, o], the mean share of positive relevance on a tile of class o when t is explained.
        count: [C, C] tiles that mean is over.
        pictures: [C, C] different pictures among these.
        lift: [C, C] B[t, o] over what a tile off the target expects under no bias, (1 - mean Focus of t) / 2.
        low, high: [C, C] ends of the lift's 95 % bootstrap interval, over mosaics by their pictures of o.
        focus: [C] mean Focus of t.
    """

    share: np.ndarray
    count: np.ndarray
    pictures: np.ndarray
    lift: np.ndarray
    low: np.ndarray
    high: np.ndarray
    focus: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pair:
    """One entry of the ranking: tiles of `other` when `target` is explained.

    `kind` is 'shortcut' when relevance flows one way only (the model reads something on the other class's pictures as
    the target), 'confusion' when it flows both ways, 'unclear' when the interval holds 1, 'faint' when it does not but
    the tiles draw so little that spill over their edges may be all of it.
    """

    target: int
    other: int
    lift: float
    low: float
    high: float
    share: float
    count: int
    pictures: int
    back: float  # lift of the reverse pair; NaN where that has no tile
    kind: str

    @property
    def excess(self) -> float:
        """Share of the relevance that a tile draws beyond what it would without a bias: share - share / lift."""
        return self.share * (1 - 1 / self.lift) if self.lift > 0 else 0.0

    @property
    def chance(self) -> float:
        """Probability that a pair without a bias looks at least so lifted, of Student's t-test on the log of the lift.

        The bootstrap interval gives the standard error, and the pictures the degrees of freedom: intervals of few
        pictures are too narrow for a normal distribution's tails.
        """
        from scipy import special  # a quarter of a second to import

        if self.pictures < 2 or not 0 < self.low <= self.high or not np.isfinite(self.high):
            return 1.0
        error = (np.log(self.high) - np.log(self.low)) / (2 * intervals.normal_quantile(0.95))
        return float(special.stdtr(self.pictures - 1, -np.log(self.lift) / max(error, 1e-12)))


def matrix(
    share_M4: np.ndarray,
    tile_label_M4: np.ndarray,
    target_M: np.ndarray,
    *,
    num_classes: int,
    picture_M4: np.ndarray | None = None,
    num_samples: int = 1_000,
    seed: int = 0,
) -> Matrix:
    """B, its lift, and bootstrap intervals of the lift.

    Args:
        share_M4: the share of positive relevance on each tile (`focus.measure`); mosaics with NaN are left out.
        picture_M4: which picture each tile is. Many tiles of few pictures say little more than these pictures, so
            mosaics with the same picture of a class are drawn together. None: every tile is another picture.
        num_samples: R.
    """
    share_M4, tile_label_M4, target_M = (np.asarray(a) for a in (share_M4, tile_label_M4, target_M))
    picture_M4 = np.arange(share_M4.size).reshape(share_M4.shape) if picture_M4 is None else np.asarray(picture_M4)
    if not share_M4.shape == tile_label_M4.shape == picture_M4.shape == (len(target_M), 4):
        raise InputError(
            f"shares {share_M4.shape}, labels {tile_label_M4.shape}, pictures {picture_M4.shape}, targets "
            f"{target_M.shape}: need [M, 4] three times, and [M]"
        )
    shape = (num_classes, num_classes)
    share, lift, low, high = (np.full(shape, np.nan) for _ in range(4))
    count, pictures = np.zeros(shape, int), np.zeros(shape, int)
    focus = np.full(num_classes, np.nan)
    rng = np.random.default_rng(seed)
    for t in range(num_classes):
        rows = np.flatnonzero((target_M == t) & np.isfinite(share_M4).all(1))
        if not len(rows):
            continue
        share_m4, label_m4, picture_m4 = share_M4[rows], tile_label_M4[rows], picture_M4[rows]
        focus_m = (share_m4 * (label_m4 == t)).sum(1)
        focus[t], count[t, t] = focus_m.mean(), (label_m4 == t).sum()
        for o in set(np.unique(label_m4).tolist()) - {t}:
            is_of_m4 = label_m4 == o
            count[t, o], pictures[t, o] = is_of_m4.sum(), len(np.unique(picture_m4[is_of_m4]))
            share[t, o] = share_m4[is_of_m4].mean()
            group_m = _groups(is_of_m4, picture_m4)
            # each mean is a quotient of two sums, and both are resampled
            sums = (share_m4 * is_of_m4).sum(1), is_of_m4.sum(1), 1 - focus_m, np.ones(len(rows))
            share_R, tiles_R, off_R, mosaics_R = _drawn(rng, sums, group_m, num_samples)
            with np.errstate(invalid="ignore", divide="ignore"):
                lift[t, o] = 2 * share[t, o] / (1 - focus[t])
                # half of the relevance off the target is what one of two outer tiles gets without a bias
                lift_R = 2 * (share_R / tiles_R) / (off_R / mosaics_R)
            finite_R = lift_R[np.isfinite(lift_R)]  # a sample may hold no tile of a rare class
            if len(finite_R):
                low[t, o], high[t, o] = np.percentile(finite_R, [2.5, 97.5])
    return Matrix(share=share, count=count, pictures=pictures, lift=lift, low=low, high=high, focus=focus)


def _groups(is_of_m4: np.ndarray, picture_m4: np.ndarray) -> np.ndarray:
    """A number for each mosaic, shared by those that show the same picture of the class; these are drawn together."""
    # `argmax` of flags is the first tile of the class; where there is none, `alone_m` takes its place.
    first_m = picture_m4[np.arange(len(is_of_m4)), is_of_m4.argmax(1)]
    # Mosaics without the class get numbers above all pictures', each its own, and are drawn alone.
    alone_m = picture_m4.max() + 1 + np.arange(len(is_of_m4))
    return np.unique(np.where(is_of_m4.any(1), first_m, alone_m), return_inverse=True)[1]


def _drawn(
    rng: np.random.Generator, columns: Sequence[np.ndarray], group_m: np.ndarray, num_samples: int
) -> list[np.ndarray]:
    """Sums of each column over bootstrap samples of whole groups, [R] each."""
    num_groups = group_m.max() + 1
    # a sample of whole groups is their counts; sums over it are one product with each group's sums
    draws_RG = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=num_samples)
    return [draws_RG @ np.bincount(group_m, column, num_groups) for column in columns]


def ranking(matrix: Matrix, *, min_count: int = 10, min_share: float = 0.0) -> list[Pair]:
    """Pairs by falling lift.

    Args:
        matrix: from `matrix`.
        min_count: tiles that a pair needs; others are left out.
        min_share: of relevance that a tile draws on average; lifted pairs below are 'faint'. Where mean Focus is nearly
            1 no bias expects next to nothing of a tile, and any spill over its edges is a large lift.
    """
    with np.errstate(invalid="ignore"):
        is_lifted = (matrix.low > 1) & (matrix.count >= min_count)
        is_faint = is_lifted & (matrix.share < min_share)
    pairs = []
    for t, o in zip(*np.nonzero(np.isfinite(matrix.lift) & (matrix.count >= min_count))):
        # A faint lift the other way is spill over edges, and does not make a shortcut a confusion.
        is_mutual = is_lifted[o, t] and not is_faint[o, t]
        kind = "confusion" if is_mutual else "shortcut"
        kind = "unclear" if not is_lifted[t, o] else "faint" if is_faint[t, o] else kind
        pairs.append(
            Pair(
                target=int(t),
                other=int(o),
                lift=float(matrix.lift[t, o]),
                low=float(matrix.low[t, o]),
                high=float(matrix.high[t, o]),
                share=float(matrix.share[t, o]),
                count=int(matrix.count[t, o]),
                pictures=int(matrix.pictures[t, o]),
                back=float(matrix.lift[o, t]),
                kind=kind,
            )
        )
    return sorted(pairs, key=lambda pair: (-pair.lift, pair.target, pair.other))


def top_tiles(
    share_M4: np.ndarray,
    tile_label_M4: np.ndarray,
    target_M: np.ndarray,
    *,
    target: int,
    other: int,
    picture_M4: np.ndarray | None = None,
    num: int = 8,
) -> list[tuple[int, int]]:
    """(mosaic, position) of the tiles of class `other` that draw most when `target` is explained, largest first.

    With `picture_M4` each picture once, where it draws most.
    """
    is_pair_M4 = (np.asarray(tile_label_M4) == other) & (np.asarray(target_M) == target)[:, None]
    places = [(int(m), int(i)) for m, i in np.argwhere(is_pair_M4 & np.isfinite(share_M4))]
    places = sorted(places, key=lambda place: -share_M4[place])
    if picture_M4 is not None:
        most: dict[int, tuple[int, int]] = {}
        for place in places:
            # Places come from the largest share down, so the first one of a picture is where it draws most.
            most.setdefault(int(picture_M4[place]), place)
        places = list(most.values())
    return places[:num]


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
    # cells of equal size up to a pixel, since a tile's side need not be a multiple of num_cells
    cells = np.add.reduceat(np.add.reduceat(positive_YX, ys[:-1], axis=0), xs[:-1], axis=1)
    is_high = (cells >= np.percentile(cells, percentile)) & (cells > 0)
    groups = measure.label(is_high, connectivity=1)
    masses = np.bincount(groups.ravel(), weights=(cells * is_high).ravel())
    rows, columns = np.nonzero(groups == masses[1:].argmax() + 1)
    return int(ys[rows.min()]), int(ys[rows.max() + 1]), int(xs[columns.min()]), int(xs[columns.max() + 1])
