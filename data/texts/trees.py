"""Rows of packed prefix trees: the answers that a training step compares, with every token once.

A step's pairs become rows in three stages, all on the host and all functions of the pairs alone:

1. equal answers become one, and answers that are compared, or that follow the same prompt, become a bundle;
2. bundles go to rows, such that these have nearly equally many tokens;
3. a row's sequences are sorted by their tokens, so that common beginnings stand next to each other, and laid out as a
   forest: each sequence adds what it does not share with the one before it.

Sharing has any depth: a prompt of all its answers, turns of a dialogue, the same opening of two answers. A row holds
three parallel lists beside its tokens: which place predicts which token of which answer (`sources`, `targets`,
`owners`), and which answers are compared (`sides`). `alignment.models.tree_attention` has the rule of who sees whom.

Dimensions: B pairs of a step, N rows, T places, M targets of a row, S pairs of a row, P pair = (chosen, rejected).
"""

import dataclasses
import heapq
import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from data.texts import strands

# Tokens that sequences of different bundles must have in common to be one tree. What they share is then seen from far
# away in the row, which costs a block of attention to each block of queries behind it; a few tokens are not worth that.
MIN_SHARED = 64
MAX_LEVELS = 3  # lengths of rows, each of which is compiled
FEW = 0.03  # share of places
UNIT = 8  # places; every length is a multiple
EXPANDS = {"packed": False, "single": True}  # whether each strand has a bin of its own
Batch = dict[str, np.ndarray]


class Answer(NamedTuple):
    """A prompt and its answer as one sequence, `ids[prompt_len:]` being the answer."""

    ids: np.ndarray
    prompt_len: int

    @property
    def prompt(self) -> np.ndarray:
        return self.ids[: self.prompt_len]

    @property
    def key(self) -> tuple[bytes, int]:
        """Equal for answers that are the same."""
        return self.ids.tobytes(), self.prompt_len


Sides = tuple[Answer, Answer]  # chosen, rejected


@dataclasses.dataclass(frozen=True)
class Forest:
    """Sequences laid out in a row, each token once.

    Attributes:
        tokens, positions, ends: [T]; `ends` is the place behind the last token that sees this one.
        places: of each sequence the places of its tokens.
    """

    tokens: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    places: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """What stands in one row: answers, and pairs of them as (number in the step, chosen, rejected)."""

    answers: list[Answer]
    forest: Forest
    pairs: list[tuple[int, int, int]]

    @property
    def num_targets(self) -> int:
        return sum(len(answer.ids) - answer.prompt_len for answer in self.answers)

    @property
    def size(self) -> int:
        """Places that it needs, for its tokens and for its targets, which lie in arrays of one length."""
        return max(len(self.forest.tokens), self.num_targets)


def lay_out(sequences: Sequence[np.ndarray], bundles: Sequence[int] | None = None, *, least: int = 0) -> Forest:
    """Sequences as a forest, in the order of their tokens.

    Args:
        bundles: of each sequence the number of its bundle; within one every common beginning is shared, between two
            one of at least MIN_SHARED tokens. None: all are one bundle.
        least: common beginnings of fewer tokens are not shared.
    """
    order, shared = by_tokens(sequences)
    if bundles is not None:
        is_spanned = _spanned([bundles[i] for i in order])
        shared = [k if together or k >= MIN_SHARED else 0 for k, together in zip(shared, is_spanned)]
    shared = [k if k >= least else 0 for k in shared]
    num_tokens = sum(len(ids) for ids in sequences) - sum(shared)
    tokens, positions, ends = (np.zeros(num_tokens, np.int32) for _ in range(3))
    places: list[np.ndarray] = [np.zeros(0, np.int32)] * len(sequences)
    where, at = np.zeros(max(map(len, sequences), default=0), np.int32), 0  # places of the sequence before this one
    for i, k in zip(order, shared):
        ids = sequences[i]
        own = slice(at, at + len(ids) - k)
        tokens[own], positions[own] = ids[k:], np.arange(k, len(ids))
        where[k : len(ids)] = np.arange(own.start, own.stop)
        at = own.stop
        places[i] = where[: len(ids)].copy()
        ends[places[i]] = at  # all that this sequence reads has a subtree that goes on to its end
    return Forest(tokens, positions, ends, places)


