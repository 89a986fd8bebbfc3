"""Rows of texts in which the beginnings that texts share stand once: prefix trees, as `trees` lays them out.

Texts that open alike (a system prompt, the turns of a dialogue, a template) are one bundle, and bundles are packed like
single texts. A token that several texts have in common is read once, and learned once for all of them: its target has
the number of texts that count it as its weight, so the loss and its gradient are those of rows without sharing.

Dimensions: N rows, T places and targets of a row.
"""

from collections.abc import Sequence

import numpy as np

from data.texts import packing, trees

Piece = tuple[np.ndarray, np.ndarray]  # token ids, and of each 1 where it is a target
MIN_SHARED = 16  # tokens that texts must have in common to be one bundle


def pack(pieces: Sequence[Piece], num_time: int) -> list[list[int]]:
    """The numbers of the pieces in each row.

    Args:
        pieces: each of at most num_time + 1 tokens.
    """
    bundles = _bundles(pieces, num_time)
    sizes = [size([pieces[i] for i in inside]) for inside in bundles]
    return [[i for b in row for i in bundles[b]] for row in packing.first_fit(sizes, num_time)]


def _bundles(pieces: Sequence[Piece], num_time: int) -> list[list[int]]:
    """Neighbours by their tokens that begin alike, as many as a row holds, in the order of their first piece."""
    order, shared = trees.by_tokens([ids for ids, _ in pieces])
    bundles: list[list[int]] = []
    room, is_counted = 0, np.zeros(0, bool)  # of the tokens on the last piece's way: whether some piece counts them
    for i, k in zip(order, shared):
        ids, counts = pieces[i]
        k = min(k, len(ids) - 1)  # of what is read; the last token is a target only
        # What a piece adds to its row: places for what it does not share, and targets that none before it counts.
        more = max(len(ids) - 1 - k, int(counts[k:].sum()) + int((counts[1:k].astype(bool) & ~is_counted[1:k]).sum()))
        if k >= MIN_SHARED and bundles and more <= room:
            bundles[-1].append(i)
            room -= more
            is_counted = np.concatenate([is_counted[:k] | counts[:k].astype(bool), counts[k:].astype(bool)])
        else:
            bundles.append([i])
            room, is_counted = num_time - size([pieces[i]]), counts.astype(bool)
    return sorted(bundles, key=min)


def size(pieces: Sequence[Piece]) -> int:
    """Places that these pieces need in a row, for what is read and for the targets."""
    forest = _forest(pieces)
    return max(len(forest.tokens), len(_edges(forest, pieces)))


def _forest(pieces: Sequence[Piece]) -> trees.Forest:
    """What is read of the pieces: all but their last tokens."""
    return trees.lay_out([ids[:-1] for ids, _ in pieces], least=MIN_SHARED)


def fill(rows: Sequence[Sequence[Piece]], *, num_time: int, pad_id: int) -> dict[str, np.ndarray]:
    """The rows as a batch.

    Returns:
        tokens, positions, ends: [N,T] int32, as of `trees.fill`. sources, targets: [N,T] int32, the place that predicts
            a target, and the target. mask: [N,T] float32, how many texts count it; 0 on filling.
    """
    shape = (len(rows), num_time)
    batch = {name: np.zeros(shape, np.int32) for name in ("positions", "ends", "sources", "targets")}
    batch |= {"tokens": np.full(shape, pad_id, np.int32), "mask": np.zeros(shape, np.float32)}
    for n, pieces in enumerate(rows):
        forest = _forest(pieces)
        edges = _edges(forest, pieces)
        stop = len(forest.tokens)
        if max(stop, len(edges)) > num_time:
            raise ValueError(f"a row needs {max(stop, len(edges))} places and has {num_time}")
        for name in ("tokens", "positions", "ends"):
            batch[name][n, :stop] = getattr(forest, name)
        for place, ((source, target), weight) in enumerate(edges.items()):
            batch["sources"][n, place], batch["targets"][n, place], batch["mask"][n, place] = source, target, weight
    return batch


def _edges(forest: trees.Forest, pieces: Sequence[Piece]) -> dict[tuple[int, int], int]:
    """(place that predicts, target) to the number of pieces that count it, in the order of the pieces."""
    edges: dict[tuple[int, int], int] = {}
    for (ids, counts), places in zip(pieces, forest.places):
        for at in np.flatnonzero(counts[1:]):
            edge = (int(places[at]), int(ids[at + 1]))
            edges[edge] = edges.get(edge, 0) + 1
    return edges
