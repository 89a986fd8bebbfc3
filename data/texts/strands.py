"""Rows of prefix trees expanded into ordinary sequences, for attention kernels that know nothing but those.

A strand is the way from a root to a leaf: one whole sequence. Strands stand in bins of one length, and a token that
several of them share has a copy in each. Queries, keys and values are copied there for the attention alone, so what the
row saves everywhere else it keeps.

Dimensions: N rows, T places of a row, X bins of a row, L places of a bin, C copies of a token.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

LENGTH_UNIT = 128  # tiles of the kernels


class Tree(Protocol):
    """What is read of `trees.Forest`."""

    ends: np.ndarray
    places: list[np.ndarray]


class Shape(NamedTuple):
    """Of the arrays of a row: X, L and C."""

    num_bins: int
    length: int
    num_copies: int


def length_for(longest: int) -> int:
    """L for strands of at most so many tokens."""
    return -(-longest // LENGTH_UNIT) * LENGTH_UNIT


def of(tree: Tree) -> list[np.ndarray]:
    """The places of each strand, once each, the longest first."""
    lasts = {int(places[-1]): places for places in tree.places if len(places)}
    leaves = [places for last, places in lasts.items() if tree.ends[last] == last + 1]
    return sorted(leaves, key=lambda places: (-len(places), int(places[-1])))


def binned(tree: Tree, length: int, *, one_each: bool) -> list[list[np.ndarray]]:
    """The strands of each bin: first-fit decreasing.

    Args:
        one_each: a bin for each strand, as kernels want it that know only where a sequence ends.

    Raises:
        ValueError: a strand is longer than a bin.
    """
    bins: list[list[np.ndarray]] = []
    rooms: list[int] = []
    for places in of(tree):
        if len(places) > length:
            raise ValueError(f"a sequence has {len(places)} tokens and a bin {length} places")
        fits = [] if one_each else [x for x, room in enumerate(rooms) if room >= len(places)]
        x = fits[0] if fits else len(bins)
        if not fits:
            bins.append([])
            rooms.append(length)
        bins[x].append(places)
        rooms[x] -= len(places)
    return bins


def need(tree: Tree, length: int, *, one_each: bool) -> Shape:
    """The least shape that holds a row's strands."""
    bins = binned(tree, length, one_each=one_each)
    copies = np.bincount(np.concatenate([places for inside in bins for places in inside])) if bins else np.zeros(1, int)
    return Shape(max(len(bins), 1), length, max(int(copies.max()), 1))


def fill(rows: Sequence[Tree], shape: Shape, *, num_time: int, one_each: bool) -> dict[str, np.ndarray]:
    """The arrays of several rows.

    Returns:
        seats: [N,X,L] int32, the place in its row of what stands here; -1 on filling.
        strands: [N,X,L] int32, the number of the strand in its bin, from 1; 0 on filling.
        copies: [N,C,T] int32, the seats X*L of each place of the row, -1 where it has fewer. The first one's output is
            the token's.
    """
    N, (X, L, C) = len(rows), shape
    seats, strands = np.full((N, X, L), -1, np.int32), np.zeros((N, X, L), np.int32)
    copies = np.full((N, C, num_time), -1, np.int32)
    for n, row in enumerate(rows):
        num_copies = np.zeros(num_time, int)
        for x, inside in enumerate(binned(row, L, one_each=one_each)):
            at = 0
            for number, places in enumerate(inside):
                here = slice(at, at + len(places))
                seats[n, x, here], strands[n, x, here] = places, number + 1
                copies[n, num_copies[places], places] = x * L + np.arange(at, here.stop)
                num_copies[places] += 1
                at = here.stop
    return {"seats": seats, "strands": strands, "copies": copies}