def num_tokens(sequences: Sequence[np.ndarray]) -> int:
    """Tokens of the sequences as one forest."""
    _, shared = by_tokens(sequences)
    return sum(map(len, sequences)) - sum(shared)


def plan(step: Sequence[Sides], num_rows: int) -> list[Row]:
    """The rows of a step.

    Args:
        step: its pairs in their order.
        num_rows: rows that the step is spread over; some may stay empty.
    """
    numbers: dict[Hashable, int] = {}
    answers: list[Answer] = []
    pairs: list[tuple[int, int]] = []
    for sides in step:
        for answer in sides:
            if numbers.setdefault(answer.key, len(answers)) == len(answers):
                answers.append(answer)
        pairs.append((numbers[sides[0].key], numbers[sides[1].key]))
    bundles = _bundles(answers, pairs)
    members: dict[int, list[int]] = {}
    for number, bundle in enumerate(bundles):
        members.setdefault(bundle, []).append(number)
    sizes = {bundle: num_tokens([answers[i].ids for i in inside]) for bundle, inside in members.items()}
    row_of = _spread(sizes, num_rows)
    return [_row(r, answers, pairs, bundles, row_of) for r in range(num_rows)]


def _row(r: int, answers: list[Answer], pairs: list[tuple[int, int]], bundles: list[int], row_of: dict) -> Row:
    inside = [i for i, bundle in enumerate(bundles) if row_of[bundle] == r]
    slots = {i: slot for slot, i in enumerate(inside)}
    own = [(b, slots[chosen], slots[rejected]) for b, (chosen, rejected) in enumerate(pairs) if chosen in slots]
    forest = lay_out([answers[i].ids for i in inside], [bundles[i] for i in inside])
    return Row([answers[i] for i in inside], forest, own)


def fill(
    rows: Sequence[Row],
    *,
    num_time: int,
    num_pairs: int,
    pad_id: int,
    of_pairs: Mapping[str, np.ndarray] | None = None,
    reference_fn: Any = None,
    expand: str = "",
    least: strands.Shape | None = None,
) -> Batch:
    """The rows as a batch.

    Args:
        num_time: T = M, at least the largest row's `size`.
        num_pairs: S.
        of_pairs: values [B] that go with the pairs, such as `index`; on empty places they are 0, and `index` is -1.
        reference_fn: (number of the pair in the step, side) to stored log-probabilities of that answer's tokens.
        expand: how the rows' strands stand in bins (a key of EXPANDS); "" leaves them out.
        least: shape of the strands' arrays, where the rows need no more.

    Returns:
        tokens, positions, ends: [N,T] int32; padding has ends of 0.
        sources, targets, owners: [N,T] int32: the place that predicts a target, the target, and its answer's slot in
            the row, below 2 S; -1 on filling. ordinals: [N,T] int32, the target's place in its answer, from 1.
        mask: [N,T] float32, 1 on targets. sides: [N,S,P] int32, slots that are compared. weights: [N,S] float32.
        lists: [N,S] int32, the number of the pair's prompt in its row; -1 on empty places.
        reference: [N,T] float32, where there is a `reference_fn`. Those of `strands.fill`, with `expand`.
    """
    N, T, S = len(rows), num_time, num_pairs
    batch = {name: np.zeros((N, T), np.int32) for name in ("positions", "ends", "sources", "targets", "ordinals")}
    batch |= {"tokens": np.full((N, T), pad_id, np.int32), "owners": np.full((N, T), -1, np.int32)}
    batch |= {"mask": np.zeros((N, T), np.float32), "sides": np.zeros((N, S, 2), np.int32)}
    batch |= {"weights": np.zeros((N, S), np.float32), "lists": np.full((N, S), -1, np.int32)}
    for name, values in (of_pairs or {}).items():
        batch[name] = np.full((N, S), -1 if name == "index" else 0, values.dtype)
    if reference_fn is not None:
        batch["reference"] = np.zeros((N, T), np.float32)
    for r, row in enumerate(rows):
        if row.size > T:
            raise ValueError(f"a row needs {row.size} places and has {T}")
        stop = len(row.forest.tokens)
        for name in ("tokens", "positions", "ends"):
            batch[name][r, :stop] = getattr(row.forest, name)
        lists = {name: batch[name][r] for name in ("sources", "targets", "owners", "ordinals", "mask")}
        first_targets = _fill_targets(lists, row)
        prompts: dict[bytes, int] = {}
        for s, (b, *slots) in enumerate(row.pairs):
            batch["sides"][r, s], batch["weights"][r, s] = slots, 1
            prompt = row.answers[slots[0]].prompt.tobytes()
            batch["lists"][r, s] = prompts.setdefault(prompt, len(prompts))
            for name, values in (of_pairs or {}).items():
                batch[name][r, s] = values[b]
            if reference_fn is not None:
                for p, slot in enumerate(slots):
                    logps = reference_fn(b, p)[: len(row.answers[slot].ids) - row.answers[slot].prompt_len]
                    batch["reference"][r, first_targets[slot] : first_targets[slot] + len(logps)] = logps
    return batch | (_strands_of(rows, expand, least, num_time) if expand else {})


