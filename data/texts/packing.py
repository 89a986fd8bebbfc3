"""Packing: many token sequences into rows of one length, each in a group of its own."""

import heapq
from collections.abc import Sequence


def chunks(lengths: Sequence[int], num_time: int) -> list[tuple[int, int, int]]:
    """Pieces (sequence, start, stop) of at most `num_time` tokens, so that no token is lost.

    A piece after the first begins with the last token of the one before: that token was a target there and is input
    here, so every token except a sequence's first is a target exactly once.
    """
    out = []
    for i, length in enumerate(lengths):
        start = 0
        while length - start >= 2:
            stop = min(start + num_time + 1, length)
            out.append((i, start, stop))
            start = stop - 1
    return out


def first_fit(sizes: Sequence[int], num_time: int, open_rows: int = 256) -> list[list[int]]:
    """Rows of piece numbers: each piece goes into the fullest open row that still holds it.

    Deterministic; at most `open_rows` rows are considered, the fullest closes when there are more. Pieces keep the
    order they came in within a row.
    """
    rows, room = [], []  # room: heap of (space left, row), the fullest first
    for i, size in enumerate(sizes):
        skipped = []
        while room and room[0][0] < size:
            skipped.append(heapq.heappop(room))
        if room:
            space, row = heapq.heappop(room)
            rows[row].append(i)
        else:
            space, row = num_time, len(rows)
            rows.append([i])
        for item in [*skipped, (space - size, row)]:
            if item[0] >= 2:
                heapq.heappush(room, item)
        if len(room) > open_rows:
            heapq.heappop(room)
    return rows
