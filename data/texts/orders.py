"""In which order an epoch goes through the pairs: functions of a seed and the epoch's number.

Dimensions: n pairs.
"""

from collections.abc import Callable

import numpy as np

OrderFn = Callable[[int], np.ndarray]  # epoch to a permutation of 0 ... n - 1
AHEAD = 64  # families that may be taken before their turn
WINDOW = 32  # steps among which `balanced` deals out the long and the short pairs


def balanced(sizes_n: np.ndarray, *, batch_size: int, seed: int) -> OrderFn:
    """Shuffled, and then dealt out so that the steps of each window have nearly equally many tokens.

    Every pair comes once an epoch. The pairs of a window of WINDOW steps are a random draw; among them each step gets
    one of the longest, one of the next longest, and so on. Where batches run on from one epoch into the next, the
    windows begin with the first whole batch.

    Args:
        sizes_n: tokens of each pair.
    """
    num = len(sizes_n)

    def order(epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed % 2**32, epoch])
        places_n = rng.permutation(num)
        first = -epoch * num % batch_size  # these fill up the batch that the epoch before began
        whole = (num - first) // batch_size
        for start in range(0, whole, WINDOW):
            steps = min(WINDOW, whole - start)
            here = slice(first + start * batch_size, first + (start + steps) * batch_size)
            dealt = rng.permutation(_deal(places_n[here], sizes_n, steps), axis=0)
            places_n[here] = rng.permuted(dealt, axis=1).reshape(-1)
        return places_n

    return order


def _deal(places: np.ndarray, sizes_n: np.ndarray, steps: int) -> np.ndarray:
    """[steps, B] the places, in rounds from the longest down: the step with the least gets the round's longest."""
    by_size = places[np.argsort(-sizes_n[places], kind="stable")].reshape(-1, steps)
    dealt, totals = [], np.zeros(steps)
    for one_round in by_size:
        lightest = np.argsort(totals, kind="stable")
        mine = np.empty_like(one_round)
        mine[lightest] = one_round
        totals += sizes_n[mine]
        dealt.append(mine)
    return np.stack(dealt, axis=1)


def together(families_n: np.ndarray, *, batch_size: int, seed: int) -> OrderFn:
    """Families in random order, the members of each next to each other in theirs: the pairs of a prompt's answers.

    A family that would lie across the end of a step gives way to the next ones that fit, up to AHEAD of them, so that
    steps hold whole families wherever these exist.

    Args:
        families_n: the number of each pair's family.
    """
    families, members = np.unique(families_n, return_inverse=True)
    by_family = np.argsort(members, kind="stable")
    starts = np.searchsorted(members[by_family], np.arange(len(families) + 1))

    def order(epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed % 2**32, epoch])
        room = (-epoch * len(families_n)) % batch_size or batch_size  # of the step that the epoch before began
        chosen = _fitting(rng.permutation(len(families)), np.diff(starts), room, batch_size)
        return np.concatenate([by_family[starts[f] : starts[f + 1]] for f in chosen])

    return order


def one_pass(families_n: np.ndarray, *, batch_size: int) -> np.ndarray:
    """Every pair once, by families in their order; a family that does not fit into what is left of a batch begins one.

    Families larger than a batch are cut.

    Returns:
        The pairs of all places of the batches, and n, the number of pairs, at places that stay empty.
    """
    families, firsts, sizes = np.unique(families_n, return_index=True, return_counts=True)
    by_family = np.split(np.argsort(families_n, kind="stable"), np.cumsum(sizes)[:-1])
    places: list[int] = []
    for place in np.argsort(firsts) if len(families) else ():
        room = -len(places) % batch_size
        if sizes[place] > room:
            places += [len(families_n)] * room
        places += by_family[place].tolist()
    return np.array(places + [len(families_n)] * (-len(places) % batch_size), np.int64)


def _fitting(shuffled: np.ndarray, sizes: np.ndarray, room: int, batch_size: int) -> list[int]:
    """The families in an order in which few lie across two steps; `room` is what the first step has left."""
    waiting, chosen = list(shuffled[::-1]), []  # the next one last
    while waiting:
        ahead = range(len(waiting) - 1, max(len(waiting) - 1 - AHEAD, -1), -1)
        place = next((i for i in ahead if sizes[waiting[i]] <= room), len(waiting) - 1)
        family = waiting.pop(place)
        chosen.append(int(family))
        room = (room - int(sizes[family])) % batch_size or batch_size
    return chosen


def across(families_n: np.ndarray, order: np.ndarray, batch_size: int) -> int:
    """How many families of an order, that begins with a step, lie across two steps; n is a place that stays empty."""
    steps: dict[int, set[int]] = {}
    for place, i in enumerate(order):
        if i == len(families_n):
            continue
        steps.setdefault(int(families_n[i]), set()).add(place // batch_size)
    return sum(len(of) > 1 for of in steps.values())