def _strands_of(rows: Sequence[Row], expand: str, least: strands.Shape | None, num_time: int) -> Batch:
    forests, one_each = [row.forest for row in rows], EXPANDS[expand]
    shape = strands_shape(rows, expand, least.length if least else None)
    if least is not None:
        shape = strands.Shape(*map(max, shape, least))
    return strands.fill(forests, shape, num_time=num_time, one_each=one_each)


def strands_shape(rows: Sequence[Row], expand: str, length: int | None = None) -> strands.Shape:
    """The least shape of strands that holds every row."""
    if length is None:
        length = strands.length_for(max((len(answer.ids) for row in rows for answer in row.answers), default=1))
    shapes = [strands.need(row.forest, length, one_each=EXPANDS[expand]) for row in rows]
    return strands.Shape(*map(max, *shapes)) if len(shapes) > 1 else shapes[0]


def _fill_targets(lists: Mapping[str, np.ndarray], row: Row) -> list[int]:
    """Write the targets of a row's answers one after the other; where each answer's begin."""
    firsts, at = [], 0
    for slot, (answer, places) in enumerate(zip(row.answers, row.forest.places)):
        here = slice(at, at + len(answer.ids) - answer.prompt_len)
        lists["sources"][here] = places[answer.prompt_len - 1 : -1]  # the token before each of them predicts it
        lists["targets"][here] = answer.ids[answer.prompt_len :]
        lists["owners"][here], lists["mask"][here] = slot, 1
        lists["ordinals"][here] = np.arange(1, here.stop - at + 1)
        firsts.append(at)
        at = here.stop
    return firsts


def levels(sizes: Iterable[int]) -> tuple[int, ...]:
    """Lengths of rows that hold rows of these sizes.

    The fewest that leave at most FEW of the places empty; or MAX_LEVELS, those that leave the fewest.
    """
    sizes = list(sizes)
    rounded, counts = np.unique([round_up(size) for size in sizes], return_counts=True)
    if not len(rounded):
        return (8,)
    # best[i] for a number of levels: the least sum of lengths for the sizes up to the i-th, the last level being it
    before = np.concatenate([[0], np.cumsum(counts)])
    best, chosen = rounded * before[1:], [[(int(size),) for size in rounded]]
    for _ in range(MAX_LEVELS - 1):
        if sum(sizes) >= (1 - FEW) * best[-1]:
            break
        new, ways = best.copy(), list(chosen[-1])
        for i in range(len(rounded)):
            for j in range(i):
                cost = best[j] + rounded[i] * (before[i + 1] - before[j + 1])
                if cost < new[i]:
                    new[i], ways[i] = cost, (*chosen[-1][j], int(rounded[i]))
        best = new
        chosen.append(ways)
    return chosen[-1][-1]


def level_of(size: int, of: Sequence[int]) -> int:
    """The smallest level that holds a row; beyond the largest a length of its own, which compiles once more."""
    return next((level for level in of if size <= level), round_up(size))


