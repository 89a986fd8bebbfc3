"""The rows of prefix trees of every step of a run, in the few shapes that its steps need.

Dimensions: B pairs of a step.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data import loader
from data.texts import strands, trees
from data.texts.pairs import Pairs


def maker(
    pairs: Pairs,
    options: Mapping[str, Any],
    num_rows: int,
    mine: slice,
    extra: Mapping[str, np.ndarray],
    expand: str,
) -> Callable[[np.ndarray, np.ndarray], loader.Batch]:
    """What makes this process's rows of a step, which all processes plan alike."""
    planned = _planned(pairs, options, num_rows)
    lengths = trees.levels(_sizes(planned, has_more=options["endless"]))
    length = strands.length_for(pairs.limits["sequence"])
    least = {}  # shape of the strands beside rows of each length
    for rows in planned if expand else ():
        level, shape = trees.level_of(max(row.size for row in rows), lengths), trees.strands_shape(rows, expand, length)
        least[level] = strands.Shape(*map(max, shape, least.get(level, shape)))

    def make(index: np.ndarray, weight: np.ndarray) -> loader.Batch:
        real = index[weight > 0]
        rows = trees.plan([pairs.sides(i) for i in real], num_rows)
        of_pairs = {"index": real} | {key: values[real] for key, values in extra.items() if key != "reference"}
        if pairs.label_N is not None:
            of_pairs["labels"] = pairs.label_N[real]
        stored = extra.get("reference")
        num_time = trees.level_of(max(row.size for row in rows), lengths)
        shape = trees.strands_shape(rows, expand, length) if expand else None  # of all processes' rows
        return trees.fill(
            rows[mine],
            num_time=num_time,
            expand=expand,
            least=strands.Shape(*map(max, shape, least.get(num_time, shape))) if shape else None,
            num_pairs=options["batch_size"],
            pad_id=pairs.pad_id,
            of_pairs=of_pairs,
            reference_fn=None if stored is None else lambda b, p: stored[real[b], p],
        )

    return make


def _planned(pairs: Pairs, options: Mapping[str, Any], num_rows: int) -> list[list[trees.Row]]:
    """The rows of the first steps of a run, or of all batches of one pass."""
    batch_size = options["batch_size"]
    num_epochs = 4 * -(-len(pairs) // batch_size)
    num_steps = min(max(16, min(256, 8_192 // batch_size)), num_epochs) if options["endless"] else sys.maxsize
    steps = loader.build(
        lambda index, weight: {"index": index[weight > 0]}, **{**options, "num_threads": 0}, is_split=False
    )
    first = (batch["index"] for _, batch in zip(range(num_steps), steps))
    return [trees.plan([pairs.sides(i) for i in index], num_rows) for index in first]


def _sizes(planned: Sequence[Sequence[trees.Row]], *, has_more: bool) -> list[int]:
    """Of the largest row of each step; where more steps come, one that is larger than all of these as well."""
    sizes = [max(row.size for row in rows) for rows in planned]
    if has_more and sizes:
        sizes.append(max(sizes) + (max(sizes) - int(np.median(sizes))) // 2)
    return sizes
