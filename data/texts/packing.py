"""Many token sequences packed into rows of one length."""

import heapq
from collections.abc import Sequence


def chunks(lengths: Sequence[int], num_time: int) -> list[tuple[int, int, int]]:
    """Pieces (sequence, start, stop) with at most `num_time` targets each; together they hold every token.

    A piece has one token more than targets. It begins with the last token of the piece before: a target there, and an
    input here. So every token but a sequence's first is a target exactly once.
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
    """The numbers of the pieces in each row: each piece goes into the fullest open row that has room for it.

    The result depends on the sizes alone. At most `open_rows` rows stay open; when there are more, the fullest closes.
    Within a row, pieces stay in their order.

    Args:
        sizes: places that each piece fills.
        num_time: places in a row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # a heap of (places left, row), so the fullest row comes first
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
            if item[0] >= 2:  # a row with less room is as good as full
                heapq.heappush(room, item)
        if len(room) > open_rows:
            heapq.heappop(room)
    return rows