def round_up(size: int) -> int:
    """The next multiple of 8, above 256 of 64, above 4,096 of 1/64 of the length: few lengths, and full tiles."""
    unit = UNIT if size <= 256 else 64 * max(1, 2 ** int(np.log2(max(size, 1)) - 12))
    return -(-size // unit) * unit


def scoring_batches(
    answers: Sequence[Answer], *, num_places: int, num_rows: int, pad_id: int, expand: str = ""
) -> Iterator[tuple[Batch, list[list[int]]]]:
    """Rows of single answers, for their log-probabilities alone, with the numbers of the answers in each row.

    All batches have one shape.

    Args:
        num_places: tokens of a row, about; a longer answer has a row of its own.
        num_rows: rows of a batch.
        expand: see `fill`.
    """
    order, shared = by_tokens([answer.ids for answer in answers])
    groups: list[list[int]] = []
    room = 0
    for i, k in zip(order, shared):
        # Neighbours by their tokens share their beginnings; the first answer of a row has to bring its own.
        more = len(answers[i].ids) - k
        if not groups or more > room:
            groups.append([])
            room = max(num_places, len(answers[i].ids)) - len(answers[i].ids)
        else:
            room -= max(more, len(answers[i].ids) - answers[i].prompt_len)
        groups[-1].append(i)
    rows = []
    for group in groups:
        inside = [answers[i] for i in group]
        rows.append(Row(inside, lay_out([answer.ids for answer in inside], [0] * len(inside)), []))
    num_time = round_up(max((row.size for row in rows), default=1))
    empty = Row([], lay_out([]), [])
    least = strands_shape(rows or [empty], expand) if expand else None
    for start in range(0, len(rows), num_rows):
        part, numbers = rows[start : start + num_rows], groups[start : start + num_rows]
        missing = num_rows - len(part)
        filled = [*part, *[empty] * missing]
        batch = fill(filled, num_time=num_time, num_pairs=1, pad_id=pad_id, expand=expand, least=least)
        yield batch, [*numbers, *[[]] * missing]


def by_tokens(sequences: Sequence[np.ndarray]) -> tuple[list[int], list[int]]:
    """The order of the sequences by their tokens, and how many each shares with the one before it."""
    # Big-endian bytes of numbers that are not negative sort as the numbers do.
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].astype(">i4").tobytes())
    shared = [_common(sequences[i], sequences[j]) for i, j in itertools.pairwise(order)]
    return order, [0, *shared][: len(order)]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two sequences begin with in common."""
    num = min(len(a), len(b))
    differs = np.flatnonzero(a[:num] != b[:num])
    return int(differs[0]) if len(differs) else num


def _spanned(bundles: Sequence[int]) -> list[bool]:
    """Whether some bundle has members both before each place of this order and from it on."""
    last = {bundle: r for r, bundle in enumerate(bundles)}
    is_spanned, reach = [], -1
    for r, bundle in enumerate(bundles):
        is_spanned.append(r <= reach)
        reach = max(reach, last[bundle])
    return is_spanned


def _bundles(answers: Sequence[Answer], pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The number of each answer's bundle: the first answer that it is connected with."""
    of_prompt: dict[bytes, int] = {}
    same_prompt = [(of_prompt.setdefault(answer.prompt.tobytes(), i), i) for i, answer in enumerate(answers)]
    ends = np.array([*same_prompt, *pairs], int).reshape(-1, 2).T
    joined = scipy.sparse.coo_matrix((np.ones(ends.shape[1], bool), tuple(ends)), shape=(len(answers),) * 2)
    _, bundle_N = scipy.sparse.csgraph.connected_components(joined, directed=False)
    _, first_B = np.unique(bundle_N, return_index=True)
    return first_B[bundle_N].tolist()


def _spread(sizes: Mapping[int, int], num_rows: int) -> dict[int, int]:
    """The row of each bundle, such that rows have nearly equally many tokens.

    Karmarkar and Karp 1982, "The differencing method of set partitioning": each bundle begins as a plan of its own, and
    the two plans whose rows differ most become one, the fullest row of one with the emptiest of the other, until one is
    left.
    """
    number = itertools.count()  # of plans that differ as much the earlier one goes first
    plans = [(-size, next(number), [(size, [bundle]), *[(0, [])] * (num_rows - 1)]) for bundle, size in sizes.items()]
    heapq.heapify(plans)
    while len(plans) > 1:
        one, other = (heapq.heappop(plans)[-1] for _ in range(2))  # rows, the fullest first
        rows = [(a + b, [*own, *more]) for (a, own), (b, more) in zip(one, reversed(other))]
        rows.sort(key=lambda row: -row[0])
        heapq.heappush(plans, (rows[-1][0] - rows[0][0], next(number), rows))
    return {bundle: r for *_, rows in plans for r, (_, own) in enumerate(rows) for bundle in own}
