"""Several sources in fixed shares of the rows: which row stands at a place of the endless order.

The order goes in rounds of ROUND places. In each round a source has its share of the places, at random; it goes through
its own rows in an order of its own, and begins again when they are used up. A place's row is a function of the seed and
of the place's number, so a run resumes anywhere without reading what came before.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from alignment.errors import InputError

ROUND = 1_000  # places, so shares are kept to a thousandth in every round


def check(paths: Sequence[str], shares: Sequence[float]) -> None:
    """Refuse shares that do not go with the paths.

    Raises:
        InputError: another number of shares than paths, or one that is less than a thousandth of all.
    """
    if len(paths) != len(shares):
        raise InputError(
            f"data.shares={tuple(shares)} has {len(shares)} shares for {len(paths)} paths, {', '.join(paths)}"
        )
    if odd := [share for share in shares if not isinstance(share, (int, float)) or isinstance(share, bool)]:
        raise InputError(f"data.shares={tuple(shares)} has {odd[0]!r}, which is not a number")
    if any(not share > 0 for share in shares) or min(shares) < sum(shares) / ROUND:
        raise InputError(
            f"data.shares={tuple(shares)}: each must be positive, and at least {1 / ROUND:g} of their sum; leave out "
            "the path of a source that is not to be read"
        )


def order(source_N: np.ndarray, shares: Sequence[float], *, seed: int) -> Callable[[int], int]:
    """A place of the endless order to the number of its row.

    Args:
        source_N: which source each row is of.
        shares: of each source, of any sum.

    Raises:
        InputError: a source has no row.
    """
    rows_of = [np.flatnonzero(source_N == number) for number in range(len(shares))]
    if empty := [number for number, rows in enumerate(rows_of) if not len(rows)]:
        raise InputError(f"source {empty[0]} of data.path, counted from 0, has no row to train on, and a share of them")
    counts = _counts(shares)

    @functools.lru_cache(maxsize=4)  # a batch may lie across the border of two rounds
    def placed(number: int) -> tuple[np.ndarray, np.ndarray]:
        """For a round: the source of each place, and how many of that source's places come before it in the round."""
        sources = np.repeat(np.arange(len(counts)), counts)
        sources = np.random.default_rng([seed % 2**32, 0, number]).permutation(sources)
        before = np.zeros(ROUND, np.int64)
        for source, count in enumerate(counts):
            before[sources == source] = np.arange(count)
        return sources, before

    @functools.lru_cache(maxsize=2 * len(counts))
    def permuted(source: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([seed % 2**32, 1, source, epoch]).permutation(rows_of[source])

    def row(place: int) -> int:
        number, within = divmod(int(place), ROUND)
        sources, before = placed(number)
        source = int(sources[within])
        epoch, at = divmod(number * counts[source] + int(before[within]), len(rows_of[source]))
        return int(permuted(source, epoch)[at])

    return row


def _counts(shares: Sequence[float]) -> list[int]:
    """Places of each source in a round: the largest remainders get what rounding down leaves."""
    exact = np.array(shares, float) / sum(shares) * ROUND
    counts = np.floor(exact).astype(int)
    for source in np.argsort(counts - exact, kind="stable")[: ROUND - counts.sum()]:
        counts[source] += 1
    return counts.tolist()
